"""Equations and unknowns of each layer: what a layer's gradient can say of its input, before anything is solved.

    linear:       gW = D^T A                      D, A: one row an example and place
    convolution:  gW[o, c, k] = sum_p d[o, p] a[c, s p + k]

The gradient of a layer has rank at most `examples x places`: so its rank bounds the number of examples from below, and
a matrix of rank r holds no more than `r (rows + columns - r)` free numbers. Given the loss gradient at its output, its
equations are linear in its input, with one matrix for all input channels; with a stride that matrix falls into
blocks, one for each residue of the pixel's position. The counting is that of R-GAP's rank analysis (Zhu and Blaschko
2021, arXiv:2010.07733). Counts are upper bounds: equations may depend on each other in further ways.
"""

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from inversefed.fl.clients.views import gradients_summed
from inversefed.fl.threat import Observation
from inversefed.networks.layer_shapes import Geometry, geometry, residues
from inversefed.types import Params

__all__ = ["TOLERANCE", "LayerEquations", "count", "independent_numbers", "numerical_rank"]

TOLERANCE = 32
"""Singular values up to this many roundings of the number format, times the norm of the matrix, count as zero."""

_SPARE = 8
"""A rank is counted up to its bound and this much more, enough to see that the bound is broken."""
_SQUARED = 1e-7
"""Share of the norm above which singular values are told from the matrix's square, which is fast."""
_MOST_ROWS = 512
"""Shorter side up to which the rank of a convolution's gradient is computed."""


@dataclass(frozen=True)
class LayerEquations:
    """What one layer's part of the update can say, and of how much.

    Args:
        name: where the layer stands in the network; `(others)` for weights that no layer of one tensor holds.
        kind: its type.
        entries: how many numbers of the update are its own.
        zeros: how many of them are exactly zero.
        zero_rows: outputs whose whole part of the weight gradient is exactly zero.
        rank: numerical rank of its weight gradient as a matrix, (outputs, inputs x taps); counted up to
            `rank_bound + 8`. `None` where it is not computed.
        rank_bound: the most it can be if the client computed it as said; `None` where its rule does not keep ranks.
        places: at how many positions an example meets the weights.
        numbers: the most independent numbers in its part of the update.
        unknowns: values that go into it, of all examples.
        own: the most independent linear equations on them in its gradient, given the loss gradient at its output.
        measured: `own` is a rank that was computed from this update, not a bound.
        forward: values behind it that are known at most and tell of its input; `None` where that is not followed.
        known: numbers about its input that are known at most, on the way from the head; likewise.
        settled: every layer from the head to this one has as many linear equations as unknowns.
    """

    name: str
    kind: str
    entries: int
    zeros: int
    zero_rows: int
    rank: int | None
    rank_bound: int | None
    places: int
    numbers: int
    unknowns: int
    own: int
    measured: bool = False
    forward: int | None = None
    known: int | None = None
    settled: bool = False

    @property
    def suffices(self) -> bool:
        """Whether its own equations are as many as the unknowns."""
        return self.unknowns > 0 and self.own >= self.unknowns


def independent_numbers(observation: Observation) -> int:
    """How many independent numbers an update holds at most, over all layers."""
    return sum(row.numbers for row in count(observation))


def count(observation: Observation) -> tuple[LayerEquations, ...]:
    """Count equations and unknowns of every layer with weights, from the head to the image.

    >>> from inversefed.fl.clients import FedSGD
    >>> from inversefed.fl.network import freeze
    >>> network = freeze(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2))
    >>> images, labels = torch.rand(2, 3, 2, 2), torch.tensor([2, 0])
    >>> update = FedSGD()(network, images, labels)
    >>> (row,) = count(Observation(network, FedSGD(), update, 2))
    >>> row.rank, row.rank_bound, row.entries, row.numbers, row.unknowns
    (2, 2, 65, 32, 24)
    """
    gradient, seen = observation.gradient, gradients_summed(observation.client, observation.num_examples)
    places = geometry(observation.network)
    found = [_layer(place, observation, gradient, seen) for place in places]
    counted = {name for place in places for name in _own_names(place.name, gradient)}
    rest = [name for name in gradient if name not in counted]
    if rest:
        parts = [gradient[name] for name in rest]
        entries, zeros = sum(part.numel() for part in parts), sum(int((part == 0).sum()) for part in parts)
        found.insert(0, LayerEquations("(others)", "other", entries, zeros, 0, None, None, 1, entries - zeros, 0, 0))
    return tuple(reversed(found))


