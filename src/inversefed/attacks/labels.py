"""Label recovery, before any pixel: (observation) -> labels.

For softmax cross entropy the gradient with respect to the head's bias is `p - y`, averaged over the
batch: negative only where a label is present. Without a bias the row sums of the head's weight gradient
say the same, as long as the features in front of the head are not negative.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from inversefed.errors import ThreatModelError
from inversefed.fl.threat import Observation
from inversefed.types import Labels, SoftLabels

__all__ = ["BiasCounts", "JointLabels", "RecoveredLabels", "SignRule"]


@runtime_checkable
class LabelRule(Protocol):
    """Recovers the labels of a batch, in any order."""

    def __call__(self, observation: Observation) -> Labels:
        """Labels, or `ThreatModelError` where the rule does not apply."""
        ...


@dataclass(frozen=True)
class SignRule:
    """The label of a single example: the class whose row of the head's gradient is lowest.

    iDLG, Zhao et al. (2020), arXiv:2001.02610. With a bias in the head it is exact for any network.

    Raises:
        ThreatModelError: more than one example, a network without a clear head, or one whose last ReLU hides the label.
    """

    def __call__(self, observation: Observation) -> Labels:
        """The label, `[1]`."""
        if observation.num_examples != 1:
            raise ThreatModelError(
                f"the sign rule finds the label of one example; this update has {observation.num_examples}"
            )
        sums = _class_sums(observation)
        if not bool(sums.min() < 0):
            raise ThreatModelError(
                "the label does not show in the head's gradient: no row is negative (is the update zero, or the head "
                "followed by a ReLU?); hand it over (known labels), or use JointLabels()"
            )
        return sums.argmin().reshape(1)


@dataclass(frozen=True)
class BiasCounts:
    """How often each class occurs: `k_c = K (p_c - gb_c)`, `p` guessed from noise pictures.

    From the bias gradient `gb_c = mean p_c - k_c / K`. Good on untrained networks, where `p` hardly depends
    on the picture; rounded so that the counts add up to the number of examples K.

    Args:
        probes: how many noise pictures `p` is averaged over.

    Raises:
        ThreatModelError: a head without bias.
    """

    probes: int = 32

    def __call__(self, observation: Observation) -> Labels:
        """Labels in rising order, `[n]`."""
        network, total = observation.network, observation.num_examples
        bias = observation.gradient.get(f"{network.head}.bias")
        if bias is None:
            raise ThreatModelError(
                "counting labels needs a head with a bias; hand the labels over (known labels), or use JointLabels()"
            )
        noise = torch.rand((self.probes, *network.image_shape), generator=Generator().manual_seed(0))
        expected = network.features(noise).softmax(dim=1).mean(dim=0)
        scale = total if getattr(network.loss, "reduction", "mean") == "sum" else 1
        return _deal((total * (expected - bias / scale)).clamp(0, total), total)


@dataclass(frozen=True)
class RecoveredLabels:
    """The sign rule for one example, bias counts for several."""

    def __call__(self, observation: Observation) -> Labels:
        """Labels, `[n]`."""
        return (SignRule() if observation.num_examples == 1 else BiasCounts())(observation)


@dataclass(frozen=True)
class JointLabels:
    """Not a rule: leave the labels open and optimize softmax logits together with the images.

    DLG, Zhu et al. (2019), arXiv:1906.08935.

    Args:
        shared: one row of logits for the whole batch, as the 2020 code had it, instead of one an example.
    """

    shared: bool = False

    def start(self, observation: Observation, generator: Generator) -> Tensor:
        """Normal logits, `[n, k]`, or `[k]` where shared."""
        network = observation.network
        rows = () if self.shared else (observation.num_examples,)
        shape = (*rows, network.num_classes)
        return torch.randn(shape, generator=generator, dtype=network.dtype, device=generator.device).to(network.device)

    def decode(self, logits: Tensor, num_examples: int) -> SoftLabels:
        """Probabilities, `[n, k]`."""
        return logits.softmax(dim=-1).expand(num_examples, -1)


def granted_or_recovered(observation: Observation, rule: LabelRule = RecoveredLabels()) -> Labels:
    """The labels that the threat model grants, or those that a rule finds."""
    return rule(observation) if observation.labels is None else observation.labels


def _class_sums(observation: Observation) -> Tensor:
    """One number a class, negative where the label is."""
    head, gradient = observation.network.head, observation.gradient
    if head is None or f"{head}.weight" not in gradient:
        raise ThreatModelError(
            "the network has no clear last layer with one row a class; hand the label over (known labels), "
            "or use JointLabels()"
        )
    bias = gradient.get(f"{head}.bias")
    return gradient[f"{head}.weight"].flatten(start_dim=1).sum(dim=1) if bias is None else bias


def _deal(expected: Tensor, total: int) -> Labels:
    """Round expected counts so that they add up, largest remainders first."""
    counts = expected.floor()
    missing = total - int(counts.sum())
    order = (expected - counts).argsort(descending=missing > 0)
    for index in order.repeat(abs(missing) // len(order) + 1)[: abs(missing)]:
        counts[index] = (counts[index] + (1 if missing > 0 else -1)).clamp(min=0)
    labels = torch.arange(len(counts), device=counts.device).repeat_interleave(counts.long())
    return labels if len(labels) == total else labels[torch.arange(total, device=labels.device) % len(labels)]
