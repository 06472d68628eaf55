"""Schedules of a step length or another weight over a restart: (value, iteration, iterations) -> value."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import repeat

from inversefed.errors import ConfigError

__all__ = ["Constant", "CosineDecay", "GeometricDecay", "LinearDecay", "StepDecay", "WarmUp"]


@dataclass(frozen=True)
class Constant:
    """The same step length throughout."""

    def __call__(self, lr: float, iteration: int, iterations: int) -> float:
        """`lr`."""
        return lr


@dataclass(frozen=True)
class CosineDecay:
    """Fall along half a cosine, from the whole step length to none."""

    def __call__(self, lr: float, iteration: int, iterations: int) -> float:
        """Step length at this iteration, from 0."""
        return lr * 0.5 * (1 + math.cos(math.pi * iteration / iterations))


@dataclass(frozen=True)
class GeometricDecay:
    """Fall by the same factor in every step, from the whole value towards `to` times it.

    Args:
        to: the share that is left at the end, above 0.

    >>> [round(GeometricDecay(0.01)(1.0, i, 4), 3) for i in (0, 2, 4)]
    [1.0, 0.1, 0.01]
    """

    to: float = 0.1

    def __post_init__(self) -> None:
        if not self.to > 0:
            raise ConfigError(f"a geometric decay never reaches 0, so its end is above 0; got {self.to}")

    def __call__(self, lr: float, iteration: int, iterations: int) -> float:
        """Value at this iteration, from 0."""
        share: float = self.to ** (iteration / iterations)
        return lr * share


@dataclass(frozen=True)
class LinearDecay:
    """Fall along a line, from the whole value to none at a share of the iterations, and stay there.

    Args:
        until: the share of the iterations after which nothing is left, above 0.

    >>> [LinearDecay(0.5)(1.0, i, 4) for i in (0, 1, 2, 3)]
    [1.0, 0.5, 0.0, 0.0]
    """

    until: float = 1.0

    def __post_init__(self) -> None:
        if not self.until > 0:
            raise ConfigError(f"a linear decay ends at a share of the iterations above 0; got {self.until}")

    def __call__(self, lr: float, iteration: int, iterations: int) -> float:
        """Value at this iteration, from 0."""
        return lr * max(0.0, 1 - iteration / (self.until * iterations))


@dataclass(frozen=True)
class StepDecay:
    """Multiply by `factor` at 3/8, 5/8 and 7/8 of the iterations, as the paper does.

    The milestones are `iterations // 2.667`, `// 1.6` and `// 1.142`, the formula of the 2020 code.

    >>> [round(StepDecay()(0.1, i, 12), 6) for i in (0, 3, 4, 7, 10)]
    [0.1, 0.1, 0.01, 0.001, 0.0001]
    """

    factor: float = 0.1

    def __call__(self, lr: float, iteration: int, iterations: int) -> float:
        """Step length at this iteration, from 0."""
        passed = sum(milestone <= iteration for milestone in (iterations // d for d in (2.667, 1.6, 1.142)))
        for factor in repeat(self.factor, passed):
            lr *= factor
        return lr


@dataclass(frozen=True)
class WarmUp:
    """Rise along a line to another schedule in the first steps.

    Args:
        then: the schedule.
        steps: how many; at most a tenth of the iterations.

    >>> [round(WarmUp(Constant(), steps=4)(1.0, i, 100), 2) for i in (0, 1, 3, 50)]
    [0.25, 0.5, 1.0, 1.0]
    """

    then: Callable[[float, int, int], float] = CosineDecay()
    steps: int = 50

    def __post_init__(self) -> None:
        if self.steps < 1 or not callable(self.then):
            raise ConfigError(f"WarmUp takes a schedule and at least 1 step; got {self.then!r} and {self.steps}")

    def __call__(self, lr: float, iteration: int, iterations: int) -> float:
        """Step length at this iteration, from 0."""
        steps = max(1, min(self.steps, iterations // 10))
        return min(1.0, (iteration + 1) / steps) * self.then(lr, iteration, iterations)
