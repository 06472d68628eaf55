"""The optimization loop: steps on the variables of one or several restarts, with the best of each remembered.

    loss, gradient = goal(variables); step; project; look

What is minimized is a `Goal`, how each step is made a `Course`, and who looks on a `Watcher`; all three are handed down
and nothing here is asked of whoever calls. A restart on its way is a `Descent`, the only thing here that changes while
an attack runs. Restarts of a group advance together, so that one call can evaluate all of them. Between two steps a
descent is complete: its state can be written down, and a descent that takes up that state goes on to the same bits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from inversefed.attacks.pieces.optimizers import Optimizer
from inversefed.fl.foreign import foreign_code
from inversefed.types import Scalar, Status

__all__ = ["Conditions", "Course", "Descent", "Evaluated", "Goal", "Variables", "Watcher", "advance", "differentiate"]

Variables: TypeAlias = Mapping[str, Tensor]
"""What is optimized: `images` in network inputs, and `labels` as logits where they are open."""

Conditions: TypeAlias = tuple[Tensor | None, ...]
"""What the loss of one restart depends on beside its variables, fixed within a step; `None` for what is not yet."""

Evaluated: TypeAlias = tuple[float, Variables]
"""Loss and gradients at a point."""


@runtime_checkable
class Goal(Protocol):
    """What is minimized."""

    def conditions(self, running: Sequence["Descent"], iteration: int) -> Sequence[Conditions]:
        """Those of each restart at an iteration, from 0; asked once for each step."""
        ...

    def __call__(
        self, points: Sequence[Variables], conditions: Sequence[Conditions], iteration: int
    ) -> Sequence[Evaluated]:
        """Loss and gradients of several points, each under its conditions."""
        ...


@runtime_checkable
class Course(Protocol):
    """How the steps of a restart are made, from its first iteration to its last."""

    @property
    def jitter(self) -> float:
        """Standard deviation of the noise that each step adds to `images`, in step lengths."""
        ...

    def lr(self, iteration: int) -> float:
        """Step length at an iteration, from 0."""
        ...

    def left(self, iteration: int) -> float:
        """The share of all iterations that is left at one, for soft signs."""
        ...

    def project(self, images: Tensor, done: int) -> Tensor:
        """What becomes of `images` after so many steps."""
        ...

    def converged(self, history: Sequence[float]) -> bool:
        """From a history of losses to whether that restart is done."""
        ...


@runtime_checkable
class Watcher(Protocol):
    """Who looks on, with a clock."""

    def over(self) -> bool:
        """Whether the time is used up; asked within an iteration, which ends then."""
        ...

    def seen(self, group: Sequence["Descent"]) -> bool:
        """Look at the restarts that took a step; whether to stop."""
        ...


class OutOfTime(Exception):
    """The time is used up, in the middle of an iteration."""


class Descent:
    """One restart on its way.

    Args:
        restart: its number, from 0.
        start: first guess; it is not written to.
        optimizer: builds the stepping rule.
        generator: of its own random numbers, where its steps draw any; `None` for one with seed 0.

    Attributes:
        variables: where it stands.
        best: the variables of lowest loss among those that were evaluated.
        lowest: that loss.
        history: the loss before each step.
        status: how it ended, `None` while it runs.
        held: what a meeting with other restarts left it, in network inputs.
        cut: whether the clock ended its last step between two evaluations; it stands at the best of them then.
    """

    def __init__(
        self, restart: int, start: Variables, optimizer: Optimizer, generator: torch.Generator | None = None
    ) -> None:
        self.restart = restart
        self.generator = torch.Generator().manual_seed(0) if generator is None else generator
        self.seed = self.generator.initial_seed()
        self.variables = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
        self.best = _copy(self.variables)
        self.lowest = math.inf
        self.history: list[float] = []
        self.status: Status | None = None
        self.held: Tensor | None = None
        self.cut = False
        self._optimizer = optimizer
        self._stepper = optimizer.build(list(self.variables.values()))

    @property
    def last(self) -> Variables:
        """The variables as they stand, or the best where a step left the numbers."""
        finite = all(bool(value.isfinite().all()) for value in self.variables.values())
        return _copy(self.variables) if finite else self.best

    def step(self, first: Evaluated, again: Callable[[Variables], Evaluated], course: Course) -> None:
        """Take one step, or as much of it as there is time for: L-BFGS evaluates many points in one.

        Args:
            first: loss and gradients where the variables stand.
            again: evaluates further points, for a line search; `OutOfTime` ends the step at the best so far.
            course: how it is made.
        """
        iteration, jitter = len(self.history), course.jitter
        lr, left = course.lr(iteration), course.left(iteration)
        for group in self._stepper.param_groups:
            group["lr"] = lr
        before = _copy(self.variables)
        waiting, least, nearest = [first], first[0], before

        def closure() -> float:
            nonlocal least, nearest
            loss, gradients = waiting.pop() if waiting else again(self.variables)
            if loss < least:
                least, nearest = loss, _copy(self.variables)
            for name, value in self.variables.items():
                signed = self._optimizer.signed if name == "images" else False
                value.grad = _signed(gradients[name], signed, left).contiguous()  # L-BFGS wants it flat
            return loss

        try:
            loss = float(self._stepper.step(closure))
        except OutOfTime:
            loss, jitter, self.cut = first[0], 0.0, True
            self._stand_at(nearest)
        if not math.isfinite(loss):
            self.status = Status.NON_FINITE
            return
        self.history.append(loss)
        if loss < self.lowest:
            self.best, self.lowest = before, loss
        self._disturb(jitter * lr)
        with torch.no_grad():
            images = self.variables["images"]
            images.copy_(course.project(images, len(self.history)))

    def _disturb(self, std: float) -> None:
        """Add normal noise to the images; nothing is drawn where there is none."""
        if std:
            images = self.variables["images"].detach()
            noise = torch.randn(images.shape, generator=self.generator, dtype=images.dtype)
            images.add_(noise.to(images.device), alpha=std)

    def _stand_at(self, point: Variables) -> None:
        with torch.no_grad():
            for name, value in self.variables.items():
                value.copy_(point[name])

    def state(self) -> dict[str, Any]:
        """All that the next step depends on, as plain values and tensors."""
        return {
            "variables": _copy(self.variables),
            "best": dict(self.best),
            "lowest": self.lowest,
            "history": list(self.history),
            "status": None if self.status is None else str(self.status),
            "held": self.held,
            "stepper": _cloned(self._stepper.state_dict()),
            "generator": self.generator.get_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self._stand_at(state["variables"])
        self.best = {name: value.to(self.variables[name]) for name, value in state["best"].items()}
        self.lowest, self.history = state["lowest"], list(state["history"])
        self.status = None if state["status"] is None else Status(state["status"])
        held = state["held"]
        self.held = None if held is None else held.to(self.variables["images"].device)
        self._stepper.load_state_dict(_cloned(state["stepper"]))
        self.generator.set_state(state["generator"])


def advance(
    descents: Sequence[Descent], goal: Goal, course: Course, until: int, watcher: Watcher, width: int = 1
) -> bool:
    """Take the restarts of a group, all at the same iteration, together to a further one.

    Args:
        descents: the group; those that have ended are left alone.
        goal: what is minimized.
        course: how steps are made.
        until: the iteration to reach.
        watcher: shown the group after each iteration; a true answer stops.
        width: how many points are evaluated in one call.

    Returns:
        Whether it was stopped.
    """
    while running := [d for d in descents if d.status is None and len(d.history) < until]:
        iteration = len(running[0].history)
        given = goal.conditions(running, iteration)
        try:
            evaluated = _evaluated(running, goal, given, iteration, watcher, width)
        except OutOfTime:
            return True
        for descent, condition, first in zip(running, given, evaluated, strict=True):
            descent.step(first, _Again(goal, condition, iteration, watcher), course)
            if descent.status is None and not descent.cut and course.converged(descent.history):
                descent.status = Status.CONVERGED
        if watcher.seen(running):
            return True
    return False


def _evaluated(
    running: Sequence[Descent], goal: Goal, given: Sequence[Conditions], iteration: int, watcher: Watcher, width: int
) -> list[Evaluated]:
    """Loss and gradients where all of them stand.

    Raises:
        OutOfTime: between two calls.
    """
    found = list[Evaluated]()
    for first in range(0, len(running), width):
        if found and iteration and watcher.over():  # of the first, restarts that never began tell nothing
            raise OutOfTime
        part = slice(first, first + width)
        found += goal([descent.variables for descent in running[part]], given[part], iteration)
    return found


@dataclass(frozen=True, eq=False)
class _Again:
    """Further points within a step, which it sees under the same conditions."""

    goal: Goal
    condition: Conditions
    iteration: int
    watcher: Watcher

    def __call__(self, point: Variables) -> Evaluated:
        if self.watcher.over():
            raise OutOfTime
        return self.goal([point], [self.condition], self.iteration)[0]


def differentiate(loss: Callable[[Variables], Scalar], variables: Variables) -> Evaluated:
    """Loss and gradients by eager autograd; no gradient of a weight is computed in the second backward pass."""
    leaves = {name: value.detach().requires_grad_() for name, value in variables.items()}
    with torch.enable_grad():
        value = loss(leaves)
        with foreign_code("the second derivative of the loss, which a search needs,"):
            gradients = torch.autograd.grad(value, list(leaves.values()), materialize_grads=True)
    return value.item(), dict(zip(leaves, gradients, strict=True))


def _signed(gradient: Tensor, signed: bool | Literal["soft"], left: float) -> Tensor:
    """The gradient, its signs, or signs that are softest at the start: `tanh(s g) / s`, `s` the share that is left."""
    if signed == "soft":
        return (gradient * left).tanh() / left
    return gradient.sign() if signed else gradient


def _copy(variables: Variables) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in variables.items()}


def _cloned(state: Any) -> Any:
    """A copy of nested containers of tensors that shares no memory with them."""
    if isinstance(state, Tensor):
        return state.detach().clone()
    if isinstance(state, Mapping):
        return {key: _cloned(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_cloned(value) for value in state)
    return state
