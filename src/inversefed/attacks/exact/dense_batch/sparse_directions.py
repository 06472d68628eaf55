"""Sparse directions of a low-rank factor: the hyperplanes that contain many of its rows.

A ReLU behind the layer makes each example's column of `D^T = C Q` zero wherever that example leaves the unit off. So
among the rows of C, points in R^b, about half lie on the hyperplane of each example. Two ways to find it:

    null vectors (SPEAR):  q with R q = 0 for b - 1 random rows R        right with probability (share off)^(b - 1)
    descent:               q = argmin |C q|_1 over |q| = 1, by q <- least eigenvector of C^T diag(1 / |C q|) C

The first is the sampling of Dimitrov et al. (2024, arXiv:2403.03945), whose expected number of samples grows
exponentially in b. The second treats the rows as a sparsely used dictionary, the view of SPEAR++ (arXiv:2510.24200);
its cost grows with b^3, and the number of rows decides whether it settles in the right minimum.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

__all__ = ["NullVectors", "SparseDescent"]


_FINEST = -9
"""The last rounding of the absolute value, as a power of ten of a typical product."""


@runtime_checkable
class DirectionSearch(Protocol):
    """Proposes directions, some of which should be right."""

    def __call__(self, rows: Tensor, settled: Tensor, generator: Generator) -> Tensor:
        """From white rows `[m, b]` and settled unit directions `[b, k]` to proposals `[b, n]`."""
        ...


@dataclass(frozen=True)
class NullVectors:
    """The vectors orthogonal to b - 1 rows, for many random choices of rows at a time.

    Args:
        samples: choices a round; the paper takes 10,000.
    """

    samples: int = 4096

    def __call__(self, rows: Tensor, settled: Tensor, generator: Generator) -> Tensor:
        """Propose unit directions `[b, n]`; choices of dependent rows are left out."""
        count = rows.shape[1]
        picked = torch.rand((self.samples, len(rows)), generator=generator).topk(count - 1, dim=1).indices
        orthogonal, triangle = torch.linalg.qr(rows[picked].mT, mode="complete")
        independent = triangle.diagonal(dim1=-2, dim2=-1).abs().amin(dim=-1) > 1e-6 if count > 1 else slice(None)
        directions: Tensor = orthogonal[independent][:, :, -1].T
        return directions


@dataclass(frozen=True)
class SparseDescent:
    """Descend from random directions to those of least absolute sum, by reweighted least squares.

    Starts are orthogonal to what is settled: white columns of D are nearly orthogonal to each other.

    Args:
        starts: directions a round.
        steps: reweightings, while the rounding of the absolute value shrinks.
    """

    starts: int = 48
    steps: int = 32

    def __call__(self, rows: Tensor, settled: Tensor, generator: Generator) -> Tensor:
        """Propose unit directions `[b, n]`."""
        count = rows.shape[1]
        directions: Tensor = torch.randn((count, self.starts), generator=generator, dtype=rows.dtype)
        if 0 < settled.shape[1] < count:
            known = torch.linalg.qr(settled)[0]
            directions = directions - known @ (known.T @ directions)
        return self.descend(rows, directions / directions.norm(dim=0))

    def descend(self, rows: Tensor, directions: Tensor, among: Tensor | None = None, widest: float = 0.0) -> Tensor:
        """From given unit directions, `[b, n]`.

        Args:
            rows: white, `[m, b]`.
            directions: to start from.
            among: the rows that count for each direction, `[m, n]`; `None` for all.
            widest: the first rounding of the absolute value, as a power of ten of a typical product.
        """
        count = rows.shape[1]
        products = (rows[:, :, None] * rows[:, None, :]).flatten(1)
        typical = float(rows.square().mean(dim=0).mean().sqrt())
        for width in typical * torch.logspace(widest, _FINEST, self.steps):
            weights = 1 / ((rows @ directions).square() + width**2).sqrt()
            weights = weights if among is None else weights * among
            grams = (products.T @ weights).T.reshape(-1, count, count)
            directions = torch.linalg.eigh(grams)[1][:, :, 0].T
        return directions
