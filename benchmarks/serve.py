"""How long the pages of a large ledger take, from the request to the last byte, over a socket of this machine.

python -m benchmarks.serve --jobs 10000
"""

import json
import secrets
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from benchmarks import record
from inversefed.experiments.ledger import Ledger, NewJob

__all__ = ["main", "seconds_of_pages"]

_PAGES = {
    "runs": "",
    "a run": "runs/1",
    "a run, filtered and sorted": "runs/1?network=ResNet20&verdict=recovered&sort=-psnr",
    "the last page": "runs/1?page=999999",
    "summary and plots": "runs/1/summary",
    "the table as CSV": "runs/1/table.csv",
}
_SETTINGS = tuple(
    product(("LeNetZhu", "ResNet20"), ("none", *(f"GaussianNoise({each})" for each in (0.01, 0.03, 0.1))), range(5))
)


def seconds_of_pages(folder: Path, jobs: int, repeats: int) -> dict[str, tuple[float, float]]:
    """The first and the median time of each page, seconds, in a ledger of so many jobs that are done."""
    ledger = _filled(folder, jobs)
    found = {}
    with _served(ledger) as (browser, base):
        for name, path in _PAGES.items():
            times = []
            for _ in range(repeats):
                began = time.perf_counter()
                with browser.open(base + path, timeout=120) as answer:
                    answer.read()
                times.append(time.perf_counter() - began)
            found[name] = times[0], statistics.median(times)
    ledger.close()
    return found


def _filled(folder: Path, jobs: int) -> Ledger:
    ledger = Ledger(str(folder / "ledger.db"))
    run, scenario = ledger.add_run("many", "{}"), json.dumps({"client": "FedSGD()", "attack": "x" * 2000})
    ledger.plan_jobs(run, (_job(number, scenario) for number in range(jobs)))
    content = json.dumps(
        {"peak_signal_noise_ratio": 20.0, "control_psnr": 15.0, "verdict": "recovered", "seconds": 1.0}
    )
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE job SET state = 'done', finished = 1")
        connection.exec_driver_sql(
            "INSERT INTO result (job_id, verdict, psnr, margin, seconds, content) "
            f"SELECT id, 'recovered', 20 + id % 7, 5 + id % 7, 1, '{content}' FROM job"
        )
    return ledger


def _job(number: int, scenario: str) -> NewJob:
    network, defenses, steps = _SETTINGS[number % len(_SETTINGS)]
    client, target = f"FedAvg(local_steps={steps + 1})", number // len(_SETTINGS)
    return NewJob(f"{number:064x}", scenario, network, client, defenses, "best()", f"photos {target}", 1, 0)


@contextmanager
def _served(ledger: Ledger) -> Iterator[tuple[urllib.request.OpenerDirector, str]]:
    """A browser that has the cookie, and the address."""
    import uvicorn

    from inversefed.cli.serve import config, listen
    from inversefed.experiments.serve.app import make_app

    token, listening = secrets.token_urlsafe(), listen("127.0.0.1", 0)
    server = uvicorn.Server(config(make_app(ledger, token)))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    base = f"http://127.0.0.1:{listening.getsockname()[1]}/"
    browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
    try:
        browser.open(f"{base}static/icon.svg?token={token}", timeout=60).close()
        yield browser, base
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@dataclass(frozen=True)
class Options:
    """How long the pages of a large ledger take."""

    jobs: int = 10_000
    """How many the ledger has."""
    repeats: int = 5
    """How often each page is asked for."""


def run(options: Options, _: str) -> int:
    """Print the figures."""
    with tempfile.TemporaryDirectory(prefix="serve.") as folder:
        for name, (first, median) in seconds_of_pages(Path(folder), options.jobs, options.repeats).items():
            print(f"{name}: {first * 1e3:.0f} ms first, {median * 1e3:.0f} ms in the median")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, measure, and return the exit status."""
    return record.command("serve", Options, run, arguments, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
