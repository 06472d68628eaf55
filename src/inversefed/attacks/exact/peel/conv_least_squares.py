"""The equations of a convolution's weight gradient and of its forward pass, solved together.

A saturated activation tells little of its input, and its slope says so: each row of the forward pass is weighted by it.
The system is solved by LSMR (Fong and Saunders 2011), preconditioned with the Cholesky factor of its normal equations
in single precision: ten iterations then do where a factor for each channel alone, which is left for many unknowns,
takes a thousand.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import scipy
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from inversefed.errors import UnsupportedNetworkError
from inversefed.networks.layer_shapes import padding_of

__all__ = ["Joint", "cholesky"]


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        together: unknowns up to which one factor of all channels costs less than the iterations that it saves.
        most_products: likewise, for the multiplications that the forward part of that factor takes.
        iterations: most of the solver's.
        fewer: likewise for several examples: what takes more there is not known well enough to go on.
        ridge: added to the factor's diagonal, relative to its mean: about the rounding of single precision.
    """

    together: int = 4096
    most_products: float = 2e8
    iterations: int = 3000
    fewer: int = 500
    ridge: float = 1e-6


TOLERANCES = Tolerances()
_OUT_OF_ITERATIONS = 7
"""What LSMR says where it ends for want of iterations."""


@dataclass(frozen=True, eq=False)
class Joint:
    """The two kinds of equations as one operator, each kind scaled to rows of about unit length.

    Inputs are `[n, c, h, w]`; the solver's variables have a channel's pixels of all examples in one row. The factor is
    that of all channels, or, where they are too many, of one channel for each of them.
    """

    layer: nn.Conv2d
    shape: tuple[int, int, int]
    slope: Tensor = field(repr=False)
    matrix: Tensor = field(repr=False)
    factor: Tensor = field(repr=False)
    row_scale: float
    forward_scale: float

    @classmethod
    def of(cls, layer: nn.Conv2d, shape: tuple[int, int, int], matrix: Tensor, slope: Tensor) -> "Joint":
        """Set the equations up.

        Args:
            layer: the convolution, double precision.
            shape: `(c, h, w)` of its input.
            matrix: `gradient_matrix`, `[o k l, n h w]`.
            slope: weight of each output in the forward pass, `[n, o, p, q]`.
        """
        row_scale = 1 / float(matrix.square().sum(dim=1).mean().sqrt())
        length = float(layer.weight.detach().flatten(1).norm(dim=1).mean() * slope.square().mean().sqrt())
        forward_scale = 1 / length if length > 0 else 0.0
        matrix, scaled = matrix * row_scale, slope * forward_scale
        products = len(slope) * slope[0, 0].numel() * layer.weight.numel() * layer.weight[0].numel()
        together = len(slope) * math.prod(shape) <= TOLERANCES.together and products <= TOLERANCES.most_products
        gram = (_joint_gram if together else _channel_gram)(layer, shape, matrix.float(), scaled)
        return cls(layer, shape, slope, matrix, cholesky(gram).double(), row_scale, forward_scale)

    def solved(self, target: Tensor, tolerance: float, go_on: Callable[[], None]) -> Tensor:
        """The least-squares solution, `[n, c, h, w]`.

        Raises:
            UnsupportedNetworkError: of several examples, it takes too many iterations.
        """

        def apply(x: Any) -> Any:
            go_on()
            return self.rows(self._precondition(torch.from_numpy(x))).numpy()

        operator = scipy.sparse.linalg.LinearOperator(
            (target.numel(), len(self.slope) * math.prod(self.shape)),
            matvec=apply,
            rmatvec=lambda y: self._adjoint(torch.from_numpy(y)).numpy(),
            dtype=np.float64,
        )
        most = TOLERANCES.iterations if len(self.slope) == 1 else TOLERANCES.fewer
        solution, reason, *_ = scipy.sparse.linalg.lsmr(
            operator, target.numpy(), atol=tolerance, btol=tolerance, conlim=0, maxiter=most
        )
        if reason == _OUT_OF_ITERATIONS and len(self.slope) > 1:
            raise UnsupportedNetworkError(
                f"the equations of {self.layer} hardly tell the inputs of {len(self.slope)} examples apart"
            )
        return self._precondition(torch.from_numpy(solution))

    def known(self, rows: Tensor, outputs: Tensor) -> Tensor:
        """The right-hand side: the weight gradient, `[o k l, c]`, and the outputs without their bias."""
        return torch.cat([(rows * self.row_scale).flatten(), (outputs * self.slope * self.forward_scale).flatten()])

    def rows(self, a: Tensor) -> Tensor:
        """What inputs, `[n, c, h, w]`, make of both kinds of equations."""
        forward = F.conv2d(a, self.layer.weight.detach(), None, self.layer.stride, self.layer.padding)
        gradient = self.matrix @ a.transpose(0, 1).flatten(1).T
        return torch.cat([gradient.flatten(), (forward * self.slope * self.forward_scale).flatten()])

    def _adjoint(self, y: Tensor) -> Tensor:
        split = self.matrix.shape[0] * self.shape[0]
        rows, forward = y[:split].reshape(-1, self.shape[0]), y[split:].reshape(self.slope.shape)
        back = conv2d_input(  # type: ignore[no-untyped-call]
            (len(self.slope), *self.shape), self.layer.weight.detach(), forward * self.slope * self.forward_scale,
            self.layer.stride, self.layer.padding,
        )  # fmt: skip
        gradient = rows.T @ self.matrix + back.transpose(0, 1).reshape(self.shape[0], -1)
        columns = gradient.reshape(-1, self.factor.shape[0]).T
        solution: Tensor = torch.linalg.solve_triangular(self.factor, columns, upper=False)
        return solution.T.flatten()

    def _precondition(self, x: Tensor) -> Tensor:
        """From the solver's variables, in any shape, to the inputs."""
        columns = x.reshape(-1, self.factor.shape[0]).T
        solution: Tensor = torch.linalg.solve_triangular(self.factor.T, columns, upper=True)
        return solution.T.reshape(self.shape[0], -1, *self.shape[1:]).transpose(0, 1)


