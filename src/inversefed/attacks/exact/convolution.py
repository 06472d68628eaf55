"""The input of a convolution from its weight gradient and its output: one linear least-squares problem.

With `d` the loss gradient at the output and `a` the input,

    gW[o, c, k] = sum_p d[o, p] a[c, s p + k]         the same matrix K(d) for every input channel c
    slope * (W a)[o, p] = slope * (z[o, p] - b[o])    the forward pass, each row weighted by its activation's slope

are linear in `a`. Where the first kind alone has full rank, QR solves it channel by channel. Else both are needed:
a saturated activation tells little of its input, and its slope says so. That system is solved by LSMR (Fong and
Saunders 2011), preconditioned with the Cholesky factor of its normal equations in single precision: ten iterations
then do where a factor for each channel alone, which is left for many unknowns, takes a thousand. R-GAP (Zhu and
Blaschko 2021, arXiv:2010.07733) solves the same equations unweighted. Whether they settle the input is asked of the
equations themselves: what a known input would give is solved for in the same way, and must be that input again.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, lsmr
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from inversefed.errors import UnsupportedNetworkError

__all__ = ["Solved", "require_plain", "solve_convolution", "transposed"]

_MOST_PIXELS = 4096
_WELL_CONDITIONED = 1e-3
_TOGETHER = 4096
"""Unknowns up to which one factor of all channels costs less than the iterations that it saves."""
_MOST_PRODUCTS = 2e8
"""Likewise, for the multiplications that the forward part of that factor takes."""
_RIDGE = 1e-6
"""Added to the factor's diagonal, relative to its mean: about the rounding of single precision."""


@dataclass(frozen=True, eq=False)
class Solved:
    """What went into a convolution.

    Args:
        values: the input, `[c, h, w]`.
        unseen: the share of a random input, by its square, that the equations do not give back; 0 where they settle it.
    """

    values: Tensor = field(repr=False)
    unseen: float


def solve_convolution(
    layer: nn.Conv2d,
    shape: tuple[int, int, int],
    weight_gradient: Tensor,
    delta: Tensor,
    output: Tensor,
    slope: Tensor,
    tolerance: float,
    go_on: Callable[[], None] = lambda: None,
) -> Solved:
    """Solve for what went into a convolution, in double precision.

    Args:
        layer: the convolution, double precision.
        shape: `(c, h, w)` of its input.
        weight_gradient: gradient of the loss with respect to its weight.
        delta: gradient of the loss with respect to its output, `[o, p, q]`.
        output: its output, where known.
        slope: how much each output counts; zero where it is not known.
        tolerance: relative accuracy of the data, at which LSMR stops.
        go_on: called in each of its iterations; it may raise.

    Raises:
        UnsupportedNetworkError: groups, dilation, non-zero padding modes, or too many pixels.
    """
    require_plain(layer, shape)
    matrix = gradient_matrix(layer, shape, delta)
    rows = weight_gradient.permute(0, 2, 3, 1).reshape(-1, shape[0])
    direct = _by_gradient_alone(matrix, rows)
    if direct is not None:
        return Solved(direct.T.reshape(shape), 0.0)
    system = _System.of(layer, shape, matrix, slope)
    forward = (output - (0 if layer.bias is None else layer.bias.detach()[:, None, None])) * slope
    target = torch.cat([(rows * system.row_scale).flatten(), (forward * system.forward_scale).flatten()])
    probe = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(0)).double() * 2 - 1
    solution, again = (_solved(system, known, tolerance, go_on) for known in (target, system.rows(probe.flatten(1))))
    return Solved(solution, float((again - probe).square().mean().nan_to_num(nan=1.0)))


def _solved(system: "_System", target: Tensor, tolerance: float, go_on: Callable[[], None]) -> Tensor:
    """The least-squares solution, `[c, h, w]`."""

    def apply(x: Any) -> Any:
        go_on()
        return system.apply(torch.from_numpy(x)).numpy()

    operator = LinearOperator(
        (target.numel(), math.prod(system.shape)),
        matvec=apply,
        rmatvec=lambda y: system.adjoint(torch.from_numpy(y)).numpy(),
        dtype=np.float64,
    )
    solution = lsmr(operator, target.numpy(), atol=tolerance, btol=tolerance, conlim=0, maxiter=3000)[0]
    return system.precondition(torch.from_numpy(solution)).reshape(system.shape)


