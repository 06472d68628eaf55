"""Peel a network from its head to its images: at every layer the input solves linear equations.

For one example, or several that `recover_head_inputs` tells apart at the head, and a chain of layers in which two
branches may be summed, `layers` goes from layer to layer. A smooth activation is peeled down to the image. Under ReLU
and LeakyReLU the side of the kink is known exactly at the head's input (a zero is a zero); further down the equations
of the next convolution tell it, where they are many (see `relu_pattern`), and behind an average over places they
alone (see `relu_pattern_pooled`). Max pooling hides which pixel won: above a convolution the winners are found by
alternation (see `max_unpool`), in the first layers together with the image (see `image_behind_max_pool`). Where
peeling stops, each image is found from the features it reached (see `feature_inversion`). The result is called exact
only if the forward operator, run once, reproduces the update.
"""

import math
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from inversefed.attacks.exact.peel.conv_block import block_below
from inversefed.attacks.exact.peel.feature_inversion import search_features, shallow
from inversefed.attacks.exact.peel.feature_targets import invert_each
from inversefed.attacks.exact.peel.forecast import forecast, pools
from inversefed.attacks.exact.peel.image_behind_max_pool import image_from_both, image_from_pooled
from inversefed.attacks.exact.peel.layers import descend, step
from inversefed.attacks.exact.peel.max_unpool import zeroed
from inversefed.attacks.exact.peel.state import PeelState, Setting
from inversefed.attacks.exact.verify import matched, verified
from inversefed.attacks.exact.watch import Watch
from inversefed.attacks.head.gradient import at_head
from inversefed.attacks.head.head_inputs import recover_head_inputs
from inversefed.attacks.head.output_activation import behind_head
from inversefed.attacks.labels import granted_or_recovered_labels
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.clients.local_optimizers import LocalSGD
from inversefed.fl.clients.views import inner_client
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.networks.architecture import architecture
from inversefed.networks.layer_chain import Concatenation, Layer, Residual, chain, flat
from inversefed.thresholds import EXACT
from inversefed.types import Budget, Candidate, Params, Reconstruction, Status, Targets

__all__ = ["Peel"]

_SEARCH = 600
"""Steps of the search for an image behind max pooling that could not be peeled."""

_SHALLOW = 120
"""The same behind one block, where it is a start."""

_HOLDS = 200
"""Roundings up to which equations hold."""

_SOLVED = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, Residual, Concatenation)
"""Layers whose input has to be solved for."""

_ROUNDS = 900
"""About the most rounds that all of these and the alternations of two blocks come to."""


