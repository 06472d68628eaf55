"""The ledger: each job once, whatever happens to who has it, on SQLite and on PostgreSQL."""

import multiprocessing
import os
import shutil
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from inversefed.errors import ConfigError, InputError, StorageError
from inversefed.experiments import schema
from inversefed.experiments.browse import Browse, Filters, Sort
from inversefed.experiments.ledger import Ledger, NewJob, Outcome, Run, new_owner
from inversefed.experiments.table import row_of, summary
from tests.experiments.filled import fill

POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"))
DONE = Outcome("exact", 100.0, 80.0, 0.5, {"verdict": "exact", "seconds": 0.5})


def job(number: int, size: int = 0) -> NewJob:
    return NewJob(f"{number:064x}", "{}", "net", "FedSGD", "none", "best", f"photo {number}", 1, 0, size)


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A PostgreSQL of its own, reachable from this machine only."""
    if not POSTGRES:
        pytest.skip("no PostgreSQL here; on Debian: apt-get install postgresql")
    user = "postgres" if os.getuid() == 0 else ""  # it refuses to run as root
    folder = Path(f"/tmp/inversefed-postgres-{os.getpid()}")
    folder.mkdir(mode=0o700)
    if user:
        shutil.chown(folder, user)

    def run(command: str) -> None:
        arguments = ["su", user, "-c", command] if user else ["sh", "-c", command]
        subprocess.run(arguments, check=True, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    tools, port = POSTGRES[-1].parent, 50000 + os.getpid() % 10000
    listen = f"-p {port} -c listen_addresses=127.0.0.1 -k {folder} -c fsync=off"
    try:
        run(f"{tools}/initdb -D {folder}/data -A trust -U tester -E UTF8")
        run(f"{tools}/pg_ctl -D {folder}/data -o '{listen}' -l {folder}/log -w start")
        yield f"postgresql+psycopg://tester@127.0.0.1:{port}/postgres"
    finally:
        run(f"{tools}/pg_ctl -D {folder}/data -m immediate stop || true")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    """An empty ledger."""
    if request.param == "sqlite":
        found = Ledger(str(tmp_path / "ledger.db"))
    else:
        pytest.importorskip("psycopg", reason="psycopg is not installed")
        url = request.getfixturevalue("postgres")
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP SCHEMA public CASCADE")
            connection.exec_driver_sql("CREATE SCHEMA public")
        engine.dispose()
        found = Ledger(url, tmp_path)
    yield found
    found.close()


def planned(ledger: Ledger, count: int, name: str = "run", size: Callable[[int], int] = lambda _: 0) -> Run:
    run = ledger.add_run(name, "{}")
    ledger.plan_jobs(run, (job(number, size(number)) for number in range(count)))
    return ledger.run(name)


def take_all(url: str, folder: Path, run: Run, queue: "multiprocessing.Queue[list[str]]") -> None:
    ledger, owner, taken = Ledger(url, folder), new_owner(), []
    while (found := ledger.claim(run, owner)) is not None:
        taken.append(found.hash)
        assert ledger.finish(found, DONE)
    queue.put(taken)
    ledger.close()


@pytest.mark.parametrize("count", [160, pytest.param(1000, marks=pytest.mark.slow)])
def test_eight_processes_take_every_job_once(ledger: Ledger, tmp_path: Path, count: int) -> None:
    run, context = planned(ledger, count), multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # imported once, not by each of them
    queue = context.Queue()
    crew = [context.Process(target=take_all, args=(ledger.url, tmp_path, run, queue)) for _ in range(8)]
    for each in crew:
        each.start()
    taken = [queue.get(timeout=240) for _ in crew]
    for each in crew:
        each.join()
    assert Counter(hash for each in taken for hash in each) == Counter(job(number).hash for number in range(count))
    assert ledger.standing(run).counts == {"queued": 0, "running": 0, "done": count, "failed": 0}
    assert [content for _, content in ledger.rows(run)] == [DONE.content] * count
    assert {each.attempts for each in ledger.jobs(run)} == {1}


def test_a_lease_that_ran_out_is_given_to_another(ledger: Ledger) -> None:
    run, first, second = planned(ledger, 1), new_owner(), new_owner()
    old = ledger.claim(run, first, lease=0.1)
    assert old is not None and ledger.claim(run, second) is None
    time.sleep(0.2)
    assert ledger.standing(run).ready == 1
    new = ledger.claim(run, second)
    assert new is not None and (new.attempts, new.lost) == (2, 1)
    assert not ledger.beat(old) and ledger.beat(new, {"iteration": 3})
    assert ledger.job(new.hash).progress == '{"iteration": 3}'
    assert not ledger.fail(old, "late") and ledger.job(new.hash).state == "running"
    assert ledger.finish(old, DONE), "its result is as good as the other's, and came first"
    assert not ledger.finish(new, DONE), "a job has one result"
    assert ledger.result(new) == DONE.content


def test_a_job_whose_process_dies_again_and_again_fails(ledger: Ledger) -> None:
    run = planned(ledger, 2)
    for number in range(3):
        owner = new_owner()
        taken = ledger.claim(run, owner)
        assert taken is not None and taken.hash == job(0).hash
        assert ledger.release(owner, died=True, most=2) == 1
        assert ledger.job(taken.hash).state == ("queued" if number < 2 else "failed")
    assert "died 3 times" in str(ledger.job(job(0).hash).error)
    assert ledger.retry(run) == 1 and ledger.standing(run).counts["queued"] == 2
    owner = new_owner()
    ledger.claim(run, owner)
    assert ledger.release(owner) == 1 and ledger.job(job(0).hash).lost == 0, "who was asked to end did not die"


def test_what_a_dead_process_of_this_machine_has_is_given_back_at_once(ledger: Ledger) -> None:
    run = planned(ledger, 2)
    ended = subprocess.Popen(["true"])
    ended.wait()
    host, _, token = new_owner().split(":")
    ledger.claim(run, f"{host}:{ended.pid}:{token}")
    ledger.claim(run, new_owner())
    assert ledger.standing(run).ready == 0
    assert ledger.release_dead() == 1
    assert ledger.standing(run).counts == {"queued": 1, "running": 1, "done": 0, "failed": 0}


def test_jobs_that_run_fit_into_memory_together(ledger: Ledger) -> None:
    run = planned(ledger, 4, size=lambda number: [600, 600, 300, 2000][number])
    assert ledger.refuse_larger(run, 1000) == 1
    assert "2000" not in str(ledger.job(job(3).hash).error) and "it was not begun" in str(ledger.job(job(3).hash).error)
    first = ledger.claim(run, new_owner(), memory=1000)
    second = ledger.claim(run, new_owner(), memory=1000)
    assert first is not None and second is not None
    assert (first.bytes, second.bytes) == (600, 300), "the other of 600 waits"
    assert ledger.claim(run, new_owner(), memory=1000) is None
    ledger.finish(first, DONE)
    third = ledger.claim(run, new_owner(), memory=1000)
    assert third is not None and third.bytes == 600


def test_runs_share_jobs_and_go_with_what_is_theirs_alone(ledger: Ledger) -> None:
    first, second = planned(ledger, 5), planned(ledger, 3, "other")
    taken = [ledger.claim(first, new_owner()) for _ in range(4)]
    with pytest.raises(InputError, match="are running"):
        ledger.remove_run("run")
    assert all(each is not None and ledger.finish(each, DONE) for each in taken)
    assert ledger.standing(second).counts["done"] == 3
    assert set(ledger.remove_run("run")) == {job(3).hash, job(4).hash}
    assert [each.name for each in ledger.runs()] == ["other"] and ledger.standing(second).total == 3
    with pytest.raises(ConfigError, match="did you mean other"):
        ledger.run("othr")
    with pytest.raises(InputError, match="already"):
        ledger.add_run("other", "{}")


def test_planning_can_be_cut_short_and_taken_up(ledger: Ledger) -> None:
    run = ledger.add_run("run", "{}")

    def cut() -> Iterator[NewJob]:
        yield from (job(number) for number in range(450))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ledger.plan_jobs(run, cut())
    assert not ledger.run("run").planned and 0 < ledger.standing(run).total < 450
    ledger.plan_jobs(run, (job(number % 500) for number in range(700)))
    assert ledger.run("run").planned
    assert [each.hash for each in ledger.jobs(run)] == [job(number).hash for number in range(500)]


def test_the_tables_are_those_that_the_migrations_make(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), schema.metadata) == []
    folder = Path(schema.__file__).parent / "migrations"
    assert ScriptDirectory(str(folder)).get_current_head() == schema.HEAD


@pytest.mark.parametrize("version", sorted(path.stem for path in (Path(__file__).parent / "ledgers").glob("*.db")))
def test_a_ledger_of_every_released_schema_is_taken_up(version: str, tmp_path: Path) -> None:
    shutil.copy(Path(__file__).parent / "ledgers" / f"{version}.db", tmp_path / "ledger.db")
    ledger = Ledger(str(tmp_path / "ledger.db"))
    run = ledger.run("released")
    assert ledger.check() is None and [each.name for each in ledger.runs()] == ["second", "released"]
    assert [each.hash for each in ledger.jobs(run)] == [job(number).hash for number in range(4)]
    assert ledger.standing(run).counts == {"queued": 2, "running": 0, "done": 1, "failed": 1}
    rows = [content for _, content in ledger.rows(run)]
    assert rows[0] == {"verdict": "exact", "seconds": 0.5, "peak_signal_noise_ratio": 120.0} and rows[1:] == [None] * 3
    assert [(each.attempts, each.lost, each.error) for each in ledger.jobs(run)] == [
        (1, 0, None), (1, 0, "InputError: no"), (1, 1, None), (0, 0, None),
    ]  # fmt: skip
    taken = ledger.claim(run, new_owner())
    assert taken is not None and ledger.finish(taken, DONE)
    ledger.close()


def test_there_is_a_ledger_of_every_schema() -> None:
    released = {path.stem for path in (Path(__file__).parent / "ledgers").glob("*.db")}
    versions = (Path(schema.__file__).parent / "migrations" / "versions").glob("v*.py")
    assert released == {path.name[1:5] for path in versions}, "keep a file of each schema, and change none"


def test_a_newer_or_foreign_database_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "ledger.db"
    Ledger(str(file)).close()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    before = file.read_bytes()
    with pytest.raises(InputError, match="newer version"):
        Ledger(str(file))
    assert file.read_bytes() == before
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE job (x)")
    with pytest.raises(InputError, match="another program"):
        Ledger(str(other))
    (tmp_path / "text.db").write_text("not a database at all " * 50)
    with pytest.raises(StorageError, match="not a ledger"):
        Ledger(str(tmp_path / "text.db"))


def test_a_ledger_that_cannot_be_opened_is_named_without_its_password(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot be opened"):
        Ledger(str(tmp_path / "file" / "ledger.db"))
    with pytest.raises(ConfigError, match="sqlite"):
        Ledger("mysql://root@localhost/x")
    with pytest.raises(ConfigError, match="no database"):
        Ledger("://")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with pytest.raises(StorageError) as caught:
        Ledger("postgresql+psycopg://user:secret@127.0.0.1:1/x")
    assert "secret" not in str(caught.value)


def test_the_file_is_its_owners_and_sound(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "deep" / "ledger.db"))
    assert (tmp_path / "deep" / "ledger.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "deep").stat().st_mode & 0o777 == 0o700
    planned(ledger, 3)
    assert ledger.check() is None
    ledger.close()


def test_a_full_disk_is_said_and_nothing_is_lost(tmp_path: Path) -> None:
    """SQLite's own limit on pages stands for a full disk: it fails in the same way, in the middle of a write."""
    ledger = Ledger(str(tmp_path / "ledger.db"))
    run = planned(ledger, 20)

    @sa.event.listens_for(ledger.engine, "begin")
    def full(connection: sa.Connection) -> None:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

    taken = ledger.claim(run, new_owner())
    assert taken is not None
    large = Outcome("exact", 1.0, 1.0, 1.0, {"text": "x" * 500_000})
    with pytest.raises(StorageError, match="free some space"):
        ledger.finish(taken, large)
    sa.event.remove(ledger.engine, "begin", full)
    ledger.close()
    again = Ledger(str(tmp_path / "ledger.db"))
    assert again.check() is None and again.job(taken.hash).state == "running"
    assert again.finish(taken, large) and again.result(taken) == large.content
    again.close()


