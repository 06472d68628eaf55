"""Pruning: part of the entries of an update is sent, the rest is zero.

    sent_i = m_i g_i,      m_i in {0, 1}

Top-k sparsification (Aji and Heafield 2017, arXiv:1704.05021) was made to save traffic; Zhu et al. (2019,
arXiv:1906.08935) tried it first against gradient inversion. Random sparsification (Konecny et al. 2016,
arXiv:1610.05492) chooses the entries without looking at them, so that the choice itself says nothing of the data.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from inversefed.errors import ConfigError
from inversefed.fl.defenses.protocols import Context
from inversefed.types import Params

__all__ = ["RandomPruning", "TopK"]


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


@dataclass(frozen=True)
class RandomPruning:
    """Keep randomly chosen entries and set the rest to zero, tensor by tensor.

    Args:
        keep: the share that is kept, in (0, 1]; at least one entry a tensor.
        rescale: divide what is kept by its share, so that the update is right on average.

    >>> RandomPruning(0.5).pruned(torch.ones(6), Generator().manual_seed(0)).sum()
    tensor(3.)
    """

    keep: float
    rescale: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.keep <= 1:
            raise ConfigError(f"RandomPruning keeps a share in (0, 1], got {self.keep}")

    def __call__(self, update: Params, context: Context, generator: Generator) -> Params:
        """Prune entries that the generator chooses."""
        return {name: self.pruned(part, generator) for name, part in update.items()}

    def pruned(self, part: Tensor, generator: Generator) -> Tensor:
        """One tensor with only the entries that were drawn."""
        flat = part.flatten()
        number = min(flat.numel(), max(1, round(self.keep * flat.numel())))
        order = torch.randperm(flat.numel(), generator=generator, device=generator.device)
        kept = order[:number].to(flat.device)
        factor = flat.numel() / number if self.rescale else 1.0
        return torch.zeros_like(flat).index_copy(0, kept, factor * flat[kept]).view_as(part)
