"""A table from a file or from rows: which columns are numbers, which are categories, and what is left out.

The schema is inferred from the cells, printed by `print(table)`, and overridden by `kinds`:

    all numbers             a number, whole where all are        in its range, and standardized
    few values              a category                           a missing cell is a value of its own, `(missing)`
    dates                   left out                             a finding says so
    text, mostly different  left out, such as names              likewise
    one value alone         left out                             likewise
    a number is missing     the row is left out                  likewise
"""

import csv
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from inversefed.errors import ConfigError, InputError, shown
from inversefed.findings import Code, Finding
from inversefed.inputs.columns import Category, Columns, Number

__all__ = ["Kind", "Table"]

Kind = Literal["number", "whole", "category", "leave out"]
"""What a column is, where the inference is overridden."""

_KINDS = ("number", "whole", "category", "leave out")
_MISSING = {"", "?", "na", "n/a", "nan", "null"}
"""Cells that say that there is nothing, in lower case."""
_NOTHING = "(missing)"
_TEXT, _FEW = 0.5, 20
"""Share of different cells, and their number, above which a column is text and no category."""
_DATES = ("%d/%m/%Y", "%m/%d/%Y", "%d.%m.%Y", "%Y/%m/%d", "%d-%m-%Y", "%d %b %Y", "%b %d, %Y")
_MOST = 10**6
"""Most rows that are read."""


@dataclass(frozen=True, eq=False)
class Table:
    """Encoded rows with their schema.

    Args:
        columns: the schema of what the network sees, the target not among it.
        rows: `[n, d]` in [0, 1].
        targets: class indices `[n]`, or numbers `[n]`; `None` where no target was named.
        classes: what the class indices stand for; empty for numbers.
        findings: what was left out, and why.
        target: the name of their column; empty for none.

    >>> rows = [{"age": 30 + i % 9, "sex": "fm"[i % 2], "risk": "ny"[i % 3 == 0]} for i in range(40)]
    >>> print(Table.of(rows, target="risk"))
    40 rows of 2 columns, encoded as 3 numbers; targets: 2 classes, n, y
    age: whole number from 30 to 38
    sex: category, one of f, m
    """

    columns: Columns
    rows: Tensor = field(repr=False)
    targets: Tensor | None = field(default=None, repr=False)
    classes: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()
    target: str = ""

    @classmethod
    def of(
        cls,
        source: str | Path | Sequence[Mapping[str, object]],
        target: str | None = None,
        kinds: Mapping[str, Kind] | None = None,
    ) -> "Table":
        """Read a CSV file with a header, a Parquet file, or rows.

        Args:
            source: a file, or the cells of each row by column name.
            target: the column that the network is to tell.
            kinds: by column name, what a column is, instead of what is inferred.

        Raises:
            InputError: a file that cannot be read or is no table, a column that is not there, or nothing left.
            ConfigError: a kind that there is not.
        """
        kinds = dict(kinds or {})
        cells = _cells_of(source)
        unknown = [name for name in (*kinds, *([] if target is None else [target])) if name not in cells]
        if unknown:
            raise InputError(
                f"there is no column {shown(unknown[0])}; there are {', '.join(shown(name) for name in cells)}"
            )
        wrong = [kind for kind in kinds.values() if kind not in _KINDS]
        if wrong:
            raise ConfigError(f"a column is one of {', '.join(_KINDS)}; got {wrong[0]!r}")
        kept, told = _with_cells(cells, target, kinds)
        found = {name: _column(name, values, kinds.get(name)) for name, values in kept.items() if name != target}
        columns = tuple(each for each in found.values() if not isinstance(each, str))
        told += [_left_out(name, why) for name, why in found.items() if isinstance(why, str)]
        if not columns:
            raise InputError(
                "no column is left that a network could be fed with: " + " ".join(each.message for each in told)
            )
        schema = Columns(columns)
        targets, classes = (None, ()) if target is None else _targets(kept[target], kinds.get(target))
        return cls(schema, _encoded(schema, kept), targets, classes, tuple(told), target or "")

    def more(self, source: str | Path | Sequence[Mapping[str, object]]) -> tuple[Tensor, Tensor | None]:
        """Rows of another file, encoded by this schema, with their targets; other columns are passed over.

        Args:
            source: as for `of`.

        Returns:
            `[n, d]` in [0, 1], and targets `[n]` as those of this table: -1 for a class that is not among its classes;
            `None` where there is no such column.

        Raises:
            InputError: a file that cannot be read, a column that is missing, or cells that the schema does not know.

        >>> rows = [{"age": 30 + i % 9, "sex": "fm"[i % 2], "risk": "ny"[i % 3 == 0]} for i in range(40)]
        >>> Table.of(rows, target="risk").more([{"age": 34, "sex": "m", "risk": "y"}])
        (tensor([[0.5000, 0.0000, 1.0000]]), tensor([1]))
        """
        cells = _cells_of(source)
        rows, told = _encoded(self.columns, cells), cells.get(self.target)
        if told is None:
            return rows, None
        if self.classes:
            return rows, torch.tensor([self.classes.index(each) if each in self.classes else -1 for each in told])
        numbers = [_number(each) for each in told]
        if None in numbers:
            raise InputError(
                f"column {shown(self.target)} is the target and takes numbers; got "
                f"{shown(next(each for each in told if _number(each) is None))}"
            )
        return rows, torch.tensor(numbers, dtype=torch.float32)

    def __str__(self) -> str:
        return "\n".join([*self.schema, *(finding.message for finding in self.findings)])

    @property
    def schema(self) -> tuple[str, ...]:
        """What was read, and what each column is, a line each."""
        told = ""
        if self.targets is not None:
            some = ", ".join(map(shown, self.classes[:8])) + (", .." if len(self.classes) > 8 else "")
            told = f"; targets: {len(self.classes)} classes, {some}" if self.classes else "; targets: numbers"
        count = len(self.columns.columns)
        lines = [f"{len(self.rows)} rows of {count} columns, encoded as {self.rows.shape[1]} numbers{told}"]
        for column in self.columns.columns:
            if isinstance(column, Number):
                kind = "whole number" if column.whole else "number"
                lines.append(f"{shown(column.name)}: {kind} from {column.low:g} to {column.high:g}")
            else:
                some = ", ".join(map(shown, column.values[:8])) + (", .." if len(column.values) > 8 else "")
                lines.append(f"{shown(column.name)}: category, one of {some}")
        return tuple(lines)


