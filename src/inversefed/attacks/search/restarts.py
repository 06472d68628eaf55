"""Restarts of one search: which advance together, which are pruned, and when it ends.

    for until, keep in rungs:  advance all that are left, group by group, to `until`;  keep the `keep` that match best

A restart is the same whatever runs beside it: starts are drawn together, and each has a generator of its own.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from inversefed.attacks.search import checkpoint
from inversefed.attacks.search.minimize import Course, Descent, Goal, advance
from inversefed.attacks.search.reading import Reading
from inversefed.attacks.search.restart_pruning import Rungs
from inversefed.errors import InputError
from inversefed.types import Budget, Status, Step

__all__ = ["Restarts", "planned_steps"]

_SECONDS_BETWEEN_CHECKPOINTS = 20.0


def planned_steps(restarts: int, rungs: Rungs) -> int:
    """Steps of all restarts together, where none ends early.

    >>> planned_steps(4, ((10, 2), (30, 2)))
    80
    """
    steps, before, left = 0, 0, restarts
    for until, keep in rungs:
        steps, before, left = steps + left * (until - before), until, keep
    return steps


@dataclass(eq=False)
class Restarts:
    """All restarts of one attack, and the clock: who watches the loop.

    Args:
        descents: the restarts.
        rungs: how many go how far.
        width: how many are evaluated, and unless `abreast` advance, together.
        budget: time, who watches, and where the state is kept.
        mark: what the search is, for its checkpoints.
        reading: how a restart is read.
        trusted: ways of evaluating that were proven, or not, on the way.
        abreast: all restarts go side by side, whatever the width, so that they can meet.
        began: when the attack began, by `time.monotonic`.

    Attributes:
        unsaved: why the last checkpoint could not be written on the way, if so.
    """

    descents: list[Descent]
    rungs: Rungs
    width: int
    budget: Budget
    mark: checkpoint.Mark
    reading: Reading
    trusted: dict[str, bool] = field(default_factory=dict)
    abreast: bool = False
    began: float = field(default_factory=lambda: time.monotonic())
    unsaved: str | None = field(default=None, init=False)
    _saved: float = field(default_factory=lambda: time.monotonic())
    _steps: int = 0
    _rung: int = 0
    _complete: dict[int, dict[str, Any]] = field(default_factory=dict)

    def run(self, goal: Goal, course: Course) -> Status:
        """Go through the rungs.

        Args:
            goal: what is minimized.
            course: how steps are made.

        Returns:
            `STOPPED` or `INTERRUPTED` where the plan was not carried out, else `FINISHED`.

        Raises:
            InputError: a checkpoint that cannot be read, or that cannot be written before the first step.
        """
        if self.budget.resume is not None:
            self._restore(checkpoint.read(self.budget.resume, self.mark.digest))
        self._write()
        status = Status.FINISHED
        try:
            if not self._climb(goal, course):
                status = Status.STOPPED
        except KeyboardInterrupt:
            self._undo()
            status = Status.INTERRUPTED
        self._save()
        for descent in self.begun:
            if descent.status is None:
                descent.status = Status.FINISHED if self._ended(descent) else status
        return status

    @property
    def begun(self) -> list[Descent]:
        """The restarts that took a step, or the first."""
        return [d for d in self.descents if d.history or d.status is not None] or self.descents[:1]

    def over(self) -> bool:
        """Whether the time is used up."""
        return self.budget.seconds is not None and time.monotonic() - self.began > self.budget.seconds

    def _climb(self, goal: Goal, course: Course) -> bool:
        """Whether all that was planned was done."""
        for rung in range(self._rung, len(self.rungs)):
            self._rung = rung
            until, keep = self.rungs[rung]
            left = [descent for descent in self.descents if descent.status is not Status.PRUNED]
            for group in _groups(left, len(left) if self.abreast else self.width):
                self._remember(group)
                if advance(group, goal, course, until, self, self.width):
                    return all(self._ended(descent) for descent in left) and rung + 1 == len(self.rungs)
                if rung + 1 == len(self.rungs) and any(map(self.reading.enough, group)):
                    return True
            self._prune(left, keep)
        return True

    def _prune(self, left: list[Descent], keep: int) -> None:
        """Give up all but some of the restarts; one that was lost to NaN takes no place, one that is done stays so."""
        alive = [descent for descent in left if descent.status is not Status.NON_FINITE]
        costs = {descent.restart: self.reading.cost(descent) for descent in alive} if keep < len(alive) else {}
        ranked = sorted(alive, key=lambda each: _finite(costs.get(each.restart, 0.0)))
        for descent in ranked[keep:]:
            descent.status = descent.status or Status.PRUNED

    def _ended(self, descent: Descent) -> bool:
        return descent.status is not None or (len(descent.history) >= self.rungs[-1][0] and not descent.cut)

    def seen(self, group: Sequence[Descent]) -> bool:
        """Look at restarts that took a step, and keep their state; whether to stop."""
        self._steps += len(group)
        self._remember(group)
        if time.monotonic() - self._saved > _SECONDS_BETWEEN_CHECKPOINTS:
            self._save()
        seconds = time.monotonic() - self.began
        stops = [self._tell(each, seconds) for each in group if each.status is not Status.NON_FINITE]
        return any(stops) or self.over()

    def _tell(self, descent: Descent, seconds: float) -> bool:
        """Tell the watcher of a step, and return whether to stop."""
        if self.budget.on_step is None:
            return False
        step = Step(
            descent.restart,
            len(self.descents),
            len(descent.history),
            self.rungs[-1][0],
            descent.history[-1],
            seconds,
            lambda: self.reading.leader(self.begun),
            self._remaining(seconds),
            self._steps / max(seconds, 1e-9),
        )
        return bool(self.budget.on_step(step))

    def _remaining(self, seconds: float) -> float:
        left = planned_steps(len(self.descents), self.rungs) - sum(len(each.history) for each in self.descents)
        estimate = max(0, left) * seconds / max(1, self._steps)
        return estimate if self.budget.seconds is None else max(0.0, min(estimate, self.budget.seconds - seconds))

    def _remember(self, group: Sequence[Descent]) -> None:
        """Keep the state of a group between two steps, for a checkpoint; a step that the clock cut is none of them."""
        if self.budget.checkpoint is not None and not self._cut:
            self._complete = {descent.restart: descent.state() for descent in group}

    def _save(self) -> None:
        """Write the state; where that fails on the way, the search is worth more than its checkpoint."""
        try:
            self._write()
            self.unsaved = None
        except InputError as error:
            self.unsaved = str(error)

    def _write(self) -> None:
        if self.budget.checkpoint is None:
            return
        complete = self._complete if self._cut else {}
        descents = [complete.get(descent.restart) or descent.state() for descent in self.descents]
        state = {"rung": self._rung, "width": self.width, "trusted": self.trusted, "descents": descents}
        self._saved = time.monotonic()  # also where it fails: a full disk is not asked at each step
        checkpoint.write(self.budget.checkpoint, state, self.mark.digest)

    def _restore(self, state: dict[str, Any]) -> None:
        self._rung, self.width = state["rung"], state["width"]
        self.trusted.update(state["trusted"])
        for descent, its in zip(self.descents, state["descents"], strict=True):
            descent.restore(its)

    @property
    def _cut(self) -> bool:
        """Whether the clock ended a step in its middle."""
        return any(descent.cut for descent in self.descents)

    def _undo(self) -> None:
        """Go back to the last complete step, where an interrupt left one half done."""
        for descent in self.descents:
            if descent.restart in self._complete:
                descent.restore(self._complete[descent.restart])


def _finite(cost: float) -> float:
    return cost if math.isfinite(cost) else math.inf


def _groups(descents: Sequence[Descent], width: int) -> Iterator[Sequence[Descent]]:
    return (descents[first : first + width] for first in range(0, len(descents), width))
