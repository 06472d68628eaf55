"""A convolution with its BatchNorm, ReLU and max pooling, inverted as one step.

    v = max(0, max_{j in window} (W a + b)_j)

ReLU and max pooling commute, so their order does not matter, and BatchNorm in eval mode is part of `W` and `b`. What
goes back through a block is one number a window, at the pixel that won: which one that is, the gradient does not say.
"""

from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversefed.attacks.exact.peel.conv_input import require_plain
from inversefed.errors import UnsupportedNetworkError
from inversefed.networks.layer_chain import Layer
from inversefed.networks.layer_shapes import padding_of
from inversefed.types import Params

__all__ = ["Block", "KnownBlock", "affine", "block_below"]


@dataclass(frozen=True, eq=False)
class Block:
    """One convolution, and the ReLU and max pooling behind it.

    Args:
        name: of the convolution in the network.
        start: how many layers are in front of it.
        weight: `[o, c, k, l]`, BatchNorm folded in.
        bias: `[o]`, likewise.
        scale: by what BatchNorm multiplied each output, `[o]`.
        stride: of the convolution.
        padding: of the convolution.
        shape: `(c, h, w)` of the input.
        grid: `(o, p, q)` of the convolution's output.
        places: the pixels of that output which each window sees, `[windows, taps]`, as flat indices.
    """

    name: str
    start: int
    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    scale: Tensor = field(repr=False)
    stride: tuple[int, int]
    padding: tuple[int, int]
    shape: tuple[int, int, int]
    grid: tuple[int, int, int]
    places: Tensor = field(repr=False)

    def to(self, dtype: torch.dtype) -> "Block":
        """The same block in another number format."""
        weight, bias, scale = (part.to(dtype) for part in (self.weight, self.bias, self.scale))
        rest = (self.stride, self.padding, self.shape, self.grid, self.places)
        return Block(self.name, self.start, weight, bias, scale, *rest)

    def forward(self, inputs: Tensor) -> Tensor:
        """What the convolution makes of `[c, h, w]`, without its bias: `[o, p, q]`."""
        return F.conv2d(inputs[None], self.weight, None, self.stride, self.padding)[0]

    def backward(self, outputs: Tensor, weight: Tensor | None = None) -> Tensor:
        """The transpose of `forward`: `[o, p, q]` to `[c, h, w]`."""
        kernel = self.weight.shape[2:]
        spare = [
            self.shape[i + 1] - ((self.grid[i + 1] - 1) * self.stride[i] - 2 * self.padding[i] + kernel[i])
            for i in (0, 1)
        ]
        weight = self.weight if weight is None else weight
        return F.conv_transpose2d(outputs[None], weight, None, self.stride, self.padding, spare)[0]

    def windows(self, inputs: Tensor) -> Tensor:
        """What each window sees in front of ReLU and pooling, `[o, windows, taps]`."""
        outputs = self.forward(inputs) + self.bias[:, None, None]
        return outputs.flatten(1)[:, self.places]

    def spread(self, values: Tensor) -> Tensor:
        """The transpose of looking through windows: `[o, windows, taps]` summed into `[o, p, q]`."""
        flat = values.new_zeros(values.shape[0], self.grid[1] * self.grid[2])
        where = self.places.flatten().expand(values.shape[0], -1)
        return flat.scatter_add_(1, where, values.flatten(1)).reshape(-1, *self.grid[1:])

    def patches(self, inputs: Tensor) -> Tensor:
        """The patches that the convolution sees, `[c k l, p q]`."""
        return F.unfold(inputs[None], self.weight.shape[2:], padding=self.padding, stride=self.stride)[0]

    def weight_gradient(self, gradient: Params) -> Tensor:
        """Gradient with respect to the folded weight, `[o, c, k, l]`."""
        return gradient[f"{self.name}.weight"] / self.scale[:, None, None, None]


_Kind = TypeVar("_Kind", bound="KnownBlock")


@dataclass(frozen=True, eq=False)
class KnownBlock:
    """What the gradient gives away at a block.

    Args:
        block: the block.
        values: what comes out of it, `[o, windows]`.
        delta: the loss gradient there, zero where no value shows, `[o, windows]`.
        gradient: of the loss with respect to the block's folded weight, `[o, c, k, l]`.
    """

    block: Block
    values: Tensor = field(repr=False)
    delta: Tensor = field(repr=False)
    gradient: Tensor = field(repr=False)

    @classmethod
    def of(cls: type[_Kind], block: Block, values: Tensor, delta: Tensor, gradient: Tensor) -> _Kind:
        """From values and loss gradient as pictures, `[o, p, q]`."""
        return cls(block, values.flatten(1), (delta * (values > 0)).flatten(1), gradient)

    def to(self: _Kind, dtype: torch.dtype) -> _Kind:
        """The same in another number format."""
        return replace(
            self, block=self.block.to(dtype), values=self.values.to(dtype), delta=self.delta.to(dtype),
            gradient=self.gradient.to(dtype),
        )  # fmt: skip

    def at(self, winners: Tensor) -> Tensor:
        """The loss gradient in front of the pooling, window by window, `[o, windows, taps]`."""
        return F.one_hot(winners, self.block.places.shape[1]) * self.delta[..., None]


