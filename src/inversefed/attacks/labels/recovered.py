"""The default label rule: chosen by what the server can see, and by nothing else."""

from dataclasses import dataclass

from torch import nn

from inversefed.attacks.head.gradient import pulls
from inversefed.attacks.labels.impact import ImpactCounts
from inversefed.attacks.labels.mean_feature import MeanFeatureCounts
from inversefed.attacks.labels.rule import LabelRule
from inversefed.attacks.labels.single import SignRule, SoftTargets, is_mixture
from inversefed.attacks.labels.solved import SolvedTarget
from inversefed.fl.targets import forms
from inversefed.fl.threat import Observation
from inversefed.types import Targets

__all__ = ["RecoveredLabels"]


@dataclass(frozen=True)
class RecoveredLabels:
    """The rule that fits: for one example its sign, or its target under another loss; for several their counts.

    Of a client whose settings are unknown the gradient's scale is too: then `ImpactCounts`, which does without.

    Raises:
        ThreatModelError: no rule applies; the message says what is missing.
    """

    def __call__(self, observation: Observation) -> Targets:
        """Labels, `[n]`; of several examples in rising order. Of losses that take no classes, as they take them."""
        return self.rule(observation)(observation)

    def rule(self, observation: Observation) -> LabelRule:
        """Choose by the number of examples, the client, the loss, and whether the head has a bias."""
        network, hidden = observation.network, not observation.client_known
        if observation.num_examples > 1:
            return ImpactCounts() if hidden else MeanFeatureCounts()
        pulled, biased = pulls(network), f"{network.head}.bias" in observation.update and not hidden
        linear = network.head is not None and isinstance(network.module.get_submodule(network.head), nn.Linear)
        if pulled is None or network.num_classes == 1:
            return SolvedTarget() if biased and linear else SignRule()
        smoothed = float(pulled[1].diagonal().min()) < 1 - 1e-6
        if biased and linear and "rows" in forms(network) and is_mixture(observation):
            return SoftTargets(mixtures=True)
        return SoftTargets() if smoothed and biased else SignRule()
