"""Watch an attack and leave its time alone: what the watching takes is not counted.

Pictures are only kept while the clock runs, and judged when it is over.
"""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.curves import Curve
from inversefed.evaluation.metrics import peak_signal_noise_ratio
from inversefed.types import Images

__all__ = ["Stopwatch", "decibels"]

SPACING = 1.01
"""A picture is kept when the time has grown by this ratio since the last."""


class Stopwatch:
    """Runs from its making; holds the outputs of one attack on one picture.

    Args:
        clock: seconds, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.outputs: list[tuple[float, Tensor]] = []
        self._clock, self._own, self._cpu = clock, 0.0, time.process_time()
        self._began = clock()

    def look(self, best: Callable[[], Tensor]) -> None:
        """Keep the current output, if the last one is old enough."""
        now = self._clock()
        seconds = now - self._began - self._own
        if not self.outputs or seconds >= SPACING * self.outputs[-1][0]:
            self.outputs.append((seconds, best().detach().clone()))
        self._own += self._clock() - now

    def stop(self, images: Tensor | None) -> tuple[float, float]:
        """Keep the final output, if there is one; returns wall and processor seconds."""
        seconds = self._clock() - self._began - self._own
        if images is not None:
            self.outputs.append((seconds, images.detach().clone()))
        return seconds, time.process_time() - self._cpu

    def curve(self, truth: Images, before: float) -> Curve:
        """Judge everything that was kept, against the truth, which no attack saw."""
        levels = [decibels(images, truth) for _, images in self.outputs]
        return Curve(before, tuple(seconds for seconds, _ in self.outputs), tuple(levels))


def decibels(images: Images, truth: Images) -> float:
    """PSNR of one picture in dB, at most the cap of 200; a pixel that is not a number is shown gray."""
    shown = torch.where(images.isfinite(), images, 0.5)
    return float(peak_signal_noise_ratio(shown, truth)[0])
