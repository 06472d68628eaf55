"""The recursion of peeling: from the head to the image, one layer after another, while the numbers can be trusted.

head:        a = gb^T gW / gb^T gb,  delta = W^T gb              (one example; else a by `recover_head_inputs`)
activation:  z = act^{-1}(a),  delta <- delta * act'(z)
BatchNorm:   x = (z - t) / s,  delta <- s * delta               (eval mode)
convolution: solve for a (see `conv_input`),  delta <- W^T delta
average:     delta is spread evenly, a is not known; a ReLU in front of it: see `relu_pattern_pooled`
sum:         delta goes both ways and comes back as the sum; a is what comes out of the longer way's peeling
channels:    a is one way's outputs, or comes out of one way's peeling; delta comes back through all ways, as their sum
"""

import itertools
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from inversefed.attacks.exact.peel.conv_block import affine, block_below
from inversefed.attacks.exact.peel.conv_input import solve_convolution, transposed
from inversefed.attacks.exact.peel.feature_inversion import search_features, shallow
from inversefed.attacks.exact.peel.forecast import cannot_peel, easiest_first, ends_block, pools
from inversefed.attacks.exact.peel.max_unpool import unpool
from inversefed.attacks.exact.peel.preceding_conv import never_negative, require_enough
from inversefed.attacks.exact.peel.relu_pattern import equations_beside, relu_pattern
from inversefed.attacks.exact.peel.state import Branch, PeelState, Setting
from inversefed.attacks.exact.watch import Stopped
from inversefed.errors import UnsupportedNetworkError
from inversefed.networks.graph import Affine
from inversefed.networks.layer_chain import Concatenation, Layer, Residual, run
from inversefed.thresholds import DETERMINED

__all__ = ["descend", "step"]

_FIRST = 60
"""Steps for a first image, which need not be good."""


def descend(setting: Setting, front: PeelState) -> PeelState:
    """Go down as far as the numbers can be trusted, within a sum of two ways to where they part.

    Where they lead no further, it ends at the last front at which some were known and all sides were checked.

    Args:
        setting: what peeling works on.
        front: where it starts.

    Raises:
        UnsupportedNetworkError: nothing behind the first layer that has to be solved for can be peeled.
    """
    floor, trusted = 0 if front.fork is None else front.fork.floor, front
    while front.depth > floor and not front.ended and not setting.watch.stop():
        try:
            below = step(setting, front)
        except Stopped:
            below = None
        except UnsupportedNetworkError:
            if not front.rounded:
                raise
            below = None
        if below is None:
            return replace(trusted, ended=True)
        front = below
        trusted = front if front.known and front.checked else trusted
    return front


def step(setting: Setting, front: PeelState) -> PeelState | None:
    """One layer or block down; nothing where the numbers do not tell the side of a kink, or the equations are few."""
    layer = front.left[-1]
    if ends_block(front.left):
        return _below_block(setting, front)
    match layer.module:
        case nn.ReLU() | nn.LeakyReLU():
            below = _below_kink(setting, front, layer.module)
            found = below is not None and below.checked
            return below if found or not (front.rounded and pools(front.left)) else _below_block(setting, front)
        case nn.Conv2d():
            return _below_convolution(setting, front, layer, layer.module)
        case nn.Linear():
            return _below_linear(setting, front, layer, layer.module)
        case nn.AdaptiveAvgPool2d() | nn.AvgPool2d():
            return _below_average(setting, front, layer.module)
        case Residual():
            return _below_sum(setting, front, layer.module)
        case Concatenation():
            return _below_concatenation(setting, front, layer.module)
    return _below(setting, front)


def _shape(setting: Setting, left: tuple[Layer, ...]) -> tuple[int, ...]:
    """What comes out of these layers, of one example."""
    return left[-1].shape if left else setting.image_shape


