"""The expected label counts of a batch, from the head's gradient and the mean feature in it.

With the mean feature h, the covariance `C_c` of `p_c` and the features, and class means `m_y`,

    gW_c - gb_c h - C_c = sum_y (k_y / K) T[y, c] (h - m_y)

The right side is noise. Its covariance over classes, `N = T^T (diag k / K^2 - k k^T / K^3) T`, is known up to the
features' own, which all classes share. So h is a weighted mean of the rows and of what made-up images give (variance
1/K), in closed form; then `p = mean softmax(W h + b + what images add)` and `k T / K = p - gb`, over and over.
"""

import torch
from torch import Tensor

from inversefed.attacks.head.gradient import Head

__all__ = ["expected_counts"]


def expected_counts(head: Head, features: Tensor, trust: float = 0.3, rounds: int = 10) -> Tensor:
    """How often each class occurs, before rounding, `[k]`.

    Args:
        head: the gradient of the head.
        features: of made-up images, `[m, d]`: they tell the spread of features.
        trust: weight of their mean, 1 if they were drawn as the client's images are.
        rounds: how often mean feature and counts are updated in turn.
    """
    center = features.mean(dim=0)
    spread, mean = features - center, center
    for _ in range(rounds):
        p, covariance, variance = _moments(head, spread, mean)
        rows = head.weight_gradient - covariance * (1 - 1 / head.total)
        bias_gradient = _bias_gradient(head, rows, mean)
        counts = head.counts(p, bias_gradient).clamp(0, head.total)
        weights = torch.linalg.solve(_noise(head, counts, variance), bias_gradient)
        weight = trust * head.total
        mean = (weights @ rows + weight * center) / (weights @ bias_gradient + weight)
    return head.counts(_moments(head, spread, mean)[0], _bias_gradient(head, rows, mean))


def _moments(head: Head, spread: Tensor, mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean `[k]` of the probabilities, their covariance with features `[k, d]`, and their mean square `[k]`."""
    p = head.softmax(mean + spread)
    return p.mean(dim=0), p.T @ spread / len(spread), p.square().mean(dim=0)


def _bias_gradient(head: Head, rows: Tensor, mean: Tensor) -> Tensor:
    """The bias gradient, or the rows' share of the mean feature where there is no bias."""
    return rows @ mean / (mean @ mean) if head.bias_gradient is None else head.bias_gradient


def _noise(head: Head, counts: Tensor, variance: Tensor) -> Tensor:
    """Covariance of the rows' noise over classes, in units of the features', `[k, k]`."""
    total = head.total
    classes = torch.diag(counts + 1e-3) / total**2 - torch.outer(counts, counts) / total**3
    return head.pull.T @ classes @ head.pull + torch.diag(variance.clamp(min=1e-9)) / total
