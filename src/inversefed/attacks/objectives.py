"""How far apart two updates are: (predicted, observed) -> scalar, zero where they agree.

The paper's cost is one cosine over all tensors at once,

    1 - <g, g*> / (|g| |g*|),

with <,> summed over the tensors that `select` names, each weighted by `weights`
(Geiping et al. 2020, arXiv:2003.14053, eq. 4). The squared error is that of Zhu et al. (2019),
arXiv:1906.08935.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import reduce
from operator import add

from torch import Tensor
from torch.nn import functional as F

from inversefed.attacks.layers import AllTensors, EqualWeights, Selector, Weighting
from inversefed.types import Params, Scalar

__all__ = [
    "AbsoluteError",
    "Cosine",
    "LayerwiseCosine",
    "MaxError",
    "RelativeAbsoluteError",
    "RelativeSquaredError",
    "SquaredError",
]


def _chosen(
    predicted: Params, observed: Params, select: Selector, weights: Weighting
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """(predicted, observed, weight) of every tensor that counts."""
    ours, theirs = list(predicted.values()), [observed[name] for name in predicted]
    scale = weights(theirs)
    return [(ours[i], theirs[i], scale[i]) for i in select(ours, theirs)]


def _total(terms: Iterable[Tensor]) -> Scalar:
    return reduce(add, terms)


@dataclass(frozen=True)
class Cosine:
    """One minus the cosine of the angle between the updates, all tensors together; in [0, 2].

    >>> import torch
    >>> Cosine()({"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 2.0])})
    tensor(1.)
    """

    select: Selector = AllTensors()
    weights: Weighting = EqualWeights()

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """Cosine distance."""
        chosen = _chosen(predicted, observed, self.select, self.weights)
        product = _total((p * o).sum() * weight for p, o, weight in chosen)
        ours = _total(p.pow(2).sum() * weight for p, _, weight in chosen)
        theirs = _total(o.pow(2).sum() * weight for _, o, weight in chosen)
        return 1 - product / ours.sqrt() / theirs.sqrt()


@dataclass(frozen=True)
class SquaredError:
    """Sum of squared differences."""

    select: Selector = AllTensors()
    weights: Weighting = EqualWeights()

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """Squared error."""
        chosen = _chosen(predicted, observed, self.select, self.weights)
        return _total((p - o).pow(2).sum() * weight for p, o, weight in chosen)


@dataclass(frozen=True)
class AbsoluteError:
    """Sum of absolute differences."""

    select: Selector = AllTensors()
    weights: Weighting = EqualWeights()

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """Absolute error."""
        chosen = _chosen(predicted, observed, self.select, self.weights)
        return _total((p - o).abs().sum() * weight for p, o, weight in chosen)


@dataclass(frozen=True)
class MaxError:
    """Largest absolute difference in each tensor, summed over the tensors."""

    select: Selector = AllTensors()
    weights: Weighting = EqualWeights()

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """Largest errors."""
        chosen = _chosen(predicted, observed, self.select, self.weights)
        return _total((p - o).abs().max() * weight for p, o, weight in chosen)


@dataclass(frozen=True)
class LayerwiseCosine:
    """Cosine distance of each tensor on its own, summed: `sum_l (1 - w_l cos_l)`."""

    select: Selector = AllTensors()
    weights: Weighting = EqualWeights()

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """Sum of distances."""
        chosen = _chosen(predicted, observed, self.select, self.weights)
        return _total(1 - F.cosine_similarity(p.flatten(), o.flatten(), 0, 1e-10) * weight for p, o, weight in chosen)


@dataclass(frozen=True)
class RelativeSquaredError:
    """Squared error over the squared size of the observed update: `|g - g*|^2 / |g*|^2`."""

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """Relative squared error."""
        return SquaredError()(predicted, observed) / _total(part.square().sum() for part in observed.values())


@dataclass(frozen=True)
class RelativeAbsoluteError:
    """Absolute error over the absolute size of the observed update: `sum |g - g*| / sum |g*|`.

    Where a ReLU is on the wrong side, few entries are far off: this cost does not let them outvote the rest.
    """

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """Relative absolute error."""
        return AbsoluteError()(predicted, observed) / _total(part.abs().sum() for part in observed.values())
