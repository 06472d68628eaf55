"""How many labels each rule gets right, by batch, duplicates and network: the figures of docs/results/labels.md.

python -m benchmarks.labels --images FOLDER --json OUT
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import record
from benchmarks.pictures import CLASSES, SIDE, Example, bundled, read_folder
from inversefed.attacks import labels
from inversefed.attacks.labels import LabelRule
from inversefed.errors import ThreatModelError
from inversefed.fl.clients import FedAvg, FedSGD
from inversefed.fl.network import freeze
from inversefed.fl.threat import ThreatModel, observe
from inversefed.types import Batch
from inversefed.zoo import checkpoints, constants, networks

__all__ = ["Options", "Row", "batches", "main", "right"]

SIZES = (1, 4, 16, 64)
KINDS = ("natural", "distinct", "duplicates")
FEW = 3
"""How many classes share a batch of duplicates."""
RULES: dict[str, LabelRule] = {
    "SignRule": labels.SignRule(),
    "SoftTargets": labels.SoftTargets(),
    "ColumnMinimum": labels.ColumnMinimum(),
    "ImpactCounts": labels.ImpactCounts(),
    "BiasCounts": labels.BiasCounts(),
    "InstanceCounts": labels.InstanceCounts(),
    "MeanFeatureCounts": labels.MeanFeatureCounts(),
}
CLIENTS = ("gradient", "fedavg")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure how many labels each rule gets right."""

    images: Path | None = None
    """A folder of square pictures, NAME_LABEL.png; by default the photographs that ship with scikit-image."""
    networks: str = "LeNetZhu,ConvNet16,ResNet20"
    """Names of the zoo, with commas."""
    network_seeds: str = "0,1"
    """Each draws other weights; the mean is reported."""
    batches: int = 4
    """How many batches of each kind."""
    trained_weights: Path | None = None
    """A file of weights for the first of the networks."""
    json: Path | None = None
    """File for the figures."""


@dataclass(frozen=True)
class Row:
    """A network, a client and a kind of batch.

    Args:
        network: a name of `inversefed.zoo.networks`.
        trained: whether it was.
        client: what sent the update: a gradient, or four local steps.
        batch: `"natural"`: the next pictures; `"distinct"`: of different classes; `"duplicates"`: of three classes.
        size: examples a batch.
        batches: how many there were.
        accuracy: of each rule, the share of labels that are right, counted with multiplicity; `None` where the rule
            does not apply.
    """

    network: str
    trained: bool
    client: str
    batch: str
    size: int
    batches: int
    accuracy: dict[str, float | None] = field(default_factory=dict)


