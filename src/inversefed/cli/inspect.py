"""`inversefed inspect`: whether an update is what it is said to be, and what it can give away, before any attack."""

import json
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from inversefed.attacks.identifiability.identify import Identifiability, identify
from inversefed.attacks.identifiability.layer_counts import LayerEquations
from inversefed.cli.flags import granted, read_setting
from inversefed.cli.options import Inspect
from inversefed.errors import ConfigError, InputError, InversefedError, MetadataError, UnsupportedNetworkError
from inversefed.findings import Code
from inversefed.fl.network import Network
from inversefed.fl.simulate import observed
from inversefed.fl.targets import class_count
from inversefed.fl.threat import Observation
from inversefed.inputs import InputSpace
from inversefed.report.spoken import spoken, spoken_of
from inversefed.report.to_json import plain
from inversefed.specs import registry
from inversefed.specs.load_setting import Setting, check_shape
from inversefed.specs.load_update import (
    believed_client,
    diagnosed_client,
    insisted,
    is_received,
    names_update,
    read_network,
    read_received,
    stated,
)
from inversefed.types import Finding
from inversefed.updates.diagnosis import check_example, diagnose
from inversefed.updates.update import Update, as_observation
from inversefed.zoo.pictures import read_picture

__all__ = ["run_inspect"]

_WIDTH = 100
_COLUMNS = ("layer", "kind", "entries", "zero", "rank", "numbers", "unknown", "own", "known")
_MOST_ROWS = 40
"""How many layers a terminal is shown; the JSON has them all."""
_LEGEND = (
    "From the head to the image. entries: numbers of the update; zero: those exactly 0. rank: of the weight gradient, "
    "and its most. numbers: independent ones, at most. unknown: values that go in. own: linear equations on them in "
    "the layer's gradient, at most; = where computed. known: with what is known behind it, at most; * where settled."
)


def run_inspect(options: Inspect) -> int:
    """Diagnose an update that was brought, or make one; count; print.

    Returns:
        0; 2 if an update that was brought cannot be used.
    """
    try:
        with _about(Code.SCALE):
            stated(options)
        received = is_received(options, bool(options.defenses))
        with _about(Code.SHAPES):
            check_shape(options)
        setting = read_setting(options)
        space = setting.space
        findings, found = _brought(options, setting) if received else ((), _made(options, setting))
    except InversefedError as error:
        if not options.json or not names_update(options):
            raise
        findings, found, space = (_as_finding(error),), "", None
    findings, found = spoken_of(findings, space), spoken_of(found, space, ("reason", "methods", "limits"))
    counted = found if isinstance(found, Identifiability) else None
    if options.json:
        content: dict[str, Any] = {"findings": [plain(each.to_dict()) for each in findings]}
        content["identifiability"] = None if counted is None else counted.to_dict()
        print(json.dumps(content, indent=2, allow_nan=False))
    else:
        told = _lines(counted, space) if counted is not None else _wrap(f"Not counted: {found}" if found else "")
        print("\n".join([*_said(findings, names_update(options)), *told]))
    return 2 if any(finding.level == "error" for finding in findings) else 0


def _made(options: Inspect, setting: Setting) -> Identifiability:
    """Count what an update that is made here gives away."""
    if options.example or options.example_label:
        raise ConfigError("--example belongs to an update made elsewhere; name it by --update")
    observation, _ = observed(
        setting.module,
        setting.images,
        setting.labels,
        mean=setting.mean,
        std=setting.std,
        client=registry.build("client", options.client),
        defenses=[registry.build("defense", defense) for defense in options.defenses],
        threat=granted(options),
        loss=registry.build("loss", options.loss),
        seed=options.seed,
        inputs=setting.space,
    )
    return identify(observation)


def _brought(options: Inspect, setting: Setting) -> tuple[tuple[Finding, ...], Identifiability | str]:
    """Diagnose an update from outside, and count it if it can be used; else why it was not counted."""
    with _about(Code.NORMALIZATION):
        network = read_network(setting, registry.build("loss", options.loss))
    asked = registry.build("client", options.client)
    client = believed_client(asked)
    try:
        update = read_received(options, setting, strict=False)
    except InputError as error:
        return (_as_finding(error, "The update cannot be read: "),), ""
    hidden = diagnosed_client(asked, options.unknown_client, network)
    findings = diagnose(network, update.tensors, update.metadata, client=hidden)
    if options.example and not any(finding.unfit for finding in findings):
        findings = (*_example(options, setting, network, update), *findings)
    if any(_is_error(finding) for finding in findings):
        return findings, ""
    try:
        observation = as_observation(network, update, num_examples=insisted(options, setting), client=client)
    except InputError as error:
        return (_as_finding(error, "The update cannot be used: "), *findings), ""
    except ConfigError as error:  # a client that does not send what the file holds
        return (_as_finding(error, "The update cannot be used: ", Code.SCALE), *findings), ""
    except InversefedError as error:  # such as a client whose settings are not known
        return findings, str(error)
    return findings, _counted(observation)


def _counted(observation: Observation) -> Identifiability | str:
    """What an update can give away, or why that was not counted: what was found out before must not be lost by it."""
    try:
        return identify(observation)
    except InversefedError as error:  # such as a client whose settings are not known
        return str(error)
    except Exception as error:  # foreign code of the network: whatever it raises means the same
        return f"the network cannot be followed layer by layer ({type(error).__name__}: {str(error)[:200]})"


