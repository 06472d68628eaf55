"""What can be known of the features in front of the head without the client's images."""

from torch import Tensor

from inversefed.attacks.head.gradient import Head
from inversefed.errors import ThreatModelError

__all__ = ["check_not_negative", "negative"]

_ROUNDING = 1e-6


def negative(features: Tensor) -> bool:
    """Whether features go below zero, up to rounding; then signs of the head's gradient mean nothing."""
    return float(features.min()) < -_ROUNDING


def check_not_negative(head: Head, probes: int, rule: str) -> None:
    """Refuse a rule whose signs mean nothing here.

    Raises:
        ThreatModelError: made-up pictures give features below zero.
    """
    features = head.probe(probes)
    if negative(features):
        raise ThreatModelError(
            f"{rule} needs features in front of the head that are not negative (a ReLU or sigmoid before it); "
            f"here they fall to {float(features.min()):.3g}; use RecoveredLabels(), or hand the labels over (known "
            "labels)"
        )
