"""Exact and analytic attacks on batches of real pictures: network x dtype x dB, one line a case.

`python -m benchmarks.exact` cuts the bundled photographs into 32x32 tiles, so that everybody can run it.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from benchmarks import record
from inversefed import Batch, FedSGD, ThreatModel, freeze, observe, recipes
from inversefed.attacks import Attack
from inversefed.errors import InversefedError
from inversefed.evaluation.align import align
from inversefed.types import Budget, Finding
from inversefed.zoo import constants, networks, pictures

__all__ = ["Options", "main"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure exact and analytic attacks on batches of real pictures."""

    only: str = ""
    """Attacks to run, with commas; all by default."""
    seconds: float = 60.0
    """Budget of a case."""


def tiles(count: int) -> Tensor:
    """Tiles of the bundled photographs, each 32x32, `[n, 3, 32, 32]`: one of each photograph, then the next."""
    large = torch.stack([pictures.photo(name, (3, 128, 128)) for name in pictures.photo_names()])
    cut = large.unfold(2, 32, 32).unfold(3, 32, 32).permute(2, 3, 0, 1, 4, 5).reshape(-1, 3, 32, 32)
    return cut[torch.randperm(len(cut), generator=torch.Generator().manual_seed(0))[:count]]


def perceptron(width: int) -> nn.Module:
    """3072-width-width-10 with ReLU."""
    torch.manual_seed(0)
    layers = [nn.Linear(3072, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)]
    return nn.Sequential(nn.Flatten(), *layers)


def transformer(width: int) -> nn.Module:
    """torchvision's `VisionTransformer` of two blocks on patches of 4x4, its head, which starts at zero, drawn."""
    torch.manual_seed(0)
    built = VisionTransformer(32, 4, num_layers=2, num_heads=4, hidden_dim=width, mlp_dim=2 * width, num_classes=10)
    nn.init.normal_(built.heads.head.weight, std=0.02)
    module: nn.Module = built
    return module


def cases() -> Iterator[tuple[str, str, Attack, nn.Module, int, torch.dtype]]:
    """Attack, network, batch size and number format."""
    double, single = torch.float64, torch.float32
    for count, width in ((2, 200), (4, 200), (8, 200)):
        yield "spear", f"perceptron {width}", recipes.spear(), perceptron(width), count, double
    for dtype in (double, single):
        for count, width in ((8, 200), (8, 64), (16, 400), (32, 1024), (48, 1024)):
            yield "sparse", f"perceptron {width}", recipes.sparse(), perceptron(width), count, dtype
    for count in (8, 16, 32, 64):
        yield "cocktail_party", "perceptron 1024", recipes.cocktail_party(), perceptron(1024), count, single
    yield from _transformers()
    for name in ("LeNetZhu", "AllConv", "McMahan", "ConvNet16", "ResNet20", "ResNet20-4", "ResNet18"):
        yield "peel", name, recipes.peel(), networks.build(name, seed=0), 1, single
    for name, count in (("AllConv", 2), ("AllConv", 4), ("ResNet20-4", 3), ("ResNet18", 2), ("ResNet18", 4)):
        yield "peel", name, recipes.peel(), networks.build(name, seed=0), count, single


def _transformers() -> Iterator[tuple[str, str, Attack, nn.Module, int, torch.dtype]]:
    for dtype in (torch.float64, torch.float32):
        yield "april", "BareViT", recipes.april(), networks.build("BareViT", seed=0), 1, dtype
        yield "patch_embedding", "BareViT", recipes.patch_embedding(), networks.build("BareViT", seed=0), 1, dtype
    for width in (128, 64, 48, 32):
        yield "patch_embedding", f"ViT {width}", recipes.patch_embedding(), transformer(width), 1, torch.float32


def measured(attack: Attack, module: nn.Module, images: Tensor, dtype: torch.dtype, seconds: float) -> str:
    """Attack one batch; the figures as a line of the table."""
    images = images.to(dtype)
    labels = torch.arange(len(images)) * 7 % 10
    network = freeze(module.eval().to(dtype), (3, 32, 32), mean=constants.cifar10_mean, std=constants.cifar10_std)
    batch = Batch(images, labels)
    observation = observe(network, FedSGD(), FedSGD()(network, images, labels), batch, ThreatModel())
    gray = _decibels(torch.full_like(images, 0.5), images)
    began = time.perf_counter()
    try:
        found = attack(observation, torch.Generator().manual_seed(0), Budget(seconds=seconds))
    except InversefedError as error:
        return f" | | {gray.median():4.1f} | | refused: {error} | {time.perf_counter() - began:.1f}"
    spent = time.perf_counter() - began
    order = align(found.images.double(), images.double())
    quality = _decibels(found.images[order], images)
    right = int((found.labels[order] == labels).sum())
    return (
        f"{quality.median():4.0f} | {quality.min():4.0f} | {gray.median():4.1f} | {right}/{len(labels)} | "
        f"{found.findings[0].code}{_how_far(found.findings[0])} | {spent:.1f}"
    )


def _how_far(finding: Finding) -> str:
    """Of peeling: how many layers were left, behind which the picture was looked for."""
    evidence = finding.evidence
    return f", {evidence['layers_inverted']} of {evidence['layers']} left" if "layers_inverted" in evidence else ""


def _decibels(found: Tensor, truth: Tensor) -> Tensor:
    return -10 * (found - truth).double().square().flatten(1).mean(dim=1).clamp(min=1e-32).log10()


def run(options: Options, _command: str = "") -> int:
    """Print the table; 0 if all was measured."""
    print("| attack | network | b | dtype | median dB | least dB | gray dB | labels | finding | seconds |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, network, attack, module, count, dtype in cases():
        if not options.only or name in options.only.split(","):
            line = measured(attack, module, tiles(count), dtype, options.seconds)
            print(f"| `{name}` | {network} | {count} | {str(dtype)[6:]} | {line} |", flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all was measured, 2 for wrong usage or input, 130 if interrupted."""
    return record.command("exact", Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
