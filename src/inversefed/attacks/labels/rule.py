"""The protocol of a label rule."""

from typing import Protocol, runtime_checkable

from inversefed.fl.threat import Observation
from inversefed.types import Targets

__all__ = ["LabelRule"]


@runtime_checkable
class LabelRule(Protocol):
    """Recovers the labels of a batch, in any order."""

    def __call__(self, observation: Observation) -> Targets:
        """Labels, or `ThreatModelError` where the rule does not apply."""
        ...
