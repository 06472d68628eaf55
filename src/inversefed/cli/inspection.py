"""`inversefed inspect`: what an update can give away, counted before any attack."""

import json
import textwrap
from collections.abc import Iterator

from inversefed.attacks.equations import LayerEquations
from inversefed.attacks.identify import Identifiability, identify
from inversefed.cli import registry
from inversefed.cli.options import Inspect
from inversefed.cli.setting import granted, read_setting
from inversefed.pipeline import observed

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
    """Make the update, count, print."""
    setting = read_setting(options)
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
    )
    found = identify(observation)
    if options.json:
        print(json.dumps({"identifiability": found.to_dict()}, indent=2, allow_nan=False))
    else:
        print("\n".join(_lines(found)))
    return 0


def _lines(found: Identifiability) -> Iterator[str]:
    yield from _wrap(f"{found.verdict}: {found.reason}.")
    yield ""
    yield from _wrap(
        f"{found.entries} entries in the update, at most {found.numbers} of them independent, for {found.unknowns} "
        f"values ({_examples(found.examples)})."
    )
    yield from _wrap(_least(found))
    yield ""
    yield from _table(found.layers)
    yield from _wrap(_LEGEND)
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
