"""Quantization: whether the entries of an update take only a few values.

    values in { a, a + d, a + 2 d, .. },   at most 2^12 of them          uniform quantization
    values in a set much smaller than N                                   any other

Number formats such as bfloat16 have thousands of levels, closer together the smaller they are; they only cost digits.
Sign compression: Bernstein et al. (2018), arXiv:1802.04434. Stochastic levels: QSGD, Alistarh et al. (2017),
arXiv:1610.02132.
"""

import torch
from torch import Tensor

from inversefed.findings import Code
from inversefed.fl.formats import COARSE
from inversefed.types import Finding
from inversefed.updates.diagnosis.evidence import Subject, rms

__all__ = ["quantized", "rounded"]

_ENTRIES = 48
"""Nonzero entries from which on a tensor's levels are counted."""
_COARSE = 0.05
"""Rounding of the weights over their change, from which on the change stands on the levels of its number format."""
_LEVELS = 2**12
"""Evenly spaced levels up to which it is called a quantization: 12 bits."""
_MOST = 2**16
"""Entries of a tensor that are looked at, evenly taken."""
_HALF_STEP = 2.0**-24
"""Spacing of float16 below 6.1e-5."""


def quantized(subject: Subject) -> tuple[Finding, ...]:
    """Count the different values of each tensor.

    Returns:
        A warning `quantized` where they stand on few levels; an info where a coarse number format rounded them.
    """
    counted = {
        name: part
        for name, part in subject.values.items()
        if int(part.count_nonzero()) >= _ENTRIES and rms(subject.rounding(name)) < _COARSE * rms(subject.raw[name])
    }
    few = {name: count for name, part in counted.items() if (count := levels(part))}
    if few and len(few) * 2 >= len(counted):
        name = min(few, key=lambda each: few[each])
        message = (
            f"The update was quantized: {len(few)} of {len(counted)} tensors stand on few levels ({name}: {few[name]} "
            f"for {counted[name].numel()} entries). Bring the update from before it, or choose an --attack "
            "that knows it. A client that ran Adam or signSGD for one step sends such an update too."
        )
        return (Finding(Code.QUANTIZED, "warning", message, {"levels": dict(list(few.items())[:10])}),)
    return ()


def rounded(subject: Subject) -> tuple[Finding, ...]:
    """Say what the number format costs.

    Returns:
        An info `quantized` for 16-bit numbers; a warning if the change of the weights is lost in the rounding.
    """
    names = [name for name, part in subject.raw.items() if rms(part) > 0]
    lost = {name: rms(subject.rounding(name)) / rms(subject.raw[name]) for name in names}
    worst = sorted(lost, key=lambda name: lost[name], reverse=True)
    # Weights of a size that lose their change: the message names the format that would keep it.
    drowned = [name for name in worst if lost[name] > 0.3]
    saved = subject.decoded or subject.format
    evidence = {"format": str(saved).removeprefix("torch."), "rounding": {n: lost[n] for n in worst[:10]}}
    if subject.kind != "gradient" and len(drowned) * 2 > len(names):
        message = (
            f"The change of the weights is lost in rounding: in {len(drowned)} of {len(names)} tensors it is little "
            f"more than the last digit of {evidence['format']}. Save the weight delta (--kind weight_delta), computed "
            "before rounding, or the new weights in float64."
        )
        return (Finding(Code.QUANTIZED, "warning", message, evidence),)
    if saved not in COARSE or not names:
        return ()
    what = "update was" if subject.decoded is None else "new weights behind the update were"
    message = f"The {what} saved in {evidence['format']}: two or three digits a number, enough for an attack."
    return (Finding(Code.QUANTIZED, "info", message, evidence),)


def levels(part: Tensor) -> int | None:
    """How many levels a tensor stands on, where these are few; `None` where they are as many as its entries.

    >>> levels(torch.randn(1000).sign()), levels(torch.randn(1000))
    (2, None)
    """
    flat = part.flatten()[:: 1 + part.numel() // _MOST]
    values = torch.unique(flat[flat != 0])
    entries, count = int(flat.count_nonzero()), len(values)
    if count <= 1 or count * 8 <= min(entries, 16 * _ENTRIES):
        return count
    steps = values.diff()
    step = float(steps.min())
    spacing = values / step
    even = bool(((spacing - spacing[0]) - (spacing - spacing[0]).round()).abs().max() < 0.01)
    places = float(spacing[-1] - spacing[0])
    if not even or places > min(_LEVELS, 8 * entries) or step == _HALF_STEP:
        return None
    return count
