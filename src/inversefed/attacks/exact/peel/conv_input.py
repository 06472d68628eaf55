"""The inputs of a convolution from its weight gradient and its outputs: one linear least-squares problem.

With `d` the loss gradient at the outputs of a batch and `a` what went in,

    gW[o, c, k] = sum_ip d[i, o, p] a[i, c, s p + k]  the same matrix K(d) for every input channel c
    slope * (W a)[i, o, p] = slope * (z[i, o, p] - b[o])  the forward pass, each row weighted by its activation's slope

are linear in `a`. Where the first kind alone has full rank, QR solves it channel by channel. Else both are needed
(see `conv_least_squares`). R-GAP (Zhu and Blaschko 2021, arXiv:2010.07733) solves the same equations unweighted, for
one example. Whether they settle the input is asked of the equations themselves: what a known input would give is
solved for in the same way, and must be that input again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import scipy
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from inversefed.attacks.exact.peel.conv_least_squares import Joint
from inversefed.errors import UnsupportedNetworkError
from inversefed.networks.layer_shapes import padding_of
from inversefed.thresholds import DETERMINED

__all__ = [
    "Solved",
    "by_gradient_alone",
    "by_sign",
    "gradient_matrix",
    "gradient_rows",
    "misfit",
    "require_plain",
    "solve_convolution",
    "transposed",
]


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        most_pixels: of a channel, whose equations are a dense matrix.
        well_conditioned: the least of the diagonal of R, relative to its greatest, with which the gradient alone is
            enough.
        most_signed: the most unknowns of a channel where more than `DETERMINED` is open and signs are asked.
        same: up to what relative difference two solutions are the same, and numbers and singular values zero.
        mostly: the share of the channels that has to be settled by signs.
        clearly: how many more zeros than twice the open ways a settled channel has.
        faint: share of the median gradient, of the channels that have one, below which rounding of the loss gradient
            outweighs a channel's own.
        apart: least weight of an unknown in the second search, whose weights are drawn, so that it comes another way.
    """

    most_pixels: int = 4096
    well_conditioned: float = 1e-3
    most_signed: int = 1024
    same: float = 1e-4
    mostly: float = 0.5
    clearly: int = 4
    faint: float = 0.1
    apart: float = 0.25


TOLERANCES = Tolerances()


@dataclass(frozen=True, eq=False)
class Solved:
    """What went into a convolution.

    Args:
        values: the inputs, `[n, c, h, w]`.
        unseen: the share of a random input, by its square, that the equations do not give back; 0 where they settle it.
        misfit: the greatest `misfit` of a channel.
        settled: which channels are; the others are near, at best.
    """

    values: Tensor = field(repr=False)
    unseen: float
    misfit: float
    settled: Tensor = field(repr=False)

    @property
    def determined(self) -> bool:
        """Whether equations, or signs, leave hardly anything of it open."""
        return self.unseen <= DETERMINED


