"""`inversefed sweep` and `resume`: a plan into a ledger, and its audits into processes."""

import shlex
import sys
from pathlib import Path

from inversefed.cli.options import Executing, InLedger, Resume, Sweep
from inversefed.cli.progress import Tell, progress
from inversefed.errors import ConfigError, InputError
from inversefed.experiments.estimate import estimate
from inversefed.experiments.executor import Executor
from inversefed.experiments.ledger import Ledger, Run, Standing
from inversefed.experiments.local import LocalProcesses
from inversefed.experiments.plan import Plan
from inversefed.experiments.plan_file import read_plan, shipped
from inversefed.experiments.planning import add_run, write_jobs
from inversefed.experiments.ray_cluster import RayCluster
from inversefed.experiments.tracking import read_tracker
from inversefed.experiments.words import length, said

__all__ = ["again", "carried_out", "executor_of", "open_ledger", "run_resume", "run_sweep"]


def run_sweep(options: Sweep) -> int:
    """Write the plan into the ledger and carry it out.

    Returns:
        0; 1 if an audit failed; 130 after Ctrl-C, what was finished kept.
    """
    plan = _plan(options.plan, options.data_path)
    if options.dry_run:
        return _dry_run(plan, options)
    ledger = open_ledger(options)
    run = add_run(ledger, plan, options.run)
    return _carry_out(ledger, run, options, options)


def run_resume(options: Resume) -> int:
    """Go on with a run.

    Returns:
        As `run_sweep`.
    """
    ledger = open_ledger(options)
    run = ledger.run(options.name)
    if options.retry:
        count = ledger.retry(run)
        if not options.quiet:
            print(f"{count} failed audits are tried again", file=sys.stderr)
    return _carry_out(ledger, run, options, options)


def open_ledger(options: InLedger) -> Ledger:
    """The ledger that the options name."""
    return Ledger(options.ledger, options.ledger_folder)


def _plan(path: Path, data_path: Path | None) -> Plan:
    """The plan in a file, or one that ships."""
    own = shipped()
    if not path.exists() and str(path) in own:
        return read_plan(own[str(path)], data_path)
    if not path.exists():
        raise InputError(f"there is no file {path}, and no plan of that name ships; these do: {', '.join(own)}")
    return read_plan(path, data_path)


def executor_of(options: Executing) -> Executor:
    """Where the options have the audits run.

    Raises:
        ConfigError: options of another executor, or a tool that is not installed.
    """
    if options.executor == "ray":
        if options.track is not None:
            raise ConfigError("--track follows the processes of this machine: leave it out, or --executor ray")
        return RayCluster(options.ray_address, options.workers, options.threads, options.retries, options.gpus)
    if options.ray_address is not None or options.gpus:
        raise ConfigError("--ray-address and --gpus are for --executor ray")
    tracker = None if options.track is None else read_tracker(options.track)
    return LocalProcesses(options.workers, options.threads, options.retries, tracker=tracker)


def carried_out(ledger: Ledger, run: Run, execute: Executor, quiet: bool) -> Standing | None:
    """Have an executor do what is left of a run, with its progress on the screen; `None` where Ctrl-C ended it."""
    try:
        if not run.planned:
            with progress(f"planning {run.name}", quiet) as tell:
                write_jobs(ledger, run, tell)
        with progress(run.name, quiet) as tell:
            return execute(ledger, run, lambda now: _tell(tell, now, execute.count))
    except KeyboardInterrupt:
        return None


def _carry_out(ledger: Ledger, run: Run, executing: Executing, options: InLedger) -> int:
    standing = carried_out(ledger, run, executor_of(executing), options.quiet)
    if standing is None:
        print(
            f"inversefed: interrupted; what was finished is kept, and `{again(options, run.name)}` goes on",
            file=sys.stderr,
        )
        return 130
    if not options.quiet:
        print(said(standing))
        print(f"results: {again(options, run.name, 'results')}")
    failed = ledger.jobs(run, "failed")
    for each in failed[:3]:
        print(f"inversefed: failed: {each.network}, {each.client}, {each.images}: {each.error}", file=sys.stderr)
    if len(failed) > 3:
        print(f"inversefed: and {len(failed) - 3} more; the table has all", file=sys.stderr)
    return 1 if failed else 0


def again(options: InLedger, name: str, command: str = "resume") -> str:
    """The command that goes on with a run, or another one about it."""
    elsewhere = "" if options.ledger == "runs/ledger.db" else f" --ledger {shlex.quote(options.ledger)}"
    return f"inversefed {command} {shlex.quote(name)}{elsewhere}"


def _tell(tell: Tell, standing: Standing, workers: int) -> None:
    left = standing.remaining(workers)
    text = f"audits; {standing.counts['failed']} failed" if standing.counts["failed"] else "audits"
    done = standing.total - standing.open
    tell(done, standing.total, text + ("" if left is None or not standing.open else f"; {length(left)} left"))


def _dry_run(plan: Plan, options: Sweep) -> int:
    with progress("measuring", options.quiet) as tell:
        found = estimate(plan, tell)
    workers = executor_of(options).count
    print(f"{plan.name}: {len(plan)} {'points' if plan.points else 'audits'}")
    for line in found:
        time = "not known" if line.seconds is None else length(line.seconds)
        print(f"  {line.count} x {line.name}: about {time} and {line.bytes / 1e6:.0f} MB each")
    trained = "" if plan.utility is None else "; the short trainings come to that"
    known = [line.seconds * line.count for line in found if line.seconds is not None]
    whole = length(sum(known) / workers)
    print(f"about {whole} with {workers} processes, by the rate of the first seconds of each{trained}")
    return 0
