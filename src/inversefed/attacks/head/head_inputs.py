"""Recover each example's input to the classification head from the averaged gradient.

With fewer examples than classes the rows of the head's gradient span the features, and n^2 numbers solve the n c + c
equations of `equations`, whose only nonlinear part is the softmax; two examples of one class are told apart by how
their probabilities differ. The residual says whether a solution is one: for wrong counts there is none, so that
counts near those of the label rule are tried as well, and of several local steps the order of the examples. Own
derivation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import islice, permutations, product

import torch
from torch import Tensor

from inversefed.attacks.head.equations import HeadEquations, Solution
from inversefed.attacks.head.expected_counts import expected_counts
from inversefed.attacks.head.gradient import Head, read_head, round_counts
from inversefed.attacks.head.step_order import in_order
from inversefed.errors import ThreatModelError
from inversefed.fl.clients import LocalSteps
from inversefed.fl.clients.local_optimizers import LocalSGD
from inversefed.fl.clients.views import inner_client, new_weights
from inversefed.fl.dropout import dropout_layers
from inversefed.fl.targets import as_targets, classes_of
from inversefed.fl.threat import Observation
from inversefed.types import Labels, Targets

__all__ = ["HeadInputs", "recover_head_inputs"]

_LARGEST = 32
"""Examples; the equations' matrix has n^2 columns."""

_COUNTS = 100
"""How many sets of labels are tried."""

_ROUNDS = ((20, range(1), 12), (4, range(1, 4), 40), (2, range(4, 12), 120))
"""Rounds: how many sets of labels come through, which starts they get, and steps of each."""

_NEAR, _ENOUGH = 1e3, 30
"""A residual of so many roundings is worth further steps; one of so many is a solution."""

_ORDERED, _SURE = 6, 2
"""How many sets of labels are put in order where there are several local steps, and the residual that one must have:
orders are many, and by so much the wrong ones fall short."""


@dataclass(frozen=True, eq=False)
class HeadInputs:
    """The features and the label of each example; the order is that of the labels, and else the solver's.

    Args:
        features: `[n, d]`, what goes into the head, in float64.
        labels: `[n]`.
        residual: relative, of the head's gradient.
    """

    features: Tensor = field(repr=False)
    labels: Targets
    residual: float


def recover_head_inputs(observation: Observation, stop: Callable[[], bool] = lambda: False) -> HeadInputs:
    """Solve for what went into the head, once for each observation: a choice asks, and then its search.

    Args:
        observation: of one gradient of several examples, or of local steps of plain SGD that see each example once.
        stop: asked before each step of each solution, of which there may be thousands.

    Raises:
        ThreatModelError: no linear head with bias under softmax cross entropy, other local steps, as many examples
            as classes, no solution (noise, clipping of single examples), or none before it was to stop.

    >>> from inversefed.fl.clients import FedSGD
    >>> from inversefed.fl.network import freeze
    >>> network = freeze(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)), (3, 2, 2))
    >>> images = torch.rand((3, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    >>> update = FedSGD()(network, images, torch.tensor([2, 0, 2]))
    >>> found = recover_head_inputs(Observation(network, FedSGD(), update, 3))
    >>> error = torch.cdist(images.flatten(1).double(), found.features).min(dim=1).values.max()
    >>> found.labels.tolist(), bool(error < 1e-3)
    ([0, 2, 2], True)
    """
    known = observation.once(_Separation(stop))
    if isinstance(known, str):
        raise ThreatModelError(known)
    return known


@dataclass(frozen=True)
class _Separation:
    """What was found, or why nothing was: that took as long. Whoever asks first says for how long."""

    stop: Callable[[], bool] = field(compare=False)

    def __call__(self, observation: Observation) -> HeadInputs | str:
        try:
            return _separated(observation, self.stop)
        except ThreatModelError as error:
            return str(error)


def _separated(observation: Observation, stop: Callable[[], bool]) -> HeadInputs:
    head = read_head(observation)
    _check(observation, head)
    equations, eps = replace(_equations(observation, head), stop=stop), _rounding(observation)
    if equations.beyond > _NEAR * eps:
        raise ThreatModelError(
            f"the head's gradient is not that of {head.total} examples: its next singular value is "
            f"{equations.beyond:.1g} of the first; noise, pruning or quantization do that"
        )
    tried = _granted(observation) if observation.labels is not None else list(islice(_plausible(head), _COUNTS))
    best: list[Solution] = []
    for keep, starts, steps in _ROUNDS:
        if observation.labels is None and len(equations.steps) > 1:
            whole = replace(HeadEquations.of(head, (slice(0, head.total),), 0.0), stop=stop)
            blurred = _tried(whole, tried, starts, steps, 0.0)
            best, enough = _ordered(equations, blurred[:_ORDERED], _SURE * eps), _SURE * eps
        else:
            best, enough = _tried(equations, tried, starts, steps, eps), _ENOUGH * eps
        if best[0].residual < enough:
            labels = as_targets(observation.network, best[0].labels)
            return HeadInputs(best[0].coefficients @ equations.basis, labels, best[0].residual)
        if stop():
            raise ThreatModelError(
                f"what went into the head was not solved for in the time there was (residual {best[0].residual:.1g}); "
                "give it more time"
            )
        tried = [found.labels for found in best[:keep]]
    raise ThreatModelError(
        f"no features of {head.total} examples explain the head's gradient (residual {best[0].residual:.1g}); noise, "
        "clipping of single examples, or labels that could not be counted, do that"
    )


