"""The curves as a picture: one panel a case, PSNR over seconds on a logarithmic axis, drawn with Pillow."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from PIL import Image, ImageDraw, ImageFont

__all__ = ["draw"]

WIDTH, HEIGHT, COLUMNS, FINE = 460, 330, 3, 2
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 34, 42
"""Of a panel, in pixels: its size, panels a row, how much finer it is drawn than shown, and the margins."""

COLORS = {"best": "#c2410c", "reference": "#1d4ed8", "gray": "#737373"}
TITLES = {"best": "best()", "reference": "the paper's recipe", "gray": "a gray picture"}
INK, GRID = "#262626", "#e5e5e5"

Point = tuple[float, float]


@dataclass(frozen=True)
class Axes:
    """From seconds and decibels to pixels.

    Args:
        left: upper left corner of the panel.
        top: the same, downwards.
        seconds: ends of the time axis, above 0.
        psnr: ends of the other, in dB.
    """

    left: int
    top: int
    seconds: tuple[float, float]
    psnr: tuple[float, float]

    def at(self, seconds: float, psnr: float) -> Point:
        """The pixel of a point; what lies outside is put on the border."""
        first, last = (math.log(end) for end in self.seconds)
        low, high = self.psnr
        across = min(1.0, max(0.0, (math.log(max(seconds, self.seconds[0])) - first) / (last - first)))
        up = min(1.0, max(0.0, (psnr - low) / (high - low)))
        x = self.left + LEFT + across * (WIDTH - LEFT - RIGHT)
        return x * FINE, (self.top + HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)) * FINE


def draw(cases: Mapping[str, Mapping[str, Any]]) -> Image.Image:
    """Draw every case.

    Args:
        cases: the `cases` of the benchmark's file, at least one.
    """
    columns = min(COLUMNS, len(cases))
    rows = math.ceil(len(cases) / columns)
    canvas = Image.new("RGB", (columns * WIDTH * FINE, rows * HEIGHT * FINE), "white")
    pen = ImageDraw.Draw(canvas)
    for index, (name, case) in enumerate(cases.items()):
        axes = _axes(case, index % columns * WIDTH, index // columns * HEIGHT)
        _frame(pen, axes, name, case)
        _curves(pen, axes, case)
    return canvas.resize((columns * WIDTH, rows * HEIGHT), Image.Resampling.LANCZOS)


def _axes(case: Mapping[str, Any], left: int, top: int) -> Axes:
    times = [second for curve in case["curves"].values() for second in curve["seconds"] if second > 0] or [1.0]
    levels = [level for curve in case["curves"].values() for level in curve["psnr"]] + [case["gray_psnr"]]
    first, last = min(times), max(times)
    low = max(0.0, min(case["gray_psnr"] - 3, *levels))  # noise, where the reference starts, may be below gray
    return Axes(left, top, (first / 1.1, max(last, 2 * first) * 1.1), (low, max(*levels, low + 5) * 1.05))


def _frame(pen: ImageDraw.ImageDraw, axes: Axes, name: str, case: Mapping[str, Any]) -> None:
    (first, last), (low, high) = axes.seconds, axes.psnr
    for second in _decades(first, last):
        pen.line([axes.at(second, low), axes.at(second, high)], GRID, FINE)
        _text(pen, _shifted(axes.at(second, low), 0, 4), f"{second:g}", "mt")
    for level in _levels(low, high):
        pen.line([axes.at(first, level), axes.at(last, level)], GRID, FINE)
        _text(pen, _shifted(axes.at(first, level), -5, 0), f"{level:g}", "rm")
    pen.rectangle([axes.at(first, high), axes.at(last, low)], outline=INK, width=FINE)
    speed = f"{case['speedup']:.3g} times as fast" if case["speedup"] else "reference not reached"
    _text(pen, _shifted(axes.at(first, high), 0, -8), f"{name} ({case['network']}): {speed}", "lb", 14)
    _text(pen, _shifted(axes.at(last, low), 0, 22), "seconds", "rt")
    _text(pen, _shifted(axes.at(first, high), 6, 6), "dB", "lt")
    point = _shifted(axes.at(first, low), 0, 28)
    for key, title in TITLES.items():
        pen.line([point, _shifted(point, 18, 0)], COLORS[key], 2 * FINE)
        _text(pen, _shifted(point, 22, 0), title, "lm")
        point = _shifted(point, 34 + 6 * len(title), 0)


def _curves(pen: ImageDraw.ImageDraw, axes: Axes, case: Mapping[str, Any]) -> None:
    gray, (first, last) = case["gray_psnr"], axes.seconds
    dashes = [axes.at(first * (last / first) ** (step / 60), gray) for step in range(61)]
    for left, right in list(pairwise(dashes))[::2]:
        pen.line([left, right], COLORS["gray"], 2 * FINE)
    for key in ("reference", "best"):
        curve = case["curves"][key]
        corners = [(first, gray)]
        for second, level in zip(curve["seconds"], curve["psnr"], strict=True):
            corners += [(second, corners[-1][1]), (second, level)]  # an output is held until the next
        corners.append((last, corners[-1][1]))
        pen.line([axes.at(*corner) for corner in corners], COLORS[key], 2 * FINE, joint="curve")


def _decades(first: float, last: float) -> Sequence[float]:
    """1, 10, 100, ..; with 2 and 5 between where the axis is short."""
    low, high = math.floor(math.log10(first)), math.ceil(math.log10(last))
    digits = (1,) if high - low > 3 else (1, 2, 5)
    ticks = [digit * 10.0**power for power in range(low, high + 1) for digit in digits]
    return [tick for tick in ticks if first <= tick <= last]


def _levels(low: float, high: float) -> Sequence[float]:
    step = next(step for step in (1, 2, 5, 10, 20, 50) if high - low <= 8 * step)
    start = math.ceil(low / step)
    return [float(step * (start + index)) for index in range(int(high // step) - start + 1)]


def _shifted(point: Point, right: int, down: int) -> Point:
    return point[0] + right * FINE, point[1] + down * FINE


def _text(pen: ImageDraw.ImageDraw, point: Point, text: str, anchor: str, size: int = 12) -> None:
    pen.text(point, text, fill=INK, font=ImageFont.load_default(size=size * FINE), anchor=anchor)
