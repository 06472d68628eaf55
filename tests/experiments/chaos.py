"""Kill processes of a sweep at random, again and again, and compare what comes of it with a sweep that was left alone.

python -m tests.experiments.chaos --kills 200 --jobs 60
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from inversefed.experiments.ledger import Ledger
from inversefed.experiments.places import Places
from inversefed.experiments.table import row_of

PLAN = """
name: chaos
targets: {{dataset: photos, limit: 6}}
networks: [LeNetZhu]
clients: [FedSGD]
attacks: [{{geiping: {{max_iterations: {iterations}}}}}]
seeds: [{seeds}]
nulls: 0
"""
VARIES = {"seconds", "attempts"}


def write_plan(folder: Path, jobs: int, iterations: int = 60) -> Path:
    """A plan of so many audits, each of about a second or less."""
    seeds = ", ".join(map(str, range((jobs + 5) // 6)))
    (folder / "plan.yaml").write_text(PLAN.format(iterations=iterations, seeds=seeds))
    return folder / "plan.yaml"


def command(*arguments: str) -> list[str]:
    """The command line of this checkout."""
    return [sys.executable, "-m", "inversefed", *arguments]


def start(arguments: list[str]) -> "subprocess.Popen[bytes]":
    """Begin a process whose children can be told."""
    return subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def children(pid: int) -> list[int]:
    """The worker processes of a coordinator; not the helper that Python starts beside them."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            is_worker = b"spawn_main" in (entry / "cmdline").read_bytes()
        except (OSError, IndexError):
            continue
        if parent == pid and is_worker:
            found.append(int(entry.name))
    return found


def rows(ledger: Ledger, name: str) -> list[Mapping[str, Any]]:
    """The table without what a second run of the same audits may change."""
    found = [row_of(job, content) for job, content in ledger.rows(ledger.run(name))]
    return [{key: value for key, value in row.items() if key not in VARIES} for row in found]


def differences(alone: Path, disturbed: Path, name: str = "chaos") -> list[str]:
    """What is not as it is in the sweep that was left alone, pictures included; nothing where all is."""
    ledgers = [Ledger(str(folder / "ledger.db")) for folder in (alone, disturbed)]
    try:
        first, second = (rows(ledger, name) for ledger in ledgers)
        found = [f"{len(first)} rows and {len(second)}"] if len(first) != len(second) else []
        found += [json.dumps([a, b]) for a, b in zip(first, second, strict=False) if a != b]
        found += [f"not done: {row['state']} {row['error']}" for row in second if row["state"] != "done"]
        found += [problem for ledger in ledgers if (problem := ledger.check()) is not None]
        for row in second:
            one, other = (
                load_file(Places(folder).job(row["scenario"]) / "reconstruction.safetensors")
                for folder in (alone, disturbed)
            )
            if not all(one[key].equal(other[key]) for key in one):
                found.append(f"other pixels: {row['scenario']}")
        if left := list((disturbed / "live").glob("*/*")):
            found.append(f"left behind: {left[:3]}")
        return found
    finally:
        for ledger in ledgers:
            ledger.close()


def how_far(url: str) -> tuple[bool, bool]:
    """Whether the run is in the ledger, and whether it has ended."""
    ledger = Ledger(url)
    found = [run for run in ledger.runs() if run.name == "chaos"]
    ended = any(run.planned and not ledger.standing(run).open for run in found)
    ledger.close()
    return bool(found), ended


def disturb(folder: Path, plan: Path, kills: int, draw: random.Random, longest: float) -> Iterator[str]:
    """Carry a plan out while its processes are killed; says whom.

    Args:
        folder: of the ledger.
        plan: what to carry out.
        kills: how many.
        draw: who is killed, and when.
        longest: seconds between two kills at most.
    """
    ledger = str(folder / "ledger.db")
    options = ["--ledger", ledger, "--quiet", "--workers", "2", "--retries", "1000000"]
    process = start(command("sweep", str(plan), *options))
    done = 0
    while done < kills:
        wants_worker = done % 3 != 2  # every third victim is the coordinator
        while wants_worker and process.poll() is None and not children(process.pid):
            time.sleep(0.1)  # it is still being started
        time.sleep(draw.uniform(0.05, longest))
        workers = children(process.pid)
        victim = draw.choice(workers) if workers and wants_worker else process.pid
        if process.poll() is None:
            os.kill(victim, signal.SIGKILL)
            done += 1
            yield "coordinator" if victim == process.pid else "worker"
        if victim != process.pid and process.poll() is None:
            continue
        process.wait()
        begun, ended = how_far(ledger)
        if ended:
            break
        process = start(command("resume", "chaos", *options) if begun else command("sweep", str(plan), *options))
    process.wait()
    ran = subprocess.run(command("resume", "chaos", *options), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def run(kills: int, jobs: int, iterations: int, seed: int, longest: float) -> int:
    """The whole comparison; 0 where nothing differs."""
    base = Path(tempfile.mkdtemp(prefix="chaos."))
    try:
        alone = base / "alone"
        plan = write_plan(base, jobs, iterations)
        began = time.monotonic()
        subprocess.run(
            command("sweep", str(plan), "--ledger", str(alone / "ledger.db"), "--quiet", "--workers", "2"), check=True
        )
        print(f"left alone: {time.monotonic() - began:.0f} s", flush=True)
        victims, found, sweeps, draw = Counter[str](), list[str](), 0, random.Random(seed)
        while victims.total() < kills:  # a sweep may be done before all are killed that are to be: then another
            disturbed, sweeps = base / f"disturbed_{sweeps}", sweeps + 1
            victims.update(disturb(disturbed, plan, kills - victims.total(), draw, longest))
            found += differences(alone, disturbed)
            print(f"{victims.total()} kills in {sweeps} sweeps, {time.monotonic() - began:.0f} s", flush=True)
        print(f"killed: {dict(victims)}; {len(found)} differences in {sweeps} sweeps of {jobs} audits")
        for each in found[:10]:
            print(each)
        return 1 if found else 0
    finally:
        shutil.rmtree(base, ignore_errors=True)


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--iterations", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--longest", type=float, default=8.0, help="seconds between two kills at most")
    given = parser.parse_args()
    return run(given.kills, given.jobs, given.iterations, given.seed, given.longest)


if __name__ == "__main__":
    sys.exit(main())
