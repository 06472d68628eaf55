"""Jobs as tasks of Ray: the table of the local executor, with workers killed and machines removed on the way.

All of it is slow: Ray takes about 5 s to begin, and each worker imports torch anew, on every machine of a cluster whose
machines are processes here.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from inversefed.errors import ConfigError
from inversefed.experiments import ray_cluster, ray_start
from inversefed.experiments.ledger import Ledger, Standing
from inversefed.experiments.local import LocalProcesses
from inversefed.experiments.places import Places
from inversefed.experiments.plan_file import parse_plan
from inversefed.experiments.planning import add_run, write_jobs
from inversefed.experiments.ray_cluster import RayCluster
from inversefed.experiments.table import row_of

pytestmark = [
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (the extra `ray`)"),
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

PLAN = """
name: demo
targets: {{limit: 2}}
networks: [LeNetZhu]
attacks: [{{geiping: {{max_iterations: {iterations}, restarts: 2}}}}]
seeds: [0, 1]
nulls: 0
"""
NODE = {"node_ip_address": "127.0.0.1", "object_store_memory": 100_000_000}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores, this program connected to it, and one machine of one core."""
    ray = ray_start._loopback_ray()
    from ray.cluster_utils import Cluster

    found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **NODE})
    found.first = found.add_node(num_cpus=1, **NODE)
    ray.init(address=found.address, logging_level="error", log_to_driver=False)
    yield found
    ray.shutdown()
    found.shutdown()


def swept(
    folder: Path, execute: Any, iterations: int = 20, on_look: Callable[[Standing], object] = lambda _: None
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """The rows of a sweep, and what was recovered in each to the last bit."""
    ledger = Ledger(str(folder / "ledger.db"))
    run = add_run(ledger, parse_plan(PLAN.format(iterations=iterations)))
    write_jobs(ledger, run)
    execute(ledger, run, on_look)
    rows = [dict(row_of(job, content)) for job, content in ledger.rows(run)]
    places = Places(ledger.folder)
    ledger.close()
    assert not list((folder / "live").glob("*/*")) and [row["state"] for row in rows] == ["done"] * 4
    for row in rows:
        kept = places.job(row["scenario"])
        assert kept.stat().st_mode & 0o777 == 0o700 and (kept / "report.html").stat().st_mode & 0o777 == 0o600
    hashes = [row["scenario"] for row in rows]
    return rows, {hash: (places.job(hash) / "reconstruction.safetensors").read_bytes() for hash in hashes}


def same(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in ("seconds", "attempts")} for row in rows]


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Any]:
    """What the local executor comes to."""
    found: dict[int, Any] = {}

    def get(iterations: int) -> Any:
        if iterations not in found:
            found[iterations] = swept(tmp_path_factory.mktemp("local"), LocalProcesses(workers=1), iterations)
        return found[iterations]

    return get


def tasks() -> list[int]:
    """The processes of this machine that run a job for this program."""
    parents, running = {}, []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                running += [int(entry.name)] if (entry / "cmdline").read_bytes().startswith(b"ray::_task") else []
            except (OSError, IndexError):
                continue

    def ours(pid: int) -> bool:
        return pid == os.getpid() or (pid in parents and ours(parents[pid]))

    return [pid for pid in running if ours(pid)]


def test_the_table_is_that_of_local_processes(cluster: Any, alone: Callable[[int], Any], tmp_path: Path) -> None:
    rows, found = swept(tmp_path, RayCluster())
    expected, tensors = alone(20)
    assert same(rows) == same(expected) and found == tensors
    assert {row["attempts"] for row in rows} == {1}


def test_points_of_a_frontier_are_those_of_local_processes(cluster: Any, tmp_path: Path) -> None:
    plan = parse_plan(
        "{name: frontier, points: [none, TopK(0.1)], attacks: [{geiping: {max_iterations: 3}}], "
        "utility: {data: [photos], rounds: 2}}"
    )
    found = []
    for name, execute in (("local", LocalProcesses(workers=1)), ("ray", RayCluster())):
        ledger = Ledger(str(tmp_path / name / "ledger.db"))
        run = add_run(ledger, plan)
        write_jobs(ledger, run)
        execute(ledger, run)
        found.append(same([dict(row_of(job, content)) for job, content in ledger.rows(run)]))
        ledger.close()
    assert found[0] == found[1] and [row["state"] for row in found[0]] == ["done"] * 2
    assert all(row["accuracy"] is not None and row["leakage"] is not None for row in found[0])


