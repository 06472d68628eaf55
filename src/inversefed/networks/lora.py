"""Low-rank adapters (LoRA): linear layers with a frozen weight and a trained product of two thin matrices.

    y = (W + s B A) x + b,    A: [r, in],  B: [out, r],    only A and B are trained and sent

LoRA, Hu et al. (2021), arXiv:2106.09685. With `delta` the loss gradient at the output, summed over examples,

    gB = s sum delta (A x)^T,    gA = s sum (B^T delta) x^T

so an update holds r numbers of each input through `gB`, and through `gA` a space of at most r dimensions in which the
inputs' mixtures lie. A fresh `B` is zero, and so is `gA` then.
"""

import copy
from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from inversefed.errors import ConfigError

__all__ = ["LowRankLinear", "low_rank"]


class LowRankLinear(nn.Module):
    """A frozen linear layer with a trained update of low rank.

    Args:
        layer: the layer; it is copied and frozen.
        rank: rows of A and columns of B.
        scale: factor of `B A`.
        trained: standard deviation of the entries of B; 0 for a fresh one.
        generator: draws A, and B where it is not fresh.
    """

    def __init__(self, layer: nn.Linear, rank: int, scale: float, trained: float, generator: Generator) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer).requires_grad_(False)
        self.scale = scale
        weight = layer.weight
        down = torch.randn(rank, layer.in_features, generator=generator, dtype=torch.float64)
        up = torch.randn(layer.out_features, rank, generator=generator, dtype=torch.float64)
        self.down = nn.Parameter((down / layer.in_features**0.5).to(weight))
        self.up = nn.Parameter((trained * up).to(weight))

    def forward(self, inputs: Tensor) -> Tensor:
        """`(W + s B A) x + b`."""
        outputs: Tensor = self.layer(inputs)
        return outputs + self.scale * F.linear(F.linear(inputs, self.down), self.up)


def low_rank(
    module: nn.Module,
    rank: int,
    names: Sequence[str] = ("*",),
    *,
    scale: float = 1.0,
    trained: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """A copy of a module that trains only low-rank updates of its linear layers; all else is frozen.

    Args:
        module: any network; it is not changed.
        rank: of the updates.
        names: patterns of the linear layers that get one.
        scale: factor of `B A`.
        trained: standard deviation of the entries of B, as earlier rounds leave it; 0 for the first round.
        seed: of A and B.

    Raises:
        ConfigError: a rank below 1, or patterns that fit no linear layer.

    >>> small = low_rank(nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)), 2, ("1",))
    >>> {name: tuple(part.shape) for name, part in small.named_parameters() if part.requires_grad}
    {'1.down': (2, 12), '1.up': (8, 2)}
    """
    changed = copy.deepcopy(module).requires_grad_(False)
    linear = [name for name, layer in changed.named_modules() if isinstance(layer, nn.Linear) and name]
    chosen = [name for name in linear if any(fnmatchcase(name, pattern) for pattern in names)]
    if rank < 1 or not chosen:
        raise ConfigError(
            f"low-rank updates need a rank of at least 1 and linear layers; got rank {rank} and {tuple(names)} of "
            f"{linear}"
        )
    generator = Generator().manual_seed(seed)
    for name in chosen:
        parent, _, last = name.rpartition(".")
        layer = changed.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        setattr(changed.get_submodule(parent), last, LowRankLinear(layer, rank, scale, trained, generator))
    return changed
