"""`inversefed defend`: points in, the frontier out, as a table, JSON and a drawing."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from inversefed.attacks import SearchAttack
from inversefed.cli import FAILED, INTERRUPTED, SUCCESS
from inversefed.cli.flags import granted, read_seconds
from inversefed.cli.options import Defend
from inversefed.cli.progress import Tell, progress
from inversefed.errors import ConfigError, InputError, InversefedError
from inversefed.experiments.frontier_jobs import Loaded, PointSpec, measured, row_in
from inversefed.experiments.ledger import Job, Ledger, Run, new_owner
from inversefed.experiments.work import Pulse
from inversefed.frontier import Point
from inversefed.report.folder import check_writable, write_files
from inversefed.report.frontier import Row, notes, table, to_dict
from inversefed.report.plots import frontier_figure
from inversefed.specs import registry
from inversefed.specs.sources import absolute, sources_of
from inversefed.types import Step

__all__ = ["SWEEP", "read_point", "run_defend"]

SWEEP = (
    "none",
    *(f"GaussianNoise({std})" for std in (0.01, 0.1, 1.0)),
    "LaplaceNoise(0.1)",
    "Clip(1.0)",
    "Clip(1.0) + GaussianNoise(0.01)",
    *(f"TopK({keep})" for keep in (0.3, 0.1, 0.01)),
    "RandomPruning(0.1)",
    *(f"UniformQuantization({bits})" for bits in (4, 2)),
    "StochasticQuantization(4)",
    "SignQuantization()",
    "Soteria(0.5)",
    "PRECODE(64)",
    "Dropout(0.5)",
    "ATS()",
    "num_images=2 + Mixup(1.0)",
    *(f"num_images={count}" for count in (2, 4)),
    *(f"FedAvg(local_steps={steps}, lr=0.01)" for steps in (4, 16)),
    "num_images=4 + SumOfClients(clients=4)",
    *(f"DPSGD(noise_multiplier={noise}, max_grad_norm=1.0)" for noise in (0.01, 1.0)),
)
"""What --sweep measures."""

_DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist has its files."""
_NOTHING = '<svg xmlns="http://www.w3.org/2000/svg"><title>No point could be measured</title></svg>'
LEDGER, RUN = "ledger.db", "defend"
"""The ledger in the output folder, and its one run."""


def run_defend(options: Defend) -> int:
    """Measure each point that the output's ledger does not hold yet; write after each.

    A point that cannot be measured is a row that says why, and is tried again the next time.

    Returns:
        0; 1 if a point could not be measured; 130 if Ctrl-C ended it, what was measured written.
    """
    specs = _specs(options)
    folder = options.output or Path("runs") / f"defend_{options.network.replace(':', '.')}_seed{options.seed}"
    check_writable(folder)
    if options.overwrite:
        (folder / LEDGER).unlink(missing_ok=True)
    ledger = Ledger(str(folder / LEDGER), folder)
    try:
        run = _run_of(ledger, specs[0], folder)
        ledger.release_dead()
        ledger.retry(run)
        ledger.plan_jobs(run, [spec.job() for spec in specs])
        status = _measure_all(ledger, run, {spec.job().hash: spec for spec in specs}, options)
        rows = _rows(ledger, run, specs)
    finally:
        ledger.close()
    _write(folder, specs[0], rows)
    _show(rows, folder, options)
    failed = [row.point for row in rows if not row.measured]
    if failed:
        print(f"inversefed: {len(failed)} of {len(rows)} points not measured: {', '.join(failed)}", file=sys.stderr)
    return status or (FAILED if failed else SUCCESS)


def _specs(options: Defend) -> list[PointSpec]:
    """The points, all with the same setting."""
    points = [read_point(text) for text in _texts(options)]
    attack = registry.build("attack", options.attack)
    if not isinstance(attack, SearchAttack):
        raise ConfigError(f"defend adapts a search to each defense; {options.attack} has none")
    sources = replace(sources_of(options), client="FedSGD")
    common = PointSpec(
        points[0],
        absolute(sources),
        attack,
        registry.build("loss", options.loss),
        granted(options),
        options.mean,
        options.std,
        options.seed,
        options.targets,
        read_seconds(options.time_budget),
        options.max_iterations,
        tuple(_places(options)) if options.utility else None,
        options.rounds,
    )
    return [
        replace(common, point=point, sources=replace(common.sources, num_images=point.num_images * options.targets))
        for point in points
    ]


