"""Values as JSON knows them: no tensors, no NaN, no infinity.

RFC 8259 has no number for NaN or infinity, and readers differ on what Python writes for them, so
both become null.
"""

import math
from collections.abc import Mapping, Set
from enum import Enum
from typing import Any

from torch import Tensor

from inversefed.evaluation.verdict import Verdict
from inversefed.types import Limit

__all__ = ["judged", "limited", "plain"]

_WITH_PUBLIC_PICTURES = ("identified", "candidates", "identified_by_chance")
"""Figures that a report names only where there were public pictures to look for the truth among."""

_OF_RECORDS = ("records_asked", "records_called", "records_p_value")
"""Figures that a report names only where records were asked for."""


def plain(value: Any) -> Any:
    """Turn a value into dictionaries, lists, strings, numbers, booleans and `None`.

    Args:
        value: anything; what JSON has no form for is given as its `str`.

    >>> import torch
    >>> plain({"scores": torch.tensor([1.0, float("nan")]), "shape": (3, 32, 32)})
    {'scores': [1.0, None], 'shape': [3, 32, 32]}
    """
    match value:
        case Enum():
            return plain(value.value)
        case None | bool() | int() | str():
            return value
        case float():
            return value if math.isfinite(value) else None
        case Tensor():
            return plain(value.detach().cpu().tolist())
        case Mapping():
            return {str(key): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case Set():
            return sorted((plain(item) for item in value), key=str)
    return str(value)


def judged(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON knows it: its own names, and those of its figures.

    >>> judged(Verdict(False, "Not recovered.", "One attack."))["figures"]["decided"]
    True
    """
    figures = dict(vars(verdict.figures))
    if verdict.figures.identified is None:
        figures = {name: value for name, value in figures.items() if name not in _WITH_PUBLIC_PICTURES}
    if verdict.figures.records_asked is None:
        figures = {name: value for name, value in figures.items() if name not in _OF_RECORDS}
    if (power := verdict.figures.power) is not None:
        figures["power"] = vars(power) | {"share": power.share, "interval": power.interval}
    found: dict[str, Any] = plain(vars(verdict) | {"figures": figures})
    return found


def limited(limit: Limit | None, why: str) -> dict[str, Any] | None:
    """The limit of an update as JSON knows it, or why there is none.

    >>> limited(None, "there was no time")
    {'limit_psnr': None, 'why': 'there was no time'}
    """
    if limit is None:
        return {"limit_psnr": None, "why": why} if why else None
    return {name: plain(value) for name, value in vars(limit).items() if name != "seconds"}