def _cells_of(source: str | Path | Sequence[Mapping[str, object]]) -> dict[str, list[str]]:
    return _from_file(Path(source)) if isinstance(source, str | Path) else _from_rows(source)


def _encoded(schema: Columns, cells: Mapping[str, list[str]]) -> Tensor:
    """The columns of a schema that are there, `[n, d]`; a missing cell of a category is a value of its own."""
    filled = {
        column.name: [cell or _NOTHING for cell in cells[column.name]]
        if isinstance(column, Category)
        else cells[column.name]
        for column in schema.columns
        if column.name in cells
    }
    return schema.encode([dict(zip(filled, row, strict=True)) for row in zip(*filled.values(), strict=True)])


def _from_rows(rows: Sequence[Mapping[str, object]]) -> dict[str, list[str]]:
    if not rows or not all(isinstance(row, Mapping) for row in rows):
        raise InputError("a table needs one row or more, each a mapping of column names to cells")
    names = list(rows[0])
    for number, row in enumerate(rows):
        if list(row) != names:
            raise InputError(f"row {number} has other columns than the first: {', '.join(map(shown, row))}")
    return {name: [_plain("" if row[name] is None else str(row[name])) for row in rows] for name in names}


def _plain(cell: str) -> str:
    """A cell without spaces around it; empty where it says that there is nothing."""
    bare = cell.strip()
    return "" if bare.lower() in _MISSING else bare


def _from_file(path: Path) -> dict[str, list[str]]:
    if not path.is_file():
        raise InputError(f"cannot read the table {path}: there is no such file")
    return _parquet(path) if path.suffix.lower() == ".parquet" else _csv(path)


