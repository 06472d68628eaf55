"""Objectives for pruned or quantized updates: (predicted, observed) -> scalar, zero where they agree.

    signs:   sum max(0, -g s)^2 / sum g^2                     all signs right: 0
    levels:  sum_l |g_l - q_l|^2 / (2 v_l) / N,               v_l = d_l^2 / 12, of rounding to steps d_l
    pruned:  sum over sent (g - g*)^2 / sum g*^2

A plain cost takes a rounded value for the value, and what was not sent for zero. Own derivation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Literal

import torch
from torch import Tensor

from inversefed.errors import ConfigError
from inversefed.fl.defenses.quantization import grid
from inversefed.types import Params, Scalar

__all__ = ["Masked", "RoundingLikelihood", "SignError"]

Objective = Callable[[Params, Params], Scalar]


@dataclass(frozen=True)
class SignError:
    """For `SignQuantization`: the size of the entries whose sign is wrong, and the mean magnitude where it is sent.

    Args:
        scaled: whether the observed magnitudes are the mean ones of their tensors.

    >>> SignError(scaled=False)({"w": torch.tensor([3.0, 4.0])}, {"w": torch.tensor([1.0, -1.0])})
    tensor(0.6400)
    """

    scaled: bool = True

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """Share of the guess's squared size in entries of the wrong sign, plus relative squared errors of sizes."""
        wrong = _total(
            [(-part * observed[name].sign()).clamp(min=0).square().sum() for name, part in predicted.items()]
        )
        error = wrong / _total([part.square().sum() for part in predicted.values()]).clamp(min=1e-30)
        if not self.scaled:
            return error
        pairs = [(part.abs().mean(), _mean_sent(observed[name])) for name, part in predicted.items()]
        off = _total([(ours - theirs).square() for ours, theirs in pairs])
        return error + off / _total([theirs.square() for _, theirs in pairs]).clamp(min=1e-30)


@dataclass(frozen=True)
class RoundingLikelihood:
    """For `UniformQuantization` and `StochasticQuantization`: squared error in units of what rounding adds.

    Rounding to levels a step d apart adds noise of variance d^2 / 12, rounding at random d^2 / 6 on average. A tensor
    has a grid of its own, so one on a fine grid counts for as much as it knows. Taking the noise as normal did better
    on photographs than asking only that a guess would be rounded to the same.

    Args:
        bits: of the quantization.
        rounding: `"nearest"` or `"stochastic"`.

    >>> observed = {"w": torch.tensor([0.0, 1.0, 3.0])}
    >>> RoundingLikelihood(2)({"w": torch.tensor([0.5, 1.0, 3.0])}, observed)
    tensor(0.5000)
    """

    bits: int
    rounding: Literal["nearest", "stochastic"] = "nearest"

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits < 1 or self.rounding not in ("nearest", "stochastic"):
            raise ConfigError(f"RoundingLikelihood needs bits >= 1, rounding 'nearest' or 'stochastic'; got {self!r}")

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """Negative log likelihood an entry, about 1/2 at the truth."""
        count = sum(part.numel() for part in observed.values())
        pairs = [(part, observed[name]) for name, part in predicted.items()]
        errors = [((ours - theirs) / self._step(theirs)).square().sum() for ours, theirs in pairs]
        return (6 if self.rounding == "nearest" else 3) * _total(errors) / count

    def _step(self, part: Tensor) -> Tensor:
        """The grid's step; a tensor on one level was constant, and is known to rounding."""
        step = grid(part, self.bits)[1].to(part.dtype)
        return torch.where(part.amax() > part.amin(), step, 1e-6 + 1e-3 * part.abs().amax())


@dataclass(frozen=True)
class Masked:
    """Compare only the entries that were sent: those of the observed update that are not exactly 0.

    Args:
        objective: of the rest.
        share: what was sent was divided by this.
        most: the size that entries were cut to before they were noised and sent; `None` if they were not.

    >>> from inversefed.attacks.pieces.objectives import SquaredError
    >>> Masked(SquaredError())({"w": torch.tensor([3.0, 9.0])}, {"w": torch.tensor([2.0, 0.0])})
    tensor(1.)
    """

    objective: Objective
    share: float = 1.0
    most: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1 or (self.most is not None and not self.most > 0):
            raise ConfigError(f"Masked needs a share in (0, 1], and most above 0; got {self.share} and {self.most}")

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """The objective of what was sent."""
        cut = predicted
        if self.most is not None:
            cut = {name: part.clamp(-self.most, self.most) for name, part in predicted.items()}
        sent = {name: part * (observed[name] != 0) / self.share for name, part in cut.items()}
        return self.objective(sent, observed)


def _mean_sent(part: Tensor) -> Tensor:
    """The mean magnitude of what is not exactly 0."""
    return part.abs().sum() / (part != 0).sum().clamp(min=1)


def _total(terms: list[Tensor]) -> Scalar:
    return reduce(add, terms)