def test_looking_at_many_jobs_reads_few(tmp_path: Path) -> None:
    """What `status` and one row cost does not grow with the jobs: no statement walks through the table of results."""
    ledger = Ledger(str(tmp_path / "ledger.db"))
    run = planned(ledger, 50)
    statements: list[str] = []
    with ledger.engine.connect() as connection:
        for text in (
            f"SELECT * FROM job WHERE hash >= '{job(3).hash}' AND hash < '{job(3).hash}g'",
            "SELECT content FROM result WHERE job_id = 3",
            f"SELECT * FROM job WHERE state = 'queued' AND EXISTS (SELECT 1 FROM run_job WHERE run_id = {run.id} "
            "AND job_id = job.id) ORDER BY id LIMIT 1",
        ):
            statements += [row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {text}")]
    assert not [each for each in statements if each.startswith("SCAN")], statements
    ledger.close()


def test_pages_filters_and_sums_are_the_same_on_both(ledger: Ledger) -> None:
    run = fill(ledger, "few", 120, scenario=20)
    browse, rows = Browse(ledger), [row_of(job, content) for job, content in ledger.rows(run)]
    falling = browse.page(run, Filters(), Sort("psnr", falling=True), 0, 200)
    there = [each.psnr for each in falling if each.psnr is not None]
    assert len(falling) == 120 and there == sorted(there, reverse=True) and falling[-1].psnr is None
    for filters in (Filters(state="failed"), Filters(verdict="exact", network="MLP"), Filters(num_images=2)):
        expected = [row for row in rows if all(row.get(name) == value for name, value in filters.given().items())]
        assert [each.hash for each in browse.page(run, filters, Sort(), 0, 200)] == [
            row["scenario"] for row in expected
        ]
        assert browse.count(run, filters) == len(expected) == len(list(browse.rows(run, filters)))
    assert summary(browse.group_rows(run, Filters(), 0, 50)) == summary(rows)
    assert browse.group_count(run) == 40 and len(browse.group_rows(run, Filters(), 39, 50)) == 3
    assert {each.name: dict(each.values) for each in browse.facets(run)}["state"]["failed"] == 3
    (found,) = browse.runs()
    assert found[0] == run and found[1].counts == ledger.standing(run).counts and found[1].late == 0
    assert browse.runs_of(falling[0].hash) == (run,) and browse.run(run.id) == run and browse.run(99) is None
