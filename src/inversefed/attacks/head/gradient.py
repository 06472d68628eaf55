"""The classification head's gradient, read once for all label rules.

    gW_c = mean_i (p_ic - T[y_i, c]) h_i,    gb_c = mean_i (p_ic - T[y_i, c])

`h_i` is what goes into the head, `p_i` its softmax, and `T[y]` what the loss pulls a label `y` to: the class itself, or
with label smoothing a bit of all. A single output z is two classes with the logits 0 and z, since binary cross entropy
is the cross entropy of these. A FedAvg update gives their mean over the local steps; the weights moved meanwhile, so
probabilities are taken at the mean of the weights that the steps saw.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Generator, Tensor, nn

from inversefed.attacks.head.output_activation import Behind, behind_head
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.clients import LocalSteps
from inversefed.fl.clients.local_optimizers import State, weight_decay_of
from inversefed.fl.losses import WrappedLoss
from inversefed.fl.network import Network
from inversefed.fl.targets import as_targets, class_count, loss_slope
from inversefed.fl.threat import Observation
from inversefed.networks.natural_noise import varied_noise
from inversefed.types import Params, Targets

__all__ = ["Head", "LastLayer", "at_head", "head_slope", "last_layer", "pulls", "read_head", "round_counts", "slopes"]

_CHUNK = 32
_DRAWS = 8
"""Outputs at which the loss of a single one is differentiated."""
_OPEN = "hand the labels over (known labels), or use JointLabels()"


@dataclass(frozen=True, eq=False)
class Head:
    """The last layer and its gradient of the mean cross entropy, all in float64; k is 2 for a single output.

    Args:
        network: with the weights that the local steps saw on average.
        total: how many examples.
        weight: `[k, d]`.
        bias: `[k]`; zeros where the head has none.
        weight_gradient: `[k, d]`.
        bias_gradient: `[k]`, or `None` for a head without bias.
        pull: `[k, k]`, row y what the loss pulls a label y to.
    """

    network: Network
    total: int
    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    weight_gradient: Tensor = field(repr=False)
    bias_gradient: Tensor | None = field(repr=False)
    pull: Tensor = field(repr=False)

    def needed_bias(self, rule: str) -> Tensor:
        """The bias gradient, or a refusal."""
        if self.bias_gradient is None:
            raise ThreatModelError(f"{rule} needs a head with a bias; {_OPEN}")
        return self.bias_gradient

    def softmax(self, features: Tensor) -> Tensor:
        """Probabilities of features, `[n, k]`."""
        probabilities: Tensor = (features @ self.weight.T + self.bias).softmax(dim=-1)
        return probabilities

    def counts(self, probabilities: Tensor, bias_gradient: Tensor) -> Tensor:
        """Expected counts, `[k]`: the `k` with `k T / K = p - gb`."""
        shares: Tensor = torch.linalg.solve(self.pull.T, probabilities - bias_gradient)
        return self.total * shares

    def probe(self, number: int) -> Tensor:
        """What goes into the head for made-up pictures, `[number, d]`."""
        network = self.network
        name, images = str(network.head), varied_noise(network, number)
        parts = [network.linear_inputs(part).get(name) for part in torch.split(images, _CHUNK)]
        found = [part.flatten(end_dim=-2).double() for part in parts if part is not None and part.ndim == 2]
        if len(found) < len(parts):
            raise ThreatModelError(f"this rule needs a linear layer with one row a class as the head; {_OPEN}")
        return torch.cat(found)


def read_head(observation: Observation, scale_free: bool = False) -> Head:
    """Read what an update says of the last layer, as the gradient of the mean cross entropy.

    Args:
        observation: what the server sees.
        scale_free: the gradient is only needed up to a factor, so the client's settings may be unknown.

    Raises:
        ThreatModelError: no clear linear head, another loss than softmax cross entropy, a local optimizer that is not
            linear in the gradients (Adam), examples that no local step has seen, or an unknown client.
    """
    network, total = observation.network, observation.num_examples
    if not observation.client_known and not scale_free:
        raise ThreatModelError(
            "this rule needs the scale of the gradient, and the client's settings are unknown; use ImpactCounts(), "
            f"{_OPEN}"
        )
    layer, pulled = last_layer(observation), pulls(network)
    if pulled is None:
        raise ThreatModelError(
            "counting labels needs softmax cross entropy as the loss, or binary for one output, not "
            f"{network.loss!r}; {_OPEN}"
        )
    scale, pull = pulled
    bias_gradient = layer.bias_gradient
    return Head(
        network=layer.network,
        total=total,
        weight=_lifted(layer.weight, 0.0),
        bias=_lifted(layer.bias, 0.0),
        weight_gradient=_lifted(layer.weight_gradient) / scale(total),
        bias_gradient=None if bias_gradient is None else _lifted(bias_gradient) / scale(total),
        pull=pull.to(layer.weight.device),
    )


@dataclass(frozen=True, eq=False)
class LastLayer:
    """The last layer and its mean gradient over the local steps, of whatever loss, in float64.

    Args:
        network: with the weights that the local steps saw on average.
        weight: `[k, d]`.
        bias: `[k]`; zeros where there is none.
        weight_gradient: `[k, d]`.
        bias_gradient: `[k]`, or `None` for a layer without bias, or one whose bias was not sent.
    """

    network: Network
    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    weight_gradient: Tensor = field(repr=False)
    bias_gradient: Tensor | None = field(repr=False)


def last_layer(observation: Observation) -> LastLayer:
    """Read the last layer and its gradient.

    Raises:
        ThreatModelError: no clear linear head, or local steps whose mean gradient cannot be read.
    """
    network, name = observation.network, observation.network.head
    if name is None or not isinstance(network.module.get_submodule(name), nn.Linear):
        raise ThreatModelError(f"the network has no clear linear last layer with one row a class; {_OPEN}")
    weights, decay, gain = _seen_weights(observation)

    def gradient(part: str) -> Tensor | None:
        if f"{name}.{part}" not in observation.update:
            return None
        raw = observation.gradient[f"{name}.{part}"].double()
        return raw / gain - decay * weights[f"{name}.{part}"].double()

    weight_gradient = gradient("weight")
    if weight_gradient is None:
        raise ThreatModelError(f"the update does not hold the head's weights, {name}.weight; {_OPEN}")
    bias = weights.get(f"{name}.bias", network.module.get_submodule(name).bias)
    weight = weights[f"{name}.weight"].double()
    return LastLayer(
        network=replace(network, params=weights),
        weight=weight,
        bias=weight.new_zeros(len(weight)) if not isinstance(bias, Tensor) else bias.detach().double(),
        weight_gradient=weight_gradient,
        bias_gradient=gradient("bias"),
    )


def _lifted(rows: Tensor, first: float = -1.0) -> Tensor:
    """The row of a single output as those of two classes: the first is so many times the second."""
    return torch.cat([first * rows, rows]) if len(rows) == 1 else rows


@dataclass(frozen=True)
class _Scale:
    """How the gradient of a batch goes with that of one example's cross entropy."""

    factor: float
    sums: bool

    def __call__(self, total: int) -> float:
        return self.factor * (total if self.sums else 1)


