"""What is done and what is left, in SQL: many processes take jobs from it, and any of them may die at any moment.

    queued --claim: lease--> running --result, in one transaction--> done
       ^                        |
       '---- lease ran out, ----+---- error ----> failed
             or its process died

A job is known by its scenario's hash, so that the same audit is never kept twice, whatever run it is part of. A lease
is held by heartbeats; all times are the database's. Claims are made one after the other, under the database's write
lock.

SQLite is the default, in a file beside the results. PostgreSQL is taken by its URL, `postgresql+psycopg://..`. SQLite's
write-ahead log is used where it is safe: versions before 3.51.3 may lose commits in it (those with the fix, 3.50.7 and
3.44.6, may not), and get a rollback journal instead.
"""

import json
import os
import socket
import sqlite3
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from inversefed.errors import ConfigError, InputError, StorageError, unknown_name
from inversefed.experiments.places import make_private
from inversefed.experiments.schema import (
    AUDIT,
    DONE,
    FAILED,
    HEAD,
    QUEUED,
    RUNNING,
    STATES,
    job,
    result,
    run,
    run_job,
)

__all__ = ["LEASE", "Job", "Ledger", "NewJob", "Outcome", "Run", "Standing", "is_dead", "new_owner", "shown_url"]

LEASE = 60.0
"""Seconds that a job stays with a process that says nothing."""
_BUSY = 60.0
"""Seconds that a writer waits for others."""
_CHUNK = 200
"""Jobs a transaction while a plan is written."""


@dataclass(frozen=True)
class NewJob:
    """A job to be written.

    Args:
        hash: of its scenario.
        scenario: its record, as JSON.
        network: what tables call the network.
        client: how the update is made.
        defenses: what is done to it, joined by plus signs; `"none"` for nothing.
        attack: how it is attacked.
        images: what the private pictures are called.
        num_images: how many share the update.
        seed: of the audit.
        bytes: memory that it is predicted to take; 0 where nothing tells.
        kind: what it is: `AUDIT` or `POINT`.
    """

    hash: str
    scenario: str = field(repr=False)
    network: str
    client: str
    defenses: str
    attack: str
    images: str
    num_images: int
    seed: int
    bytes: int = 0
    kind: str = AUDIT


@dataclass(frozen=True)
class Job(NewJob):
    """A job of the ledger.

    Args:
        id: its number.
        state: one of `STATES`.
        attempts: how often it was begun.
        lost: how often its process died.
        owner: who has it.
        progress: how far it is, as JSON; `None` where it does not say.
        error: why it failed.
    """

    id: int = 0
    state: str = QUEUED
    attempts: int = 0
    lost: int = 0
    owner: str | None = None
    progress: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Outcome:
    """A result to be written.

    Args:
        verdict: `"exact"`, `"recovered"`, `"not recovered"`, `"undecided"` or `"not judged"`.
        psnr: of the best picture, in dB; `None` without a truth.
        margin: of the best picture over the best control, in dB.
        seconds: of the audit.
        content: the row of the table: values that JSON can hold, by name.
    """

    verdict: str
    psnr: float | None
    margin: float | None
    seconds: float
    content: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Run:
    """A run of the ledger.

    Args:
        id: its number.
        name: its name.
        plan: the plan, as JSON.
        created: when, in seconds since 1970.
        planned: whether all its jobs are written.
    """

    id: int
    name: str
    plan: str = field(repr=False)
    created: float
    planned: bool


@dataclass(frozen=True)
class Standing:
    """How far a run is.

    Args:
        counts: jobs by state, every state of `STATES`.
        late: how many of those that run have said nothing for longer than their lease.
        seconds: mean wall time of a job that is done; `None` before the first.
    """

    counts: Mapping[str, int]
    late: int
    seconds: float | None

    @property
    def total(self) -> int:
        """All jobs."""
        return sum(self.counts.values())

    @property
    def open(self) -> int:
        """Jobs that are queued or running."""
        return self.counts[QUEUED] + self.counts[RUNNING]

    @property
    def ready(self) -> int:
        """Jobs that a process can take now."""
        return self.counts[QUEUED] + self.late

    def remaining(self, workers: int) -> float | None:
        """Seconds to the end with so many workers, by the mean so far; `None` before the first result."""
        return None if self.seconds is None else self.seconds * self.open / max(1, workers)


def new_owner() -> str:
    """A name for a process that takes jobs: its machine, its number there, and something that nobody else has."""
    return f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:12]}"


