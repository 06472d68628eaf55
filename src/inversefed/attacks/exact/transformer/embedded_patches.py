"""Which pixels the patch embedding sees at which position: measured by probing, for any layout of patches.

    entry[place, value] = gain * pixel[index] + offset

A patch embedding is a convolution, a linear layer on unfolded or rearranged pixels, or something else that moves pixels
without mixing them. What it does is read off a few made-up pictures: a black one, a white one, two that write the
number of each pixel in digits, and one of noise, on which the rest must hold. Each run ends at that layer.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from inversefed.errors import InversefedError, UnsupportedNetworkError
from inversefed.fl.hooks import record
from inversefed.fl.network import Network

__all__ = ["PatchMap", "first_layer", "patch_map", "unsuited"]

_SAME = 1e-4
"""Relative error up to which an entry counts as the pixel that it should be; probes run in single precision."""


@dataclass(frozen=True, eq=False)
class PatchMap:
    """What the first layer on the picture sees of it.

    Args:
        layer: its name.
        shape: `(c, h, w)` of a picture.
        index: which value of the picture, flattened, each entry is, `[places, values]`; -1 where it is none of them.
        gain: what it is multiplied by, `[places, values]`, float64.
        offset: what is added, likewise.
    """

    layer: str
    shape: tuple[int, int, int]
    index: Tensor = field(repr=False)
    gain: Tensor = field(repr=False)
    offset: Tensor = field(repr=False)

    def entries(self, images: Tensor) -> Tensor:
        """What the layer sees of one picture, `[places, values]`, float64.

        Args:
            images: one picture in pixel space, `[1, c, h, w]`.
        """
        return self.gain * images.detach().cpu().double().flatten()[self.index.clamp(min=0)] + self.offset

    @property
    def unseen(self) -> float:
        """The share of the picture that the layer does not see."""
        return 1 - len(set(self.index[self.index >= 0].tolist())) / math.prod(self.shape)

    def image(self, entries: Tensor) -> Tensor:
        """The picture that the layer sees so, `[1, c, h, w]`, in pixel space; what it does not see is gray.

        Args:
            entries: `[places, values]`, float64. A pixel that is seen at several places becomes their weighted mean.
        """
        seen = self.index >= 0
        where, gain = self.index[seen], self.gain[seen]
        total, weight = (torch.zeros(math.prod(self.shape), dtype=torch.float64) for _ in range(2))
        total.index_add_(0, where, gain * (entries - self.offset)[seen])
        weight.index_add_(0, where, gain.square())
        known = weight > 0
        pixels = torch.where(known, total / weight.where(known, torch.ones_like(weight)), total)
        pixels[~known] = pixels[known].mean()
        return pixels.reshape(1, *self.shape)


def patch_map(network: Network) -> PatchMap:
    """Measure what the first layer on the picture sees.

    Args:
        network: a private copy in eval mode, float32 or float64; pictures of one example are sent through it.

    Raises:
        UnsupportedNetworkError: no linear layer or convolution is the first on the picture, it sees no pixels as they
            are, or the network does not run.
    """
    size = math.prod(network.image_shape)
    base, number = math.isqrt(size - 1) + 1, torch.arange(size)
    noise = torch.rand(size, generator=Generator().manual_seed(0))
    pictures = (torch.zeros(size), torch.ones(size), number.div(base, rounding_mode="floor") / base,
                (number % base) / base, noise)  # fmt: skip
    runs = [first_layer(network, picture.reshape(1, *network.image_shape)) for picture in pictures]
    layer = runs[0][0]
    if len({(name, entries.shape) for name, entries in runs}) > 1:
        raise unsuited(f"which layer sees the picture first ({layer}) depends on the picture")
    black, white, high, low, rest = (entries for _, entries in runs)
    gain = white - black
    used = gain.abs() > _SAME * gain.abs().max()
    digits = [((part - black) / gain.where(used, torch.ones_like(gain)) * base).round() for part in (high, low)]
    index = (digits[0] * base + digits[1]).long().clamp(0, size - 1).where(used, torch.tensor(-1))
    found = PatchMap(layer, network.grid, index, gain, black)
    error, allowed = (found.entries(noise) - rest).abs().max(), _SAME * (gain.abs().max() + black.abs().max())
    if not bool(error <= allowed):  # or it is no number: a picture of one color, divided by its contrast
        raise unsuited(f"the first layer on the picture, {layer}, sees pixels that are mixed or normalized before it")
    return found


class _Reached(InversefedError):
    """Ends a probe's run at the layer that was looked for; of our own kind, or boundaries would take it for foreign."""

    def __init__(self, name: str, entries: Tensor) -> None:
        super().__init__(name)
        self.name, self.entries = name, entries


def first_layer(network: Network, picture: Tensor) -> tuple[str, Tensor]:
    """The first layer that sees something of the picture, and the entries that it sees, `[places, values]`, float64.

    Args:
        network: a private copy in eval mode.
        picture: in pixel space, `[1, c, h, w]`.

    Raises:
        UnsupportedNetworkError: no linear layer and no convolution sees it, or the network does not run.
    """
    frozen = {name: weight.detach() for name, weight in network.params.items()}
    kinds = (nn.Linear, nn.Conv2d)
    layers = {name: layer for name, layer in network.module.named_modules() if isinstance(layer, kinds)}
    picture = picture.to(network.device, network.dtype).requires_grad_()

    def look(name: str, layer: nn.Module, inputs: Tensor) -> None:
        if inputs.requires_grad:
            raise _Reached(name, _entries(layer, inputs.detach()).cpu().double())

    try:
        with torch.enable_grad():
            record(layers, lambda: network.apply(frozen, picture), look)
    except _Reached as reached:
        return reached.name, reached.entries
    raise unsuited("no linear layer and no convolution sees the picture")


def _entries(layer: nn.Module, inputs: Tensor) -> Tensor:
    """What a layer multiplies by its weights, place by place."""
    if isinstance(layer, nn.Linear):
        return inputs.reshape(-1, layer.in_features)
    assert isinstance(layer, nn.Conv2d)
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    padded = F.pad(inputs.reshape(-1, *inputs.shape[-3:]), layer._reversed_padding_repeated_twice, mode)
    return F.unfold(padded, layer.kernel_size, layer.dilation, 0, layer.stride)[0].T


def unsuited(why: str) -> UnsupportedNetworkError:
    """The refusal of a network whose patches cannot be solved for."""
    return UnsupportedNetworkError(
        f"the picture's patches cannot be solved for: {why}; use an optimization attack such as geiping()"
    )
