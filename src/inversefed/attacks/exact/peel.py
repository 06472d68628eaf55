"""Peel a network from its head to its image: at every layer the input solves *linear* equations.

For one example and a chain of layers,

    head:        a = gb^T gW / |gb|^2,  delta = W^T gb
    activation:  z = act^{-1}(a),  delta <- delta * act'(z)
    BatchNorm:   x = (z - t) / s,  delta <- s * delta             (eval mode)
    convolution: solve for a (see `convolution`),  delta <- W^T delta

A smooth activation is peeled down to the image. Under ReLU and LeakyReLU the side of the kink is known exactly at the
head's input (a zero is a zero), but not below the first layer that was solved from rounded numbers; there peeling
stops and the image is found from the features it reached (see `features`). Max pooling hides which pixel won: above a
convolution the winners are found by alternation (see `pooling`), in the first layers together with the image (see
`pooled`). Where its equations are too few, the image is searched from the features behind it. The result is called
exact only if the forward operator, run once, reproduces the update.
"""

import math
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from inversefed.attacks.exact.block import Block, affine, block_below
from inversefed.attacks.exact.convolution import solve_convolution, transposed
from inversefed.attacks.exact.features import invert_features, search_features, shallow
from inversefed.attacks.exact.pooled import image_from_pooled
from inversefed.attacks.exact.pooling import unpool
from inversefed.attacks.exact.reach import cannot_peel, ends_block, pools, reach
from inversefed.attacks.exact.verify import EXACT, exactness
from inversefed.attacks.exact.watch import Stopped, Watch
from inversefed.attacks.labels import granted_or_recovered
from inversefed.attacks.problem import relative_matching_cost
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl import kinks
from inversefed.fl.chain import Layer, chain
from inversefed.fl.threat import Observation
from inversefed.types import Budget, Candidate, Params, Reconstruction, Status

__all__ = ["Peel"]

_SEARCH = 600
"""Steps of the search for an image behind max pooling that could not be peeled."""

_SHALLOW = 120
"""The same behind one block, where it is a start."""

_FIRST = 60
"""Steps for a first image, which need not be good."""

_ROUNDS = 900
"""About the most rounds that all of these and the alternations of two blocks come to."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What peeling works on.

    Args:
        layers: the network as a chain.
        gradient: of the loss of one example, double precision.
        image_shape: `(c, h, w)`.
        bounds: the least and the greatest value of the normalized image, broadcastable to it.
        eps: rounding of the numbers that the gradient was computed in.
        watch: asked after each round of what iterates.
    """

    layers: tuple[Layer, ...]
    gradient: Params = field(repr=False)
    image_shape: tuple[int, int, int]
    bounds: tuple[Tensor, Tensor] = field(repr=False)
    eps: float
    watch: Watch = Watch()


@dataclass(frozen=True, eq=False)
class Front:
    """How far the peeling is: what is known between two layers.

    Args:
        depth: how many layers are left.
        values: the numbers that come out of them, `[c, h, w]` or `[features]`.
        delta: the loss gradient with respect to them.
        weight: how much each is to be believed: the slopes of the activations above it.
        rounded: whether they were solved for, so that a zero is no longer exactly a zero.
        image: a normalized image that roughly fits, where one was needed on the way.
        unseen: the share of a random input that the equations of the worst layer so far leave open; 1 where none were
            solved for it.
    """

    depth: int
    values: Tensor = field(repr=False)
    delta: Tensor = field(repr=False)
    weight: Tensor = field(repr=False)
    rounded: bool = False
    image: Tensor | None = field(default=None, repr=False)
    unseen: float = 0.0


