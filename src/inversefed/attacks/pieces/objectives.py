"""Matching objectives, the distance between two updates: (predicted, observed) -> scalar, zero where they agree.

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

from inversefed.attacks.pieces.tensor_weights import AllTensors, EqualWeights, LinearWeights, Selector, Weighting
from inversefed.errors import ConfigError
from inversefed.types import Params, Scalar

__all__ = [
    "AbsoluteError",
    "Cosine",
    "LayerwiseCosine",
    "MaxError",
    "RelativeAbsoluteError",
    "RelativeSquaredError",
    "SquaredError",
    "TagError",
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


_SQUARED_ERROR = SquaredError()
"""Made here: the compiler cannot make one within a step."""


@dataclass(frozen=True)
class RelativeSquaredError:
    """Squared error over the squared size of the observed update: `|g - g*|^2 / |g*|^2`."""

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """Relative squared error."""
        return _SQUARED_ERROR(predicted, observed) / _total(part.square().sum() for part in observed.values())


@dataclass(frozen=True)
class RelativeAbsoluteError:
    """Absolute error of each tensor over its absolute size, averaged by size to a power:

        sum_l s_l^p |g_l - g*_l| / |g*_l|  /  sum_l s_l^p,    s_l = |g*_l|, sums of absolute values

    Where a ReLU is on the wrong side, few entries are far off: this cost does not let them outvote the rest. With
    power 1 it is `sum |g - g*| / sum |g*|`; above 1 the large tensors count more; in an untrained chain of
    convolutions those are the late layers.

    Args:
        power: how much more a larger tensor counts; 0 counts all the same.

    Raises:
        ConfigError: a negative power.

    >>> import torch
    >>> observed = {"small": torch.tensor([1.0]), "large": torch.tensor([3.0])}
    >>> predicted = {"small": torch.tensor([2.0]), "large": torch.tensor([3.0])}
    >>> [round(RelativeAbsoluteError(power)(predicted, observed).item(), 3) for power in (0.0, 1.0, 2.0)]
    [0.5, 0.25, 0.1]
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        if not self.power >= 0:
            raise ConfigError(f"the power of a size must not be negative; got {self.power}")

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """Relative absolute error."""
        total = _total(part.abs().sum() for part in observed.values())
        if self.power == 1:
            return AbsoluteError()(predicted, observed) / total
        # A tensor without size has no relative error: it keeps the weight of one a millionth of the update.
        sizes = {name: (observed[name].abs().sum() / total).clamp(min=1e-6) for name in predicted}
        errors = _total(
            (predicted[name] - observed[name]).abs().sum() * sizes[name] ** (self.power - 1) for name in sizes
        )
        return errors / total / _total(size**self.power for size in sizes.values())


@dataclass(frozen=True)
class TagError:
    """Squared error plus absolute errors that count less from tensor to tensor: the objective of TAG.

        |g - g*|_2^2  +  scale sum_l w_l |g_l - g*_l|_1,      w_l falling from 1 to 1 / L

    Deng et al. (2021), arXiv:2103.06819, eq. 4 and 5: the first layers, nearest the input, count most.

    Args:
        scale: of the absolute errors.
        select: the tensors that count.
        weights: of their absolute errors.
    """

    scale: float = 0.1
    select: Selector = AllTensors()
    weights: Weighting = LinearWeights()

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """Squared and weighted absolute error."""
        chosen = _chosen(predicted, observed, self.select, self.weights)
        return _total((p - o).square().sum() + self.scale * weight * (p - o).abs().sum() for p, o, weight in chosen)
