"""One case: the reference on every picture, then `best()` on every picture, in one process.

The attack is given an `Observation` (the gradient, the network, the label) and five times the reference's mean time; it
may end earlier. Its current output is the one that it would return, chosen by matching cost, never by truth.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from torch import Generator, Tensor, nn

from benchmarks import reference
from benchmarks.cases import Case
from benchmarks.curves import Curve, mean_at, mean_curve, seconds_to_stay, speedup, target, thinned
from benchmarks.pictures import CLASSES, SIDE, Example
from benchmarks.stopwatch import Stopwatch, decibels
from inversefed.attacks import Attack, recipes
from inversefed.errors import InversefedError
from inversefed.evaluation import controls
from inversefed.fl.clients import FedSGD
from inversefed.fl.network import Network, freeze
from inversefed.fl.threat import Observation, ThreatModel, observe
from inversefed.types import Batch, Budget, Reconstruction, Status
from inversefed.zoo import constants, networks

__all__ = ["PATIENCE", "World", "measure", "observation_of"]

PATIENCE = 5.0
"""`best()` may run for this many times the reference's seconds."""

Tell = Callable[[str], object]


@dataclass(frozen=True, eq=False)
class World:
    """A network and the pictures that went through it.

    Args:
        module: the untrained network, in eval mode.
        network: the same, as the server knows it.
        examples: the private pictures.
    """

    module: nn.Module = field(repr=False)
    network: Network = field(repr=False)
    examples: Sequence[Example] = field(repr=False)

    @classmethod
    def of(cls, name: str, seed: int, examples: Sequence[Example]) -> "World":
        """Draw the weights."""
        module = networks.build(name, num_classes=CLASSES, seed=seed).eval()
        mean, std = constants.cifar10_mean, constants.cifar10_std
        return cls(module, freeze(module, (3, SIDE, SIDE), mean=mean, std=std), examples)


