"""Exact attacks on rows of tables: every batch drawn in order, failures among them; a line a batch, a table at the end.

`python -m benchmarks.inputs --data FOLDER --json runs/bench/inputs.json` reads `german.data` (Statlog's German credit)
and `adult.data.gz` (Adult) of the UCI repository from a folder. What the file holds already is not measured again.

Labels are never given. The attacker knows the schema: the columns, their categories, ranges and standardization.
"""

import gzip
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import nn

from benchmarks import record
from inversefed import Batch, FedSGD, ThreatModel, freeze, observe, recipes
from inversefed.errors import InputError, InversefedError
from inversefed.evaluation.align import align
from inversefed.inputs import Table
from inversefed.types import Budget

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


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure exact attacks on rows of tables."""

    data: Path
    """A folder with german.data and adult.data.gz."""
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
        table: `german` or `adult`.
        count: rows.
        width: of its two hidden layers.
        activation: of both.
    """

    table: str
    count: int
    width: int
    activation: str = "ReLU"

    def __str__(self) -> str:
        return f"{self.table} {self.width}-{self.width} {self.activation} b={self.count}"


SETTINGS = (
    *(Setting("german", count, 200) for count in (8, 16, 32)),
    Setting("german", 32, 200, "GELU"),
    Setting("german", 24, 200, "sigmoid"),
    *(Setting("adult", count, 100) for count in (8, 16, 24, 32)),
    Setting("adult", 16, 100, "GELU"),
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
        labels: share of labels that are right.
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
    """One of the two tables, its target among the columns left out."""
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


def measured(setting: Setting, table: Table, seed: int, seconds: float) -> Result:
    """Attack batch number `seed`."""
    assert table.targets is not None
    order = torch.randperm(len(table.rows), generator=torch.Generator().manual_seed(seed))
    chosen, others = order[: setting.count], order[setting.count :]
    rows, labels = table.rows[chosen], table.targets[chosen]
    torch.manual_seed(seed)
    activation, width = ACTIVATIONS[setting.activation], setting.width
    hidden = [nn.Linear(rows.shape[1], width), activation(), nn.Linear(width, width), activation()]
    network = freeze(nn.Sequential(*hidden, nn.Linear(width, len(table.classes))), table.columns)
    update = FedSGD()(network, rows, labels)
    observation = observe(network, FedSGD(), update, Batch(rows, labels), ThreatModel())
    typical = table.columns.controls(rows, table.rows[others])["typical_row"]
    guess = float(table.columns.measures(typical, rows)["tableak_accuracy"].mean())
    began = time.perf_counter()
    try:
        found = recipes.categories()(observation, torch.Generator().manual_seed(seed), Budget(seconds))
    except InversefedError as error:
        return Result(typical=guess, seconds=time.perf_counter() - began, refused=str(error))
    took = time.perf_counter() - began
    places = align(found.images, rows)
    measures = table.columns.measures(found.images[places], rows)
    means = {name: float(each.mean()) for name, each in measures.items()}
    told = float((found.labels[places] == labels).double().mean())
    right = means["exact_row"] == told == 1
    return Result(
        found.proven, right, means["cells_right"], means["exact_row"], means["tableak_accuracy"], told, guess, took
    )


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
        for seed in range(options.batches):
            name = f"{setting} {seed}"
            if name not in kept:
                if setting.table not in tables:
                    tables[setting.table] = loaded(setting.table, options.data)
                result = measured(setting, tables[setting.table], seed, options.seconds)
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
