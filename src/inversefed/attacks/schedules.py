"""How the step length changes over a restart: (lr, iteration, iterations) -> lr."""

import math
from dataclasses import dataclass
from itertools import repeat

__all__ = ["Constant", "CosineDecay", "StepDecay"]


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
