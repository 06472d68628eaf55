"""Tensor weights: which tensors of an update an objective compares, and how much each counts.

The choices are those of the 2020 code; the paper uses all tensors with equal weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from inversefed.errors import ConfigError

__all__ = ["AllTensors", "At", "EqualWeights", "ExponentialWeights", "First", "Largest", "Last", "LinearWeights"]


@runtime_checkable
class Selector(Protocol):
    """Positions, in the order of the update, of the tensors that count."""

    def __call__(self, predicted: Sequence[Tensor], observed: Sequence[Tensor]) -> Sequence[int]:
        """Choose positions."""
        ...


@dataclass(frozen=True)
class AllTensors:
    """Every tensor of the update."""

    def __call__(self, predicted: Sequence[Tensor], observed: Sequence[Tensor]) -> Sequence[int]:
        """All positions, in order."""
        return range(len(observed))


@dataclass(frozen=True)
class First:
    """The first tensors, nearest the image."""

    count: int

    def __call__(self, predicted: Sequence[Tensor], observed: Sequence[Tensor]) -> Sequence[int]:
        """The first positions."""
        return range(len(observed))[: self.count]


@dataclass(frozen=True)
class Last:
    """The last tensors, nearest the head."""

    count: int

    def __call__(self, predicted: Sequence[Tensor], observed: Sequence[Tensor]) -> Sequence[int]:
        """The last positions."""
        return range(len(observed))[-self.count :]


@dataclass(frozen=True)
class Largest:
    """The tensors of largest norm.

    Args:
        count: how many.
        of_predicted: rank by the predicted update instead of the observed one.
    """

    count: int
    of_predicted: bool = False

    def __call__(self, predicted: Sequence[Tensor], observed: Sequence[Tensor]) -> Sequence[int]:
        """Positions by falling norm."""
        ranked = predicted if self.of_predicted else observed
        norms = torch.stack([part.detach().norm() for part in ranked])
        if self.count > len(norms):
            raise ConfigError(f"the update has {len(norms)} tensors, so its {self.count} largest cannot be chosen")
        chosen: list[int] = norms.topk(self.count).indices.tolist()
        return chosen


@dataclass(frozen=True)
class At:
    """Tensors at given positions, as 2020's list of indices."""

    positions: tuple[int, ...]

    def __call__(self, predicted: Sequence[Tensor], observed: Sequence[Tensor]) -> Sequence[int]:
        """Those positions."""
        if any(not -len(observed) <= position < len(observed) for position in self.positions):
            raise ConfigError(f"positions {self.positions} reach outside an update of {len(observed)} tensors")
        return self.positions


@runtime_checkable
class Weighting(Protocol):
    """How much each tensor counts: one weight a tensor."""

    def __call__(self, observed: Sequence[Tensor]) -> Tensor:
        """Weights `[number of tensors]`."""
        ...


@dataclass(frozen=True)
class EqualWeights:
    """Every tensor counts the same."""

    def __call__(self, observed: Sequence[Tensor]) -> Tensor:
        """Ones."""
        return observed[0].new_ones(len(observed))


@dataclass(frozen=True)
class LinearWeights:
    """Weights fall linearly from the first tensor, 1, to the last, 1 / L."""

    def __call__(self, observed: Sequence[Tensor]) -> Tensor:
        """L, L - 1, .., 1 over L."""
        return _falling(observed) / len(observed)


@dataclass(frozen=True)
class ExponentialWeights:
    """Weights fall by a factor e from one tensor to the next."""

    def __call__(self, observed: Sequence[Tensor]) -> Tensor:
        """The softmax of L, L - 1, .., 1 over its first entry."""
        weights = _falling(observed).softmax(dim=0)
        return weights / weights[0]


def _falling(observed: Sequence[Tensor]) -> Tensor:
    first = observed[0]
    return torch.arange(len(observed), 0, -1, dtype=first.dtype, device=first.device)
