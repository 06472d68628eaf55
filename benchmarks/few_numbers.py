"""Updates of fewer independent numbers than their pictures have values: is the default nearer than one color?

python -m benchmarks.few_numbers --images FOLDER --json OUT

Each update is of the next pictures in the order of their names, through a network of its own seed. The best constant
color is each picture's own mean, which no attack can know.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch
from torch import nn

import inversefed
from benchmarks import record
from benchmarks.pictures import CLASSES, read_folder
from inversefed import FedAvg, FedSGD, recipes
from inversefed.attacks import Attack
from inversefed.fl.clients import Client
from inversefed.zoo import networks

__all__ = ["SETTINGS", "Options", "Row", "main", "two_pools"]

PSNR = "peak_signal_noise_ratio"


def two_pools() -> nn.Module:
    """The network of PyTorch's tutorial on CIFAR-10: two convolutions with max pooling, three linear layers."""
    features = (nn.Conv2d(3, 6, 5), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 16, 5), nn.ReLU(), nn.MaxPool2d(2))
    head = (nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, CLASSES))
    return nn.Sequential(*features, nn.Flatten(), *head)


SETTINGS: Mapping[str, tuple[str, int, Client]] = {
    "two pools, 1 picture": ("two pools", 1, FedSGD()),
    "two pools, 4 pictures": ("two pools", 4, FedSGD()),
    "two pools, 8 pictures": ("two pools", 8, FedSGD()),
    "two pools, 4 pictures, 2 steps": ("two pools", 4, FedAvg(local_steps=2, lr=0.01, batch_size=2)),
    "two pools, 8 pictures, 2 steps": ("two pools", 8, FedAvg(local_steps=2, lr=0.01, batch_size=4)),
    "LeNetZhu, 4 pictures": ("LeNetZhu", 4, FedSGD()),
    "LeNetZhu, 8 pictures": ("LeNetZhu", 8, FedSGD()),
}


@dataclass(frozen=True, kw_only=True)
class Options:
    """Hold the default to the best constant color where an update holds few numbers."""

    images: Path
    """A folder of square pictures, NAME_LABEL.png, taken in the order of their names."""
    updates: int = 10
    """How many of each setting."""
    json: Path | None = None
    """File for the figures."""


@dataclass(frozen=True)
class Row:
    """An update; PSNR in dB, means over its pictures.

    Args:
        setting: of `SETTINGS`.
        number: which update.
        default: what `best()` came to.
        weak: the same without the rules for few numbers.
        color: the best constant color.
    """

    setting: str
    number: int
    default: float
    weak: float
    color: float


def measured(options: Options, setting: str, number: int) -> Row:
    """Attack one update twice.

    Raises:
        InversefedError: files that cannot be used.
    """
    name, count, client = SETTINGS[setting]
    examples = read_folder(options.images)[number * count : (number + 1) * count]
    images, labels = torch.stack([each.image for each in examples]), torch.tensor([each.label for each in examples])
    torch.manual_seed(number)
    module = (two_pools() if name == "two pools" else networks.build(name, num_classes=CLASSES, seed=number)).eval()
    default = recipes.best()
    weak = replace(default, searches=tuple(rule for rule in default.searches if not rule.steady))

    def audited(attack: Attack) -> inversefed.Report:
        return inversefed.audit(
            module, images, labels, mean=0.5, std=0.5, client=client, attack=attack, seed=number, nulls=0
        )

    found = audited(default)
    scores = [found.scores[PSNR], audited(weak).scores[PSNR], found.baselines["constant"][PSNR]]
    return Row(setting, number, *(float(each.mean()) for each in scores))


def run(options: Options, _command: str = "") -> int:
    """Measure and print, a setting a row; 0 if all was measured."""
    torch.set_num_threads(1)
    rows: list[Row] = []
    print("| setting | best color | default | over it | worst update | without these rules |")
    print("|---|---:|---:|---:|---:|---:|")
    for setting in SETTINGS:
        own = [measured(options, setting, number) for number in range(options.updates)]
        over = [row.default - row.color for row in own]
        figures = [fmean(row.color for row in own), fmean(row.default for row in own), fmean(over), min(over)]
        cells = [*figures, fmean(row.weak - row.color for row in own)]
        print(f"| {setting} | " + " | ".join(f"{each:.1f}" for each in cells) + " |", flush=True)
        rows += own
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"rows": [vars(row) for row in rows]}, indent=1) + "\n", encoding="utf-8")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all was measured, 2 for wrong usage or input, 130 if interrupted."""
    return record.command("few_numbers", Options, run, arguments)


if __name__ == "__main__":
    raise SystemExit(main())
