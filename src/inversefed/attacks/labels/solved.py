"""The target of a single example under any loss, in closed form.

    h = gb^T gW / |gb|^2,    z = W h + b,    dl/dz (z, y) = gb

With a bias the head's input is known, so its output z is, and the only unknown left is the target y. Of finitely many
classes each is tried. Where the derivative is affine in y, as it is for every generalized linear model,

    dl/dz = J (y - mu(z))   =>   y = mu(z) + J^-1 gb

mu is the sigmoid for binary cross entropy, the identity for the squared error, the exponential for Poisson regression.
J and mu are read off the loss by calling it. The input of a linear layer: Geiping et al. (2020), arXiv:2003.14053,
Proposition 3.1; the rest is an own derivation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inversefed.attacks.labels.behind import behind_head
from inversefed.attacks.labels.head import at_head, head_slope, last_layer
from inversefed.errors import ThreatModelError
from inversefed.fl.clients import FedAvg
from inversefed.fl.network import Network
from inversefed.fl.sharing import UnknownClient, trainer
from inversefed.fl.targets import Form, as_targets, class_count, forms
from inversefed.fl.threat import Observation
from inversefed.types import Targets

__all__ = ["SolvedTarget"]

_AFFINE = 1e-4
"""How far, relative to its size, the derivative may be from affine in the target: rounding of single precision."""

_HARD, _DRIFTED = 1e-3, 0.25
"""How near 0 or 1 an answer counts as that: by rounding, and where the weights moved over several local steps."""


@dataclass(frozen=True)
class SolvedTarget:
    """What a single example was trained towards, by any loss: the target that gives the head's bias gradient.

    Class indices where the loss takes them, each of them tried; else the numbers that the loss takes. Answers of yes
    or no that come out near 0 or 1 are 0 or 1. Exact for the gradient of one example; close for a FedAvg update of a
    few small steps.

    Raises:
        ThreatModelError: more than one example, no linear head with a bias, or a loss that does not tell its target.
    """

    def __call__(self, observation: Observation) -> Targets:
        """The target, `[1]` or `[1, k]`, as the loss takes it."""
        if observation.num_examples != 1:
            raise ThreatModelError(f"SolvedTarget() reads one example; this update has {observation.num_examples}")
        network, taken = observation.network, forms(observation.network)
        outputs, bias_gradient = _known(observation)
        if "classes" in taken and network.num_classes > 1:
            return _tried(network, outputs, bias_gradient)
        near = _DRIFTED if _moves(observation) else _HARD
        for form in taken:
            found = None if form == "classes" else _solved(network, outputs, bias_gradient, form, near)
            if found is not None:
                whole = network.num_classes == 1 and bool(((found == 0) | (found == 1)).all())
                return as_targets(network, found.flatten().long()) if whole else found.to(network.device, network.dtype)
        if "classes" in taken:
            return _tried(network, outputs, bias_gradient)
        raise ThreatModelError(
            f"the derivative of the loss {network.loss!r} does not tell its target; hand the labels over (known labels)"
        )


def _known(observation: Observation) -> tuple[Tensor, Tensor]:
    """What the head gave for the example, `[1, k]`, and the gradient of its bias, `[k]`."""
    if isinstance(trainer(observation.client), UnknownClient):
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
    delta = layer.bias_gradient
    features = delta @ layer.weight_gradient / delta.square().sum()
    return (layer.weight @ features + layer.bias)[None], delta


def _moves(observation: Observation) -> bool:
    """Whether the weights moved while the example was seen."""
    client = trainer(observation.client)
    return isinstance(client, FedAvg) and len(client.slices(observation.num_examples)) > 1


def _tried(network: Network, outputs: Tensor, delta: Tensor) -> Targets:
    """The class whose derivative is nearest.

    Raises:
        ThreatModelError: another class has the same.
    """
    inner, targets = at_head(network), as_targets(network, torch.arange(class_count(network)))
    away = [float((head_slope(inner, outputs, each[None])[0] - delta).norm()) for each in targets]
    best, second = sorted(range(len(away)), key=away.__getitem__)[:2]
    if away[second] - away[best] <= _AFFINE * float(delta.norm()):
        raise ThreatModelError(
            f"the derivative of the loss {network.loss!r} is the same for several labels; hand them over (known labels)"
        )
    return targets[best : best + 1]


def _solved(network: Network, outputs: Tensor, delta: Tensor, form: Form, near: float) -> Tensor | None:
    """The target whose derivative is the one observed; `None` where it is not affine, or not the only one."""
    inner, width = at_head(network), network.num_classes if form == "rows" else 1

    def slope(y: Tensor) -> Tensor:
        return head_slope(inner, outputs, y[None] if form == "rows" else y)[0]

    own = torch.eye(width, dtype=outputs.dtype, device=outputs.device)
    zero, half = slope(0 * own[0]), 0.5 + 0 * own[0]
    jacobian = torch.stack([slope(each) - zero for each in own], dim=1)
    off = (slope(half) - zero - jacobian @ half).norm()
    sizes = torch.linalg.svdvals(jacobian)
    if off > _AFFINE * jacobian.norm() or len(sizes) < width or not bool(sizes[-1] > _AFFINE * sizes[0]):
        return None
    mean, away = (torch.linalg.lstsq(jacobian, right[:, None]).solution[:, 0] for right in (-zero, delta))
    target = mean + away
    if torch.allclose(mean, outputs[0].sigmoid(), atol=1e-3):  # answers of yes or no
        target = target.clamp(0, 1)
        rounded = target.round()
        target = rounded if bool(((target - rounded).abs() < near).all()) else target
    solved: Tensor = target[None] if form == "rows" else target
    return solved
