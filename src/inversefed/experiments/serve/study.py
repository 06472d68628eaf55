"""Drawings of a study as places in percent, of which a template makes SVG: it grows with the page, its text does not.

    points      one line a setting: mean PSNR with its interval, beside the best control
    frontiers   one figure a network and attack: accuracy over leakage, strengths of a defense joined by a line
    strengths   one figure a defense: leakage over its only number

Every point leads to the jobs behind it.
"""

import math
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from inversefed.experiments.browse import Filters
from inversefed.experiments.table import GROUP, PSNR, Row

__all__ = ["Axis", "Frontier", "Mark", "Point", "Strength", "Trade", "axis", "frontiers", "points", "strengths"]

_NUMBER = re.compile(r"(?<![\w.])[0-9]+(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?(?![\w.])")


@dataclass(frozen=True)
class Axis:
    """A scale from low to high.

    Args:
        low: the value at 0 %.
        high: the value at 100 %.
        ticks: what is written on it.
        logarithmic: whether equal factors are equally far apart.
    """

    low: float
    high: float
    ticks: tuple[float, ...]
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where a value is, in percent."""
        low, high, value = (math.log(x) if self.logarithmic else x for x in (self.low, self.high, value))
        return round(100 * (value - low) / (high - low), 3)


@dataclass(frozen=True)
class Point:
    """A setting, drawn.

    Args:
        filters: the jobs behind it.
        row: of the summary.
        mean: of the PSNR, dB.
        low: of its interval; `None` where too few targets were attacked for one.
        high: likewise.
        control: mean of the best controls, dB; `None` without one.
    """

    filters: Filters
    row: Row
    mean: float | None
    low: float | None
    high: float | None
    control: float | None


@dataclass(frozen=True)
class Mark:
    """A strength of a defense, drawn.

    Args:
        filters: the jobs behind it.
        strength: its number.
        margin: mean over the best control, dB.
        low: of its interval.
        high: likewise.
        n: how many jobs.
    """

    filters: Filters
    strength: float
    margin: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Strength:
    """A defense over its only number.

    Args:
        defense: with `..` in place of the number.
        across: the scale of the number.
        up: the scale of the leakage.
        lines: what else differs, with the points from left to right.
    """

    defense: str
    across: Axis
    up: Axis
    lines: tuple[tuple[tuple[str, ...], tuple[Mark, ...]], ...]


@dataclass(frozen=True)
class Trade:
    """A point of a frontier, drawn.

    Args:
        filters: the jobs behind it.
        only: the hash of the job where there is one alone.
        name: client, defenses and number of pictures.
        label: what stands beside it: the number of its line in the key, and its strength.
        leakage: mean over the best control, dB.
        low: of its interval; `None` where too few jobs measured it for one.
        high: likewise.
        accuracy: mean, in percent.
        aside: by how many lines its label is moved, so that it hides no other.
    """

    filters: Filters
    only: str | None
    name: str
    label: str
    leakage: float
    low: float | None
    high: float | None
    accuracy: float
    aside: int = 0


@dataclass(frozen=True)
class Frontier:
    """Accuracy over leakage of all points that one attack was tried on.

    Args:
        names: of network and attack.
        across: the scale of the leakage.
        up: that of the accuracy.
        lines: a name, with `..` in place of the strength, and its points from the weakest to the strongest.
    """

    names: tuple[str, str]
    across: Axis
    up: Axis
    lines: tuple[tuple[str, tuple[Trade, ...]], ...]


def axis(values: Iterable[float], logarithmic: bool = False) -> Axis:
    """A scale that holds all values, with about five round numbers on it.

    >>> axis([12.5, 31.0]).ticks
    (10.0, 15.0, 20.0, 25.0, 30.0, 35.0)
    """
    found = list(values)
    low, high = min(found), max(found)
    if logarithmic:
        return Axis(low / 1.25, high * 1.25, tuple(sorted(set(found))), True)
    step = _step((high - low) or 1.0)
    first, last = math.floor(low / step), math.ceil(high / step)
    last = max(last, first + 1)
    ticks = tuple(round(number * step, 10) for number in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], ticks)


def points(summed: Sequence[Row], rows: Sequence[Row]) -> tuple[Point, ...]:
    """The settings of a summary.

    Args:
        summed: as `table.summary` makes them.
        rows: what it was made of, with `control_psnr`.
    """
    controls: dict[tuple[object, ...], list[float]] = {}
    for row in rows:
        if row.get("control_psnr") is not None:
            controls.setdefault(_key(row), []).append(float(row["control_psnr"]))
    return tuple(
        Point(
            filters_of(row),
            row,
            row[PSNR],
            row[f"{PSNR}_low"],
            row[f"{PSNR}_high"],
            statistics.fmean(known) if (known := controls.get(_key(row))) else None,
        )
        for row in summed
    )


def frontiers(summed: Sequence[Row], rows: Sequence[Row]) -> tuple[Frontier, ...]:
    """The frontiers of a summary: one for each network and attack whose points were trained with.

    Args:
        summed: as `table.summary` makes them.
        rows: what it was made of, with the hash of each job as `scenario`.
    """
    jobs: dict[tuple[object, ...], list[str]] = {}
    for row in rows:
        jobs.setdefault(_key(row), []).append(row["scenario"])
    found: dict[tuple[str, str], list[Row]] = {}
    for row in summed:
        if row["accuracy"] is not None and row["margin"] is not None:
            found.setdefault((row["network"], row["attack"]), []).append(row)
    return tuple(_frontier(names, members, jobs) for names, members in found.items())


def strengths(summed: Sequence[Row]) -> tuple[Strength, ...]:
    """The defenses that were tried with several strengths: those whose names differ in one number."""
    families: dict[str, list[tuple[float, Row]]] = {}
    for row in summed:
        numbers = _NUMBER.findall(row["defenses"])
        if len(numbers) == 1 and row["margin"] is not None:
            families.setdefault(_NUMBER.sub("..", row["defenses"]), []).append((float(numbers[0]), row))
    found = (_strength(name, members) for name, members in families.items() if len({x for x, _ in members}) > 1)
    return tuple(found)


def filters_of(row: Row) -> Filters:
    """The jobs behind a row of a summary."""
    return Filters(**{name: row[name] for name in GROUP})


def _frontier(names: tuple[str, str], members: Sequence[Row], jobs: Mapping[tuple[object, ...], list[str]]) -> Frontier:
    families: dict[str, list[tuple[float, str, Row]]] = {}
    for row in members:
        name, numbers = _named_point(row), _NUMBER.findall(row["defenses"])
        of_family = len(numbers) == 1
        family = _NUMBER.sub("..", name) if of_family and row["client"] == "FedSGD" and row["num_images"] == 1 else name
        families.setdefault(family, []).append((float(numbers[0]) if of_family else 0.0, name, row))
    lines = []
    for number, (family, found) in enumerate(families.items(), 1):
        several = len(found) > 1
        trades = tuple(
            Trade(
                filters_of(row),
                jobs[_key(row)][0] if len(jobs[_key(row)]) == 1 else None,
                name,
                f"{number}: {strength:g}" if several else str(number),
                row["margin"], row["margin_low"], row["margin_high"],
                100 * row["accuracy"],
            )
            for strength, name, row in sorted(found, key=lambda each: each[0])
        )  # fmt: skip
        lines.append((family if several else found[0][1], trades))
    ends = [x for _, trades in lines for each in trades for x in (each.leakage, each.low, each.high) if x is not None]
    across, up = axis([0.0, *ends]), axis([each.accuracy for _, trades in lines for each in trades])
    return Frontier(names, across, up, _apart(lines, across, up))


_WIDE, _HIGH = 13.0, 4.5
"""What a label takes of a drawing, in percent."""


def _apart(
    lines: Sequence[tuple[str, tuple[Trade, ...]]], across: Axis, up: Axis
) -> tuple[tuple[str, tuple[Trade, ...]], ...]:
    """The same with labels that hide each other moved: down in the upper half, up in the lower."""
    taken: list[tuple[float, float]] = []

    def moved(each: Trade) -> Trade:
        x, y = across.at(each.leakage), 100 - up.at(each.accuracy)
        way = 1 if y < 50 else -1
        free = (
            line
            for line in range(len(taken) + 1)
            if all(abs(x - left) >= _WIDE or abs(y + way * line * _HIGH - top) >= _HIGH for left, top in taken)
        )
        line = way * next(free)
        taken.append((x, y + line * _HIGH))
        return replace(each, aside=line)

    return tuple((name, tuple(map(moved, trades))) for name, trades in lines)


def _named_point(row: Row) -> str:
    """What a point does, without what most points share."""
    many = [] if row["num_images"] == 1 else [f"{row['num_images']} pictures"]
    parts = [*many, *(row[name] for name, usual in (("client", "FedSGD"), ("defenses", "none")) if row[name] != usual)]
    return " + ".join(parts) or "none"


def _strength(name: str, members: Sequence[tuple[float, Row]]) -> Strength:
    lines: dict[tuple[str, ...], list[Mark]] = {}
    for strength, row in sorted(members, key=lambda each: each[0]):
        others = (row["network"], row["client"], row["attack"], f"{row['num_images']} pictures")
        mark = Mark(filters_of(row), strength, row["margin"], row["margin_low"], row["margin_high"], row["n"])
        lines.setdefault(others, []).append(mark)
    marks = [mark for each in lines.values() for mark in each]
    at = [mark.strength for mark in marks]
    ends = [end for mark in marks for end in (mark.margin, mark.low, mark.high) if end is not None]
    logarithmic = min(at) > 0 and max(at) >= 5 * min(at)
    return Strength(name, axis(at, logarithmic), axis([0.0, *ends]), _named(lines))


def _named(lines: Mapping[tuple[str, ...], Sequence[Mark]]) -> tuple[tuple[tuple[str, ...], tuple[Mark, ...]], ...]:
    """The lines, each named by what differs between them."""
    differs = [len(set(column)) > 1 for column in zip(*lines, strict=True)]
    return tuple(
        (tuple(part for part, shown in zip(key, differs, strict=True) if shown), tuple(marks))
        for key, marks in lines.items()
    )


def _key(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in GROUP)


def _step(span: float) -> float:
    """The round number of which about five make a span."""
    decade = float(10.0 ** math.floor(math.log10(span / 5)))
    return next(factor * decade for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * decade >= span / 5.0001)
