"""The control runs of an audit: the same attack where there is nothing to find, or somebody else's to find.

    null updates (k), the real one once more on the same terms, the prior alone, another example's update

A null update draws by (seed, role, number), so a null run is the same alone, first, or after others.
All repeats have the same iterations and the same starts, so that under a null update the real one's repeat and the null
runs are exchangeable; `evaluation.verdict` says what follows. The full attack may run longer, and is not compared with
the null runs by itself. A search is repeated for as many iterations as make all repeats together cost about what the
attack did; one that is as short as that is its own repeat. Of a choice of attacks its search is repeated: exact methods
are proven by the forward operator, and need no statistics.

Within a time budget repeats have as many of these iterations as fit, by the pace of the repeated search itself on a
null update. If they turn out slower, because another process came up, all begin anew with fewer, so that the real
repeat and the null runs stay alike.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Generator

from inversefed.attacks import Attack, Search, SearchAttack
from inversefed.attacks.matching_error import completed, matching_error
from inversefed.attacks.search.time_schedule import Pace
from inversefed.controls.null_update import null_observation
from inversefed.errors import ConfigError, InversefedError
from inversefed.fl.foreign import foreign_code
from inversefed.fl.threat import Observation
from inversefed.seeds import seed_for
from inversefed.types import Budget, Reconstruction, Status

__all__ = ["SHARE", "ControlPlan", "ControlRuns", "null_run", "plan", "run"]

SHARE = 0.6
"""Of a time budget, what the attack itself gets where null runs follow."""

_STARTS = 4
"""Starts under the prior alone."""

_PART = 0.8
"""Of the time there is, what repeats are planned for."""

_LOOK = 0.5
"""Of the time of a run, for how long its steps are measured."""

_PASSES = 2
"""A step of a search takes more than this many updates of the client: the update, and its derivative."""

_ONCE = 0.1
"""The share of the time from which they are measured only once."""

_FEWER = 0.4
"""The share of their iterations down to which it is worth it to begin repeats anew; with less they show no more than
those that are done."""

_ODD = 0x9E3779B97F4A7C15
"""Takes the seed of a second start far from those of worlds and attacks: the double of a seed, and the number after."""

Watch = Callable[[int, int], object]
"""(control runs done, of how many) -> whether to stop."""


@dataclass(frozen=True)
class ControlPlan:
    """How the attack is repeated.

    Args:
        attack: what is run.
        iterations: of each run; `None` leaves it to the attack.
        nulls: how many null updates.
        seed: of null updates and starts.
        runs: how many runs a repeat takes: two that are compared where there is no truth.
        seconds: for all of it; `None` for no limit.
        again: whether the real update is attacked from another start too, to see which pictures come back the same.
        wanted: iterations of each run if there were no limit of time.
        fewest: those with which a run shows a first picture.
    """

    attack: Attack
    iterations: int | None
    nulls: int
    seed: int
    runs: int = 1
    seconds: float | None = None
    again: bool = False
    wanted: int | None = None
    fewest: int = 1


@dataclass(frozen=True, eq=False)
class ControlRuns:
    """What the control runs came to; a tuple of reconstructions is one repeat.

    Each has its `matching_error`, whatever the attack minimizes.

    Args:
        repeat: of the attack on the real update; empty where it was not carried out.
        nulls: of each null run, in order; empty where the attack refused the null update.
        prior: what the prior alone gives, from each start.
        other: what another example's update gives.
        again: what the real update gives from another start.
        planned: how many null runs were asked for.
        iterations: of each run, where the attack counts them.
        seconds: wall time.
        wanted: iterations of each run if there were no limit of time.
        fewest: those with which a run shows a first picture.
        why: why nothing was carried out though it was asked for, as a clause.
    """

    repeat: tuple[Reconstruction, ...] = field(default=(), repr=False)
    nulls: tuple[tuple[Reconstruction, ...], ...] = field(default=(), repr=False)
    prior: tuple[Reconstruction, ...] = field(default=(), repr=False)
    other: tuple[Reconstruction, ...] = field(default=(), repr=False)
    again: tuple[Reconstruction, ...] = field(default=(), repr=False)
    planned: int = 0
    iterations: int | None = None
    seconds: float = 0.0
    wanted: int | None = None
    fewest: int = 1
    why: str = ""

    @property
    def complete(self) -> bool:
        """Whether as many null runs as were asked for were carried out."""
        return len(self.nulls) == self.planned


class _Cut(Exception):
    """Time, Ctrl-C or the watcher ended the control runs."""


class _Slow(Exception):
    """The runs take longer than planned; so many iterations would fit into the time that is left."""

    def __init__(self, iterations: int) -> None:
        self.iterations = iterations


def plan(
    attack: Attack,
    observation: Observation,
    found: Reconstruction,
    nulls: int,
    *,
    seed: int,
    budget: Budget,
    left: float | None,
    runs: int = 1,
) -> ControlPlan:
    """Decide what is repeated, and for how long.

    Args:
        attack: what the audit ran.
        observation: what it attacked.
        found: what it found.
        nulls: how many null runs.
        seed: of the audit.
        budget: that the attack had.
        left: seconds that are left of the audit's budget; `None` for no limit.
        runs: runs a repeat.
    """
    began, repeated = time.monotonic(), searched(attack, observation)
    steps = _steps_of(repeated, found)
    if isinstance(repeated, Search):
        repeated = repeated.one_start()
    wanted = _iterations(repeated, budget.max_iterations, steps, nulls, runs)
    planned = ControlPlan(repeated, wanted, nulls, seed, runs, left, wanted=wanted)
    if not isinstance(repeated, Search) or wanted is None:
        return planned
    planned = replace(planned, fewest=min(wanted, repeated.first_picture))
    if left is None or left <= 0:
        return planned
    iterations = _affordable(planned, observation, found, left)
    seconds = left - (time.monotonic() - began)
    return replace(planned, iterations=max(1, iterations), seconds=seconds if iterations else 0.0)


def _steps_of(attack: Attack, found: Reconstruction) -> int:
    """Steps that the attack took; those that it would have taken, where it was stopped."""
    steps = sum(candidate.iterations for candidate in found.candidates)
    if found.status is Status.STOPPED and isinstance(attack, Search):
        return max(steps, attack.planned_steps)
    return steps


def _affordable(planned: ControlPlan, observation: Observation, found: Reconstruction, left: float) -> int:
    """As many of the iterations as fit into the time, by those of the same search on a null update.

    None where not even one does, by what the client takes for one update. Where not all do, it is asked twice: the
    first run of a search may wait for what is loaded only once. Where that takes much of the time, once is enough.
    """
    began, share = time.monotonic(), _PART / _count(planned)
    matching_error(observation, found.images, found.labels)
    took = time.monotonic() - began
    if share * (left - took) < _PASSES * took:
        return 0
    iterations = _measured(planned, observation, share * (left - took))
    took = time.monotonic() - began
    if iterations == planned.iterations or took > _ONCE * left:
        return iterations
    return max(iterations, _measured(planned, observation, share * (left - took)))


def _measured(planned: ControlPlan, observation: Observation, each: float) -> int:
    """How many of the iterations of a run fit into its seconds."""
    attack, wanted = planned.attack, planned.iterations
    assert wanted is not None
    pace, null = Pace(_LOOK * each), nothing(planned, observation, "pace", 0)
    budget = Budget(each, wanted, lambda step: pace(step) or pace.measured)
    try:
        with foreign_code("a repeat of the attack"):  # as in `_attempt`
            attack(null, Generator().manual_seed(planned.seed), budget)
    except InversefedError:
        return wanted
    return max(1, min(wanted, int((each - pace.setup) / pace.step)))


def _count(planned: ControlPlan) -> int:
    """How many runs there are, at most."""
    return (
        planned.runs * (planned.nulls + 1)
        + (_STARTS if isinstance(planned.attack, Search) and planned.attack.has_prior else 0)
        + 2
    )


def searched(attack: Attack, observation: Observation) -> Attack:
    """The search of an attack that has one, which may choose or adapt it; any other attack as it is.

    Raises:
        ConfigError: what it calls its search is none.
    """
    if not isinstance(attack, SearchAttack):
        return attack
    search: object = attack.search(observation)
    if not isinstance(search, Search):
        missing = [name for name in dir(Search) if not (name.startswith("_") or hasattr(search, name))]
        raise ConfigError(
            f"the search of {attack!r} cannot be repeated for the controls: {search!r} has no {', '.join(missing)} "
            "(see inversefed.attacks.Search); add them, or leave out `search`"
        )
    return search


def _iterations(attack: Attack, most: int | None, steps: int, nulls: int, runs: int) -> int | None:
    """So many that all repeats together take about the steps of the attack, but enough for a picture to show."""
    if not isinstance(attack, Search):
        return most
    return min(most or attack.max_iterations, max(attack.first_picture, steps // ((nulls + 1) * runs)))


def own_repeat(
    attack: Attack, budget: Budget, found: Reconstruction, planned: ControlPlan
) -> tuple[Reconstruction, ...]:
    """The attack's own result where it ran on the same terms as a repeat; else nothing."""
    whole = found.status in (Status.FINISHED, Status.CONVERGED) and budget.resume is None and planned.runs == 1
    own = budget.max_iterations or (attack.max_iterations if isinstance(attack, Search) else None)
    return (found,) if whole and attack == planned.attack and own == planned.iterations else ()