def solve_convolution(
    layer: nn.Conv2d,
    shape: tuple[int, int, int],
    weight_gradient: Tensor,
    delta: Tensor,
    output: Tensor,
    slope: Tensor,
    tolerance: float,
    go_on: Callable[[], None] = lambda: None,
    beside: tuple[Tensor, Tensor] | None = None,
    signed: float = 0.0,
) -> Solved:
    """Solve for what went into a convolution, in double precision.

    Args:
        layer: the convolution, double precision.
        shape: `(c, h, w)` of its input.
        weight_gradient: gradient of the loss with respect to its weight.
        delta: gradient of the loss with respect to its outputs, `[n, o, p, q]`.
        output: its outputs, where known.
        slope: how much each output counts; zero where it is not known.
        tolerance: relative accuracy of the data, at which LSMR stops.
        go_on: called in each of its iterations, and for each channel whose signs are asked; it may raise.
        beside: `gradient_matrix` and `gradient_rows` of another convolution with the same input.
        signed: the relative error up to which equations hold, if no input is negative; 0 where that is not known.

    Raises:
        UnsupportedNetworkError: groups, dilation, non-zero padding modes, or too many pixels.
    """
    require_plain(layer, (shape[0], len(delta) * shape[1], shape[2]))
    matrix, rows = gradient_matrix(layer, shape, delta), gradient_rows(weight_gradient)
    own = len(rows)
    if beside is not None:
        matrix, rows = (torch.cat(pair) for pair in zip((matrix, rows), beside, strict=True))
    settled, direct = torch.ones(shape[0], dtype=torch.bool), by_gradient_alone(matrix, rows)
    if direct is not None:
        solution, unseen = images(direct.T, shape), 0.0
    else:
        joint = Joint.of(layer, shape, matrix, slope)
        bias = 0 if layer.bias is None else layer.bias.detach()[:, None, None]
        solution = joint.solved(joint.known(rows, output - bias), tolerance, go_on)
        probe = torch.randint(0, 2, (len(delta), *shape), generator=torch.Generator().manual_seed(0)).double() * 2 - 1
        again = joint.solved(joint.rows(probe), tolerance, go_on)
        unseen = float((again - probe).square().mean().nan_to_num(nan=1.0))
    if signed and unseen > DETERMINED and len(delta) == 1 and matrix.shape[1] <= TOLERANCES.most_signed:
        found, known = by_sign(matrix, rows, signed, go_on)
        if float(known.double().mean()) > TOLERANCES.mostly:
            solution, unseen, settled = images(found.T, shape), 0.0, known
    rest = (rows - matrix @ solution.transpose(0, 1).flatten(1).T)[:own]
    return Solved(solution, unseen, float(misfit(rest, weight_gradient).max()), settled)


def misfit(rest: Tensor, weight_gradient: Tensor) -> Tensor:
    """Share of each output channel's weight gradient that no input explains, `[o]`.

    Args:
        rest: what is left of `gradient_rows`, `[o k l, c]`.
        weight_gradient: gradient of the loss with respect to the weight.
    """
    size = weight_gradient.flatten(1).norm(dim=1)
    alive = size[size > 0]  # a channel that is off at every place has no part in it
    typical = float(alive.median()) if len(alive) else 1.0
    shares: Tensor = rest.reshape(len(size), -1).norm(dim=1) / (size + TOLERANCES.faint * typical)
    return shares


