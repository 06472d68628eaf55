"""The label of a single example, exactly.

For one example `gW_c = (p_c - y_c) h`: only the label's factor is negative, and it is the largest, for the factors sum
to zero. With a bias the head's input is known, so its probabilities are, and so is the whole target.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from inversefed.attacks.head.gradient import pulls, read_head, slopes
from inversefed.attacks.labels.feature_signs import check_not_negative
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.types import Labels, SoftLabels, Targets

__all__ = ["SignRule", "SoftTargets", "is_mixture"]

_MIXED = 1e-2
"""How far a target must be from every class to be a mixture of several."""
_ROUNDING = 1e-4
"""What may be left of a head's gradient, relative, where it is that of one example as it was computed."""


@dataclass(frozen=True)
class SignRule:
    """The label of a single example: the class whose row of the head's gradient points against all others.

    iDLG, Zhao et al. (2020), arXiv:2001.02610. Exact for hard labels, any network and signs of features. With a bias
    that is the lowest entry of its gradient, what label smoothing adds to every class taken off; without one the
    longest row.

    Raises:
        ThreatModelError: more than one example, a network without a clear head, or one whose last ReLU hides the label.
    """

    def __call__(self, observation: Observation) -> Labels:
        """The label, `[1]`."""
        if observation.num_examples != 1:
            raise ThreatModelError(
                f"the sign rule finds the label of one example; this update has {observation.num_examples}"
            )
        factors = _factors(observation)
        if not bool(factors.min() < 0):
            raise ThreatModelError(
                "the label does not show in the head's gradient: no row is negative (is the update zero, the head "
                "followed by a ReLU, or the network surer than the smoothed label?); hand it over (known labels), or "
                "use SoftTargets() or JointLabels()"
            )
        return factors.argmin().reshape(1)


@dataclass(frozen=True)
class SoftTargets:
    """What the client pulled a single example to: `y = softmax(W h + b) - gb` with `h = gb^T gW / |gb|^2`.

    The input of a linear layer, Geiping et al. (2020), arXiv:2003.14053, Proposition 3.1, and from it the target,
    smoothed, mixed or hard. Exact for the gradient of one example; close for a FedAvg update of a few small steps.

    Args:
        mixtures: give the probabilities themselves, as the client handed them to the loss, instead of a class.

    Raises:
        ThreatModelError: more than one example, or no linear head with a bias under softmax cross entropy.
    """

    mixtures: bool = False

    def __call__(self, observation: Observation) -> Targets:
        """The label whose target is nearest, `[1]`; a smoothed label is undone. Of mixtures the whole, `[1, k]`."""
        head, found = read_head(observation), self.probabilities(observation)
        if self.mixtures:
            whole: SoftLabels = torch.linalg.solve(head.pull.T, found[0])[None].to(observation.network.dtype)
            return whole
        return (head.pull - found).square().sum(dim=1).argmin().reshape(1)

    def probabilities(self, observation: Observation) -> SoftLabels:
        """The target itself, `[1, k]`, as the loss uses it: smoothing is still in it."""
        if observation.num_examples != 1:
            raise ThreatModelError(f"SoftTargets() reads one example; this update has {observation.num_examples}")
        head = read_head(observation)
        bias_gradient = head.needed_bias("reading the target of an example")
        size = bias_gradient.square().sum()
        if not bool(size > 0):
            raise ThreatModelError("the head's bias gradient is zero, so the head's input cannot be read from it")
        features = bias_gradient @ head.weight_gradient / size
        return (head.softmax(features) - bias_gradient)[None]


def is_mixture(observation: Observation) -> bool:
    """Whether a single example was trained towards several classes at once, which its gradient shows.

    It does so only as it was computed, at one set of weights: noise and several local steps look like mixtures too.
    """
    steps, name = observation.steps, observation.network.head
    if steps is None or not steps.alone or steps.count > 1:
        return False
    weight, bias = (observation.gradient[f"{name}.{part}"].double() for part in ("weight", "bias"))
    if not bool(bias.any()) or not _of_rank_one(weight, bias):
        return False
    head, target = read_head(observation), SoftTargets().probabilities(observation)
    # softmax - target is the bias gradient: of one class at another scale, as clipping leaves it, its direction
    single = target + head.needed_bias("telling mixtures") - head.pull
    alike = torch.cosine_similarity(single, bias[None], dim=1).max()
    return bool((head.pull - target).norm(dim=1).min() > _MIXED and alike < 1 - _MIXED**2)


def _of_rank_one(weight: Tensor, bias: Tensor) -> bool:
    rest = weight - torch.outer(bias, bias @ weight / bias.square().sum())
    return bool(rest.norm() <= _ROUNDING * weight.norm())


def _factors(observation: Observation) -> Tensor:
    """One number a class, negative where the label is."""
    network, gradient = observation.network, observation.gradient
    name, pulled = network.head, pulls(network)
    if name is None or f"{name}.weight" not in gradient:
        raise ThreatModelError(
            "the network has no clear last layer with one row a class; hand the label over (known labels), "
            "or use JointLabels()"
        )
    if pulled is None:
        _check_signs(network)
    bias = gradient.get(f"{name}.bias")
    if network.num_classes == 1:
        bias = _one_sign(observation) if bias is None else bias
        return torch.cat([-bias, bias])
    if bias is None:
        lengths: Tensor = torch.linalg.vector_norm(gradient[f"{name}.weight"].flatten(start_dim=1), dim=1)
        return -lengths
    if pulled is None:
        return bias
    scale, pull = pulled
    spread = float(pull.min())
    return bias + scale(1) * spread if spread > 1e-9 else bias


def _check_signs(network: Network) -> None:
    """Refuse a loss whose derivative does not point at the label: whose only negative entry, and largest, is not it.

    Raises:
        ThreatModelError: it is such a loss.
    """
    drawn = torch.randn(2, network.num_classes, generator=Generator().manual_seed(0), dtype=torch.float64)
    try:
        found = slopes(network, drawn)
    except UnsupportedNetworkError as error:
        raise ThreatModelError(f"no rule finds this loss's labels: {error}; hand them over (known labels)") from error
    own = found.diagonal(dim1=1, dim2=2)
    rest = found - own.diag_embed()
    if bool((own >= 0).any()) or bool((rest < -1e-9).any()) or bool((rest.amax(dim=2) > -own * (1 + 1e-6)).any()):
        raise ThreatModelError(
            f"the derivative of the loss {network.loss!r} does not point at the label; hand it over (known labels)"
        )


def _one_sign(observation: Observation) -> Tensor:
    """The sign of a single output's derivative, where no bias says it and features are not negative, `[1]`."""
    head = read_head(observation, scale_free=True)
    check_not_negative(head, 32, "the label of a head with one output and no bias")
    return head.weight_gradient[1:].sum(dim=1)
