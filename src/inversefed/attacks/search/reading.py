"""How a restart is read: which of its iterates counts, what it shows, and how well that matches."""

from dataclasses import dataclass
from typing import Literal

from inversefed.attacks.search.minimize import Descent, Variables
from inversefed.attacks.search.problem import Problem
from inversefed.types import Candidate, Inputs, Status

__all__ = ["Reading"]


@dataclass(frozen=True, eq=False)
class Reading:
    """Reads the restarts of a search.

    Args:
        problem: what they minimize.
        keep: which iterate counts, the `"best"` by the minimized loss or the `"last"`.
        tolerance: a matching cost that is good enough, if any is.
        random: whether their steps draw random numbers, so that a candidate names their seed.
    """

    problem: Problem
    keep: Literal["best", "last"] = "best"
    tolerance: float | None = None
    random: bool = False

    def candidate(self, descent: Descent) -> Candidate:
        """What a restart came to."""
        variables = self._kept(descent)
        images, (labels, soft) = self.problem.images(variables), self.problem.decoded(variables)
        return Candidate(
            images,
            labels,
            self.problem.fit(variables),
            descent.status or Status.STOPPED,
            len(descent.history),
            tuple(descent.history),
            soft,
            descent.restart,
            descent.seed if self.random else None,
        )

    def cost(self, descent: Descent) -> float:
        """The matching cost of a restart."""
        return self.candidate(descent).loss

    def enough(self, descent: Descent) -> bool:
        """Whether a restart has ended so well that none after it need begin."""
        return self.tolerance is not None and self.cost(descent) <= self.tolerance

    def leader(self, descents: list[Descent]) -> Inputs:
        """The pictures of the restart that is ahead, without another evaluation.

        Args:
            descents: the restarts that took a step, or the first.
        """
        if self.keep == "last":
            leader = min(descents, key=lambda each: (-len(each.history), each.history[-1:]))
            return self.problem.images(leader.last)
        return self.problem.images(min(descents, key=lambda each: each.lowest).best)

    def _kept(self, descent: Descent) -> Variables:
        if self.keep == "last" or not descent.history:
            return descent.last
        return descent.last if self.problem.value(descent.last) <= descent.lowest else descent.best