def block_below(layers: tuple[Layer, ...], depth: int, image_shape: tuple[int, int, int]) -> Block:
    """Read the block that ends at a depth.

    Args:
        layers: the network as a chain.
        depth: how many layers end with the block.
        image_shape: `(c, h, w)`.

    Raises:
        UnsupportedNetworkError: what ends there is not a convolution with BatchNorm, ReLU and at most one max pooling,
            or the update holds no gradient of that convolution.
    """
    start, between = depth - 1, list[nn.Module]()
    while start >= 0 and not isinstance(layers[start].module, nn.Conv2d):
        between.insert(0, layers[start].module)
        start -= 1
    kinds = [type(module) for module in between if not isinstance(module, nn.Identity | nn.Dropout | nn.Dropout2d)]
    rest = kinds[1:] if kinds[:1] == [nn.BatchNorm2d] else kinds
    if start < 0 or rest not in ([nn.ReLU], [nn.ReLU, nn.MaxPool2d], [nn.MaxPool2d, nn.ReLU]):
        names = " -> ".join(kind.__name__ for kind in kinds)
        raise UnsupportedNetworkError(
            f"max pooling is peeled behind a convolution, with BatchNorm or without, and ReLU; got {names or 'nothing'}"
        )
    conv = layers[start].module
    assert isinstance(conv, nn.Conv2d)
    layers[start].require_gradient()
    weight, bias, scale = _folded(conv, next((part for part in between if isinstance(part, nn.BatchNorm2d)), None))
    shape, grid = layers[start - 1].shape if start else image_shape, layers[start].shape
    require_plain(conv, grid)
    pool = next((part for part in between if isinstance(part, nn.MaxPool2d)), None)
    places = _places(pool, (grid[1], grid[2]), layers[depth - 1].shape)
    stride, padding = (conv.stride[0], conv.stride[1]), padding_of(conv)
    return Block(
        layers[start].name, start, weight, bias, scale, stride, padding,
        (shape[0], shape[1], shape[2]), (grid[0], grid[1], grid[2]), places,
    )  # fmt: skip


def _folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor, Tensor]:
    weight = conv.weight.detach()
    bias = weight.new_zeros(weight.shape[0]) if conv.bias is None else conv.bias.detach()
    if norm is None:
        return weight, bias, torch.ones_like(bias)
    scale, shift = (part.flatten() for part in affine(norm))
    return weight * scale[:, None, None, None], bias * scale + shift, scale


def affine(module: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """BatchNorm in eval mode as `scale * x + shift`, `[c, 1, 1]` each.

    Raises:
        UnsupportedNetworkError: it keeps no running statistics.
    """
    if module.running_var is None or module.running_mean is None:
        raise UnsupportedNetworkError("BatchNorm without running statistics mixes all pixels; it cannot be peeled")
    scale = (module.running_var + module.eps).rsqrt()
    if module.affine:
        scale = scale * module.weight.detach()
    shift = -module.running_mean * scale
    if module.affine:
        shift = shift + module.bias.detach()
    return scale[:, None, None], shift[:, None, None]


def _places(pool: nn.MaxPool2d | None, grid: tuple[int, int], pooled: tuple[int, ...]) -> Tensor:
    """What each window sees, by sending the pixels' own numbers through the pooling's geometry.

    A window over the border sees one of its pixels several times instead, which changes no maximum.
    """
    numbers = torch.arange(grid[0] * grid[1], dtype=torch.float64).reshape(1, 1, *grid)
    if pool is None:
        return numbers.long().reshape(-1, 1)
    size, stride, padding, dilation = (
        (part, part) if isinstance(part, int) else tuple(part)
        for part in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    )
    spare = [
        (count - 1) * step + wide * (taps - 1) + 1 - pixels - before
        for count, step, wide, taps, pixels, before in zip(
            pooled[-2:], stride, dilation, size, grid, padding, strict=True
        )
    ]
    framed = F.pad(numbers, (padding[1], spare[1], padding[0], spare[0]), value=-1.0)
    seen = F.unfold(framed, size, dilation=dilation, stride=stride)[0].T.long()
    return torch.where(seen < 0, seen.amax(dim=1, keepdim=True), seen)
