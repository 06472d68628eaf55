"""`inversefed defend`: its options as a plan of points, and the frontier as a table, JSON and a drawing."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from inversefed.cli import FAILED, INTERRUPTED, SUCCESS
from inversefed.cli.flags import granted, read_seconds
from inversefed.cli.options import Defend, Executing
from inversefed.cli.progress import progress
from inversefed.cli.sweep import carried_out, executor_of
from inversefed.errors import ConfigError, InputError
from inversefed.experiments.executor import Executor
from inversefed.experiments.frontier_jobs import point_of, read_point, row_in
from inversefed.experiments.ledger import Ledger, Run
from inversefed.experiments.local import LocalProcesses
from inversefed.experiments.plan import ModelSpec, Plan, Targets, Utility
from inversefed.experiments.plan_file import read_plan, shipped
from inversefed.experiments.planning import jobs_of
from inversefed.report.folder import check_writable, write_files
from inversefed.report.frontier import Row, notes, table, to_dict
from inversefed.report.plots import frontier_figure
from inversefed.specs import registry

__all__ = ["plan_of", "run_defend"]

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist has its files."""
_NOTHING = '<svg xmlns="http://www.w3.org/2000/svg"><title>No point could be measured</title></svg>'
LEDGER, RUN = "ledger.db", "defend"
"""The ledger in the output folder, and its one run."""


def run_defend(options: Defend) -> int:
    """Write the points as a plan into the ledger of the output's folder, and have an executor measure what is missing.

    A point that cannot be measured is a row that says why, and is tried again the next time.

    Returns:
        0; 1 if a point could not be measured; 130 if Ctrl-C ended it, what was measured written.
    """
    plan, execute = plan_of(options), _executor(options)
    folder = options.output or Path("runs") / f"defend_{options.network.replace(':', '.')}_seed{options.seed}"
    check_writable(folder)
    if options.overwrite:
        (folder / LEDGER).unlink(missing_ok=True)
    ledger = Ledger(str(folder / LEDGER), folder)
    try:
        run = _run_of(ledger, plan, folder)
        with progress("planning", options.quiet) as tell:
            jobs = list(jobs_of(plan, tell))
        ledger.plan_jobs(run, jobs)
        asked = frozenset(each.hash for each in jobs)
        ledger.retry(run, asked)
        whole = carried_out(ledger, ledger.run(RUN), execute, options.quiet) is not None
        rows = _rows(ledger, run, asked, options.targets)
    finally:
        ledger.close()
    _write(folder, _setting(plan.to_dict()), rows)
    _show(rows, folder, options)
    if not whole:
        print("inversefed: interrupted; the points so far were kept, the same command goes on", file=sys.stderr)
        return INTERRUPTED
    failed = [row.point for row in rows if not row.measured]
    if failed:
        print(f"inversefed: {len(failed)} of {len(rows)} points not measured: {', '.join(failed)}", file=sys.stderr)
    return FAILED if failed else SUCCESS


def plan_of(options: Defend) -> Plan:
    """What the options ask for, as a plan.

    Raises:
        ConfigError: an unknown name, nothing to compare, an attack that is no search, or an update from outside.
    """
    if options.update or options.after:
        raise ConfigError("defend makes the update of each point itself; leave out --update and --after")
    if options.table or options.inputs:
        raise ConfigError("defend compares defenses on pictures; audit rows of a table with each: --defenses")
    return Plan(
        RUN,
        targets=(
            Targets(
                options.dataset,
                options.data_path,
                options.images,
                options.labels,
                0 if options.images else options.index,
                options.targets,
            ),
        ),
        models=(ModelSpec(**{name: getattr(options, name) for name in _OF_NETWORK}),),
        attacks=(registry.build("attack", options.attack),),
        seeds=(options.seed,),
        threat=granted(options),
        loss=registry.build("loss", options.loss),
        time_budget=read_seconds(options.time_budget),
        max_iterations=options.max_iterations,
        points=tuple(read_point(text) for text in _texts(options)),
        utility=Utility(tuple(_places(options)), options.rounds) if options.utility else None,
    )


