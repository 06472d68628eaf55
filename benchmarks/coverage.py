"""Whatever people bring: every network of the zoo and small ones of every kind, through the default audit.

python -m benchmarks.coverage --budget 12 --jobs 2 --json runs/bench/coverage.json

A row is a network in eval or train mode, with 1 or 4 pictures, one gradient or two local steps. It says what came out,
against the best picture of one color, and what the paper's recipe brings in as many seconds as the default used. Each
row runs in a process of its own, so that nothing it does, not even dying, ends the table. The file is written anew
after each row; the same command again goes on where it stopped, and `--redo crash,refused` measures such rows again.
"""

import contextlib
import itertools
import json
import multiprocessing
import re
import resource
import subprocess
import sys
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import inversefed
from benchmarks import record
from benchmarks.small_networks import SHAPE, SMALL_NETWORKS
from inversefed import FedAvg, FedSGD, recipes
from inversefed.attacks import Attack
from inversefed.errors import ConfigError, InputError, InversefedError, unknown_name
from inversefed.fl.network import Loss
from inversefed.report.model import Report
from inversefed.zoo import constants, networks, pictures

__all__ = ["Options", "Row", "Setting", "main", "run"]

EXACT = 60.0
"""Decibels of the worst picture from which on nearly every value of 8 bits is right."""
MARGIN = 0.5
"""Decibels that a picture may be below the recipe's."""
LEAST_SECONDS = 2.0
"""Of the recipe, which needs a few steps to say anything."""
CLIENTS = {"FedSGD": FedSGD(), "FedAvg": FedAvg(local_steps=2, lr=1e-2)}
CLASSES = 10
SIDES = {"BeyondInferringMNIST": 28, "BeyondInferringCifar": 28, "alexnet": 63, "inception_v3": 75, "maxvit_t": 224}
"""The smallest pictures that a network of the zoo takes, where 32 pixels are too few or too many."""
PRELOADED = (
    "inversefed.pipeline", "benchmarks.small_networks", "torchmetrics.functional.image", "torchvision", "torch._dynamo",
)  # fmt: skip
"""Read once, in the process that those of the rows are forked from; the last by any optimizer, in one or two seconds
that only the first search of a row would pay for."""
OUTCOMES = ("exact", "above", "below", "refused", "crash", "killed")


@dataclass(frozen=True, kw_only=True)
class Options:
    """Audit every network in every mode, and say what came out."""

    budget: float = 12.0
    """Seconds that the default may take for one row."""
    limit: int | None = None
    """How many rows to measure now; all by default."""
    only: str = ""
    """A regular expression that a row's name has to match, such as `vit` or `small .* train 4`; see the table."""
    small: bool = False
    """Only the small networks, without the zoo."""
    recipe: bool = True
    """Whether the paper's recipe runs beside the default."""
    redo: str = ""
    """Outcomes, with commas, whose rows are measured again: exact, above, below, refused, crash, killed, or `worse` for
    those that are below the recipe."""
    jobs: int = 1
    """Processes side by side, of one thread each."""
    patience: float = 300.0
    """Seconds beyond twice the budget after which a row is killed."""
    memory: float | None = None
    """GiB that a row may use; as much as there is by default."""
    json: Path | None = None
    """File for the rows, which is also where the next run goes on from."""


@dataclass(frozen=True)
class Setting:
    """What tells a row from the others.

    Args:
        network: `small NAME` or `zoo NAME`.
        mode: `"eval"` or `"train"`.
        count: how many pictures.
        client: one of `CLIENTS`.
        budget: seconds of the default.
    """

    network: str
    mode: str
    count: int
    client: str
    budget: float

    @property
    def name(self) -> str:
        """As `--only` sees it.

        >>> Setting("small relu", "eval", 1, "FedSGD", 12.0).name
        'small relu eval 1 FedSGD'
        """
        return f"{self.network} {self.mode} {self.count} {self.client}"


