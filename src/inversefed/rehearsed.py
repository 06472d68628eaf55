"""What an audit does on public stand-ins: choose its attack, and measure how often the verdict calls a leak.

    stand-ins = others in batches as large as the private one:   first those of the choice, then those of the power

Nothing here looks at the update that is audited: stand-ins, their updates, all draws, and so the choice and what it
rests on, are the same whatever it holds. Both can be kept (see `rehearsal_cache`), so that a sweep, or a federation of
many rounds, pays once.
"""

import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path

from inversefed.arguments import Watchers
from inversefed.assessment import Assessment, as_seen, paired, public_batches
from inversefed.attacks import Attack, SearchAttack
from inversefed.attacks.auto import AutoAttack
from inversefed.attacks.portfolio import ONE_COLOR, portfolio, searching
from inversefed.attacks.shown import shown
from inversefed.controls.rehearsal import Rehearsal, attempt, rehearse
from inversefed.errors import InversefedError
from inversefed.evaluation import controls
from inversefed.evaluation.choice import Choice, chosen, rungs
from inversefed.evaluation.metrics import peak_signal_noise_ratio
from inversefed.evaluation.power import Rehearsed
from inversefed.fl.simulate import simulate
from inversefed.fl.threat import Observation, ThreatModel
from inversefed.rehearsal_cache import RehearsalCache
from inversefed.report import environment
from inversefed.scenario import Scenario
from inversefed.seeds import seed_for
from inversefed.specs.written import hash_of_batch, hash_of_network, written
from inversefed.thresholds import EXACT_DB
from inversefed.types import Batch, Budget, Reconstruction, Status

__all__ = ["StandIns", "gain"]

_PICTURES, _FEWEST, _MOST = 8, 2, 4
"""Pictures on which attacks are compared, in at least two batches and at most four."""
_CHOOSING = 0.5
"""Of the time for rehearsals, what the choice may take where power is measured too."""
_NO_TIME = "there was no time for more"
_ENDED = "somebody ended it"


