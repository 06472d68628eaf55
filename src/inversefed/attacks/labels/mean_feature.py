"""Counting labels with the mean feature of the batch, which the head's weight gradient says.

With the mean feature h, the covariance `C_c` of `p_c` and the features, and class means `m_y`,

    gW_c - gb_c h - C_c = sum_y (k_y / K) T[y, c] (h - m_y)

The right side is noise. Its covariance over classes, `N = T^T (diag k / K^2 - k k^T / K^3) T`, is known up to the
features' own, which all classes share. So h is a weighted mean of the rows and of what made-up pictures give (variance
1/K), in closed form; then `p = mean softmax(W h + b + what pictures add)` and `k T / K = p - gb`, over and over.

Where no feature is negative, only a label of its own makes an entry of a class's row negative: such a class occurs at
least once. (The column minimum of Yin et al. 2021, arXiv:2104.07586, takes the lowest for all that there are.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inversefed.attacks.labels.features import negative
from inversefed.attacks.labels.head import Head, deal, read_head
from inversefed.fl.threat import Observation
from inversefed.types import Labels

__all__ = ["MeanFeatureCounts"]

_SHOWN = 1e-2
"""How far below zero an entry shows a label, in units of the greatest of all rows."""
_ALIKE = 1e-4
"""Features whose spread is below this share are one feature, up to the rounding of float32."""


@dataclass(frozen=True)
class MeanFeatureCounts:
    """How often each class occurs, with the probabilities at the batch's own mean feature.

    Own derivation, on the lines of iLRG (Ma et al. 2022, arXiv:2210.11194): rows of the weight gradient are pooled by
    how well each tells the mean feature, and made-up pictures say how features spread. Works without a bias, less
    well: then `gb` itself is read from the rows. Exact where all features are alike, as they are for one example.

    Args:
        probes: how many made-up pictures tell the spread of features.
        trust: weight of their mean feature, 1 if they were drawn as the client's pictures are.
        rounds: how often feature and counts are updated in turn.

    Raises:
        ThreatModelError: no linear head under softmax cross entropy, or an update that cannot be counted from.
    """

    probes: int = 128
    trust: float = 0.3
    rounds: int = 10

    def __call__(self, observation: Observation) -> Labels:
        """Labels in rising order, `[n]`."""
        head = read_head(observation)
        shared = _shared_feature(head)
        if shared is not None and head.bias_gradient is not None:
            return deal(head.counts(head.softmax(shared), head.bias_gradient), head.total)
        features = head.probe(self.probes)
        return deal(self._expected(head, features), head.total, _certain(head, features))

    def expected(self, head: Head) -> Tensor:
        """The counts before rounding, `[k]`."""
        return self._expected(head, head.probe(self.probes))

    def _expected(self, head: Head, features: Tensor) -> Tensor:
        center = features.mean(dim=0)
        spread, mean = features - center, center
        for _ in range(self.rounds):
            p, covariance, variance = _moments(head, spread, mean)
            rows = head.weight_gradient - covariance * (1 - 1 / head.total)
            bias_gradient = _bias_gradient(head, rows, mean)
            counts = head.counts(p, bias_gradient).clamp(0, head.total)
            weights = torch.linalg.solve(_noise(head, counts, variance), bias_gradient)
            trust = self.trust * head.total
            mean = (weights @ rows + trust * center) / (weights @ bias_gradient + trust)
        return head.counts(_moments(head, spread, mean)[0], _bias_gradient(head, rows, mean))


def _certain(head: Head, features: Tensor) -> Tensor | None:
    """1 for each class that occurs for certain, `[k]`; nothing where signs of the rows do not tell."""
    smoothed = bool((head.pull - head.pull.diagonal().diag()).abs().max() >= 1e-9)
    if smoothed or negative(features):
        return None
    shown = head.weight_gradient.amin(dim=1) < -_SHOWN * head.weight_gradient.abs().max()
    return shown if int(shown.sum()) <= head.total else None


def _shared_feature(head: Head) -> Tensor | None:
    """The one feature that all rows agree on, `[d]`; `None` if they do not, or the head has no bias."""
    if head.bias_gradient is None or not bool(head.bias_gradient.any()):
        return None
    mean = head.bias_gradient @ head.weight_gradient / head.bias_gradient.square().sum()
    rest = head.weight_gradient - torch.outer(head.bias_gradient, mean)
    return mean if bool(rest.norm() < _ALIKE * head.weight_gradient.norm()) else None


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
