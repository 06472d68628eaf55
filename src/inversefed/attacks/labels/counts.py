"""Label counts from the bias gradient: `k T / K = p - gb`, with `p` estimated in two ways."""

from dataclasses import dataclass

import torch
from torch import Tensor

from inversefed.attacks.head.gradient import Head, read_head, round_counts
from inversefed.fl.threat import Observation
from inversefed.types import Labels

__all__ = ["BiasCounts", "InstanceCounts"]


@dataclass(frozen=True)
class BiasCounts:
    """How often each class occurs: `k_c = K (p_c - gb_c)`, `p` guessed from made-up pictures.

    From the bias gradient `gb_c = mean p_c - k_c / K`. Good on untrained networks, where `p` hardly depends
    on the picture; rounded so that the counts add up to the number of examples K.

    Args:
        probes: how many pictures `p` is averaged over.

    Raises:
        ThreatModelError: a head without bias, or one that cannot be counted from.
    """

    probes: int = 32

    def __call__(self, observation: Observation) -> Labels:
        """Labels in rising order, `[n]`."""
        head = read_head(observation)
        bias_gradient = head.needed_bias("counting labels from the bias gradient")
        expected = head.softmax(head.probe(self.probes)).mean(dim=0)
        return round_counts(head.counts(expected, bias_gradient), head.total)


@dataclass(frozen=True)
class InstanceCounts:
    """How often each class occurs, by solving for it: each class with the probabilities of its own mean feature.

    iLRG, Ma et al. (2022), arXiv:2210.11194 (ICLR 2023): `e_c = gW_c / gb_c` stands for the features of class c and
    `P_c = softmax(W e_c + b)` for its probabilities. The counts solve `sum_c k_c (P_c - T_c) = K gb` and
    `sum_c k_c = K`, by least squares.

    Exact where all features of a class are alike and the other classes do not add to its row.

    Raises:
        ThreatModelError: a head without bias, or one that cannot be counted from.
    """

    def __call__(self, observation: Observation) -> Labels:
        """Labels in rising order, `[n]`."""
        head = read_head(observation)
        bias_gradient = head.needed_bias("solving for instance counts")
        probabilities = head.softmax(_class_features(head, bias_gradient))
        ones = torch.ones_like(bias_gradient)
        system = torch.cat([(probabilities - head.pull).T, ones[None]])
        right = head.total * torch.cat([bias_gradient, ones[:1]])
        return round_counts(torch.linalg.pinv(system) @ right, head.total)


def _class_features(head: Head, bias_gradient: Tensor) -> Tensor:
    """`gW_c / gb_c`, or the mean feature where `gb_c` is too small to divide by, `[k, d]`."""
    mean = bias_gradient @ head.weight_gradient / bias_gradient.square().sum().clamp(min=1e-30)
    small = bias_gradient.abs() < 1e-6 * bias_gradient.abs().max()
    quotient = head.weight_gradient / torch.where(small, torch.ones_like(bias_gradient), bias_gradient)[:, None]
    return torch.where(small[:, None], mean, quotient)