@dataclass(frozen=True)
class Row:
    """What came out; `None` where there is nothing to say.

    Args:
        setting: what was audited.
        outcome: one of `OUTCOMES`; `"above"` and `"below"` are meant of the best constant color.
        psnr: mean decibels of the default's pictures.
        constant: of the best picture of one color, which is taken from the truth.
        leaked: the verdict; no null run stands behind it.
        seconds: of the default's attack, or until it was refused.
        took: of the default's audit as a whole.
        recipe: decibels of the paper's recipe.
        recipe_error: what it was refused or ended with.
        error: the class of what the default was refused or ended with.
        message: its first sentence.
        trace: its last lines, of a crash.
        commit: of the code that was measured.
    """

    setting: Setting
    outcome: str
    psnr: float | None = None
    constant: float | None = None
    leaked: bool | None = None
    seconds: float | None = None
    took: float | None = None
    recipe: float | None = None
    recipe_error: str | None = None
    error: str | None = None
    message: str | None = None
    trace: tuple[str, ...] = ()
    commit: str = ""

    @property
    def worse(self) -> bool:
        """Whether the recipe, in the same time, brings more, or anything where the default brings nothing."""
        if self.recipe is None:
            return False
        return self.psnr is None or self.psnr < self.recipe - MARGIN


@dataclass(frozen=True)
class World:
    """A network with what it is audited with."""

    module: nn.Module = field(repr=False)
    images: Tensor = field(repr=False)
    labels: Tensor
    loss: Loss | None


def settings(options: Options) -> Iterator[Setting]:
    """All rows, the likeliest situations first, the small networks of each in front of the zoo's."""
    found = [f"small {name}" for name in SMALL_NETWORKS]
    found += [] if options.small else [f"zoo {name}" for name in networks.names()]
    chosen = re.compile(options.only)
    for client, mode, count in itertools.product(CLIENTS, ("eval", "train"), (1, 4)):
        for network in found:
            setting = Setting(network, mode, count, client, options.budget)
            if chosen.search(setting.name):
                yield setting


def world(setting: Setting) -> World:
    """The network in its mode, and bundled photographs of the size that it takes."""
    kind, _, name = setting.network.partition(" ")
    places = torch.arange(setting.count)
    if kind == "small":
        small = SMALL_NETWORKS[name]
        module, shape, loss, classes, dtype = small.build(), SHAPE, small.loss, small.classes, small.dtype
    else:
        module, shape, loss, classes, dtype = (
            networks.build(name, CLASSES, seed=0),
            zoo_shape(name),
            None,
            CLASSES,
            None,
        )
    photos = pictures.photo_names()[1 : 1 + setting.count]  # the first is nearly of one color at this size
    images = torch.stack([pictures.photo(photo, shape) for photo in photos])
    return World(module.train(setting.mode == "train"), images.to(dtype), (3 * places + 3) % classes, loss)


def zoo_shape(name: str) -> tuple[int, int, int]:
    """The smallest pictures from 32 pixels on that a network of the zoo takes.

    >>> zoo_shape("vit_b_16"), zoo_shape("ResNet18"), zoo_shape("BeyondInferringMNIST")
    ((3, 224, 224), (3, 32, 32), (1, 28, 28))
    """
    side = SIDES.get(name, 224 if name.startswith("vit_") else 32)
    return (1 if name == "BeyondInferringMNIST" else 3, side, side)


def audited(setting: Setting, attack: Attack | None, seconds: float) -> Report:
    """Audit the setting once."""
    made = world(setting)
    plain = made.images.shape[1] == 1
    report: Report = inversefed.audit(
        made.module,
        made.images,
        made.labels,
        mean=None if plain else constants.cifar10_mean,
        std=None if plain else constants.cifar10_std,
        client=CLIENTS[setting.client],
        attack=attack,
        loss=made.loss,
        time_budget=seconds,
        nulls=0,
    )
    return report


def measured(setting: Setting, recipe: bool, commit: str) -> Row:
    """Audit the setting by default, and by the paper's recipe in as many seconds as that took."""
    began = time.perf_counter()
    try:
        report = audited(setting, None, setting.budget)
    except InversefedError as error:
        found = refused(setting, error)
    except Exception as error:  # that is what the table is for
        found = crashed(setting, error)
    else:
        found = recovered(setting, report)
    took = time.perf_counter() - began
    seconds = found.pop("seconds", took)
    if recipe and found["outcome"] not in ("exact", "killed"):
        found |= beside(setting, max(LEAST_SECONDS, min(seconds, setting.budget)))
    return Row(**found, seconds=seconds, took=took, commit=commit)


