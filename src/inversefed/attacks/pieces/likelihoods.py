"""Likelihoods of a defended update given a guess: (predicted, observed) -> scalar.

    - log p(observed | predicted)     up to a constant

If the server knows the defense, the best guess of the private pictures minimizes this plus a prior (Balunovic et al.
2022, arXiv:2111.04706, eq. 4). For Gaussian noise it is a squared error, for Laplacian noise an absolute one, in units
of the noise: a cosine or a cost that weighs entries by size trusts noise where the update is small. For pruning it is a
statement about every entry: those sent are what they are, and those left out were no larger.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch
from torch import Tensor

from inversefed.errors import ConfigError
from inversefed.types import Params, Scalar

__all__ = ["GaussianLikelihood", "LaplaceLikelihood", "PrunedError"]

_ROUNDING = 1e-5
"""Relative, of an entry that was cut to a size, divided by the number of steps and multiplied again."""


@dataclass(frozen=True)
class GaussianLikelihood:
    """For `GaussianNoise(std)`: squared error over twice the variance, averaged over the entries.

    At the truth it is about 1/2, whatever the noise. As a mean over entries it goes with priors of the same size; a
    prior's weight in units of log probability is to be divided by the number of entries.

    Args:
        std: of the noise.

    >>> update = {"w": torch.tensor([1.0, 3.0])}
    >>> GaussianLikelihood(std=2.0)({"w": torch.tensor([1.0, 1.0])}, update)
    tensor(0.2500)
    """

    std: float

    def __post_init__(self) -> None:
        _positive("std", self.std)

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """Negative log likelihood an entry."""
        return _mean(predicted, observed, lambda error: (error / self.std).square() / 2)


@dataclass(frozen=True)
class LaplaceLikelihood:
    """For `LaplaceNoise(scale)`: absolute error over the scale, averaged over the entries; about 1 at the truth.

    Args:
        scale: of the noise, its mean absolute value.
    """

    scale: float

    def __post_init__(self) -> None:
        _positive("scale", self.scale)

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """Negative log likelihood an entry."""
        return _mean(predicted, observed, lambda error: (error / self.scale).abs())


@dataclass(frozen=True)
class PrunedError:
    """For `TopK`: the error of the entries that were sent, and of those that should have been and were not.

        sum over sent |g - g*|^p  +  sum over unsent max(0, |g| - t)^p,     all over  sum |g*|^p

    A tensor's threshold t is its smallest sent entry: a guess whose entry is larger would have sent it. An entry of
    exactly 0 counts as unsent. For `PercentilePrivacy` as well, which cuts what it sends to a size: of an entry that
    is as large as that only a guess that is smaller, or of the other sign, is wrong.

    Args:
        power: 2 for the squared error, 1 for the absolute one.
        most: the size that entries were cut to; `None` if they were not.

    >>> update = {"w": torch.tensor([3.0, 0.0, -2.0])}
    >>> [PrunedError()({"w": torch.tensor(w)}, update).item() for w in ([3.0, 1.5, -2.0], [3.0, 3.0, -2.0])]
    [0.0, 0.07692307978868484]
    """

    power: float = 2.0
    most: float | None = None

    def __post_init__(self) -> None:
        if self.power not in (1, 2) or (self.most is not None and not self.most > 0):
            raise ConfigError(f"PrunedError's power is 1 or 2, and its most above 0; got {self!r}")

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """Error relative to the observed update."""
        errors = _total(self._error(part, observed[name]) for name, part in predicted.items())
        return errors / _total(part.abs().pow(self.power).sum() for part in observed.values())

    def _error(self, ours: Tensor, theirs: Tensor) -> Tensor:
        sent = theirs != 0
        # A tensor of which nothing was sent has no threshold, and so says nothing.
        threshold = torch.where(sent, theirs.abs(), torch.inf).amin()
        error = torch.where(sent, (ours - theirs).abs(), (ours.abs() - threshold).clamp(min=0))
        if self.most is not None:
            cut = theirs.abs() >= self.most * (1 - _ROUNDING)
            error = torch.where(cut, (self.most - ours * theirs.sign()).clamp(min=0), error)
        return error.pow(self.power).sum()


def _mean(predicted: Params, observed: Params, each: Callable[[Tensor], Tensor]) -> Scalar:
    count = sum(part.numel() for part in observed.values())
    return _total(each(part - observed[name]).sum() for name, part in predicted.items()) / count


def _total(terms: Iterable[Tensor]) -> Scalar:
    return reduce(add, terms)


def _positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(
            f"the {name} of a noise must be above 0; without noise take RelativeSquaredError; got {value}"
        )