def run(
    planned: ControlPlan,
    observation: Observation,
    other: Observation | None = None,
    repeat: tuple[Reconstruction, ...] | None = (),
    watch: Watch | None = None,
    prior: bool = True,
) -> ControlRuns:
    """Carry out the control runs, until they are done or something ends them.

    Args:
        planned: what is run.
        observation: the real one.
        other: another example's update, as the server would see it.
        repeat: the attack's own result, if it is its own repeat; `None` for no repeat at all.
        watch: told of each run that is done; a true answer ends them.
        prior: whether the prior alone is run too, where the attack is a search.
    """
    began = time.monotonic()
    deadline = math.inf if planned.seconds is None else began + planned.seconds
    while True:
        try:
            done = _carried_out(planned, observation, other, repeat, watch, prior, deadline)
        except _Slow as slow:
            planned, repeat = replace(planned, iterations=slow.iterations), None if repeat is None else ()
        else:
            return replace(done, seconds=time.monotonic() - began)


def _carried_out(
    planned: ControlPlan,
    observation: Observation,
    other: Observation | None,
    repeat: tuple[Reconstruction, ...] | None,
    watch: Watch | None,
    prior: bool,
    deadline: float,
) -> ControlRuns:
    """What `run` does, at the pace that was planned.

    Raises:
        _Slow: it is another, so that not all runs will be done in time.
    """
    done = ControlRuns(
        repeat or (), planned=planned.nulls, iterations=planned.iterations, wanted=planned.wanted, fewest=planned.fewest
    )
    steps, began = list(_steps(planned, observation, other, repeat == (), prior, deadline)), time.monotonic()
    try:
        for count, step in enumerate(steps, start=1):
            began = began if done.nulls else time.monotonic()
            if began >= deadline:
                raise _Cut
            done = step(done)
            if watch is not None and watch(count, len(steps)):
                break
            if done.nulls:
                _keep_up(planned, len(done.nulls), time.monotonic() - began, deadline)
    except (_Cut, KeyboardInterrupt):
        pass  # what is done by now is the result, and says that it is not complete
    return done


