"""Steps of Adam or signSGD, whose first step keeps the sign of a gradient and not its size.

    Adam      d = -lr g / (|g| + eps)                 = -lr sign(g)            Kingma and Ba (2015), arXiv:1412.6980
    RMSprop   d = -lr g / (sqrt(1 - alpha) |g| + eps) = -lr sign(g) / sqrt(1 - alpha),  10 lr for alpha = 0.99
    signSGD   d = -lr sign(g)                         Bernstein et al. (2018), arXiv:1802.04434
    AdamW     the same, less  lr decay w              Loshchilov and Hutter (2019), arXiv:1711.05101

So all entries that moved moved equally far, in all tensors. Further steps spread the sizes, but T of them move no entry
by much more than T lr, and many by nearly that; the gradients of SGD differ by orders of magnitude within a tensor and
between them. An update of signs shows neither pruning nor clipping nor noise, and its head nothing of the scale.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inversefed.findings import Code
from inversefed.fl.clients import FedAvg
from inversefed.fl.clients.local_optimizers import LocalAdam
from inversefed.fl.formats import COARSE
from inversefed.types import Finding
from inversefed.updates.described import option
from inversefed.updates.diagnosis.evidence import Subject, rms
from inversefed.updates.diagnosis.sparsity import is_sparse
from inversefed.updates.metadata import Metadata

__all__ = ["Steps", "stepped", "steps_of"]

_SAME = 0.02
"""Relative difference of two sizes that are called equal; a step or two more of Adam leave as much."""
_MOST_OF = 0.5
"""Share of the entries that moved which have to have moved equally far."""
_NEARLY_ALL = 0.95
_SMALL = 0.1
"""Share of the greatest size, below which entries are those that weight decay alone has moved."""
_ENTRIES = 16
"""Entries of a tensor from which on its sizes say anything."""
_LEVEL, _TYPICAL, _BETWEEN = 0.35, 0.45, 1.6
"""Root mean square over the greatest size, in the least and in the middle tensor, and the greatest size of one tensor
over that of another: of 20 steps of Adam they are 0.39, 0.48 and 1.4; of SGD the first is at most 0.2."""
_ROUNDED = 0.06
"""Rounding over the size of a step, from which on sizes that look equal may be those of a last digit."""
_NARROW, _NEARLY_ROUNDED, _AGREEING = 0.25, 0.8, 64
"""Rounding over the size of a step up to which a rounded change tells of it, the share of these that must be of one
size, and how many at least."""
_FEW_TENSORS = 3
_MOST = 2**16
"""Entries of a tensor that are looked at, evenly taken."""
_MOST_STEPS = 10_000
_DECAY = 1e-4
"""L2 penalty that stands for one of unknown size: where it is all that there is of a gradient, any has its sign."""
_LEVEL_OF_CUT = 0.7
"""The first, of two steps of Adam, where tensors have zeros and no small entries; pruned, it is at most 0.6."""
_FIRST_STEPS = {
    1.0: ("one step of Adam or signSGD", LocalAdam()),
    10.0: ("the first step of RMSprop (alpha 0.99)", LocalAdam(eps=1e-7)),
    10**0.5: ("the first step of RMSprop (alpha 0.9)", LocalAdam(eps=10**0.5 * 1e-8)),
}
"""Sizes of a first step over the learning rate: which optimizer makes it, and the one of ours that makes the same."""


@dataclass(frozen=True)
class Steps:
    """Changes whose sizes are those of steps, not of a gradient.

    Args:
        size: how far most entries moved, or the farthest after several steps.
        share: of the entries that moved, those that moved as far.
        decay: multiple of the weights that was taken off beside it.
        equal: whether all moved equally far, as in one step.
        towards: whether whole rows moved towards zero, as weights do that get no gradient but that of an L2 penalty.
    """

    size: float
    share: float
    decay: float
    equal: bool
    towards: bool = False


def steps_of(subject: Subject) -> Steps | None:
    """Read the update as steps of equal size; `None` where it is a gradient."""
    parts = {name: part for name, part in subject.raw.items() if bool(part.any())}
    drawn = {name: _sampled(part) for name, part in parts.items()}
    if sum(part.numel() for part in drawn.values()) < _ENTRIES:
        return None
    weights = torch.cat([_sampled(subject.weights[name]) for name in parts])
    rounding = torch.cat([_sampled(subject.rounding(name)) for name in parts])
    cut, moves = [part for part in parts.values() if _is_cut(part)], torch.cat(list(drawn.values()))
    found = _equal(moves, weights, rounding) or _several(list(drawn.values()), cut, subject.format not in COARSE)
    if found is None or rms(rounding) > _ROUNDED * found.size or is_sparse(subject):
        # Of weights of 16 bits, rounding hides equal sizes, and most small steps from large weights.
        found = None if subject.grid is None else _rounded(moves, weights, subject.grid)
    if found is None or (len(parts) < _FEW_TENSORS and not _is_known(found, subject.metadata.learning_rate)):
        return None
    return replace(found, towards=any(_shrinks(part, subject.weights[name]) for name, part in parts.items()))


def _sampled(part: Tensor) -> Tensor:
    """Entries of a tensor, evenly taken."""
    return part.flatten()[:: 1 + part.numel() // _MOST]


def _is_known(steps: Steps, rate: float | None) -> bool:
    """Whether steps are as long as an optimizer's first one; a picture of two colors makes few tensors alike too."""
    return rate is None or any(_alike(steps.size / rate, factor) for factor in _FIRST_STEPS)


