"""Values as JSON knows them: no tensors, no NaN, no infinity.

RFC 8259 has no number for NaN or infinity, and readers differ on what Python writes for them, so
both become null.
"""

import math
from collections.abc import Mapping, Set
from enum import Enum
from typing import Any

from torch import Tensor

__all__ = ["plain"]


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
