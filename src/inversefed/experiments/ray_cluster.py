"""Ray: jobs on the cores and GPUs of several machines, which share neither the ledger nor the files.

    ledger --claim--> coordinator --module, pictures: once, into the object store--> task --audit-->
           <--result, files-- coordinator <--Done: outcome, files--

This process is the coordinator: it alone reads and writes the ledger and its folder. A task gets a scenario's record
and references to its network and its pictures, and returns the files of its report as bytes. What runs holds its lease
by the coordinator's heartbeats; how far it is, and its checkpoint, come through an actor beside the coordinator.

Ray begins a task at least once, and here no more often: what became of a task that was lost is decided by the ledger,
which queues its job again and keeps one result. The import of Ray is late.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pickle import PicklingError
from typing import Any

from inversefed.errors import ConfigError, InputError, InversefedError, StorageError
from inversefed.experiments.executor import LOOK, PROCESS, Executor, until_done
from inversefed.experiments.frontier_jobs import PointSpec, data_of, needs_of, setting_of
from inversefed.experiments.ledger import Job, Ledger, Run, Standing, new_owner
from inversefed.experiments.places import Places, make_private
from inversefed.experiments.ray_start import begun, joined
from inversefed.experiments.remote import Done, Refused, Said, audited, measured_there, private_of
from inversefed.experiments.schema import POINT, QUEUED
from inversefed.experiments.work import BEAT, keep, remove_live, why, write_private
from inversefed.scenario import Hashes, Scenario

__all__ = ["RayCluster"]

_LEASE = 300.0
"""Seconds of a lease: the coordinator says nothing while it loads pictures for the next job."""


@dataclass(frozen=True)
class RayCluster(Executor):
    """Runs the jobs of a ledger as tasks of Ray.

    Args:
        address: of a cluster that runs, `"auto"` or `"HOST:PORT"`, seen from a machine of it; `None` for the one that
            this program is connected to already, or else for one of this machine alone, begun and ended here.
        workers: how many jobs at once; `None` for as many as the cluster has room for.
        threads: CPU threads of each. Results are the same bits only with the same number.
        retries: how often the process or the machine of a job may be lost before the job counts as failed.
        gpus: share of a GPU that each job is given, and then uses; 0 for none. Ray only counts it: jobs that share a
            GPU share its memory.
    """

    address: str | None = None
    workers: int | None = None
    threads: int = 1
    retries: int = 5
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if (self.workers is not None and self.workers < 1) or self.threads < 1 or min(self.retries, self.gpus) < 0:
            raise ConfigError(
                f"at least one worker and one thread are needed, and retries and gpus of at least 0; got "
                f"workers={self.workers}, threads={self.threads}, retries={self.retries}, gpus={self.gpus}"
            )

    @property
    def count(self) -> int:
        """How many jobs at once: of the cluster while there is one, else of this machine."""
        ray = sys.modules.get("ray")
        if self.workers is None and ray is not None and ray.is_initialized():
            return max(1, _room(ray.nodes(), self.threads, self.gpus).slots)
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
            ConfigError: Ray is not installed, cannot be begun safely, or has no machine that a job would fit on.
            InputError: the cluster is not there, or was lost.
            StorageError: results cannot be written.
        """
        ledger.release_dead()
        with self._connected() as ray, _told(ray), _asked_to_end() as asked:
            coordinator = _Coordinator(ray, ledger, run, self)
            try:

                def look(standing: Standing) -> None:
                    if asked:
                        raise KeyboardInterrupt
                    coordinator.look(standing)

                return until_done(ledger, run, look, on_look)
            finally:
                coordinator.end()

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        """Ray, connected to a cluster; what was begun here is ended here."""
        ray = sys.modules.get("ray")
        if ray is not None and self.address is None and ray.is_initialized():
            yield ray
            return
        with begun(self.count * self.threads, self.gpus) if self.address is None else joined(self.address) as ray:
            yield ray


@dataclass(frozen=True)
class _Room:
    """What a cluster has for jobs.

    Args:
        slots: how many fit at once by cores and GPUs.
        memory: bytes of all machines.
        largest: of one machine.
    """

    slots: int
    memory: int
    largest: int


