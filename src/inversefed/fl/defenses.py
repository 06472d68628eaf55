"""Defenses on a finished update: (update, context, generator) -> update.

They run in the world, after the client and before the server looks. `context` holds what the
client itself knows, for defenses that need it; the attacker is not told that a defense ran.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from inversefed.errors import ConfigError
from inversefed.fl.network import Network
from inversefed.types import Batch, Params

__all__ = ["Clip", "GaussianNoise", "LaplaceNoise", "TopK"]


@dataclass(frozen=True, eq=False)
class Context:
    """What a client knows while it defends its update: its network and its private batch."""

    network: Network
    batch: Batch


@runtime_checkable
class Defense(Protocol):
    """Changes an update before it leaves the client."""

    def __call__(self, update: Params, context: Context, generator: Generator) -> Params:
        """The update that is sent instead."""
        ...


@dataclass(frozen=True)
class Clip:
    """Scale the update down so that its norm over all tensors is at most `max_norm`.

    >>> Clip(1.0).scaled({"w": torch.tensor([3.0, 4.0])})
    {'w': tensor([0.6000, 0.8000])}
    """

    max_norm: float

    def __post_init__(self) -> None:
        if self.max_norm <= 0:
            raise ConfigError(f"Clip needs max_norm > 0, got {self.max_norm}")

    def __call__(self, update: Params, context: Context, generator: Generator) -> Params:
        """Clip by global norm."""
        return self.scaled(update)

    def scaled(self, update: Params) -> Params:
        """The update times `min(1, max_norm / |update|)`."""
        norm = torch.stack([part.norm() for part in update.values()]).norm()
        factor = (self.max_norm / norm).clamp(max=1.0)
        return {name: part * factor for name, part in update.items()}


@dataclass(frozen=True)
class GaussianNoise:
    """Add independent normal noise of standard deviation `std` to every entry."""

    std: float

    def __post_init__(self) -> None:
        if self.std < 0:
            raise ConfigError(f"GaussianNoise needs std >= 0, got {self.std}")

    def __call__(self, update: Params, context: Context, generator: Generator) -> Params:
        """Add noise from the generator."""
        return {name: part + self.std * _normal_like(part, generator) for name, part in update.items()}


@dataclass(frozen=True)
class LaplaceNoise:
    """Add independent Laplacian noise to every entry; `scale` is its mean absolute value."""

    scale: float

    def __post_init__(self) -> None:
        if self.scale < 0:
            raise ConfigError(f"LaplaceNoise needs scale >= 0, got {self.scale}")

    def __call__(self, update: Params, context: Context, generator: Generator) -> Params:
        """Add noise from the generator."""
        return {name: part + self.scale * _laplace_like(part, generator) for name, part in update.items()}


@dataclass(frozen=True)
class TopK:
    """Keep the largest entries by magnitude and set the rest to zero, tensor by tensor.

    Args:
        keep: the share that is kept, in (0, 1]; at least one entry a tensor.

    >>> TopK(0.5).pruned(torch.tensor([1.0, -3.0, 2.0, 0.5]))
    tensor([ 0., -3.,  2.,  0.])
    """

    keep: float

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ConfigError(f"TopK keeps a share in (0, 1], got {self.keep}")

    def __call__(self, update: Params, context: Context, generator: Generator) -> Params:
        """Prune small entries."""
        return {name: self.pruned(part) for name, part in update.items()}

    def pruned(self, part: Tensor) -> Tensor:
        """One tensor with only its largest entries."""
        flat = part.flatten()
        kept = flat.abs().topk(max(1, round(self.keep * flat.numel()))).indices
        return torch.zeros_like(flat).index_copy(0, kept, flat[kept]).view_as(part)


def _normal_like(part: Tensor, generator: Generator) -> Tensor:
    return torch.randn(part.shape, generator=generator, dtype=part.dtype, device=generator.device).to(part.device)


def _laplace_like(part: Tensor, generator: Generator) -> Tensor:
    """The difference of two exponential draws of mean 1."""
    draws = torch.empty((2, *part.shape), dtype=part.dtype, device=generator.device).exponential_(generator=generator)
    return (draws[0] - draws[1]).to(part.device)
