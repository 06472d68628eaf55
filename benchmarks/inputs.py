"""Exact attacks on rows of tables: every batch drawn in order, failures among them; a line a batch, a table at the end.

`python -m benchmarks.inputs --data FOLDER --json runs/bench/inputs.json` reads `german.data` (Statlog's German credit)
and `adult.data.gz` (Adult) of the UCI repository from a folder, and breast cancer, wine and diabetes, tables of numbers
alone, from scikit-learn, where that is installed. What the file holds already is not measured again.

Labels are never given. The attacker knows the schema: the columns, their categories, ranges and standardization. The
targets of diabetes are standardized; six answers of yes or no, drawn at random, stand for a network of six logits.
"""

import copy
import gzip
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks import record
from inversefed import Batch, FedSGD, ThreatModel, freeze, observe, recipes
from inversefed.attacks import Attack
from inversefed.errors import InputError, InversefedError
from inversefed.evaluation.align import align
from inversefed.fl.batchnorm import sent_buffers
from inversefed.fl.losses import BinaryCrossEntropy, CrossEntropy, Loss, MeanSquaredError
from inversefed.fl.network import Network
from inversefed.inputs import Table
from inversefed.specs.named_tables import load_table
from inversefed.types import Budget, Params

__all__ = ["Options", "main"]

ADULT = [
    "age",
    "workclass",
    "fnlwgt",
    "education",
    "education-num",
    "marital-status",
    "occupation",
    "relationship",
    "race",
    "sex",
    "capital-gain",
    "capital-loss",
    "hours-per-week",
    "native-country",
    "income",
]
ACTIVATIONS = {"ReLU": nn.ReLU, "GELU": nn.GELU, "sigmoid": nn.Sigmoid}


