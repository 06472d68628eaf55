"""Gradient inversion by optimization (Geiping et al. 2020, arXiv:2003.14053).

    x^ = argmin_x  match(client(network, x, y^), update*) + sum prior(x)

Labels come first, by a rule or as further variables; then restarts, each from its own start; then one
is chosen. Published settings of these pieces are in `recipes`.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Generator, Tensor

from inversefed.attacks.labels import JointLabels, LabelRule, RecoveredLabels
from inversefed.attacks.pieces.group_consistency import GroupConsistency
from inversefed.attacks.pieces.objectives import Cosine
from inversefed.attacks.pieces.optimizers import LBFGS, Adam, Optimizer, evaluations
from inversefed.attacks.pieces.parametrizations import MadeForNetwork, Parametrization, Pixels
from inversefed.attacks.pieces.priors import TotalVariation
from inversefed.attacks.pieces.projections import Box
from inversefed.attacks.pieces.schedules import Constant, LinearDecay, StepDecay
from inversefed.attacks.pieces.selection import Agreeing, LowestLoss, Match
from inversefed.attacks.pieces.starts import NearMean, Normal, Zeros
from inversefed.attacks.search import checkpoint, memory
from inversefed.attacks.search.changes import FadingPriors, Noise, Pull
from inversefed.attacks.search.convergence import Never
from inversefed.attacks.search.minimize import Descent, Variables
from inversefed.attacks.search.precision import Native, Precision
from inversefed.attacks.search.problem import Change, Objective, Prior, Problem
from inversefed.attacks.search.reading import Reading
from inversefed.attacks.search.restart_pruning import KeepAll, Rungs, SuccessiveHalving
from inversefed.attacks.search.restarts import Restarts, planned_steps
from inversefed.attacks.search.step_evaluator import Compilation, Evaluator
from inversefed.attacks.simulations import KnownClient, Simulation
from inversefed.errors import ConfigError, UnsupportedNetworkError, unknown_name
from inversefed.findings import Code
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.numerics import float32_products
from inversefed.types import Budget, Candidate, Finding, Params, Reconstruction, Scalar, Status

__all__ = ["GradientInversion"]

Start = Callable[[tuple[int, ...], Generator, torch.dtype], Tensor]
Schedule = Callable[[float, int, int], float]
Projection = Callable[[Tensor, Network, int], Tensor]
Selection = Callable[[list[Candidate], Observation, Match], Candidate]
Convergence = Callable[[Sequence[float]], bool]
Pruning = Callable[[int, int], Rungs]

_CALLED = (
    "objective", "start", "schedule", "selection", "parametrization", "prior_schedule", "noise_schedule",
    "convergence", "pruning", "simulation",
)  # fmt: skip
_WORTH_SHARING = 2e7
"""Operations of a forward pass below which a step is mostly overhead; measured in docs/internals/speed.md."""
_SHARED = 8
_FIRST = 30
"""Evaluations of a first picture; with 30 steps `spectral` gives one (docs/internals/speed.md)."""
_SOLVING = 0.5
"""Of the time, what solving for that which went into the head may take."""
_APART = 0.5
"""Standard deviation, in normalized inputs, of a second start where the first is the mean color or close to it."""


@dataclass(frozen=True)
class GradientInversion:
    """Find images whose update looks like the one observed.

    Paper: Geiping et al. (2020), arXiv:2003.14053; any of its pieces can be exchanged.
    Needs: a client that can be simulated.
    Cost: steps of about seven forward passes, as many as it is given.

    Args:
        objective: distance of two updates.
        priors: added to it, each with its own weight.
        start: first guesses.
        optimizer: the stepping rule.
        schedule: how its step length changes.
        projections: what is done to the search variable after each step, in order.
        parametrization: from the search variable to network inputs.
        labels: how labels are found where the threat model hides them.
        features: weight of the relative absolute error of what goes into the head, where that can be solved for example
            by example (`recover_head_inputs`); 0 for not trying.
        max_iterations: steps a restart.
        restarts: how many starts are tried.
        selection: which of them is the result.
        keep: which iterate of a restart counts, the `"best"` by the minimized loss or the `"last"`.
        tolerance: a matching cost at which no further restart is begun.
        prior_schedule: how the weight of all priors changes over a restart; it falls from 1.
        noise: standard deviation of normal noise, in the network's normalized inputs, that each step adds to what the
            client sees: the search then goes down a smoothed cost, which kinks do not trap.
        noise_schedule: how that falls.
        langevin: standard deviation of normal noise, in step lengths, that each step adds to the search variable.
        convergence: when a restart is done before its last iteration.
        pruning: how many restarts go how far.
        consistency: how restarts hold each other; all of them advance side by side then. It adds nothing to the loss.
        width: how many restarts advance together in one vectorized step; `None` for several where a step has few
            operations and they fit into memory, else one.
        precision: the numbers that steps are computed in.
        simulation: how the client is simulated where something about it is unknown.
        compilation: `"on"` compiles the step (a minute, and a compiler is needed), `"auto"` only where that pays for
            itself by measurement, which makes rounding depend on the machine's speed.
    """

    objective: Objective = Cosine()
    priors: tuple[Prior, ...] = (TotalVariation(1e-2),)
    start: Start = Normal()
    optimizer: Optimizer = Adam()
    schedule: Schedule = StepDecay()
    projections: tuple[Projection, ...] = (Box(),)
    parametrization: Parametrization = Pixels()
    labels: LabelRule | JointLabels = RecoveredLabels()
    features: float = 0.0
    max_iterations: int = 4800
    restarts: int = 1
    selection: Selection = LowestLoss()
    keep: Literal["best", "last"] = "best"
    tolerance: float | None = None
    prior_schedule: Schedule = Constant()
    noise: float = 0.0
    noise_schedule: Schedule = LinearDecay(0.8)
    langevin: float = 0.0
    convergence: Convergence = Never()
    pruning: Pruning = KeepAll()
    consistency: GroupConsistency | None = None
    width: int | None = 1
    precision: Precision = Native()
    simulation: Simulation = KnownClient()
    compilation: Compilation = "off"

    def __post_init__(self) -> None:
        if self.max_iterations < 1 or self.restarts < 1 or (self.width is not None and self.width < 1):
            raise ConfigError(
                "an attack needs at least 1 iteration and 1 restart, and a width of at least 1 or none; "
                f"got {self.max_iterations}, {self.restarts} and {self.width}"
            )
        for name, choice in (("keep", ("best", "last")), ("compilation", ("off", "on", "auto"))):
            if getattr(self, name) not in choice:
                raise ConfigError(f"{name} is one of {', '.join(choice)}, not {getattr(self, name)!r}")
        for name in _CALLED:
            if not callable(getattr(self, name)):
                raise ConfigError(f"{name} cannot be called: {getattr(self, name)!r}")
        self._check_together()
        if not isinstance(self.precision, Precision):
            raise ConfigError(f"precision is a value such as EarlyBFloat16(), not {self.precision!r}")
        for name in ("priors", "projections"):
            _check_tuple(name, getattr(self, name))

    def _check_together(self) -> None:
        """Refuse choices that do not go together."""
        if self.projections and isinstance(self.parametrization, MadeForNetwork):
            raise ConfigError(
                f"{self.parametrization!r} searches weights; projections are for pictures, leave them out"
            )
        if self.consistency is not None and isinstance(self.optimizer, LBFGS):
            raise ConfigError("restarts cannot pull each other along a line search: use Adam or NormalizedMomentum")
        if self.keep == "best" and (self.noise or self.prior_schedule != Constant()):
            raise ConfigError("losses under changing noise and priors are not comparable: use keep='last'")

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Attack an observation.

        Args:
            observation: what the server sees.
            generator: the only source of randomness.
            budget: time, iterations, who watches, and where the state of the search is kept.

        Raises:
            ThreatModelError: the labels are hidden and cannot be recovered by the rule.
            InputError: a checkpoint that cannot be written, or that cannot be taken up.
        """
        began = time.monotonic()
        with float32_products(observation.network.device, self.precision.tf32):
            problem = self._problem(observation, budget.within(_SOLVING))
            need = _Need(problem)
            run = self._restarts(problem, generator, budget, need, began)
            evaluate = self._evaluator(problem, run)
            needed = need.findings()
            status = run.run(evaluate, _Course(self, problem.network, run.rungs[-1][0]))
            candidates = [run.reading.candidate(descent) for descent in run.begun]
            chosen = self.selection(_finalists(candidates), problem.observation, problem.match)
        dtype = observation.network.dtype
        return Reconstruction(
            chosen.images.to(dtype),
            chosen.labels.to(dtype) if chosen.labels.is_floating_point() else chosen.labels,
            chosen.loss,
            _overall(candidates, chosen, status),
            tuple(replace(candidate, images=candidate.images.to(dtype)) for candidate in candidates),
            (*_label_findings(observation, problem), *needed, *evaluate.findings, *_unsaved(run)),
            made_by=repr(self),
        )

    def predicted_bytes(self, observation: Observation) -> int | None:
        """Memory at the peak of a step of one restart, in bytes, by shapes alone; `None` where these do not tell."""
        return _Need(self._problem(observation)).predicted

    @property
    def planned_steps(self) -> int:
        """Iterations of all restarts together, where none ends early."""
        return planned_steps(self.restarts, self.pruning(self.restarts, self.max_iterations))

    @property
    def first_picture(self) -> int:
        """Iterations with which it gives a first picture."""
        return max(5, math.ceil(_FIRST / evaluations(self.optimizer)))

    @property
    def agrees(self) -> bool:
        """Whether its result is what several restarts agree on."""
        return self.restarts > 1 and isinstance(self.selection, Agreeing)

    @property
    def has_prior(self) -> bool:
        """Whether anything but the update moves its starts."""
        return bool(self.priors)

    def search(self, observation: Observation) -> "GradientInversion":
        """Itself."""
        return self

    def one_start(self, apart: bool = False) -> "GradientInversion":
        """The same search from one start.

        Args:
            apart: from one that differs: nearly the same one twice would agree with itself.
        """
        if apart and isinstance(self.start, NearMean | Zeros):
            return replace(self, restarts=1, start=NearMean(std=_APART))
        return replace(self, restarts=1)

    def prior_alone(self, restarts: int = 4) -> "GradientInversion":
        """The same search from several starts, without the update.

            x^ = argmin_x  0 * match(client(network, x, y^), update*) + sum prior(x)

        What comes out is the prior's minimizer, as far as the steps go. Hand it a null observation too: label rules and
        priors look at the observation by themselves.

        Args:
            restarts: how many starts; all of them run to the end.
        """
        return replace(
            self, objective=_Nothing(), features=0.0, restarts=restarts, pruning=KeepAll(), consistency=None,
            tolerance=None,
        )  # fmt: skip

    def with_settings(self, **changes: Any) -> "GradientInversion":
        """The same attack with other restarts, precision or compilation; several restarts are pruned on their way.

        Raises:
            ConfigError: it has no such setting.
        """
        for name in changes:
            if name not in (known := [each.name for each in fields(self)]):
                raise unknown_name("setting of a search", name, known)
        attack = replace(self, **changes)
        if "restarts" not in changes or "pruning" in changes or self.pruning != KeepAll():
            return attack
        return replace(attack, pruning=SuccessiveHalving(), width=changes.get("width"))

    def _problem(self, observation: Observation, stop: Callable[[], bool] = lambda: False) -> Problem:
        """The search computes in float64 if asked, and never in 16 bits, where its own steps would be rounded away."""
        dtype = observation.network.dtype
        if self.precision.double:
            observation = observation.to(torch.float64)
        elif (wide := observation.to(torch.promote_types(dtype, torch.float32))) is not observation:
            with suppress(UnsupportedNetworkError):  # a forward pass that converts to 16 bits by itself
                wide.network.operations()
                observation = wide
        problem = Problem.of(
            observation,
            self.objective,
            self.priors,
            self.parametrization,
            self.labels,
            self.simulation,
            self.features,
            stop,
        )
        return replace(problem, changes=self._changes)

    @property
    def _changes(self) -> tuple[Change, ...]:
        """What changes from step to step: nothing where nothing does. The pull comes last, for it does not fade."""
        noise = (Noise(self.noise, self.noise_schedule),) if self.noise else ()
        fading = (FadingPriors(self.prior_schedule),) if self.prior_schedule != Constant() else ()
        return (*noise, *fading, *(() if self.consistency is None else (Pull(self.consistency),)))

    def _restarts(
        self, problem: Problem, generator: Generator, budget: Budget, need: "_Need", began: float
    ) -> Restarts:
        iterations = budget.max_iterations or self.max_iterations
        observation = problem.observation
        starts = self.start((self.restarts, *problem.shape), generator, observation.network.dtype)
        variables = [problem.start(start, generator) for start in starts]
        seeds = [0] * len(starts)
        if self.noise or self.langevin:
            seeds = torch.randint(2**62, (len(starts),), generator=generator, device=generator.device).tolist()
        descents = [
            Descent(number, start, self.optimizer, Generator().manual_seed(seed))
            for number, (start, seed) in enumerate(zip(variables, seeds, strict=True))
        ]
        rungs, width, settings = self.pruning(self.restarts, iterations), 1, f"{self!r} {iterations} {seeds}"
        if (alone := self._alone(budget)) is None:
            width = self._width(observation, need)
        else:  # all are drawn, so that this one has the start and the numbers that it has beside the others
            descents, rungs, settings = [descents[alone]], ((rungs[-1][0], 1),), f"{settings} {alone}"
        return Restarts(
            descents,
            rungs,
            width,
            budget,
            _mark(settings, problem, starts),
            Reading(problem, self.keep, self.tolerance, bool(self.noise or self.langevin)),
            abreast=self.consistency is not None,
            began=began,
        )

    def _alone(self, budget: Budget) -> int | None:
        """The restart that is run alone, if one is.

        Raises:
            ConfigError: there is none of this number, or it depends on the others.
        """
        if budget.restart is None:
            return None
        if budget.restart >= self.restarts:
            raise ConfigError(f"this search has {self.restarts} restarts, from 0; there is no restart {budget.restart}")
        if self.consistency is not None:
            raise ConfigError("restarts that hold each other cannot be run alone: leave out consistency, or run all")
        return budget.restart

    def _evaluator(self, problem: Problem, run: Restarts) -> Evaluator:
        planned = planned_steps(len(run.descents), run.rungs)
        network = problem.observation.network
        suits = self.precision.suits(network.device, network.operations() * problem.observation.num_examples)
        precision = self.precision if suits else Native()
        return Evaluator(
            problem, precision, self.compilation, run.rungs[-1][0], planned, run.trusted, run.budget.seconds
        )

    def _width(self, observation: Observation, need: "_Need") -> int:
        """How many restarts advance together: few operations a step are worth sharing, and they must fit.

        A client that recomputes its early steps does so for one restart alone: together they would not save memory.
        """
        if self.restarts == 1 or self.compilation != "off" or memory.recomputes(observation):
            return 1
        width = self.width
        if width is None:
            few = observation.network.operations() * observation.num_examples < _WORTH_SHARING
            width = _SHARED if few and not isinstance(self.optimizer, LBFGS) else 1
        return 1 if width == 1 else memory.chunk(need.step, need.available, min(width, self.restarts))


