"""The target of a single example under any loss, in closed form.

    h = gb^T gW / |gb|^2,    z = W h + b,    dl/dz (z, y) = gb

With a bias the head's input is known, so its output z is, and the only unknown left is the target y. Of finitely many
classes each is tried. Where the derivative is affine in y, as it is for every generalized linear model,

    dl/dz = J (y - mu(z))   =>   y = mu(z) + J^-1 gb

mu is the sigmoid for binary cross entropy, the identity for the squared error, the exponential for Poisson regression.
A loss with a link says what its target was; of any other J and mu are read off by calling it. The input of a linear
layer: Geiping et al. (2020), arXiv:2003.14053, Proposition 3.1; the rest is an own derivation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from inversefed.attacks.head.gradient import LastLayer, at_head, head_slope, last_layer
from inversefed.attacks.head.output_activation import behind_head
from inversefed.errors import ThreatModelError
from inversefed.fl.clients.local_optimizers import LocalSGD
from inversefed.fl.losses import link_of
from inversefed.fl.network import Network
from inversefed.fl.recovered_targets import recovered_targets
from inversefed.fl.targets import Form, as_targets, class_count, forms
from inversefed.fl.threat import Observation
from inversefed.types import Targets

__all__ = ["SolvedTarget"]

_AFFINE = 1e-4
"""How far, relative to its size, the derivative may be from affine in the target: rounding of single precision."""

_HARD, _DRIFTED = 1e-3, 0.25
"""How near 0 or 1 an answer counts as that: by rounding, and where the weights moved over several local steps."""

_FAR = 4.0
"""An output at which a network is sure of an answer, and the prediction of a regression is no probability."""

_ROUNDS, _EXACT = 10, 1e-9
"""Most steps towards the target where the head moves over several local steps, and the change that ends them."""


@dataclass(frozen=True)
class SolvedTarget:
    """What a single example was trained towards, by any loss: the target that gives the head's bias gradient.

    Class indices where the loss takes them, each of them tried; else the numbers that the loss takes. Answers of yes
    or no that come out near 0 or 1 are 0 or 1. Exact for the gradient of one example; close for a FedAvg update, whose
    head is followed through its steps of plain SGD.

    Raises:
        ThreatModelError: more than one example, no linear head with a bias, or a loss that does not tell its target.
    """

    def __call__(self, observation: Observation) -> Targets:
        """The target, `[1]` or `[1, k]`, as the loss takes it."""
        if observation.num_examples != 1:
            raise ThreatModelError(f"SolvedTarget() reads one example; this update has {observation.num_examples}")
        network, taken, head = observation.network, forms(observation.network), _Steps.of(observation)
        if link_of(network.loss) and head.count == 1 and head.is_output(network):
            return _as_taken(network, recovered_targets(network, head.outputs, head.delta[None]))
        if "classes" in taken and network.num_classes > 1:
            return _tried(network, head)
        for form in taken:
            found = None if form == "classes" else _solved(network, head, form)
            if found is not None:
                return _as_taken(network, found)
        if "classes" in taken:
            return _tried(network, head)
        raise ThreatModelError(
            f"the derivative of the loss {network.loss!r} does not tell its target; hand the labels over (known labels)"
        )


@dataclass(frozen=True, eq=False)
class _Steps:
    """The head's output for the example, through the local steps, in which only the head is taken to move.

    Args:
        inner: the network, its loss one of the head's output.
        outputs: what the head gives before the first step, `[1, k]`.
        delta: the gradient of its bias, the mean over the steps, `[k]`.
        rate: how far a step moves the output, in units of its derivative: `lr (|h|^2 + 1)`.
        count: how many steps.
    """

    inner: Network
    outputs: Tensor
    delta: Tensor
    rate: float = 0.0
    count: int = 1

    @classmethod
    def of(cls, observation: Observation) -> "_Steps":
        """Those of an observation of one example.

        Raises:
            ThreatModelError: the head does not tell what went into it.
        """
        steps, layer = observation.unrolled, _biased(observation)
        delta = layer.bias_gradient
        assert delta is not None
        features = delta @ layer.weight_gradient / delta.square().sum()
        inner = at_head(observation.network)
        count = 1 if steps is None else steps.count
        if steps is None or count == 1 or steps.optimizer != LocalSGD() or steps.proximal:
            return cls(inner, (layer.weight @ features + layer.bias)[None], delta)
        weight, bias = (observation.network.params.get(f"{inner.head}.{part}") for part in ("weight", "bias"))
        first = layer.weight if weight is None else weight.detach().double()
        start = first @ features + (layer.bias if bias is None else bias.detach().double())
        return cls(inner, start[None], delta, steps.lr * float(features.square().sum() + 1), count)

    @property
    def near(self) -> float:
        """How near 0 or 1 an answer counts as that."""
        return _HARD if self.count == 1 else _DRIFTED

    def is_output(self, network: Network) -> bool:
        """Whether what the head gives is what the network gives."""
        behind = behind_head(network)
        return behind is not None and torch.equal(behind(self.outputs), self.outputs)

    def slope(self, target: Targets) -> Tensor:
        """The mean derivative that a target `[1]` or `[1, k]` gives, `[k]`."""
        z, total = self.outputs, torch.zeros_like(self.delta)
        for _ in range(self.count):
            slope = head_slope(self.inner, z, target)
            z, total = z - self.rate * slope, total + slope[0] / self.count
        return total

    def at(self, outputs: Tensor) -> "_Steps":
        """One step at other outputs."""
        return _Steps(self.inner, outputs, self.delta)


def _as_taken(network: Network, found: Targets) -> Targets:
    """Targets as the loss takes them; of one output 0 and 1 as classes, where it takes classes."""
    if not found.is_floating_point():
        return found.to(network.device)
    whole = network.num_classes == 1 and bool(((found == 0) | (found == 1)).all())
    return as_targets(network, found.flatten().long()) if whole else found.to(network.device, network.dtype)


def _biased(observation: Observation) -> LastLayer:
    """The last layer, with a gradient of its bias.

    Raises:
        ThreatModelError: there is none, or its scale or what it does to the loss is unknown.
    """
    if not observation.client_known:
        raise ThreatModelError(
            "the target of an example is read off the scale of the gradient, and the client's settings are unknown; "
            "hand the labels over (known labels)"
        )
    layer = last_layer(observation)
    if layer.bias_gradient is None or not bool(layer.bias_gradient.any()):
        raise ThreatModelError(
            "the target of an example is read off the gradient of the head's bias, and there is none, or it is zero; "
            "hand the labels over (known labels)"
        )
    if behind_head(observation.network) is None:
        raise ThreatModelError(
            "something unknown stands between the head and the network's output, so that the loss's derivative at the "
            "head is unknown; hand the labels over (known labels)"
        )
    return layer


def _tried(network: Network, head: _Steps) -> Targets:
    """The class whose derivative is nearest.

    Raises:
        ThreatModelError: another class has the same.
    """
    targets = as_targets(network, torch.arange(class_count(network)))
    away = [float((head.slope(each[None]) - head.delta).norm()) for each in targets]
    best, second = sorted(range(len(away)), key=away.__getitem__)[:2]
    if away[second] - away[best] <= _AFFINE * float(head.delta.norm()):
        raise ThreatModelError(
            f"the derivative of the loss {network.loss!r} is the same for several labels; hand them over (known labels)"
        )
    return targets[best : best + 1]


def _solved(network: Network, head: _Steps, form: Form) -> Tensor | None:
    """The target whose derivative is the one observed; `None` where it is not affine, or not the only one."""
    width, one = network.num_classes if form == "rows" else 1, head.at(head.outputs)
    low, high = (head.at(head.outputs * 0 + far) for far in (-_FAR, _FAR))
    here, *there = (_Affine.of(partial(_slope, steps, form), width) for steps in (one, low, high))
    if here is None:
        return None
    answers = all(each is not None and each.predicts_share for each in (here, *there))
    target = here.target(head.delta)
    target = target.clamp(0, 1) if answers else target
    if head.count > 1:
        target = _followed(head, form, target, answers)
    if answers:
        rounded = target.round()
        target = rounded if bool(((target - rounded).abs() < head.near).all()) else target
    solved: Tensor = target[None] if form == "rows" else target
    return solved if bool(solved.isfinite().all()) else None


def _slope(head: _Steps, form: Form, target: Tensor) -> Tensor:
    return head.slope(target[None] if form == "rows" else target)


def _followed(head: _Steps, form: Form, target: Tensor, answers: bool) -> Tensor:
    """The target of several local steps, by Newton's method from that of one; answers stay within [0, 1]."""
    for _ in range(_ROUNDS):
        found, steps = _slope(head, form, target), torch.ones_like(target)
        if answers:
            steps = torch.where(target < 0.5, 1.0, 0.0) - target
        changes = torch.stack([_slope(head, form, target + step) - found for step in steps.diag()], dim=1)
        away = torch.linalg.lstsq(changes, (head.delta - found)[:, None]).solution[:, 0]
        before, target = target, target + steps * away
        target = target.clamp(0, 1) if answers else target
        if bool((target - before).abs().max() <= _EXACT * (1 + target.abs().max())):
            break
    return target


