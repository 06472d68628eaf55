"""How far peeling will reach in a network, read from its layers before anything is solved.

Peeling goes on through what linear equations determine. It ends at a ReLU whose inputs were solved from rounded
numbers where no convolution in front has equations to spare, at max pooling with too few equations to find the winners
by, at an average over more places than channels, and at any layer that it does not know.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from inversefed.attacks.exact.peel.conv_block import affine, block_below
from inversefed.attacks.exact.peel.conv_input import require_plain
from inversefed.attacks.exact.peel.preceding_conv import (
    PrecedingConv,
    overdetermined,
    preceding_conv,
    require_enough,
    require_shifts,
)
from inversefed.attacks.exact.peel.state import Branch
from inversefed.errors import UnsupportedNetworkError
from inversefed.networks.graph import Affine
from inversefed.networks.layer_chain import Concatenation, Layer, Residual, flat

__all__ = ["Forecast", "cannot_peel", "easiest_first", "ends_block", "forecast", "pools"]

_FREE = (
    nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ReLU, nn.Linear,
    nn.ZeroPad2d, Affine,
)  # fmt: skip
_KINKS = (nn.ReLU, nn.LeakyReLU)
_AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_NOTHING = torch.zeros(1, 1, 1, 1)
"""In the place of the loss gradient that comes back on another way: here it is enough that it will be known."""


@dataclass(frozen=True)
class Forecast:
    """Where peeling is expected to end.

    Args:
        left: the layers that are left, none at the image.
        count: how many layers there are, those within a sum of two ways counted one by one.
        values: how many numbers come out of the layer where it ends; those of the image at depth 0.
        why: what ends it, empty at the image.
        alternates: whether a max pooling on the way is passed by an alternation, which may not settle.
    """

    left: tuple[Layer, ...]
    count: int
    values: int
    why: str = ""
    alternates: bool = False

    @property
    def depth(self) -> int:
        """How many layers are left, counted likewise; 0 at the image."""
        return len(flat(self.left))


def forecast(layers: tuple[Layer, ...], image_shape: tuple[int, int, int], number: int = 1) -> Forecast:
    """Follow the way of peeling by the kinds of layers and by counting.

    Args:
        layers: the network as a chain, its head a linear layer with bias.
        image_shape: `(c, h, w)`.
        number: how many examples are peeled at once.

    Raises:
        UnsupportedNetworkError: nothing below the head can be peeled.

    >>> from inversefed.networks.layer_chain import chain
    >>> from inversefed.fl.network import freeze
    >>> smooth = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 2))
    >>> forecast(chain(freeze(smooth, (3, 8, 8))), (3, 8, 8)).depth
    0
    """
    way = _down(_Way(layers[:-1], image_shape, number))
    values = math.prod(way.left[-1].shape if way.left else image_shape)
    return Forecast(way.left, len(flat(layers)), values, way.why, way.alternates)


@dataclass(frozen=True)
class _Way:
    """What `PeelState` says of numbers, without them."""

    left: tuple[Layer, ...]
    image_shape: tuple[int, int, int]
    number: int
    known: bool = True
    rounded: bool = False
    alternates: bool = False
    fork: Branch | None = None
    why: str = ""

    def below(self, **changes: object) -> "_Way":
        return replace(self, left=self.left[:-1], **changes)  # type: ignore[arg-type]


def _down(way: _Way) -> _Way:
    floor, trusted = 0 if way.fork is None else way.fork.floor, way
    while len(way.left) > floor and not way.why:
        try:
            way = _step(way)
        except UnsupportedNetworkError as error:
            if not way.rounded:
                raise
            way = replace(way, why=str(error))
        if way.why and not way.known:
            return replace(trusted, why=way.why)
        trusted = way if way.known else trusted
    return way


def _step(way: _Way) -> _Way:
    module, left = way.left[-1].module, way.left
    if ends_block(left):
        return _above_block(way)
    if isinstance(module, Residual):
        first = module.shortcut[0] if module.shortcut else None
        beside = first if first is not None and first.trained and isinstance(first.module, nn.Conv2d) else None
        fork = Branch(len(left) - 1, _NOTHING, beside, outer=way.fork)
        return replace(_down(replace(way, left=(*left[:-1], *module.body), known=False, fork=fork)), fork=way.fork)
    if isinstance(module, Concatenation):
        return _through(way, module)
    if isinstance(module, _KINKS) and (way.rounded or not way.known):
        why = _kink(way, preceding_conv(left[:-1], way.fork, way.image_shape))
        if why and pools(left) and isinstance(module, nn.ReLU):
            return _above_block(way)
        return replace(way, why=why) if why else way.below()
    if isinstance(module, _AVERAGES):
        return way.below(known=way.known and left[-1].shape == (left[-2].shape if len(left) > 1 else way.image_shape))
    if not way.known and isinstance(module, nn.Sigmoid | nn.Tanh):
        raise cannot_peel(module)
    solved = _check(left, way.image_shape, way.number, way.known)
    return way.below(rounded=way.rounded or solved, known=way.known or solved)


def _above_block(way: _Way) -> _Way:
    """In front of a convolution that max pooling comes behind, or a ReLU whose sides only its alternation finds."""
    if way.number > 1 or not way.known:
        raise cannot_peel(way.left[-1].module)
    start, why = _block(way.left, way.image_shape)
    return replace(way, why=why) if why else replace(way, left=way.left[:start], rounded=True, alternates=True)


def _through(way: _Way, joined: Concatenation) -> _Way:
    """In front of ways whose channels stand side by side, by that of them which leads there."""
    if not way.known:
        raise cannot_peel(joined)
    fork, ends = Branch(len(way.left) - 1, outer=way.fork), list[str]()
    for number in easiest_first(joined):
        try:
            found = _down(replace(way, left=(*way.left[:-1], *joined.ways[number]), fork=fork))
        except UnsupportedNetworkError as error:
            ends.append(str(error))
            continue
        if not found.why:
            return replace(found, fork=way.fork)
        ends.append(found.why)
    return replace(way, why=ends[-1])


def _kink(way: _Way, feed: PrecedingConv | None) -> str:
    """What keeps peeling from getting past a ReLU whose side is not exactly known."""
    name = type(way.left[-1].module).__name__
    if not way.known:
        if feed is None or feed.added is not None or isinstance(way.left[-1].module, nn.LeakyReLU):
            raise cannot_peel(way.left[-1].module)
        require_shifts(feed, way.number, way.left[-1].shape)
        return ""
    if feed is not None and overdetermined(feed, way.number):
        return ""
    return f"what comes out of this {name} is known up to rounding, and so the side of its kink is not"


def easiest_first(joined: Concatenation) -> list[int]:
    """The numbers of the ways whose input is looked for: the input itself, then those with the most channels."""
    return sorted(range(len(joined.ways)), key=lambda i: -joined.ways[i][-1].shape[0] if joined.ways[i] else -math.inf)


def ends_block(layers: tuple[Layer, ...]) -> bool:
    """Whether max pooling stands here, before or behind a ReLU."""
    last = [type(layer.module) for layer in layers[-2:]]
    return last[-1] is nn.MaxPool2d or last == [nn.MaxPool2d, nn.ReLU]


def pools(layers: tuple[Layer, ...]) -> bool:
    """Whether there is max pooling among the layers."""
    return any(isinstance(layer.module, nn.MaxPool2d) for layer in layers)


def cannot_peel(module: nn.Module) -> UnsupportedNetworkError:
    """Build the error for a layer that peeling has no equations for."""
    return UnsupportedNetworkError(
        f"peeling stops at {module}: what went into it is not determined by linear equations"
    )


def _block(layers: tuple[Layer, ...], image_shape: tuple[int, int, int]) -> tuple[int, str]:
    """Where the block begins, and what keeps peeling from getting there."""
    block = block_below(layers, len(layers), image_shape)
    outputs, _, height, width = block.weight.shape
    equations, pixels = outputs * height * width, block.shape[1] * block.shape[2]
    if block.start == 0:
        return 0, "the winners of the first max pooling are looked for together with the image"
    if equations < pixels:
        return 0, f"max pooling hides which of its inputs won, and {block.name} has {equations} equations a channel "\
                  f"for {pixels} pixels"  # fmt: skip
    return block.start, ""


def _check(layers: tuple[Layer, ...], image_shape: tuple[int, int, int], number: int, known: bool) -> bool:
    """Check that the last layer can be peeled; whether its input has to be solved for, and so is rounded."""
    module = layers[-1].module
    if isinstance(module, nn.Conv2d | nn.Linear):
        layers[-1].require_gradient()
    if isinstance(module, nn.Conv2d):
        shape = layers[-2].shape if len(layers) > 1 else image_shape
        require_plain(module, (shape[0], number * shape[1], shape[2]))
        require_enough(module, shape, layers[-1].shape, number, known)
        return True
    if isinstance(module, nn.BatchNorm2d):
        affine(module)
    elif not isinstance(module, _FREE):
        raise cannot_peel(module)
    return False
