"""Shift operators: what a convolution's taps do to the positions of its outputs, in a basis of the recovered space.

Tap by tap a weight gradient is `G_k = M T_k A`, where the columns of M and the rows of A belong to places and `T_k`
moves all of them by the tap k, those at the border away. A move up and a move to the left are the move along the
diagonal, `T_v T_h = T_{v + h}`, so that with v and h in {-1, 0, 1}

    [G_{v + h}] = [M T_v] [T_h A] = (O Q) (Q^-1 Z)

is one matrix of blocks of which the left factor depends on v and the right one on h alone. Its rank is the number of
places, though M and A may be short of it (channels that are always on or always off), and any factorization gives both
up to one change of basis Q. With `N_v = M T_v Q` and `A_h = Q^-1 T_h A` the moves `Y_v = Q^-1 T_v Q`, `X_h` likewise,
are

    N_0 Y_v = N_v,    X_h A_0 = A_h,

and what short M and A leave open of them follows from the same blocks with v and h exchanged (another basis Q', and
`N_0 R = N_0'`, `R A_0' = A_0` for R = Q^-1 Q') and from what all moves have in common:

    X Y = Y X,    X_1 X_-1 X_1 = X_1, and the like.

These are few numbers, found by Levenberg-Marquardt from zero. Own derivation.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from inversefed.attacks.head.equations import levenberg_marquardt
from inversefed.errors import UnsupportedNetworkError

__all__ = ["MOST_SHORT", "ShiftOperators", "moves"]

MOST_SHORT = 24
"""How many channels fewer than places a convolution may have."""


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        spare: directions besides, which hold rounding.
        gap: roundings of the largest singular value from which one counts.
        most_entries: of the Jacobian in what short factors leave open.
        steps: of the search for what those leave open.
        gain: share of the squared error that a step must take away, else it is the last.
        holds: how well the moves must fit together, relative to their size.
    """

    spare: int = 8
    gap: float = 30.0
    most_entries: float = 6e7
    steps: int = 60
    gain: float = 1e-2
    holds: float = 1e-2


TOLERANCES = Tolerances()


@dataclass(frozen=True, eq=False)
class ShiftOperators:
    """The moves by one place, and how a place shows in the channels; places are vectors in a basis of their own.

    Args:
        up: takes each place to the one above, and those of the first row to nothing; `[places, places]`. It is the tap
            below the middle that does this.
        down: likewise.
        left: likewise.
        right: likewise.
        shown: takes a place to its column of M, `[o, places]`.
    """

    up: Tensor = field(repr=False)
    down: Tensor = field(repr=False)
    left: Tensor = field(repr=False)
    right: Tensor = field(repr=False)
    shown: Tensor = field(repr=False)


def moves(taps: Tensor, places: int, eps: float) -> ShiftOperators:
    """Find the moves.

    Args:
        taps: the weight gradient, `[o, c, k, l]`, k and l odd.
        places: how many there are, in all examples.
        eps: rounding of its numbers.

    Raises:
        UnsupportedNetworkError: the gradient tells fewer directions apart than there are places, or is not of the form.
    """
    middle = taps.shape[2] // 2, taps.shape[3] // 2
    parts = [[taps[:, :, middle[0] + v, middle[1] + h] for h in (0, 1, -1)] for v in (0, 1, -1)]
    seen, inputs = _factors(parts, places, eps)
    other, crossed = _factors(list(zip(*parts, strict=True)), places, eps)
    short = _Short.of(seen, inputs, other, crossed, eps)
    if short.open * 8 * places**2 > TOLERANCES.most_entries:
        raise UnsupportedNetworkError(
            f"the average over places hides where its ReLU was on: {short.open} numbers of moves by a place stay open"
        )
    flat = torch.zeros(short.open, dtype=taps.dtype)
    if short.open:
        flat, _ = levenberg_marquardt(short.linearized, flat, TOLERANCES.steps, TOLERANCES.gain)
    found = short.moves(flat)
    left, right, up, down = (each.value for each in found)
    size = sum(float(each.norm()) for each in (left, right, up, down))
    if not sum(float(each.value.norm()) for each in _misfit(*found)) < TOLERANCES.holds * size:
        raise UnsupportedNetworkError(
            "the average over places hides where its ReLU was on: the taps of the convolution in front do not fit "
            "together as moves by one place"
        )
    return ShiftOperators(up, down, left, right, seen[0])


def _factors(parts: Sequence[Sequence[Tensor]], places: int, eps: float) -> tuple[list[Tensor], list[Tensor]]:
    """`N_v` and `A_h` from the blocks, in a basis of their own."""
    blocks = torch.cat([torch.cat(list(row), dim=1) for row in parts])
    mix = torch.randn(
        blocks.shape[1], places + TOLERANCES.spare, generator=Generator().manual_seed(0), dtype=blocks.dtype
    )
    spanned = torch.linalg.qr(blocks @ mix)[0]  # all of its columns: there are no more directions than places
    left, sizes, right = torch.linalg.svd(spanned.T @ blocks, full_matrices=False)
    left = spanned @ left
    rank = int((sizes > TOLERANCES.gap * eps * sizes[0]).sum())
    if rank < places:
        raise UnsupportedNetworkError(
            f"the average over places hides where its ReLU was on: the convolution in front tells {rank} directions "
            f"of {places} places apart"
        )
    root = sizes[:places].sqrt()
    seen, inputs = left[:, :places] * root, root[:, None] * right[:places]
    return list(seen.split(len(parts[0][0]))), list(inputs.split(parts[0][0].shape[1], dim=1))


