"""The one proof of an exact result: the client is run on it once, and its update comes out the same."""

from collections.abc import Mapping
from typing import Any

from inversefed.types import Finding

__all__ = ["EXACT", "OPEN", "exactness"]

EXACT = 1e-8
"""Relative matching cost below which a result is called exact."""

OPEN = 1e-4
"""Share of a picture from which it counts as left open by the update: 40 dB below it."""


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
