"""Recover the ReLU activation pattern in front of an average pooling, which hides it.

Behind the average the loss gradient at a channel is one number, `d[i, o]` for example i, and below the ReLU it is
`d[i, o] m[i, o, p]` with `m` 0 or 1. So the weight gradient of the convolution in front of the ReLU is, tap by tap,

    gW[o, c, k] = (M T_k A)[o, c],    M[o, (i, p)] = d[i, o] m[i, o, p],    A[(i, p), c] = what went in,

where `T_k` moves each example by the tap `k` and loses what it moves over the border. The moves come out up to a
change of basis (see `shift_operators`). One upwards and one to the left both take the corner away, and only it: what
both annihilate is spanned by the n corners, and other moves lead from them to all places. Among the sums of the
corners' columns, that of example i is 0 or 1 after division by `d[i]`: `b^2 = b`, which is linear in the products of
its coefficients. Everything is algebra, and nothing is searched. Own derivation.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inversefed.attacks.exact.peel.shift_operators import ShiftOperators, moves
from inversefed.errors import UnsupportedNetworkError

__all__ = ["pattern_behind_average"]


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        off: how far from 0 or 1 entries may be on average.
        lit: the least share of an example's entries that must be on.
        silent: share of the greatest gradient of a channel below which one tells nothing.
    """

    off: float = 0.025
    lit: float = 0.01
    silent: float = 1e-6


TOLERANCES = Tolerances()


def pattern_behind_average(gradient: Tensor, open_delta: Tensor, eps: float) -> Tensor:
    """Tell which places of each example and channel a ReLU let through, up to rounding.

    Args:
        gradient: of the loss with respect to the convolution's weight, `[o, c, k, l]`, BatchNorm folded in.
        open_delta: the loss gradient behind the ReLU, `[n, o, h, w]`; all places of a channel share one number.
        eps: rounding of the gradient's numbers.

    Returns:
        `[n, o, h, w]`, near 1 where it was on and near 0 where it was off.

    Raises:
        UnsupportedNetworkError: too few channels for so many places, or numbers that are not of this form.
    """
    size = open_delta[..., 0, 0].norm(dim=0)
    counted = size > TOLERANCES.silent * size.max()
    share = open_delta[:, counted] / size[counted, None, None]
    taps = gradient[counted] / size[counted, None, None, None]
    found = moves(taps, open_delta[:, 0].numel(), eps)
    corners = torch.linalg.svd(torch.cat([found.up, found.left]))[2][-len(share) :].T
    columns = torch.stack([_from_corner(found, corners, each) for each in share])
    off = (columns - columns.round().clamp(0, 1)).abs()
    lit = (columns > 0.5).flatten(1).to(columns).mean(dim=1)
    if not float(off.mean()) < TOLERANCES.off or bool((lit < TOLERANCES.lit).any()):
        raise UnsupportedNetworkError(
            "the average over places hides where its ReLU was on: no columns of zeros and ones explain the gradient "
            f"of the convolution in front (they differ by {float(off.mean()):.1g} on average)"
        )
    on = torch.ones_like(open_delta)
    on[:, counted] = columns
    return on


def _from_corner(found: ShiftOperators, corners: Tensor, share: Tensor) -> Tensor:
    """All columns of an example, divided by its share: `[o, h, w]`."""
    _, height, width = share.shape
    rows, here = [], corners @ _binary(found.shown @ corners / share[:, :1, 0], share[:, 0, 0])
    for _ in range(height):
        columns, along = [], here
        for _ in range(width):
            columns.append(found.shown @ along)
            along = found.right @ along
        rows.append(torch.stack(columns, dim=-1))
        here = found.down @ here
    return torch.stack(rows, dim=-2) / share


def _binary(columns: Tensor, share: Tensor) -> Tensor:
    """The coefficients, `[n]`, of a sum of columns `[o, n]` that is 0 or 1; rows count by the square of the share."""
    first, second = torch.triu_indices(columns.shape[1], columns.shape[1])
    twice = torch.where(first == second, 1.0, 2.0).to(columns)
    equations = torch.cat([columns[:, first] * columns[:, second] * twice, -columns], dim=1) * share.square()[:, None]
    scale = equations.norm(dim=0)
    solution = torch.linalg.svd(equations / scale)[2][-1] / scale
    products, single = solution[: len(first)], solution[len(first) :]
    square = torch.zeros(columns.shape[1], columns.shape[1]).to(columns)
    square[first, second] = square[second, first] = products
    coefficients: Tensor = single * (single @ square @ single) / single.square().sum().square()
    return coefficients