@dataclass(frozen=True, eq=False)
class _Short:
    """The moves as far as short factors give them, and the directions in which they leave them open."""

    seen: list[Tensor]
    inputs: list[Tensor]
    other: list[Tensor]
    crossed: list[Tensor]
    unseen: Tensor
    unfed: Tensor
    unfed_crossed: Tensor
    from_seen: Tensor
    from_inputs: Tensor
    from_crossed: Tensor

    @classmethod
    def of(
        cls, seen: list[Tensor], inputs: list[Tensor], other: list[Tensor], crossed: list[Tensor], eps: float
    ) -> "_Short":
        from_seen, unseen = _inverse(seen[0], eps)
        from_inputs, unfed = _inverse(inputs[0].T, eps)
        from_crossed, unfed_crossed = _inverse(crossed[0].T, eps)
        return cls(seen, inputs, other, crossed, unseen, unfed, unfed_crossed, from_seen, from_inputs.T, from_crossed.T)

    @property
    def open(self) -> int:
        """How many numbers are open."""
        return self.unseen.shape[1] * (self.unfed_crossed.shape[1] + 4 * self.unfed.shape[1])

    def moves(self, flat: Tensor) -> tuple["_Dual", "_Dual", "_Dual", "_Dual"]:
        """`X_1, X_-1, Y_1, Y_-1`, given the open numbers, and their slopes in those."""
        change, *rest = self._open(flat)
        hidden = self.unseen @ self.unseen.T
        basis = change + (self.from_seen @ self.other[0] + hidden @ self.inputs[0] @ self.from_crossed)
        back = basis.inverse()
        across = [
            (self.from_seen @ self.other[j]) @ back + hidden @ self.inputs[j] @ self.from_inputs + rest[j - 1]
            for j in (1, 2)
        ]
        along = [
            hidden @ basis @ (self.crossed[j] @ self.from_inputs) + self.from_seen @ self.seen[j] + rest[j + 1]
            for j in (1, 2)
        ]
        return across[0], across[1], along[0], along[1]

    def _open(self, flat: Tensor) -> list["_Dual"]:
        """What the open numbers add to R and to each of the moves."""
        count, found, first = self.unseen.shape[1], [], 0
        for short in (self.unfed_crossed, *[self.unfed] * 4):
            own = slice(first, first + count * short.shape[1])
            each = torch.einsum("pa,qb->abpq", self.unseen, short).flatten(0, 1)
            slope = each.new_zeros(len(flat), *each.shape[1:])
            slope[own] = each
            found.append(_Dual(torch.einsum("k,kpq->pq", flat[own], each), slope))
            first = own.stop
        return found

    def linearized(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """How the moves misfit, and the Jacobian of that, both in the few directions that the Jacobian spans; what lies
        across them is one more row."""
        parts = _misfit(*self.moves(flat))
        found = torch.cat([each.value.flatten() for each in parts])
        q, r = torch.linalg.qr(torch.cat([each.slope.flatten(1) for each in parts], dim=1).T)
        along = q.T @ found
        across = (found - q @ along).norm()[None]
        return torch.cat([along, across]), torch.cat([r, torch.zeros_like(r[:1])])


@dataclass(frozen=True, eq=False)
class _Dual:
    """A matrix, `[p, p]`, and its slope in some numbers, `[k, p, p]`."""

    value: Tensor
    slope: Tensor

    def __add__(self, other: "_Dual | Tensor") -> "_Dual":
        if isinstance(other, Tensor):
            return _Dual(self.value + other, self.slope)
        return _Dual(self.value + other.value, self.slope + other.slope)

    def __sub__(self, other: "_Dual") -> "_Dual":
        return _Dual(self.value - other.value, self.slope - other.slope)

    def __matmul__(self, other: "_Dual | Tensor") -> "_Dual":
        if isinstance(other, Tensor):
            return _Dual(self.value @ other, self.slope @ other)
        return _Dual(self.value @ other.value, self.slope @ other.value + self.value @ other.slope)

    def __rmatmul__(self, other: Tensor) -> "_Dual":
        return _Dual(other @ self.value, other @ self.slope)

    def inverse(self) -> "_Dual":
        """The inverse matrix."""
        back = torch.linalg.inv(self.value)
        return _Dual(back, -(back @ self.slope @ back))


def _misfit(left: _Dual, right: _Dual, up: _Dual, down: _Dual) -> list[_Dual]:
    """What all moves have in common, as matrices that are zero."""
    pairs = ((left, right), (right, left), (up, down), (down, up))
    commuting = [x @ y - y @ x for x in (left, right) for y in (up, down)]
    return [*commuting, *[one @ other @ one - one for one, other in pairs]]


def _inverse(matrix: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The pseudo-inverse, and an orthonormal basis of what the matrix takes to zero."""
    left, sizes, right = torch.linalg.svd(matrix, full_matrices=matrix.shape[0] < matrix.shape[1])
    rank = int((sizes > TOLERANCES.gap * eps * sizes[0]).sum())
    return (right[:rank].T / sizes[:rank]) @ left[:, :rank].T, right[rank:].T
