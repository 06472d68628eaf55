"""The frontier as rows, as a table, and as a drawing (SVG) without a plotting library.

Each row is one point: what both attacks recover above the controls, what the network learns in spite of the defense,
and epsilon where the defense has one. To the right is more leakage, upwards more utility: a good defense stands in the
upper left, and its hollow mark (plain attack) says how much better it looks to an attacker who ignores it. What came to
no number is `None`: "n/a" in the table, null in JSON, and left out of the drawing.
"""

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from inversefed.errors import InputError
from inversefed.report.to_json import plain

__all__ = ["Row", "drawing", "finite", "notes", "read_rows", "table", "to_dict"]


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


def read_rows(values: object) -> tuple[Row, ...]:
    """Rows from JSON.

    Raises:
        InputError: they are none.
    """
    names = {each.name for each in fields(Row)}
    if not isinstance(values, list) or not all(isinstance(each, Mapping) and "point" in each for each in values):
        raise InputError("the file holds no rows of a frontier")
    try:
        return tuple(Row(**{key: _read(key, value) for key, value in each.items() if key in names}) for each in values)
    except (TypeError, ValueError, OverflowError) as error:
        raise InputError(f"the file holds no rows of a frontier: {error}") from error


_NUMBERS = ("plain", "adaptive", "control", "accuracy", "epsilon", "delta")


def _read(name: str, value: object) -> Any:
    """A value of a row; a number that is not finite is none.

    Raises:
        TypeError: a value of another kind.
    """
    expected = {"targets": int, "seconds": int | float, "point": str, "note": str}.get(name, int | float | None)
    if not isinstance(value, expected) or isinstance(value, bool):
        raise TypeError(f"{name} is {value!r}")
    return finite(value) if name in _NUMBERS else value  # type: ignore[arg-type]


def finite(value: float | None) -> float | None:
    """The number, or `None` where it is none.

    >>> finite(2.5), finite(float("nan"))
    (2.5, None)
    """
    return None if value is None or not math.isfinite(value) else float(value)


_COLUMNS = ("defense", "plain, dB", "adaptive, dB", "control, dB", "leakage, dB", "accuracy", "epsilon")


def table(rows: Sequence[Row]) -> str:
    """The rows as a table in Markdown, aligned so that it reads in a terminal.

    >>> print(table([Row("none", 30.0, 30.0, 15.0, 0.8)]).splitlines()[2])
    | none    |      30.0 |         30.0 |        15.0 |        15.0 | 80.0 %   | -       |
    """
    cells = [_COLUMNS, *(_cells(row) for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))]
    right = ["dB" in name for name in _COLUMNS]
    rule = [("-" * (width - 1) + ":") if to else "-" * width for width, to in zip(widths, right, strict=True)]

    def line(values: Sequence[str]) -> str:
        padded = (v.rjust(w) if to else v.ljust(w) for v, w, to in zip(values, widths, right, strict=True))
        return f"| {' | '.join(padded)} |"

    return "\n".join([line(cells[0]), line(rule), *(line(each) for each in cells[1:])])


def _cells(row: Row) -> tuple[str, ...]:
    values = (row.plain, row.adaptive, row.control, row.leakage)
    decibels = ["n/a" if value is None else f"{value:.1f}" for value in values]
    accuracy = "-" if row.accuracy is None else f"{100 * row.accuracy:.1f} %"
    return (row.point.replace("|", "/"), *decibels, accuracy, "-" if row.epsilon is None else f"{row.epsilon:.3g}")


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


WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 420, 70, 20, 20, 50
_STYLE = "font-family:sans-serif;font-size:11px"


@dataclass(frozen=True)
class _Axes:
    """From decibels and a height (accuracy, or the row's number) to the drawing's units."""

    low: float
    high: float
    bottom: float
    top: float

    def x(self, decibels: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (decibels - self.low) / (self.high - self.low)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - self.bottom) / (self.top - self.bottom)