def _room(nodes: Sequence[Mapping[str, Any]], threads: int, gpus: float) -> _Room:
    """Count the machines that are there.

    >>> _room([{"Alive": True, "Resources": {"CPU": 5.0, "memory": 9e9}}, {"Alive": False, "Resources": {}}], 2, 0.0)
    _Room(slots=2, memory=9000000000, largest=9000000000)
    """
    slots, memory = 0, [0]
    for has in (each["Resources"] for each in nodes if each["Alive"]):
        fit = int(has.get("CPU", 0) // threads)
        fit = min(fit, int(has.get("GPU", 0) / gpus + 1e-9)) if gpus else fit
        slots += fit
        memory += [int(has.get("memory", 0))] if fit else []
    return _Room(slots, sum(memory), max(memory))


class _Board:
    """An actor beside the coordinator, where tasks say how far they are."""

    def __init__(self) -> None:
        self._said: dict[str, Said] = {}

    def say(self, hash: str, said: Said) -> None:
        """Replace what a job said before, but for a checkpoint that nobody has taken."""
        before = self._said.get(hash, said)
        self._said[hash] = replace(said, checkpoint=said.checkpoint or before.checkpoint)

    def take(self) -> dict[str, Said]:
        """What was said since the last time."""
        said, self._said = self._said, {}
        return said


def _task(
    job: Job, first: Any, second: Any, threads: int, device: str, board: Any, checkpoint: bytes | None
) -> Done | Refused:
    """A job on a machine of the cluster; Ray has put values in the place of references.

    They are network and pictures of an audit, or setting and training data of a point.
    """

    def tell(said: Said) -> None:
        board.say.remote(job.hash, said)

    if job.kind == POINT:
        return measured_there(job.scenario, first, second, threads, device, tell)
    return audited(job.scenario, first, second, threads, device, tell, checkpoint)


@dataclass(eq=False)
class _Shelf:
    """Networks, pictures and training data in the object store: each once, while a job of the run needs it.

    Args:
        put: puts a value there, and returns a reference to it.
        needed: how many jobs need what, by its key.
    """

    put: Callable[[Any], Any]
    needed: Counter[Any]
    held: dict[Any, Any] = field(default_factory=dict)

    def references(self, scenario: Scenario) -> tuple[Any, Any]:
        """To the network and the pictures of a scenario, loaded where the store has not both; `None` for what cannot
        be sent, which a task then loads by its name.

        Raises:
            InputError: files that cannot be used, or that are not those whose hashes were recorded.
        """
        network, pictures = _keys(scenario.sha256)
        if scenario.sha256.update is not None:
            return None, None
        if network not in self.held or pictures not in self.held:
            loaded = scenario.loaded().held
            assert loaded is not None
            for key, value in ((network, loaded.network.module), (pictures, private_of(loaded))):
                if key not in self.held:
                    self.held[key] = self._sent(value)
        return self.held[network], self.held[pictures]

    def references_of_point(self, spec: PointSpec) -> tuple[Any, Any]:
        """To the setting and the training data of a point, loaded where the store has not both; `None` likewise.

        Raises:
            InversefedError: a network or pictures that cannot be loaded.
        """
        keys = needs_of(spec.to_dict())
        if any(key not in self.held for key in keys):
            setting = setting_of(spec)
            if keys[0] not in self.held:
                self.held[keys[0]] = self._sent(setting)
            if keys[1] not in self.held:
                self.held[keys[1]] = self._sent(data_of(spec, setting))
        return self.held[keys[0]], self.held[keys[1]]

    def give_back(self, needs: Iterable[Any]) -> None:
        """A job has ended that needed these."""
        for key in needs:
            self.needed[key] -= 1
            if self.needed[key] <= 0:
                self.held.pop(key, None)

    def _sent(self, value: Any) -> Any:
        try:
            return self.put(value)
        except (TypeError, AttributeError, PicklingError):
            return None


def _keys(hashes: Hashes) -> tuple[Any, Any]:
    """What a network and a set of pictures are known by."""
    return ("network", hashes.network), ("pictures", hashes.images, hashes.labels, hashes.others)


def _needs(job: Job) -> tuple[Any, Any]:
    """What a job needs, by the keys of the shelf."""
    record = json.loads(job.scenario)
    return needs_of(record) if job.kind == POINT else _keys(Hashes(**record["sha256"]))


class _Coordinator:
    """What runs now, and what comes next."""

    def __init__(self, ray: Any, ledger: Ledger, run: Run, given: RayCluster) -> None:
        self._ray, self._ledger, self._run, self._given = ray, ledger, run, given
        self._places = Places(ledger.folder)
        self._flying: dict[Any, Job] = {}
        self._beaten = time.monotonic()
        room = self._room()
        if not room.slots:
            share = f" and {given.gpus:g} of a GPU" if given.gpus else ""
            raise ConfigError(f"no machine of the cluster has {given.threads} cores{share}; see --threads and --gpus")
        ledger.refuse_larger(run, max(0, room.largest - PROCESS))
        queued = ledger.jobs(run, QUEUED)
        self._shelf = _Shelf(ray.put, Counter(key for job in queued for key in _needs(job)))
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        self._board = ray.remote(num_cpus=0, scheduling_strategy=here)(_Board).remote()
        self._remote = ray.remote(
            num_cpus=given.threads, num_gpus=given.gpus, max_retries=0, scheduling_strategy="SPREAD"
        )(_task)

    def look(self, _: Standing) -> None:
        """Take what has ended, say what runs, and begin what there is room for."""
        if self._flying:
            ended, _ = self._ray.wait(list(self._flying), num_returns=len(self._flying), timeout=LOOK)
            for reference in ended:
                self._end(reference, self._flying.pop(reference))
        else:
            time.sleep(LOOK)
        if time.monotonic() - self._beaten > BEAT:
            self._beaten = time.monotonic()
            self._beat()
        self._fill()

    def end(self) -> None:
        """End what runs, and give it back."""
        for reference, job in self._flying.items():
            with contextlib.suppress(Exception):  # the cluster may be gone
                self._ray.cancel(reference, force=True)
            self._ledger.release(job.owner or "")
        self._flying.clear()
        with contextlib.suppress(Exception):
            self._ray.kill(self._board)

    def _room(self) -> _Room:
        return _room(self._ray.nodes(), self._given.threads, self._given.gpus)

    def _fill(self) -> None:
        room = self._room()
        most = self._given.workers or room.slots
        free = max(0, room.memory - most * PROCESS)
        while len(self._flying) < most:
            job = self._ledger.claim(self._run, new_owner(), free, _LEASE)
            if job is None:
                return
            self._begin(job)

    def _begin(self, job: Job) -> None:
        try:
            first, second = self._references(job)
        except InversefedError as error:
            self._refuse(job, why(error))
            return
        device = "cuda" if self._given.gpus else "cpu"
        checkpoint = None
        with contextlib.suppress(OSError):  # there is one where the search was cut short
            checkpoint = self._places.checkpoint(job.hash).read_bytes()
        task = self._remote.options(memory=job.bytes + PROCESS)
        begun = task.remote(job, first, second, self._given.threads, device, self._board, checkpoint)
        self._flying[begun] = job

    def _references(self, job: Job) -> tuple[Any, Any]:
        record = json.loads(job.scenario)
        if job.kind == POINT:
            return self._shelf.references_of_point(PointSpec.from_dict(record))
        return self._shelf.references(Scenario.from_dict(record))

    def _end(self, reference: Any, job: Job) -> None:
        errors = self._ray.exceptions
        try:
            ended = self._ray.get(reference)
        except errors.RayTaskError as error:  # no error of ours: another attempt would meet it too
            self._refuse(job, f"{type(error.cause).__name__}: {error.cause}")
        except errors.RayError:  # its process or its machine was lost
            self._ledger.release(job.owner or "", died=True, most=self._given.retries)
        else:
            if isinstance(ended, Refused):
                self._refuse(job, ended.error)
            else:
                self._finish(job, ended)

    def _finish(self, job: Job, done: Done) -> None:
        if done.files:  # a point has none
            keep(done.files, self._places.job(job.hash))
        self._ledger.finish(job, done.outcome)
        remove_live(self._places, job.hash)
        self._shelf.give_back(_needs(job))

    def _refuse(self, job: Job, error: str) -> None:
        self._ledger.fail(job, error)
        remove_live(self._places, job.hash)
        self._shelf.give_back(_needs(job))

    def _beat(self) -> None:
        said: Mapping[str, Said] = {}
        with contextlib.suppress(self._ray.exceptions.RayError):  # it is only to look at
            said = self._ray.get(self._board.take.remote(), timeout=BEAT)
        for reference, job in self._flying.items():
            news = said.get(job.hash)
            if news is not None:
                self._show(job, news)
            if not self._ledger.beat(job, None if news is None else news.progress, _LEASE):
                self._ray.cancel(reference, force=True)  # the job is another's by now

    def _show(self, job: Job, news: Said) -> None:
        preview = self._places.preview(job.hash)
        with contextlib.suppress(OSError, StorageError):  # a picture to look at is worth no failure
            make_private(preview.parent)
            if news.picture is not None:
                write_private(preview, news.picture)
            if news.checkpoint is not None:
                write_private(self._places.checkpoint(job.hash), news.checkpoint)


@contextmanager
def _asked_to_end() -> Iterator[list[int]]:
    """Remember that Ctrl-C was pressed: raised while Ray lets go of a reference, the interrupt itself is lost."""
    asked: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield asked
        return

    def note(number: int, _: Any) -> None:
        asked.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield asked
    finally:
        signal.signal(signal.SIGINT, before or signal.default_int_handler)


@contextmanager
def _told(ray: Any) -> Iterator[None]:
    """Say what became of a cluster as an error of ours."""
    try:
        yield
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise InputError(
            f"the cluster was lost: {error}. What was finished is kept: `inversefed resume` goes on from there"
        ) from error
