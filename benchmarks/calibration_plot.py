"""The outcomes of `benchmarks.calibration` as a picture: power over noise, and what was reached over the limit."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from inversefed.evaluation.intervals import share_interval
from inversefed.evaluation.verdict import Answer

if TYPE_CHECKING:
    from benchmarks.calibration import Outcome

__all__ = ["draw", "save"]

_SETTINGS = {"font.size": 9, "axes.titlesize": 10, "text.parse_math": False, "svg.hashsalt": "calibration"}
_MOST = 80.0
"""Decibels where the axes end; what is above is drawn there."""


def draw(found: Sequence["Outcome"]) -> Figure:
    """Draw both panels.

    Args:
        found: outcomes, those of noisy updates among them.
    """
    noisy = [each for each in found if each.kind == "noise"]
    names = list(dict.fromkeys(each.setting for each in noisy))
    with matplotlib.style.context(["default", _SETTINGS]):
        figure = Figure(figsize=(11, 4.6), dpi=100, layout="constrained")
        left, right = figure.subplots(1, 2)
        _power(left, noisy)
        for index, name in enumerate(names):
            _scatter(right, name, [each for each in noisy if each.setting == name], f"C{index % 10}", "o^"[index // 10])
        right.plot([5, _MOST], [5, _MOST], color="#737373", lw=1)
        right.set(xlim=(5, _MOST + 2), ylim=(5, _MOST + 2), xlabel="limit of the picture, dB", ylabel="reached, dB")
        right.set_title("The longer attack over the limit, a point a picture", loc="left")
        figure.legend(loc="outside right upper", fontsize=8)
    return figure


def save(found: Sequence["Outcome"], path: Path) -> None:
    """Write the picture as SVG, PNG or PDF, by the name's ending; equal outcomes give equal bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dated = {"Date": None} if path.suffix in (".svg", ".pdf") else {"Software": None}
    with matplotlib.style.context(["default", _SETTINGS]):
        draw(found).savefig(path, metadata=dated)


def _power(axes: Axes, noisy: Sequence["Outcome"]) -> None:
    """The share of all settings' updates that came to each answer, with the interval of those recovered."""
    levels = sorted({each.noise for each in noisy})
    for answer, color in zip(Answer, ("#c2410c", "#ca8a04", "#7c3aed", "#15803d", "#737373"), strict=True):
        rows = [[each.answer == answer for each in noisy if each.noise == level] for level in levels]
        shares = [sum(row) / len(row) for row in rows]
        if any(shares):
            axes.plot(range(len(levels)), shares, color=color, marker="o", ms=3, label=str(answer))
        if answer is Answer.RECOVERED:
            low, high = zip(*(share_interval(sum(row), len(row)) for row in rows), strict=True)
            axes.fill_between(range(len(levels)), low, high, color=color, alpha=0.15, lw=0)
    axes.set_xticks(range(len(levels)), [f"{level:g}" for level in levels])
    axes.set(ylim=(-0.02, 1.02), xlabel="noise over the root mean square of the update", ylabel="share of audits")
    axes.set_title("Answers over noise, all settings", loc="left")


def _scatter(axes: Axes, name: str, rows: Sequence["Outcome"], color: str, marker: str) -> None:
    pairs = [
        (min(limit, _MOST), min(reached, _MOST))
        for each in rows
        for limit, reached in zip(each.limit, each.reached, strict=False)
        if limit is not None
    ]
    if pairs:
        axes.plot(*zip(*pairs, strict=True), ls="", marker=marker, color=color, ms=4, alpha=0.7, label=name)