@dataclass(frozen=True, eq=False)
class Run:
    """One attack on one picture.

    Args:
        curve: the PSNR of its output over time.
        seconds: until its end, the watching left out.
        cpu_seconds: of the processor in that time; more than `seconds` means more than one thread.
        notes: what else is worth keeping.
    """

    curve: Curve = field(repr=False)
    seconds: float
    cpu_seconds: float
    notes: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """For the file."""
        figures = {"psnr": self.curve.final, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        return {**figures, **self.notes, "curve": thinned(self.curve)}


def measure(
    case: Case, examples: Sequence[Example], network_seed: int = 0, attack: Attack | None = None, tell: Tell = print
) -> dict[str, Any]:
    """Run one case.

    Args:
        case: what to run.
        examples: the private pictures, at least one.
        network_seed: draws the network's weights.
        attack: what is measured; `None` for `recipes.best()`.
        tell: receives a line after each attack on a picture.

    Returns:
        The figures, means over the pictures, and every picture's own; finite numbers and text only.
    """
    attack = recipes.best() if attack is None else attack
    world = World.of(case.network, network_seed, examples)
    tried = {weight: _references(world, case, weight, tell) for weight in case.total_variations}
    weight = max(tried, key=lambda each: fmean(run.curve.final for run in tried[each]))
    seconds = fmean(run.seconds for run in tried[weight])
    budget = PATIENCE * seconds
    runs = [_attacked(world, attack, index, budget, tell) for index in range(len(examples))]
    return {
        **_summary(world, tried[weight], runs),
        "network": case.network,
        "attack": repr(attack),
        "reference": {
            "iterations": case.iterations,
            "total_variation": weight,
            "tried": [_tried(each, tried[each]) for each in tried],
        },
        "curves": {
            name: thinned(mean_curve([run.curve for run in each]))
            for name, each in (("reference", tried[weight]), ("best", runs))
        },
        "per_image": [_image(*each) for each in zip(examples, tried[weight], runs, strict=True)],
    }


def _summary(world: World, references: Sequence[Run], runs: Sequence[Run]) -> dict[str, Any]:
    """The figures that the benchmark is about."""
    seconds, reference_psnr = fmean(run.seconds for run in references), fmean(run.curve.final for run in references)
    curves, control = [run.curve for run in runs], [_controls(example.batch) for example in world.examples]
    constant = fmean(each["constant"] for each in control)
    reached = seconds_to_stay(curves, target(reference_psnr, constant))
    return {
        "reference_psnr": reference_psnr,
        "reference_seconds": seconds,
        "best_psnr_at_reference_seconds": mean_at(curves, seconds),
        "best_seconds_to_reference_psnr": reached,
        "speedup": speedup(seconds, reached),
        "gray_psnr": fmean(each["gray"] for each in control),
        "constant_psnr": constant,
        "images": len(runs),
        "best_final_psnr": fmean(curve.final for curve in curves),
        "best_final_seconds": fmean(run.seconds for run in runs),
    }


def _tried(weight: float, runs: Sequence[Run]) -> dict[str, float]:
    psnr, seconds = fmean(run.curve.final for run in runs), fmean(run.seconds for run in runs)
    return {"total_variation": weight, "psnr": psnr, "seconds": seconds}


def _image(example: Example, reference_run: Run, run: Run) -> dict[str, Any]:
    control = {f"{name}_psnr": value for name, value in _controls(example.batch).items()}
    both = {"reference": reference_run.to_json(), "best": run.to_json()}
    return {"name": example.name, "label": example.label, **control, **both}


def _controls(truth: Batch) -> dict[str, float]:
    return {name: decibels(guess, truth.images) for name, guess in controls.guesses(truth).items()}


def _references(world: World, case: Case, weight: float, tell: Tell) -> list[Run]:
    """The reference on every picture; two steps that nobody counts come first, so that it starts warm."""
    _reference(world, 0, 2, weight)
    runs = []
    for index, example in enumerate(world.examples):
        runs.append(_reference(world, index, case.iterations, weight))
        tell(_line(f"reference, TV {weight:g}", index, len(world.examples), example, runs[-1]))
    return runs


def _reference(world: World, index: int, iterations: int, weight: float) -> Run:
    truth, network = world.examples[index].batch, world.network
    gradient = reference.gradient_of(world.module, (truth.images - network.mean) / network.std, truth.labels)
    generator, watch = Generator().manual_seed(index), Stopwatch()
    found = reference.invert(
        world.module, gradient, truth.labels, truth.images.shape, (network.mean, network.std), generator,
        iterations=iterations, total_variation=weight, look=watch.look,
    )  # fmt: skip
    return Run(*_judged(watch, found, truth))


def _attacked(world: World, attack: Attack, index: int, seconds: float, tell: Tell) -> Run:
    """The attack on one picture. One that gives up has no output; Ctrl-C ends the benchmark, not this picture."""
    example = world.examples[index]
    observation, generator, watch = observation_of(world, index), Generator().manual_seed(index), Stopwatch()
    found, notes = None, {}
    try:
        found = attack(observation, generator, Budget(seconds, on_step=lambda step: watch.look(step.best)))
    except InversefedError as error:
        notes = {"error": f"{type(error).__name__}: {error}"}
    run = Run(*_judged(watch, None if found is None else found.images, example.batch), notes)
    if found is not None:
        run.notes.update(_notes(found))
        if found.status is Status.INTERRUPTED:
            raise KeyboardInterrupt
    tell(_line("best", index, len(world.examples), example, run))
    return run


def observation_of(world: World, index: int) -> Observation:
    """What the server sees of one picture: the gradient and the label."""
    truth, client = world.examples[index].batch, FedSGD()
    update = client(world.network, truth.images, truth.labels)
    return observe(world.network, client, update, truth, ThreatModel(labels="known"))


def _judged(watch: Stopwatch, images: Tensor | None, truth: Batch) -> tuple[Curve, float, float]:
    seconds, cpu_seconds = watch.stop(images)
    return watch.curve(truth.images, _controls(truth)["gray"]), seconds, cpu_seconds


def _notes(found: Reconstruction) -> dict[str, Any]:
    """How the attack ended and what it says of itself."""
    return {
        "status": str(found.status),
        "matching_cost": found.loss if math.isfinite(found.loss) else None,
        "findings": [{"code": each.code, "level": each.level, "message": each.message} for each in found.findings],
    }


def _line(what: str, index: int, count: int, example: Example, run: Run) -> str:
    return f"  {what}: {index + 1}/{count} {example.name}: {run.curve.final:.2f} dB after {run.seconds:.2f} s"