@dataclass(frozen=True)
class _Course:
    """How the steps of a search are made.

    Args:
        search: its settings.
        network: whose inputs the projections bound.
        iterations: steps of a restart.
    """

    search: GradientInversion
    network: Network
    iterations: int

    @property
    def jitter(self) -> float:
        """Noise that each step adds, in step lengths."""
        return self.search.langevin

    def lr(self, iteration: int) -> float:
        """Step length at an iteration."""
        return self.search.schedule(self.search.optimizer.lr, iteration, self.iterations)

    def left(self, iteration: int) -> float:
        """The share of all iterations that is left."""
        return 1 - iteration / self.iterations

    def project(self, images: Tensor, done: int) -> Tensor:
        """All projections, in order."""
        for projection in self.search.projections:
            images = projection(images, self.network, done)
        return images

    def converged(self, history: Sequence[float]) -> bool:
        """Whether a restart is done."""
        return self.search.convergence(history)


@dataclass(frozen=True)
class _Nothing:
    """No distance at all: zero for any two updates, with a gradient of zero."""

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """Zero, which hangs on every tensor so that the search has something to derive."""
        return 0.0 * sum(part.square().sum() for part in predicted.values())  # type: ignore[return-value]


class _Need:
    """The memory that a step needs, predicted where it is asked for."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.available = memory.available_bytes(problem.observation.network.device)

    @property
    def step(self) -> int:
        """Bytes at the peak of a step of one restart; it is run once where shapes alone do not tell."""
        if self.predicted is None:
            return memory.measured_live_bytes(self._problem.loss, self._variables)
        return self.predicted

    @cached_property
    def predicted(self) -> int | None:
        """The same by shapes alone; `None` where these do not tell."""
        return memory.step_bytes(self._problem.loss, self._variables)

    @property
    def _variables(self) -> Variables:
        observation = self._problem.observation
        images = torch.zeros(self._problem.shape, dtype=observation.network.dtype)
        return self._problem.start(images, Generator(observation.network.device).manual_seed(0))

    def findings(self) -> tuple[Finding, ...]:
        """What a network that takes time needs, where shapes alone tell; a small one is not asked."""
        if self._problem.observation.network.operations() < _WORTH_SHARING or self.predicted is None:
            return ()
        needed, free = self.predicted, self.available
        level: Literal["info", "warning"] = "info" if needed < free else "warning"
        message = f"A step was predicted to take {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB were free."
        return (Finding(Code.MEMORY, level, message, {"step_bytes": needed, "available_bytes": free}),)


def _mark(settings: str, problem: Problem, starts: Tensor) -> checkpoint.Mark:
    """All that the search depends on."""
    observation = problem.observation
    network, labels = observation.network, problem.labels
    parts = [*network.params.values(), *network.module.buffers(), *observation.update.values(), starts]
    parts += (observation.buffers or {}).values()
    client = f"{observation.client!r} {observation.num_examples} {network.loss!r} {network.mask_seed}"
    return checkpoint.Mark(f"{settings} {client}", parts if labels is None else [*parts, labels])


def _unsaved(run: Restarts) -> tuple[Finding, ...]:
    return (
        () if run.unsaved is None else (Finding(Code.CHECKPOINT_FAILED, "warning", f"No checkpoint: {run.unsaved}."),)
    )


def _check_tuple(name: str, value: object) -> None:
    if not isinstance(value, tuple) or not all(map(callable, value)):
        raise ConfigError(f"{name} is a tuple of values, such as (Box(),); got {value!r}")


def _finalists(candidates: list[Candidate]) -> list[Candidate]:
    """Those that no rung dropped."""
    return [candidate for candidate in candidates if candidate.status is not Status.PRUNED] or candidates


def _overall(candidates: list[Candidate], chosen: Candidate, status: Status) -> Status:
    """A lost restart only counts if all were lost."""
    if all(candidate.status is Status.NON_FINITE for candidate in candidates):
        return Status.NON_FINITE
    return Status.CONVERGED if status is Status.FINISHED and chosen.status is Status.CONVERGED else status


def _label_findings(observation: Observation, problem: Problem) -> tuple[Finding, ...]:
    if observation.labels is not None:
        return (Finding(Code.LABELS_GIVEN, "info", "The labels were handed to the attack."),)
    how = "optimized together with the images" if problem.labels is None else "recovered first"
    return (Finding(Code.LABELS_HIDDEN, "info", f"The labels were hidden from the attack; they were {how}."),)
