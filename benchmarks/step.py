"""What one step costs in each way of computing it, beside the eager one: the figures of docs/internals/speed.md.

python -m benchmarks.step --networks LeNetZhu,ConvNet16
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator

from benchmarks import record
from benchmarks.measure import World, observation_of
from benchmarks.pictures import bundled
from inversefed.attacks import recipes
from inversefed.attacks.search import memory
from inversefed.attacks.search.inversion import GradientInversion
from inversefed.attacks.search.precision import EarlyBFloat16, Native
from inversefed.attacks.search.problem import Problem
from inversefed.attacks.search.step_evaluator import Evaluator
from inversefed.types import Finding

__all__ = ["Options", "main"]

WIDTH = 8
REPEATS = 15


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure what one step costs in each way of computing it."""

    networks: str = "LeNetZhu,ConvNet16,ResNet20"
    """Names of the zoo, with commas."""
    threads: int = 1
    """Threads of PyTorch."""
    compile: bool = True
    """Whether to compile steps too, a minute each."""


def run(options: Options, _command: str = "") -> int:
    """Measure and print, one network a row; 0 if all was measured.

    Raises:
        InversefedError: an unknown network.
    """
    torch.set_num_threads(options.threads)
    print("network | eager ms | together / eager | bfloat16 / eager | compiled / eager | compile s | step MB")
    for name in options.networks.split(","):
        print(" | ".join([name, *_row(World.of(name, 0, bundled()[:1]), options.compile)]), flush=True)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all was measured, 2 for wrong usage or input, 130 if interrupted."""
    return record.command("step", Options, run, arguments)


def _row(world: World, compiles: bool) -> list[str]:
    attack = recipes.geiping()
    parts = attack.objective, attack.priors, attack.parametrization, attack.labels
    problem = Problem.of(observation_of(world, 0), *parts)
    point = problem.start(torch.randn(1, *world.network.image_shape, generator=Generator().manual_seed(0)), Generator())
    eager = _seconds(lambda: Evaluator(problem, Native(), "off", 1, 1, {})([point], [()], 0))
    trusted = {"vectorized": True, "bfloat16": True}
    together = Evaluator(problem, Native(), "off", 1, 1, trusted)
    lowered = Evaluator(problem, EarlyBFloat16(), "off", 1, 1, trusted)
    ratios = [
        _seconds(lambda: together([point] * WIDTH, [()] * WIDTH, 0)) / WIDTH / eager,
        _seconds(lambda: lowered([point], [()], 0)) / eager,
    ]
    step = memory.step_bytes(problem.loss, point)
    return [
        f"{1e3 * eager:.1f}",
        *(f"{ratio:.2f}" for ratio in ratios),
        *(_compiled(attack, world) if compiles else ("", "")),
        "" if step is None else f"{step / 1e6:.0f}",
    ]


def _compiled(attack: GradientInversion, world: World) -> tuple[str, str]:
    compiled = replace(attack, compilation="on", max_iterations=2)
    found: Finding
    for found in compiled(observation_of(world, 0), Generator().manual_seed(0)).findings:
        if found.code == "compiled":
            return f"{found.evidence['step_over_eager']:.2f}", f"{found.evidence['compile_seconds']:.0f}"
    return "failed", ""


def _seconds(step: Callable[[], object]) -> float:
    def once() -> float:
        began = time.perf_counter()
        step()
        return time.perf_counter() - began

    once()
    return statistics.median(once() for _ in range(REPEATS))


if __name__ == "__main__":
    sys.exit(main())
