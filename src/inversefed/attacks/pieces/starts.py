"""Initial guesses, drawn for all restarts at once: (shape, generator) -> network inputs.

They live in the network's normalized input space, as in 2020. Drawing them together makes a restart's
start independent of how many restarts run at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from inversefed.errors import ConfigError

__all__ = ["NearMean", "Normal", "Patterned", "Uniform", "Zeros"]


@dataclass(frozen=True)
class NearMean:
    """The mean color with a little noise, so that restarts differ.

    Args:
        std: of the noise, in normalized inputs.
    """

    std: float = 1e-3

    def __call__(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype) -> Tensor:
        """Draw `[restarts, n, c, h, w]`."""
        return self.std * Normal()(shape, generator, dtype)


@dataclass(frozen=True)
class Normal:
    """Standard normal noise, the paper's start."""

    def __call__(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype) -> Tensor:
        """Draw `[restarts, n, c, h, w]`."""
        return torch.randn(tuple(shape), generator=generator, dtype=dtype, device=generator.device)


@dataclass(frozen=True)
class Patterned:
    """A small tile of noise, repeated over the picture: the start of `breaching`'s settings "modern".

    Args:
        size: side of the tile, in pixels.
    """

    size: int = 4

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"a tile has at least 1 pixel a side; got {self.size}")

    def __call__(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype) -> Tensor:
        """Draw a tile for each picture of `[restarts, n, c, h, w]`."""
        *outer, height, width = shape
        tiles = Normal()((*outer, self.size, self.size), generator, dtype)
        repeats = (-(-height // self.size), -(-width // self.size))
        return tiles.repeat(*[1] * len(outer), *repeats)[..., :height, :width].contiguous()


@dataclass(frozen=True)
class Uniform:
    """Uniform noise in [-1, 1]."""

    def __call__(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype) -> Tensor:
        """Draw `[restarts, n, c, h, w]`."""
        return (torch.rand(tuple(shape), generator=generator, dtype=dtype, device=generator.device) - 0.5) * 2


@dataclass(frozen=True)
class Zeros:
    """The mean color everywhere; every restart is the same."""

    def __call__(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype) -> Tensor:
        """Zeros `[restarts, n, c, h, w]`."""
        return torch.zeros(tuple(shape), dtype=dtype, device=generator.device)
