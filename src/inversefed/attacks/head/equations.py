"""The equations that the head's gradient gives for its inputs, example by example.

    gW = mean_t mean_i (p_i - T[y_i]) h_i^T,    gb = mean_t mean_i (p_i - T[y_i]),    p_i = softmax(W_t h_i + b_t)
    W_{t+1} = W_t - lr dL/dW_t,    h_i = k_i V^T    with    gW = U S V^T,  cut to rank n

t walks through the local steps, i through the examples of each; one gradient is one step. The head's own steps follow
from the same unknowns, so the equations hold for all of them at once, and tell in which step an example was seen. They
are solved by Levenberg-Marquardt. Own derivation.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from inversefed.attacks.head.gradient import Head

__all__ = ["HeadEquations", "Solution", "levenberg_marquardt"]

_POLISH = 500
"""Further steps for a solution that is nearly one."""

_RIDGE, _SPREAD = 0.1, 0.1
"""Share of the largest singular value below which a start does not follow the equations; how far starts differ."""

_Linearized = Callable[[Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class Solution:
    """What solves the equations, or nearly.

    Args:
        coefficients: `[n, n]`, row i the features of example i in the basis of the gradient's rows.
        labels: `[n]`.
        residual: relative.
    """

    coefficients: Tensor
    labels: Tensor
    residual: float


@dataclass(frozen=True, eq=False)
class HeadEquations:
    """The head's gradient in the basis of its own rows, on the CPU.

    Args:
        rows: `[c, n]`, the gradient.
        basis: `[n, d]`, what its columns stand for.
        logits: `[n, c]`, the weights before the first step in that basis.
        bias: `[c]`, before the first step.
        bias_gradient: `[c]`.
        pull: `[c, c]`, row y what the loss pulls a label y to.
        beyond: the singular value behind the last of `n`, relative to the first; none is where no examples are left.
        steps: which examples each local step sees.
        rate: their learning rate.
        stop: asked before each step of a solution.
    """

    rows: Tensor
    basis: Tensor
    logits: Tensor
    bias: Tensor
    bias_gradient: Tensor
    pull: Tensor
    beyond: float
    steps: tuple[slice, ...]
    rate: float
    stop: Callable[[], bool] = lambda: False

    @classmethod
    def of(cls, head: Head, steps: tuple[slice, ...], rate: float) -> "HeadEquations":
        """Those of a head, its weight and bias as they were before the first step.

        Args:
            head: with a bias, of more classes than examples.
            steps: which examples each local step sees, each once.
            rate: their learning rate.

        Raises:
            ThreatModelError: the head has no bias.
        """
        gradient, weight, pull = head.weight_gradient.cpu(), head.weight.cpu(), head.pull.cpu()
        left, sizes, right = torch.linalg.svd(gradient, full_matrices=False)
        basis = right[: head.total]
        bias_gradient = head.needed_bias("separating the head's inputs").cpu()
        return cls(
            (left * sizes)[:, : head.total], basis, basis @ weight.T, head.bias.cpu(), bias_gradient, pull,
            float(sizes[head.total] / sizes[0]), steps, rate,
        )  # fmt: skip

    def solved(self, labels: Tensor, number: int, steps: int) -> Solution:
        """From start `number`, by at most so many steps."""
        return self.improved(Solution(self._start(self.pull[labels.cpu()], number), labels, 1.0), steps)

    def improved(self, found: Solution, steps: int = _POLISH) -> Solution:
        """From a solution that is nearly one, down to the rounding of the gradient if need be."""
        target = self.pull[found.labels.cpu()]
        start = found.coefficients
        better, error = levenberg_marquardt(
            lambda k: self._linearized(k, target), start.flatten(), steps, stop=self.stop
        )
        return replace(found, coefficients=better.view_as(start), residual=error)

    def linearized(self, found: Solution) -> tuple[Tensor, Tensor]:
        """Residual `[(n + 1) c]` and its Jacobian, `[(n + 1) c, n^2]`."""
        return self._linearized(found.coefficients.flatten(), self.pull[found.labels.cpu()])

    def _linearized(self, flat: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Residual `[(n + 1) c]` and its Jacobian, local step by local step."""
        total, classes = target.shape
        k, own = flat.view(total, total), torch.eye(total**2, dtype=flat.dtype).view(total, total, -1)
        head = _Affine.constant(self.logits, self.bias, total**2)
        seen = _Affine.constant(torch.zeros_like(self.logits), torch.zeros_like(self.bias), total**2)
        for part in self.steps:
            gradient = head.gradient(k[part], own[part], target[part])
            head, seen = head.plus(gradient, -self.rate), seen.plus(gradient, 1 / len(self.steps))
        scales = self.rows.norm(), self.bias_gradient.norm()
        residual = (seen.weight.T - self.rows) / scales[0], (seen.bias - self.bias_gradient) / scales[1]
        slopes = seen.weight_slope.transpose(0, 1).reshape(total * classes, -1), seen.bias_slope
        jacobian = slopes[0] / scales[0], slopes[1] / scales[1]
        return torch.cat([residual[0].flatten(), residual[1]]), torch.cat(jacobian)

    def _start(self, target: Tensor, number: int) -> Tensor:
        """Features that follow the equations if all examples had the mean probabilities, disturbed.

        A trained network knows its labels, so every second start has the probabilities lean to them.
        """
        total, generator = len(target), Generator().manual_seed(number)
        mean, wide = (self.bias_gradient + target.mean(dim=0)).clamp(min=1e-6), 1.3**number
        noise = torch.randn(target.shape, generator=generator, dtype=target.dtype)
        sure = 5 * torch.rand((), generator=generator, dtype=target.dtype) * (number % 2)
        errors = ((mean.log() + 0.02 * wide * noise + sure * target).softmax(dim=1) - target) / total
        left, sizes, right = torch.linalg.svd(errors.T, full_matrices=False)
        follow = sizes / (sizes.square() + (_RIDGE * sizes[0]).square())
        start = right.T @ (follow[:, None] * (left.T @ self.rows))
        noise = torch.randn(start.shape, generator=generator, dtype=start.dtype)
        disturbed: Tensor = start + _SPREAD * wide * noise * start.square().mean(dim=0).sqrt()
        return disturbed


