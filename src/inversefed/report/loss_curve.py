"""The loss of every restart as a small drawing (SVG) inside the page, without a plotting library.

The iteration runs to the right; the loss runs upwards on a logarithmic scale where all of it is
positive, else on a linear one. Values that are not finite are left out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

__all__ = ["loss_curve"]

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 240, 84, 12, 12, 34
MOST_POINTS = 400

Point = tuple[int, float]


@dataclass(frozen=True)
class _Axes:
    """From iterations and losses to the drawing's own units."""

    last: int
    low: float
    high: float
    logarithmic: bool

    def x(self, iteration: int) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * iteration / self.last

    def y(self, loss: float) -> float:
        low, high, value = (math.log(v) if self.logarithmic else v for v in (self.low, self.high, loss))
        return TOP + (HEIGHT - TOP - BOTTOM) * ((high - value) / (high - low) if high > low else 0.5)

    def ticks(self) -> list[float]:
        middle = math.sqrt(self.low * self.high) if self.logarithmic else (self.low + self.high) / 2
        return [self.low, middle, self.high] if self.high > self.low else [self.low]


def loss_curve(histories: Sequence[Sequence[float]], chosen: int | None = None) -> Markup:
    """Draw losses over iterations, one line a restart, or nothing where there is no line to draw.

    Args:
        histories: the minimized loss of each restart, one entry an iteration.
        chosen: which restart is drawn in front of the others.

    Returns:
        An `<svg>` element with a title and a description, without style, script or foreign text.

    >>> loss_curve([[1.0, 0.1, 0.01]])[:4], loss_curve([[], [1.0]])
    (Markup('<svg'), Markup(''))
    """
    curves = {index: points for index, history in enumerate(histories) if len(points := _points(history)) > 1}
    if not curves:
        return Markup("")
    axes = _axes(list(curves.values()))
    order = sorted(curves, key=lambda index: index == chosen)
    lines = Markup("").join(_line(curves[index], axes, index == chosen or len(curves) == 1) for index in order)
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-labelledby="loss-title loss-text">'
        '<title id="loss-title">Loss over iterations</title><desc id="loss-text">{}</desc>{}{}</svg>'
    ).format(WIDTH, HEIGHT, _description(curves, axes, chosen), _grid(axes), lines)


def _points(history: Sequence[float]) -> list[Point]:
    """At most `MOST_POINTS` of the finite entries, evenly spaced, the last one with them."""
    finite = [(iteration, loss) for iteration, loss in enumerate(history, start=1) if math.isfinite(loss)]
    step = max(1, math.ceil(len(finite) / MOST_POINTS))
    return finite[::-step][::-1]


def _axes(curves: Sequence[Sequence[Point]]) -> _Axes:
    losses = [loss for curve in curves for _, loss in curve]
    return _Axes(max(curve[-1][0] for curve in curves), min(losses), max(losses), min(losses) > 0)


def _line(points: Sequence[Point], axes: _Axes, front: bool) -> Markup:
    path = " ".join(f"{axes.x(iteration):.1f},{axes.y(loss):.1f}" for iteration, loss in points)
    return Markup('<polyline class="{}" fill="none" points="{}"/>').format("front" if front else "back", path)


def _grid(axes: _Axes) -> Markup:
    rule = Markup('<line x1="{}" x2="{}" y1="{y:.1f}" y2="{y:.1f}"/>')
    label = Markup('<text x="{}" y="{:.1f}" text-anchor="end">{:.3g}</text>')
    rules = [
        rule.format(LEFT, WIDTH - RIGHT, y=axes.y(tick)) + label.format(LEFT - 8, axes.y(tick) + 4, tick)
        for tick in axes.ticks()
    ]
    bottom = Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>')
    ends = [
        bottom.format(LEFT, HEIGHT - 8, "start", "iteration 0"),
        bottom.format(WIDTH - RIGHT, HEIGHT - 8, "end", axes.last),
    ]
    return Markup("").join([*rules, *ends])


def _description(curves: dict[int, list[Point]], axes: _Axes, chosen: int | None) -> str:
    front = curves[chosen] if chosen in curves else next(iter(curves.values()))
    scale = "logarithmic" if axes.logarithmic else "linear"
    return (
        f"{len(curves)} restart{'s'[: len(curves) != 1]}, {axes.last} iterations; the loss went from "
        f"{front[0][1]:.3g} to {front[-1][1]:.3g}, on a {scale} scale."
    )
