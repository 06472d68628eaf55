"""One process that takes jobs from a ledger, audits, and writes what came of it.

    claim -> scenario -> audit (checkpointed, with heartbeats) -> files -> result and "done" in one transaction

The files of a job are written before its result: a process that dies between the two leaves files that the next attempt
replaces, and no result without files. The search goes on from its checkpoint, and ends with the same bits.
"""

import contextlib
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inversefed.errors import InputError, InversefedError, StorageError
from inversefed.experiments.frontier_jobs import Loaded, PointSpec, measured
from inversefed.experiments.ledger import Job, Ledger, Outcome, Run
from inversefed.experiments.places import Places, make_private
from inversefed.experiments.plan import LastLoad
from inversefed.experiments.schema import POINT
from inversefed.experiments.table import outcome_of, row_of
from inversefed.experiments.tracking import Tracker, callback
from inversefed.pipeline import audit
from inversefed.report.folder import write_files
from inversefed.report.model import Report
from inversefed.report.png import preview
from inversefed.report.purge import find, remove
from inversefed.scenario import Scenario
from inversefed.types import Step

__all__ = [
    "BEAT",
    "Memory",
    "Pulse",
    "attempt",
    "keep",
    "progress_of",
    "remove_files",
    "remove_live",
    "remove_stale",
    "run_job",
    "taken_up",
    "why",
    "work",
    "write_private",
]

BEAT = 5.0
"""Seconds between two heartbeats; each also says how far the job is."""
_PREVIEW = 2.0
"""Seconds between two pictures of a running search."""
_WATCH = 0.5
"""Seconds between two looks at whether the process that began this one is still there."""


@dataclass
class Memory:
    """The tensors that the last job had, of each kind."""

    audits: LastLoad = field(default_factory=LastLoad, repr=False)
    points: Loaded = field(default_factory=Loaded, repr=False)
    trust_code: bool = False


def work(
    url: str,
    folder: Path,
    run: Run,
    owner: str,
    *,
    memory: int | None = None,
    parent: int | None = None,
    jobs: int | None = None,
    tracker: Tracker | None = None,
    trust_code: bool = False,
) -> int:
    """Take jobs until there is none.

    Args:
        url: of the ledger.
        folder: of its files.
        run: whose jobs.
        owner: the name of this process in the ledger.
        memory: bytes that all running jobs may take together.
        parent: the process that began this one, which ends when that is gone; `None` for nobody.
        jobs: how many to take at most; `None` for all.
        tracker: where curves and results are kept beside the ledger, if anywhere.
        trust_code: whether a network that a job names as `pkg.mod:factory` may be imported, which runs that code.

    Returns:
        How many were taken.

    Raises:
        StorageError: results cannot be written; the job at hand is not lost.
    """
    ledger, shared, taken = Ledger(url, folder), Memory(trust_code=trust_code), 0
    done: tuple[Job, Outcome] | None = None
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    while jobs is None or taken < jobs:
        job, before, done = ledger.claim(run, owner, memory, after=done), done, None
        if before is not None:
            _end(ledger, *before, tracker)
        if job is None:
            if memory is None or not ledger.standing(run).ready:
                break
            time.sleep(_WATCH)  # what is left does not fit beside what runs
            continue
        outcome = attempt(ledger, job, shared, tracker)
        done, taken = None if outcome is None else (job, outcome), taken + 1
    if done is not None:
        ledger.finish(*done)
        _end(ledger, *done, tracker)
    ledger.close()
    return taken


def run_job(ledger: Ledger, job: Job, shared: Memory, tracker: Tracker | None = None) -> bool:
    """Carry one job out and write what came of it.

    Returns:
        Whether there is a result.
    """
    outcome = attempt(ledger, job, shared, tracker)
    if outcome is not None:
        ledger.finish(job, outcome)
        _end(ledger, job, outcome, tracker)
    return outcome is not None


def attempt(ledger: Ledger, job: Job, shared: Memory, tracker: Tracker | None = None) -> Outcome | None:
    """Carry one job out and write its files; what came of it is the caller's to write, an error is written here.

    Returns:
        The result; `None` where there is none, or another process has the job by now.

    Raises:
        StorageError: the files cannot be written.
    """
    try:
        with Pulse(ledger, job, tracker) as pulse:
            outcome = _point(ledger, job, shared, pulse) if job.kind == POINT else _audited(ledger, job, shared, pulse)
        return None if pulse.lost else outcome
    except StorageError:
        raise  # that is no fault of the job: it is done again where there is space
    except Exception as error:  # the last door: one job that cannot be done does not stop the others
        ledger.fail(job, why(error))
        remove_live(Places(ledger.folder), job.hash)
        return None


def why(error: Exception) -> str:
    """What the ledger keeps of a job's error; what no audit should raise is also logged whole."""
    if not isinstance(error, InversefedError | MemoryError):
        logging.getLogger(__name__).error("a job raised what no audit should", exc_info=error)
    return f"{type(error).__name__}: {error or 'there was not enough memory'}"


def _end(ledger: Ledger, job: Job, outcome: Outcome, tracker: Tracker | None) -> None:
    """What is left to do for a job whose result is written."""
    remove_live(Places(ledger.folder), job.hash)
    if tracker is not None:
        _track(tracker, job, outcome)


