"""Which classes are present, from the least entry of each class's row of the head gradient."""

from dataclasses import dataclass

from inversefed.attacks.head.gradient import read_head
from inversefed.attacks.labels.feature_signs import check_not_negative
from inversefed.errors import ThreatModelError
from inversefed.fl.threat import Observation
from inversefed.types import Labels

__all__ = ["ColumnMinimum"]


@dataclass(frozen=True)
class ColumnMinimum:
    """The K classes with the lowest `min_j gW[c, j]`, for a batch that is known to have distinct labels.

    GradInversion, Yin et al. (2021), arXiv:2104.07586, section 3.1. One strongly active feature of an example is
    enough to show its label, where a sum over features drowns it. That labels are distinct cannot be seen in every
    update, so this rule is never chosen by itself; where it can, `MeanFeatureCounts` sees it too.

    Args:
        probes: how many made-up pictures are asked whether features are negative.

    Raises:
        ThreatModelError: more examples than classes, or features in front of the head that can be negative.
    """

    probes: int = 32

    def __call__(self, observation: Observation) -> Labels:
        """Labels in rising order, `[n]`."""
        head = read_head(observation, scale_free=True)
        if head.total > len(head.weight):
            raise ThreatModelError(
                f"the column minimum finds distinct labels; {head.total} examples of {len(head.weight)} classes "
                "cannot be distinct; use RecoveredLabels()"
            )
        check_not_negative(head, self.probes, "the column minimum")
        return head.weight_gradient.amin(dim=1).argsort()[: head.total].sort().values