def pulls(network: Network) -> tuple[_Scale, Tensor] | None:
    """What the loss pulls each label to, `[k, k]`, found by differentiating it; `None` if it is no cross entropy.

    Of the loss of one example, `dl/dz = s (softmax(z) - T[y])` must hold with the same `s` and `T` for all outputs `z`
    of the head; what stands behind the head, such as a log-softmax, is part of the loss. A single output is two
    classes.
    """
    return network.once(_pulls)


def _pulls(network: Network) -> tuple[_Scale, Tensor] | None:
    drawn = torch.randn(_DRAWS, network.num_classes, generator=Generator().manual_seed(0), dtype=torch.float64)
    drawn = drawn[:2] if network.num_classes > 1 else drawn  # a single output tells less, and costs nothing
    try:
        own, sums = slopes(network, drawn), _sums(network, drawn[:1])
    except UnsupportedNetworkError:
        return None
    p = (torch.cat([0 * drawn, drawn], dim=1) if network.num_classes == 1 else drawn).softmax(dim=1)
    moved, change = (own[0] - own[1]), (p[0] - p[1])
    factor = float((moved @ change).mean() / change.square().sum())
    if not factor > 0:
        return None
    targets = p[:, None] - own / factor
    plain = torch.allclose(targets, targets[:1].expand_as(targets), atol=1e-6) and torch.allclose(
        targets.sum(-1), torch.ones(targets.shape[:2], dtype=torch.float64), atol=1e-6
    )
    plain = plain and bool((targets[0].argmax(dim=1) == torch.arange(len(targets[0]))).all())
    return (_Scale(factor, sums), targets[0]) if plain else None


def slopes(network: Network, outputs: Tensor) -> Tensor:
    """What the loss of one example with each label does to each of some outputs of the head, `[m, k, k]`.

    Args:
        network: for its loss, and what stands behind its head.
        outputs: of the head, `[m, k]`.

    Raises:
        UnsupportedNetworkError: the loss does not take class indices.
    """
    inner, labels = at_head(network), as_targets(network, torch.arange(class_count(network)))
    found = [_lifted(head_slope(inner, z[None], y[None])[0]) for z in outputs for y in labels]
    return torch.stack(found).view(len(outputs), len(labels), -1)