SCIKIT = ("breast_cancer", "wine", "diabetes")
_SAME_TARGET = 1e-5


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure exact attacks on rows of tables."""

    data: Path
    """A folder with german.data and adult.data.gz."""
    first: int = 0
    """Number of the first batch, which is the seed of its rows and of its network."""
    last: int = 0
    """Draw from this many rows at the end of the table; 0 for all of them."""
    wrong: bool = False
    """Attack updates that no rows make: of other weights, or with their units in another order, in turn."""
    json: Path | None = None
    """File of what was measured; what is in it already is not measured again."""
    only: str = ""
    """A part of the names of the settings to run."""
    batches: int = 20
    """Batches of each setting."""
    seconds: float = 60.0
    """Budget of a batch."""


@dataclass(frozen=True)
class Setting:
    """A network and a number of rows.

    Args:
        table: `german`, `adult`, or one of scikit-learn's, `breast_cancer`, `wine`, `diabetes`.
        count: rows.
        width: of its two hidden layers.
        activation: of both.
        attack: `categories`, `sparse`, or `search`, which is the search of `best()`.
        answers: how many answers of yes or no stand for the table's own targets; 0 for these.
        norm: `BatchNorm1d` behind the first layer: none, in eval mode, or in train mode with its statistics sent.
    """

    table: str
    count: int
    width: int
    activation: str = "ReLU"
    attack: str = "categories"
    answers: int = 0
    norm: Literal["", "eval", "train"] = ""

    def __str__(self) -> str:
        more = f" {self.answers} logits" if self.answers else ""
        more += f" BatchNorm {self.norm}" if self.norm else ""
        more += " search" if self.attack == "search" else ""
        both = self.table in SCIKIT and self.activation == "ReLU"  # where two methods apply
        more += " categories" if both and self.attack == "categories" else ""
        return f"{self.table} {self.width}-{self.width} {self.activation}{more} b={self.count}"


SETTINGS = (
    *(Setting("german", count, 200) for count in (8, 16, 32)),
    Setting("german", 32, 200, "GELU"),
    Setting("german", 24, 200, "sigmoid"),
    *(Setting("adult", count, 100) for count in (8, 16, 24, 32)),
    Setting("adult", 16, 100, "GELU"),
    *(Setting("german", 16, 200, norm=norm) for norm in ("eval", "train")),
    Setting("breast_cancer", 8, 200, attack="sparse"),
    Setting("breast_cancer", 8, 200, attack="sparse", norm="eval"),
    *(Setting("wine", 8, width, attack="sparse") for width in (100, 200)),
    Setting("diabetes", 8, 200, attack="sparse"),
    Setting("breast_cancer", 4, 200, attack="sparse", answers=6),
    *(Setting("breast_cancer", count, 200, "GELU") for count in (4, 8, 16)),
    Setting("breast_cancer", 4, 200, "sigmoid"),
    Setting("wine", 8, 100),
    Setting("diabetes", 8, 200),
    Setting("wine", 8, 200, "GELU"),
    Setting("diabetes", 8, 200, "GELU"),
    *(Setting("breast_cancer", 4, 200, activation, attack="search") for activation in ("GELU", "sigmoid")),
)


@dataclass(frozen=True)
class Result:
    """What came of a batch.

    Args:
        exact: whether the attack proved it.
        right: whether every cell and label is right.
        cells: share of cells that are right.
        rows: share of rows all of whose cells are.
        tableak: TabLeak's score.
        labels: share of labels that are right, of numbers those within 1e-5.
        typical: TabLeak's score of the typical row of others.
        seconds: of the attack.
        refused: why it gave nothing.
    """

    exact: bool = False
    right: bool = False
    cells: float = 0.0
    rows: float = 0.0
    tableak: float = 0.0
    labels: float = 0.0
    typical: float = 0.0
    seconds: float = 0.0
    refused: str = ""


def loaded(name: str, folder: Path) -> Table:
    """One of the tables, its target among the columns left out.

    Raises:
        InputError: there is no such file, or scikit-learn is not installed.
    """
    if name in SCIKIT:
        return _of_scikit(name)
    path = folder / {"german": "german.data", "adult": "adult.data.gz"}[name]
    if not path.is_file():
        raise InputError(f"there is no {path}; the sets are those of the UCI repository")
    if name == "german":
        lines = [line.split() for line in path.read_text().splitlines()]
        rows = [{f"a{place}": cell for place, cell in enumerate(line, start=1)} for line in lines if line]
        return Table.of(rows, target="a21")
    with gzip.open(path, "rt") as file:
        cells = [[cell.strip() for cell in line.split(",")] for line in file if line.strip()]
    return Table.of([dict(zip(ADULT, line, strict=True)) for line in cells], target="income")


def _of_scikit(name: str) -> Table:
    if name != "diabetes":
        return load_table(f"sklearn:{name}")
    table = load_table(f"sklearn:{name}", kinds={"target": "number"})
    assert table.targets is not None
    return replace(table, targets=(table.targets - table.targets.mean()) / table.targets.std())


def _attack(setting: Setting) -> Attack:
    attacks: dict[str, Attack] = {
        "categories": recipes.categories(),
        "sparse": recipes.sparse(),
        "search": replace(recipes.best(), exact=()),
    }
    return attacks[setting.attack]


def measured(setting: Setting, table: Table, seed: int, seconds: float, last: int = 0, wrong: bool = False) -> Result:
    """Attack batch number `seed`, or an update that it does not make."""
    assert table.targets is not None
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(last or len(table.rows), generator=random) + len(table.rows) - (last or len(table.rows))
    chosen, others = order[: setting.count], order[setting.count :]
    rows, labels, outputs = table.rows[chosen], table.targets[chosen], len(table.classes) or 1
    loss: Loss = CrossEntropy() if table.classes else MeanSquaredError()
    if setting.answers:
        labels = torch.randint(2, (setting.count, setting.answers), generator=random).float()
        outputs, loss = setting.answers, BinaryCrossEntropy()
    torch.manual_seed(seed)
    activation, width = ACTIVATIONS[setting.activation], setting.width
    norm = [nn.BatchNorm1d(width)] if setting.norm else []
    hidden = [nn.Linear(rows.shape[1], width), *norm, activation(), nn.Linear(width, width), activation()]
    module = nn.Sequential(*hidden, nn.Linear(width, outputs)).train(setting.norm == "train")
    network = freeze(module, table.columns, loss=loss)
    update = FedSGD()(network, rows, labels)
    if wrong:
        update = _wrong(module, network, update, rows, labels, seed)
    sent = setting.norm == "train"
    buffers = sent_buffers(FedSGD(), network, rows, labels) if sent else None
    threat = ThreatModel(buffers="sent") if sent else ThreatModel()
    observation = observe(network, FedSGD(), update, Batch(rows, labels), threat, buffers)
    typical = table.columns.controls(rows, table.rows[others])["typical_row"]
    guess = float(table.columns.measures(typical, rows)["tableak_accuracy"].mean())
    began = time.perf_counter()
    try:
        found = _attack(setting)(observation, torch.Generator().manual_seed(seed), Budget(seconds))
    except InversefedError as error:
        return Result(typical=guess, seconds=time.perf_counter() - began, refused=str(error))
    took = time.perf_counter() - began
    places = align(found.images, rows)
    measures = table.columns.measures(found.images[places], rows)
    means = {name: float(each.mean()) for name, each in measures.items()}
    theirs = found.labels[places]  # of a wrong update they may be mixtures of classes, which are no label
    away = (theirs.reshape(labels.shape) - labels).abs() if theirs.numel() == labels.numel() else torch.ones(1)
    told = float((away < _SAME_TARGET).double().mean())
    right = means["exact_row"] == told == 1
    return Result(
        found.proven, right, means["cells_right"], means["exact_row"], means["tableak_accuracy"], told, guess, took
    )


def _wrong(
    module: nn.Module, network: Network, update: Params, rows: Tensor, labels: Tensor, seed: int
) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(seed)
    if seed % 2:
        return {name: part[torch.randperm(len(part), generator=random)] for name, part in update.items()}
    torch.manual_seed(seed + 1_000_000)
    other = copy.deepcopy(module)
    for part in other.modules():
        if isinstance(part, nn.Linear):
            part.reset_parameters()
    return dict(FedSGD()(freeze(other, network.space, loss=network.loss), rows, labels))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the settings and print a line for each batch, then a table."""
    return record.command("inputs", Options, _run, arguments)