def _keep_up(planned: ControlPlan, done: int, took: float, deadline: float) -> None:
    """Ask whether the null runs that are left will be done in time, at the pace of those that are done.

    Raises:
        _Slow: they will not, but all of them would with fewer iterations that are worth it.
    """
    seconds, each = deadline - time.monotonic(), took / done
    if planned.iterations is None or planned.iterations < 2 or (planned.nulls - done) * each <= seconds:
        return
    iterations = int(_PART * seconds / ((planned.nulls + 2) * each) * planned.iterations)
    if iterations >= max(1.0, _FEWER * planned.iterations):
        raise _Slow(min(iterations, planned.iterations - 1))


def _steps(
    planned: ControlPlan,
    observation: Observation,
    other: Observation | None,
    repeat: bool,
    prior: bool,
    deadline: float,
) -> Iterator[Callable[[ControlRuns], ControlRuns]]:
    """The runs in order, each from what is done before to what is done then."""
    once = replace(planned, runs=1)

    search = planned.attack if isinstance(planned.attack, Search) else None

    def alone(search: Search, done: ControlRuns) -> ControlRuns:
        steps = once.iterations if search.has_prior else 1  # without a prior, starts stay as they are
        shut = replace(once, attack=search.prior_alone(_STARTS), iterations=steps)
        found = _attempt(shut, nothing(planned, observation, "prior", 0), deadline)
        return replace(done, prior=tuple(start for each in found for start in _starts(each)))

    def null(done: ControlRuns) -> ControlRuns:
        return replace(done, nulls=(*done.nulls, null_run(planned, observation, len(done.nulls), deadline)))

    if prior and search is not None:
        yield partial(alone, search)
    if other is not None:
        yield lambda done: replace(done, other=_attempt(once, other, deadline))
    if repeat:
        yield lambda done: replace(done, repeat=_attempt(planned, observation, deadline))
    if planned.again and search is not None:
        yield lambda done: replace(done, again=_attempt(once, observation, deadline, first=1))
    yield from [null] * planned.nulls