class Ledger:
    """The runs, jobs and results of one database, and the folder where pictures and reports are kept.

    Args:
        url: `"sqlite:///runs/ledger.db"`, the path of an SQLite file, or `"postgresql+psycopg://.."`.
        folder: where reports, pictures, checkpoints and trained weights go; by default the folder of the SQLite file,
            or `runs`.

    Raises:
        ConfigError: no such database.
        InputError: a newer version wrote it, or another program.
        StorageError: it cannot be opened.
    """

    def __init__(self, url: str, folder: Path | None = None) -> None:
        self.url = url if "://" in url else f"sqlite:///{Path(url).expanduser().absolute()}"
        with _told(self.url):
            parsed = sa.make_url(self.url)
            if parsed.get_backend_name() not in ("sqlite", "postgresql"):
                raise unknown_name("kind of ledger", parsed.get_backend_name(), ["sqlite", "postgresql+psycopg"])
            self.is_sqlite = parsed.get_backend_name() == "sqlite"
            file = Path(parsed.database or "") if self.is_sqlite else None
            if file is not None:
                file = file.expanduser().absolute()
                self.url = f"sqlite:///{file}"
                _private_file(file)
            self.folder = (folder or (file.parent if file is not None else Path("runs"))).expanduser().absolute()
            self.engine = _engine(self.url, self.is_sqlite)
            try:
                self._migrate()
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """Give the connections back."""
        self.engine.dispose()

    # -- runs ----------------------------------------------------------------------------------------------------------

    def add_run(self, name: str, plan: str) -> Run:
        """Write a run without jobs.

        Raises:
            InputError: there is one of this name.
        """
        with self._writing() as connection:
            if connection.execute(sa.select(run.c.id).where(run.c.name == name)).first() is not None:
                raise InputError(
                    f"the ledger has a run {name!r} already; go on with it by `inversefed resume`, or name another"
                )
            values = {"name": name, "plan": plan, "created": self.now, "planned": False}
            connection.execute(run.insert().values(**values))
        return self.run(name)

    def run(self, name: str) -> Run:
        """The run of a name.

        Raises:
            ConfigError: there is none.
        """
        with self.reading() as connection:
            row = connection.execute(sa.select(run).where(run.c.name == name)).first()
            if row is None:
                raise unknown_name("run", name, connection.execute(sa.select(run.c.name)).scalars())
        return Run(**row._asdict())

    def runs(self) -> tuple[Run, ...]:
        """All runs, the newest first."""
        with self.reading() as connection:
            return tuple(Run(**row._asdict()) for row in connection.execute(sa.select(run).order_by(run.c.id.desc())))

    def plan_jobs(self, into: Run, jobs: Iterable[NewJob]) -> None:
        """Write the jobs of a run; those that the ledger has already, by this run or another, are not written again.

        A run whose writing was cut short is taken up by writing all of it again.
        """
        seen: set[str] = set()
        batch: list[NewJob] = []
        for each in jobs:
            if each.hash not in seen:
                seen.add(each.hash)
                batch.append(each)
            if len(batch) == _CHUNK:
                self._write_jobs(into, batch, len(seen) - len(batch))
                batch = []
        with self._writing() as connection:
            self._insert_jobs(connection, into, batch, len(seen) - len(batch))
            connection.execute(run.update().where(run.c.id == into.id).values(planned=True))

    def remove_run(self, name: str) -> tuple[str, ...]:
        """Remove a run, with the jobs and results that no other run shares; the hashes of these, whose files may go.

        Raises:
            ConfigError: there is none.
            InputError: a job of it is running.
        """
        found = self.run(name)
        with self._writing() as connection:
            of_run = sa.select(run_job.c.job_id).where(run_job.c.run_id == found.id)
            shared = sa.select(run_job.c.job_id).where(run_job.c.run_id != found.id)
            own = job.c.id.in_(of_run) & job.c.id.not_in(shared)
            alive = sa.and_(own, job.c.state == RUNNING, job.c.lease_until > self.now)
            if connection.execute(sa.select(job.c.id).where(alive).limit(1)).first() is not None:
                raise InputError(f"jobs of the run {name!r} are running; end them first, or wait {LEASE:.0f} seconds")
            hashes = tuple(connection.execute(sa.select(job.c.hash).where(own)).scalars())
            connection.execute(job.delete().where(own))
            connection.execute(run.delete().where(run.c.id == found.id))
        if self.is_sqlite:  # what was removed is personal data, and stays in free pages otherwise
            with _told(self.url), closing(self.engine.raw_connection()) as raw:
                raw.execute("VACUUM")
        return hashes

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def claim(
        self,
        of: Run,
        owner: str,
        memory: int | None = None,
        lease: float = LEASE,
        only: str | None = None,
        after: tuple[Job, Outcome] | None = None,
    ) -> Job | None:
        """Take the next job of a run: one that is queued, or whose lease ran out.

        Args:
            of: the run.
            owner: who takes it.
            memory: bytes that all jobs of the ledger that run may take together; `None` for no limit. A job that runs
                alone is always let through.
            lease: seconds that it stays with a process that says nothing.
            only: the hash of the one job that is wanted; `None` for any.
            after: a job that is done, with its result, which is written in the same transaction.

        Returns:
            The job, now running; `None` where there is none to take, or none that fits now.
        """
        with self._writing() as connection:
            if after is not None:
                self._finish(connection, *after)
            inside = sa.select(run_job.c.job_id).where(run_job.c.run_id == of.id, run_job.c.job_id == job.c.id).exists()
            used = connection.execute(
                sa.select(sa.func.coalesce(sa.func.sum(job.c.bytes), 0)).where(
                    job.c.state == RUNNING, job.c.lease_until > self.now
                )
            ).scalar_one()
            fits = sa.true() if memory is None or not used else job.c.bytes <= memory - int(used)
            fits = fits if only is None else sa.and_(fits, job.c.hash == only)
            ready = sa.select(job).where(job.c.state == QUEUED, inside, fits).order_by(job.c.id).limit(1)
            late = sa.select(job).where(job.c.state == RUNNING, job.c.lease_until <= self.now, inside, fits).limit(1)
            row = connection.execute(ready).first() or connection.execute(late).first()
            if row is None:
                return None
            was_running = row.state == RUNNING
            values = {
                "state": RUNNING,
                "owner": owner,
                "lease_until": self.now + lease,
                "attempts": row.attempts + 1,
                "lost": row.lost + was_running,
                "progress": None,
                "error": None,
            }
            connection.execute(job.update().where(job.c.id == row.id).values(**values))
            values |= {"lease_until": None}
        return _job(row._asdict() | values)

    def beat(self, taken: Job, progress: Mapping[str, Any] | None = None, lease: float = LEASE) -> bool:
        """Hold a lease for longer, and say how far the job is.

        Returns:
            Whether the job is still the owner's; if not, another process has it.
        """
        values: dict[str, Any] = {"lease_until": self.now + lease}
        if progress is not None:
            values["progress"] = json.dumps(progress)
        with self._writing() as connection:
            return connection.execute(job.update().where(_held(taken)).values(**values)).rowcount == 1

    def finish(self, taken: Job, outcome: Outcome) -> bool:
        """Write a result and its job's end, in one transaction.

        A result is kept although its lease ran out, unless another process was first: both computed the same.

        Returns:
            Whether this result is the one that was kept.
        """
        with self._writing() as connection:
            return self._finish(connection, taken, outcome)

    def fail(self, taken: Job, error: str) -> bool:
        """Write why a job could not be done; it is not tried again by itself.

        Returns:
            Whether the job was still the owner's.
        """
        values = {"state": FAILED, "owner": None, "lease_until": None, "progress": None, "error": error}
        with self._writing() as connection:
            return connection.execute(job.update().where(_held(taken)).values(**values)).rowcount == 1

    def release(self, owner: str, died: bool = False, most: int | None = None) -> int:
        """Give back what a process has that is gone: its jobs are queued again.

        Args:
            owner: the process.
            died: whether it was killed, and not asked to end; that is counted.
            most: how often the process of a job may die before the job counts as failed; `None` for any number.

        Returns:
            How many jobs it had.
        """
        mine = sa.and_(job.c.owner == owner, job.c.state == RUNNING)
        freed = {"owner": None, "lease_until": None, "progress": None}
        with self._writing() as connection:
            rows = connection.execute(sa.select(job.c.id, job.c.lost).where(mine)).all()
            for each in rows:
                values: dict[str, Any] = {"state": QUEUED, "lost": each.lost + died}
                if died and most is not None and each.lost + 1 > most:
                    values = values | {
                        "state": FAILED,
                        "error": f"its process died {each.lost + 1} times; it may need more memory than there is",
                    }
                connection.execute(job.update().where(job.c.id == each.id).values(**freed, **values))
        return len(rows)

    def release_dead(self) -> int:
        """Give back what processes of this machine have that are not there any more; how many jobs that were."""
        with self.reading() as connection:
            owners = connection.execute(sa.select(job.c.owner).where(job.c.state == RUNNING).distinct()).scalars().all()
        return sum(self.release(each, died=False) for each in owners if each and is_dead(each))

    def retry(self, of: Run, only: Collection[str] | None = None) -> int:
        """Queue the failed jobs of a run again, all of them or those of some hashes; how many."""
        failed = sa.and_(job.c.state == FAILED, job.c.id.in_(_ids(of)))
        failed = failed if only is None else sa.and_(failed, job.c.hash.in_(only))
        with self._writing() as connection:
            return int(connection.execute(job.update().where(failed).values(state=QUEUED, lost=0)).rowcount)

    def refuse_larger(self, of: Run, memory: int) -> int:
        """Fail the queued jobs of a run that would not fit into memory even alone; how many."""
        large = sa.and_(job.c.state == QUEUED, job.c.bytes > memory, job.c.id.in_(_ids(of)))
        message = (
            sa.literal("it was not begun: it is predicted to take ")
            + sa.cast(sa.cast(job.c.bytes / sa.literal(1e6), sa.BigInteger), sa.String)
            + f" MB, and {memory / 1e6:.0f} MB are free; run it on a larger machine, or with a smaller batch"
        )
        with self._writing() as connection:
            found = connection.execute(job.update().where(large).values(state=FAILED, error=message))
            return int(found.rowcount)

    # -- looking -------------------------------------------------------------------------------------------------------

    def standing(self, of: Run) -> Standing:
        """How far a run is."""
        return self.standings([of.id])[of.id]

    def standings(self, runs: Sequence[int]) -> dict[int, Standing]:
        """How far each of some runs is, by their numbers."""
        linked = run_job.join(job, run_job.c.job_id == job.c.id).outerjoin(result, result.c.job_id == job.c.id)
        of_runs = run_job.c.run_id.in_(runs)
        counted = sa.select(run_job.c.run_id, job.c.state, sa.func.count(), sa.func.sum(result.c.seconds))
        counted = counted.select_from(linked).where(of_runs).group_by(run_job.c.run_id, job.c.state)
        gone = sa.and_(of_runs, job.c.state == RUNNING, job.c.lease_until <= self.now)
        overdue = sa.select(run_job.c.run_id, sa.func.count()).join(job, run_job.c.job_id == job.c.id).where(gone)
        counts = {each: dict.fromkeys(STATES, 0) for each in runs}
        seconds = dict.fromkeys(runs, 0.0)
        with self.reading() as connection:
            for number, state, count, total in connection.execute(counted):
                counts[number][state] = count
                seconds[number] += float(total or 0.0)
            late = {row[0]: int(row[1]) for row in connection.execute(overdue.group_by(run_job.c.run_id))}
        means = {each: seconds[each] / counts[each][DONE] if counts[each][DONE] else None for each in runs}
        return {each: Standing(counts[each], late.get(each, 0), means[each]) for each in runs}

    def jobs(self, of: Run, state: str | None = None) -> tuple[Job, ...]:
        """The jobs of a run in the order of its plan; all of them, or those in one state."""
        chosen = sa.select(job).join(run_job, run_job.c.job_id == job.c.id).where(run_job.c.run_id == of.id)
        if state is not None:
            chosen = chosen.where(job.c.state == state)
        with self.reading() as connection:
            return tuple(
                _job(row._asdict()) for row in connection.execute(chosen.order_by(run_job.c.position, job.c.id))
            )

    def job(self, hash: str) -> Job:
        """The job of a scenario's hash, or of the beginning of one.

        Raises:
            InputError: there is none, or more than one.
        """
        with self.reading() as connection:
            rows = connection.execute(sa.select(job).where(job.c.hash >= hash, job.c.hash < hash + "g").limit(2)).all()
        if len(rows) != 1:
            raise InputError(f"{'no job' if not rows else 'more than one job'} of the ledger begins with {hash!r}")
        return _job(rows[0]._asdict())

    def ended(self, hashes: Collection[str]) -> tuple[str, ...]:
        """Which of these hashes are those of jobs that are done or failed."""
        chosen = sa.select(job.c.hash).where(job.c.hash.in_(hashes), job.c.state.in_((DONE, FAILED)))
        with self.reading() as connection:
            return tuple(connection.execute(chosen).scalars())

    def result(self, of: Job) -> dict[str, Any] | None:
        """The row of a job's result; `None` where there is none."""
        with self.reading() as connection:
            text = connection.execute(sa.select(result.c.content).where(result.c.job_id == of.id)).scalar_one_or_none()
        return None if text is None else json.loads(text)

    def rows(self, of: Run, only: Sequence[sa.ColumnElement[bool]] = ()) -> Iterator[tuple[Job, dict[str, Any] | None]]:
        """Every job of a run in the order of its plan, with the row of its result where there is one.

        Args:
            of: the run.
            only: conditions on columns of `job` and `result` that leave some out.
        """
        joined = run_job.join(job, run_job.c.job_id == job.c.id).outerjoin(result, result.c.job_id == job.c.id)
        chosen = sa.select(job, result.c.content).select_from(joined).where(run_job.c.run_id == of.id, *only)
        with self.reading() as connection:
            for row in connection.execute(chosen.order_by(run_job.c.position, job.c.id)):
                values = row._asdict()
                content = values.pop("content")
                yield _job(values), None if content is None else json.loads(content)

    def check(self) -> str | None:
        """What the database finds wrong with itself; `None` for nothing. PostgreSQL looks after that by itself."""
        if not self.is_sqlite:
            return None
        with self.reading() as connection:
            found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        return None if found == ["ok"] else "; ".join(map(str, found))

    # -- underneath ----------------------------------------------------------------------------------------------------

    @property
    def now(self) -> sa.ColumnElement[float]:
        """Seconds since 1970 by the database's clock."""
        if self.is_sqlite:
            return sa.literal_column("((julianday('now') - 2440587.5) * 86400.0)", sa.Double)
        return sa.literal_column("extract(epoch from clock_timestamp())::double precision", sa.Double)

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        """One transaction that writes, alone with the database."""
        with _told(self.url), self.engine.begin() as connection:
            if not self.is_sqlite:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_LOCK})")
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One transaction that only reads."""
        with _told(self.url), self.engine.connect().execution_options(reads=True) as connection:
            yield connection

    def _finish(self, connection: Connection, taken: Job, outcome: Outcome) -> bool:
        ended = {"state": DONE, "owner": None, "lease_until": None, "progress": None, "error": None}
        first = job.update().where(job.c.id == taken.id, job.c.state != DONE).values(**ended, finished=self.now)
        if connection.execute(first).rowcount != 1:
            return False
        values = {name: getattr(outcome, name) for name in ("verdict", "psnr", "margin", "seconds")}
        content = json.dumps(outcome.content, allow_nan=False)
        connection.execute(result.insert().values(job_id=taken.id, content=content, **values))
        return True

    def _write_jobs(self, into: Run, jobs: Sequence[NewJob], first: int) -> None:
        with self._writing() as connection:
            self._insert_jobs(connection, into, jobs, first)

    def _insert_jobs(self, connection: Connection, into: Run, jobs: Sequence[NewJob], first: int) -> None:
        insert = sqlite.insert if self.is_sqlite else postgresql.insert
        fresh = {"state": QUEUED, "attempts": 0, "lost": 0}
        if not jobs:
            return
        connection.execute(insert(job).on_conflict_do_nothing(), [vars(each) | fresh for each in jobs])
        hashes = [each.hash for each in jobs]
        there = connection.execute(sa.select(job.c.hash, job.c.id).where(job.c.hash.in_(hashes))).all()
        ids = {row.hash: row.id for row in there}
        links = [
            {"run_id": into.id, "job_id": ids[each.hash], "position": first + number}
            for number, each in enumerate(jobs)
        ]
        connection.execute(insert(run_job).on_conflict_do_nothing(), links)

    def _migrate(self) -> None:
        """Bring the tables to this version's; several processes may open a ledger at once."""
        with self.reading() as connection:
            there = sa.inspect(connection).get_table_names()
            found = self._version(connection) if "alembic_version" in there else None
        if found == HEAD:
            return
        if found is not None and found > HEAD:
            raise InputError(
                f"the ledger {shown_url(self.url)} was written by a newer version of inversefed (schema {found}; "
                f"this version knows {HEAD}); install that"
            )
        if found is None and {"job", "run"} & set(there):
            raise InputError(f"{shown_url(self.url)} holds tables of another program; name another database")
        from alembic import command
        from alembic.config import Config

        with self._writing() as connection:
            if self._version(connection) != HEAD:  # another process may have been first
                config = Config()
                config.set_main_option("script_location", "inversefed.experiments:migrations")
                config.attributes["connection"] = connection
                command.upgrade(config, "head")

    def _version(self, connection: Connection) -> str | None:
        if not sa.inspect(connection).has_table("alembic_version"):
            return None
        found: str | None = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one_or_none()
        return found


