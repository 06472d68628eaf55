"""What went into the head, example by example, though the update only holds a mean.

    gW = mean_i (p_i - T[y_i]) h_i^T,    gb = mean_i (p_i - T[y_i]),    p_i = softmax(W h_i + b)

With fewer examples than classes the rows of gW span the features h_i. With `gW = U S V^T` cut to rank n and
`h_i = k_i V^T`, the n^2 numbers k solve n c + c equations, whose only nonlinear part is the softmax; two examples of
one class are told apart by how their probabilities differ. They are solved by Levenberg-Marquardt from the mean
probabilities, and the residual says whether a solution is one: for wrong counts there is none, so that counts near
those of the label rule are tried as well. Own derivation.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from heapq import heappop, heappush
from itertools import islice, permutations, product

import torch
from torch import Generator, Tensor

from inversefed.attacks.labels import MeanFeatureCounts
from inversefed.attacks.labels.head import Head, deal, read_head
from inversefed.errors import ThreatModelError
from inversefed.fl.clients import FedAvg
from inversefed.fl.dropout import dropout_layers
from inversefed.fl.network import Network
from inversefed.fl.sharing import trainer
from inversefed.fl.threat import Observation
from inversefed.types import Images, Labels, Scalar

__all__ = ["KnownFeatures", "Separated", "separate"]

_LARGEST = 32
"""Examples; the equations' matrix has n^2 columns."""

_COUNTS = 100
"""How many sets of labels are tried."""

_ROUNDS = ((20, range(1), 12), (4, range(1, 4), 40), (2, range(4, 12), 120))
"""Rounds: how many sets of labels come through, which starts they get, and steps of each."""

_NEAR, _POLISH, _ENOUGH = 1e3, 500, 30
"""A residual of so many roundings is worth so many further steps; one of so many is a solution."""

_RIDGE, _SPREAD = 0.1, 0.1
"""Share of the largest singular value below which a start does not follow the equations; how far starts differ."""

_Linearized = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Separated:
    """The features and the label of each example; the order is that of the labels, and else the solver's.

    Args:
        features: `[n, d]`, what goes into the head, in float64.
        labels: `[n]`.
        residual: relative, of the head's gradient.
    """

    features: Tensor = field(repr=False)
    labels: Labels
    residual: float


def separate(observation: Observation) -> Separated:
    """Solve for what went into the head.

    Args:
        observation: of one gradient of several examples, or of one local step.

    Raises:
        ThreatModelError: no linear head with bias under softmax cross entropy, several local steps, as many examples
            as classes, or no solution (noise, clipping of single examples).

    >>> from inversefed.fl.clients import FedSGD
    >>> from inversefed.fl.network import freeze
    >>> network = freeze(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)), (3, 2, 2))
    >>> images = torch.rand((3, 3, 2, 2), generator=Generator().manual_seed(0))
    >>> update = FedSGD()(network, images, torch.tensor([2, 0, 2]))
    >>> found = separate(Observation(network, FedSGD(), update, 3))
    >>> error = torch.cdist(images.flatten(1).double(), found.features).min(dim=1).values.max()
    >>> found.labels.tolist(), bool(error < 1e-3)
    ([0, 2, 2], True)
    """
    head = read_head(observation)
    _check(observation, head)
    equations, eps = _Equations.of(head), torch.finfo(observation.network.dtype).eps
    if equations.beyond > _NEAR * eps:
        raise ThreatModelError(
            f"the head's gradient is not that of {head.total} examples: its next singular value is "
            f"{equations.beyond:.1g} of the first; noise, pruning or quantization do that"
        )
    tried = [observation.labels] if observation.labels is not None else list(islice(_plausible(head), _COUNTS))
    best: list[Separated] = []
    for keep, starts, steps in _ROUNDS:
        best = _tried(equations, tried, starts, steps, eps)
        if best[0].residual < _ENOUGH * eps:
            return best[0]
        tried = [found.labels for found in best[:keep]]
    raise ThreatModelError(
        f"no features of {head.total} examples explain the head's gradient (residual {best[0].residual:.1g}); noise, "
        "clipping of single examples, or labels that could not be counted, do that"
    )


