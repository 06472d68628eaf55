"""Quantization: each entry of an update is sent as one of a few levels.

    sign:        sent_i = s sign(g_i),                       s = mean |g|  (or 1)
    uniform:     sent_i = low + d round((g_i - low) / d),    d = (high - low) / (2^bits - 1)
    stochastic:  the same grid, rounded up with the probability that makes E[sent] = g

`low` and `high` are the least and greatest entry of each tensor; they stand on the grid, so who sees the tensor knows
the grid. Signs: Bernstein et al. (2018, arXiv:1802.04434), with the scale Karimireddy et al. (2019, arXiv:1901.09847).
Stochastic rounding on k levels: Suresh et al. (2017, arXiv:1611.00429); QSGD (Alistarh et al. 2017, arXiv:1610.02132)
rounds so too, on a grid that ends at the norm.
"""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from inversefed.errors import ConfigError
from inversefed.fl.defenses.protocols import Context
from inversefed.types import Params

__all__ = ["SignQuantization", "StochasticQuantization", "UniformQuantization"]

_MOST_BITS = 24
"""Single precision has no finer levels."""


@dataclass(frozen=True)
class SignQuantization:
    """Send each entry's sign; what is zero stays zero.

    Args:
        scaled: times the mean magnitude of its tensor, so that the update keeps its size.

    >>> SignQuantization().quantized(torch.tensor([1.0, -3.0, 2.0, -2.0]))
    tensor([ 2., -2.,  2., -2.])
    """

    scaled: bool = True

    def __call__(self, update: Params, context: Context, generator: Generator) -> Params:
        """Keep the signs."""
        return {name: self.quantized(part) for name, part in update.items()}

    def quantized(self, part: Tensor) -> Tensor:
        """One tensor's signs."""
        return part.sign() * (part.abs().mean() if self.scaled else 1.0)


@dataclass(frozen=True)
class UniformQuantization:
    """Round each entry to the nearest of `2^bits` levels, evenly between the least and greatest entry of its tensor.

    Args:
        bits: an entry, 1 to 24.

    >>> UniformQuantization(2).quantized(torch.tensor([0.0, 0.9, 1.6, 3.0]))
    tensor([0., 1., 2., 3.])
    """

    bits: int

    def __post_init__(self) -> None:
        check_bits(self)

    def __call__(self, update: Params, context: Context, generator: Generator) -> Params:
        """Round to the nearest level."""
        return {name: self.quantized(part) for name, part in update.items()}

    def quantized(self, part: Tensor) -> Tensor:
        """One tensor on its grid."""
        low, step = grid(part, self.bits)
        return (low + step * ((part.double() - low) / step).round()).to(part.dtype)


@dataclass(frozen=True)
class StochasticQuantization:
    """Round each entry to one of the two levels next to it, at random, so that it is right on average.

    Args:
        bits: an entry, 1 to 24: `2^bits` levels, evenly between the least and greatest entry of its tensor.

    >>> StochasticQuantization(1).quantized(torch.tensor([0.0, 0.5, 1.0]), Generator().manual_seed(0)).frac().sum()
    tensor(0.)
    """

    bits: int

    def __post_init__(self) -> None:
        check_bits(self)

    def __call__(self, update: Params, context: Context, generator: Generator) -> Params:
        """Round with draws from the generator."""
        return {name: self.quantized(part, generator) for name, part in update.items()}

    def quantized(self, part: Tensor, generator: Generator) -> Tensor:
        """One tensor on its grid."""
        low, step = grid(part, self.bits)
        return (low + step * stochastically_rounded((part.double() - low) / step, generator)).to(part.dtype)


def grid(part: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """The lowest level of a tensor and the distance of two levels, in double precision.

    The distance is 1 for a tensor whose entries are all equal: they stand on the lowest level.
    """
    low, high = (end.double() for end in part.detach().aminmax())
    step = (high - low) / (2**bits - 1)
    return low, torch.where(step > 0, step, torch.ones_like(step))


def stochastically_rounded(values: Tensor, generator: Generator) -> Tensor:
    """Round each value up with a probability equal to its fraction, else down: the expected value is the value."""
    draws = torch.rand(values.shape, generator=generator, dtype=torch.float64, device=generator.device)
    return (values + draws.to(values.device)).floor()


def check_bits(defense: UniformQuantization | StochasticQuantization) -> None:
    """Refuse a number of bits that is none.

    Raises:
        ConfigError: not a whole number from 1 to 24.
    """
    if type(defense.bits) is not int or not 1 <= defense.bits <= _MOST_BITS:
        raise ConfigError(f"{type(defense).__name__} needs 1 to {_MOST_BITS} bits, got {defense.bits!r}")
