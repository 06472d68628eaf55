"""Quality over time: step functions, their mean over the images, and the moment from which it is good enough.

An attack on image i holds an output from some moments on; psnr_i(t) is that of the output it holds at time t, that of a
gray picture before the first, and stays what it was after the last. With T = max(reference, constant + 1 dB),

    speedup = reference seconds / min { t : mean_i psnr_i(s) >= T for all s >= t }

so a lucky moment that is lost again does not count, nor does an image's early end.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Curve", "mean_at", "mean_curve", "seconds_to_stay", "speedup", "target", "thinned"]

MARGIN = 1.0
"""Decibels above the best constant color, without which nothing counts as recovered."""


@dataclass(frozen=True)
class Curve:
    """The PSNR of one image's current output.

    Args:
        before: in dB, until the first output.
        seconds: when the output changed, ascending.
        psnr: in dB, from that moment on.

    >>> curve = Curve(11.0, (1.0, 4.0), (15.0, 30.0))
    >>> curve.at(0.5), curve.at(1.0), curve.at(3.9), curve.at(99.0), curve.final
    (11.0, 15.0, 15.0, 30.0, 30.0)
    """

    before: float
    seconds: tuple[float, ...] = field(default=(), repr=False)
    psnr: tuple[float, ...] = field(default=(), repr=False)

    @property
    def final(self) -> float:
        """What the attack ended with."""
        return self.psnr[-1] if self.psnr else self.before

    def at(self, seconds: float) -> float:
        """What it held at that time."""
        known = bisect_right(self.seconds, seconds)
        return self.psnr[known - 1] if known else self.before


def mean_at(curves: Sequence[Curve], seconds: float) -> float:
    """The mean over the images at a time."""
    return float(np.mean([curve.at(seconds) for curve in curves]))


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean over the images as a curve; it changes wherever one of them does."""
    times = sorted({moment for curve in curves for moment in curve.seconds})
    before = float(np.mean([curve.before for curve in curves]))
    return Curve(before, tuple(times), tuple(mean_at(curves, moment) for moment in times))


def seconds_to_stay(curves: Sequence[Curve], level: float) -> float | None:
    """The first time from which the mean stays at or above a level, or `None`.

    >>> seconds_to_stay([Curve(10.0, (1.0, 2.0, 3.0), (20.0, 15.0, 21.0))], 18.0)
    3.0
    """
    mean = mean_curve(curves)
    levels = (mean.before, *mean.psnr)
    below = [index for index, value in enumerate(levels) if value < level]
    if not below:
        return 0.0
    return None if below[-1] == len(levels) - 1 else mean.seconds[below[-1]]


def target(reference_psnr: float, constant_psnr: float) -> float:
    """What counts as reached: the reference, and more than a picture of one color."""
    return max(reference_psnr, constant_psnr + MARGIN)


def speedup(reference_seconds: float, seconds: float | None) -> float:
    """How many times faster; 0 if never.

    >>> speedup(30.0, 1.5), speedup(30.0, None)
    (20.0, 0.0)
    """
    return 0.0 if seconds is None else reference_seconds / seconds


def thinned(curve: Curve, ratio: float = 1.03) -> dict[str, list[float]]:
    """The curve for a file: a point wherever the time has grown by that ratio, and the last; rounded."""
    kept: list[int] = []
    for index, moment in enumerate(curve.seconds):
        if not kept or moment >= ratio * curve.seconds[kept[-1]] or index == len(curve.seconds) - 1:
            kept.append(index)
    return {
        "seconds": [round(curve.seconds[index], 5) for index in kept],
        "psnr": [round(curve.psnr[index], 3) for index in kept],
    }
