"""What changes while a page is open: values by name, sent as server-sent events when they change.

A template shows a value where an element says `data-live="NAME"`; the script of the page replaces its text.
"""

import json
from collections.abc import AsyncIterator, Callable, Sequence

import anyio
from anyio import to_thread

from inversefed.errors import InversefedError
from inversefed.experiments.browse import Line
from inversefed.experiments.ledger import Job, Ledger, Standing
from inversefed.experiments.schema import DONE, FAILED, QUEUED, RUNNING
from inversefed.experiments.serve.job_files import so_far
from inversefed.experiments.words import length, progress, said, shown_loss

__all__ = ["SLOTS", "Values", "events", "of_job", "of_lines", "of_running", "of_standing"]

Values = dict[str, str | float | bool]

SLOTS = 4
"""Running jobs that the page of a run shows with their pictures."""
_LOOK = 1.0
"""Seconds between two looks at the ledger."""
_TICK = 0.25
_SILENCE = 15
"""Looks after which something is sent, so that a connection that is gone is noticed."""


async def events(values: Callable[[], Values], ended: Callable[[], bool]) -> AsyncIterator[str]:
    """What changed, as server-sent events, until the values say that it is `over` or the server ends."""
    last: Values = {}
    looks = 0
    while not ended():
        try:
            now = await to_thread.run_sync(values)
        except InversefedError:  # busy or gone; the browser asks again
            return
        changed = {name: value for name, value in now.items() if last.get(name) != value}
        looks += 1
        if changed:
            yield f"data: {json.dumps(changed)}\n\n"
        elif looks % _SILENCE == 0:
            yield ":\n\n"
        last = now
        if now.get("over"):
            return
        for _ in range(int(_LOOK / _TICK)):
            if not ended():
                await anyio.sleep(_TICK)


def of_standing(standing: Standing, planned: bool, prefix: str = "") -> Values:
    """How far a run is.

    Args:
        standing: of its jobs.
        planned: whether all of them are written.
        prefix: of the names.
    """
    held = standing.counts[RUNNING] - standing.late
    left = standing.remaining(held)
    time = f"about {length(left)} left" if left is not None and held else ""
    if not held and (standing.open or not planned):
        time = "no process is at work on it"
    return {
        f"{prefix}said": said(standing) + ("" if planned else "; not all of its audits are written yet"),
        f"{prefix}fraction": (standing.total - standing.open) / max(1, standing.total),
        f"{prefix}left": time,
    }


def of_lines(lines: Sequence[Line]) -> Values:
    """What a table shows of jobs."""
    found: Values = {}
    for each in lines:
        found |= {
            f"{each.hash}-result": result_of(each),
            f"{each.hash}-psnr": decibels(each.psnr),
            f"{each.hash}-margin": decibels(each.margin, sign=True),
            f"{each.hash}-seconds": "" if each.seconds is None else f"{each.seconds:.1f}",
        }
    return found


def of_running(ledger: Ledger, running: Sequence[Line]) -> Values:
    """What there is of the running jobs, one a place; places that are empty are hidden."""
    found: Values = {"running": bool(running)}
    for place in range(SLOTS):
        there = place < len(running)
        found[f"slot-{place}-there"] = there
        each = running[place] if there else None
        now = None if each is None else progress(each.progress)
        found |= {
            f"slot-{place}-name": "" if each is None else f"{each.images}, seed {each.seed}",
            f"slot-{place}-address": "" if each is None else f"/jobs/{each.hash}",
            f"slot-{place}-fraction": 0.0 if now is None else now.fraction,
            f"slot-{place}-text": "begun" if now is None else str(now),
            f"slot-{place}-picture": "" if each is None else picture_of(ledger, each.hash),
        }
    return found


def of_job(ledger: Ledger, job: Job) -> Values:
    """How far a job is."""
    now = progress(job.progress)
    open_ = job.state in (QUEUED, RUNNING)
    return {
        "state": job.state,
        "fraction": 1.0 if not open_ else 0.0 if now is None else now.fraction,
        "iterations": "" if now is None else f"{now.iteration:,} of {now.iterations:,}",
        "loss": "" if now is None else shown_loss(now.loss),
        "left": "" if now is None or now.remaining is None else f"about {length(now.remaining)}",
        "picture": picture_of(ledger, job.hash) if open_ else "",
        "open": open_,
        "over": not open_,
    }


def picture_of(ledger: Ledger, hash: str) -> str:
    """The address of the picture so far, another one whenever the picture is; empty where there is none."""
    found = so_far(ledger.folder, hash)
    return "" if found is None else f"/jobs/{hash}/so_far.png?at={found.changed}"


def result_of(line: Line) -> str:
    """What there is to say of a job in a word or two."""
    if line.state == DONE:
        return line.verdict or DONE
    now = progress(line.progress) if line.state == RUNNING else None
    if now is not None:
        return f"{RUNNING}, {now.fraction:.0%}"
    return FAILED if line.state == FAILED else line.state


def decibels(value: float | None, sign: bool = False) -> str:
    """Decibels with one digit.

    >>> decibels(31.64), decibels(3.2, sign=True), decibels(None)
    ('31.6', '+3.2', '')
    """
    if value is None:
        return ""
    value = round(value, 1) + 0.0  # no minus before a zero
    return f"{value:+.1f}" if sign else f"{value:.1f}"