@dataclass(frozen=True)
class Peel:
    """Recover one picture exactly, layer by layer.

    Args:
        evaluations: most evaluations of the shallow layers where their features have to be inverted.
    """

    evaluations: int = 1500

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Peel; the generator is not used. A search that the budget stops leaves the best so far.

        Raises:
            ThreatModelError: the update is not that of one example.
            UnsupportedNetworkError: the network is no chain, or a layer cannot be peeled.
        """
        network = observation.network
        watch = Watch(
            budget, lambda inputs: network.denormalize(inputs.to(network.device, network.dtype)),
            rounds=_ROUNDS if kinks.pools(network) else self.evaluations // 10,
        )  # fmt: skip
        setting = _setting(observation, watch)
        depth, found, interrupted = len(setting.layers), torch.zeros(network.image_shape).double(), False
        left_open = None
        try:
            front = descend(setting)
            depth, found = front.depth, _image(setting, front, self.evaluations)
            left_open = front.unseen if depth == 0 else None
        except KeyboardInterrupt:
            interrupted = True
        except (torch.linalg.LinAlgError, ArithmeticError) as error:  # type: ignore[attr-defined]
            raise UnsupportedNetworkError(f"the equations of a layer tell nothing of its input ({error})") from error
        status = Status.INTERRUPTED if interrupted else Status.STOPPED if watch.stopped else Status.FINISHED
        evidence: dict[str, Any] = {"layers": len(setting.layers), "layers_inverted": depth}
        evidence |= {} if left_open is None else {"unseen": left_open}
        return _verified(observation, (found, *watch.kept), evidence, watch, status)

    def check(self, observation: Observation, layers: tuple[Layer, ...] | None = None) -> str:
        """Say how far it should come, without solving anything.

        Args:
            observation: what it would be called with.
            layers: the network as a chain, if it was read already.

        Raises:
            ThreatModelError: as when it is called.
            UnsupportedNetworkError: likewise.
        """
        setting = _setting(observation, Watch(), layers)
        _head(setting)
        far, pixels = reach(setting.layers, setting.image_shape), math.prod(setting.image_shape)
        alternation = "; the winners of max pooling are found by an alternation, which may not settle"
        how = f"peels {far.count - far.depth} of {far.count} layers{alternation if far.alternates else ''}"
        if far.depth == 0:
            return f"{how}, down to the image"
        return f"{how}; then it looks for the image's {pixels} values behind {far.values} features, since {far.why}"


def known_exactly(observation: Observation) -> tuple[tuple[Layer, ...], Front]:
    """The network as a chain, and what its head gives away before any layer has to be solved for.

    Args:
        observation: the update of one example.

    Raises:
        ThreatModelError: the update is not that of one example.
        UnsupportedNetworkError: the network is no chain, or its head is not linear with bias.
    """
    setting = _setting(observation, Watch())
    front = _head(setting)
    try:
        while front.depth > 0 and not isinstance(setting.layers[front.depth - 1].module, nn.Conv2d | nn.MaxPool2d):
            front = _below(setting, front)
    except UnsupportedNetworkError:  # it ends here
        pass
    return setting.layers, front


def _setting(observation: Observation, watch: Watch, layers: tuple[Layer, ...] | None = None) -> Setting:
    if observation.num_examples != 1:
        raise ThreatModelError(f"peeling needs the update of one example; this one has {observation.num_examples}")
    network = observation.network
    if missing := [name for name in network.params if name not in observation.update]:
        raise ThreatModelError(
            f"peeling needs the whole update; {len(missing)} tensors were not sent, {missing[0]} first"
        )
    low, high = (network.normalize(bound).double().cpu() for bound in (network.low, network.high))
    return Setting(
        chain(network) if layers is None else layers, _double(observation.gradient), network.image_shape, (low, high),
        torch.finfo(network.dtype).eps, watch,
    )  # fmt: skip


def descend(setting: Setting) -> Front:
    """Go down from the head as far as the numbers can be trusted.

    Raises:
        UnsupportedNetworkError: the last layer is not linear with bias, or nothing below it can be peeled.
    """
    front = _head(setting)
    while front.depth > 0 and not setting.watch.stop():
        try:
            below = _step(setting, front)
        except Stopped:
            break
        except UnsupportedNetworkError:
            if not front.rounded:
                raise
            below = None
        if below is None:
            break
        front = below
    return front


def _step(setting: Setting, front: Front) -> Front | None:
    """One layer or block down; nothing where the numbers do not tell the side of a kink, or the equations are few."""
    layers = setting.layers[: front.depth]
    if ends_block(layers, front.rounded):
        return _below_block(setting, front, block_below(layers, front.depth, setting.image_shape))
    if isinstance(layers[-1].module, nn.ReLU | nn.LeakyReLU) and front.rounded:
        return None
    return _below(setting, front)


def _below_block(setting: Setting, front: Front, block: Block) -> Front | None:
    outputs, _, height, width = block.weight.shape
    if block.start == 0 or outputs * height * width < block.shape[1] * block.shape[2]:
        return None
    layers, watch = setting.layers[: front.depth], setting.watch
    image = front.image
    if image is None:
        image = search_features(layers, front.values, setting.image_shape, _FIRST, watch)
    if watch.stopped:
        return None
    gradient = block.weight_gradient(setting.gradient)
    found = unpool(layers, block, front.values, front.delta, gradient, image, watch)
    if not found.settled:
        return None
    return Front(block.start, found.values, found.delta, torch.ones_like(found.values), True, found.image, 1.0)


def _image(setting: Setting, front: Front, evaluations: int) -> Tensor:
    """The normalized image, from where peeling stopped."""
    layers, shape, watch = setting.layers[: front.depth], setting.image_shape, setting.watch
    if not layers:
        return front.values
    if watch.stopped:
        return watch.kept[-1].reshape(shape) if watch.kept else torch.zeros(shape)
    if not pools(layers):
        start, behind = torch.zeros(1, *shape).double(), shallow(layers, torch.float64)
        return invert_features(behind, front.values[None], start, setting.eps, evaluations, watch)[0]
    first = all(not isinstance(layer.module, nn.Conv2d) for layer in layers[1:])
    near = search_features(layers, front.values, shape, _SHALLOW if first else _SEARCH, watch)
    if not first or int((front.values > 0).sum()) < near.numel() or watch.stopped:
        return near
    try:
        block = block_below(layers, front.depth, shape)
    except UnsupportedNetworkError:
        return near
    return image_from_pooled(block, front.values, near, setting.bounds, watch).image


def _head(setting: Setting) -> Front:
    layer, gradient = setting.layers[-1], setting.gradient
    weight, bias = gradient.get(f"{layer.name}.weight"), gradient.get(f"{layer.name}.bias")
    if not isinstance(layer.module, nn.Linear) or weight is None or bias is None or not bool(bias.any()):
        raise UnsupportedNetworkError(
            "peeling starts at a last linear layer with bias, and this network ends otherwise"
        )
    features = (bias @ weight) / bias.square().sum()
    delta = bias @ layer.module.weight.detach()
    return Front(len(setting.layers) - 1, features, delta, torch.ones_like(features))


def _below(setting: Setting, front: Front) -> Front:
    """What is known in front of a layer, from what is known behind it."""
    depth = front.depth - 1
    layer, shape = setting.layers[depth], setting.layers[depth - 1].shape if depth else setting.image_shape
    module, values, delta, weight = layer.module, front.values, front.delta, front.weight
    match module:
        case nn.Flatten() | nn.Identity() | nn.Dropout() | nn.Dropout2d():
            values, delta, weight = (part.reshape(shape) for part in (values, delta, weight))
        case nn.Sigmoid() | nn.Tanh() | nn.LeakyReLU() | nn.ReLU():
            values, slope = _inverse(module, values, setting.eps)
            delta, weight = delta * slope, weight * slope
        case nn.BatchNorm2d():
            scale, shift = affine(module)
            values, delta, weight = (values - shift) / scale, delta * scale, weight * scale.abs()
        case nn.Linear():
            values = (delta @ setting.gradient[f"{layer.name}.weight"]) / delta.square().sum()
            delta, weight = delta @ module.weight.detach(), torch.ones_like(values)
        case nn.Conv2d():
            return _below_convolution(setting, front, layer.name, module, shape)
        case _:
            raise cannot_peel(module)
    return replace(front, depth=depth, values=values, delta=delta, weight=weight)


def _below_convolution(setting: Setting, front: Front, name: str, module: nn.Conv2d, shape: tuple[int, ...]) -> Front:
    channels, height, width = shape
    solved = solve_convolution(
        module,
        (channels, height, width),
        setting.gradient[f"{name}.weight"],
        front.delta,
        front.values,
        front.weight,
        tolerance=setting.eps * 1e-3,
        go_on=setting.watch.go_on,
    )
    delta = transposed(module, module.weight, shape, front.delta[None])
    unseen = max(front.unseen, solved.unseen)
    return Front(front.depth - 1, solved.values, delta, torch.ones_like(solved.values), True, unseen=unseen)


def _inverse(module: nn.Module, outputs: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """What went into an activation, and its slope there; a slope of zero marks what is not known."""
    match module:
        case nn.Sigmoid():
            inside = outputs.clamp(eps, 1 - eps)
            return torch.logit(inside), inside * (1 - inside)
        case nn.Tanh():
            inside = outputs.clamp(-1 + eps, 1 - eps)
            return torch.atanh(inside), 1 - inside.square()
        case nn.LeakyReLU():
            slope = torch.where(outputs > 0, 1.0, module.negative_slope).to(outputs)
            return outputs / slope, slope
    return outputs, (outputs > 0).to(outputs)


def _double(gradient: Params) -> Params:
    return {name: part.detach().to("cpu", torch.float64) for name, part in gradient.items()}


def _verified(
    observation: Observation, found: tuple[Tensor, ...], evidence: dict[str, Any], watch: Watch, status: Status
) -> Reconstruction:
    """Run the client on what was found: only an update that comes out the same makes it exact."""
    labels, network = granted_or_recovered(observation), observation.network
    tried = []
    for inputs in found:
        images = network.denormalize(inputs.reshape(observation.batch_shape).to(network.device, network.dtype))
        loss = relative_matching_cost(observation, images, labels)
        tried.append((loss, images))
        if loss < EXACT:
            break
    loss, images = min(tried, key=lambda pair: pair[0])
    depth, count = evidence["layers_inverted"], evidence["layers"]
    how = "down to the image" if depth == 0 else f"down to layer {depth} of {count}, and inverted the features there"
    if loss != tried[0][0]:  # not what was solved for, so that nothing is known of other pictures
        evidence = {name: value for name, value in evidence.items() if name != "unseen"}
    finding = exactness(loss, f"the network was peeled {how}", evidence)
    if loss < EXACT and status is Status.STOPPED:  # nothing is left to do
        status = Status.FINISHED
    candidate = Candidate(images, labels, loss, status, iterations=max(1, len(watch.history)), history=watch.history)
    return Reconstruction(images, labels, loss, status, (candidate,), (finding,))
