"""The one proof of an exact result: the client is run on it once, and its update comes out the same."""

from collections.abc import Mapping
from typing import Any

from inversefed.types import Finding

__all__ = ["EXACT", "exactness"]

EXACT = 1e-8
"""Relative matching cost below which a result is called exact."""


def exactness(cost: float, how: str, evidence: Mapping[str, Any] | None = None) -> Finding:
    """Say whether a result is exact.

    Args:
        cost: its `relative_matching_cost`.
        how: what was done, as a sentence without its end.
        evidence: figures beside the cost.

    Returns:
        The finding `exact`, or the warning `not-exact`.
    """
    figures = {"relative_matching_cost": cost, **(evidence or {})}
    if cost < EXACT:
        return Finding("exact", "info", f"Exact: {how}, and the update comes out the same.", figures)
    return Finding("not-exact", "warning", f"{how[:1].upper()}{how[1:]}, but the update differs.", figures)
