"""The curves as a picture: one panel a case, PSNR over seconds on a logarithmic axis, drawn by matplotlib."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

__all__ = ["draw", "save"]

WIDTH, HEIGHT, COLUMNS, DOTS = 4.6, 3.3, 3, 100
"""Of a panel: its size in inches, panels a row, and dots an inch."""

COLORS = {"best": "#c2410c", "reference": "#1d4ed8", "gray": "#737373"}
TITLES = {"best": "best()", "reference": "the paper's recipe", "gray": "a gray picture"}
INK, GRID = "#262626", "#e5e5e5"
_SETTINGS = {"font.size": 9, "text.color": INK, "axes.edgecolor": INK, "axes.titlesize": 10, "text.parse_math": False}


def draw(cases: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw every case.

    Args:
        cases: the `cases` of the benchmark's file, at least one.
    """
    columns = min(COLUMNS, len(cases))
    rows = math.ceil(len(cases) / columns)
    with matplotlib.style.context(["default", _SETTINGS]):
        figure = Figure(figsize=(columns * WIDTH, rows * HEIGHT), dpi=DOTS, layout="constrained")
        for place, (name, case) in enumerate(cases.items(), start=1):
            _panel(figure.add_subplot(rows, columns, place), name, case)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG; equal figures give equal bytes."""
    with matplotlib.style.context(["default", _SETTINGS]):
        figure.savefig(path, metadata={"Software": None})


def _panel(axes: Axes, name: str, case: Mapping[str, Any]) -> None:
    gray = case["gray_psnr"]
    times = [second for curve in case["curves"].values() for second in curve["seconds"] if second > 0] or [1.0]
    levels = [level for curve in case["curves"].values() for level in curve["psnr"]] + [gray]
    first, last = min(times) / 1.1, max(*times, 2 * min(times)) * 1.1
    low = max(0.0, min(gray - 3, *levels))  # noise, where the reference starts, may be below gray
    axes.set_xscale("log")
    axes.set_xlim(first, last)
    axes.set_ylim(low, max(*levels, low + 5) * 1.05)
    axes.axhline(gray, color=COLORS["gray"], ls="--", lw=1.6, label=TITLES["gray"])
    for key in ("reference", "best"):
        curve = case["curves"][key]
        seconds = [first, *(max(second, first) for second in curve["seconds"]), last]
        held = [gray, *curve["psnr"]]
        axes.step(seconds, [*held, held[-1]], where="post", color=COLORS[key], lw=1.8, label=TITLES[key])
    speed = f"{case['speedup']:.3g} times as fast" if case["speedup"] else "reference not reached"
    axes.set_title(f"{name} ({case['network']}): {speed}", loc="left")
    axes.set_xlabel("seconds, logarithmic")
    axes.set_ylabel("PSNR, dB")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if last < 1e3 * first else (1.0,), numticks=12))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    axes.legend(loc="best", framealpha=0.85)
