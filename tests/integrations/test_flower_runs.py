"""The examples as `flwr run` runs them: simulated, and with a SuperLink and SuperNodes of their own on loopback."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from inversefed.experiments.ledger import Ledger, Run, Standing

pytest.importorskip("flwr", reason="Flower is not installed; `make test-flower` runs this")
if shutil.which("flower-superlink") is None:
    pytest.skip("Flower's commands are not in PATH; `make test-flower` runs this", allow_module_level=True)

ROOT = Path(__file__).parents[2]
PATIENCE = 280
"""Seconds to wait for a process, on however busy a machine."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Flower's own folder apart from the user's, and nothing sent to anybody."""
    paths = [str(ROOT / "src"), *(each for each in sys.path if each)]
    return {
        **os.environ, "PYTHONPATH": os.pathsep.join(paths), "FLWR_HOME": str(tmp_path / "flwr"),
        "FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1", "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def begun(command: list[str], folder: Path, environment: dict[str, str], log: str) -> Iterator[Path]:
    """A process with all that it begins, ended at the end."""
    said = folder / log
    with said.open("wb") as out:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        yield said
    finally:
        for each in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(process.pid, each)
                process.wait(timeout=20)
            except (ProcessLookupError, subprocess.TimeoutExpired):
                continue
        process.wait()


@contextmanager
def superlink(folder: Path, environment: dict[str, str], *options: str) -> Iterator[int]:
    port = free_port()
    command = ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation",
               "--host", "127.0.0.1", "--port", str(port), *options]  # fmt: skip
    home = Path(environment["FLWR_HOME"])
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
    )
    with begun(command, folder, environment, "superlink.log") as said:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                    break
            except (OSError, urllib.error.URLError):
                time.sleep(0.5)
        else:
            raise AssertionError(said.read_text())
        yield port


def flwr_run(app: Path, environment: dict[str, str], *options: str) -> str:
    done = subprocess.run(
        ["flwr", "run", str(app), "--stream", *options],
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def audited(folder: Path, count: int) -> tuple[Ledger, Run, Standing]:
    """The ledger, once the process that was begun by the server has audited all of it."""
    ledger, end = Ledger(str(folder / "runs" / "ledger.db")), time.monotonic() + PATIENCE
    while time.monotonic() < end:
        runs = ledger.runs()
        if runs and (standing := ledger.standing(runs[0])).total == count and not standing.open:
            return ledger, runs[0], standing
        time.sleep(0.5)
    raise AssertionError([each.read_text() for each in folder.glob("runs/updates/*/watch.log")])


QUICK = 'nice=0 attack="geiping(max_iterations=20)" nulls=0'
"""An audit that shows that all of it is carried out, and no more."""


def test_the_example_is_simulated_and_each_update_is_in_the_ledger(tmp_path: Path, environment: dict[str, str]) -> None:
    with superlink(tmp_path, environment, "--simulation", "--isolation", "subprocess"):
        said = flwr_run(ROOT / "examples" / "flower_audit", environment, "--run-config", QUICK)
        assert "[ROUND 2/2]" in said and "Received 2 results and 0 failures" in said
        ledger, run, standing = audited(tmp_path, 4)
    assert standing.counts["done"] == 4, ledger.jobs(run, "failed")
    names = [job.images for job in ledger.jobs(run)]
    assert len(set(names)) == 4 and {name.split(",")[0] for name in names} == {"round 1", "round 2"}
    pages = list(tmp_path.glob("runs/jobs/*/*/report.html"))
    assert len(pages) == 4


def test_the_example_runs_on_a_deployed_superlink(tmp_path: Path, environment: dict[str, str]) -> None:
    with superlink(tmp_path, environment, "--isolation", "subprocess") as port:

        def node(number: int) -> list[str]:
            config = f"partition-id={number} num-partitions=2"
            return ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{port}", "--node-config", config,
                    "--host", "127.0.0.1", "--port", str(free_port())]  # fmt: skip

        with begun(node(0), tmp_path, environment, "node0.log"), begun(node(1), tmp_path, environment, "node1.log"):
            said = flwr_run(
                ROOT / "examples" / "flower_audit", environment, "--run-config", f"{QUICK} num-server-rounds=1"
            )
            assert "Received 2 results and 0 failures" in said
            _, _, standing = audited(tmp_path, 2)
    assert standing.counts["done"] == 2


def test_clients_with_local_differential_privacy_audit_themselves(tmp_path: Path, environment: dict[str, str]) -> None:
    with superlink(tmp_path, environment, "--simulation", "--isolation", "subprocess"):
        said = flwr_run(ROOT / "examples" / "flower_dp", environment, "--run-config", f"{QUICK} num-server-rounds=1")
        ledger, run, standing = audited(tmp_path, 2)
    assert standing.counts["done"] == 2, ledger.jobs(run, "failed")
    assert "round 1: passed" in said and "withheld" not in said
    for page in tmp_path.glob("runs/jobs/*/*/report.md"):
        text = page.read_text()
        assert "LocalDpMod: each client clips its update" in text and "Noise of standard deviation" in text
