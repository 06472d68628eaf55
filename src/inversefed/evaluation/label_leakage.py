"""Do recovered labels say more than the most frequent class does?

    p = P( Binomial(n, q) >= right )

q is the share of the most frequent class: whoever names that class for every example, and never saw the update, has so
many right. The tail is exact (Clopper and Pearson 1934). With one example, p is never below q: one label of ten classes
cannot be told from luck.
"""

from dataclasses import dataclass

from inversefed.errors import ConfigError

__all__ = ["LabelLeakage", "label_leakage"]


@dataclass(frozen=True)
class LabelLeakage:
    """How many recovered labels are right, and how likely as many are without an update.

    Args:
        right: examples whose label was recovered.
        total: examples.
        majority: share of the most frequent class, in (0, 1].
        p_value: chance of as many by naming that class, in (0, 1].
    """

    right: int
    total: int
    majority: float
    p_value: float


def label_leakage(right: int, total: int, majority: float) -> LabelLeakage:
    """Judge recovered labels by the most frequent class.

    Args:
        right: how many are right, from 0.
        total: of how many, from 1.
        majority: share of the most frequent class among examples of this kind, in (0, 1].

    Raises:
        ConfigError: numbers out of their range.

    >>> label_leakage(4, 4, 0.1).p_value
    0.0001
    >>> label_leakage(1, 1, 0.1).p_value
    0.1
    """
    from scipy import stats

    if not 0 <= right <= total or total < 1 or not 0 < majority <= 1:
        raise ConfigError(f"{right} of {total} labels cannot be right, or {majority} is no share above 0")
    return LabelLeakage(right, total, majority, min(1.0, float(stats.binom.sf(right - 1, total, majority))))
