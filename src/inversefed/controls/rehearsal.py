"""Rehearsals: the same attack on updates of public pictures, whose truth is known, in the same setting.

    for k = 1 .. N:   u_k = defend(client(network, x_k, y_k)),   x^_k = attack(observe(u_k)),   x^_k against x_k

A null update tells how often the verdict calls a leak where there is none; a rehearsal tells how often it calls one
where there is one, which is the power of the test. A "no" of an attack that recovers none of its stand-ins says nothing
of the update; a "no" of one that recovers all of them does. Nothing here looks at the update that is audited: the
stand-ins, their updates and the draws of their attacks are the same whatever it holds.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Generator

from inversefed.attacks import Attack
from inversefed.attacks.matching_error import completed
from inversefed.errors import InversefedError
from inversefed.fl.foreign import foreign_code
from inversefed.fl.threat import Observation
from inversefed.seeds import seed_for
from inversefed.types import Batch, Budget, Reconstruction, Status

__all__ = ["Rehearsal", "Rehearsals", "StandIn", "attempt", "rehearse"]

StandIn = Callable[[Batch, int], Observation]
"""(public batch, its number) -> what the server would see of it."""


_ENDED, _LATE = "somebody ended them", "there was no time for more"


@dataclass(frozen=True, eq=False)
class Rehearsal:
    """One stand-in batch and what became of it.

    Args:
        truth: the public pictures, `[n, c, h, w]`, with labels.
        observation: what the server saw of them.
        found: what the attack came to; `None` where it refused the update.
    """

    truth: Batch = field(repr=False)
    observation: Observation = field(repr=False)
    found: Reconstruction | None = field(repr=False)


@dataclass(frozen=True, eq=False)
class Rehearsals:
    """All rehearsals of an audit.

    Args:
        done: those that were carried out, in order.
        planned: how many were asked for.
        seconds: wall time of all.
        why: why fewer were carried out than asked for, as a sentence without its stop; empty where none is missing.
        ended: whether somebody ended them.
    """

    done: tuple[Rehearsal, ...] = ()
    planned: int = 0
    seconds: float = 0.0
    why: str = ""
    ended: bool = False


def rehearse(
    attack: Attack,
    batches: tuple[Batch, ...],
    seen: StandIn,
    *,
    planned: int,
    seed: int,
    budget: Budget,
    seconds: float | None = None,
    watch: Callable[[int, int], object] | None = None,
) -> Rehearsals:
    """Run the attack on the update of each batch, as it runs on the real one.

    Args:
        attack: what the audit runs.
        batches: the stand-ins.
        seen: the world, from a batch to what the server sees.
        planned: how many rehearsals were asked for.
        seed: of the audit; each rehearsal draws by (seed, role, number).
        budget: seconds and iterations of each, as the attack has them.
        seconds: for all of them; one that does not end in time is left out. `None` for no limit.
        watch: told of each one that is done; a true answer ends them.
    """
    began, done, why, ended = time.monotonic(), [], "", False
    for number, batch in enumerate(batches):
        left = math.inf if seconds is None else seconds - (time.monotonic() - began)
        if left <= 0:
            why = _LATE
            break
        try:
            observation = seen(batch, seed_for(seed, "rehearsal", number))
        except InversefedError as error:
            why = f"no update can be made of public pictures: {error}"
            break
        limit = min(left, math.inf if budget.seconds is None else budget.seconds)
        own = Budget(limit if math.isfinite(limit) else None, budget.max_iterations)
        found = attempt(attack, observation, seed_for(seed, "rehearsed attack", number), own)
        if found is not None and (found.status is Status.INTERRUPTED or _cut(found, limit, budget.seconds)):
            ended = found.status is Status.INTERRUPTED
            why = _ENDED if ended else _LATE
            break
        done.append(Rehearsal(batch, observation, found))
        if watch is not None and watch(number + 1, len(batches)) and number + 1 < len(batches):
            why, ended = _ENDED, True
            break
    if not why and len(done) < planned:
        why = f"there are public pictures for {len(batches)} only"
    return Rehearsals(tuple(done), planned, time.monotonic() - began, why, ended)


def _cut(found: Reconstruction, limit: float, own: float | None) -> bool:
    """Whether a rehearsal had less time than the attack has, and would have needed it."""
    return found.status is Status.STOPPED and limit < (math.inf if own is None else own)


def attempt(attack: Attack, observation: Observation, seed: int, budget: Budget) -> Reconstruction | None:
    """Run an attack once on the update of a stand-in.

    Args:
        attack: what is run.
        observation: what the server sees of a stand-in.
        seed: of its draws.
        budget: seconds and iterations.

    Returns:
        What it found, with its matching error; `None` where it refuses the update.
    """
    try:
        with foreign_code("a rehearsal of the attack"):
            return completed(attack(observation, Generator().manual_seed(seed), budget), attack, observation)
    except InversefedError:
        return None