def _shrinks(part: Tensor, weight: Tensor) -> bool:
    """Whether more rows or columns of a matrix move towards zero throughout than by chance."""
    towards = (part * weight > 0).flatten(start_dim=1) if part.ndim > 1 else torch.zeros(0, 0, dtype=torch.bool)
    for lines in (towards, towards.T):
        if lines.numel() and lines.shape[1] >= 4:
            chance = len(lines) * 0.5 ** lines.shape[1]
            if int(lines.all(dim=1).sum()) > (0 if chance < 1e-4 else 5 * (chance + 1)):
                return True
    return False


def _equal(moves: Tensor, weights: Tensor, rounding: Tensor) -> Steps | None:
    """All moved equally far, but for weight decay and rounding."""
    sizes, own = moves.abs(), weights * moves.sign()
    most = float(sizes.max())
    size, decay = _fitted(sizes, own, sizes > 0.5 * most)
    allowed = _SAME * size + 4 * rounding
    sure = rounding <= _ROUNDED * size
    if size <= 0 or float(sure.double().mean()) < _MOST_OF:
        return None
    equal = (sizes - size - decay * own).abs() <= allowed
    moved = sure & (sizes > _SMALL * size) & ((moves - decay * weights).abs() > allowed)
    share = float((equal & moved).sum() / moved.sum().clamp_min(1))
    if share < _MOST_OF or int((equal & moved).sum()) < _ENTRIES:
        return None
    plain = (sizes - size).abs()[equal]
    better = rms((sizes - size - decay * own)[equal])
    return Steps(size, share, decay if decay > 0 and rms(plain) > 2 * better + rms(rounding) else 0.0, True)