def images(columns: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """From all pixels of a channel in one row, `[c, n h w]`, to `[n, c, h, w]`."""
    return columns.reshape(shape[0], -1, *shape[1:]).transpose(0, 1)


def gradient_rows(weight_gradient: Tensor) -> Tensor:
    """The right-hand sides that belong to `gradient_matrix`, `[o k l, c]`."""
    return weight_gradient.permute(0, 2, 3, 1).reshape(-1, weight_gradient.shape[1])


def by_gradient_alone(matrix: Tensor, rows: Tensor) -> Tensor | None:
    """The least-squares solution of the gradient's own equations, `[pixels, c]`, where they are well conditioned."""
    factors = conditioned(matrix)
    return None if factors is None else torch.linalg.solve_triangular(factors[1], factors[0].T @ rows, upper=True)


def by_sign(
    matrix: Tensor, rows: Tensor, tolerance: float, go_on: Callable[[], None] = lambda: None
) -> tuple[Tensor, Tensor]:
    """The channels that too few equations settle all the same, since no value is negative and many are zero.

    Of all inputs that fulfill the equations, those without negative numbers may be one alone, where many of its numbers
    are zeros (Bruckstein et al. 2008, doi:10.1109/TIT.2008.929920). A channel counts as settled if its zeros are
    clearly more than twice the ways that the equations leave open, and a second search, which comes another way through
    the unknowns, ends at the same numbers.

    Args:
        matrix: `gradient_matrix`.
        rows: its right-hand sides, `[equations, c]`.
        tolerance: the relative error up to which equations hold.
        go_on: called for each channel; it may raise.

    Returns:
        The values, `[pixels, c]`, the mean of both searches where they differ, and which channels are settled, `[c]`.
    """
    order = (
        torch.rand(matrix.shape[1], generator=torch.Generator().manual_seed(0), dtype=matrix.dtype) + TOLERANCES.apart
    )
    found, fulfilled = _not_negative(matrix, rows, tolerance, go_on)
    again, too = _not_negative(matrix * order, rows, tolerance, go_on)
    again = again * order[:, None]
    same = (again - found).norm(dim=0) <= TOLERANCES.same * found.norm(dim=0)
    sizes = torch.linalg.svdvals(matrix)
    ways = matrix.shape[1] - int((sizes > TOLERANCES.same * sizes[0]).sum())
    same &= (found <= TOLERANCES.same * found.amax(dim=0)).sum(dim=0) > 2 * ways + TOLERANCES.clearly
    return torch.where(same, found, (found + again) / 2), fulfilled & too & same


def _not_negative(matrix: Tensor, rows: Tensor, tolerance: float, go_on: Callable[[], None]) -> tuple[Tensor, Tensor]:
    """For each right-hand side a solution without negative numbers, `[pixels, c]`, and whether there is one, `[c]`."""
    found = torch.zeros(matrix.shape[1], rows.shape[1], dtype=matrix.dtype)
    fulfilled = torch.zeros(rows.shape[1], dtype=torch.bool)
    for number, column in enumerate(rows.T):
        go_on()
        try:
            found[:, number] = torch.from_numpy(scipy.optimize.nnls(matrix.numpy(), column.numpy())[0])
        except RuntimeError:  # it takes too many steps
            continue
        off = float((matrix @ found[:, number] - column).norm())
        fulfilled[number] = off <= tolerance * float(column.norm())
    return found, fulfilled


def conditioned(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """The QR factors of a matrix, where they show that it has full rank and is well conditioned."""
    if matrix.shape[0] < matrix.shape[1]:
        return None
    q, r = torch.linalg.qr(matrix)
    diagonal = r.diagonal().abs()
    return None if diagonal.min() <= TOLERANCES.well_conditioned * diagonal.max() else (q, r)


def require_plain(layer: nn.Conv2d, shape: Sequence[int]) -> None:
    """Refuse convolutions whose equations are not solved.

    Args:
        layer: the convolution.
        shape: `(c, h, w)` of its input or of its output.

    Raises:
        UnsupportedNetworkError: groups, dilation, non-zero padding modes, or too many pixels.
    """
    plain = layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros"
    if not plain or isinstance(layer.padding, str) or shape[1] * shape[2] > TOLERANCES.most_pixels:
        raise UnsupportedNetworkError(
            "a convolution is solved without groups and dilation, with zero padding, and for at most "
            f"{TOLERANCES.most_pixels} pixels; got {layer} on {shape[1]}x{shape[2]}"
        )


def transposed(layer: nn.Conv2d, shape: tuple[int, ...], outputs: Tensor) -> Tensor:
    """Apply the transposed convolution to `[n, o, p, q]` and return `[n, c, h, w]`."""
    inputs: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
        (len(outputs), *shape), layer.weight.detach(), outputs, layer.stride, layer.padding
    )
    return inputs


def gradient_matrix(layer: nn.Conv2d, shape: tuple[int, int, int], delta: Tensor) -> Tensor:
    """The matrix that takes one input channel of all examples, flattened, to its part of the weight gradient.

    Rows are (output channel, tap), columns (example, pixel of the input).
    """
    kernel, stride = (layer.kernel_size[0], layer.kernel_size[1]), (layer.stride[0], layer.stride[1])
    return correlation_matrix(kernel, stride, padding_of(layer), shape, delta)


def correlation_matrix(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    shape: tuple[int, int, int],
    delta: Tensor,
) -> Tensor:
    """`gradient_matrix` from a convolution's geometry alone: `[o k l, n h w]`."""
    (number, outputs), pixels = delta.shape[:2], shape[1] * shape[2]
    places = torch.arange(1, pixels + 1, dtype=torch.float64).reshape(1, 1, *shape[1:])
    seen = F.unfold(places, kernel, padding=padding, stride=stride)[0].long()
    taps = seen.shape[0]
    matrix = delta.new_zeros(outputs, taps, number, pixels + 1)  # column 0 collects the padding
    own = delta.flatten(2).transpose(0, 1)[:, None].expand(-1, taps, -1, -1)
    matrix.scatter_add_(3, seen[:, None].expand(outputs, -1, number, -1), own)
    return matrix[..., 1:].reshape(outputs * taps, number * pixels)