def _check(observation: Observation, head: Head) -> None:
    total, classes, client = head.total, len(head.weight), trainer(observation.client)
    if isinstance(client, FedAvg) and len(client.slices(total)) > 1:
        raise ThreatModelError("the head's inputs are separated in one gradient, and this update is several steps")
    if dropout_layers(observation.network.module):
        raise ThreatModelError("dropout is on, and what went into the head holds for masks that are not known")
    if total >= classes or total > _LARGEST:
        raise ThreatModelError(
            f"the head's inputs are separated for fewer examples than classes ({classes}), up to {_LARGEST}; this "
            f"update has {total}"
        )
    head.needed_bias("separating the head's inputs")


def _plausible(head: Head) -> Iterator[Labels]:
    """Labels by the counting rule, then with one after another exchanged, those near the expected counts first."""
    expected = MeanFeatureCounts().expected(head).cpu()
    first = torch.bincount(deal(expected, head.total), minlength=len(expected))
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


def _tried(equations: "_Equations", labels: Sequence[Labels], starts: range, steps: int, eps: float) -> list[Separated]:
    """What each set of labels leads to, the smallest residual first; the search ends with one that is small enough."""
    found: list[Separated] = []
    for start, each in product(starts, labels):
        one = equations.solved(each, start, steps)
        found.append(one if one.residual > _NEAR * eps else equations.polished(one))
        if found[-1].residual < _ENOUGH * eps:
            break
    found.sort(key=lambda one: one.residual)
    seen: list[Separated] = []
    for one in found:
        if not any(torch.equal(one.labels, other.labels) for other in seen):
            seen.append(one)
    return seen


@dataclass(frozen=True, eq=False)
class KnownFeatures:
    """What went into the head, example by example, as a target beside the update.

        weight |f(x) - h| / |h|,    sums of absolute values

    Args:
        trunk: the network up to its head.
        features: `[n, d]`.
        labels: `[n]`, in the same order.
        weight: of the relative absolute error.
    """

    trunk: Network
    features: Tensor = field(repr=False)
    labels: Labels
    weight: float

    @classmethod
    def of(cls, observation: Observation, weight: float) -> "KnownFeatures | None":
        """Solve for them; nothing for one example, which needs no help, and where that does not work."""
        if observation.num_examples == 1:
            return None
        try:
            found = separate(observation)
        except ThreatModelError:
            return None
        network = observation.network
        features = found.features.to(network.device, network.dtype)
        return cls(network.without_head(), features, found.labels, weight)

    def functional(self) -> "KnownFeatures":
        """The same for `torch.func`."""
        return replace(self, trunk=replace(self.trunk, functional=True))

    def __call__(self, images: Images) -> Scalar:
        """Weighted relative absolute error."""
        seen = self.trunk.apply(self.trunk.params, images)
        return self.weight * (seen - self.features).abs().sum() / self.features.abs().sum()