def _rounded(moves: Tensor, weights: Tensor, dtype: torch.dtype) -> Steps | None:
    """All moved equally far before the new weights were rounded to 16 bits, `|w - size sign - new| <= eps |new| / 2`.

    So each change tells an interval in which its size was, and there is one size in nearly all of those that do not
    hold zero and are narrow for it. Of a gradient, no size is in a quarter of them.
    """
    half = torch.finfo(dtype).eps / 2 * (weights - moves).abs()
    sizes = moves.abs()
    low, high = (sizes - half) / (1 + _SAME), (sizes + half) / (1 - _SAME)
    narrow = half <= _NARROW * sizes
    if int(narrow.sum()) < _AGREEING:
        return None
    ends, order = torch.cat([low[narrow], high[narrow]]).sort()
    open_at = torch.where(order < int(narrow.sum()), 1, -1).cumsum(0)
    most = int(open_at.argmax())
    size = float(ends[most : most + 2].mean())
    moved = (half <= _NARROW * size) & (low > 0)
    equal = moved & (low <= size) & (size <= high)
    share = float(equal.sum() / moved.sum().clamp_min(1))
    return Steps(size, share, 0.0, True) if share >= _NEARLY_ROUNDED and int(equal.sum()) >= _AGREEING else None


def _fitted(sizes: Tensor, own: Tensor, chosen: Tensor) -> tuple[float, float]:
    """The size of a step and the multiple of the weights beside it, by least squares on what agrees with them."""
    size, decay = float(sizes[chosen].median()), 0.0
    for nearness in (0.25, _SAME, _SAME):
        near = chosen & ((sizes - size - decay * own).abs() <= nearness * size)
        x, y = own[near], sizes[near]
        if len(x) < _ENTRIES:
            break
        spread = float((x - x.mean()).square().sum())
        decay = float(((x - x.mean()) * (y - y.mean())).sum()) / spread if spread else 0.0
        size = float(y.mean() - decay * x.mean())
    return size, decay


