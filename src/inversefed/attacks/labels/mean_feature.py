"""Label counts with the mean feature of the batch, which the head's weight gradient contains.

The counts are those of `head.expected_counts`, rounded so that they sum to the number of examples.

Where no feature is negative, only a label of its own makes an entry of a class's row negative: such a class occurs at
least once. (The column minimum of Yin et al. 2021, arXiv:2104.07586, takes the lowest for all that there are.)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inversefed.attacks.head.expected_counts import expected_counts
from inversefed.attacks.head.gradient import Head, read_head, round_counts
from inversefed.attacks.labels.feature_signs import negative
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
            return round_counts(head.counts(head.softmax(shared), head.bias_gradient), head.total)
        features = head.probe(self.probes)
        return round_counts(
            expected_counts(head, features, self.trust, self.rounds), head.total, _certain(head, features)
        )


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