@dataclass(frozen=True)
class Peel:
    """Recover pictures exactly, layer by layer.

    Args:
        evaluations: most evaluations of the shallow layers where their features have to be inverted.
        starts: most searches from other starts where that ends in a local minimum, which takes a minute; 0 for none.
    """

    evaluations: int = 1500
    starts: int = 8

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Peel; the generator is not used. A search that the budget stops leaves the best so far.

        Raises:
            ThreatModelError: parts of the update are missing, or its examples cannot be told apart.
            UnsupportedNetworkError: the network is no chain, or a layer cannot be peeled.
        """
        network = observation.network
        watch = Watch(
            budget, lambda inputs: _examples(network, inputs),
            rounds=_ROUNDS if architecture(network).max_pools else self.evaluations // 10,
        )  # fmt: skip
        setting = _setting(observation, watch)
        depth, found, interrupted = len(setting.layers), torch.zeros(observation.batch_shape).double(), False
        left_open, labels = None, None
        try:
            front, labels = head_of(setting, observation)
            front = descend(setting, front)
            if len(front.values) > 1 and front.left:
                _require_features(front, math.prod(network.image_shape))
            depth, found = len(flat(front.left)), _images(setting, front, self.evaluations, self.starts)
            left_open = front.unseen if depth == 0 else None
        except KeyboardInterrupt:
            interrupted = True
        except (torch.linalg.LinAlgError, ArithmeticError) as error:  # type: ignore[attr-defined]
            raise UnsupportedNetworkError(f"the equations of a layer tell nothing of its input ({error})") from error
        status = Status.INTERRUPTED if interrupted else Status.STOPPED if watch.stopped else Status.FINISHED
        evidence: dict[str, Any] = {"layers": len(flat(setting.layers)), "layers_inverted": depth}
        labels = granted_or_recovered_labels(observation) if labels is None else labels
        return self._verified(observation, labels, (found, *watch.kept), evidence, left_open, watch, status)

    def _verified(
        self,
        observation: Observation,
        labels: Targets,
        found: tuple[Tensor, ...],
        evidence: dict[str, Any],
        left_open: float | None,
        watch: Watch,
        status: Status,
    ) -> Reconstruction:
        """Run the client on what was found: only an update that comes out the same makes it exact."""
        network, tried = observation.network, []
        for inputs in found:
            images = _examples(network, inputs)
            images, loss = matched(observation, images, labels, watch.stop)
            tried.append((loss, images))
            if loss < EXACT:
                break
        loss, images = min(tried, key=lambda pair: pair[0])
        depth, count = evidence["layers_inverted"], evidence["layers"]
        how = (
            "down to the image" if depth == 0 else f"down to layer {depth} of {count}, and inverted the features there"
        )
        if loss != tried[0][0]:  # not what was solved for, so that nothing is known of other pictures
            left_open = None
        if loss < EXACT and status is Status.STOPPED:  # nothing is left to do
            status = Status.FINISHED
        candidate = Candidate(
            images, labels, loss, status, iterations=max(1, len(watch.history)), history=watch.history
        )
        return verified(self, candidate, f"the network was peeled {how}", evidence, left_open)

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
        _head_layer(setting)
        number, pixels = observation.num_examples, math.prod(setting.image_shape)
        far = forecast(setting.layers, setting.image_shape, number)
        alternation = "; the winners of max pooling are found by an alternation, which may not settle"
        how = f"peels {far.count - far.depth} of {far.count} layers{alternation if far.alternates else ''}"
        how += "" if number == 1 else f" of {number} examples at once, if the head tells them apart"
        if far.depth == 0:
            return f"{how}, down to the image"
        if number > 1 and far.values < pixels:
            raise UnsupportedNetworkError(f"peeling ends at {far.values} features for {pixels} pixels, since {far.why}")
        return f"{how}; then it looks for the image's {pixels} values behind {far.values} features, since {far.why}"


def known_exactly(observation: Observation) -> tuple[tuple[Layer, ...], PeelState]:
    """The network as a chain, and what its head gives away before any layer has to be solved for.

    Args:
        observation: the update of one example.

    Raises:
        ThreatModelError: the update is not that of one example.
        UnsupportedNetworkError: the network is no chain, or its head is not linear with bias.
    """
    if observation.num_examples != 1:
        raise ThreatModelError(f"what is known without solving is that of one example, not {observation.num_examples}")
    setting = _setting(observation, Watch())
    front, _ = head_of(setting, observation)
    with suppress(UnsupportedNetworkError):
        while front.left and not isinstance(front.left[-1].module, _SOLVED):
            below = step(setting, front)
            if below is None:
                break
            front = below
    return setting.layers, front


def _examples(network: Network, inputs: Tensor) -> Tensor:
    """Examples `[n, *shape]` of what was found as normalized pictures, `[n, c, h, w]`."""
    return network.denormalize(inputs.reshape(-1, *network.space.shape).to(network.device, network.dtype))


def _setting(observation: Observation, watch: Watch, layers: tuple[Layer, ...] | None = None) -> Setting:
    network = observation.network
    if missing := [name for name in network.params if name not in observation.update]:
        raise ThreatModelError(
            f"peeling needs the whole update; {len(missing)} tensors were not sent, {missing[0]} first"
        )
    if observation.num_examples > 1 and not _one_gradient(observation):
        raise ThreatModelError(
            "several examples are peeled from one gradient of all of them, not from "
            f"{inner_client(observation.client)!r}"
        )
    # The bounds of a row or a series have fewer axes than the picture of height one that it is read as.
    low, high = (network.normalize(bound).double().cpu().reshape(-1, 1, 1) for bound in (network.low, network.high))
    layers = _to_head(network, chain(network) if layers is None else layers)
    return Setting(
        layers, _double(observation.gradient), network.grid, (low, high),
        torch.finfo(network.dtype).eps, watch,
    )  # fmt: skip


def _to_head(network: Network, layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """The layers up to the head, where what stands behind it, such as a log-softmax, can be counted to the loss."""
    last = next((i for i, layer in enumerate(layers) if layer.name == network.head), len(layers))
    if last + 1 < len(layers) and behind_head(network) is not None:
        return layers[: last + 1]
    return layers


def _one_gradient(observation: Observation) -> bool:
    """Whether the update is the gradient of one step, in its scale."""
    steps = observation.steps
    return (
        steps is not None and steps.alone and steps.count == 1 and steps.optimizer == LocalSGD() and not steps.proximal
    )


def _head_layer(setting: Setting) -> tuple[nn.Linear, Tensor, Tensor]:
    """The last layer and the gradient of its weight and bias."""
    layer, gradient = setting.layers[-1], setting.gradient
    weight, bias = gradient.get(f"{layer.name}.weight"), gradient.get(f"{layer.name}.bias")
    if not isinstance(layer.module, nn.Linear) or weight is None or bias is None or not bool(bias.any()):
        raise UnsupportedNetworkError(
            "peeling starts at a last linear layer with bias, and this network ends otherwise"
        )
    return layer.module, weight, bias


def head_of(setting: Setting, observation: Observation) -> tuple[PeelState, Targets | None]:
    """In front of the head, and the labels where they came out with it."""
    module, weight, bias = _head_layer(setting)
    if observation.num_examples == 1:
        features, delta = (bias @ weight)[None] / bias.square().sum(), bias[None] @ module.weight.detach()
        front = PeelState(
            setting.layers[:-1], features, delta, torch.ones_like(features), tolerance=_HOLDS * setting.eps
        )
        return front, None
    known, loss = recover_head_inputs(observation, setting.watch.stop), at_head(observation.network).loss
    features, labels = known.features.cpu(), known.labels.cpu()
    logits = module(features).requires_grad_()
    (pulls,) = torch.autograd.grad(loss(logits, labels), logits)
    delta = pulls @ module.weight.detach()
    weight, tolerance = torch.ones_like(features), _HOLDS * setting.eps
    return PeelState(setting.layers[:-1], features, delta, weight, exact=False, tolerance=tolerance), known.labels


def _images(setting: Setting, front: PeelState, evaluations: int, starts: int) -> Tensor:
    """The normalized images, `[n, c, h, w]`, from where peeling stopped."""
    layers, shape, watch = front.left, setting.image_shape, setting.watch
    if not layers:
        return front.values
    if watch.stopped:
        return watch.kept[-1].reshape(-1, *shape) if watch.kept else torch.zeros(len(front.values), *shape)
    if pools(layers):
        return _image_behind_pooling(setting, front)[None]
    return invert_each((*front.shown, *front.also), setting.bounds, shape, setting.eps, evaluations, watch, starts)


def _image_behind_pooling(setting: Setting, front: PeelState) -> Tensor:
    layers, shape, watch, values = front.left, setting.image_shape, setting.watch, zeroed(front.values[0])
    first = all(not isinstance(layer.module, nn.Conv2d) for layer in layers[1:])
    function, rounds = shallow(layers, torch.float32), _SHALLOW if first else _SEARCH
    near = watch.keep(search_features(function, values[None], shape, rounds, watch)[0])
    if not first or watch.stopped or front.settled is not None:
        return near
    try:
        block = block_below(layers, front.depth, shape)
    except UnsupportedNetworkError:
        return near
    gradient = block.weight_gradient(setting.gradient)
    apart = len(set(block.places.flatten().tolist())) == block.places.numel()
    if apart and int((values > 0).sum()) >= near.numel():
        found = image_from_pooled(block, values, near, setting.bounds, watch)
    elif front.known and gradient.numel() >= near.numel():
        found = image_from_both(block, values, front.delta[0], gradient, near, setting.bounds, watch)
    else:
        return near
    return min(near, found.image, key=lambda image: float((function(image[None].float()) - values).norm()))


def _require_features(front: PeelState, pixels: int) -> None:
    """Refuse a front of several examples that is of no use: one that did not leave the head, or knows too little.

    Raises:
        UnsupportedNetworkError: it is such a one.
    """
    if not front.rounded:
        raise UnsupportedNetworkError("what went into the head leads no further where several examples mix")
    if front.values[0].numel() < pixels:
        raise UnsupportedNetworkError(f"peeling ends at {front.values[0].numel()} features for {pixels} pixels")


def _double(gradient: Params) -> Params:
    return {name: part.detach().to("cpu", torch.float64) for name, part in gradient.items()}
