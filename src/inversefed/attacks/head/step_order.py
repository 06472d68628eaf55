"""The order in which a client's local steps saw its examples, from the head's gradient.

    gradient of i at W_t  =  that at W_0  -  lr sum_{j before i} S_ij,    S_ij = d(p_i h_i^T) [e_j h_j^T]

To first order the update is linear in who comes before whom, and what the order adds is told apart from what features
could add: least squares for each pair, on what is left of the residual beside the features' own directions. The number
of pairs that an example wins puts it in its place; this is repeated from the order so found. Own derivation.
"""

from dataclasses import dataclass, replace

import numpy as np
import scipy
import torch
from torch import Tensor

from inversefed.attacks.head.equations import HeadEquations, Solution

__all__ = ["in_order"]

_ROUNDS, _STEPS = 8, 12
"""How often the order is read, and steps for the features in between."""

_EXCHANGES = 10
"""Most pairs that are exchanged, those of five steps; of more the order is only read."""


def in_order(equations: HeadEquations, found: Solution, enough: float) -> Solution:
    """The examples in the order that explains the gradient best, their features solved for again.

    Args:
        equations: of several local steps.
        found: features and labels in any order.
        enough: the residual of a solution.
    """
    return _exchanged(equations, _read(equations, equations.improved(found, _STEPS), enough), enough)


def _read(equations: HeadEquations, found: Solution, enough: float) -> Solution:
    """The order as least squares have it, over and over, as long as it is a new one."""
    best, order, seen = found, torch.arange(len(found.labels)), set[tuple[int, ...]]()
    for _ in range(_ROUNDS):
        if best.residual < enough or tuple(order.tolist()) in seen:
            break
        seen.add(tuple(order.tolist()))
        change = _order(equations, found)
        found, order = equations.improved(_permuted(found, change), _STEPS), order[change]
        best = min(best, found, key=lambda each: each.residual)
    return best


def _exchanged(equations: HeadEquations, best: Solution, enough: float) -> Solution:
    """Exchange two examples of different steps, as long as that is better: `_read` leaves the second order out."""
    pairs = sorted(_pairs(equations), key=lambda pair: pair[0] - pair[1])  # neighbors first
    before = float("inf") if len(pairs) <= _EXCHANGES else 0.0
    for _ in range(_ROUNDS):
        if not enough < best.residual < 0.9 * before:
            break
        before = best.residual
        for one, other in pairs:
            order = torch.arange(len(best.labels))
            order[one], order[other] = other, one
            best = min(best, equations.improved(_permuted(best, order), _STEPS), key=lambda each: each.residual)
            if best.residual < enough:
                break
    return best


def _pairs(equations: HeadEquations) -> list[tuple[int, int]]:
    """All examples (i, j) of different steps, j before i."""
    step = [number for number, part in enumerate(equations.steps) for _ in range(part.start, part.stop)]
    return [(i, j) for i in range(len(step)) for j in range(i) if step[i] != step[j]]


def _permuted(found: Solution, order: Tensor) -> Solution:
    return replace(found, coefficients=found.coefficients[order], labels=found.labels[order.to(found.labels.device)])


def _order(equations: HeadEquations, found: Solution) -> Tensor:
    """The places of the examples in a better order."""
    total, pairs = len(found.labels), _pairs(equations)
    residual, jacobian = equations.linearized(found)
    sees = _Sees.of(equations, found)
    change = torch.stack([sees(j, i) - sees(i, j) for i, j in pairs], dim=1)
    left, sizes, _ = torch.linalg.svd(jacobian, full_matrices=False)
    left = left[:, sizes > 1e-9 * sizes[0]]
    rest, change = residual - left @ (left.T @ residual), change - left @ (left.T @ change)
    scale = change.norm(dim=0).clamp(min=1e-300)
    exchanged = (
        scipy.optimize.lsq_linear((change / scale).numpy(), -rest.numpy(), (np.zeros(len(pairs)), scale.numpy())).x
        / scale.numpy()
    )
    wins = torch.zeros(total, dtype=torch.float64)
    for (i, j), share in zip(pairs, exchanged, strict=True):
        wins[i] += share
        wins[j] += 1 - share
    return wins.argsort(descending=True, stable=True)


@dataclass(frozen=True, eq=False)
class _Sees:
    """How the equations' residual changes where the head that an example sees has learned from another one."""

    equations: HeadEquations
    k: Tensor
    p: Tensor
    errors: Tensor

    @classmethod
    def of(cls, equations: HeadEquations, found: Solution) -> "_Sees":
        k = found.coefficients
        p = (k @ equations.logits + equations.bias).softmax(dim=1)
        return cls(equations, k, p, p - equations.pull[found.labels.cpu()])

    def __call__(self, one: int, other: int) -> Tensor:
        """Of `one`, where `other` came before it."""
        equations, size = self.equations, len(self.k) / len(self.equations.steps)
        lean = -equations.rate / size * (self.k[one] @ self.k[other] + 1) * self.errors[other]
        change = self.p[one] * (lean - self.p[one] @ lean) / len(self.k)
        weight = torch.outer(change, self.k[one]) / equations.rows.norm()
        return torch.cat([weight.flatten(), change / equations.bias_gradient.norm()])
