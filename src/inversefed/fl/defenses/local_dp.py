"""Local differential privacy of a finished update, as Flower's `LocalDpMod` does it: clip, then Gaussian noise.

    std = sensitivity sqrt(2 ln(1.25 / delta)) / epsilon

This is the classical Gaussian mechanism (Dwork and Roth 2014, Theorem A.1), whose proof holds for epsilon below 1; an
exact accountant asks for less noise above (Balle and Wang 2018, arXiv:1805.06530). It protects which update a client
sent, among all updates of norm at most `clipping_norm`. Two of those are up to `2 clipping_norm` apart, so a
sensitivity of `clipping_norm`, as is often given, counts only a client that is there or sends nothing.
"""

import math

from inversefed.errors import ConfigError
from inversefed.fl.defenses.clipping import Clip
from inversefed.fl.defenses.noise import GaussianNoise

__all__ = ["gaussian_std", "local_dp"]


def gaussian_std(sensitivity: float, epsilon: float, delta: float) -> float:
    """The standard deviation of the classical Gaussian mechanism.

    Args:
        sensitivity: the greatest distance of two updates that are not to be told apart.
        epsilon: of one release.
        delta: of one release, in (0, 1).

    Raises:
        ConfigError: no sensitivity or epsilon above 0, or a delta that is no probability.

    >>> round(gaussian_std(1.0, 1.0, 1e-5), 4)
    4.8448
    """
    if not (sensitivity > 0 and epsilon > 0 and 0 < delta < 1):
        raise ConfigError(
            "the Gaussian mechanism needs sensitivity > 0, epsilon > 0 and 0 < delta < 1; got "
            f"{sensitivity}, {epsilon} and {delta}"
        )
    return sensitivity * math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def local_dp(clipping_norm: float, sensitivity: float, epsilon: float, delta: float) -> tuple[Clip, GaussianNoise]:
    """The defenses of Flower's `LocalDpMod` of the same arguments, in order.

    Raises:
        ConfigError: as `gaussian_std` and `Clip` do.

    >>> local_dp(clipping_norm=1.0, sensitivity=1.0, epsilon=10.0, delta=1e-5)[0]
    Clip(max_norm=1.0)
    """
    return Clip(clipping_norm), GaussianNoise(gaussian_std(sensitivity, epsilon, delta))
