"""What several starts cost and bring: an attack with R of them, the weak ones given up on the way, beside one alone.

    cost = seconds(R starts, pruned) / seconds(one start)

and beside both, R starts that all run to the end. Exact methods are off, and the winner is chosen by matching cost.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from statistics import fmean
from typing import Any

from torch import Generator

from benchmarks.measure import World, observation_of
from benchmarks.stopwatch import decibels
from inversefed.attacks import recipes
from inversefed.attacks.search.inversion import GradientInversion
from inversefed.attacks.search.restart_pruning import KeepAll, SuccessiveHalving
from inversefed.fl.threat import Observation
from inversefed.types import Status

__all__ = ["ITERATIONS", "measure_restarts", "optimization_attack"]

ITERATIONS = 600


def optimization_attack(observation: Observation) -> GradientInversion:
    """The search that `best()` runs on this network where nothing exact applies."""
    return recipes.best().search(observation)


def measure_restarts(
    world: World,
    width: int,
    iterations: int = ITERATIONS,
    attack_on: Callable[[Observation], GradientInversion] = optimization_attack,
    tell: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Measure one case's restarts.

    Args:
        world: network and pictures.
        width: number of starts.
        iterations: of each start that is not given up.
        attack_on: the attack, by observation.
        tell: receives a line after each picture.

    Returns:
        `width`, `cost_over_one` (in time), `psnr` and `psnr_all_to_the_end` in dB, and what they are made from.
    """
    rows = []
    for index, example in enumerate(world.examples):
        observation = observation_of(world, index)
        attack = replace(
            attack_on(observation), max_iterations=iterations, restarts=width, pruning=KeepAll(), width=None
        )
        variants = {
            "one": replace(attack, restarts=1),
            "pruned": replace(attack, pruning=SuccessiveHalving()),
            "all_to_the_end": attack,
        }
        rows.append({name: _timed(each, observation, world, index) for name, each in variants.items()})
        figures = ", ".join(f"{name} {psnr:.2f} dB in {spent:.2f} s" for name, (psnr, spent) in rows[-1].items())
        tell(f"  {width} starts: {index + 1}/{len(world.examples)} {example.name}: {figures}")
    psnr, seconds = ({name: fmean(row[name][part] for row in rows) for name in rows[0]} for part in (0, 1))
    return {
        "width": width,
        "cost_over_one": seconds["pruned"] / seconds["one"],
        "psnr": psnr["pruned"],
        "psnr_all_to_the_end": psnr["all_to_the_end"],
        "psnr_one": psnr["one"],
        "seconds": seconds,
        "iterations": iterations,
    }


def _timed(attack: GradientInversion, observation: Observation, world: World, index: int) -> tuple[float, float]:
    generator, began = Generator().manual_seed(index), time.perf_counter()
    found = attack(observation, generator)
    seconds = time.perf_counter() - began
    if found.status is Status.INTERRUPTED:
        raise KeyboardInterrupt
    return decibels(found.images, world.examples[index].batch.images), seconds
