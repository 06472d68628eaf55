"""The one loop: take steps on the variables of one restart and remember the best.

    loss = objective(variables); step; project; look

Every way to end early leaves a valid result: the time budget, a callback, Ctrl-C, a loss that is no
longer finite.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import torch
from torch import Tensor

from inversefed.attacks.optimizers import Optimizer
from inversefed.types import Scalar, Status

__all__ = ["Minimum", "minimize"]

Variables: TypeAlias = Mapping[str, Tensor]
"""What is optimized: `images` in network inputs, and `labels` as logits where they are open."""


@dataclass(frozen=True, eq=False)
class Minimum:
    """Where a restart ended.

    Args:
        best: the variables of lowest loss among those that were evaluated.
        last: the variables after the last step.
        status: how it ended.
        history: the loss before each step.
    """

    best: Variables = field(repr=False)
    last: Variables = field(repr=False)
    status: Status
    history: tuple[float, ...] = field(repr=False)


def minimize(
    objective: Callable[[Variables], Scalar],
    start: Variables,
    optimizer: Optimizer,
    schedule: Callable[[float, int, int], float],
    iterations: int,
    *,
    project: Callable[[Tensor, int], Tensor],
    deadline: float = math.inf,
    watch: Callable[[int, float, Variables], object] = lambda *_: None,
) -> Minimum:
    """Minimize an objective from a start.

    Args:
        objective: scalar loss of the variables.
        start: first guess; it is not written to.
        optimizer: builds the stepping rule.
        schedule: (lr, iteration, iterations) -> lr.
        iterations: number of steps.
        project: applied to `images` after each step; receives the number of steps done.
        deadline: `time.monotonic()` value after which no further step is taken.
        watch: called after each step with its number from 1, the loss before it and the best variables so
            far; a true answer stops.
    """
    variables = {name: value.detach().clone().requires_grad_() for name, value in start.items()}
    stepper = optimizer.build(list(variables.values()))
    history: list[float] = []
    best, lowest, status = _copy(variables), math.inf, Status.FINISHED

    try:
        for iteration in range(iterations):
            for group in stepper.param_groups:
                group["lr"] = schedule(optimizer.lr, iteration, iterations)
            before = _copy(variables)
            loss = float(stepper.step(lambda: _differentiate(objective, variables, optimizer.signed)))
            if not math.isfinite(loss):
                status = Status.NON_FINITE
                break
            history.append(loss)
            if loss < lowest:
                best, lowest = before, loss
            with torch.no_grad():
                variables["images"].copy_(project(variables["images"], iteration + 1))
            if watch(iteration + 1, loss, best) or time.monotonic() > deadline:
                status = Status.FINISHED if iteration + 1 == iterations else Status.STOPPED
                break
    except KeyboardInterrupt:
        status = Status.INTERRUPTED
    return Minimum(best, _last(variables, best), status, tuple(history))


def _differentiate(objective: Callable[[Variables], Scalar], variables: Variables, signed: bool) -> float:
    """Leave the gradient in `.grad`, as `torch.optim` wants it, and return the loss."""
    loss = objective(variables)
    gradients = torch.autograd.grad(loss, list(variables.values()), materialize_grads=True)
    for (name, value), gradient in zip(variables.items(), gradients, strict=True):
        value.grad = gradient.sign() if signed and name == "images" else gradient
    return loss.item()


def _copy(variables: Variables) -> Variables:
    return {name: value.detach().clone() for name, value in variables.items()}


def _last(variables: Variables, best: Variables) -> Variables:
    """The variables as they stand, or the best where a step left the numbers."""
    finite = all(bool(value.isfinite().all()) for value in variables.values())
    return _copy(variables) if finite else best