def _by_gradient_alone(matrix: Tensor, rows: Tensor) -> Tensor | None:
    """The least-squares solution of the gradient's own equations, `[pixels, c]`, where they are well conditioned."""
    if matrix.shape[0] < matrix.shape[1]:
        return None
    q, r = torch.linalg.qr(matrix)
    diagonal = r.diagonal().abs()
    if diagonal.min() <= _WELL_CONDITIONED * diagonal.max():
        return None
    solution: Tensor = torch.linalg.solve_triangular(r, q.T @ rows, upper=True)
    return solution


def require_plain(layer: nn.Conv2d, shape: Sequence[int]) -> None:
    """Refuse convolutions whose equations are not solved.

    Args:
        layer: the convolution.
        shape: `(c, h, w)` of its input or of its output.

    Raises:
        UnsupportedNetworkError: groups, dilation, non-zero padding modes, or too many pixels.
    """
    plain = layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
    if not plain or isinstance(layer.padding, str) or shape[1] * shape[2] > _MOST_PIXELS:
        raise UnsupportedNetworkError(
            f"a convolution is solved without groups and dilation, with zero padding, and for at most {_MOST_PIXELS} "
            f"pixels; got {layer} on {shape[1]}x{shape[2]}"
        )


@dataclass(frozen=True, eq=False)
class _System:
    """The two kinds of equations as one operator, each kind scaled to rows of about unit length.

    The factor is that of all channels, or, where they are too many, of one channel for each of them.
    """

    layer: nn.Conv2d
    shape: tuple[int, int, int]
    slope: Tensor = field(repr=False)
    matrix: Tensor = field(repr=False)
    factor: Tensor = field(repr=False)
    row_scale: float
    forward_scale: float

    @classmethod
    def of(cls, layer: nn.Conv2d, shape: tuple[int, int, int], matrix: Tensor, slope: Tensor) -> "_System":
        row_scale = 1 / float(matrix.square().sum(dim=1).mean().sqrt())
        length = float(layer.weight.detach().flatten(1).norm(dim=1).mean() * slope.square().mean().sqrt())
        forward_scale = 1 / length if length > 0 else 0.0
        matrix, scaled = matrix * row_scale, slope * forward_scale
        products = slope[0].numel() * layer.weight.numel() * layer.weight[0].numel()
        together = math.prod(shape) <= _TOGETHER and products <= _MOST_PRODUCTS
        gram = (_joint_gram if together else _channel_gram)(layer, shape, matrix.float(), scaled)
        return cls(layer, shape, slope, matrix, _factor(gram).double(), row_scale, forward_scale)

    def precondition(self, x: Tensor) -> Tensor:
        """From the solver's variables, in any shape, to the input, `[c, pixels]`."""
        columns = x.reshape(-1, self.factor.shape[0]).T
        solution: Tensor = torch.linalg.solve_triangular(self.factor.T, columns, upper=True)
        return solution.T.reshape(self.shape[0], -1)

    def apply(self, x: Tensor) -> Tensor:
        return self.rows(self.precondition(x))

    def rows(self, a: Tensor) -> Tensor:
        """What an input, `[c, pixels]`, makes of both kinds of equations."""
        forward = F.conv2d(
            a.reshape(1, *self.shape), self.layer.weight.detach(), None, self.layer.stride, self.layer.padding
        )
        return torch.cat([(self.matrix @ a.T).flatten(), (forward[0] * self.slope * self.forward_scale).flatten()])

    def adjoint(self, y: Tensor) -> Tensor:
        split = self.matrix.shape[0] * self.shape[0]
        rows, forward = y[:split].reshape(-1, self.shape[0]), y[split:].reshape(1, *self.slope.shape)
        back = transposed(self.layer, self.layer.weight, self.shape, forward * self.slope * self.forward_scale)
        gradient = rows.T @ self.matrix + back.reshape(self.shape[0], -1)
        columns = gradient.reshape(-1, self.factor.shape[0]).T
        solution: Tensor = torch.linalg.solve_triangular(self.factor, columns, upper=False)
        return solution.T.flatten()


