"""Number formats: which difference between two tensors is rounding and no change.

    |given - own| <= eps |own| + least subnormal number

The first term is the last digit of a number; below the least normal number (6.1e-5 in float16) digits are lost, and the
error is the second one, whatever the number. A server that decodes 16-bit files hands them on as float32: so the format
is told by the values, not only by the type.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["COARSE", "is_rounding", "is_single", "number_format"]

COARSE = (torch.bfloat16, torch.float16)
"""The formats of 16 bits, the coarser one first."""
_FEW = 16
"""Numbers up to which a coarse format may hold them all by chance, such as 1 and 0."""
_AVERAGED = 4
"""Last digits of float32 that a frozen weight may be off which a server has averaged over clients."""


def number_format(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The coarsest usual format that holds all values as they are.

    >>> number_format({"w": torch.tensor([0.1]).bfloat16().float()}), number_format({"w": torch.tensor([0.1])})
    (torch.bfloat16, torch.float32)
    """
    parts = [part for part in tensors.values() if part.is_floating_point()]
    for dtype in (*COARSE, torch.float32):
        if parts and all(_holds(dtype, part) for part in parts):
            return dtype
    return torch.float64


def is_rounding(given: Tensor, own: Tensor, dtype: torch.dtype) -> bool:
    """Whether one tensor is the other one but for rounding.

    Args:
        given: as it came; of the same shape.
        own: as it was before.
        dtype: the format of the file that it came in, beside its own and that of its values.

    >>> own = torch.tensor([3e-8, 0.1, 700.0])
    >>> is_rounding(own.half(), own, torch.float32), is_rounding(1.01 * own, own, torch.float32)
    (True, False)
    """
    if not given.is_floating_point():
        return torch.equal(given.to(own.device, own.dtype), own)
    formats = {dtype, given.dtype} & {torch.float64, torch.float32, *COARSE}
    if own.is_floating_point() and given.numel() >= _FEW:
        formats |= {coarse for coarse in COARSE if _holds(coarse, given)}
    ours, theirs = own.detach().to("cpu", torch.float64), given.detach().to("cpu", torch.float64)
    allowed = [_rounding(ours, each, own.is_floating_point()) for each in formats]
    return any(bool(((theirs - ours).abs() <= most).all()) for most in (*allowed, torch.zeros_like(ours)))


def is_single(own: Tensor) -> bool:
    """Whether a tensor is one whole number, such as BatchNorm's counter: files have it in any shape and format.

    What has no entry, or several, is what torch's constructor makes of the number 0, or 3: it says nothing.
    """
    return own.numel() == 1 and not own.is_floating_point() and not own.is_complex()


def _holds(dtype: torch.dtype, part: Tensor) -> bool:
    return bool((part.to(dtype).to(part.dtype) == part).all())


def _rounding(own: Tensor, dtype: torch.dtype, real: bool) -> Tensor:
    """What rounding may change each number by."""
    limits = torch.finfo(dtype)
    if not real:  # of whole numbers nothing, as long as the format has them all
        last = limits.eps * own.abs()
        return torch.where(last > 1, last, torch.zeros_like(last))
    digits = 1 if dtype in COARSE else _AVERAGED
    return digits * (limits.eps * own.abs() + limits.smallest_normal * limits.eps)
