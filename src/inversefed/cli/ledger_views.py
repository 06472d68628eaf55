"""`inversefed status`, `results` and `runs`: what a ledger holds."""

import json
import sys
import time

from inversefed.cli.options import Results, Runs, ShowStatus
from inversefed.cli.sweep import again, open_ledger
from inversefed.errors import ConfigError, InputError
from inversefed.experiments.ledger import Ledger, is_dead
from inversefed.experiments.table import csv_text, markdown, row_of, summary, to_parquet
from inversefed.experiments.words import length, progress, said
from inversefed.experiments.work import remove_files
from inversefed.integrations.federation import remove_kept

__all__ = ["run_results", "run_runs", "run_status"]

_LOOK = 2.0
"""Seconds between two looks of `status --watch`."""
_SHOWN = (
    "network", "client", "defenses", "attack", "images", "num_images", "seed", "verdict", "peak_signal_noise_ratio",
    "control_psnr", "structural_similarity", "plain", "adaptive", "leakage", "accuracy", "epsilon", "note", "seconds",
    "state", "error",
)  # fmt: skip
"""Columns of the table for people; a file has all."""
_SUMMED = (
    "network", "client", "defenses", "attack", "num_images", "n", "failed", "open", "leaked", "peak_signal_noise_ratio",
    "peak_signal_noise_ratio_sd", "peak_signal_noise_ratio_low", "peak_signal_noise_ratio_high", "margin",
    "structural_similarity", "accuracy", "seconds",
)  # fmt: skip


def run_status(options: ShowStatus) -> int:
    """Print how far a run is.

    Returns:
        0; 1 if an audit of it failed.
    """
    ledger = open_ledger(options)
    while True:
        run = ledger.run(options.name)
        standing = ledger.standing(run)
        running = [each for each in ledger.jobs(run, "running") if each.owner and not is_dead(each.owner)]
        left = standing.remaining(max(1, len(running)))
        if options.json:
            print(json.dumps({"run": run.name, "planned": run.planned, **standing.counts, "seconds_left": left}))
        else:
            known = left is not None and standing.open and running
            print(said(standing) + (f"; about {length(left)} left" if known and left is not None else ""))
            for each in running:
                now = progress(each.progress) or "begun"
                print(f"  {each.network}, {each.client}, {each.images}, seed {each.seed}: {now}")
            if not run.planned:
                print("  not all of its audits are written yet")
            if not running and (standing.open or not run.planned):
                print(f"  nothing of it runs now; `{again(options, run.name)}` goes on")
        if not options.watch or not standing.open:
            return 1 if standing.counts["failed"] else 0
        time.sleep(_LOOK)


def run_results(options: Results) -> int:
    """Print or write the table.

    Raises:
        ConfigError: more than one format, or Parquet without a file.
        InputError: the file is there, or cannot be written.
    """
    if options.csv + options.markdown + options.parquet > 1:
        raise ConfigError("--csv, --markdown and --parquet are formats of one table; give one of them")
    if options.parquet and options.output is None:
        raise ConfigError("a Parquet file is not for the screen: name it by --output")
    if options.output is not None and options.output.exists() and not options.overwrite:
        raise InputError(f"{options.output} exists; name another --output, or give --overwrite")
    ledger = open_ledger(options)
    rows = [row_of(job, content) for job, content in ledger.rows(ledger.run(options.name))]
    rows = summary(rows) if options.summary else rows
    try:
        if options.parquet and options.output is not None:
            to_parquet(rows, options.output)
            return 0
        text = csv_text(rows) if options.csv else markdown(rows, _SUMMED if options.summary else _SHOWN)
        if options.output is not None:
            options.output.write_text(text, encoding="utf-8")
        else:
            sys.stdout.write(text)
    except OSError as error:
        raise InputError(f"cannot write {options.output}: {error.strerror or error}") from error
    return 0


def run_runs(options: Runs) -> int:
    """List runs, or remove some.

    Raises:
        ConfigError: there is no such run, or nobody to ask and no `--yes`.
        InputError: a job of it is running.
    """
    ledger = open_ledger(options)
    if options.check and (problem := ledger.check()) is not None:
        raise InputError(f"the ledger {options.ledger} is damaged: {problem}; restore it from a copy")
    if not options.remove:
        for run in ledger.runs():
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created))
            print(f"{when}  {run.name}  {said(ledger.standing(run))}")
        return 0
    for name in options.remove:
        ledger.run(name)
    if not options.yes and not _confirmed(options.remove):
        print("nothing was removed")
        return 0
    for name in options.remove:
        _remove(ledger, name, options.quiet)
    return 0


def _remove(ledger: Ledger, name: str, quiet: bool) -> None:
    hashes = ledger.remove_run(name)
    for each in hashes:
        remove_files(ledger.folder, each)
    remove_kept(ledger.folder / "updates" / name)
    if not quiet:
        print(f"{name}: {len(hashes)} audits removed, with their reports and pictures")


def _confirmed(names: tuple[str, ...]) -> bool:
    if not sys.stdin.isatty():
        raise ConfigError("nobody to ask: give --yes to remove these runs")
    return input(f"Remove {', '.join(names)} with all results for good? [y/N] ").strip().lower() in ("y", "yes")
