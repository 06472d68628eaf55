"""How well records of an update are told from others: the table of docs/results/membership.md.

python -m benchmarks.records --images FOLDER --json OUT

A small network is trained on the pictures, and 64 of the first 500 make an update. The records that are asked for are
those 64, beside 64 others of the 500; in a null update, 64 others make it.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

import inversefed
from benchmarks import record
from benchmarks.pictures import CLASSES, read_folder
from inversefed import DPSGD, FedAvg, FedSGD
from inversefed.fl.clients import Client
from inversefed.fl.simulate import observed
from inversefed.types import Batch
from inversefed.zoo import networks

__all__ = ["CLIENTS", "Options", "Row", "main", "measured"]

CLIENTS: Mapping[str, Client] = {
    "gradient": FedSGD(),
    "FedAvg (a)": FedAvg(local_steps=4, lr=0.01),
    "FedAvg (b)": FedAvg(epochs=4, lr=0.05, batch_size=16, shuffle=True),
    "DP-SGD, 0.05": DPSGD(0.05, 1.0),
    "DP-SGD, 1": DPSGD(1.0, 1.0),
}
BATCH, POOL, ALONE = 64, 500, 4
_MEAN, _STD = 0.5, 0.25


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure how well records of an update are told from others."""

    images: Path
    """A folder of square pictures, NAME_LABEL.png, 4,000 or more; they are taken in the order of their names."""
    seeds: int = 3
    """How many updates of each kind."""
    json: Path | None = None
    """File for the figures."""


@dataclass(frozen=True)
class Row:
    """A network and a client; means over seeds.

    Args:
        network: with how it was trained.
        client: of `CLIENTS`.
        auc: of the records in and out, each seed's.
        called: share of the records in that are called at 5 %.
        alone: AUC of one record that is asked for, the other 63 unknown, beside 128 out: four a seed; 0 but for
            the first client.
        null_called: share of the records called in null updates.
        null_p_values: of all records of each null update together.
        seconds: of one question.
    """

    network: str
    client: str
    auc: tuple[float, ...]
    called: float
    alone: float
    null_called: float
    null_p_values: tuple[float, ...]
    seconds: float


def measured(name: str, net: nn.Module, client: str, examples: Batch, seeds: int) -> Row:
    """Ask for the records of some updates, and of as many null updates."""
    auc, called, alone, null, p_values, seconds = [], 0.0, 0.0, 0.0, [], 0.0
    for seed in range(seeds):
        places = torch.randperm(POOL, generator=Generator().manual_seed(seed))
        inside, out, others = (_part(examples, places[i * BATCH : (i + 1) * BATCH]) for i in range(3))
        seen, _ = observed(net, inside.images, inside.labels, mean=_MEAN, std=_STD, client=CLIENTS[client], seed=seed)
        began = time.perf_counter()
        found = inversefed.membership(seen, inside, out=out)
        seconds += (time.perf_counter() - began) / seeds
        auc.append(found.auc.mean if found.auc is not None else float("nan"))
        called += float(found.called.double().mean()) / seeds
        many = _part(examples, places[BATCH : 3 * BATCH])
        for place in places[: ALONE if client == "gradient" else 0]:
            single = inversefed.membership(seen, _part(examples, place[None]), out=many)
            alone += (single.auc.mean if single.auc is not None else float("nan")) / seeds / ALONE
        seen, _ = observed(net, others.images, others.labels, mean=_MEAN, std=_STD, client=CLIENTS[client], seed=seed)
        nobody = inversefed.membership(seen, inside, out=out)
        null += float(nobody.called.double().mean()) / seeds
        p_values.append(nobody.p_value)
    return Row(name, client, tuple(auc), called, alone, null, tuple(p_values), seconds)


def convolutional() -> nn.Module:
    """284,000 weights, for 3x32x32."""
    torch.manual_seed(0)
    first = (nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(4096, 64), nn.ReLU(), nn.Linear(64, CLASSES))


def trained(examples: Batch, count: int, epochs: int) -> tuple[nn.Module, float]:
    """The same after some passes of Adam over the first pictures, and the share of 500 of them that it has right."""
    net, generator = convolutional(), Generator().manual_seed(0)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    inputs = (examples.images[:count] - _MEAN) / _STD
    for _ in range(epochs):
        for part in torch.randperm(count, generator=generator).split(64):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(inputs[part]), examples.labels[part])
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    with torch.no_grad():
        right = net(inputs[:POOL]).argmax(dim=1) == examples.labels[:POOL]
    return net.eval(), float(right.double().mean())


def run(options: Options, _command: str = "") -> int:
    """Measure and print, a network a row; 0 if all was measured.

    Raises:
        InversefedError: files that cannot be used.
    """
    torch.set_num_threads(1)
    read = read_folder(options.images)
    examples = Batch(torch.stack([each.image for each in read]), torch.tensor([each.label for each in read]))
    nets: dict[str, nn.Module] = {
        "LeNetZhu, untrained": networks.build("LeNetZhu", num_classes=CLASSES, seed=0).eval(),
        "convolutional, untrained": convolutional().eval(),
    }
    for count, epochs in ((4000, 8), (1000, 30)):
        net, right = trained(examples, count, epochs)
        nets[f"trained on {count:,}: {right:.0%} of 500 right"] = net
    rows = []
    print(" | ".join(["network", *CLIENTS, "gradient, one record"]))
    print("|".join(["---"] * (2 + len(CLIENTS))))
    for name, net in nets.items():
        own = [measured(name, net, client, examples, options.seeds) for client in CLIENTS]
        cells = [f"{sum(row.auc) / len(row.auc):.3f} ({row.called:.0%})" for row in own]
        print(" | ".join([name, *cells, f"{own[0].alone:.2f}"]), flush=True)
        rows += own
    p_values = [each for row in rows for each in row.null_p_values]
    called = sum(row.null_called for row in rows) / len(rows)
    print(f"null updates: {len(p_values)}, records called {called:.1%}, p <= 0.05: {sum(p <= 0.05 for p in p_values)}")
    print(f"seconds: {min(row.seconds for row in rows):.1f} to {max(row.seconds for row in rows):.1f}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"rows": [vars(row) for row in rows]}, indent=1) + "\n", encoding="utf-8")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all was measured, 2 for wrong usage or input, 130 if interrupted."""
    return record.command("records", Options, run, arguments)


def _part(examples: Batch, places: Tensor) -> Batch:
    return Batch(examples.images[places], examples.labels[places])


if __name__ == "__main__":
    raise SystemExit(main())