def _sums(network: Network, outputs: Tensor) -> bool:
    """Whether the loss of two equal examples is twice that of one, and not their mean."""
    inner, label = at_head(network), as_targets(network, torch.zeros(1, dtype=torch.long))
    one, two = (head_slope(inner, outputs.expand(n, -1), label.expand(n, *label.shape[1:])) for n in (1, 2))
    return bool(two[0] @ one[0] > 0.75 * (one[0] @ one[0]))


def at_head(network: Network) -> Network:
    """The same network with its loss as one of what the head gives: what stands behind the head is part of it."""
    return replace(network, loss=_BehindHead(network.loss, behind_head(network) or _unchanged))


def head_slope(inner: Network, outputs: Tensor, targets: Targets) -> Tensor:
    """The derivative of the loss with respect to what the head gives, `[n, k]`, in the precision of `outputs`.

    A loss that holds numbers of its own, such as class weights, may refuse it: then in the network's precision.

    Args:
        inner: what `at_head` gives.
        outputs: of the head, `[n, k]`.
        targets: labels in the form that the loss takes.

    Raises:
        UnsupportedNetworkError: the loss does not take them.
    """
    try:
        return _slope(inner, outputs.to(inner.device), targets).to(outputs)
    except UnsupportedNetworkError:
        if outputs.dtype == inner.dtype:
            raise
    return _slope(inner, outputs.to(inner.device, inner.dtype), targets).to(outputs)


def _slope(inner: Network, outputs: Tensor, targets: Targets) -> Tensor:
    return loss_slope(inner, outputs, targets.to(outputs.dtype) if targets.is_floating_point() else targets)


@dataclass(frozen=True, repr=False)
class _BehindHead(WrappedLoss):
    """A loss of the head's outputs."""

    behind: Behind

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self.loss(self.behind(outputs), labels)


def _unchanged(outputs: Tensor) -> Tensor:
    return outputs


def round_counts(expected: Tensor, total: int, least: Tensor | None = None) -> Tensor:
    """Round expected counts so that they add up, largest remainders first; labels in rising order.

    Args:
        expected: counts before rounding, `[k]`.
        total: what they add up to.
        least: how often each class occurs at least, `[k]`; no more than the total in all.
    """
    least = torch.zeros_like(expected) if least is None else least.to(expected)
    spare = total - int(least.sum())
    expected = (expected.nan_to_num(0.0) - least).clamp(0, spare)
    counts = expected.floor()
    missing = spare - int(counts.sum())
    order = (expected - counts).argsort(descending=missing > 0)
    for index in order.repeat(abs(missing) // len(order) + 1)[: abs(missing)]:
        counts[index] = (counts[index] + (1 if missing > 0 else -1)).clamp(min=0)
    counts = counts + least
    labels = torch.arange(len(counts), device=counts.device).repeat_interleave(counts.long())
    return labels if len(labels) == total else labels[torch.arange(total, device=labels.device) % len(labels)]


def _seen_weights(observation: Observation) -> tuple[Params, float, float]:
    """The mean of the weights that the local steps saw, the weight decay, and the gain of momentum."""
    network, sends = observation.network, observation.client.sends
    steps = observation.steps
    start = {name: weight.detach() for name, weight in network.params.items()}
    if steps is None or not steps.additive or sends == "gradient":
        return start, 0.0, 1.0
    slices, examples = steps.slices, steps.examples
    if len({index for part in slices for index in range(part.start, part.stop)}) < examples:
        size = slices[0].stop - slices[0].start
        raise ThreatModelError(
            f"{len(slices)} local steps of {size} examples do not see all {examples}: "
            f"the others leave no trace; {_OPEN}"
        )
    gain, twice = (_drift(steps, size, len(slices)) for size in (1.0, 2.0))
    if abs(twice - 2 * gain) > 1e-6 * abs(twice):
        raise ThreatModelError(
            f"counting labels needs local steps that are linear in the gradient, not {steps.optimizer!r}; {_OPEN}"
        )
    past = (len(slices) - 1) / (2 * len(slices))
    sent = observation.update
    moved = {name: sent[name] - start[name] if sends == "weights" else sent[name] for name in sent}
    # Of weights that were not sent the server knows only the start.
    seen = start | {name: start[name] + past * moved[name].detach() for name in sent}
    return seen, weight_decay_of(steps.optimizer), gain / len(slices)


def _drift(steps: LocalSteps, size: float, count: int) -> float:
    """How far the optimizer carries one weight under a constant gradient, in units of the learning rate.

    The weight decay is left out, for it is taken off elsewhere; a proximal term pulls back what was carried.
    """
    params: Params = {"w": torch.zeros(1, dtype=torch.float64)}
    state: State = {}
    for step in range(count):
        decay = weight_decay_of(steps.optimizer)
        pull = steps.proximal * steps.lr - decay
        gradient = torch.full((1,), size, dtype=torch.float64) + pull * params["w"]
        params, state = steps.optimizer(params, {"w": gradient}, state, 1.0, step)
    return -float(params["w"])