def _run_of(ledger: Ledger, spec: PointSpec, folder: Path) -> Run:
    """The run of this setting in the output's ledger.

    Raises:
        InputError: it was made with other options.
    """
    setting = spec.setting() | {"sources": {**spec.setting()["sources"], "num_images": None}}
    plan = json.dumps(setting, sort_keys=True)
    found = next((each for each in ledger.runs() if each.name == RUN), None)
    if found is not None and found.plan != plan:
        raise InputError(f"{folder} was made with other options; name another --output, or give --overwrite")
    return found or ledger.add_run(RUN, plan)


def _measure_all(ledger: Ledger, run: Run, specs: Mapping[str, PointSpec], options: Defend) -> int:
    """Take the points one after the other; those of earlier commands that are not asked for now stay as they are."""
    owner, shared, number = new_owner(), Loaded(), 0
    try:
        for hash, spec in specs.items():
            number += 1
            job = ledger.claim(run, owner, only=hash)
            if job is None:
                continue  # it was measured before
            with progress(f"[{number}/{len(specs)}] {spec.point.name}", options.quiet) as tell:
                _measure(ledger, job, spec, shared, tell)
    except KeyboardInterrupt:
        ledger.release(owner)
        print("inversefed: interrupted; the points so far were kept, the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return SUCCESS


def _measure(ledger: Ledger, job: Job, spec: PointSpec, shared: Loaded, tell: Tell) -> None:
    try:
        with Pulse(ledger, job) as pulse:
            outcome = measured(
                spec,
                shared,
                on_step=lambda step: _look(pulse, tell, step),
                on_round=lambda done, total: tell(done, total, "training with the defense"),
            )
        ledger.finish(job, outcome)
    except InversefedError as error:
        ledger.fail(job, str(error))


def _look(pulse: Pulse, tell: Tell, step: Step) -> bool:
    tell(step.iteration, step.iterations, f"attack  loss {step.loss:.4g}")
    return pulse.step(step)


def _rows(ledger: Ledger, run: Run, specs: Sequence[PointSpec]) -> list[Row]:
    """The rows of all points that were ever measured here, and of those that were asked for."""
    asked = {spec.job().hash for spec in specs}
    rows = []
    for job, content in ledger.rows(run):
        if content is not None:
            rows.append(row_in(content))
        elif job.hash in asked and job.error is not None:
            note = f"not measured: {job.error}"
            rows.append(Row(job.defenses, None, None, None, targets=specs[0].targets, note=note))
    return rows


def read_point(text: str) -> Point:
    """Read a point: pieces with plus signs between, each a client, a defense or `num_images=N`; or `none`.

    Raises:
        ConfigError: a piece of an unknown name, two clients, or a number that is none.
    """
    point, named = Point(text, num_images=1), False
    for part in (each.strip() for each in text.split(" + ")):
        if part.startswith("num_images="):
            count = part.removeprefix("num_images=")
            if not count.isdecimal():
                raise ConfigError(f"the point {text!r} needs a whole number for num_images, not {count!r}")
            point = replace(point, num_images=int(count))
        elif part.partition("(")[0].lower() in {name.lower() for name in registry.choices("client")}:
            if named:
                raise ConfigError(
                    f"the point {text!r} names two clients; one wraps the other, as in Shares(FedAvg(..))"
                )
            point, named = replace(point, client=registry.build("client", part)), True
        elif part != "none":
            point = replace(point, defenses=(*point.defenses, registry.build("defense", part)))
    return point


def _texts(options: Defend) -> list[str]:
    """The points, `none` first, each once."""
    own = [*options.defenses]
    own = ([options.client] if options.client != "FedSGD" else []) + own
    own = ([f"num_images={options.num_images}"] if options.num_images != 1 else []) + own
    texts = ["none", *(SWEEP if options.sweep else ()), *options.points, *([" + ".join(own)] if own else [])]
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


def _write(folder: Path, spec: PointSpec, rows: Sequence[Row]) -> None:
    values = {"setting": spec.setting(), "rows": [to_dict(row) for row in rows]}
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
