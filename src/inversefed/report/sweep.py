"""A sweep over defenses inside a report: what each leaks, to an attack that ignores it and to one that knows it.

`inversefed defend` measures the points and writes them as JSON; a report carries them as plain data, as a table and as
a drawing (SVG). To the right is more leakage, upwards more accuracy, so a good defense stands in the upper left corner.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from inversefed.errors import InputError
from inversefed.report.read import read_json

__all__ = ["read_sweep", "sweep_drawing", "sweep_table"]

COLUMNS = ("plain attack, dB", "attack that knows, dB", "best control, dB", "leakage, dB", "accuracy", "epsilon")

_NUMBERS = ("plain", "adaptive", "control", "accuracy", "epsilon", "delta")
_NEEDED = {"point", "plain", "adaptive", "control"}

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 360, 64, 24, 16, 40


def read_sweep(path: str | Path) -> tuple[dict[str, Any], ...]:
    """Read the points of a sweep.

    Args:
        path: the `defend.json` that `inversefed defend` wrote, or its folder.

    Raises:
        InputError: no such file, or one that holds no points.
    """
    file = Path(path) / "defend.json" if Path(path).is_dir() else Path(path)
    content = read_json(file, "a sweep")
    rows = content.get("rows") if isinstance(content, dict) else None
    if (
        not isinstance(rows, list)
        or not rows
        or not all(isinstance(row, dict) and row.keys() >= _NEEDED for row in rows)
    ):
        raise InputError(f"{file} holds no points of a sweep; name a defend.json or its folder")
    return tuple(_point(row, file) for row in rows)


def _point(row: Mapping[str, Any], file: Path) -> dict[str, Any]:
    numbers = {name: row.get(name) for name in _NUMBERS}
    wrong = [name for name, value in numbers.items() if value is not None and type(value) not in (int, float)]
    if wrong or not isinstance(row["point"], str):
        raise InputError(f"{file}: {', '.join(wrong) or 'point'} of a point is not what a sweep holds")
    read = {name: None if value is None else float(value) for name, value in numbers.items()}
    return {"point": row["point"], **read, "leakage": _leakage(read)}


def _leakage(row: Mapping[str, float | None]) -> float | None:
    """Decibels of the better attack above the best control."""
    found = [value for value in (row["plain"], row["adaptive"]) if value is not None]
    return None if not found or row["control"] is None else max(found) - row["control"]


def sweep_table(rows: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The points as text, a row each: name, then `COLUMNS`.

    >>> sweep_table([{"point": "none", "plain": 30.0, "adaptive": 30.0, "control": 15.0, "leakage": 15.0}])
    [('none', '30.0', '30.0', '15.0', '15.0', 'n/a', 'n/a')]
    """
    return [_cells(row) for row in rows]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    decibels = [_text(row.get(name), ".1f") for name in ("plain", "adaptive", "control", "leakage")]
    return (row["point"], *decibels, _text(row.get("accuracy"), ".1%"), _text(row.get("epsilon"), ".3g"))


def _text(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


@dataclass(frozen=True)
class _Axes:
    """From decibels and accuracy to the drawing's own units."""

    left: float
    right: float
    bottom: float
    top: float

    def x(self, decibels: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (decibels - self.left) / (self.right - self.left)

    def y(self, accuracy: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.top - accuracy) / (self.top - self.bottom)


def sweep_drawing(rows: Sequence[Mapping[str, Any]]) -> Markup:
    """Draw leakage against accuracy, a numbered mark a point, or nothing where no point has both.

    Returns:
        An `<svg>` element with a title and a description, without style or script.

    >>> point = {"point": "none", "plain": 30.0, "adaptive": 30.0, "control": 15.0, "leakage": 15.0, "accuracy": 0.8}
    >>> sweep_drawing([point])[:4], sweep_drawing([point | {"accuracy": None}])
    (Markup('<svg'), Markup(''))
    """
    shown = [(number, row) for number, row in enumerate(rows, start=1) if _drawn(row)]
    if not shown:
        return Markup("")
    reach = [row["leakage"] for _, row in shown]
    heights = [row["accuracy"] for _, row in shown]
    axes = _Axes(min(0.0, *reach) - 1, max(0.0, *reach) + 1, min(heights) - 0.02, max(heights) + 0.02)
    marks = Markup("").join(_mark(number, row, axes) for number, row in shown)
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-labelledby="sweep-title sweep-text">'
        '<title id="sweep-title">Leakage and accuracy of defenses</title><desc id="sweep-text">{}</desc>{}{}</svg>'
    ).format(WIDTH, HEIGHT, f"{len(shown)} points; the table below has their numbers.", _grid(axes), marks)


def _drawn(row: Mapping[str, Any]) -> bool:
    return all(row.get(name) is not None and math.isfinite(row[name]) for name in ("leakage", "accuracy"))


def _mark(number: int, row: Mapping[str, Any], axes: _Axes) -> Markup:
    x, y = axes.x(row["leakage"]), axes.y(row["accuracy"])
    return Markup('<circle cx="{:.1f}" cy="{:.1f}" r="5"/><text x="{:.1f}" y="{:.1f}">{}</text>').format(
        x, y, x + 8, y + 4, number
    )


def _grid(axes: _Axes) -> Markup:
    foot = HEIGHT - BOTTOM
    rule = Markup('<line x1="{}" x2="{}" y1="{}" y2="{}"/>')
    lines = [
        rule.format(LEFT, WIDTH - RIGHT, foot, foot),
        rule.format(f"{axes.x(0.0):.1f}", f"{axes.x(0.0):.1f}", TOP, foot),
    ]
    text = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>')
    heights = [text.format(LEFT - 8, axes.y(level) + 4, "end", f"{level:.0%}") for level in (axes.bottom, axes.top)]
    ends = [text.format(axes.x(each), foot + 16, "middle", f"{each:.0f}") for each in sorted({0.0, axes.right})]
    caption = text.format((LEFT + WIDTH) / 2, HEIGHT - 6.0, "middle", "leakage, dB above the best control")
    return Markup("").join([*lines, *heights, *ends, caption])