def _factor(gram: Tensor) -> Tensor:
    """Cholesky factor of `gram`, which is changed: it gets as much of a ridge as rounding makes necessary."""
    ridge, scale = _RIDGE, gram.diagonal().mean()
    while True:
        gram.diagonal().add_(ridge * scale)
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(gram)
        if not info or ridge > 1:
            return factor
        ridge *= 100


def _joint_gram(layer: nn.Conv2d, shape: tuple[int, int, int], matrix: Tensor, slope: Tensor) -> Tensor:
    """`A^T A` of both kinds of equations for all channels, in single precision, `[c pixels, c pixels]`."""
    forward = _forward_matrix(layer, shape, slope).astype(np.float32)
    gram, own, pixels = torch.from_numpy((forward.T @ forward).toarray()), matrix.T @ matrix, matrix.shape[1]
    for first in range(0, gram.shape[0], pixels):
        gram[first : first + pixels, first : first + pixels] += own
    return gram


def _channel_gram(layer: nn.Conv2d, shape: tuple[int, int, int], matrix: Tensor, slope: Tensor) -> Tensor:
    """The same for one channel, of the forward pass only the mean diagonal, `[pixels, pixels]`."""
    diagonal = transposed(layer, layer.weight.detach().square(), shape, slope.square()[None])
    return matrix.T @ matrix + diagonal.mean(dim=0).flatten().diag().to(matrix)


def _forward_matrix(layer: nn.Conv2d, shape: tuple[int, int, int], slope: Tensor) -> sparse.csr_matrix:
    """The convolution as a sparse matrix, each row weighted by its slope, `[o p q, c h w]`."""
    places = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64).reshape(1, *shape)
    seen = F.unfold(places, layer.kernel_size, padding=_padding(layer), stride=layer.stride)[0].long()
    columns = seen.T.expand(len(slope), -1, -1)  # [o, p q, c taps], 0 in the padding
    values = layer.weight.detach().flatten(1)[:, None, :] * slope.flatten(1)[:, :, None]
    rows = torch.arange(slope.numel()).reshape(*values.shape[:2], 1).expand_as(columns)
    inside = columns > 0
    entries = values[inside].numpy(), (rows[inside].numpy(), columns[inside].numpy() - 1)
    return sparse.csr_matrix(entries, shape=(slope.numel(), math.prod(shape)))


def transposed(layer: nn.Conv2d, weight: Tensor, shape: tuple[int, ...], outputs: Tensor) -> Tensor:
    """Apply the transposed convolution to `[1, o, p, q]` and return `[c, h, w]`."""
    inputs: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
        (1, *shape), weight.detach(), outputs, layer.stride, layer.padding
    )
    return inputs[0]


def gradient_matrix(layer: nn.Conv2d, shape: tuple[int, int, int], delta: Tensor) -> Tensor:
    """The matrix that takes one input channel, flattened, to its part of the weight gradient.

    Rows are (output channel, tap), columns the pixels of the input.
    """
    kernel, stride = (layer.kernel_size[0], layer.kernel_size[1]), (layer.stride[0], layer.stride[1])
    return correlation_matrix(kernel, stride, _padding(layer), shape, delta)


def _padding(layer: nn.Conv2d) -> tuple[int, int]:
    return (int(layer.padding[0]), int(layer.padding[1])) if isinstance(layer.padding, tuple) else (0, 0)


def correlation_matrix(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    shape: tuple[int, int, int],
    delta: Tensor,
) -> Tensor:
    """`gradient_matrix` from a convolution's geometry alone: `[o k l, h w]`."""
    pixels, outputs = shape[1] * shape[2], delta.shape[0]
    places = torch.arange(1, pixels + 1, dtype=torch.float64).reshape(1, 1, *shape[1:])
    seen = F.unfold(places, kernel, padding=padding, stride=stride)[0].long()
    taps = seen.shape[0]
    matrix = delta.new_zeros(outputs, taps, pixels + 1)  # column 0 collects the padding
    matrix.scatter_add_(2, seen.expand(outputs, -1, -1), delta.reshape(outputs, 1, -1).expand(-1, taps, -1))
    return matrix[:, :, 1:].reshape(outputs * taps, pixels)
