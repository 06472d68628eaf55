"""What a ledger costs beside the audits: its overhead for short jobs, and looking at many.

    python -m benchmarks.ledger --seconds 1 --jobs 20
    python -m benchmarks.ledger --done 100000

The overhead is the wall time of claim, work of the given length, and finish, over that length, less 1. Looking is
`status` and one row's result in a ledger of so many jobs that are done.
"""

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import record
from inversefed.experiments.ledger import Ledger, NewJob, Outcome, new_owner

__all__ = ["looking", "main", "overhead"]

_DONE = Outcome("exact", 100.0, 80.0, 1.0, {"verdict": "exact", "peak_signal_noise_ratio": 100.0, "seconds": 1.0})


def _job(number: int) -> NewJob:
    record = '{"client": "FedSGD()", "attack": "%s"}' % ("x" * 2000)
    return NewJob(f"{number:064x}", record, "LeNetZhu", "FedSGD", "none", "best()", f"photos {number}", 1, 0, 0)


def overhead(url: str, folder: Path, jobs: int, seconds: float) -> float:
    """Share of the time of jobs that take so many seconds each which is the ledger's, from 0."""
    ledger, owner = Ledger(url, folder), new_owner()
    run = ledger.add_run("overhead", "{}")
    ledger.plan_jobs(run, map(_job, range(jobs)))
    began = time.perf_counter()
    done = None
    while (taken := ledger.claim(run, owner, after=done)) is not None:
        time.sleep(seconds)
        done = taken, _DONE
    took = time.perf_counter() - began
    ledger.remove_run("overhead")
    ledger.close()
    return took / (jobs * seconds) - 1


def looking(url: str, folder: Path, done: int) -> tuple[float, float, float]:
    """Seconds of `status`, of one row's result, and of a claim, in a ledger of so many jobs that are done."""
    ledger, owner = Ledger(url, folder), new_owner()
    run = ledger.add_run("looking", "{}")
    ledger.plan_jobs(run, map(_job, range(done + 1)))
    _finish_all(ledger, done)
    times = []
    for look in (
        lambda: ledger.standing(run),
        lambda: ledger.result(ledger.job(_job(done // 2).hash)),
        lambda: ledger.claim(run, owner),
    ):
        began = time.perf_counter()
        assert look() is not None
        times.append(time.perf_counter() - began)
    ledger.remove_run("looking") if ledger.release(owner) else None
    ledger.close()
    return times[0], times[1], times[2]


def _finish_all(ledger: Ledger, done: int) -> None:
    """Have all but the last job done, without claiming each."""
    with ledger.engine.begin() as connection:
        connection.exec_driver_sql(f"UPDATE job SET state = 'done', finished = 1 WHERE id <= {done}")
        connection.exec_driver_sql(
            "INSERT INTO result (job_id, verdict, psnr, margin, seconds, content) "
            "SELECT id, 'exact', 100, 80, 1, '{\"verdict\": \"exact\"}' FROM job WHERE state = 'done'"
        )


@dataclass(frozen=True)
class Options:
    """What a ledger costs beside the audits."""

    jobs: int = 20
    """Jobs whose overhead is measured."""
    seconds: float = 1.0
    """How long each takes."""
    done: int = 0
    """Look at so many jobs that are done, instead."""
    url: str | None = None
    """The ledger; by default an SQLite file in a temporary folder."""


def run(options: Options, _: str) -> int:
    """Print the figures."""
    with tempfile.TemporaryDirectory(prefix="ledger.") as name:
        folder = Path(name)
        url = options.url or str(folder / "ledger.db")
        if options.done:
            status, row, claim = looking(url, folder, options.done)
            figures = f"status {status * 1e3:.0f} ms, a row {row * 1e3:.1f} ms, a claim {claim * 1e3:.1f} ms"
            print(f"{options.done} jobs done: {figures}")
        else:
            share = overhead(url, folder, options.jobs, options.seconds)
            print(f"{options.jobs} jobs of {options.seconds} s: {share:.1%} more time with the ledger")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line, measure, and return the exit status."""
    return record.command("ledger", Options, run, arguments, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
