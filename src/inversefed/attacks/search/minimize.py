"""The optimization loop: steps on the variables of one or several restarts, with the best of each remembered.

    loss, gradient = evaluate(variables); step; project; look

A restart on its way is a `Descent`, the only thing here that changes while an attack runs. Restarts of a group
advance together, so that one call can evaluate all of them. Between two steps a descent is complete: its state can be
written down, and a descent that takes up that state goes on to the same bits.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from inversefed.attacks.pieces.optimizers import Optimizer
from inversefed.types import Status

__all__ = ["Descent", "Evaluate", "OutOfTime", "Variables", "advance"]

Variables: TypeAlias = Mapping[str, Tensor]
"""What is optimized: `images` in network inputs, and `labels` as logits where they are open."""

Evaluate: TypeAlias = Callable[[Sequence[Variables], Sequence[Variables], int], Sequence[tuple[float, Variables]]]
"""(variables of each restart, conditions of each, iteration) -> loss and gradients of each."""


class OutOfTime(Exception):
    """The time is used up, in the middle of an iteration."""


class Descent:
    """One restart on its way.

    Args:
        restart: its number, from 0.
        start: first guess; it is not written to.
        optimizer: builds the stepping rule.
        seed: of its own random numbers, where its steps draw any.

    Attributes:
        variables: where it stands.
        best: the variables of lowest loss among those that were evaluated.
        lowest: that loss.
        history: the loss before each step.
        status: how it ended, `None` while it runs.
        held: tensors that a meeting with other restarts left it.
        cut: whether the clock ended its last step between two evaluations; it stands at the best of them then.
    """

    def __init__(self, restart: int, start: Variables, optimizer: Optimizer, seed: int = 0) -> None:
        self.restart, self.seed = restart, seed
        self.generator = torch.Generator().manual_seed(seed)
        self.variables = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
        self.best = _copy(self.variables)
        self.lowest = math.inf
        self.history: list[float] = []
        self.status: Status | None = None
        self.held: dict[str, Tensor] = {}
        self.cut = False
        self._optimizer = optimizer
        self._stepper = optimizer.build(list(self.variables.values()))

    @property
    def last(self) -> Variables:
        """The variables as they stand, or the best where a step left the numbers."""
        finite = all(bool(value.isfinite().all()) for value in self.variables.values())
        return _copy(self.variables) if finite else self.best

    def step(
        self,
        first: tuple[float, Variables],
        again: Callable[[Variables], tuple[float, Variables]],
        lr: float,
        project: Callable[[Tensor, int], Tensor],
        left: float = 1.0,
        jitter: float = 0.0,
    ) -> None:
        """Take one step, or as much of it as there is time for: L-BFGS evaluates many points in one.

        Args:
            first: loss and gradients where the variables stand.
            again: evaluates further points, for a line search; `OutOfTime` ends the step at the best so far.
            lr: step length.
            project: applied to `images` after the step; receives the number of steps done.
            left: share of the iterations that is left, for soft signs.
            jitter: standard deviation of the noise that is added to `images`, in step lengths.
        """
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
            images.copy_(project(images, len(self.history)))

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
            "held": dict(self.held),
            "stepper": _cloned(self._stepper.state_dict()),
            "generator": self.generator.get_state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take up a state."""
        self._stand_at(state["variables"])
        self.best = {name: value.to(self.variables[name]) for name, value in state["best"].items()}
        self.lowest, self.history = state["lowest"], list(state["history"])
        self.status = None if state["status"] is None else Status(state["status"])
        self.held = {name: value.to(self.variables["images"].device) for name, value in state["held"].items()}
        self._stepper.load_state_dict(_cloned(state["stepper"]))
        self.generator.set_state(state["generator"])


def advance(
    descents: Sequence[Descent],
    evaluate: Evaluate,
    lr: Callable[[int], float],
    until: int,
    *,
    conditions: Callable[[Sequence[Descent], int], Sequence[Variables]],
    project: Callable[[Tensor, int], Tensor],
    converged: Callable[[Sequence[float]], bool],
    watch: Callable[[Sequence[Descent]], bool],
    left: Callable[[int], float] = lambda _: 1.0,
    jitter: float = 0.0,
    over: Callable[[], bool] = lambda: False,
) -> bool:
    """Take the restarts of a group, all at the same iteration, together to a further one.

    Args:
        descents: the group; those that have ended are left alone.
        evaluate: loss and gradients of several points at once.
        lr: step length at an iteration, from 0.
        until: the iteration to reach.
        conditions: what else the loss of each restart depends on at an iteration, held fixed within the step.
        project: applied to `images` after each step.
        converged: from a history of losses to whether that restart is done.
        watch: shown the group after each iteration; a true answer stops.
        left: the share of all iterations that is left at one.
        jitter: noise that each step adds, in step lengths.
        over: whether the time is used up; asked within an iteration, which ends then.

    Returns:
        Whether it was stopped.
    """
    while running := [d for d in descents if d.status is None and len(d.history) < until]:
        iteration = len(running[0].history)
        given = conditions(running, iteration)
        try:
            evaluated = evaluate([descent.variables for descent in running], given, iteration)
        except OutOfTime:
            return True
        for descent, condition, first in zip(running, given, evaluated, strict=True):

            def again(point: Variables, condition: Variables = condition) -> tuple[float, Variables]:
                if over():
                    raise OutOfTime
                return evaluate([point], [condition], iteration)[0]  # noqa: B023

            descent.step(first, again, lr(iteration), project, left(iteration), jitter)
            if descent.status is None and not descent.cut and converged(descent.history):
                descent.status = Status.CONVERGED
        if watch(running):
            return True
    return False


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