def cholesky(gram: Tensor) -> Tensor:
    """Cholesky factor of `gram`, which is changed: it gets as much of a ridge as rounding makes necessary."""
    ridge, scale = TOLERANCES.ridge, gram.diagonal().mean()
    while True:
        gram.diagonal().add_(ridge * scale)
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(gram)
        if not info or ridge > 1:
            return factor
        ridge *= 100


def _joint_gram(layer: nn.Conv2d, shape: tuple[int, int, int], matrix: Tensor, slope: Tensor) -> Tensor:
    """`A^T A` of both kinds of equations for all channels, in single precision, `[c n pixels, c n pixels]`."""
    forward = _forward_matrix(layer, shape, slope).astype(np.float32)
    gram, own, pixels = torch.from_numpy((forward.T @ forward).toarray()), matrix.T @ matrix, matrix.shape[1]
    for first in range(0, gram.shape[0], pixels):
        gram[first : first + pixels, first : first + pixels] += own
    return gram


def _channel_gram(layer: nn.Conv2d, shape: tuple[int, int, int], matrix: Tensor, slope: Tensor) -> Tensor:
    """The same for one channel, of the forward pass only the mean diagonal, `[n pixels, n pixels]`."""
    diagonal = conv2d_input(  # type: ignore[no-untyped-call]
        (len(slope), *shape), layer.weight.detach().square(), slope.square(), layer.stride, layer.padding
    )
    gram: Tensor = matrix.T @ matrix + diagonal.mean(dim=1).flatten().diag().to(matrix)
    return gram


def _forward_matrix(layer: nn.Conv2d, shape: tuple[int, int, int], slope: Tensor) -> "scipy.sparse.csr_matrix":
    """The convolution as a sparse matrix, each row weighted by its slope, `[n o p q, c n h w]`."""
    places = torch.arange(1, len(slope) * math.prod(shape) + 1, dtype=torch.float64)
    places = places.reshape(shape[0], -1, *shape[1:]).transpose(0, 1)
    seen = F.unfold(places, layer.kernel_size, padding=padding_of(layer), stride=layer.stride).long()
    columns = seen.transpose(1, 2)[:, None].expand(-1, slope.shape[1], -1, -1)  # [n, o, p q, c taps], 0 in the padding
    values = layer.weight.detach().flatten(1)[:, None, :] * slope.flatten(2)[..., None]
    rows = torch.arange(slope.numel()).reshape(*values.shape[:3], 1).expand_as(columns)
    inside = columns > 0
    entries = values[inside].numpy(), (rows[inside].numpy(), columns[inside].numpy() - 1)
    return scipy.sparse.csr_matrix(entries, shape=(slope.numel(), len(slope) * math.prod(shape)))