def run(options: Options, _command: str = "") -> int:
    """Measure and print, one setting a row; 0 if all was measured.

    Raises:
        InversefedError: an unknown network, or files that cannot be used.
    """
    torch.set_num_threads(1)
    examples = bundled() if options.images is None else read_folder(options.images)
    names = options.networks.split(",")
    seeds = [int(seed) for seed in options.network_seeds.split(",")]
    rows: list[Row] = []
    print(" | ".join(["network", "trained", "client", "batch", "n", "batches", *RULES, "RecoveredLabels"]))
    print("|".join(["---"] * (7 + len(RULES))))
    for name in names:
        modules = [networks.build(name, num_classes=CLASSES, seed=seed).eval() for seed in seeds]
        rows += _network(name, False, modules, examples, options.batches)
    if options.trained_weights is not None:
        module = networks.build(names[0], num_classes=CLASSES, seed=0)
        module = checkpoints.load_weights(module, options.trained_weights).eval()
        rows += _network(names[0], True, [module], examples, options.batches)
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps({"rows": [vars(row) for row in rows]}, indent=1) + "\n", encoding="utf-8")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all was measured, 2 for wrong usage or input, 130 if interrupted."""
    return record.command("labels", Options, run, arguments)


def batches(examples: Sequence[Example], kind: str, size: int, number: int) -> list[Batch]:
    """Draw batches from pictures in their order, starting again at the first; labels are the files'.

    Photographs without labels all have label 0: they are given the classes in turn.

    >>> from inversefed.types import Batch
    >>> pictures = [Example(str(i), torch.zeros(3, 2, 2), i % 4) for i in range(8)]
    >>> [batch.labels.tolist() for batch in batches(pictures, "duplicates", 4, 2)]
    [[0, 1, 2, 0], [1, 2, 0, 1]]
    """
    truth = [example.label for example in examples]
    truth = truth if len(set(truth)) > 1 else [index % CLASSES for index in range(len(examples))]
    if kind == "distinct" and size > len(set(truth)):
        return []
    few = set(sorted(set(truth))[:FEW])
    usable = [i for i, label in enumerate(truth) if kind != "duplicates" or label in few]
    found, place = [], 0
    for _ in range(number):
        chosen: list[int] = []
        while len(chosen) < size:
            index = usable[place % len(usable)]
            place += 1
            if kind != "distinct" or truth[index] not in [truth[other] for other in chosen]:
                chosen.append(index)
        found.append(Batch(torch.stack([examples[i].image for i in chosen]), torch.tensor([truth[i] for i in chosen])))
    return found


def client_of(kind: str, size: int) -> FedSGD | FedAvg:
    """The gradient of the batch, or four local steps of SGD with lr 1e-2, each on a quarter of it."""
    return FedSGD() if kind == "gradient" else FedAvg(local_steps=4, lr=1e-2, batch_size=max(1, size // 4))


def right(found: Tensor, truth: Tensor) -> float:
    """Share of labels that are right, counted with multiplicity.

    >>> right(torch.tensor([1, 1, 2, 3]), torch.tensor([1, 2, 2, 3]))
    0.75
    """
    counts = [torch.bincount(labels, minlength=CLASSES) for labels in (found, truth)]
    return float(torch.minimum(*counts).sum()) / len(truth)


def _network(name: str, trained: bool, modules: list[nn.Module], examples: list[Example], number: int) -> list[Row]:
    rows = []
    for client in CLIENTS:
        for kind in KINDS:
            for size in SIZES:
                drawn = batches(examples, kind, size, number)
                if drawn and (size > 1 or kind == "natural"):
                    accuracy = {rule: _accuracy(rule, client, modules, drawn) for rule in RULES}
                    accuracy["RecoveredLabels"] = accuracy[_chosen(client, modules[0], drawn[0])]
                    rows.append(Row(name, trained, client, kind, size, len(drawn) * len(modules), accuracy))
                    _show(rows[-1])
    return rows


def _accuracy(rule: str, client: str, modules: list[nn.Module], drawn: list[Batch]) -> float | None:
    scores = []
    for module in modules:
        network = freeze(module, (3, SIDE, SIDE), mean=constants.cifar10_mean, std=constants.cifar10_std)
        for batch in drawn:
            sender = client_of(client, len(batch.labels))
            seen = observe(network, sender, sender(network, batch.images, batch.labels), batch, ThreatModel())
            try:
                scores.append(right(RULES[rule](seen), batch.labels))
            except ThreatModelError:
                return None
    return sum(scores) / len(scores)


def _chosen(client: str, module: nn.Module, batch: Batch) -> str:
    """Which rule `RecoveredLabels` takes; it looks at the setting only, so for a whole row it is the same."""
    network, sender = freeze(module, (3, SIDE, SIDE)), client_of(client, len(batch.labels))
    seen = observe(network, sender, sender(network, batch.images, batch.labels), batch, ThreatModel())
    return type(labels.RecoveredLabels().rule(seen)).__name__


def _show(row: Row) -> None:
    cells = ["" if value is None else f"{100 * value:.1f}" for value in row.accuracy.values()]
    head = [row.network, "yes" if row.trained else "no", row.client, row.batch, str(row.size), str(row.batches)]
    print(" | ".join([*head, *cells]), flush=True)


if __name__ == "__main__":
    sys.exit(main())