def _parquet(path: Path) -> dict[str, list[str]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise InputError(
            "Parquet needs pyarrow, which is not installed: pip install 'inversefed[parquet]'; or write a CSV file"
        ) from error
    try:
        rows = parquet.read_table(path).slice(0, _MOST).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is no Parquet file that can be read: {str(error).splitlines()[0]}") from error
    return _from_rows(rows)


def _csv(path: Path) -> dict[str, list[str]]:
    no_table = f"{path} is no CSV file with a header line"
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{no_table}: it cannot be read as UTF-8 text; save it as CSV, UTF-8") from error
    if "\0" in text:
        raise InputError(f"{no_table}: it holds zero bytes")
    first = text.splitlines()[0] if text.strip() else ""
    delimiter = max(",;\t|", key=first.count)
    try:
        lines = [line for line in csv.reader(io.StringIO(text), delimiter=delimiter, skipinitialspace=True) if line]
    except csv.Error as error:
        raise InputError(f"{no_table}: {error}") from error
    if len(lines) < 2:
        raise InputError(f"{no_table} and rows below it: it has {len(lines)} lines")
    header = [name.strip() for name in lines[0]]
    if len(set(header)) != len(header) or not all(header):
        raise InputError(f"{no_table}: names are missing or stand twice in {', '.join(map(shown, header[:8]))}")
    for number, line in enumerate(lines[1 : _MOST + 1], start=2):
        if len(line) != len(header):
            raise InputError(f"{no_table}: line {number} has {len(line)} cells, and the header has {len(header)}")
    return {name: [_plain(line[place]) for line in lines[1 : _MOST + 1]] for place, name in enumerate(header)}


def _with_cells(
    cells: Mapping[str, list[str]], target: str | None, kinds: Mapping[str, Kind]
) -> tuple[dict[str, list[str]], list[Finding]]:
    """The rows whose numbers and target are there; a number of which more than half is missing takes none away."""
    needed = [
        name
        for name, values in cells.items()
        if name == target
        or (
            kinds.get(name) not in ("category", "leave out")
            and _all_numbers(values)
            and sum(map(bool, values)) > len(values) / 2
        )
    ]
    every = range(len(next(iter(cells.values()))))
    kept = [place for place in every if all(cells[name][place] for name in needed)]
    told = []
    if len(kept) < len(every):
        names = [name for name in needed if not all(cells[name])]
        message = (
            f"{len(every) - len(kept)} of {len(every)} rows were left out, for there is no number in "
            f"{', '.join(map(shown, names))}."
        )
        told.append(Finding(Code.ROWS_LEFT_OUT, "warning", message, {"rows": len(every) - len(kept)}))
    if not kept:
        raise InputError("no row has all its numbers and its target; leave out the columns where most are missing")
    return {name: [values[place] for place in kept] for name, values in cells.items()}, told


def _all_numbers(values: Sequence[str]) -> bool:
    return any(values) and all(_number(value) is not None for value in values if value)


def _number(cell: str) -> float | None:
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _column(name: str, values: list[str], kind: Kind | None) -> Number | Category | str:
    """What a column is; why it is left out, as the end of a sentence."""
    present = {value for value in values if value}
    if kind == "leave out":
        return "as was asked for"
    if len(present) + (len(present) < len(set(values))) < 2:
        return "for all its cells are the same"
    if kind in ("number", "whole") or (kind is None and _all_numbers(values)):
        return _numbers(name, values, kind)
    if kind is None and all(_is_date(value) for value in present):
        return 'for it holds dates; give them as numbers, or say kinds={..: "category"}'
    if kind is None and len(present) > max(_FEW, _TEXT * len(values)):
        return f'for it is text, {len(present)} different cells in {len(values)} rows; or say kinds={{..: "category"}}'
    return Category(name, (*sorted(present), *((_NOTHING,) if len(present) < len(set(values)) else ())))


def _numbers(name: str, values: list[str], kind: Kind | None) -> Number | str:
    found = [_number(value) for value in values]
    numbers = [each for each in found if each is not None]
    if len(numbers) < len(values):
        if kind is None:
            return f"for {len(values) - len(numbers)} of its {len(values)} numbers are missing"
        raise InputError(
            f"column {shown(name)} is to be numbers, and {shown(next(v for v in values if _number(v) is None))} is none"
        )
    whole = all(each.is_integer() for each in numbers)
    if kind == "whole" and not whole:
        raise InputError(f"column {shown(name)} is to be whole numbers, and some are not")
    if min(numbers) == max(numbers):
        return "for all its cells are the same"
    mean, std = statistics.fmean(numbers), statistics.pstdev(numbers)
    return Number(name, min(numbers), max(numbers), whole and kind != "number", mean, std)


def _is_date(cell: str) -> bool:
    for form in (None, *_DATES):
        try:
            datetime.fromisoformat(cell) if form is None else datetime.strptime(cell, form)
        except ValueError:
            continue
        return True
    return False


def _left_out(name: str, why: str) -> Finding:
    return Finding(
        Code.COLUMN_LEFT_OUT, "warning", f"Column {shown(name)} is left out, {why}.", {"column": shown(name)}
    )


def _targets(values: list[str], kind: Kind | None) -> tuple[Tensor, tuple[str, ...]]:
    """Class indices where there are few values, else numbers."""
    different = sorted(set(values))
    numbers = [_number(value) for value in values]
    known = [each for each in numbers if each is not None]
    many = len(different) > _FEW or not all(each.is_integer() for each in known)
    if kind in ("number", "whole") or (kind is None and len(known) == len(values) and many):
        if len(known) < len(values):
            raise InputError("the target is to be numbers, and some of its cells are none")
        return torch.tensor(known, dtype=torch.float32), ()
    if kind is None and len(different) > max(_FEW, _TEXT * len(values)):
        raise InputError(
            f"the target is text, {len(different)} different cells in {len(values)} rows, and no class; name another "
            'column, or say kinds={..: "category"}'
        )
    places = {value: place for place, value in enumerate(different)}
    return torch.tensor([places[value] for value in values]), tuple(different)
