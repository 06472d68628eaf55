"""What an audit comes to, in one sentence with the figures behind it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Verdict"]


@dataclass(frozen=True)
class Verdict:
    """Whether an update leaked, as far as these attacks can tell.

    Args:
        leaked: whether a picture was recovered beyond what the controls reach.
        sentence: that, in one plain sentence.
        scope: which attacks were tried, with what budget, and what the attacker was given.
        figures: the numbers behind it, as plain data.
    """

    leaked: bool
    sentence: str
    scope: str
    figures: Mapping[str, Any] = field(default_factory=dict)