@dataclass(frozen=True, eq=False)
class _Affine:
    """The derivative as a function of the target, `zero + jacobian y`.

    Args:
        zero: `[k]`.
        jacobian: `[k, width]`.
    """

    zero: Tensor
    jacobian: Tensor

    @classmethod
    def of(cls, slope: Callable[[Tensor], Tensor], width: int) -> "_Affine | None":
        """Read off a function by calling it; `None` where it is not affine, or takes several targets to the same."""
        own = torch.eye(width, dtype=torch.float64)
        zero = slope(0 * own[0])
        jacobian = torch.stack([slope(each) - zero for each in own], dim=1)
        off = (slope(0.5 + 0 * own[0]) - zero - jacobian.sum(dim=1) / 2).norm()
        sizes = torch.linalg.svdvals(jacobian)
        settled = len(sizes) == width and bool(sizes[-1] > _AFFINE * sizes[0])
        return cls(zero, jacobian) if settled and bool(off <= _AFFINE * jacobian.norm()) else None

    def target(self, slope: Tensor) -> Tensor:
        """The target with that derivative, `[width]`."""
        found: Tensor = torch.linalg.lstsq(self.jacobian, (slope - self.zero)[:, None]).solution[:, 0]
        return found

    @property
    def predicts_share(self) -> bool:
        """Whether what the network predicts, the target with derivative 0, lies in [0, 1]."""
        predicted = self.target(torch.zeros_like(self.zero))
        return bool(((predicted >= 0) & (predicted <= 1)).all())