@dataclass(frozen=True, eq=False)
class StandIns:
    """Public pictures in the place of the private ones of an audit.

    Args:
        scenario: the audit.
        observation: its update, of which only the number of examples, the network, and what is known of the client are
            read.
        others: public pictures.
        budget: of the attack.
        watch: who is told of each run.
    """

    scenario: Scenario
    observation: Observation = field(repr=False)
    others: Batch | None = field(repr=False)
    budget: Budget
    watch: Watchers

    @cached_property
    def batches(self) -> tuple[Batch, ...]:
        """All of them; none where the client is not known, or nobody can label public pictures."""
        known = self.scenario.at_hand.received is None or self.observation.client_known
        many = 0 if self.others is None else len(self.others.images)
        return public_batches(self.observation, self.others, many) if known else ()

    @property
    def compared(self) -> int:
        """On how many of them attacks are compared, the first ones."""
        wanted = -(-_PICTURES // self.observation.num_examples)
        return min(len(self.batches), max(_FEWEST, min(_MOST, wanted)))

    def seen(self, batch: Batch, seed: int) -> Observation:
        """What the server would see of a batch, made as the real update was as far as that is known."""
        scenario, held = self.scenario, self.scenario.at_hand
        if held.received is not None:
            return as_seen(self.observation, batch)
        return simulate(
            held.network, batch,
            client=scenario.client, defenses=scenario.defenses, threat=scenario.threat, seed=seed,
        )  # fmt: skip

    def choice(self) -> tuple[Attack, Choice | None]:
        """The attack that did best on stand-ins, and what shows it; the audit's own where no choice was asked for.

        Raises:
            ConfigError: an attack without rules that name a search.
        """
        if not self.scenario.choose:
            return self.scenario.attack, None
        members = portfolio(self.scenario.attack)
        names = tuple(shown(each) for each in members)
        key = self.fingerprint("choice", members, self.batches[: self.compared])
        if (kept := self.cache.choice(key, names)) is not None:
            return members[kept.number], kept
        if not self.compared:
            return members[0], Choice(names, why="there are no public pictures to compare attacks on")
        run = _Comparison(self, members, self._seconds())
        try:
            found = run.chosen(names)
        except InversefedError as error:
            return members[0], Choice(names, why=f"no update can be made of public pictures: {error}")
        if not run.ended:
            self.cache.keep(key, found)
        return members[found.number], found

    def _seconds(self) -> float | None:
        limit = self.scenario.rehearsal_time
        return limit if limit is None or not self.scenario.rehearsals else _CHOOSING * limit

    def rehearsed(self, attack: Attack, choice: Choice | None) -> Rehearsed:
        """How the attack does on stand-ins, those of the choice left out where there are others.

        Args:
            attack: what is run on the private update.
            choice: how it was chosen.
        """
        scenario, planned = self.scenario, self.scenario.rehearsals
        if not planned:
            return Rehearsed()
        used = self.compared if choice is not None and choice.rungs else 0
        again = 0 < used == len(self.batches)
        left = self.batches if again else self.batches[used:]
        key = self.fingerprint("power", (attack,), left[:planned])
        if (kept := self.cache.rehearsed(key)) is not None:
            return kept
        seconds, spent = scenario.rehearsal_time, 0.0 if choice is None or choice.cached else choice.seconds
        done = rehearse(
            attack, left[:planned], self.seen, planned=planned, seed=scenario.seed, budget=self.budget,
            seconds=None if seconds is None else max(0.0, seconds - spent), watch=self.watch.controlled,
        )  # fmt: skip
        note = "The attack was chosen on these very stand-ins, so that on others it does worse, if anything"
        scores = tuple(_score(each, scenario.threat) for each in done.done)
        found = Rehearsed(scores, planned, done.why, note if again else "", done.seconds)
        if scores and not done.ended:
            self.cache.keep(key, found)
        return found

    @cached_property
    def cache(self) -> RehearsalCache:
        """Where rehearsals are kept."""
        folder = self.watch.rehearsal_cache
        return RehearsalCache(None if folder is None else Path(folder).expanduser())

    def fingerprint(self, what: str, attacks: Sequence[Attack], batches: Sequence[Batch]) -> str:
        """SHA-256 of all that decides what rehearsals come to; nothing of the private update is in it.

        Args:
            what: choice or power.
            attacks: those that are run.
            batches: the stand-ins.
        """
        scenario, held = self.scenario, self.scenario.at_hand
        client = scenario.client if held.received is None else self.observation.client
        asked = (scenario.rehearsals, scenario.rehearsal_time, scenario.time_budget, scenario.max_iterations)
        content = [
            what,
            [written(each) for each in attacks],
            [hash_of_batch(each) for each in batches],
            hash_of_network(held.network),
            [
                written(held.network.loss),
                held.network.mean.tolist(),
                held.network.std.tolist(),
                str(held.network.device),
            ],
            [written(client), [written(each) for each in scenario.defenses], asdict(scenario.threat)],
            [self.observation.num_examples, self.observation.labels is None, self.observation.buffers is None],
            [scenario.seed, scenario.nulls == 0, *asked, dict(environment.describe())],
        ]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(eq=False)
class _Comparison:
    """Runs the members of a portfolio on the same stand-ins."""

    stand_ins: StandIns
    members: Sequence[Attack]
    seconds: float | None
    ended: bool = False
    done: int = 0
    _began: float = field(default_factory=lambda: time.monotonic())
    _iterations: dict[int, int] = field(default_factory=dict)

    def chosen(self, names: Sequence[str]) -> Choice:
        """Compare them by successive halving, unless exact methods make that needless."""
        if self._solved():
            found = Choice(tuple(names), why="an exact method recovers a public stand-in, so that no search is needed")
        else:
            found = chosen(names, len(self.observations), self._gain)
            if len(found.rungs) < len(rungs(len(names))):
                found = replace(found, why=_ENDED if self.ended else _NO_TIME)
        return replace(found, seconds=time.monotonic() - self._began)

    @cached_property
    def observations(self) -> list[Observation]:
        """The updates of the stand-ins."""
        seed, batches = self.stand_ins.scenario.seed, self.stand_ins.batches[: self.stand_ins.compared]
        return [self.stand_ins.seen(batch, seed_for(seed, "stand-in", place)) for place, batch in enumerate(batches)]

    def _solved(self) -> bool:
        """Whether the exact methods of the attack recover the first stand-in, so that its search is not run."""
        attack, observation, budget = self.members[0], self.observations[0], self._budget(1.0)
        if budget is None or not isinstance(attack, AutoAttack) or len(attack.plan(observation).attacks) < 2:
            return False
        found = attempt(attack.with_search(ONE_COLOR), observation, self._seed(0), budget)
        return found is not None and found.proven

    def _gain(self, member: int, place: int, share: float) -> float | None:
        """The score of a member on a stand-in; `None` where somebody ended it, or there was no time."""
        observation, budget = self.observations[place], self._budget(share)
        if self.ended or budget is None:
            return None
        attack = searching(self.members[member])
        steps = self._whole(member, attack, observation)
        found = attempt(
            attack, observation, self._seed(place), replace(budget, max_iterations=math.ceil(share * steps))
        )
        self.ended |= found is not None and found.status is Status.INTERRUPTED
        late = self.seconds is not None and time.monotonic() - self._began > self.seconds
        if self.ended or late:
            return None
        self.done += 1
        total = len(self.observations) * sum(count for count, _ in rungs(len(self.members)))
        watch = self.stand_ins.watch.controlled
        self.ended = watch is not None and bool(watch(self.done, total))
        return gain(found, self.stand_ins.batches[place], self.stand_ins.scenario.threat)

    def _whole(self, member: int, attack: Attack, observation: Observation) -> int:
        """Iterations of a whole run of a member."""
        if (asked := self.stand_ins.scenario.max_iterations) is not None:
            return asked
        if member not in self._iterations:
            assert isinstance(attack, SearchAttack)  # as all members of a portfolio
            self._iterations[member] = attack.search(observation).max_iterations
        return self._iterations[member]

    def _budget(self, share: float) -> Budget | None:
        """What a run with this share of the iterations may spend; `None` where there is no time left."""
        own = self.stand_ins.budget
        left = math.inf if self.seconds is None else self.seconds - (time.monotonic() - self._began)
        seconds = min(left, math.inf if own.seconds is None else share * own.seconds)
        if seconds <= 0:
            return None
        return Budget(seconds if math.isfinite(seconds) else None, own.max_iterations)

    def _seed(self, place: int) -> int:
        """Of the draws of every member on a stand-in, which are the same."""
        return seed_for(self.stand_ins.scenario.seed, "compared attack", place)


def gain(found: Reconstruction | None, truth: Batch, threat: ThreatModel) -> float:
    """By how many dB (PSNR, counted up to 40) a result is above each picture's own best color, on average.

    Args:
        found: what an attack came to; `None` where it refused.
        truth: the public pictures.
        threat: whether pictures are paired within labels.

    Returns:
        The mean over the pictures; minus infinity where there is no result.

    >>> import torch
    >>> truth = Batch(torch.linspace(0, 1, 64).view(1, 1, 8, 8), torch.tensor([0]))
    >>> gray = Reconstruction(torch.full((1, 1, 8, 8), 0.5), truth.labels, 0.0, Status.FINISHED)
    >>> round(gain(gray, truth, ThreatModel()), 3), gain(None, truth, ThreatModel())
    (0.0, -inf)
    """
    if found is None or not bool(found.images.isfinite().all()):
        return -math.inf
    images = found.images[paired(found, truth, threat).to(found.images.device)]
    scores = (peak_signal_noise_ratio(each, truth.images) for each in (images, controls.constant(truth)))
    reached, color = (each.double().clamp(max=EXACT_DB) for each in scores)
    return float((reached - color).mean())


def _score(done: Rehearsal, threat: ThreatModel) -> float:
    """By how much the best picture of a rehearsal is above the plain ones; infinity where one is exact."""
    if done.found is None:
        return -math.inf
    return Assessment(done.observation, done.truth, threat, done.found).rehearsed