def drawing(rows: Sequence[Row]) -> str:
    """Draw leakage (to the right) against accuracy (upwards), or one row below the other where nothing was trained.

    Returns:
        An `<svg>` element with a title and a description, without script; empty where there is no row to draw.

    >>> drawing([]), drawing([Row("none", 30.0, 30.0, 15.0, 0.8)])[:4]
    ('', '<svg')
    """
    drawn = [row for row in rows if row.leakage is not None]
    trained = any(row.accuracy is not None for row in drawn)
    drawn = [row for row in drawn if row.accuracy is not None or not trained]
    if not drawn:
        return ""
    left_out = [row.point for row in rows if row not in drawn]
    heights = [float(row.accuracy or 0.0) if trained else float(-number) for number, row in enumerate(drawn)]
    margins = [margin for row in drawn for margin in row.margins if margin is not None]
    reach = max(heights) - min(heights) or 1.0
    axes = _Axes(
        5.0 * math.floor((min(*margins, 0) - 1) / 5),
        5.0 * math.ceil((max(*margins, 0) + 1) / 5),
        min(heights) - 0.08 * reach,
        max(heights) + 0.08 * reach,
    )
    marks = "".join(_mark(row, height, axes) for row, height in zip(drawn, heights, strict=True))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-labelledby="frontier-title frontier-text" style="{_STYLE}">'
        f'<title id="frontier-title">Leakage and utility of defenses</title>'
        f'<desc id="frontier-text">{html.escape(_description(drawn, left_out, trained))}</desc>'
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>{_grid(axes, trained)}{marks}</svg>'
    )


def _mark(row: Row, height: float, axes: _Axes) -> str:
    """A filled mark for the adaptive attack, a hollow one for the plain, a line between, and the name."""
    y, (plain_at, adaptive_at) = axes.y(height), (None if each is None else axes.x(each) for each in row.margins)
    places = [at for at in (plain_at, adaptive_at) if at is not None]
    flip = max(places) > 0.7 * WIDTH
    at, anchor = (min(places) - 8, "end") if flip else (max(places) + 8, "start")
    return (
        f'<line x1="{places[0]:.1f}" x2="{places[-1]:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="#888"/>'
        + _circle(plain_at, y, 'fill="white" stroke="#1f5fa8"')
        + _circle(adaptive_at, y, 'fill="#b3261e"')
        + f'<text x="{at:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}">{html.escape(row.point)}</text>'
    )


def _circle(x: float | None, y: float, look: str) -> str:
    return "" if x is None else f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" {look}/>'


def _grid(axes: _Axes, trained: bool) -> str:
    foot = HEIGHT - BOTTOM
    step = 5 * max(1, math.ceil((axes.high - axes.low) / 50))
    ticks = [float(tick) for tick in range(int(axes.low), int(axes.high) + 1, step)]
    lines = [
        f'<line x1="{axes.x(tick):.1f}" x2="{axes.x(tick):.1f}" y1="{TOP}" y2="{foot}" '
        f'stroke="{"#444" if tick == 0 else "#ddd"}"/>'
        f'<text x="{axes.x(tick):.1f}" y="{foot + 16}" text-anchor="middle">{tick:.0f}</text>'
        for tick in ticks
    ]
    if trained:
        levels = [axes.bottom + (axes.top - axes.bottom) * share for share in (0.1, 0.5, 0.9)]
        lines += [
            f'<text x="{LEFT - 8}" y="{axes.y(level) + 4:.1f}" text-anchor="end">{100 * level:.0f} %</text>'
            for level in levels
        ]
    caption = "decibels above the better control (0: nothing found); hollow: plain attack, filled: told of the defense"
    upwards = "accuracy" if trained else "not trained"
    return (
        "".join(lines)
        + f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 12}" text-anchor="middle">{caption}</text>'
        + f'<text x="8" y="{TOP + 2}">{upwards}</text>'
    )


def _description(rows: Sequence[Row], left_out: Sequence[str], trained: bool) -> str:
    parts = [
        f"{row.point}: {'n/a' if row.margins[1] is None else f'{row.margins[1]:.1f} dB'}"
        + (f", {100 * float(row.accuracy or 0):.0f} % right" if trained else "")
        for row in rows
    ]
    rest = f" Not drawn, for want of numbers: {', '.join(left_out)}." if left_out else ""
    return f"Leakage to the adaptive attack of {len(rows)} points. {'; '.join(parts)}.{rest}"
