"""How far peeling will come in a network, read off its layers before anything is solved.

Peeling goes on through what linear equations determine. It ends at a ReLU whose inputs were solved from rounded
numbers, at max pooling with too few equations to find the winners by, and at any layer that it does not know.
"""

import math
from dataclasses import dataclass

from torch import nn

from inversefed.attacks.exact.block import affine, block_below
from inversefed.attacks.exact.convolution import require_plain
from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.chain import Layer

__all__ = ["Reach", "cannot_peel", "ends_block", "pools", "reach"]

_FREE = (
    nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ReLU, nn.Linear
)  # fmt: skip


@dataclass(frozen=True)
class Reach:
    """Where peeling is expected to end.

    Args:
        depth: how many layers are left, 0 at the image.
        count: how many there are.
        values: how many numbers come out of the layer where it ends; those of the image at depth 0.
        why: what ends it, empty at the image.
        alternates: whether a max pooling on the way is passed by an alternation, which may not settle.
    """

    depth: int
    count: int
    values: int
    why: str = ""
    alternates: bool = False


def reach(layers: tuple[Layer, ...], image_shape: tuple[int, int, int]) -> Reach:
    """Follow the way of peeling by the kinds of layers and by counting.

    Args:
        layers: the network as a chain, its head a linear layer with bias.
        image_shape: `(c, h, w)`.

    Raises:
        UnsupportedNetworkError: nothing below the head can be peeled.

    >>> from inversefed.fl.chain import chain
    >>> from inversefed.fl.network import freeze
    >>> smooth = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 2))
    >>> reach(chain(freeze(smooth, (3, 8, 8))), (3, 8, 8)).depth
    0
    """
    depth, rounded, alternates, why = len(layers) - 1, False, False, ""
    while depth and not why:
        left = layers[:depth]
        try:
            if ends_block(left, rounded):
                start, why = _block(left, image_shape)
                depth, rounded, alternates = (depth, rounded, alternates) if why else (start, True, True)
            elif rounded and isinstance(left[-1].module, nn.ReLU | nn.LeakyReLU):
                kind = type(left[-1].module).__name__
                why = f"what comes out of this {kind} is known up to rounding, and so the side of its kink is not"
            else:
                depth, rounded = depth - 1, _step(left, image_shape) or rounded
        except UnsupportedNetworkError as error:
            if not rounded:
                raise
            why = str(error)
    values = math.prod(layers[depth - 1].shape if depth else image_shape)
    return Reach(depth, len(layers), values, why, alternates)


def ends_block(layers: tuple[Layer, ...], rounded: bool) -> bool:
    """Whether max pooling stands here, before or behind a ReLU, or further down where ReLU's side is not exact."""
    last = [type(layer.module) for layer in layers[-2:]]
    if last[-1] is nn.MaxPool2d or last == [nn.MaxPool2d, nn.ReLU]:
        return True
    return rounded and last[-1] is nn.ReLU and pools(layers)


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


def _step(layers: tuple[Layer, ...], image_shape: tuple[int, int, int]) -> bool:
    """Check that the last layer can be peeled; whether its input has to be solved for, and so is rounded."""
    module = layers[-1].module
    if isinstance(module, nn.Conv2d):
        shape = layers[-2].shape if len(layers) > 1 else image_shape
        require_plain(module, (shape[0], shape[1], shape[2]))
        return True
    if isinstance(module, nn.BatchNorm2d):
        affine(module)
    elif not isinstance(module, _FREE):
        raise cannot_peel(module)
    return False
