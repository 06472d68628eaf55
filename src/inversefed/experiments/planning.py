"""From a plan to jobs in a ledger: train what has to be trained, load, hash, predict memory, write.

Nothing here is lost when it is cut short: weights are kept by what they were made of, and jobs by their hash.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Generator

from inversefed.attacks import SearchAttack
from inversefed.attacks.search.inversion import GradientInversion
from inversefed.attacks.shown import shown as shown_attack
from inversefed.errors import InversefedError
from inversefed.experiments.frontier_jobs import PointSpec
from inversefed.experiments.ledger import Ledger, NewJob, Run
from inversefed.experiments.places import Places
from inversefed.experiments.plan import Cell, ModelSpec, Plan, Training, shown
from inversefed.experiments.plan_file import parse_plan
from inversefed.scenario import Scenario
from inversefed.specs.short import short
from inversefed.zoo import datasets, networks, recipe, training
from inversefed.zoo.checkpoints import save_checkpoint

__all__ = ["add_run", "job_of", "jobs_of", "predicted_bytes", "write_jobs"]

Tell = Callable[[int, int, str], None]
"""(done, of how many, what to say)."""


def add_run(ledger: Ledger, plan: Plan, name: str | None = None) -> Run:
    """Write a plan into a ledger, as a run without jobs.

    Args:
        ledger: where.
        plan: what.
        name: of the run; by default the plan's.

    Raises:
        InputError: there is a run of this name.
        ConfigError: a piece of the plan that no text builds again.
    """
    return ledger.add_run(name or plan.name, json.dumps(plan.to_dict()))


def write_jobs(ledger: Ledger, run: Run, tell: Tell = lambda *_: None) -> None:
    """Write all jobs of a run that are not there yet; a run whose writing was cut short is taken up."""
    plan = parse_plan(run.plan, f"the plan of the run {run.name!r}")
    folder = Places(ledger.folder).weights()
    ready = plan.trained(lambda model: _weights(model, folder, tell))
    ledger.plan_jobs(run, jobs_of(ready, tell))


def jobs_of(plan: Plan, tell: Tell = lambda *_: None) -> Iterator[NewJob]:
    """The jobs of a plan whose networks are trained, one an audit or a point."""
    memory: dict[Any, int] = {}
    for number, (spec, model) in enumerate(plan.specs()):
        yield spec.job(model, _bytes_of_point(spec, model, memory))
        tell(number + 1, len(plan), "points planned")
    if plan.points:
        return
    for cell in plan.loaded(lambda done, total: tell(done, total, "audits planned")):
        yield job_of(cell, memory)


def job_of(cell: Cell, memory: dict[Any, int]) -> NewJob:
    """A cell whose tensors are at hand, as the ledger writes it."""
    scenario = cell.scenario
    held, sources = scenario.held, scenario.sources
    assert held is not None and held.truth is not None and sources is not None
    count = len(held.truth.images)
    key = (cell.model, count, repr(scenario.client), tuple(held.truth.images.shape))
    if key not in memory:
        memory[key] = predicted_bytes(scenario)
    origin = sources.dataset if sources.table is None else held.name
    pictures = sources.images[0].name if sources.images else f"{origin} {sources.index}"
    return NewJob(
        hash=scenario.hash(),
        scenario=json.dumps(scenario.to_dict()),
        network=cell.model,
        client=short(scenario.client),
        defenses=" + ".join(map(short, scenario.defenses)) or "none",
        attack=shown_attack(scenario.attack),
        images=pictures,
        num_images=count,
        seed=scenario.seed,
        bytes=memory[key],
    )


def _bytes_of_point(spec: PointSpec, model: str, memory: dict[Any, int]) -> int:
    key = (model, repr(spec.point.client), spec.point.num_images)
    if key not in memory:
        try:
            memory[key] = predicted_bytes(spec.scenario().loaded())
        except InversefedError:  # the job itself will say what is wrong with it
            memory[key] = 0
    return memory[key]


def predicted_bytes(scenario: Scenario) -> int:
    """Memory that a step of a search takes in this setting, in bytes; 0 where shapes alone do not tell."""
    if not isinstance(scenario.attack, SearchAttack):
        return 0
    try:
        observation = scenario.observe()
        return GradientInversion().predicted_bytes(observation) or 0
    except InversefedError:  # the job itself will say what is wrong with it
        return 0


def _weights(model: ModelSpec, folder: Path, tell: Tell) -> Path:
    """The file of a trained network, trained now or before."""
    wanted = model.train
    assert wanted is not None
    made_of = {"network": model.network, "num_classes": model.num_classes, **asdict(wanted)}
    made_of = {key: str(value) if isinstance(value, Path) else value for key, value in made_of.items()}
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()[:16]
    file = folder / f"{model.network}_{wanted.dataset}_{wanted.epochs}_{digest}.safetensors"
    if not file.exists():
        _train(model, wanted, file, made_of, tell)
    return file


def _train(model: ModelSpec, wanted: Training, file: Path, made_of: dict[str, Any], tell: Tell) -> None:
    shape = model.image_shape or networks.input_shape(model.network)
    sets = [datasets.load(wanted.dataset, wanted.data_path, split) for split in ("train", "test")]
    train_set, test_set = (each.fitted((len(each.mean), *shape[1:])) for each in sets)
    classes = model.num_classes or train_set.num_classes
    module = networks.build(model.network, classes, len(train_set.mean), wanted.seed)
    settings: dict[str, Any] = {**made_of}
    if wanted.epochs:
        trained = training.train(
            module,
            train_set,
            test_set,
            recipe.named(wanted.recipe, wanted.epochs, wanted.batch_size, wanted.lr),
            generator=Generator().manual_seed(wanted.seed),
            on_epoch=lambda now: tell(
                now.epoch, now.epochs, f"epochs of {shown(model)}; test accuracy {now.test_accuracy:.1%}"
            ),
        )
        module, settings["accuracy"] = trained.module, trained.accuracy
    save_checkpoint(file, module, settings)
