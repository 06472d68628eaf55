"""Label counts from how far each occurrence lowers its class's row of the head gradient."""

from dataclasses import dataclass

from torch import Tensor

from inversefed.attacks.head.gradient import read_head, round_counts
from inversefed.attacks.labels.feature_signs import check_not_negative
from inversefed.errors import ThreatModelError
from inversefed.fl.threat import Observation
from inversefed.types import Labels

__all__ = ["ImpactCounts"]


@dataclass(frozen=True)
class ImpactCounts:
    """LLG: with `g_c = sum_j gW[c, j]`, take the class of the lowest sum, add one impact `m` to it, K times over.

    Wainakh et al. (2021), arXiv:2105.09369, Algorithm 1, `m = (1 + 1/k) / K sum_{g_c < 0} g_c`: every class with a
    negative sum occurs at least once. Needs no bias, no made-up pictures and no idea of the probabilities, and is
    worth as much: where these differ much between classes it miscounts.

    Args:
        probes: how many made-up pictures are asked whether features are negative.

    Raises:
        ThreatModelError: no linear head, or features in front of it that can be negative.
    """

    probes: int = 32

    def __call__(self, observation: Observation) -> Labels:
        """Labels in rising order, `[n]`."""
        head = read_head(observation, scale_free=True)
        check_not_negative(head, self.probes, "LLG")
        sums = head.weight_gradient.sum(dim=1)
        impact = (1 + 1 / len(sums)) / head.total * float(sums.clamp(max=0).sum())
        if impact == 0:
            raise ThreatModelError("no row of the head's gradient has a negative sum; is the update zero?")
        return round_counts(_walk(sums, impact, head.total), head.total)


def _walk(sums: Tensor, impact: float, total: int) -> Tensor:
    """The counts of the paper's two loops, `[k]`."""
    sums, counts = sums.clone(), sums.new_zeros(len(sums))
    present = [int(c) for c in sums.argsort() if sums[c] < 0][:total]
    for step in range(total):
        chosen = present[step] if step < len(present) else int(sums.argmin())
        counts[chosen] += 1
        sums[chosen] -= impact
    return counts