@dataclass(frozen=True, eq=False)
class _Affine:
    """A head, or a gradient of one, and how it changes with the unknowns.

    Args:
        weight: `[n, c]`.
        bias: `[c]`.
        weight_slope: `[n, c, m]`.
        bias_slope: `[c, m]`.
    """

    weight: Tensor
    bias: Tensor
    weight_slope: Tensor
    bias_slope: Tensor

    @classmethod
    def constant(cls, weight: Tensor, bias: Tensor, unknowns: int) -> "_Affine":
        return cls(weight, bias, weight.new_zeros(*weight.shape, unknowns), bias.new_zeros(*bias.shape, unknowns))

    def plus(self, other: "_Affine", factor: float) -> "_Affine":
        return _Affine(
            self.weight + factor * other.weight,
            self.bias + factor * other.bias,
            self.weight_slope + factor * other.weight_slope,
            self.bias_slope + factor * other.bias_slope,
        )

    def gradient(self, k: Tensor, k_slope: Tensor, target: Tensor) -> "_Affine":
        """Of the mean cross entropy of examples `k`, `[i, n]`, at this head."""
        p = (k @ self.weight + self.bias).softmax(dim=1)
        errors = (p - target) / len(k)
        lean = torch.einsum("ibm,bc->icm", k_slope, self.weight) + self.bias_slope
        lean = lean + torch.einsum("ib,bcm->icm", k, self.weight_slope)
        change = p[..., None] * (lean - torch.einsum("ic,icm->im", p, lean)[:, None]) / len(k)
        slope = torch.einsum("ibm,ic->bcm", k_slope, errors) + torch.einsum("ib,icm->bcm", k, change)
        return _Affine(k.T @ errors, errors.sum(dim=0), slope, change.sum(dim=0))


def levenberg_marquardt(
    linearized: _Linearized,
    start: Tensor,
    steps: int,
    gain: float = 1e-12,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[Tensor, float]:
    """Minimize the square of a residual over some numbers (Marquardt 1963); returns its norm as well.

    The step is taken by the singular values of the Jacobian with columns of unit length: two examples that are alike
    make it nearly singular, and its square would lose them to rounding.

    Args:
        linearized: gives residual `[m]` and Jacobian `[m, n]`.
        start: `[n]`.
        steps: most steps.
        gain: the share of the square that a step must take away, else it is the last.
        stop: asked before each step.
    """
    x, damping = start, 1e-3
    r, jacobian = linearized(x)
    for _ in range(steps):
        if stop():
            break
        size = jacobian.norm(dim=0).clamp(min=1e-300)
        left, sizes, right = torch.linalg.svd(jacobian / size, full_matrices=False)
        slope, before = left.T @ r, float(r @ r)
        for _ in range(10):
            step = (right.T @ (sizes / (sizes.square() + damping) * slope)) / size
            after, ahead = linearized(x - step)
            if float(after @ after) < before:
                break
            damping *= 4
        else:
            break
        x, r, jacobian, damping = x - step, after, ahead, max(damping / 8, 1e-30)
        if float(r @ r) > before * (1 - gain) or float(r @ r) < 1e-30:
            break
    return x, float(r.norm())
