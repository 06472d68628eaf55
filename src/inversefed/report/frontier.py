"""A sweep over defenses: leakage against accuracy, one row a point, as JSON and as a table.

Each row is one client with its defenses: what an attack that ignores them and one that knows them recover above the
best picture without an update, what a network trained with them learns, epsilon, and what no attack exceeds, where they
have these. `inversefed defend` measures and writes the rows; a report carries them along; `plots.frontier_figure` draws
them. What came to no number is `None`: "n/a" in the table, null in JSON, and left out of the drawing.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from inversefed.errors import InputError
from inversefed.report.read import read_json
from inversefed.report.to_json import plain

__all__ = ["COLUMNS", "Row", "cells", "finite", "notes", "read_rows", "read_sweep", "swept", "table", "to_dict"]


@dataclass(frozen=True)
class Row:
    """One point of the frontier; decibels are means over the pictures of all targets, at most 60 each.

    Args:
        point: what the client did.
        plain: PSNR of the attack that is not told of the defense; `None` where it came to no number.
        adaptive: PSNR of the attack that is; likewise.
        control: PSNR of the better of gray and mean color; `None` where the point could not be measured.
        accuracy: of a network trained with the defense, in [0, 1]; `None` where none was trained.
        epsilon: of one release, where the client promises one.
        delta: at which it is stated.
        targets: how many updates were attacked.
        seconds: that all of it took.
        note: what was left out and why.
        bound: the most that a guess of 1 % becomes by any attack on one update, where that is bounded.
    """

    point: str
    plain: float | None
    adaptive: float | None
    control: float | None
    accuracy: float | None = None
    epsilon: float | None = None
    delta: float | None = None
    targets: int = 1
    seconds: float = 0.0
    note: str = ""
    bound: float | None = None

    @property
    def leakage(self) -> float | None:
        """Decibels of the better attack above the control."""
        return max((margin for margin in self.margins if margin is not None), default=None)

    @property
    def margins(self) -> tuple[float | None, float | None]:
        """Decibels of the plain and of the adaptive attack above the control."""
        return _difference(self.plain, self.control), _difference(self.adaptive, self.control)

    @property
    def measured(self) -> bool:
        """Whether the point could be measured at all."""
        return self.control is not None


def _difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def to_dict(row: Row) -> dict[str, Any]:
    """A row as JSON knows it, leakage with it."""
    values: dict[str, Any] = plain({**asdict(row), "leakage": row.leakage})
    return values


def swept(row: Row) -> dict[str, Any]:
    """What a report keeps of a row: its point and its numbers."""
    return {name: value for name, value in to_dict(row).items() if name not in ("targets", "seconds", "note")}


def read_sweep(path: str | Path) -> tuple[Row, ...]:
    """Read the points of a sweep, at least one.

    Args:
        path: the `defend.json` that `inversefed defend` wrote, or its folder.

    Raises:
        InputError: no such file, or one that holds no points.
    """
    file = Path(path) / "defend.json" if Path(path).is_dir() else Path(path)
    content = read_json(file, "a sweep")
    rows = read_rows(content.get("rows") if isinstance(content, dict) else None, str(file))
    if not rows:
        raise InputError(f"{file} holds no points of a sweep; name a defend.json or its folder")
    return rows


def read_rows(values: object, source: str = "the file") -> tuple[Row, ...]:
    """Rows from JSON, as `to_dict` writes them.

    Args:
        values: a list of objects with the names of `Row`; other names are ignored.
        source: where they are from, for the message.

    Raises:
        InputError: they are none.
    """
    names, where = {each.name for each in fields(Row)}, f"{source} holds no points of a sweep"
    if not isinstance(values, list) or not all(isinstance(each, Mapping) and "point" in each for each in values):
        raise InputError(f"{where}; name a defend.json or its folder")
    try:
        return tuple(Row(**{key: _read(key, value) for key, value in each.items() if key in names}) for each in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{where}: {error}; name a defend.json or its folder") from error


_NUMBERS = ("plain", "adaptive", "control", "accuracy", "epsilon", "delta", "bound")


_RANGES = dict.fromkeys(("plain", "adaptive", "control"), (-1e4, 1e4)) | {"accuracy": (0.0, 1.0), "bound": (0.0, 1.0)}
"""What the numbers of a sweep lie between; a foreign file may hold others, which could not be drawn."""


def _read(name: str, value: object) -> Any:
    """A value of a row; a number that is not finite is none.

    Raises:
        TypeError: a value of another kind.
        ValueError: a number that a sweep cannot come to.
    """
    expected = {"targets": int, "seconds": int | float, "point": str, "note": str}.get(name, int | float | None)
    if not isinstance(value, expected) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}")
    if name not in _NUMBERS:
        return value
    number = None if value is None else finite(float(value))
    low, high = _RANGES.get(name, (-math.inf, math.inf))
    if number is not None and not low <= number <= high:
        raise ValueError(f"{name} is {value!r}, which is not between {low:g} and {high:g}")
    return number


def finite(value: float | None) -> float | None:
    """The number, or `None` where it is none.

    >>> finite(2.5), finite(float("nan"))
    (2.5, None)
    """
    return None if value is None or not math.isfinite(value) else float(value)


COLUMNS = ("defense", "plain, dB", "adaptive, dB", "control, dB", "leakage, dB", "accuracy", "epsilon", "1 % becomes")
"""What `cells` gives of a row."""


def table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown, aligned so that it reads in a terminal.

    >>> print(table([Row("none", 30.0, 30.0, 15.0, 0.8)]).splitlines()[2])
    | none    |      30.0 |         30.0 |        15.0 |        15.0 | 80.0 %   | -       | -           |
    """
    lines = [COLUMNS, *((cells(row)[0].replace("|", "/"), *cells(row)[1:]) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(COLUMNS))]
    right = ["dB" in name for name in COLUMNS]
    rule = [("-" * (width - 1) + ":") if to else "-" * width for width, to in zip(widths, right, strict=True)]

    def line(values: Sequence[str]) -> str:
        padded = (v.rjust(w) if to else v.ljust(w) for v, w, to in zip(values, widths, right, strict=True))
        return f"| {' | '.join(padded)} |"

    return "\n".join([line(lines[0]), line(rule), *(line(each) for each in lines[1:])])


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, by `COLUMNS`.

    >>> cells(Row("none", 30.0, 30.0, 15.0, 0.8))
    ('none', '30.0', '30.0', '15.0', '15.0', '80.0 %', '-', '-')
    """
    values = (row.plain, row.adaptive, row.control, row.leakage)
    decibels = ["n/a" if value is None else f"{value:.1f}" for value in values]
    accuracy = "-" if row.accuracy is None else f"{100 * row.accuracy:.1f} %"
    bound = "-" if row.bound is None else f"{100 * row.bound:.3g} %"
    return (row.point, *decibels, accuracy, "-" if row.epsilon is None else f"{row.epsilon:.3g}", bound)


def notes(rows: Sequence[Row]) -> list[str]:
    """What was left out and why, with the points that this is true of.

    >>> notes([Row("none", 30.0, 30.0, 15.0), Row("ATS()", None, None, None, note="not measured: no")])
    ['ATS(): not measured: no']
    """
    points: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            points.setdefault(row.note, []).append(row.point)
    return [note if len(named) == len(rows) > 1 else f"{', '.join(named)}: {note}" for note, named in points.items()]
