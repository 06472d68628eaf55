"""The one proof of an exact result: the client is run on it, and its update comes out the same.

Most pictures are stored with eight bits a pixel. Where a result is near enough, the picture of eight bits nearest to it
is the private one itself, bit by bit, and the update says so: it comes out nearer than that of the result.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from inversefed.attacks.matching_error import relative_matching_cost
from inversefed.fl.threat import Observation
from inversefed.thresholds import EXACT, OPEN
from inversefed.types import Finding, Images

__all__ = ["exactness", "matched"]

_ROUGH = 1e-2
"""Relative matching cost above which a result is too far off for its rounding to tell anything."""


def matched(observation: Observation, images: Images, labels: Tensor) -> tuple[Images, float]:
    """The images and their `relative_matching_cost`, rounded to eight bits if that matches the update better.

    Args:
        observation: what the server sees.
        images: in pixel space.
        labels: theirs.
    """
    cost = relative_matching_cost(observation, images, labels)
    if not 0 < cost < _ROUGH:
        return images, cost
    rounded = (images.clamp(0, 1) * 255).round() / 255
    nearer = relative_matching_cost(observation, rounded, labels)
    return (rounded, nearer) if nearer < cost else (images, cost)


def exactness(cost: float, how: str, evidence: Mapping[str, Any] | None = None) -> Finding:
    """Say whether a result is exact.

    Args:
        cost: its `relative_matching_cost`.
        how: what was done, as a sentence without its end.
        evidence: figures beside the cost; `unseen` is the share of the picture that the equations leave open.

    Returns:
        The finding `exact`, or the warning `not-exact`.
    """
    figures = {"relative_matching_cost": cost, **(evidence or {})}
    if cost < EXACT and figures.get("unseen", 0.0) > OPEN:
        message = (
            f"Exact to the update, which comes out the same: {how}. But {figures['unseen']:.1%} of the picture stays "
            "open, where other values make the same update too."
        )
        return Finding("exact", "info", message, figures)
    if cost < EXACT:
        return Finding("exact", "info", f"Exact: {how}, and the update comes out the same.", figures)
    return Finding("not-exact", "warning", f"{how[:1].upper()}{how[1:]}, but the update differs.", figures)