def _track(tracker: Tracker, job: Job, outcome: Outcome) -> None:
    numbers = {name: float(value) for name, value in outcome.content.items() if isinstance(value, int | float)}
    row = row_of(job, {"verdict": outcome.verdict})
    tracker.result(job.hash[:16], {name: value for name, value in row.items() if value is not None}, numbers)


def keep(files: Mapping[str, bytes], folder: Path) -> None:
    """Write the files of a job's report, all or nothing, in the place of those of an earlier attempt.

    Raises:
        StorageError: they cannot be written.
    """
    try:
        make_private(folder.parent)
        write_files(folder, files, overwrite=True)
    except (InputError, OSError) as error:
        raise StorageError(f"{error}; what was finished before is kept, and `inversefed resume` goes on") from error


def _audited(ledger: Ledger, job: Job, shared: Memory, pulse: "Pulse") -> Outcome:
    """Audit, from the checkpoint of an earlier attempt if there is one, write the files, and say what came of it."""
    began = time.perf_counter()
    scenario = shared.audits.loaded(Scenario.from_dict(json.loads(job.scenario), shared.trust_code))
    places = Places(ledger.folder)
    checkpoint = places.checkpoint(job.hash)
    make_private(checkpoint.parent)
    report = taken_up(scenario, checkpoint, pulse.step)
    seconds = time.perf_counter() - began
    if not pulse.lost:
        keep(report.files(tensors=True), places.job(job.hash))
    return outcome_of(report, seconds)


def taken_up(scenario: Scenario, checkpoint: Path, on_step: Callable[[Step], object]) -> Report:
    """Audit, from the checkpoint on where there is one; with one of another version, or damaged, from the beginning."""
    resume = checkpoint if checkpoint.exists() else None
    try:
        return audit(scenario, on_step=on_step, checkpoint=checkpoint, resume=resume)
    except InputError as error:
        if resume is None or isinstance(error, StorageError):
            raise
        checkpoint.unlink(missing_ok=True)
        return audit(scenario, on_step=on_step, checkpoint=checkpoint)


def _point(ledger: Ledger, job: Job, shared: Memory, pulse: "Pulse") -> Outcome:
    """Measure a point of the privacy-utility frontier."""
    make_private(Places(ledger.folder).live(job.hash))
    spec = PointSpec.from_dict(json.loads(job.scenario), shared.trust_code)
    return measured(spec, *shared.points.of(spec), on_step=pulse.step)


class Pulse:
    """Holds a job's lease in a thread of its own, and says how far the job is."""

    def __init__(self, ledger: Ledger, job: Job, tracker: Tracker | None = None) -> None:
        self.lost = False
        self._follow = None if tracker is None else callback(tracker, job.hash[:16])
        self._ledger, self._job = ledger, job
        self._preview = Places(ledger.folder).preview(job.hash)
        self._said: dict[str, Any] | None = None
        self._shown = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def step(self, step: Step) -> bool:
        """Look at a step; whether to stop, because the job is another's by now."""
        if self._follow is not None:
            self._follow(step)
        self._said = progress_of(step)
        if time.monotonic() - self._shown > _PREVIEW:
            self._shown = time.monotonic()
            picture = preview(step.best()[0])
            with contextlib.suppress(OSError, InputError):  # a picture to look at is worth no failure
                if picture is not None:
                    write_private(self._preview, picture)
        return self.lost

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                self.lost = not self._ledger.beat(self._job, self._said)
            except InversefedError:  # busy or full for now; the lease is long enough for several tries
                continue


def progress_of(step: Step) -> dict[str, Any]:
    """How far a search is, as the ledger has it."""
    return {
        "iteration": step.iteration + step.restart * step.iterations,
        "iterations": step.iterations * step.restarts,
        "loss": step.loss if abs(step.loss) < float("inf") else None,
        "remaining": step.remaining if step.remaining < float("inf") else None,
    }


def write_private(path: Path, content: bytes) -> None:
    """Replace a file at once, for its owner only."""
    part = path.with_name(f"{path.name}.part")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(content)
    part.replace(path)


def remove_live(places: Places, hash: str) -> None:
    """Remove what a job has while it runs."""
    folder = places.live(hash)
    for file in (places.checkpoint(hash), places.preview(hash)):
        for each in (file, *folder.glob(f"{file.name}.part*")):  # what a killed writer left
            with contextlib.suppress(OSError):
                each.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def remove_stale(ledger: Ledger) -> None:
    """Remove what jobs had while they ran that have ended since, by whatever process, or were given up."""
    places = Places(ledger.folder)
    if there := places.all_live():
        for hash in ledger.ended(there):
            remove_live(places, hash)


def remove_files(folder: Path, hash: str) -> None:
    """Remove what a job wrote, and nothing else.

    Raises:
        InputError: a file that may not be removed.
    """
    places = Places(folder)
    remove_live(places, hash)
    kept = places.job(hash)
    if kept.is_dir():
        for leftover in find([kept]):
            remove(leftover)
        with contextlib.suppress(OSError):  # other jobs are in it
            kept.parent.rmdir()


def _end_with(parent: int) -> None:
    """End this process, in the middle of its job, when the one that began it is gone."""
    while os.getppid() == parent:
        time.sleep(_WATCH)
    os._exit(1)
