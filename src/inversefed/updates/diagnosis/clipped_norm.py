"""Clipping: whether the norm of an update is a round number that somebody chose.

    |u| = C,      or      max |u_i| = C many times,      or      |u_l| = C for each tensor l

An unclipped norm is within 3e-6 of one of the 14 round numbers of a decade with a chance of about 4e-5. Pascanu et al.
(2013), arXiv:1211.5063; per example in DP-SGD, Abadi et al. (2016), arXiv:1607.00133.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from inversefed.findings import Code
from inversefed.types import Finding
from inversefed.updates.diagnosis.evidence import Subject

__all__ = ["bounded", "clamped", "round_number"]

_ROUND = (1, 1.2, 1.25, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 7.5, 8, 9)


def bounded(subject: Subject) -> tuple[Finding, ...]:
    """Compare norms with round numbers and with each other.

    Returns:
        A warning `clipped`; none where no norm stands at a bound, and `clamped` may find single entries that do.
    """
    norms, whole = _norms(subject)
    if not 0 < whole < math.inf:
        return ()
    tolerance = _tolerance(subject, whole)
    looks = [(whole, "the update")]
    if subject.kind != "gradient" and subject.single and subject.scale:
        looks.append((whole / subject.scale, "the gradient, the update over --learning-rate,"))
    for norm, what in looks:
        bound = round_number(norm, tolerance)
        if bound is not None:
            return (_finding(f"the norm of {what} is {bound:g}", {"norm": norm, "bound": bound}),)
    alike = [name for name, norm in norms.items() if norm and _alike(norm, max(norms.values()), tolerance)]
    if len(alike) >= 3:
        return (_finding(f"{len(alike)} tensors have the same norm, {norms[alike[0]]:.6g}", {"tensors": alike[:10]}),)
    return ()


def round_number(value: float, tolerance: float) -> float | None:
    """The number with one or two digits that a positive value is, to a relative tolerance.

    >>> round_number(0.4999999, 1e-5), round_number(0.4991, 1e-5)
    (0.5, None)
    """
    if not 0 < value < math.inf:
        return None
    decade = 10.0 ** math.floor(math.log10(value) + 1e-9)
    near = [digits * decade for digits in (*_ROUND, 10)]
    return next((float(f"{number:.3g}") for number in near if _alike(value, number, tolerance)), None)


def _norms(subject: Subject) -> tuple[dict[str, float], float]:
    """Of each tensor, and of all of them."""
    norms = {name: float(part.norm()) for name, part in subject.raw.items()}
    return norms, math.hypot(*norms.values())


def clamped(subject: Subject) -> tuple[Finding, ...]:
    """Whether entries were cut at one greatest value: a warning `clipped`, or nothing."""
    # In new weights a cut change is rounded away; equal ones are scales of BatchNorm, which all began at 1.
    rounded = subject.kind == "new_weights" or subject.decoded is not None
    if rounded or not 0 < _norms(subject)[1] < math.inf or subject.format not in (torch.float32, torch.float64):
        return ()
    sizes = {name: part.abs() for name, part in subject.values.items()}
    bound = max(float(part.max()) for part in sizes.values() if part.numel())
    reached = {name: int((part >= bound * (1 - 1e-6)).sum()) for name, part in sizes.items()}
    # A tensor most of whose entries are equally large was reduced to signs, not cut.
    count = sum(number for name, number in reached.items() if number <= sizes[name].count_nonzero() / 2)
    if count < 4 or count > sum(int(part.count_nonzero()) for part in sizes.values()) / 4:
        return ()
    if all(_of_a_picture(part, bound * (1 - 1e-6)) for part in subject.values.values()):
        return ()
    what = f"{count} entries have the greatest magnitude, {bound:.6g}, exactly"
    return (_finding(what, {"bound": bound, "entries": count}),)


def _of_a_picture(part: Tensor, bound: float) -> bool:
    """Whether what reaches a bound are white pixels: a first linear layer's rows are pictures, equal in all of them."""
    if part.ndim < 2:
        return int((part.abs() >= bound).sum()) < 2
    rows = part.flatten(start_dim=1)
    reached = (rows.abs() >= bound).any(dim=0)
    equal = rows[:, reached]
    return not bool(reached.any()) or bool((equal.amax(dim=1) - equal.amin(dim=1) <= 1e-6 * bound).all())


def _finding(what: str, evidence: Mapping[str, object]) -> Finding:
    message = (
        f"The update looks clipped: {what}. Its direction is kept, its scale is not: attacks that compare directions "
        "work; for others bring the update from before clipping."
    )
    return Finding(Code.CLIPPED, "warning", message, evidence)


def _tolerance(subject: Subject, norm: float) -> float:
    """Relative error that rounding leaves in the norm: errors of many entries average out."""
    error = math.sqrt(sum(float((subject.rounding(n) * part).square().sum()) for n, part in subject.raw.items()))
    return min(1e-4, 3e-6 + 4 * error / norm / norm)


def _alike(value: float, other: float, tolerance: float) -> bool:
    return abs(value - other) <= tolerance * other
