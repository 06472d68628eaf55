"""Train with Opacus on eight pictures, and audit one step as the server that was sent it."""

import argparse
import webbrowser
from pathlib import Path

import torch
from opacus import PrivacyEngine
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from inversefed import Batch, freeze
from inversefed.integrations.opacus import noised_gradient, plain_module, read_training
from inversefed.pipeline import audit_observation
from inversefed.zoo import pictures

NAMES = ("astronaut", "chelsea", "coffee", "rocket")
MEAN, STD = 0.5, 0.25


def private_data() -> TensorDataset:
    """Eight pictures of the client: four photographs that come with scikit-image, and their mirror images."""
    images = torch.stack([pictures.photo(name, (3, 32, 32)) for name in NAMES])
    return TensorDataset(torch.cat([images, images.flip(-1)]), torch.arange(8) % 4)


def build() -> nn.Module:
    """A small network with GroupNorm, for Opacus takes no BatchNorm."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*body, nn.Linear(8 * 256, 4))


def main() -> None:
    """Train, audit, write the report, and open it."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--noise-multiplier", type=float, default=1.0)
    options.add_argument("--max-grad-norm", type=float, default=1.0)
    options.add_argument("--steps", type=int, default=4)
    options.add_argument("--time-budget", type=float, default=30.0, help="seconds for the audit")
    options.add_argument("--output", type=Path, default=Path("runs/opacus_audit"))
    options.add_argument("--no-open", action="store_true", help="do not open the report in a browser")
    given = options.parse_args()

    torch.manual_seed(1)  # of the sampler and of Opacus' noise
    module, engine = build(), PrivacyEngine()
    module, optimizer, loader = engine.make_private(
        module=module,
        optimizer=torch.optim.SGD(module.parameters(), lr=0.1),
        data_loader=DataLoader(private_data(), batch_size=2),
        noise_multiplier=given.noise_multiplier,
        max_grad_norm=given.max_grad_norm,
    )
    steps = (batch for _ in range(1000) for batch in loader if len(batch[0]))
    for images, labels in (next(steps) for _ in range(given.steps)):
        before = plain_module(module)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module((images - MEAN) / STD), labels).backward()
        optimizer.step()

    training = read_training(module, optimizer, engine, num_examples=len(images))
    network = freeze(before, (3, 32, 32), mean=MEAN, std=STD)
    report = audit_observation(
        training.observed(network, noised_gradient(module)),
        truth=Batch(images, labels),
        client=training.client,
        findings=training.findings,
        time_budget=given.time_budget,
        nulls=4,
    )
    print(report.summary())
    page = report.save(given.output, overwrite=True) / "report.html"
    print(f"The report: {page}")
    if not given.no_open:
        webbrowser.open(page.absolute().as_uri())


if __name__ == "__main__":
    main()