_LOCK = 0x1F3D
"""PostgreSQL's advisory lock under which a ledger is written."""


def shown_url(url: str) -> str:
    """A URL as a message may show it, without its password."""
    if "://" not in url:
        return url
    try:
        return sa.make_url(url).render_as_string(hide_password=True)
    except sa.exc.ArgumentError:
        return repr(url)


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Say what the database says as an error of ours, with what to do."""
    try:
        yield
    except (sa.exc.ArgumentError, sa.exc.NoSuchModuleError) as error:
        raise ConfigError(
            f"{shown_url(url)} is no database; write sqlite:///FILE, or postgresql+psycopg://USER@HOST/DATABASE"
        ) from error
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{shown_url(url)} needs {error.name}, which is not installed: pip install 'inversefed[postgres]'"
        ) from error
    except (sa.exc.DBAPIError, sqlite3.Error) as error:
        _refuse(url, error)


def _refuse(url: str, error: Exception) -> NoReturn:
    cause = error.orig if isinstance(error, sa.exc.DBAPIError) and error.orig is not None else error
    said = str(cause).strip().splitlines()[0]
    cures: tuple[tuple[str, str], ...] = (
        ("full", "free some space; what was finished is kept, and `inversefed resume` goes on from there"),
        ("disk I/O", "look at the disk; what was finished is kept, and `inversefed resume` goes on from there"),
        ("readonly", "it may be another user's: name one that you may write to, by --ledger"),
        ("locked", "another process writes to it for long; try again"),
        ("not a database", "the file is not a ledger; name another one, by --ledger"),
        ("malformed", "the file is damaged; restore it from a copy"),
        ("unable to open", "name a file in a folder that is there and that you may write to, by --ledger"),
    )
    cure = next((text for word, text in cures if word in said), "see --ledger")
    raise StorageError(f"the ledger {shown_url(url)} cannot be used: {said}; {cure}") from error


def _engine(url: str, is_sqlite: bool) -> Engine:
    if not is_sqlite:
        return sa.create_engine(url, pool_pre_ping=True)
    engine = sa.create_engine(url, connect_args={"timeout": _BUSY})

    @sa.event.listens_for(engine, "connect")
    def _connected(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # transactions are begun below, not where the driver thinks fit
        for pragma in (
            f"journal_mode={'WAL' if _wal_is_safe(sqlite3.sqlite_version_info) else 'TRUNCATE'}",
            "synchronous=FULL",
            "foreign_keys=ON",
            "secure_delete=ON",
        ):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def _begun(connection: Connection) -> None:
        reads = connection.get_execution_options().get("reads", False)
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _wal_is_safe(version: tuple[int, int, int]) -> bool:
    """Whether SQLite's write-ahead log keeps every commit of several connections (fixed in 3.51.3).

    >>> _wal_is_safe((3, 40, 1)), _wal_is_safe((3, 50, 7)), _wal_is_safe((3, 52, 1))
    (False, True, True)
    """
    if version[:2] in ((3, 44), (3, 50)):
        return version >= {44: (3, 44, 6), 50: (3, 50, 7)}[version[1]]
    return version >= (3, 51, 3)


def _private_file(file: Path) -> None:
    """Make the file of a database, and its folder, for their owner only, where they are not there."""
    try:
        make_private(file.parent)
        os.close(os.open(file, os.O_RDWR | os.O_CREAT, 0o600))
    except OSError as error:
        raise StorageError(f"the ledger {file} cannot be opened: {error.strerror or error}; see --ledger") from error


def is_dead(owner: str) -> bool:
    """Whether the process of that name ran on this machine and does not run any more."""
    host, _, rest = owner.partition(":")
    number = rest.partition(":")[0]
    if host != socket.gethostname() or not number.isdecimal():
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except OSError:
        return False
    return False


def _held(taken: Job) -> sa.ColumnElement[bool]:
    return sa.and_(job.c.id == taken.id, job.c.state == RUNNING, job.c.owner == taken.owner)


def _ids(of: Run) -> sa.Select[tuple[int]]:
    return sa.select(run_job.c.job_id).where(run_job.c.run_id == of.id)


_FIELDS = tuple(Job.__dataclass_fields__)


def _job(values: Mapping[str, Any]) -> Job:
    return Job(**{name: values[name] for name in _FIELDS})
