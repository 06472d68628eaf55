"""What can be seen of the features in front of the head, without the client's pictures."""

from inversefed.attacks.labels.head import Head
from inversefed.errors import ThreatModelError

__all__ = ["check_not_negative"]


def check_not_negative(head: Head, probes: int, rule: str) -> None:
    """Refuse a rule whose signs mean nothing here.

    Raises:
        ThreatModelError: made-up pictures give features below zero.
    """
    least = float(head.probe(probes).min())
    if least < -1e-6:
        raise ThreatModelError(
            f"{rule} needs features in front of the head that are not negative (a ReLU or sigmoid before it); "
            f"here they fall to {least:.3g}; use RecoveredLabels(), or hand the labels over (known labels)"
        )
