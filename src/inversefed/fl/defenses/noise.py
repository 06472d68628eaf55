"""Noise on a finished update, entry by entry.

    sent = g + e,      e_i independent of each other and of g

Zhu et al. (2019, arXiv:1906.08935) tried both kinds against gradient inversion. Noise alone is not differentially
private: the update's norm has to be bounded first, see `Clip`.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from inversefed.errors import ConfigError
from inversefed.fl.defenses.protocols import Context
from inversefed.types import Params

__all__ = ["GaussianNoise", "LaplaceNoise", "laplace_like"]


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
        return {name: part + self.scale * laplace_like(part, generator) for name, part in update.items()}


def _normal_like(part: Tensor, generator: Generator) -> Tensor:
    return torch.randn(part.shape, generator=generator, dtype=part.dtype, device=generator.device).to(part.device)


def laplace_like(part: Tensor, generator: Generator) -> Tensor:
    """Laplacian noise of scale 1, in the shape of a tensor: the difference of two exponential draws of mean 1."""
    draws = torch.empty((2, *part.shape), dtype=part.dtype, device=generator.device).exponential_(generator=generator)
    return (draws[0] - draws[1]).to(part.device)