_OF_NETWORK = ("network", "weights", "num_classes", "image_shape", "train_mode", "mean", "std")


def _executor(options: Defend) -> Executor:
    """Where the points are measured; a network that the command line names as code is run there.

    Raises:
        ConfigError: options that contradict each other.
    """
    if options.device not in ("auto", "cpu"):
        raise ConfigError(
            f"points are measured on the CPU, not on {options.device}; --executor ray --gpus SHARE uses GPUs"
        )
    given = {each.name: getattr(options, each.name) for each in fields(Executing) if each.name != "threads"}
    found = executor_of(Executing(**given, threads=1 if options.threads is None else options.threads))
    return replace(found, trust_code=True) if isinstance(found, LocalProcesses) else found


def _run_of(ledger: Ledger, plan: Plan, folder: Path) -> Run:
    """The run of this setting in the output's ledger.

    Raises:
        InputError: it was made with other options.
    """
    text = plan.to_dict()
    found = next((each for each in ledger.runs() if each.name == RUN), None)
    if found is not None and _setting(json.loads(found.plan)) != _setting(text):
        raise InputError(f"{folder} was made with other options; name another --output, or give --overwrite")
    return found or ledger.add_run(RUN, json.dumps(text))


def _setting(plan: Mapping[str, Any]) -> dict[str, Any]:
    """All of a plan but its points, as JSON has it."""
    content: dict[str, Any] = json.loads(json.dumps(plan))
    return {name: value for name, value in content.items() if name != "points"}


def _rows(ledger: Ledger, run: Run, asked: frozenset[str], targets: int) -> list[Row]:
    """The rows of all points that were ever measured here, and of those that were asked for."""
    rows = []
    for job, content in ledger.rows(run):
        if content is not None:
            rows.append(row_in(content))
        elif job.hash in asked and job.error is not None:
            note = f"not measured: {job.error}"
            rows.append(Row(point_of(job), None, None, None, targets=targets, note=note))
    return rows


def _texts(options: Defend) -> list[str]:
    """The points, `none` first, each once."""
    own = [*options.defenses]
    own = ([options.client] if options.client != "FedSGD" else []) + own
    own = ([f"num_images={options.num_images}"] if options.num_images != 1 else []) + own
    sweep = [each.name for each in read_plan(shipped()["defenses"]).points] if options.sweep else []
    texts = ["none", *sweep, *options.points, *([" + ".join(own)] if own else [])]
    if len(texts) == 1:
        raise ConfigError("nothing to compare: give --sweep, --points, --defenses or --client")
    return list(dict.fromkeys(texts))


def _places(options: Defend) -> Iterator[tuple[str, Path]]:
    if options.dataset != "photos":
        yield options.dataset, options.data_path
    else:
        yield "FashionMNIST", options.data_path
        if (options.data_path.expanduser() / "train").is_dir():
            yield "folder", options.data_path
        yield "FashionMNIST", _DEBIAN


def _write(folder: Path, setting: Mapping[str, Any], rows: Sequence[Row]) -> None:
    values = {"setting": setting, "rows": [to_dict(row) for row in rows]}
    files = {
        "defend.json": json.dumps(values, indent=2, allow_nan=False) + "\n",
        "defend.md": "\n\n".join([table(rows), *(f"- {note}" for note in notes(rows))]) + "\n",
        "frontier.svg": (frontier_figure(rows) or _NOTHING) + "\n",
    }
    write_files(folder, {name: text.encode() for name, text in files.items()}, overwrite=True)


def _show(rows: Sequence[Row], folder: Path, options: Defend) -> None:
    if options.json:
        print(json.dumps({"rows": [to_dict(row) for row in rows]}, indent=2, allow_nan=False))
    elif not options.quiet:
        print(table(rows))
        for note in notes(rows):
            print(note)
    if not options.quiet:
        print(f"frontier: {folder / 'frontier.svg'}", file=sys.stderr if options.json else sys.stdout)
