"""Feasible label counts of the head's gradient, which decide its sign and bound its scale.

    dL/db = sum_c q_c (p^c - 1_c),    q >= 0,  sum_c q_c <= 1,    p^c = softmax(W e_c + b),  e_c = dL/dW_c / dL/db_c

The mean feature e_c of class c does not depend on sign or scale, so p^c is known before either is. With one example all
e_c are its features, p^c = p, and everything is exact. With more, q are shares of the batch, q_c n is near an integer,
and the equations hold as well as the features of a class are alike. Mean features per class: iLRG, Ma et al. (2023).

Where probabilities hardly differ between examples, as on an untrained network, counts are whole numbers to the eye:

    n_c = n (p_c - dL/db_c),    p = softmax(W h + b),    h = sum_c db_c dW_c / sum_c db_c^2

h is the mean feature by least squares. How far it can be trusted says the jackknife over the classes (Quenouille 1956).
"""

from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import scipy
import torch
from torch import Tensor

from inversefed.updates.diagnosis.evidence import Subject

__all__ = ["Counts", "counts"]

_SHARP = 0.1
"""Standard error of a count, in examples, up to which it is told from its half."""


class Alone(NamedTuple):
    """The head's gradient read as that of one example.

    Args:
        label: its class.
        scale: of the gradient, 1 if it is as stated; negative for a wrong sign.
        residual: what is left, relative.
    """

    label: int
    scale: float
    residual: float


@dataclass(frozen=True, eq=False)
class Counts:
    """The head's equations.

    Args:
        bias: the head's bias gradient `[k]`, in the scale that metadata give.
        errors: `p^c - 1_c`, one column a class, `[k, k]`.
        spread: how much the p^c differ; 0 for one example.
        drift: how much they change from the first local step to the last; the equations hold where that is little.
        draws: examples that were drawn in all steps, where that is known.
        mean: `p` at the mean feature, `[k]`.
        error: standard error of its entries.
    """

    bias: Tensor = field(repr=False)
    errors: Tensor = field(repr=False)
    spread: float
    drift: float
    draws: int | None
    mean: Tensor = field(repr=False)
    error: float

    def misfit(self, sign: int = 1, scale: float = 1.0) -> float:
        """What of the bias gradient no label counts explain, relative, for the sign as stated or the other.

        With `scale`, it is taken to be so many times too large.
        """
        target = sign * self.bias.numpy() / scale
        size = len(target)
        # The last row and column are the slack of sum q <= 1: well classified examples contribute nothing.
        weight = 10.0 * float(np.abs(target).max())
        rows = np.zeros((size + 1, size + 1))
        rows[:size, :size] = self.errors.numpy()
        rows[size] = weight
        _, residual = scipy.optimize.nnls(rows, np.append(target, weight))
        return float(residual / np.linalg.norm(target))

    def least_scale(self, sign: int = 1) -> float:
        """The least `sum q` that explains the bias gradient: above 1 if the scale is too large; infinite if none does.

        With one example, or a class that is missing, it is the scale itself.
        """
        size = len(self.bias)
        tolerance = 0.02 * float(self.bias.abs().max())
        errors, bias = self.errors.numpy(), sign * self.bias.numpy()
        answer = scipy.optimize.linprog(
            np.ones(size),
            A_ub=np.concatenate([errors, -errors]),
            b_ub=np.concatenate([bias + tolerance, tolerance - bias]),
            method="highs",
        )
        return float(answer.fun) if answer.success else float("inf")

    @cached_property
    def alone(self) -> Alone:
        """What fits best if there is one example."""
        scales = self.errors.T @ self.bias / self.errors.square().sum(dim=0).clamp_min(1e-300)
        residuals = (self.bias[:, None] - self.errors * scales).norm(dim=0) / self.bias.norm()
        label = int(residuals.argmin())
        return Alone(label, float(scales[label]), float(residuals[label]))

    def off_integers(self, sign: int = 1) -> float:
        """Distance of `q n` from whole numbers, over what the bias gradient says of them; needs p^c that are alike."""
        if self.draws is None:
            return 0.0
        probabilities = (self.errors + torch.eye(len(self.bias))).mean(dim=1)
        wanted = self.draws * (probabilities - sign * self.bias)
        whole = wanted.round().clamp(min=0)
        return float((wanted - whole).norm() / (self.draws * self.bias).norm())

    @property
    def blur(self) -> float:
        """Standard error of a count, in examples; infinite where it is not known how many there are."""
        return float("inf") if self.draws is None else self.draws * self.error

    def from_whole(self, sign: int = 1) -> float:
        """Mean squared distance of the counts from whole numbers; by chance 1/12, and 0 where counts are not sharp.

        A count below zero is as far from whole numbers as it is from zero.
        """
        if self.draws is None or self.blur > _SHARP:
            return 0.0
        wanted = self.draws * (self.mean - sign * self.bias)
        return float((wanted - wanted.round().clamp(min=0)).square().mean())


def counts(subject: Subject) -> Counts | None:
    """Read the head's equations; `None` without a linear head with bias, or where its gradient is too small to read."""
    if subject.head_bias is None or subject.head is None:
        return None
    bias, weight = subject.gradient[subject.head_bias], subject.gradient[subject.head]
    strong = bias.abs() > 1e-3 * bias.abs().max()
    error = subject.rounding(subject.head_bias)
    strong &= subject.raw[subject.head_bias].abs() > 100 * error
    if int(strong.sum()) < 2 or not bool(weight.any()) or not 1e-30 < float(bias.abs().max()) < 1e30:
        return None
    features = weight / torch.where(strong, bias, torch.ones_like(bias))[:, None]
    share = torch.where(strong, bias.abs(), torch.zeros_like(bias))
    share = share / share.sum()
    probabilities = _probabilities(subject, features, 0.5)
    mean = share @ probabilities
    probabilities[~strong] = mean
    center, deviation = _center(subject, weight, bias)
    change = _probabilities(subject, features, 1.0) - _probabilities(subject, features, 0.0)
    return Counts(
        bias,
        probabilities.T - torch.eye(len(bias), dtype=bias.dtype),
        spread=float(share @ (probabilities - mean).abs().sum(dim=1)),
        drift=0.0 if subject.single else float(share @ change.abs().sum(dim=1)),
        draws=_draws(subject),
        mean=center,
        error=deviation,
    )


def _probabilities(subject: Subject, features: Tensor, way: float) -> Tensor:
    """What the head says of the classes' mean features, at a part of the way from the old weights to the new ones."""
    part = 0.0 if subject.single else way
    weight, bias = (subject.weights[n] - part * subject.raw[n] for n in (str(subject.head), str(subject.head_bias)))
    return (features @ weight.T + bias).softmax(dim=1)


def _center(subject: Subject, weight: Tensor, bias: Tensor) -> tuple[Tensor, float]:
    """Probabilities at the mean feature `[k]`, and their standard error: what leaving out one class changes."""
    products, squares = bias[:, None] * weight, bias.square()
    without = (products.sum(dim=0) - products) / (squares.sum() - squares).clamp_min(1e-300)[:, None]
    found = _probabilities(subject, (products.sum(dim=0) / squares.sum())[None], 0.5)[0]
    left = _probabilities(subject, without, 0.5)
    variance = (left - left.mean(dim=0)).square().sum(dim=0) * (len(bias) - 1) / len(bias)
    return found, float(variance.mean().sqrt())


def _draws(subject: Subject) -> int | None:
    """How many examples weigh alike in the update."""
    if subject.single:
        return subject.per_step
    if subject.metadata.batch_size in (None, subject.metadata.num_examples):
        return subject.metadata.num_examples
    return None