def recovered(setting: Setting, report: Report) -> dict[str, Any]:
    """What a report comes to."""
    each = report.scores["peak_signal_noise_ratio"]
    psnr, constant = float(each.mean()), float(report.baselines["constant"]["peak_signal_noise_ratio"].mean())
    above = "above" if psnr > constant else "below"
    return {
        "setting": setting,
        "outcome": "exact" if float(each.min()) >= EXACT else above,
        "psnr": psnr,
        "constant": constant,
        "leaked": None if report.verdict is None else report.verdict.leaked,
        "seconds": report.seconds,
    }


def refused(setting: Setting, error: InversefedError) -> dict[str, Any]:
    """What an error that is meant for the user comes to."""
    return {"setting": setting, "outcome": "refused", "error": type(error).__name__, "message": first_sentence(error)}


def crashed(setting: Setting, error: Exception) -> dict[str, Any]:
    """What any other error comes to."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}: {frame.line}" for frame in frames]
    shown = [line for line, frame in zip(lines, frames, strict=True) if "site-packages" not in frame.filename]
    return {
        "setting": setting,
        "outcome": "crash",
        "error": type(error).__name__,
        "message": first_sentence(error),
        "trace": (*shown[-6:], *lines[-2:]),
    }


def first_sentence(error: Exception) -> str:
    """Of a message; what is long is cut.

    >>> first_sentence(ValueError("No such thing. Take another."))
    'No such thing.'
    """
    text = " ".join(str(error).split())
    sentence = re.split(r"(?<=[.!?])\s", text, maxsplit=1)[0]
    return sentence if len(sentence) <= 240 else sentence[:240] + ".."


def beside(setting: Setting, seconds: float) -> dict[str, Any]:
    """What the paper's recipe brings."""
    try:
        report = audited(setting, recipes.geiping(), seconds)
    except Exception as error:
        return {"recipe_error": f"{type(error).__name__}: {first_sentence(error)}"}
    return {"recipe": float(report.scores["peak_signal_noise_ratio"].mean())}


def run_alone(setting: Setting, recipe: bool, memory: float | None, commit: str, pipe: Connection) -> None:
    """Measure a row in this process, and send it; what the networks say of themselves is not shown."""
    torch.set_num_threads(1)
    if memory is not None:
        resource.setrlimit(resource.RLIMIT_AS, (int(memory * 2**30), int(memory * 2**30)))
    warnings.simplefilter("ignore")
    with contextlib.redirect_stderr(None):
        pipe.send(asdict(measured(setting, recipe, commit)))


@dataclass(eq=False)
class Running:
    """A row that a process works on."""

    setting: Setting
    process: ForkServerProcess
    pipe: Connection
    began: float

    def row(self, patience: float, commit: str) -> Row | None:
        """What it has come to, or nothing yet; a process that takes too long is ended."""
        took = time.perf_counter() - self.began
        if self.pipe.poll():
            with contextlib.suppress(EOFError):
                found = _read(self.pipe.recv())
                self.process.join()
                return found
        if self.process.is_alive() and took < 2 * self.setting.budget + patience:
            return None
        self.process.kill()
        self.process.join()
        message = f"the process ended with status {self.process.exitcode} after {took:.0f} s"
        return Row(self.setting, "killed", took=took, error="killed", message=message, commit=commit)


def _read(row: Mapping[str, Any]) -> Row:
    known = {each.name for each in fields(Row)}
    kept = {name: value for name, value in row.items() if name in known}
    return Row(**kept | {"setting": Setting(**row["setting"]), "trace": tuple(row["trace"])})


