"""Sparsity: which zeros of an update are the network's own, which were made, and which tensors did not train.

    dW[o, i] = sum over examples and places of  delta_o x_i

A dead output gives a row of zeros, a silent input a column, a place that padding never reaches a slice: such zeros are
structural. Zeros scattered over the rest were put there: at the head hardly an entry of `p - y` is exactly 0. Pruned
gradients: Lin et al. (2018), arXiv:1712.01887; as a defense, Zhu et al. (2019), arXiv:1906.08935.
"""

import torch
from torch import Tensor

from inversefed.findings import Code
from inversefed.types import Finding
from inversefed.updates.diagnosis.evidence import Subject
from inversefed.updates.diagnosis.quantization_levels import levels

__all__ = ["frozen", "is_sparse", "pruned"]

_SHARE = 0.05
"""Scattered zeros at the head from which on it was pruned."""
_MOST_ROUNDED = 0.6
"""Share of zeros up to which a coarse quantization alone may have made them."""
_GAP = 0.05
"""Least magnitude over the median one, above which small entries are missing: it is about 1 / entries by nature."""


def pruned(subject: Subject) -> tuple[Finding, ...]:
    """Count zeros that neither the network nor rounding explains.

    Returns:
        A warning `pruned`, or nothing.
    """
    shares = _shares(subject)
    made = {name: share for name, share in shares.items() if not _is_rounded(subject.raw[name], share)}
    # Zeros of the head may come from saturated steps; those of all tensors, or above a threshold, were made.
    random = subject.head in made and 2 * len(made) >= len(_matrices(subject)) > 1
    if not random and not any(_has_gap(subject.raw[name]) for name in made):
        return ()
    total = sum(part.numel() for part in subject.values.values())
    zeros = sum(int((part == 0).sum()) for part in subject.values.values())
    message = (
        f"The update was pruned: {zeros / total:.0%} of its entries are exactly zero, scattered over {len(shares)} "
        f"tensors in places that no dead unit explains ({', '.join(list(shares)[:3])}). Choose an --attack that "
        "compares only what was kept, or bring the update from before it."
    )
    evidence = {"zeros": zeros / total, "scattered": dict(list(shares.items())[:10])}
    return (Finding(Code.PRUNED, "warning", message, evidence),)


def is_sparse(subject: Subject) -> bool:
    """Whether zeros are scattered over the head, whose gradient has none, or over most of the tensors without one."""
    shares = _shares(subject)
    return subject.head in shares if subject.head is not None else 2 * len(shares) > len(_matrices(subject))


def frozen(subject: Subject) -> tuple[Finding, ...]:
    """List tensors that did not change at all.

    Returns:
        An info `frozen`, or an error where all are zero.
    """
    still = [name for name, part in subject.raw.items() if not bool(part.any())]
    own = [name for name, weight in subject.network.module.named_parameters() if name not in subject.network.params]
    if len(still) == len(subject.raw):
        message = (
            "Every tensor of the update is zero: the client did not train, or --weights and --after (or --update) are "
            "the same file."
        )
        return (Finding(Code.FROZEN, "error", message, {"parameters": still[:10]}),)
    found = []
    if own:
        message = f"{len(own)} of the network's parameters are frozen and not part of the update: {', '.join(own[:3])}."
        found.append(Finding(Code.FROZEN, "info", message, {"parameters": own[:10]}))
    if still:
        message = (
            f"{len(still)} tensors of the update are zero throughout ({', '.join(still[:3])}): frozen at the client, "
            "or fed by dead units. If they were frozen, set requires_grad=False on them in the factory of --network."
        )
        found.append(Finding(Code.FROZEN, "info", message, {"parameters": still[:10]}))
    return tuple(found)


def scattered_zeros(part: Tensor, excused: Tensor | None = None) -> float:
    """Share of zeros among the entries whose rows, columns and kernel places are not zero throughout.

    Args:
        part: a weight's gradient.
        excused: entries whose zeros have another reason.

    >>> scattered_zeros(torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [0.0, 3.0, 0.0]]))
    0.25
    """
    zero, asked = part == 0, torch.ones_like(part, dtype=torch.bool)
    for axis in range(part.ndim):
        others = [other for other in range(part.ndim) if other != axis]
        asked = asked & ~(zero.all(dim=others, keepdim=True) if others else zero)
    if excused is not None:
        asked = asked & ~excused
    return float((zero & asked).sum() / asked.sum().clamp_min(1))


def _matrices(subject: Subject) -> list[str]:
    return [name for name, part in subject.raw.items() if part.ndim > 1 and bool(part.any())]


def _shares(subject: Subject) -> dict[str, float]:
    """Shares of scattered zeros, where they are more than a few."""
    return {name: share for name in _matrices(subject) if (share := _scattered(subject, name)) > _SHARE}


def _is_rounded(part: Tensor, share: float) -> bool:
    """Whether zeros are a level among others, to which small entries were rounded."""
    entries = part[part != 0]
    if len(entries) < 32 or share > _MOST_ROUNDED or levels(part) is None:
        return False
    values = torch.unique(entries.abs())
    spacing = float(values.diff().min()) if len(values) > 1 else float(values[0])
    return float(values[0]) < 1.5 * spacing


def _scattered(subject: Subject, name: str) -> float:
    """Share of zeros in a tensor that neither dead units nor rounding explain."""
    part = subject.raw[name]
    # Zeros of a change of weights that is below their last digit; a gradient may be one that was called so.
    digit = torch.finfo(subject.network.dtype).eps * subject.weights[name].abs()
    floor = (subject.rounding(name) + digit).flatten(start_dim=1)
    return scattered_zeros(part, _lost(part.flatten(start_dim=1), floor, subject.format).view_as(part))


def _has_gap(part: Tensor) -> bool:
    """Whether small entries are missing."""
    entries = part[part != 0].abs()
    return len(entries) >= 32 and float(entries.min()) > _GAP * float(entries.median())


def _lost(rows: Tensor, rounding: Tensor, dtype: torch.dtype) -> Tensor:
    """Which entries rounding, or the least number of the format, may have made zero: size by row and by column."""
    sizes = rows.abs()
    likely = sizes.mean(dim=1, keepdim=True) * sizes.mean(dim=0, keepdim=True) / sizes.mean()
    return likely < 1000 * rounding.clamp_min(torch.finfo(dtype).smallest_normal)