def _granted(observation: Observation) -> list[Labels]:
    """The labels that were handed over, as class indices."""
    assert observation.labels is not None
    labels = classes_of(observation.labels, observation.network.num_classes)
    if labels is None:
        raise ThreatModelError("the head's inputs are separated by class indices, and the labels are other numbers")
    return [labels]


def _check(observation: Observation, head: Head) -> None:
    total, classes, steps = head.total, len(head.weight), observation.unrolled
    if steps is not None and steps.count > 1 and not _plain(steps):
        raise ThreatModelError(
            "the head's inputs are separated in one gradient, or in local steps of plain SGD that see each example "
            f"once, in order; this client is {inner_client(observation.client)!r}"
        )
    if dropout_layers(observation.network.module):
        raise ThreatModelError("dropout is on, and what went into the head holds for masks that are not known")
    if total >= classes or total > _LARGEST:
        raise ThreatModelError(
            f"the head's inputs are separated for fewer examples than classes ({classes}), up to {_LARGEST}; this "
            f"update has {total}"
        )
    head.needed_bias("separating the head's inputs")


def _plain(steps: LocalSteps) -> bool:
    """Whether the steps of a client are those that the equations describe."""
    once = steps.count == len(steps.one_pass)
    return once and steps.optimizer == LocalSGD() and not (steps.proximal or steps.shuffles or steps.order)


def _equations(observation: Observation, head: Head) -> HeadEquations:
    """With the head's weights as they were before the first step."""
    steps, params = observation.unrolled, observation.network.params
    weight, bias = (params.get(f"{observation.network.head}.{part}") for part in ("weight", "bias"))
    before = replace(
        head,
        weight=head.weight if weight is None else weight.detach().double(),
        bias=head.bias if bias is None else bias.detach().double(),
    )
    if steps is None:
        return HeadEquations.of(before, (slice(0, head.total),), 0.0)
    return HeadEquations.of(before, tuple(steps.slices), steps.lr)


def _rounding(observation: Observation) -> float:
    """Of the head's gradient, relative: that of new weights is as large as the weights are."""
    network, eps = observation.network, torch.finfo(observation.network.dtype).eps
    if new_weights(observation.client, network, observation.update) is None:
        return eps
    name = f"{network.head}.weight"
    scale = float(network.params[name].detach().norm() / observation.gradient[name].norm())
    steps = observation.unrolled
    moved = 1.0 if steps is None else steps.lr * steps.count
    return eps * max(1.0, scale / moved)


def _plausible(head: Head) -> Iterator[Labels]:
    """Labels by the counting rule, then with one after another exchanged, those near the expected counts first."""
    expected = expected_counts(head, head.probe(128)).cpu()
    first = torch.bincount(round_counts(expected, head.total), minlength=len(expected))
    waiting, known = [(_distance(first, expected), first.tolist())], {tuple(first.tolist())}
    while waiting:
        _, counts = heappop(waiting)
        yield torch.arange(len(counts), device=head.weight.device).repeat_interleave(
            torch.tensor(counts, device=head.weight.device)
        )
        for lost, gained in permutations(range(len(counts)), 2):
            changed = list(counts)
            changed[lost] -= 1
            changed[gained] += 1
            if changed[lost] >= 0 and tuple(changed) not in known:
                known.add(tuple(changed))
                heappush(waiting, (_distance(torch.tensor(changed), expected), changed))


def _distance(counts: Tensor, expected: Tensor) -> float:
    return float((counts - expected).square().sum())


def _tried(equations: HeadEquations, labels: Sequence[Labels], starts: range, steps: int, eps: float) -> list[Solution]:
    """What each set of labels leads to, the smallest residual first; the search ends with one that is small enough."""
    found: list[Solution] = []
    for start, each in product(starts, labels):
        one = equations.solved(each, start, steps)
        found.append(one if one.residual > _NEAR * eps else equations.improved(one))
        if found[-1].residual < _ENOUGH * eps or equations.stop():
            break
    found.sort(key=lambda one: one.residual)
    seen: list[Solution] = []
    for one in found:
        if not any(torch.equal(one.labels, other.labels) for other in seen):
            seen.append(one)
    return seen


def _ordered(equations: HeadEquations, found: Sequence[Solution], enough: float) -> list[Solution]:
    """Each in its best order, the smallest residual first; the search ends with one that is small enough."""
    ordered: list[Solution] = []
    for each in found:
        ordered.append(in_order(equations, each, enough))
        if ordered[-1].residual < enough or equations.stop():
            break
    return sorted(ordered, key=lambda each: each.residual)
