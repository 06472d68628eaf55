"""Deep image prior: the search moves the weights of an untrained network instead of pixels.

    x = decoder(weights, z),   z fixed;      weights^ = argmin match(client(network, decoder(weights, z), y), update*)

A convolutional decoder yields a picture's large shapes long before it yields noise, so where the update says little it
fills in what pictures look like (Ulyanov, Vedaldi and Lempitsky 2018, arXiv:1711.10925). The decoder here is that of
Heckel and Hand (2019), arXiv:1810.03982, with 3x3 convolutions. Each picture has one of its own.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from inversefed.errors import ConfigError
from inversefed.fl.network import Network

__all__ = ["DeepImagePrior"]


@dataclass(frozen=True)
class DeepImagePrior:
    """A parametrization by an untrained decoder: (weights of one decoder a picture) -> network inputs.

    Starts of the attack are not used: weights are drawn instead. Projections act on weights, so an attack with this
    parametrization has none; the decoder's last layer keeps pixels in their range.

    Args:
        width: channels.
        levels: how often the side is doubled, where that leaves at least 4 pixels to start from.
        seed: of the fixed noise.
    """

    width: int = 32
    levels: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.width < 1 or self.levels < 0:
            raise ConfigError(f"a decoder needs width >= 1 and levels >= 0; got {self.width} and {self.levels}")

    def __call__(self, variables: Tensor) -> Tensor:
        """Refused: a decoder makes pictures of a shape that the network tells it; see `bound`."""
        raise ConfigError("DeepImagePrior makes pictures for a network: use DeepImagePrior().bound(network)")

    def bound(self, network: Network) -> "Decoder":
        """The decoder that makes this network's inputs."""
        side = min(network.image_shape[-2:])
        levels = min(self.levels, max(0, int(math.log2(side / 4)))) if side >= 4 else 0
        return Decoder(self.width, levels, self.seed, network)


@dataclass(frozen=True, eq=False)
class Decoder:
    """An untrained decoder for the pictures of one network.

    Args:
        width: channels.
        levels: how often the side is doubled.
        seed: of the fixed noise.
        network: whose inputs it makes.
    """

    width: int
    levels: int
    seed: int
    network: Network = field(repr=False)

    def start(self, images: Tensor, generator: Generator) -> Tensor:
        """Fresh weights, a row a picture: `[n, weights]`."""
        rows = []
        for _ in range(len(images)):
            parts = []
            for shape in self._shapes():
                fan = math.prod(shape[1:])
                drawn = torch.randn(shape, generator=generator, dtype=images.dtype, device=generator.device)
                parts.append(drawn * math.sqrt(2 / fan) if len(shape) > 1 else torch.zeros_like(drawn))
            rows.append(torch.cat([part.flatten() for part in parts]))
        return torch.stack(rows)

    def __call__(self, variables: Tensor) -> Tensor:
        """From weights `[n, weights]` to network inputs `[n, c, h, w]`."""
        n, (channels, height, width) = len(variables), self.network.image_shape
        weights = iter(self._split(variables))
        x = self._noise(variables).expand(n, -1, -1, -1).reshape(1, n * self.width, *self._side(0))
        for level in range(self.levels + 1):
            x = F.conv2d(F.pad(x, [1] * 4, mode="replicate"), next(weights).flatten(0, 1), groups=n)
            x = F.leaky_relu(_scaled(x, next(weights), next(weights)), 0.1)
            if level < self.levels:
                x = F.interpolate(x, size=self._side(level + 1), mode="bilinear", align_corners=False)
        x = F.conv2d(x, next(weights).flatten(0, 1), next(weights).flatten(), groups=n)
        low, high = self.network.low, self.network.high
        return self.network.normalize(low + (high - low) * x.view(n, channels, height, width).sigmoid())

    def _shapes(self) -> Iterator[tuple[int, ...]]:
        """Shapes of one decoder's weights; vectors start at 0."""
        for _ in range(self.levels + 1):
            yield from ((self.width, self.width, 3, 3), (self.width,), (self.width,))
        yield from ((self.network.image_shape[0], self.width, 1, 1), (self.network.image_shape[0],))

    def _split(self, variables: Tensor) -> Iterator[Tensor]:
        sizes = [math.prod(shape) for shape in self._shapes()]
        for part, shape in zip(torch.split(variables, sizes, dim=1), self._shapes(), strict=True):
            yield part.reshape(len(part), *shape)

    def _side(self, level: int) -> tuple[int, int]:
        height, width = self.network.image_shape[-2:]
        scale = 2 ** (self.levels - level)
        return -(-height // scale), -(-width // scale)

    def _noise(self, like: Tensor) -> Tensor:
        generator = Generator().manual_seed(self.seed)
        noise = torch.rand((1, self.width, *self._side(0)), generator=generator, dtype=torch.float64)
        return (noise - 0.5).to(like)


def _scaled(x: Tensor, gain: Tensor, offset: Tensor) -> Tensor:
    """Normalize each channel over its places, then scale by `1 + gain` and move."""
    variance, mean = torch.var_mean(x, dim=(2, 3), correction=0, keepdim=True)
    shape = (1, -1, 1, 1)
    return (x - mean) * (variance + 1e-5).rsqrt() * (1 + gain.reshape(shape)) + offset.reshape(shape)
