"""Time schedule: how fast a search is on this machine now, and how many iterations fit into a time budget.

The time of a step is measured on steps of the search itself, between the first and later ones: what comes before the
first (labels, a proof of bfloat16) is a matter of its own. Nothing else tells it: an exact method counts as one
iteration, whatever it takes.
"""

import math
import time
from dataclasses import dataclass, field, replace

from torch import Generator

from inversefed.attacks.pieces.schedules import Constant
from inversefed.attacks.pieces.selection import Agreeing
from inversefed.attacks.search.inversion import GradientInversion
from inversefed.attacks.search.restart_pruning import KeepAll
from inversefed.attacks.search.restarts import planned_steps
from inversefed.fl.threat import Observation
from inversefed.types import Budget, Reconstruction, Status, Step

__all__ = ["Pace", "as_fits"]

_SHARE = 0.02
"""Of the time there is, what is measured for at least: the shorter, the more another process counts."""
_LATER = 2
"""The iteration from which a measurement may end."""
_WORTH = 4
"""How many more steps than those that were taken must fit, for it to be worth it to begin anew."""
_MARGIN = 0.8
"""Of the time that is left, what is planned for: later steps may cost more, and another process may come up."""


@dataclass(eq=False)
class Pace:
    """Watches a search from its start, and tells what its steps take.

    Args:
        seconds: how long to look, at least; two iterations in any case.
        planned: how many steps there are to be; at a pace at which they take more than `left`, the search is stopped,
            unless hardly more than what was done fits into it anyway.
        left: the time for all of them; `None` for no limit.
        spare: the time beyond that, of which a first picture may take what it needs.
        first: the steps that it needs.
        budget: whose watcher is told of the steps as well.

    Attributes:
        measured: whether it was looked long enough.
        fits: whether to go on: all steps fit into the time, as far as is known, or it is not worth it to begin anew.
        asked: whether the budget's watcher asked for the end.
    """

    seconds: float
    planned: int = 0
    left: float | None = None
    spare: float = 0.0
    first: int = 0
    budget: Budget = Budget()
    measured: bool = field(default=False, init=False)
    fits: bool = field(default=True, init=False)
    asked: bool = field(default=False, init=False)
    _began: float = field(default_factory=lambda: time.monotonic(), init=False)
    _times: list[float] = field(default_factory=list, init=False)

    def __call__(self, step: Step) -> bool:
        """Note a step; whether to stop."""
        self._times.append(time.monotonic())
        self.asked |= self.budget.on_step is not None and bool(self.budget.on_step(step))
        if not self.measured and step.iteration >= _LATER and self._times[-1] - self._times[0] >= self.seconds:
            self.measured = True
            done, left = len(self._times), self.still(len(self._times))
            self.fits = (self.planned - done) * self.step <= left or left < _WORTH * done * self.step
        return self.asked or not self.fits or (self.measured and self.still(len(self._times)) < 0)

    def still(self, done: int) -> float:
        """Seconds left behind so many steps, or to begin anew, with the spare ones that a first picture needs."""
        if self.left is None:
            return math.inf
        left = self.left - (time.monotonic() - self._began)
        needed = ((self.first - done) * self.step + (0.0 if done else self.setup)) / _MARGIN
        return left + max(0.0, min(self.spare, needed - left))

    @property
    def step(self) -> float:
        """Seconds of a step of one restart: the mean of those after the first; of the first, where it is alone."""
        if not self._times:
            return math.inf
        first, more = self._times[0], len(self._times) - 1
        return max(1e-9, (self._times[-1] - first) / more if more else first - self._began)

    @property
    def setup(self) -> float:
        """Seconds before the first step."""
        return max(0.0, self._times[0] - self._began - self.step) if self._times else 0.0


def as_fits(
    search: GradientInversion, observation: Observation, generator: Generator, budget: Budget, spare: float = 0.0
) -> tuple[Reconstruction, str]:
    """Run a search with as many iterations as fit into the time.

    A search whose steps, noise and priors fade is worth little where it is stopped in the middle, and much with fewer
    iterations of the same course. It begins with all of them; where its first steps show that they do not fit, it
    begins anew with fewer restarts, or fewer iterations. One whose steps stay the same is run as it is, and so is one
    whose state is kept in a file, which says how many iterations there are, and one restart that is run again.

    Args:
        search: what is run.
        observation: what it attacks.
        generator: the only source of randomness.
        budget: how long it may run.
        spare: seconds beyond that, of which it takes what a first picture needs; none where there is no limit.

    Returns:
        What it found, and in a few words how much was left out for want of time, or nothing.
    """
    iterations = budget.max_iterations or search.max_iterations
    kept = budget.checkpoint or budget.resume or budget.restart is not None
    if kept or search.schedule == Constant() or budget.seconds is None:
        return search(observation, generator, budget), ""
    planned = planned_steps(search.restarts, search.pruning(search.restarts, iterations))
    pace = Pace(_SHARE * budget.seconds, planned, budget.seconds, spare, search.first_picture, budget)
    state = generator.get_state()
    found = search(observation, generator, replace(budget, seconds=budget.seconds + spare, on_step=pace))
    if pace.fits or pace.asked or found.status is not Status.STOPPED:
        return found, ""
    left = pace.still(0)
    steps = max(1, int((_MARGIN * left - pace.setup) / pace.step))
    fewer = _fewer(search, iterations, steps)
    generator.set_state(state)
    found = fewer(observation, generator, replace(budget, seconds=left, max_iterations=fewer.max_iterations))
    many = "" if search.restarts == 1 else f" in {fewer.restarts} of {search.restarts} restarts"
    return found, f"{fewer.max_iterations} of {iterations} iterations{many}"


def _fewer(search: GradientInversion, iterations: int, steps: int) -> GradientInversion:
    """The search in so many steps: with fewer restarts as long as enough are left, then with fewer iterations."""
    restarts = min(search.restarts, max(1, steps // iterations))
    if isinstance(search.selection, Agreeing):
        restarts = max(restarts, min(search.restarts, search.selection.fewest, steps // search.first_picture))
    iterations = min(iterations, max(1, steps // restarts))
    pruning = KeepAll() if restarts == 1 else search.pruning
    return replace(search, restarts=restarts, pruning=pruning, max_iterations=iterations)
