"""Label recovery, before any pixel: (observation) -> labels.

For softmax cross entropy the gradient with respect to the head's bias is `p - y`, averaged over the
batch: negative only where a label is present. The rows of the head's weight gradient are the same factors times the
features in front of the head. A rule is a file: `single` and `solved` (one example), `columns` (distinct
labels), `impact`, `counts` and `mean_feature` (any labels), `recovered` (which of them), `joint` (none).
"""

from inversefed.attacks.labels.columns import ColumnMinimum
from inversefed.attacks.labels.counts import BiasCounts, InstanceCounts
from inversefed.attacks.labels.impact import ImpactCounts
from inversefed.attacks.labels.joint import JointLabels
from inversefed.attacks.labels.mean_feature import MeanFeatureCounts
from inversefed.attacks.labels.recovered import RecoveredLabels
from inversefed.attacks.labels.rule import LabelRule as LabelRule
from inversefed.attacks.labels.single import SignRule, SoftTargets
from inversefed.attacks.labels.solved import SolvedTarget
from inversefed.errors import ThreatModelError
from inversefed.fl.losses import labels_are_inputs
from inversefed.fl.targets import as_targets
from inversefed.fl.threat import Observation
from inversefed.types import Targets

__all__ = [
    "BiasCounts",
    "ColumnMinimum",
    "ImpactCounts",
    "InstanceCounts",
    "JointLabels",
    "MeanFeatureCounts",
    "RecoveredLabels",
    "SignRule",
    "SoftTargets",
    "SolvedTarget",
]


def granted_or_recovered_labels(observation: Observation, rule: LabelRule = RecoveredLabels()) -> Targets:
    """The labels that the threat model grants, or those that a rule finds, as the loss takes them.

    Raises:
        ThreatModelError: the labels are the inputs themselves, which no rule finds.
    """
    if observation.labels is not None:
        return observation.labels
    if labels_are_inputs(observation.network.loss):
        raise ThreatModelError(
            f"labels of {observation.network.loss!r} are the {observation.network.space.noun}s themselves, so that no "
            "rule finds them first: recipes.token_span() finds both"
        )
    found = rule(observation)
    return found if found.is_floating_point() else as_targets(observation.network, found)
