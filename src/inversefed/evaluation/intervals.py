"""A mean over targets, and how far it may be off.

The interval is the percentile bootstrap over targets (Efron and Tibshirani 1993, chapter 13): what the mean would be
had other targets been drawn from the same source. Where all values are equal, as with a share of 0 or 1, the bootstrap
knows no doubt; for shares the exact binomial interval of Clopper and Pearson (1934) stands in for it there.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

__all__ = ["Interval", "mean_interval"]

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A mean with its interval.

    Args:
        mean: over all targets.
        low: lower end; `None` where one target tells nothing of others.
        high: upper end; likewise.
        level: the share of such intervals that hold the true mean, about.
    """

    mean: float
    low: float | None
    high: float | None
    level: float = 0.95

    def plain(self) -> dict[str, float | None]:
        """The same as a dictionary."""
        return asdict(self)


def mean_interval(values: Sequence[float], *, share: bool = False, level: float = 0.95, seed: int = 0) -> Interval:
    """The mean of one value a target, with its interval.

    Args:
        values: one a target, at least one.
        share: whether these are shares between 0 and 1.
        level: of the interval.
        seed: of the resamples.

    >>> mean_interval([1.0] * 20, share=True)
    Interval(mean=1.0, low=0.831..., high=1.0, level=0.95)
    """
    from scipy import stats

    array = np.asarray(values, dtype=np.float64)
    mean, count = float(array.mean()), len(array)
    if not np.isfinite(array).all() or (count < 2 and not share):
        return Interval(mean, None, None, level)
    if np.ptp(array) == 0:
        if not share or mean not in (0.0, 1.0):
            return Interval(mean, mean if count > 1 else None, mean if count > 1 else None, level)
        exact = stats.binomtest(round(mean * count), count).proportion_ci(level, method="exact")
        return Interval(mean, float(exact.low), float(exact.high), level)
    found = stats.bootstrap(
        (array,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=level,
        method="percentile",
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high), level)