def null_run(
    planned: ControlPlan, observation: Observation, number: int, deadline: float = math.inf
) -> tuple[Reconstruction, ...]:
    """Null run number `number`, from 0: the same whether it is run alone, first, or after any others.

    Args:
        planned: how the attack is repeated.
        observation: the real one, whose numbers are shuffled.
        number: which null run.
        deadline: by the monotonic clock.
    """
    return _attempt(planned, nothing(planned, observation, "null", number), deadline)


def nothing(planned: ControlPlan, observation: Observation, role: str, number: int) -> Observation:
    """The null update of a role's run of that number; its draws are its own."""
    return null_observation(observation, Generator().manual_seed(seed_for(planned.seed, role, number)))


def _attempt(
    planned: ControlPlan, observation: Observation, deadline: float, first: int = 0
) -> tuple[Reconstruction, ...]:
    """Run the attack, from as many starts as a repeat takes; nothing where it refuses the update.

    Args:
        planned: the attack.
        observation: what it attacks.
        deadline: by the monotonic clock.
        first: number of the first start; the same number is the same start.

    Raises:
        _Cut: something ended it before its time.
    """
    found = []
    for number in range(first, first + planned.runs):
        left = deadline - time.monotonic()
        if left <= 0:
            raise _Cut
        starts = Generator().manual_seed((2 * planned.seed + 1 + number * _ODD) % 2**62)
        budget = Budget(left if math.isfinite(left) else None, planned.iterations)
        try:
            with foreign_code("a repeat of the attack"):  # a closed form may meet a singular matrix
                result = (_second(planned.attack) if number else planned.attack)(observation, starts, budget)
        except InversefedError:
            return ()
        if result.status is Status.INTERRUPTED or (result.status is Status.STOPPED and math.isfinite(left)):
            raise _Cut
        found.append(completed(result, planned.attack, observation))
    return tuple(found)


def _second(attack: Attack) -> Attack:
    """The same attack from a start that differs, where it has starts."""
    return attack.one_start(apart=True) if isinstance(attack, Search) else attack


def _starts(found: Reconstruction) -> tuple[Reconstruction, ...]:
    """What each restart came to, as a result of its own."""
    return tuple(Reconstruction(each.images, each.labels, each.loss, each.status) for each in found.candidates)