@dataclass(frozen=True, eq=False)
class _Equations:
    """The head's gradient in the basis of its own rows, on the CPU.

    Args:
        rows: `[c, n]`, the gradient.
        basis: `[n, d]`, what its columns stand for.
        logits: `[n, c]`, the weights in that basis.
        bias: `[c]`.
        bias_gradient: `[c]`.
        pull: `[c, c]`, row y what the loss pulls a label y to.
        beyond: the singular value behind the last of `n`, relative to the first; none is where no examples are left.
    """

    rows: Tensor
    basis: Tensor
    logits: Tensor
    bias: Tensor
    bias_gradient: Tensor
    pull: Tensor
    beyond: float

    @classmethod
    def of(cls, head: Head) -> "_Equations":
        gradient, weight, pull = head.weight_gradient.cpu(), head.weight.cpu(), head.pull.cpu()
        left, sizes, right = torch.linalg.svd(gradient, full_matrices=False)
        basis = right[: head.total]
        bias_gradient = head.needed_bias("separating the head's inputs").cpu()
        return cls(
            (left * sizes)[:, : head.total], basis, basis @ weight.T, head.bias.cpu(), bias_gradient, pull,
            float(sizes[head.total] / sizes[0]),
        )  # fmt: skip

    def solved(self, labels: Labels, number: int, steps: int) -> Separated:
        """From one start."""
        return self._from(self._start(self.pull[labels.cpu()], number), labels, steps)

    def polished(self, found: Separated) -> Separated:
        """Down to the rounding of the gradient, which tells examples apart that are alike."""
        return self._from(found.features @ self.basis.T, found.labels, _POLISH)

    def _from(self, start: Tensor, labels: Labels, steps: int) -> Separated:
        target = self.pull[labels.cpu()]
        found, error = levenberg_marquardt(lambda k: self._linearized(k, target), start.flatten(), steps)
        return Separated(found.view_as(start) @ self.basis, labels, error)

    def _linearized(self, flat: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Residual `[(n + 1) c]` and its Jacobian."""
        total, classes = target.shape
        k = flat.view(total, total)
        p = (k @ self.logits + self.bias).softmax(dim=1)
        errors = (p - target) / total
        change = p[:, None] * (self.logits[None] - (p @ self.logits.T)[..., None]) / total  # [example, number, class]
        eye = torch.eye(total, dtype=k.dtype)
        slopes = torch.einsum("abc,ae->ceab", change, k) + torch.einsum("ac,be->ceab", errors, eye)
        scales = self.rows.norm(), self.bias_gradient.norm()
        residual = (errors.T @ k - self.rows) / scales[0], (errors.sum(dim=0) - self.bias_gradient) / scales[1]
        jacobian = slopes.reshape(-1, total**2) / scales[0], change.permute(2, 0, 1).reshape(classes, -1) / scales[1]
        return torch.cat([residual[0].flatten(), residual[1]]), torch.cat(jacobian)

    def _start(self, target: Tensor, number: int) -> Tensor:
        """Features that follow the equations if all examples had the mean probabilities, disturbed.

        A trained network knows its labels, so every second start has the probabilities lean to them.
        """
        total, generator = len(target), Generator().manual_seed(number)
        mean, wide = (self.bias_gradient + target.mean(dim=0)).clamp(min=1e-6), 1.3**number
        noise = torch.randn(target.shape, generator=generator, dtype=target.dtype)
        sure = 5 * torch.rand((), generator=generator, dtype=target.dtype) * (number % 2)
        errors = ((mean.log() + 0.02 * wide * noise + sure * target).softmax(dim=1) - target) / total
        left, sizes, right = torch.linalg.svd(errors.T, full_matrices=False)
        follow = sizes / (sizes.square() + (_RIDGE * sizes[0]).square())
        start = right.T @ (follow[:, None] * (left.T @ self.rows))
        noise = torch.randn(start.shape, generator=generator, dtype=start.dtype)
        disturbed: Tensor = start + _SPREAD * wide * noise * start.square().mean(dim=0).sqrt()
        return disturbed


def levenberg_marquardt(linearized: _Linearized, start: Tensor, steps: int) -> tuple[Tensor, float]:
    """Minimize the square of a residual over some numbers (Marquardt 1963); returns its norm as well.

    The step is taken by the singular values of the Jacobian with columns of unit length: two examples that are alike
    make it nearly singular, and its square would lose them to rounding.

    Args:
        linearized: gives residual `[m]` and Jacobian `[m, n]`.
        start: `[n]`.
        steps: most steps.
    """
    x, damping = start, 1e-3
    r, jacobian = linearized(x)
    for _ in range(steps):
        size = jacobian.norm(dim=0).clamp(min=1e-300)
        left, sizes, right = torch.linalg.svd(jacobian / size, full_matrices=False)
        slope, before = left.T @ r, float(r @ r)
        for _ in range(10):
            step = (right.T @ (sizes / (sizes.square() + damping) * slope)) / size
            after, ahead = linearized(x - step)
            if float(after @ after) < before:
                break
            damping *= 4
        else:
            break
        x, r, jacobian, damping = x - step, after, ahead, max(damping / 8, 1e-30)
        if float(r @ r) > before * (1 - 1e-12) or float(r @ r) < 1e-30:
            break
    return x, float(r.norm())
