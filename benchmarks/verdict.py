"""How often the verdict is wrong: `python -m benchmarks.verdict --json runs/bench/verdict.json`.

False alarms: audits of null updates, which say nothing, over many seeds, with what the null runs alone would have
called (one in twenty, by design) and what the verdict called. Known leaks: bundled photographs through untrained
networks.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Generator, nn

from benchmarks import record
from inversefed import ThreatModel, recipes
from inversefed.attacks import Attack
from inversefed.controls.null_update import null_observation
from inversefed.evaluation.intervals import mean_interval
from inversefed.fl.simulate import observed
from inversefed.pipeline import audit_observation
from inversefed.types import Batch
from inversefed.zoo import networks, pictures


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure how often the verdict is wrong."""

    seeds: int = 100
    """Null updates of each case."""
    leaks: int = 8
    """Photographs and networks of each known leak."""
    only: str = ""
    """Cases whose name has this in it."""
    json: Path | None = None
    """File for the figures, replaced after each case."""


@dataclass(frozen=True)
class Case:
    """A network, an attack, and the side of the pictures."""

    name: str
    network: Callable[[int], nn.Module]
    attack: Attack
    side: int
    pictures: int = 1
    labels: str = "known"


def small(seed: int) -> nn.Module:
    """A small convolutional network for 8x8 pictures."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 10)).eval()


def named(name: str) -> Callable[[int], nn.Module]:
    """An untrained network of the zoo."""
    return lambda seed: networks.build(name, 10, seed=seed).eval()


NULLS = (
    Case("small, geiping(5)", small, recipes.geiping(max_iterations=5), 8),
    Case("small, spectral(10)", small, recipes.spectral(10), 8),
    Case("small, 2 pictures, spectral(10)", small, recipes.spectral(10), 8, pictures=2),
    Case("small, labels hidden, geiping(5)", small, recipes.geiping(max_iterations=5), 8, labels="unknown"),
)
LEAKS = (
    Case("LeNetZhu, best", named("LeNetZhu"), recipes.best(), 32, labels="unknown"),
    Case("LeNetZhu, curvature(60)", named("LeNetZhu"), recipes.curvature(60), 32),
    Case("ConvNet, spectral(60)", named("ConvNet"), recipes.spectral(60), 32),
    Case("ConvNet, geiping(100)", named("ConvNet"), recipes.geiping(max_iterations=100), 32),
)


def audits(case: Case, seeds: int, null: bool) -> Iterator[dict[str, Any]]:
    """A row for each seed."""
    photos = torch.stack([pictures.photo(name, (3, case.side, case.side)) for name in pictures.photo_names()])
    for seed in range(seeds):
        places = [(seed + step) % len(photos) for step in range(case.pictures)]
        threat = ThreatModel(labels=case.labels)
        observation, truth = observed(
            case.network(seed), photos[places], torch.arange(case.pictures), mean=0.5, std=0.25, threat=threat
        )
        if null:
            observation = null_observation(observation, Generator().manual_seed(10_000 + seed))
        others = [place for place in range(len(photos)) if place not in places]
        began = time.perf_counter()
        report = audit_observation(
            observation, truth=truth, attack=case.attack, threat=threat, seed=seed,
            others=Batch(photos[others], torch.arange(len(others))), nulls=19 if null else None,
        )  # fmt: skip
        verdict = report.verdict
        assert verdict is not None
        keys = ("exact", "nulls", "p_value", "score", "score_of_repeat", "best_null", "null_iterations")
        yield {
            "seed": seed,
            "leaked": verdict.leaked,
            **{key: getattr(verdict.figures, key) for key in keys},
            "seconds_of_attack": report.seconds,
            "seconds": time.perf_counter() - began,
        }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The share that was called, with its interval, and what the null runs alone would have called."""
    p_values = [row["p_value"] for row in rows if row["p_value"] is not None]
    return {
        "audits": len(rows),
        "called": mean_interval([float(row["leaked"]) for row in rows], share=True).plain(),
        "below_5_percent": sum(p <= 0.05 for p in p_values) / len(p_values) if p_values else None,
        "mean_p_value": sum(p_values) / len(p_values) if p_values else None,
        "seconds_over_attack": sum(row["seconds"] for row in rows) / sum(row["seconds_of_attack"] for row in rows),
    }


def run(options: Options, _command: str = "") -> int:
    """Run what is asked for, and print and write the figures; 0 if all was measured."""
    torch.set_num_threads(1)
    document: dict[str, Any] = {"machine": record.machine(), "false_alarms": {}, "known_leaks": {}}
    for kind, cases, seeds in (("false_alarms", NULLS, options.seeds), ("known_leaks", LEAKS, options.leaks)):
        for case in cases:
            if options.only not in case.name or not seeds:
                continue
            rows = list(audits(case, seeds, null=kind == "false_alarms"))
            document[kind][case.name] = {"summary": summary(rows), "rows": rows}
            print(kind, case.name, summary(rows), flush=True)
            if options.json:
                record.write(options.json, document)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all was measured, 2 for wrong usage or input, 130 if interrupted."""
    return record.command("verdict", Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
