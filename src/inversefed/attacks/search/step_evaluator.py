"""Loss and gradient at one point or several at once: eager, vectorized over restarts, or compiled.

Eager PyTorch is the reference. The other ways take the step as one function, `torch.func.grad(loss)`, and are held to
the reference before they are used: where they fail or differ, the search goes on eagerly and a finding says so.
"""

import math
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch
from torch import Tensor

from inversefed.attacks.search.minimize import Conditions, Descent, Evaluated, Variables, differentiate
from inversefed.attacks.search.precision import Precision
from inversefed.attacks.search.problem import Problem
from inversefed.findings import Code
from inversefed.numerics import float32_products
from inversefed.types import Finding

__all__ = ["Compilation", "Evaluator"]

Compilation = Literal["off", "on", "auto"]

_COMPILE_SECONDS, _COMPILE_GAIN = 60.0, 0.15
"""About what compiling a step takes and gains on one core (docs/internals/speed.md); the gain is then measured."""
_PARITY = 1e-3
"""Largest relative difference of a vectorized or compiled float32 gradient from the eager one."""
_TRIALS = 5

Point = tuple[Variables, Conditions]
"""Variables, and the conditions they are evaluated under."""


class Evaluator:
    """Evaluates points of a problem: the goal of the loop.

    Args:
        problem: what is minimized.
        precision: the numbers it is computed in.
        compilation: `"off"`; `"on"`; or `"auto"`, where it pays for itself by measurement.
        iterations: steps of a restart.
        planned: evaluations that are planned in all.
        trusted: which ways were tried, and whether they are used; a search that is taken up again brings it along.
        seconds: the time budget, which `"auto"` does not spend on a compiler.

    Attributes:
        findings: what was tried and not used, and why.
    """

    def __init__(
        self,
        problem: Problem,
        precision: Precision,
        compilation: Compilation,
        iterations: int,
        planned: int,
        trusted: dict[str, bool],
        seconds: float | None = None,
    ) -> None:
        self.findings: list[Finding] = []
        self._problem, self._precision, self._iterations = problem, precision, iterations
        self._compilation, self._planned = compilation, planned
        self._compiled: Callable[[Point], Evaluated] | None = None
        self._seconds: list[float] = []
        self._trusted, self._budget = trusted, math.inf if seconds is None else seconds

    def conditions(self, running: Sequence[Descent], iteration: int) -> Sequence[Conditions]:
        """What the loss of each restart depends on at an iteration, beside its variables."""
        return self._problem.conditions(running, iteration, self._iterations)

    def __call__(
        self, points: Sequence[Variables], conditions: Sequence[Conditions], iteration: int
    ) -> Sequence[Evaluated]:
        """Loss and gradients of each point under its conditions, as the iteration (from 0) has it."""
        device = self._problem.observation.network.device
        pairs = list(zip(points, conditions, strict=True))
        with float32_products(device, self._precision.tf32), self._lowered(pairs[0], iteration):
            if len(pairs) > 1 and self._vectorizes(pairs):
                return self._vectorized(pairs)
            return [self._alone(pair, self._precision.lowered(iteration / self._iterations)) for pair in pairs]

    def _alone(self, at: Point, lowered: bool) -> Evaluated:
        """One point; only steps in the network's own format are compiled, as that is what the proof is of."""
        if not lowered and self._wants_compiler():
            self._trusted["compiled"] = self._compile(at)
            self._compilation = "off"
        if self._compiled is not None and not lowered:
            return self._compiled(at)
        began = time.perf_counter()
        result = self._eager(at)
        self._seconds.append(time.perf_counter() - began)
        return result

    # Vectorized over restarts

    def _vectorizes(self, points: Sequence[Point]) -> bool:
        """Whether several points may be evaluated in one call; tried once."""
        if "vectorized" not in self._trusted:
            reference = self._eager(points[-1])
            self._trusted["vectorized"] = self._agrees(
                "vectorized", lambda: self._vectorized(points)[-1], reference, "Restarts run one after another"
            )
        return self._trusted["vectorized"]

    def _vectorized(self, points: Sequence[Point]) -> list[Evaluated]:
        step = torch.func.grad_and_value(self._problem.functional().loss)
        variables = {name: torch.stack([at[name].detach() for at, _ in points]) for name in points[0][0]}
        conditions, batched = _together([given for _, given in points])
        step = torch.vmap(step, in_dims=(0, batched), randomness="same")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # "performance drop": that is measured, not warned of
            gradients, losses = step(variables, conditions)
        return [
            (loss, {name: gradient[number] for name, gradient in gradients.items()})
            for number, loss in enumerate(losses.tolist())
        ]

    # Compiled

    def _wants_compiler(self) -> bool:
        if self._compilation == "off":
            return False
        return self._trusted.get("compiled", self._compilation == "on" or self._pays())

    def _pays(self) -> bool:
        """Whether what is left to do, in the time there is, gains more from compilation than that takes."""
        if len(self._seconds) < _TRIALS:
            return False
        left = (self._planned - len(self._seconds)) * statistics.median(self._seconds[-_TRIALS:])
        return min(left, self._budget) * _COMPILE_GAIN > _COMPILE_SECONDS

    def _compile(self, point: Point) -> bool:
        """Compile the step, and say whether it is used."""
        step = torch.compile(torch.func.grad_and_value(self._problem.functional().loss), fullgraph=True, dynamic=False)

        def compiled(at: Point) -> Evaluated:
            gradients, loss = step({name: value.detach() for name, value in at[0].items()}, at[1])
            return loss.item(), {name: gradient.clone() for name, gradient in gradients.items()}

        began = time.perf_counter()
        if not self._agrees(
            "compiled", lambda: compiled(point), self._eager(point), "The search goes on without compilation"
        ):
            return False
        spent = time.perf_counter() - began
        eager, fast = self._timed(self._eager, point), self._timed(compiled, point)
        evidence = {"compile_seconds": spent, "step_over_eager": fast / eager}
        used = fast < eager or self._compilation == "on" or "compiled" in self._trusted
        if used:
            self._compiled = compiled
            message = f"The step was compiled in {spent:.0f} s and takes {fast / eager:.2f} of the eager step."
        else:
            message = "The compiled step is no faster than the eager one; the search goes on without compilation."
        self.findings.append(Finding(Code.COMPILED, "info", message, evidence))
        return used

    def _eager(self, at: Point) -> Evaluated:
        return differentiate(lambda variables: self._problem.loss(variables, at[1]), at[0])

    def _timed(self, step: Callable[[Point], Evaluated], point: Point) -> float:
        def once() -> float:
            began = time.perf_counter()
            step(point)
            return time.perf_counter() - began

        return statistics.median(once() for _ in range(_TRIALS))

    # Lower precision

    def _lowered(self, point: Point, iteration: int) -> AbstractContextManager[object]:
        if not self._precision.lowered(iteration / self._iterations):
            return nullcontext()
        lowered = torch.autocast(self._problem.observation.network.device.type, dtype=torch.bfloat16)
        if "bfloat16" not in self._trusted:
            reference = self._eager(point)

            def once() -> Evaluated:
                with lowered:
                    return self._eager(point)

            self._trusted["bfloat16"] = self._agrees(
                "bfloat16", once, reference, "The search keeps the network's own format", self._precision.tolerance
            )
        return lowered if self._trusted["bfloat16"] else nullcontext()

    # Parity

    def _agrees(
        self, way: str, once: Callable[[], Evaluated], reference: Evaluated, instead: str, tolerance: float = _PARITY
    ) -> bool:
        """Try a way once and compare; where it is not to be used, say why. Random layers draw from a copy."""
        device = self._problem.observation.network.device
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                difference = _difference(once()[1], reference[1])
        except Exception as error:  # compilers and transforms fail in their own ways: all mean the same
            why = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            self.findings.append(Finding(Code(f"{way}-fallback"), "info", f"{instead}: the {way} step failed ({why})."))
            return False
        if not difference <= tolerance:
            message = (
                f"{instead}: the {way} gradient differs from the eager one by {difference:.2g}, more than allowed."
            )
            evidence = {"relative_difference": difference, "tolerance": tolerance}
            self.findings.append(Finding(Code(f"{way}-fallback"), "info", message, evidence))
            return False
        return True


def _difference(gradients: Variables, reference: Variables) -> float:
    """Relative difference of all gradients together."""

    def flat(parts: Variables) -> Tensor:
        return torch.cat([parts[name].detach().double().flatten() for name in reference])

    expected = flat(reference)
    return float((flat(gradients) - expected).norm() / expected.norm().clamp(min=torch.finfo(torch.double).tiny))


def _together(conditions: Sequence[Conditions]) -> tuple[Conditions, tuple[int | None, ...]]:
    """The conditions of several points as one, and the dimension of each that counts the points."""
    kinds = [[part for part in each if part is not None] for each in zip(*conditions, strict=True)]
    stacked = tuple(torch.stack(each) if each else None for each in kinds)
    return stacked, tuple(None if each is None else 0 for each in stacked)