def _run(options: Options, command: str) -> int:
    kept: dict[str, dict[str, object]] = {}
    if options.json is not None and options.json.is_file():
        kept = json.loads(options.json.read_text())["batches"]
    tables: dict[str, Table] = {}
    for setting in SETTINGS:
        if options.only not in str(setting):
            continue
        for seed in range(options.first, options.first + options.batches):
            name = f"{setting} {seed}"
            if name not in kept:
                if setting.table not in tables:
                    tables[setting.table] = loaded(setting.table, options.data)
                result = measured(setting, tables[setting.table], seed, options.seconds, options.last, options.wrong)
                kept[name] = asdict(result)
                print(f"{name}: {result.refused or ('exact' if result.exact else 'not exact')}, {result.seconds:.2f} s",
                      file=sys.stderr)  # fmt: skip
                if options.json is not None:
                    document = {"command": command, "machine": record.machine(), "batches": kept}
                    record.write(options.json, document)
        print("\n".join(_lines({setting: _of(kept, setting)})))
    return 0


def _of(kept: Mapping[str, Mapping[str, object]], setting: Setting) -> list[Mapping[str, object]]:
    return [each for name, each in kept.items() if name.rpartition(" ")[0] == str(setting)]


def _lines(results: Mapping[Setting, Sequence[Mapping[str, object]]]) -> Iterator[str]:
    for setting, batches in results.items():
        mean = {key: statistics.fmean(float(str(each[key])) for each in batches)
                for key in ("cells", "rows", "tableak", "labels", "typical")}  # fmt: skip
        seconds = [float(str(each["seconds"])) for each in batches]
        exact = sum(bool(each["exact"]) and bool(each["right"]) for each in batches)
        wrong = sum(bool(each["exact"]) and not each["right"] for each in batches)
        yield (
            f"| {setting} | {exact}/{len(batches)} | {wrong} | {100 * mean['cells']:.1f} | {100 * mean['rows']:.1f} | "
            f"{100 * mean['tableak']:.1f} | {100 * mean['typical']:.1f} | {100 * mean['labels']:.1f} | "
            f"{statistics.median(seconds):.2f} | {max(seconds):.1f} |"
        )


if __name__ == "__main__":
    sys.exit(main())
