"""Which places a ReLU let through, where an average over places stands behind it and hides that.

Behind the average the loss gradient at a channel is one number, `d[i, o]` for example i, and below the ReLU it is
`d[i, o] m[i, o, p]` with `m` 0 or 1. So the weight gradient of the convolution in front of the ReLU is, tap by tap,

    gW[o, c, k] = (M T_k A)[o, c],    M[o, (i, p)] = d[i, o] m[i, o, p],    A[(i, p), c] = what went in,

where `T_k` moves each example by the tap `k` and loses what it moves over the border. With at least as many channels
on both sides as there are places in the batch, `G_k = gW[.., k]` gives the moves up to a change of basis:
`G_k G_0^+ = M T_k M^+`. A move to the left and one upwards both take the corner away, and only it. So the directions
that all such moves annihilate are spanned by the n corner columns of M, and other moves lead from them to all other
columns. In that space of dimension n, example i's column is the one that is 0 or 1 after division by `d[i]`:
`b^2 = b`, which is linear in the products of its coordinates. Everything is linear algebra, and nothing is searched.
Own derivation.
"""

import torch
from torch import Tensor

from inversefed.errors import UnsupportedNetworkError

__all__ = ["places_on"]

_GAP = 30.0
"""By how many roundings the last singular value that counts must stand above zero."""
_OFF, _LIT = 0.025, 0.01
"""How far from 0 or 1 entries may be on average, and the least share of an example's that must be on."""


def places_on(gradient: Tensor, open_delta: Tensor, eps: float) -> Tensor:
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
    number, outputs, height, width = open_delta.shape
    places = number * height * width
    if min(outputs, gradient.shape[1]) < places:
        raise UnsupportedNetworkError(
            f"the average over {height}x{width} places hides where its ReLU was on: {number} examples make {places} "
            f"places, more than the convolution in front has channels ({gradient.shape[1]} to {outputs})"
        )
    size = open_delta[..., 0, 0].norm(dim=0)
    counted = size > 1e-6 * size.max()
    share, taps = (
        open_delta[:, counted] / size[counted, None, None],
        gradient[counted] / size[counted, None, None, None],
    )
    on = torch.ones_like(open_delta)
    reason = ""
    for flips in ((), (2,), (3,), (2, 3)):  # from each corner; one is enough, but in it no channel may be on
        try:
            found = _columns(taps.flip(flips), share.flip(flips), eps).flip(flips)
        except UnsupportedNetworkError as error:
            reason = str(error)
            continue
        on[:, counted] = found
        return on
    raise UnsupportedNetworkError(reason)


def _columns(taps: Tensor, share: Tensor, eps: float) -> Tensor:
    """From the corner at (0, 0): `taps` are `[o, c, k, l]`, `share` is `[n, o, h, w]`."""
    number, _, height, width = share.shape
    moves, basis = _moves(taps, number * height * width, eps)
    gone = [moves[down, right] for down, right in ((1, 0), (0, 1), (1, 1), (1, -1), (-1, 1))]
    corner = basis @ torch.linalg.svd(torch.cat(gone))[2][-number:].T
    found = torch.stack([_from_corner(moves, basis, _binary(corner, each[:, 0, 0]), each) for each in share])
    off = (found - found.round().clamp(0, 1)).abs()
    lit = (found > 0.5).flatten(1).to(found).mean(dim=1)
    if not float(off.mean()) < _OFF or bool((lit < _LIT).any()):
        raise UnsupportedNetworkError(
            "the average over places hides where its ReLU was on: no columns of zeros and ones explain the gradient "
            f"of the convolution in front (they differ by {float(off.mean()):.1g} on average)"
        )
    return found


def _moves(taps: Tensor, places: int, eps: float) -> tuple[dict[tuple[int, int], Tensor], Tensor]:
    """The move by each tap in a basis of M's columns, `[places, places]`, and the basis, `[o, places]`."""
    middle = taps.shape[2] // 2, taps.shape[3] // 2
    steps = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    parts = {step: taps[:, :, middle[0] + step[0], middle[1] + step[1]] for step in steps}
    seen = torch.cat(list(parts.values()), dim=1)
    basis = torch.linalg.eigh(seen @ seen.T)[1][:, -places:]
    left, sizes, right = torch.linalg.svd(basis.T @ parts[0, 0], full_matrices=False)
    if not bool(sizes[places - 1] > _GAP * eps * sizes[0]):
        rank = int((sizes > _GAP * eps * sizes[0]).sum())
        raise UnsupportedNetworkError(
            f"the average over places hides where its ReLU was on: the convolution in front tells {rank} directions "
            f"of {places} places apart"
        )
    inverse = (right.T / sizes) @ left.T
    return {step: basis.T @ part @ inverse for step, part in parts.items()}, basis


def _binary(corner: Tensor, share: Tensor) -> Tensor:
    """The vector in the span of the corners, `[o, n]`, that is 0 or 1 after division by an example's share."""
    divided = corner / share[:, None]
    first, second = torch.triu_indices(corner.shape[1], corner.shape[1])
    twice = torch.where(first == second, 1.0, 2.0).to(corner)
    equations = torch.cat([divided[:, first] * divided[:, second] * twice, -divided], dim=1) * share.square()[:, None]
    scale = equations.norm(dim=0)
    solution = torch.linalg.svd(equations / scale)[2][-1] / scale
    products, single = solution[: len(first)], solution[len(first) :]
    square = torch.zeros(corner.shape[1], corner.shape[1]).to(corner)
    square[first, second] = square[second, first] = products
    scale = (single @ square @ single) / single.square().sum().square()
    column: Tensor = corner @ single * scale
    return column


def _from_corner(moves: dict[tuple[int, int], Tensor], basis: Tensor, corner: Tensor, share: Tensor) -> Tensor:
    """All columns of an example, divided by its share: `[o, h, w]`."""
    _, height, width = share.shape
    rows, here = [], basis.T @ corner
    for _ in range(height):
        columns, along = [], here
        for _ in range(width):
            columns.append(basis @ along)
            along = moves[0, -1] @ along
        rows.append(torch.stack(columns, dim=-1))
        here = moves[-1, 0] @ here
    return torch.stack(rows, dim=-2) / share
