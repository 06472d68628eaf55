"""What a second worker brings: the same plan of one-thread audits with one worker and with several, by each executor.

    rate = audits after the first / seconds after the first        ratio = rate of several workers / rate of one

Before the first audit ends, processes are begun and import torch, which a long sweep does not notice. The ratio is that
of the machine as it is: beside it stand its cores and its load, since other programs take their share.
"""

import os
import tempfile
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.record import command, machine, write
from inversefed.experiments.executor import Executor
from inversefed.experiments.ledger import Ledger, Standing
from inversefed.experiments.local import LocalProcesses
from inversefed.experiments.plan import Plan, Targets
from inversefed.experiments.planning import add_run, write_jobs
from inversefed.experiments.ray_cluster import RayCluster
from inversefed.specs import registry

__all__ = ["Options", "measure", "plan", "rate"]


@dataclass(frozen=True)
class Options:
    """Measure what a second worker brings."""

    jobs: int = 16
    """How many audits."""
    iterations: int = 400
    """Steps of each; 400 are about a second on one core."""
    workers: int = 2
    """How many workers are held against one."""
    json: Path = Path("runs/bench/sweeps.json")
    """Where the figures go."""


def plan(jobs: int, iterations: int) -> Plan:
    """Audits of the same length, which differ in their seed."""
    attack = registry.build("attack", f"geiping(max_iterations={iterations}, restarts=1)")
    return Plan("sweeps", (Targets(),), attacks=(attack,), seeds=tuple(range(jobs)), nulls=0)


def rate(looks: list[tuple[float, int]]) -> float:
    """Audits a second after the first look that found one done.

    Args:
        looks: when, in seconds, and how many were done by then.

    >>> rate([(0.0, 0), (5.0, 1), (6.0, 2), (7.0, 3)])
    1.0
    """
    begun = [each for each in looks if each[1]]
    (first, one), (last, all) = begun[0], next(each for each in begun if each[1] == begun[-1][1])
    return (all - one) / (last - first) if last > first else 0.0


def measure(name: str, execute: Executor, jobs: int, iterations: int) -> dict[str, Any]:
    """Carry the plan out, and time it."""
    with tempfile.TemporaryDirectory(prefix="sweeps.") as folder:
        ledger = Ledger(str(Path(folder) / "ledger.db"))
        run = add_run(ledger, plan(jobs, iterations))
        write_jobs(ledger, run)
        looks: list[tuple[float, int]] = []

        def look(standing: Standing) -> None:
            looks.append((time.perf_counter() - began, standing.counts["done"]))

        began = time.perf_counter()
        standing = execute(ledger, run, look)
        seconds = time.perf_counter() - began
        ledger.close()
    return {
        "executor": name,
        "workers": execute.count,
        "done": standing.counts["done"],
        "seconds": seconds,
        "first_after": next(when for when, done in looks if done),
        "rate": rate(looks),
        "load": os.getloadavg()[0],
    }


def run(options: Options, line: str) -> int:
    """Measure every executor, and print the ratio of each."""
    rows, ratios = [], {}
    for name, kind in (("local", LocalProcesses), ("ray", RayCluster)):
        if name == "ray" and find_spec("ray") is None:
            print("ray: not installed, and so not measured")
            continue
        pair = [measure(name, kind(workers=count), options.jobs, options.iterations) for count in (1, options.workers)]
        ratios[name] = pair[1]["rate"] / pair[0]["rate"] if pair[0]["rate"] else 0.0
        rows += pair
        for each in pair:
            print(
                f"{name}, {each['workers']} workers: {each['done']} audits in {each['seconds']:.1f} s, the first after "
                f"{each['first_after']:.1f} s, then {each['rate']:.2f} a second; load {each['load']:.1f}"
            )
        print(f"{name}: {options.workers} workers are {ratios[name]:.2f} times as fast as one")
    write(options.json, {"command": line, "machine": machine(), "rows": rows, "ratios": ratios})
    return 0


def main() -> int:
    """The command line."""
    return command("sweeps", Options, run)


if __name__ == "__main__":
    raise SystemExit(main())
