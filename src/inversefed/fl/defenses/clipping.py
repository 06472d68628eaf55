"""Clipping a finished update: its norm over all tensors is bounded, its direction kept.

    clip(g) = g min(1, C / |g|)

With noise added afterwards this is what FL frameworks call local differential privacy of a client's update (McMahan
et al. 2018, arXiv:1710.06963). Clipping of each example's gradient is no defense of a finished update, but a client.
"""

from dataclasses import dataclass

import torch
from torch import Generator

from inversefed.errors import ConfigError
from inversefed.fl.defenses.protocols import Context
from inversefed.types import Params

__all__ = ["Clip"]


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