def _several(parts: Sequence[Tensor], cut: Sequence[Tensor], fine: bool) -> Steps | None:
    """No entry moved much farther than many others, in no tensor.

    `cut` are those in which small ones are missing, `fine` says that the format tells sizes apart.
    """
    moved = [part[part != 0].abs() for part in parts]
    moved = [sizes for sizes in moved if len(sizes) >= _ENTRIES]
    if len(moved) < 2 or sum(map(len, moved)) < 16 * _ENTRIES:
        return None
    levels = sorted(_level(sizes) for sizes in moved)
    greatest = [float(sizes.max()) for sizes in moved]
    if levels[0] < _LEVEL or levels[len(levels) // 2] < _TYPICAL or max(greatest) > _BETWEEN * min(greatest):
        return None
    # Where small entries are missing, those that are left are all large.
    if any(_level(part[part != 0].abs()) < _LEVEL_OF_CUT for part in cut):
        return None
    flat = torch.cat(moved)
    # What was cut at a bound has it exactly, many times.
    if fine and int((flat >= max(greatest) * (1 - 1e-6)).sum()) >= max(4, len(flat) // 100):
        return None
    return Steps(max(greatest), float((flat > (1 - _SAME) * max(greatest)).double().mean()), 0.0, False)


def _level(sizes: Tensor) -> float:
    return rms(sizes) / float(sizes.max())


def _is_cut(part: Tensor) -> bool:
    """Whether entries of a tensor are zero, and none are small, though they differ."""
    sizes = part[part != 0].abs()
    cut = part.ndim > 1 and _ENTRIES <= len(sizes) < part.numel()
    return cut and 0.05 * float(sizes.median()) < float(sizes.min()) < 0.5 * float(sizes.max())


def stepped(subject: Subject, steps: Steps) -> tuple[Finding, ...]:
    """Say what optimizer made such steps, and the client that makes them as well.

    Returns:
        A finding `optimizer`: a warning, or an info where the client that was given runs such an optimizer.
    """
    evidence = {
        "size": steps.size,
        "share": steps.share,
        "weight_decay": steps.decay,
        "l2": steps.towards,
        "equal": steps.equal,
    }
    told = subject.metadata
    times = steps.size / told.learning_rate if told.learning_rate else 1.0
    what, optimizer, count = _made_by(subject, steps, times)
    seen = _seen(steps, told.learning_rate, times, count)
    if subject.adaptive:
        return (Finding(Code.OPTIMIZER, "info", f"The update looks like {what}, as stated: {seen}.", evidence),)
    if steps.towards and not steps.decay:
        optimizer = replace(optimizer, weight_decay=_DECAY)
    client = FedAvg(count, _rate(steps, told.learning_rate, times, count), optimizer=optimizer)
    client = replace(client, sends="weights") if subject.kind == "new_weights" else client
    if told.batch_size not in (None, told.num_examples):
        client = replace(client, batch_size=told.batch_size)
    kind = " If it is new minus old weights, set --kind weight_delta." if told.kind is None else ""
    message = (
        f"The update looks like {what}, not like SGD: {seen}. So it tells the signs of a gradient, hardly its sizes, "
        f"and what looks pruned, clipped, noised or wrongly scaled in it may be the optimizer's.{kind} Attack it as "
        f'what it is: --client "{option(client)}".{_left(steps, told, times, count)}'
    )
    return (Finding(Code.OPTIMIZER, "warning", message, evidence),)


def _rate(steps: Steps, rate: float | None, times: float, count: int) -> float:
    """The learning rate of the client that makes the same: as stated, where the steps are known multiples of it."""
    if rate is not None and (count > 1 or not steps.equal):
        return rate
    factor = next((factor for factor in _FIRST_STEPS if _alike(times, factor)), None) if rate else None
    return float(f"{steps.size / count if rate is None or factor is None else rate * factor:.4g}")


def _made_by(subject: Subject, steps: Steps, times: float) -> tuple[str, LocalAdam, int]:
    """What it looks like, the optimizer that makes the same, and its local steps."""
    stated = subject.metadata.local_steps or 1
    if not steps.equal:
        count = subject.metadata.local_steps or min(max(2, round(times)), _MOST_STEPS)
        return "several steps of Adam or another optimizer that scales each entry", LocalAdam(), count
    if stated > 1 and _alike(times, float(stated)):
        return f"{stated} steps of Adam or signSGD", LocalAdam(), stated
    for factor, (what, optimizer) in _FIRST_STEPS.items():
        if _alike(times, factor):
            return what, optimizer, 1
    return "one step of Adam, RMSprop or signSGD", LocalAdam(), 1


def _seen(steps: Steps, rate: float | None, times: float, count: int) -> str:
    known = f", {times:.3g} times the stated learning rate" if rate else ""
    known = ", the stated learning rate" if rate and _alike(times, 1.0) else known
    if not steps.equal:
        return f"all tensors changed by up to about {steps.size:.3g}{known}, and many entries by nearly as much"
    why = "where a gradient is no larger than eps" if count == 1 else "where its sign changes from step to step"
    others = f", the others less, as {why}" if steps.share < _NEARLY_ALL else ""
    return f"{steps.share:.0%} of the entries that moved did so by plus or minus {steps.size:.3g}{known}{others}"


def _left(steps: Steps, told: Metadata, times: float, count: int) -> str:
    """What that client does not explain."""
    left = []
    if steps.decay:
        left.append(
            f"changes by {-steps.decay:.2g} times the weights, decoupled weight decay as in AdamW: "
            f"optimizer=LocalAdamW(weight_decay={steps.decay / (told.learning_rate or steps.size):.2g}) has about it"
        )
    elif steps.towards:
        left.append(f"the L2 penalty on the weights, which units without a gradient show; {_DECAY:g} stands for it")
    if steps.equal and told.learning_rate and not any(_alike(times, each) for each in (*_FIRST_STEPS, float(count))):
        several = f"; {round(times)} steps with it would go as far" if round(times) > 1 else ""
        left.append(f"the size of the step, which is not the stated learning rate, {told.learning_rate:g}{several}")
    if not steps.equal:
        number = "" if told.local_steps else ", and the number of its steps"
        left.append(f"which optimizer of that family it was, with which settings{number}")
    return f" That leaves unexplained: {', and '.join(left)}." if left else ""


def _alike(value: float, other: float) -> bool:
    return abs(math.log(value / other)) < 2 * _SAME
