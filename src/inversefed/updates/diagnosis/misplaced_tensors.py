"""Misplaced tensors: whether each balances with its neighbors, and was made at these weights.

A tensor in another's place breaks the relations of both (`conservation`), and they hold again once the two are
exchanged. If no exchange mends them, and the head's own sums are right, the update belongs to other weights.
"""

from collections.abc import Sequence
from itertools import combinations, product

import torch
from torch import Tensor

from inversefed.findings import Code
from inversefed.types import Finding, Params
from inversefed.updates.diagnosis.conservation import Relation
from inversefed.updates.diagnosis.evidence import Subject, rms
from inversefed.updates.diagnosis.head_sums import Noise, is_noise

__all__ = ["check_places", "noised", "without_decay"]

_BROKEN = 0.02
"""Violation above which a relation of one step is broken; products in TF32 leave 1e-3 of it."""
_BROKEN_LONG = 0.5
"""The same for several steps, where what they leave is only known to its order."""
_MOST_PAIRS = 2000


def noised(subject: Subject, noise: Noise | None, related: Sequence[Relation]) -> tuple[Finding, ...]:
    """Whether noise was added to the update.

    Returns:
        A warning `noised`, with the standard deviation, or nothing.
    """
    std, source = (noise.std, "the head's sums over the classes") if noise is not None else (0.0, "")
    if not is_noise(noise):
        broken = [each for each in related if each.violation(subject) > _limit(subject)]
        estimates = sorted(each.noise(subject.raw) for each in broken)
        uniform = len(estimates) >= 3 and estimates[-1] < 3 * estimates[0]
        if noise is not None or not uniform or len(broken) < 0.8 * len(related):
            return ()
        std, source = estimates[len(estimates) // 2], "the balance between neighboring layers"
    sizes = {name: rms(part) for name, part in subject.raw.items()}
    below = [name for name, size in sizes.items() if size < 2 * std]
    message = (
        f"Noise of standard deviation {std:.2g} was added to the update, by {source}, which vanish without it. "
        f"It hides {len(below)} of {len(sizes)} tensors. Choose an --attack that knows it, or bring the update from "
        "before it. A client that does not run SGD (Adam, say) shows the same."
    )
    return (Finding(Code.NOISED, "warning", message, {"std": std, "hidden": below[:10], "tensors": len(sizes)}),)


def check_places(subject: Subject, related: Sequence[Relation]) -> tuple[Finding, ...]:
    """Look for tensors that do not balance with their neighbors, and for the exchange that would mend it.

    Returns:
        A warning `names`, or nothing.
    """
    if not related:
        return ()
    update = without_decay(subject, related)
    violations = {each: each.violation(subject, update) for each in related}
    broken = [each for each in related if violations[each] > _limit(subject)]
    if not broken:
        return ()
    pair = _exchange(subject, related, update, broken)
    evidence = {f"{each.edge.front} > {each.edge.behind}": violations[each] for each in broken[:10]}
    if pair is not None:
        first, second = sorted(pair)
        message = (
            f"{first} and {second} are in each other's place: exchanged, they balance with their neighbors, as they "
            "are they do not. Map the tensors of the update by name, not by position, and check the names in the file."
        )
        return (Finding(Code.NAMES, "warning", message, {"exchanged": [first, second], **evidence}),)
    if not subject.single and len(related) > 2 and len(broken) < max(2, len(related) / 2):
        return ()  # what several steps leave is only known to its order; other weights break all
    message = (
        f"The update does not balance with the weights: {len(broken)} of {len(related)} pairs of neighboring layers "
        f"contradict each other ({broken[0].edge.front} and {broken[0].edge.behind} first). It was made at other "
        "weights (check --weights: those that the client was sent, not those after training), or its tensors are out "
        "of order or were altered one by one."
    )
    return (Finding(Code.NAMES, "warning", message, evidence),)


def without_decay(subject: Subject, related: Sequence[Relation]) -> Params:
    """The update less the multiple of the weights that weight decay put into it."""
    if subject.kind == "gradient" or not related:
        return subject.raw
    ours = torch.cat([each.residual(subject.raw) for each in related])
    theirs = torch.cat([each.residual(subject.middle) for each in related])
    decay = float((ours @ theirs) / (theirs @ theirs).clamp_min(1e-300))
    if not 0 < decay < 0.5 or rms(ours - decay * theirs) > 0.5 * rms(ours):
        return subject.raw
    return {name: part - decay * subject.middle[name] for name, part in subject.raw.items()}


def _limit(subject: Subject) -> float:
    return _BROKEN if subject.single else _BROKEN_LONG


def _exchange(
    subject: Subject, related: Sequence[Relation], update: Params, broken: Sequence[Relation]
) -> tuple[str, str] | None:
    """The two tensors of equal shape whose exchange mends the broken relations best, if it mends them."""
    suspects = sorted({name for each in broken for name in each.names})
    others = sorted(set(update) - set(suspects))  # one of the two may be in no relation
    pairs = [*combinations(suspects, 2), *product(suspects, others)]
    same = [(a, b) for a, b in pairs if update[a].shape == update[b].shape][:_MOST_PAIRS]
    before = _total(subject, broken, update)
    scores = {pair: _after(subject, related, update, broken, pair) for pair in same}
    best = min(scores, key=lambda pair: scores[pair], default=None)
    return best if best is not None and scores[best] < 0.2 * before else None


def _after(
    subject: Subject, related: Sequence[Relation], update: Params, broken: Sequence[Relation], pair: tuple[str, str]
) -> float:
    first, second = pair
    mended: dict[str, Tensor] = {**update, first: update[second], second: update[first]}
    touched = [each for each in related if each in broken or first in each.names or second in each.names]
    return _total(subject, touched, mended)


def _total(subject: Subject, related: Sequence[Relation], update: Params) -> float:
    return sum(each.violation(subject, update) for each in related)