def numerical_rank(matrix: Tensor, noise: float, most: int | None = None) -> int:
    """Count the singular values above a tolerance.

    Args:
        matrix: two-dimensional.
        noise: singular values up to it count as zero.
        most: count no further than this, through a random projection, which keeps such ranks.

    >>> numerical_rank(torch.outer(torch.arange(1.0, 5.0), torch.ones(3)), noise=1e-4)
    1
    """
    matrix = matrix.T if matrix.shape[0] < matrix.shape[1] else matrix
    if most is not None and 2 * most < matrix.shape[1]:
        mix = torch.randn((matrix.shape[1], most), generator=Generator().manual_seed(0), dtype=torch.float64)
        matrix = matrix @ (mix / math.sqrt(most)).to(matrix)
    matrix = matrix.detach().to("cpu", torch.float64)
    if noise > _SQUARED * float(matrix.norm()):
        values = torch.linalg.eigvalsh(matrix.T @ matrix).clamp(min=0).sqrt()
    else:
        values = torch.linalg.svdvals(torch.linalg.qr(matrix, mode="r")[1])
    return int((values > noise).sum())


def _layer(place: Geometry, observation: Observation, gradient: Params, seen: int | None) -> LayerEquations:
    names = _own_names(place.name, gradient)
    parts = [gradient[name] for name in names]
    entries, zeros = sum(part.numel() for part in parts), sum(int((part == 0).sum()) for part in parts)
    kind, weight = type(place.module).__name__, gradient.get(_join(place.name, "weight"))
    positions = place.runs * _positions(place)
    unknowns = observation.num_examples * place.runs * math.prod(place.inputs)
    if weight is None or not isinstance(place.module, nn.Linear | nn.Conv2d):
        return LayerEquations(place.name, kind, entries, zeros, 0, None, None, positions, entries - zeros, unknowns, 0)
    matrix = weight.detach().flatten(1)
    bias = gradient.get(_join(place.name, "bias"))
    grouped = isinstance(place.module, nn.Conv2d) and place.module.groups > 1
    bound = None if seen is None or grouped else min(*matrix.shape, seen * positions)
    rank = _rank(matrix, place, observation, bound)
    whole = matrix if bias is None else torch.cat([matrix, bias.detach()[:, None]], dim=1)
    numbers = entries - zeros if bound is None else _free(whole, None if seen is None else seen * positions)
    return LayerEquations(
        place.name, kind, entries, zeros, int((matrix == 0).all(dim=1).sum()), rank, bound, positions,
        numbers, unknowns, _own(place, observation.num_examples, matrix),
    )  # fmt: skip


def _own_names(layer: str, gradient: Params) -> tuple[str, ...]:
    return tuple(name for name in gradient if name.rpartition(".")[0] == layer)


def _join(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name


def _positions(place: Geometry) -> int:
    """At how many places one run meets the weights."""
    if isinstance(place.module, nn.Conv2d):
        return math.prod(place.outputs[1:])
    return math.prod(place.inputs[:-1]) if isinstance(place.module, nn.Linear) else 1


def _rank(matrix: Tensor, place: Geometry, observation: Observation, bound: int | None) -> int | None:
    if bound is None or (isinstance(place.module, nn.Conv2d) and min(matrix.shape) > _MOST_ROWS):
        return None
    noise = TOLERANCE * torch.finfo(matrix.dtype).eps * (float(matrix.norm()) + _lost(place, observation))
    return numerical_rank(matrix, noise, bound + _SPARE)


def _lost(place: Geometry, observation: Observation) -> float:
    """By what a difference of weights rounds more than a gradient: the weights' norm, at the gradient's scale."""
    steps = observation.unrolled
    if steps is None:
        return 0.0
    weight = observation.network.params[_join(place.name, "weight")]
    return float(weight.detach().norm()) / (steps.lr * steps.count)


def _free(matrix: Tensor, most: int | None) -> int:
    """The most free numbers in the part of a matrix that is not zero, at rank `most`."""
    rows, columns = int((matrix != 0).any(dim=1).sum()), int((matrix != 0).any(dim=0).sum())
    rank = min(rows, columns) if most is None else min(rows, columns, most)
    return rank * (rows + columns - rank)


def _own(place: Geometry, examples: int, matrix: Tensor) -> int:
    """The most independent equations on the layer's input, given the loss gradient at its output."""
    if not bool(matrix.any()):
        return 0
    if isinstance(place.module, nn.Linear):
        return matrix.shape[1] * min(matrix.shape[0], examples * place.runs * _positions(place))
    module = place.module
    assert isinstance(module, nn.Conv2d)
    outputs, pixels = module.out_channels // module.groups, examples * place.runs
    down, across = (residues(module, place.inputs, place.outputs, axis) for axis in (0, 1))
    blocks = (min(outputs * t * u, pixels * p * q) for t, p in down for u, q in across)
    return place.inputs[0] * sum(blocks)