def rows(todo: Sequence[Setting], options: Options, commit: str) -> Iterator[Row]:
    """Measure them, so many side by side, in the order in which they end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    waiting, running = list(todo), list[Running]()
    try:
        while waiting or running:
            while waiting and len(running) < options.jobs:
                running.append(_started(waiting.pop(0), options, commit, context))
            wait([each.pipe for each in running], timeout=1.0)
            for each in list(running):
                row = each.row(options.patience, commit)
                if row is not None:
                    running.remove(each)
                    yield row
    finally:
        for each in running:
            each.process.kill()


def _started(setting: Setting, options: Options, commit: str, context: ForkServerContext) -> Running:
    ours, theirs = context.Pipe(duplex=False)
    arguments = (setting, options.recipe, options.memory, commit, theirs)
    process = context.Process(target=run_alone, args=arguments, daemon=True)
    process.start()
    theirs.close()
    return Running(setting, process, ours, time.perf_counter())


def run(options: Options, command: str = "") -> int:
    """Measure what is not there yet, print, and write, row by row; 0 if nothing crashed, 1 if something did.

    Raises:
        ConfigError: an unknown outcome, a pattern that is none, or a number out of range.
        InputError: a file that is no table, or cannot be written.
    """
    check(options)
    every = list(settings(options))
    before = earlier(options.json)
    redo = {name.strip() for name in options.redo.split(",") if name.strip()}
    again = {row.setting for row in before if row.outcome in redo or ("worse" in redo and row.worse)}
    known = {row.setting: row for row in before}
    todo = [setting for setting in every if setting not in known or setting in again][: options.limit]
    document: dict[str, Any] = {"command": command, "machine": record.machine()}
    print("| network | mode | pictures | client | outcome | PSNR, dB | constant, dB | recipe, dB | seconds | error |")
    print("|---|---|---:|---|---|---:|---:|---:|---:|---|")
    for row in rows(todo, options, commit_of(Path(__file__).parent)):
        known[row.setting] = row
        _write(options.json, document, list(known.values()))
        print(shown(row), flush=True)
    found = [known[setting] for setting in every if setting in known]
    print(f"\n{summary(found)}")
    return int(any(row.outcome in ("crash", "killed") for row in found))


def check(options: Options) -> None:
    """Refuse what means nothing.

    Raises:
        ConfigError: it does not.
    """
    if options.budget <= 0 or options.jobs < 1 or (options.limit is not None and options.limit < 0):
        raise ConfigError(
            f"expected --budget above 0, --jobs from 1 and --limit from 0; "
            f"got {options.budget}, {options.jobs} and {options.limit}"
        )
    try:
        re.compile(options.only)
    except re.error as error:
        raise ConfigError(f"--only is no regular expression: {options.only!r} ({error})") from error
    for name in options.redo.split(","):
        if name.strip() and name.strip() not in (*OUTCOMES, "worse"):
            raise unknown_name("outcome", name.strip(), (*OUTCOMES, "worse"))


def earlier(path: Path | None) -> list[Row]:
    """The rows of a file, if it is there.

    Raises:
        InputError: it is no table of this benchmark.
    """
    if path is None or not path.exists():
        return []
    try:
        return [_read(row) for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--json: {path} is no table of this benchmark ({error}); name another file") from error


def commit_of(folder: Path) -> str:
    """The commit that a folder is at, with a + where it was changed since; empty where nobody knows."""
    try:
        asked = ("git", "describe", "--always", "--dirty=+", "--exclude=*")
        return subprocess.run(asked, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def shown(row: Row) -> str:
    """A line of the table."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.1f}"

    setting = row.setting
    facts = [setting.network, setting.mode, str(setting.count), setting.client, row.outcome + " (worse)" * row.worse]
    figures = [number(value) for value in (row.psnr, row.constant, row.recipe, row.seconds)]
    error = "" if row.error is None else f"{row.error}: {row.message}".replace("|", "/")
    return f"| {' | '.join(facts + figures + [error])} |"


def summary(found: Sequence[Row]) -> str:
    """The table in a line."""
    counted = Counter(row.outcome for row in found)
    lower = sum(row.worse and row.psnr is not None for row in found)
    refused = sum(row.worse and row.psnr is None for row in found)
    above = counted["exact"] + counted["above"]
    return (
        f"{len(found)} rows: {counted['exact']} exact, {above} above the best constant color, {counted['below']} "
        f"below it, {lower} more than {MARGIN} dB below the recipe, {counted['refused']} refused, "
        f"{counted['crash']} crashes, {counted['killed']} killed; {refused} without a result where the recipe has one"
    )


def _write(path: Path | None, document: Mapping[str, Any], found: Sequence[Row]) -> None:
    if path is not None:
        record.write(path, {**document, "summary": summary(found), "rows": [asdict(row) for row in found]})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if nothing crashed, 1 if something did, 2 for wrong usage, 130 if interrupted."""
    return record.command("coverage", Options, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
