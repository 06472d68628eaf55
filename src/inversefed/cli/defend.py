"""`inversefed defend`: points in, the frontier out, as a table, JSON and a drawing."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from inversefed.attacks import SearchAttack
from inversefed.cli import FAILED, INTERRUPTED, SUCCESS
from inversefed.cli.flags import granted, read_seconds, read_setting
from inversefed.cli.options import Defend
from inversefed.cli.progress import Tell, progress
from inversefed.errors import ConfigError, InputError, InversefedError
from inversefed.fl.network import freeze
from inversefed.frontier import Data, Point, measure
from inversefed.report.folder import check_writable, write_files
from inversefed.report.frontier import Row, notes, read_rows, table, to_dict
from inversefed.report.plots import frontier_figure
from inversefed.specs import registry
from inversefed.specs.load_setting import Setting
from inversefed.types import Budget, Step
from inversefed.zoo import datasets

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
_TESTED = 1000
_NOTHING = '<svg xmlns="http://www.w3.org/2000/svg"><title>No point could be measured</title></svg>'
_SILENT = {"output", "overwrite", "json", "quiet", "verbose", "points", "sweep", "defenses", "client", "num_images"}


def run_defend(options: Defend) -> int:
    """Measure each point that the output does not hold yet; write after each.

    A point that cannot be measured is a row that says why, and is tried again the next time.

    Returns:
        0; 1 if a point could not be measured; 130 if Ctrl-C ended it, what was measured written.
    """
    points = [read_point(text) for text in _texts(options)]
    attack = registry.build("attack", options.attack)
    if not isinstance(attack, SearchAttack):
        raise ConfigError(f"defend adapts a search to each defense; {options.attack} has none")
    most = max(point.num_images for point in points) * options.targets
    setting = read_setting(replace(options, num_images=max(most, options.num_images)))
    folder = options.output or Path("runs") / f"defend_{options.network.replace(':', '.')}_seed{options.seed}"
    check_writable(folder)
    done = {} if options.overwrite else _measured(folder / "defend.json", _described(options))
    data = _data(options, setting) if options.utility else "--no-utility was given"
    status = SUCCESS
    try:
        for number, point in enumerate(points):
            if point.name not in done:
                with progress(f"[{number + 1}/{len(points)}] {point.name}", options.quiet) as tell:
                    done[point.name] = _row(options, setting, point, attack, data, tell)
                _write(folder, options, list(done.values()))
    except KeyboardInterrupt:
        print("inversefed: interrupted; the points so far were kept, the same command goes on", file=sys.stderr)
        status = INTERRUPTED
    rows = list(done.values())
    _show(rows, folder, options)
    failed = [row.point for row in rows if not row.measured]
    if failed:
        print(f"inversefed: {len(failed)} of {len(rows)} points not measured: {', '.join(failed)}", file=sys.stderr)
    return status or (FAILED if failed else SUCCESS)


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


def _row(options: Defend, setting: Setting, point: Point, attack: Any, data: Data | str, tell: Tell) -> Row:
    """Measure a point; where it cannot be done, a row that says why."""
    try:
        return _measure(options, setting, point, attack, data, tell)
    except InversefedError as error:
        return Row(point.name, None, None, None, targets=options.targets, note=f"not measured: {error}")


def _measure(options: Defend, setting: Setting, point: Point, attack: Any, data: Data | str, tell: Tell) -> Row:
    def watch(step: Step) -> None:
        tell(step.iteration, step.iterations, f"attack  loss {step.loss:.4g}")

    return measure(
        setting.module,
        setting.images,
        setting.labels,
        point,
        attack=attack,
        mean=setting.mean,
        std=setting.std,
        threat=granted(options),
        loss=registry.build("loss", options.loss),
        seed=options.seed,
        targets=options.targets,
        budget=Budget(read_seconds(options.time_budget), options.max_iterations, watch),
        data=data,
        rounds=options.rounds,
        on_round=lambda done, total: tell(done, total, "training with the defense"),
    )


def _data(options: Defend, setting: Setting) -> Data | str:
    """What to train on, or why there is nothing."""
    channels, height, width = setting.images.shape[1:]
    shape, reasons = (channels, height, width), []
    for name, path in _places(options):
        try:
            parts = [datasets.load(name, path, split, size=shape) for split in ("train", "test")]
        except InputError as error:
            reasons.append(str(error))
            continue
        train, test = parts
        classes = freeze(setting.module, shape).num_classes
        if train.num_classes > classes:
            reasons.append(f"{train.name} has {train.num_classes} classes and the network {classes}; see --num-classes")
            continue
        held = test.batch(range(min(_TESTED, len(test))))
        return Data(train.name, train.batch, len(train), held)
    return "no data to train on: " + "; ".join(reasons)


def _places(options: Defend) -> Iterator[tuple[str, Path]]:
    if options.dataset != "photos":
        yield options.dataset, options.data_path
    else:
        yield "FashionMNIST", options.data_path
        if (options.data_path.expanduser() / "train").is_dir():
            yield "folder", options.data_path
        yield "FashionMNIST", _DEBIAN


def _described(options: Defend) -> dict[str, Any]:
    """All that the rows depend on, beside their points."""
    values = {each.name: getattr(options, each.name) for each in fields(options) if each.name not in _SILENT}
    return json.loads(json.dumps(values, default=str))  # type: ignore[no-any-return]


def _measured(file: Path, setting: dict[str, Any]) -> dict[str, Row]:
    """The rows of an earlier run of the same setting, without those that it could not measure."""
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"cannot go on from {file}: {error}; name another --output, or give --overwrite") from error
    if not isinstance(content, dict) or content.get("setting") != setting:
        raise InputError(f"{file} was made with other options; name another --output, or give --overwrite")
    return {row.point: row for row in read_rows(content.get("rows")) if row.measured}


def _write(folder: Path, options: Defend, rows: Sequence[Row]) -> None:
    values = {"setting": _described(options), "rows": [to_dict(row) for row in rows]}
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
