"""Gradient inversion by optimization (Geiping et al. 2020, arXiv:2003.14053).

    x^ = argmin_x  match(client(network, x, y^), update*) + sum prior(x)

Labels come first, by a rule or as further variables; then restarts, each from its own start; then one
is chosen. Published settings of these pieces are in `recipes`.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Generator, Tensor

from inversefed.attacks.labels import JointLabels, LabelRule, RecoveredLabels
from inversefed.attacks.minimize import Minimum, Variables, minimize
from inversefed.attacks.objectives import Cosine
from inversefed.attacks.optimizers import Adam, Optimizer
from inversefed.attacks.parametrizations import Pixels
from inversefed.attacks.priors import TotalVariation
from inversefed.attacks.problem import Objective, Prior, Problem
from inversefed.attacks.projections import Box
from inversefed.attacks.schedules import StepDecay
from inversefed.attacks.selection import LowestLoss, Match
from inversefed.attacks.starts import Normal
from inversefed.errors import ConfigError
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.types import Budget, Candidate, Finding, Reconstruction, Status, Step

__all__ = ["GradientInversion"]

Start = Callable[[tuple[int, ...], Generator, torch.dtype], Tensor]
Schedule = Callable[[float, int, int], float]
Parametrization = Callable[[Tensor], Tensor]
Projection = Callable[[Tensor, Network, int], Tensor]
Selection = Callable[[list[Candidate], Observation, Match], Candidate]


@dataclass(frozen=True)
class GradientInversion:
    """Find images whose update looks like the one observed.

    Args:
        objective: distance of two updates.
        priors: added to it, each with its own weight.
        start: first guesses.
        optimizer: the stepping rule.
        schedule: how its step length changes.
        projections: what is done to the search variable after each step, in order.
        parametrization: from the search variable to network inputs.
        labels: how labels are found where the threat model hides them.
        max_iterations: steps a restart.
        restarts: how many starts are tried.
        selection: which of them is the result.
        keep: which iterate of a restart counts, the `"best"` by the minimized loss or the `"last"`.
        tolerance: a matching cost at which no further restart is begun.
    """

    objective: Objective = Cosine()
    priors: tuple[Prior, ...] = (TotalVariation(1e-2),)
    start: Start = Normal()
    optimizer: Optimizer = Adam()
    schedule: Schedule = StepDecay()
    projections: tuple[Projection, ...] = (Box(),)
    parametrization: Parametrization = Pixels()
    labels: LabelRule | JointLabels = RecoveredLabels()
    max_iterations: int = 4800
    restarts: int = 1
    selection: Selection = LowestLoss()
    keep: Literal["best", "last"] = "best"
    tolerance: float | None = None

    def __post_init__(self) -> None:
        if self.max_iterations < 1 or self.restarts < 1:
            raise ConfigError(
                f"an attack needs at least 1 iteration and 1 restart; got {self.max_iterations} and {self.restarts}"
            )
        if self.keep not in ("best", "last"):
            raise ConfigError(f"keep is 'best' or 'last', not {self.keep!r}")
        for name in ("objective", "start", "schedule", "selection", "parametrization"):
            if not callable(getattr(self, name)):
                raise ConfigError(f"{name} cannot be called: {getattr(self, name)!r}")
        for name in ("priors", "projections"):
            if not isinstance(getattr(self, name), tuple) or not all(map(callable, getattr(self, name))):
                raise ConfigError(f"{name} is a tuple of values, such as (Box(),); got {getattr(self, name)!r}")

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Attack an observation.

        Args:
            observation: what the server sees.
            generator: the only source of randomness.
            budget: time, iterations, and who watches.

        Raises:
            ThreatModelError: the labels are hidden and cannot be recovered by the rule.
            ConfigError: the budget holds no iteration.
        """
        problem = Problem.of(observation, self.objective, self.priors, self.parametrization, self.labels)
        starts = self.start((self.restarts, *observation.batch_shape), generator, observation.network.dtype)
        clock = _Clock(self, budget)
        candidates: list[Candidate] = []
        for restart, start in enumerate(starts):
            candidate = self._restart(problem, start, generator, clock, restart)
            candidates.append(candidate)
            if candidate.status in (Status.STOPPED, Status.INTERRUPTED) or clock.expired:
                break
            if self.tolerance is not None and candidate.loss <= self.tolerance:
                break
        chosen = self.selection(candidates, observation, problem.match)
        return Reconstruction(
            chosen.images,
            chosen.labels,
            chosen.loss,
            _overall(candidates),
            tuple(candidates),
            _label_findings(observation, problem),
        )

    def _restart(
        self, problem: Problem, start: Tensor, generator: Generator, clock: "_Clock", restart: int
    ) -> Candidate:
        minimum = minimize(
            problem.loss,
            problem.start(start, generator),
            self.optimizer,
            self.schedule,
            clock.iterations,
            project=lambda inputs, done: self._project(inputs, problem.observation.network, done),
            deadline=clock.deadline,
            watch=lambda done, loss, best: clock.tell(restart, done, loss, lambda: problem.images(best)),
        )
        variables = self._kept(problem, minimum)
        images, labels = problem.images(variables), problem.targets(variables)
        return Candidate(
            images,
            labels.argmax(dim=1) if labels.is_floating_point() else labels,
            problem.match(images, labels),
            minimum.status,
            len(minimum.history),
            minimum.history,
            labels if labels.is_floating_point() else None,
        )

    def _project(self, inputs: Tensor, network: Network, done: int) -> Tensor:
        for projection in self.projections:
            inputs = projection(inputs, network, done)
        return inputs

    def _kept(self, problem: Problem, minimum: Minimum) -> Variables:
        if self.keep == "last" or not minimum.history:
            return minimum.last
        return minimum.last if problem.value(minimum.last) <= min(minimum.history) else minimum.best


class _Clock:
    """Counts down the budget and tells the watcher."""

    def __init__(self, attack: GradientInversion, budget: Budget) -> None:
        self.restarts, self.on_step = attack.restarts, budget.on_step
        self.iterations = attack.max_iterations if budget.max_iterations is None else budget.max_iterations
        self.began = time.monotonic()
        self.deadline = math.inf if budget.seconds is None else self.began + budget.seconds

    @property
    def expired(self) -> bool:
        return time.monotonic() > self.deadline

    def tell(self, restart: int, done: int, loss: float, best: Callable[[], Tensor]) -> object:
        if self.on_step is None:
            return None
        seconds = time.monotonic() - self.began
        return self.on_step(Step(restart, self.restarts, done, self.iterations, loss, seconds, best))


def _overall(candidates: list[Candidate]) -> Status:
    """The whole attack ended as its last restart did; a lost restart only counts if all were lost."""
    statuses = [candidate.status for candidate in candidates]
    if all(status is Status.NON_FINITE for status in statuses):
        return Status.NON_FINITE
    return Status.FINISHED if statuses[-1] is Status.NON_FINITE else statuses[-1]


def _label_findings(observation: Observation, problem: Problem) -> tuple[Finding, ...]:
    if observation.labels is not None:
        return (Finding("labels-given", "info", "The labels were handed to the attack."),)
    how = "optimized together with the images" if problem.labels is None else "recovered first"
    return (Finding("labels-hidden", "info", f"The labels were hidden from the attack; they were {how}."),)