class _About(InversefedError):
    """An error of the options, with the code of the finding that it becomes."""

    def __init__(self, message: str, code: Code) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def _about(code: Code) -> Iterator[None]:
    """Say what options are about that cannot be."""
    try:
        yield
    except MetadataError:
        raise
    except (ConfigError, InputError) as error:
        raise _About(str(error), code) from error


def _as_finding(error: InversefedError, start: str = "", code: Code = Code.NAMES) -> Finding:
    """An error as a finding, under the code of what it is about; `code` where it does not tell."""
    match error:
        case MetadataError(entry="bn_mode"):
            code = Code.BATCHNORM_TRAIN_MODE
        case MetadataError():
            code = Code.SCALE
        case UnsupportedNetworkError():
            code = Code.SHAPES
        case _About():
            code = error.code
    return Finding(code, "error", f"{start}{error}")


def _example(options: Inspect, setting: Setting, network: Network, update: Update) -> tuple[Finding, ...]:
    """Compare the update with what the believed client makes of the owner's pictures, or rows of the table."""
    if setting.read is not None:
        if len(options.example) != 1 or options.example_label:
            raise ConfigError(
                "--example takes one file with the rows of --table behind the update, and no --example-label"
            )
        rows = setting.read(options.example[0])
        return check_example(network, update.tensors, update.metadata, rows.images, rows.labels)
    if len(options.example) != len(options.example_label):
        raise ConfigError(f"--example names {len(options.example)} pictures; give as many classes by --example-label")
    images = torch.stack([read_picture(path, network.grid) for path in options.example])
    labels = torch.tensor(options.example_label)
    if not 0 <= int(labels.min()) <= int(labels.max()) < class_count(network):
        raise ConfigError(f"--example-label must lie in 0..{class_count(network) - 1} for this network")
    return check_example(network, update.tensors, update.metadata, images, labels)


def _is_error(finding: Finding) -> bool:
    return finding.level == "error"


def _said(findings: tuple[Finding, ...], asked: bool) -> Iterator[str]:
    """The findings, worst first."""
    if not asked:
        return
    yield "findings" if findings else "no findings"
    for finding in findings:
        yield from _wrap(f"  {finding.level:<8}{finding.code}: {finding.message}")
    yield ""


def _lines(found: Identifiability, space: InputSpace | None) -> Iterator[str]:
    yield from _wrap(f"{found.verdict}: {found.reason}.")
    yield ""
    yield from _wrap(
        f"{found.entries} entries in the update, at most {found.numbers} of them independent, for {found.unknowns} "
        f"values ({_examples(found.examples)})."
    )
    yield from _wrap(_least(found))
    yield ""
    yield from _table(found.layers)
    yield from _wrap(spoken(_LEGEND, space))
    yield ""
    yield "exact methods"
    for method in found.methods:
        yield from _wrap(f"  {method.name:<8} {'applies' if method.applies else 'does not apply'}: {method.reason}")
    if found.limits:
        yield ""
        yield "what is not in the update"
    for finding in found.limits:
        yield from _wrap(f"  {finding.message}")


def _examples(count: int) -> str:
    return f"{count} example" if count == 1 else f"{count} examples"


def _least(found: Identifiability) -> str:
    if not found.bound_by:
        return "No linear layer's rank bounds the number of examples."
    what, share = f"the rank of {found.bound_by}'s gradient", f"{found.tolerance:.1g} of its norm"
    if found.least_examples > found.examples:
        return f"By {what} there would be at least {_examples(found.least_examples)}, or the update was altered."
    return f"At least {_examples(found.least_examples)}, by {what}, if nothing above {share} was added."


def _table(rows: tuple[LayerEquations, ...]) -> Iterator[str]:
    """The layers whose gradient is linear in their input; what the others hold is summed up."""
    shown = [row for row in rows if row.kind in ("Linear", "Conv2d")]
    rest = [row for row in rows if row not in shown]
    cells = [_COLUMNS, *(_cells(row) for row in shown[:_MOST_ROWS])]
    widths = [max(len(line[column]) for line in cells) for column in range(len(_COLUMNS))]
    for line in cells:
        left = [cell.ljust(width) for cell, width in zip(line[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(line[2:], widths[2:], strict=True)]
        yield "  ".join([*left, *right]).rstrip()
    if len(shown) > _MOST_ROWS:
        yield f"... {len(shown) - _MOST_ROWS} more with --json"
    if rest:
        numbers, kinds = sum(row.numbers for row in rest), ", ".join(sorted({row.kind for row in rest}))
        yield f"and {len(rest)} without linear equations of their own ({kinds}), {numbers} numbers"


def _cells(row: LayerEquations) -> tuple[str, ...]:
    rank = "-" if row.rank is None else f"{row.rank}/{'?' if row.rank_bound is None else row.rank_bound}"
    known = "-" if row.known is None else f"{row.known}{'*' if row.settled else ' '}"
    own = f"{'=' if row.measured else ''}{row.own}"
    counts = (str(row.entries), str(row.zeros), rank, str(row.numbers), str(row.unknowns), own, known)
    return (row.name or "(others)", row.kind, *counts)


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=" " * (len(text) - len(text.lstrip())),
        subsequent_indent=" " * (4 if text.startswith(" ") else 0),
        break_on_hyphens=False,
    )
