"""The processes of this machine: each takes jobs from the ledger, one thread each, without any socket.

A process that dies is replaced, and its job queued again. When this one ends, however it ends, the others end too, and
their jobs are given back to the next `resume`.
"""

import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.context import SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from inversefed.attacks.search.memory import available_bytes
from inversefed.errors import ConfigError, InputError, StorageError
from inversefed.experiments.executor import LOOK, PROCESS, Executor, until_done
from inversefed.experiments.ledger import Ledger, Run, Standing, new_owner
from inversefed.experiments.tracking import Tracker
from inversefed.experiments.work import work

__all__ = ["LocalProcesses"]

_UNWRITABLE = 74
"""Exit status of a process that could not write its results (`EX_IOERR`)."""
_BEFORE_WORK = 3
"""How many processes may die in a row without having taken a job: then it is not the jobs."""


@dataclass(frozen=True)
class LocalProcesses(Executor):
    """Runs the jobs of a ledger in processes of this machine.

    Args:
        workers: how many; `None` for one a core.
        threads: CPU threads of each. Results are the same bits only with the same number.
        retries: how often the process of a job may die before the job counts as failed.
        memory: bytes that all jobs may take together; `None` for what is free when they begin.
        tracker: where curves and results are kept beside the ledger, if anywhere.
        trust_code: whether a network that a point names as `pkg.mod:factory` may be imported, which runs that code.
    """

    workers: int | None = None
    threads: int = 1
    retries: int = 5
    memory: int | None = None
    tracker: Tracker | None = None
    trust_code: bool = False

    def __post_init__(self) -> None:
        if (self.workers is not None and self.workers < 1) or self.threads < 1 or self.retries < 0:
            raise ConfigError(
                f"at least one worker and one thread are needed, and retries of at least 0; got "
                f"workers={self.workers}, threads={self.threads}, retries={self.retries}"
            )

    @property
    def count(self) -> int:
        """How many processes."""
        return self.workers or max(1, len(os.sched_getaffinity(0)) // self.threads)

    def __call__(self, ledger: Ledger, run: Run, on_look: Callable[[Standing], object] = lambda _: None) -> Standing:
        """Run until every job of a run is done or failed.

        Args:
            ledger: where the jobs are.
            run: whose jobs.
            on_look: told now and then how far the run is.

        Returns:
            How far it came.

        Raises:
            InputError: processes die before they take a job.
            StorageError: results cannot be written.
        """
        ledger.release_dead()
        free = self.memory
        if free is None:
            free = available_bytes(torch.device("cpu")) - self.count * PROCESS
        ledger.refuse_larger(run, max(0, free))
        crew = _Crew(self, ledger, run, max(0, free))
        try:
            return until_done(ledger, run, crew.look, on_look)
        finally:
            crew.end()


@dataclass(eq=False)
class _Crew:
    """The processes that are there."""

    settings: LocalProcesses
    ledger: Ledger
    run: Run
    memory: int
    context: SpawnContext = field(default_factory=lambda: multiprocessing.get_context("spawn"))
    members: dict[str, BaseProcess] = field(default_factory=dict)
    begun: int = 0
    idle_deaths: int = 0

    def look(self, standing: Standing) -> None:
        """Replace those that died, as far as there is work for them."""
        for owner, process in list(self.members.items()):
            if process.exitcode is None:
                continue
            del self.members[owner]
            unwritable = process.exitcode == _UNWRITABLE
            had = self.ledger.release(owner, died=process.exitcode != 0 and not unwritable, most=self.settings.retries)
            if unwritable:
                raise StorageError(
                    "a worker could not write its results; its message stands above. What was finished is kept: "
                    "`inversefed resume` goes on from there"
                )
            self.idle_deaths = self.idle_deaths + 1 if process.exitcode and not had else 0
        if self.idle_deaths >= _BEFORE_WORK:
            raise InputError(
                f"{self.idle_deaths} worker processes died one after the other before they took a job; their errors "
                "stand above. What was finished is kept: `inversefed resume` goes on from there"
            )
        while standing.ready and len(self.members) < min(self.settings.count, standing.open):
            self._begin()
        time.sleep(LOOK)

    def end(self) -> None:
        """End all processes, and give back what they had."""
        for process in self.members.values():
            process.kill()
        for owner, process in self.members.items():
            process.join()
            self.ledger.release(owner)
        self.members.clear()

    def _begin(self) -> None:
        owner = new_owner()
        threads = self.settings.threads
        place = self.ledger.url, self.ledger.folder
        given = *place, self.run, owner, self.memory, os.getpid(), self.begun, self.settings
        process = self.context.Process(target=_worker, args=given, daemon=True)
        quiet = {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
        before = {name: os.environ.get(name) for name in quiet}
        os.environ.update(quiet)  # read when torch is imported, which is before the worker's own code runs
        try:
            process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})
        self.members[owner] = process
        self.begun += 1


def _worker(
    url: str,
    folder: Path,
    run: Run,
    owner: str,
    memory: int,
    parent: int,
    number: int,
    settings: LocalProcesses,
) -> None:
    """A process of its own."""
    threads = settings.threads
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all; the process that began this one decides
    torch.set_num_threads(threads)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) > threads:
        first = number * threads % len(cores)
        os.sched_setaffinity(0, {cores[(first + each) % len(cores)] for each in range(threads)})
    try:
        work(
            url, folder, run, owner, memory=memory, parent=parent, tracker=settings.tracker,
            trust_code=settings.trust_code,
        )  # fmt: skip
    except StorageError as error:
        logging.getLogger("inversefed").error("%s", error)
        sys.exit(_UNWRITABLE)