def test_a_killed_worker_costs_an_attempt_and_no_result(
    cluster: Any, alone: Callable[[int], Any], tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_one(standing: Standing) -> None:
        if not killed and (found := tasks()):
            killed.append(found[0])
            os.kill(found[0], signal.SIGKILL)

    rows, found = swept(tmp_path, RayCluster(), 100, kill_one)
    expected, tensors = alone(100)
    assert same(rows) == same(expected) and found == tensors
    assert sorted(row["attempts"] for row in rows) == [1, 1, 1, 2]


def test_a_worker_that_is_killed_again_and_again_fails_its_job_alone(cluster: Any, tmp_path: Path) -> None:
    killed: list[int] = []

    def kill_two(standing: Standing) -> None:
        if len(killed) < 2 and (found := [pid for pid in tasks() if pid not in killed]):
            killed.append(found[0])
            os.kill(found[0], signal.SIGKILL)

    ledger = Ledger(str(tmp_path / "ledger.db"))
    run = add_run(ledger, parse_plan(PLAN.format(iterations=100)))
    write_jobs(ledger, run)
    standing = RayCluster(retries=1)(ledger, run, kill_two)
    (failed,) = ledger.jobs(run, "failed")
    ledger.close()
    assert standing.counts["done"] == 3 and failed.error is not None and "died 2 times" in failed.error


def test_a_removed_machine_costs_an_attempt_and_no_result(
    cluster: Any, alone: Callable[[int], Any], tmp_path: Path
) -> None:
    removed: list[Any] = []

    def remove(standing: Standing) -> None:
        if not removed and tasks():
            removed.append(cluster.first)
            cluster.second = cluster.add_node(num_cpus=1, **NODE)
            cluster.remove_node(cluster.first, allow_graceful=False)

    rows, found = swept(tmp_path, RayCluster(), 400, remove)  # long enough to be cut off in the middle
    expected, tensors = alone(400)
    assert removed and same(rows) == same(expected) and found == tensors
    assert sorted(row["attempts"] for row in rows) == [1, 1, 1, 2]


def test_jobs_that_no_machine_can_take_are_refused(cluster: Any, tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"))
    run = add_run(ledger, parse_plan(PLAN.format(iterations=1)))
    write_jobs(ledger, run)
    with pytest.raises(ConfigError, match="no machine of the cluster has 64 cores"):
        RayCluster(threads=64)(ledger, run)
    with pytest.raises(ConfigError, match=r"0\.5 of a GPU"):
        RayCluster(gpus=0.5)(ledger, run)
    assert ledger.standing(run).counts["queued"] == 4
    ledger.close()


JOIN = """
import sys
from inversefed.experiments import ray_start

with ray_start.joined(sys.argv[1]) as ray:
    print(ray.get(ray.remote(num_cpus=0)(lambda: "let in").remote()))
"""


def test_a_cluster_lets_in_only_who_has_its_token(cluster: Any) -> None:
    command = [sys.executable, "-c", JOIN, cluster.address]
    for environment in ({"RAY_AUTH_TOKEN": "0" * 64}, {"RAY_AUTH_MODE": "disabled"}):
        refused = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
        assert refused.returncode and "let in" not in refused.stdout
        assert "there is no cluster at" in refused.stderr
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "let in\n"


def listening(session: int) -> dict[str, str]:
    """The addresses on which processes of a session listen for TCP, in hexadecimal, with who does."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                sockets[fields[9]] = fields[1].partition(":")[0]
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and _descends(int(entry.name), session):
                name = (entry / "comm").read_text().strip()
                for link in (entry / "fd").iterdir():
                    inode = str(link.readlink()).removeprefix("socket:[").removesuffix("]")
                    found |= {f"{name} {inode}": sockets[inode]} if inode in sockets else {}
        except OSError:
            continue
    return found


def _descends(pid: int, of: int) -> bool:
    while pid > 1 and pid != of:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid == of


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_a_ray_of_this_machine_listens_on_loopback_and_ends_when_it_is_asked(
    tmp_path: Path, asked: signal.Signals
) -> None:
    (tmp_path / "plan.yaml").write_text(PLAN.format(iterations=100_000))
    command = [sys.executable, "-m", "inversefed", "sweep", "plan.yaml", "--executor", "ray", "--workers", "1"]
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with subprocess.Popen(command, cwd=tmp_path, env=clean, stderr=subprocess.PIPE, text=True) as sweep:
        deadline = time.monotonic() + 600
        progress: list[dict[str, Any]] = []
        while not progress and sweep.poll() is None and time.monotonic() < deadline:
            time.sleep(1)
            progress = _progress(tmp_path / "runs" / "ledger.db")
        addresses = listening(sweep.pid)
        folders = list(Path("/tmp").glob(f"ifray{sweep.pid}.*"))
        sweep.send_signal(asked)
        _, error = sweep.communicate(timeout=120)
    if asked is signal.SIGINT:
        assert sweep.returncode == 130 and "inversefed resume demo" in error
    assert sweep.returncode in (130, 143, 1), "1 where Ray itself is asked while it waits"
    assert len(folders) == 1 and not folders[0].exists()
    assert progress and progress[0]["iterations"] == 200_000
    loopback = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
    assert len(addresses) >= 4 and set(addresses.values()) <= loopback, addresses
    ledger = Ledger(str(tmp_path / "runs" / "ledger.db"))
    assert ledger.standing(ledger.run("demo")).counts["running"] == 0, "what was running is given back"
    ledger.close()


def _progress(file: Path) -> list[dict[str, Any]]:
    if not file.exists():
        return []
    ledger = Ledger(str(file))
    said = [each.progress for each in (ledger.jobs(ledger.run("demo")) if ledger.runs() else ())]
    ledger.close()
    return [json.loads(each) for each in said if each]


def test_a_ray_that_was_imported_before_is_not_begun_unsafely(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ray_start._loopback_ray.cache_clear()
    with pytest.raises(ConfigError, match="imported before"), ray_start.begun(1, 0.0):
        pass
    assert ray_cluster.RayCluster().count == 1, "the cluster that this program is connected to"