def _below(setting: Setting, front: PeelState) -> PeelState:
    """In front of a layer that is undone number by number."""
    module, parts = front.left[-1].module, (front.values, front.delta, front.weight)
    values, delta, weight = parts
    match module:
        case nn.Flatten() | nn.Identity() | nn.Dropout() | nn.Dropout2d():
            shape = (len(values), *_shape(setting, front.left[:-1]))
            return front.below(*(part.reshape(shape) for part in parts))
        case nn.Sigmoid() | nn.Tanh() if front.known:
            values, slope = _inverse(module, values, setting.eps)
            return front.below(values, delta * slope, weight * slope)
        case Affine():
            return front.below((values - module.shift) / module.scale, delta * module.scale, weight * abs(module.scale))
        case nn.ZeroPad2d():
            left, right, top, bottom = module.padding
            crop = [part[..., top : part.shape[-2] - bottom, left : part.shape[-1] - right] for part in parts]
            return front.below(*crop)
        case nn.BatchNorm2d():
            scale, shift = affine(module)
            return front.below((values - shift) / scale, delta * scale, weight * scale.abs())
    raise cannot_peel(module)


def _inverse(module: nn.Module, outputs: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """What went into a smooth activation, and its slope there."""
    if isinstance(module, nn.Sigmoid):
        inside = outputs.clamp(eps, 1 - eps)
        return torch.logit(inside), inside * (1 - inside)
    inside = outputs.clamp(-1 + eps, 1 - eps)
    return torch.atanh(inside), 1 - inside.square()


def _below_kink(setting: Setting, front: PeelState, module: nn.ReLU | nn.LeakyReLU) -> PeelState | None:
    negative = module.negative_slope if isinstance(module, nn.LeakyReLU) else 0.0
    told = relu_pattern(setting, front, negative)
    if told is None:
        return None
    slope = torch.where(told.on, 1.0, negative).to(front.delta)
    values = torch.where(told.on, front.values, front.values / negative if negative else 0.0)
    below = front.below(values, front.delta * slope, front.weight * slope)
    return replace(below, tolerance=told.tolerance, checked=told.checked)


def _below_linear(setting: Setting, front: PeelState, layer: Layer, module: nn.Linear) -> PeelState:
    gradient, delta = layer.weight_gradient(setting.gradient), front.delta
    if len(delta) == 1:
        values = (delta @ gradient) / delta.square().sum()
    else:
        values = torch.linalg.lstsq(delta.T, gradient).solution
    below = front.below(values, delta @ module.weight.detach(), torch.ones_like(values))
    return replace(below, exact=front.exact and len(delta) == 1)


def _below_convolution(setting: Setting, front: PeelState, layer: Layer, module: nn.Conv2d) -> PeelState | None:
    channels, height, width = _shape(setting, front.left[:-1])
    require_enough(module, (channels, height, width), front.left[-1].shape, len(front.delta), front.known)
    solved = solve_convolution(
        module,
        (channels, height, width),
        layer.weight_gradient(setting.gradient),
        front.delta,
        front.values,
        front.weight,
        tolerance=setting.eps * 1e-3,
        go_on=setting.watch.go_on,
        beside=equations_beside(setting, front, (channels, height, width)) if front.first else None,
        signed=front.tolerance if never_negative(front.left[:-1]) else 0.0,
    )
    if not front.checked and (solved.misfit > front.tolerance or not solved.determined):
        return None  # the sides behind it were wrong
    settled = None if bool(solved.settled.all()) else solved.settled
    if front.first and settled is not None:
        return None  # what comes together where two ways part has to be known in full
    delta = transposed(module, (channels, height, width), front.delta)
    weight = solved.settled.to(solved.values)[:, None, None].expand_as(solved.values)
    return replace(
        front.below(solved.values, delta, weight), exact=False, rounded=True, unseen=max(front.unseen, solved.unseen),
        checked=True, settled=settled,
    )  # fmt: skip


def _below_average(setting: Setting, front: PeelState, module: nn.Module) -> PeelState:
    inside = torch.zeros(len(front.delta), *_shape(setting, front.left[:-1]), dtype=front.delta.dtype)
    if inside.shape == front.delta.shape:
        return front.below(front.values, front.delta, front.weight)
    return front.without_values(_pulled_back(module, inside, front.delta))


def _below_sum(setting: Setting, front: PeelState, both: Residual) -> PeelState | None:
    """Peel the longer way; the loss gradient in front of the sum is that of both ways together."""
    nothing, shortcut, way = torch.zeros_like(front.values), both.shortcut, (*front.left[:-1], *both.body)
    inputs = [torch.zeros(len(front.delta), *_shape(setting, front.left[:-1]), dtype=front.delta.dtype)]
    for layer in shortcut:
        if not isinstance(layer.module, nn.Conv2d | nn.BatchNorm2d | nn.Identity | nn.AvgPool2d):
            raise cannot_peel(layer.module)
        inputs.append(layer.module(inputs[-1]))
    deltas = [front.delta]  # from behind to the front of the other way
    for layer, seen in zip(reversed(shortcut), reversed(inputs[:-1]), strict=True):
        deltas.append(_pulled_back(layer.module, seen, deltas[-1]))
    fork = Branch(front.depth - 1, deltas[-1], outer=front.fork)
    if shortcut and isinstance(shortcut[0].module, nn.Conv2d) and shortcut[0].trained:
        fork = replace(fork, beside=shortcut[0], delta=deltas[-2])
    start = replace(front, left=way, values=nothing, weight=nothing, exact=False, settled=None, fork=fork)
    inner = descend(setting, start)
    if inner.depth == fork.floor:
        return replace(inner, delta=inner.delta + deltas[-1], fork=front.fork)
    return replace(inner, ended=True, also=(*inner.also, *front.shown)) if inner.known else None


def _below_concatenation(setting: Setting, front: PeelState, joined: Concatenation) -> PeelState | None:
    """In front of the ways: their input is read off or peeled, and the loss gradient comes back through all of them."""
    if not front.known:
        raise cannot_peel(joined)
    inputs, floor, ends = _shape(setting, front.left[:-1]), front.depth - 1, list[tuple[PeelState, int]]()
    channels = [way[-1].shape[0] if way else inputs[0] for way in joined.ways]
    last = list(itertools.accumulate(channels))
    slices = [slice(end - count, end) for end, count in zip(last, channels, strict=True)]
    for number in easiest_first(joined):
        own = slices[number]
        way = replace(
            front, left=(*front.left[:-1], *joined.ways[number]), values=front.values[:, own],
            delta=front.delta[:, own], weight=front.weight[:, own],
            settled=None if front.settled is None else front.settled[own], fork=Branch(floor, outer=front.fork),
        )  # fmt: skip
        with suppress(UnsupportedNetworkError):
            inner = descend(setting, way)
            if inner.depth == floor and bool((inner.weight > 0).all()):
                ends.append((replace(inner, settled=None, fork=front.fork), number))
                if inner.unseen <= max(front.unseen, DETERMINED):
                    break
    if not ends:
        return None
    inner, peeled = min(ends, key=lambda end: end[0].unseen)
    delta = inner.delta
    for number, (layers, own) in enumerate(zip(joined.ways, slices, strict=True)):
        if number != peeled:
            delta = delta + _pulled_back(partial(run, layers), inner.values, front.delta[:, own])
    return replace(inner, delta=delta)


def _pulled_back(module: Callable[[Tensor], Tensor], inputs: Tensor, delta: Tensor) -> Tensor:
    """The loss gradient in front of layers that are run on these inputs; of linear ones on any."""
    return torch.func.vjp(module, inputs)[1](delta)[0]  # type: ignore[no-any-return]


def _below_block(setting: Setting, front: PeelState) -> PeelState | None:
    """In front of a convolution with max pooling behind it, or a ReLU alone, of one example."""
    block = block_below(front.left, front.depth, setting.image_shape)
    outputs, _, height, width = block.weight.shape
    if not front.known or front.settled is not None:
        return None
    if block.start == 0 or outputs * height * width < block.shape[1] * block.shape[2]:
        return None
    watch, image, values = setting.watch, front.image, front.values[0]
    if image is None:
        function = shallow(front.left, torch.float32)
        image = watch.keep(search_features(function, values[None], setting.image_shape, _FIRST, watch)[0])
    if watch.stopped:
        return None
    gradient = block.weight_gradient(setting.gradient)
    found = unpool(front.left, block, values, front.delta[0], gradient, image, watch)
    if not found.settled:
        return None
    return PeelState(
        front.left[: block.start], found.values[None], found.delta[None], torch.ones_like(found.values)[None],
        exact=False, rounded=True, image=found.image, unseen=1.0, tolerance=front.tolerance, fork=front.fork,
    )  # fmt: skip
