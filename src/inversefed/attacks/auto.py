"""The default attack: chosen by what the server sees, exact methods where they apply, else the search that fits.

    known defenses: the search that has them in its model, beside what follows
    every exact method whose rule holds, in turn, each verified; else
    the search of the first rule that holds

Under max pooling exact methods take an alternation that may fail, so there the search goes first. What matches the
update best, of all that was found, is the result. The choice is data, two ordered tables of rules (when, attack, why);
the reason of what was chosen becomes a finding of the report.

Of a time budget each method may take half of what is left where others follow, so that the search always gets to a
picture. A search and those that go on from it share what is left in proportion to their iterations, for the last
decibels are found in pixels; one that does not fit into its part is made shorter (see `time_schedule`). What was cut
short is told, for it might have found more.
"""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator, Tensor

from inversefed.attacks import Attack
from inversefed.attacks.adaptive import Adaptive
from inversefed.attacks.constant_color import matched_color
from inversefed.attacks.matching_error import completed, matching_error
from inversefed.attacks.rules import Facts, Polish, Rule, applies
from inversefed.attacks.search.inversion import GradientInversion
from inversefed.attacks.search.time_schedule import as_fits
from inversefed.attacks.unknown_client import attacked
from inversefed.errors import ConfigError, InversefedError, ThreatModelError, UnsupportedNetworkError
from inversefed.findings import Code
from inversefed.fl.dropout import dropout_layers
from inversefed.fl.foreign import Callback, foreign_code
from inversefed.fl.threat import Observation
from inversefed.inputs import pictured
from inversefed.thresholds import EXACT, SOLVED
from inversefed.types import Budget, Candidate, Finding, Inputs, Reconstruction, Status, Step

__all__ = ["AutoAttack"]

_CLEARLY = 0.03
"""Share of what pictures of one color each leave of the update, below which a picture explains clearly more. Above it
an underdetermined search is as often farther from the truth than one color as it is nearer."""
_MUCH = 0.5
"""Matching cost below which pictures of one color each explain much of the update; a search that explains more than
colors that explain hardly anything is not given up for them."""
_SCARCE = 0.5
"""Share of the pictures' values below which an update holds few independent numbers."""
_CHOOSING = 0.25
"""Of the time, what equations may take that a choice asks for."""
_NOT_BEGUN = "not begun"


@dataclass(frozen=True)
class Plan:
    """What is tried on an observation.

    Args:
        attacks: in order, one of them a search.
        search: which one that is.
        why: the reason for it.
        bounded: whether that search keeps to the range of pixels.
        steady: whether its prior says what the update does not.
        also: the searches that are run from their own start besides.
        polish: the searches that go on from what it found.
        share: of the matching error before, what they must not leave to count.
        late: the exact methods that are left out where something near was found.
    """

    attacks: tuple[Attack, ...]
    search: GradientInversion
    why: str
    bounded: bool
    steady: bool
    also: tuple[GradientInversion, ...]
    polish: tuple[GradientInversion, ...]
    share: float
    late: tuple[Attack, ...]


@dataclass(frozen=True)
class AutoAttack:
    """Try what is exact, then search.

    Args:
        exact: exact methods; all whose rule holds are tried, in order.
        searches: of these rules the first that holds names the search.
        pooled: the search for a first picture under max pooling, where an exact method follows.
        in_range: the search that keeps to the range of pixels: what is tried besides where one color explains the
            update as well as what was found.
    """

    exact: tuple[Rule[Attack], ...]
    searches: tuple[Rule[GradientInversion], ...]
    pooled: GradientInversion
    in_range: GradientInversion

    def __post_init__(self) -> None:
        if not self.searches:
            raise ConfigError("a choice needs at least one search, for updates that no exact method takes")

    def with_settings(self, **changes: Any) -> "AutoAttack":
        """The same choice, its searches with other restarts, precision or compilation."""
        return replace(
            self,
            searches=tuple(replace(rule, attack=rule.attack.with_settings(**changes)) for rule in self.searches),
            pooled=self.pooled.with_settings(**changes),
            in_range=self.in_range.with_settings(**changes),
        )

    def with_search(self, search: GradientInversion) -> "AutoAttack":
        """The same choice with one search for all rules; each of them still says how the client is simulated.

        Args:
            search: what is run where no exact method recovers the pictures.
        """
        rules = (
            replace(
                rule, attack=replace(search, simulation=rule.attack.simulation), why="this search was asked for",
                polish=None, bounded=search == self.in_range, steady=True, also=(),
            )
            for rule in self.searches
        )  # fmt: skip
        return replace(self, searches=tuple(rules))

    def search(self, observation: Observation) -> GradientInversion:
        """The search that fits; where defenses are known, with these in its model."""
        return self.informed().search(observation) if observation.defenses else self._chosen(Facts(observation))[0]

    def _chosen(self, facts: Facts) -> tuple[GradientInversion, str, Rule[GradientInversion]]:
        """The search of the first rule that holds, and why; its masks are searched where the client's dropout is on."""
        holding = ((rule, why) for rule in self.searches if (why := rule.holds(facts)) is not None)
        rule, why = next(holding, (self.searches[-1], "no rule holds, so the last one is taken"))
        masked = dropout_layers(facts.observation.network.module)
        if not masked or rule.masks is None:
            return rule.attack, why, rule
        search = replace(rule.attack, simulation=rule.masks)
        return search, f"{why}; the masks of {', '.join(masked)} are searched too", rule

    def plan(self, observation: Observation, budget: Budget = Budget()) -> Plan:
        """All that is tried, in order, and why its search was chosen."""
        facts = Facts(observation, budget.within(_CHOOSING))
        search, why, rule = self._chosen(facts)
        holding = [each for each in self.exact if each.holds(facts) is not None]
        methods = tuple(each.attack for each in holding)
        if facts.sentences:  # ids have no derivative, so nothing is searched
            return Plan(methods, search, "token ids are not searched", False, False, (), (), 1.0, ())
        attacks = (*methods, search)
        if observation.num_examples == 1 and (found := facts.max_pools):
            if any(applies(method, observation) for method in methods):
                fits = rule.bounded or rule.steady or not pictured(observation.network.space)
                search = search if fits else self.pooled
                attacks = (search, *methods)
                why = f"{why}; {', '.join(found)} makes exact methods slow, so they follow"
            else:
                attacks, why = (search,), f"{why}; no exact method applies"
        own, late = search == rule.attack, tuple(each.attack for each in holding if each.late)
        follows = rule.polish if own and rule.polish is not None and rule.polish.suits(observation) else Polish(())
        bounded, steady, also = own and rule.bounded, own and rule.steady, rule.also if own else ()
        return Plan(attacks, search, why, bounded, steady, also, follows.searches, follows.share, late)

    def informed(self) -> Adaptive:
        """This choice beside a search that has the known defenses in its model."""
        return Adaptive(self)

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Attack until a result is exact, the plan is carried out, or the budget ends it.

        Raises:
            InversefedError: as the search that was chosen raises.
        """
        if observation.defenses:
            return self.informed()(observation, generator, budget)
        if not observation.client_known and observation.client.sends != "gradient":
            return self._of_unknown_client(observation, generator, budget)
        return self._carried_out(observation, generator, budget)

    def _of_unknown_client(self, observation: Observation, generator: Generator, budget: Budget) -> Reconstruction:
        """Attack with the client's settings as they are read from the update; only the first search is kept."""
        began, watcher = time.monotonic(), None if budget.on_step is None else Callback(budget.on_step)
        asked, kept = False, budget

        def look(step: Step) -> bool:
            nonlocal asked
            asked |= watcher is not None and bool(watcher(replace(step, seconds=time.monotonic() - began)))
            return asked

        def attack(seen: Observation, share: float) -> Reconstruction | None:
            nonlocal asked, kept
            over = kept is not budget and budget.seconds is not None and time.monotonic() - began >= budget.seconds
            if asked or over:
                return None
            left = budget.left(began)
            turn = replace(kept, on_step=look, seconds=None if left is None else share * left)
            kept = replace(budget, checkpoint=None, resume=None, restart=None)
            found = self._carried_out(seen, generator, turn)
            asked |= found.status is Status.INTERRUPTED
            return found

        return attacked(observation, attack, budget.within(1.0))

    def _carried_out(self, observation: Observation, generator: Generator, budget: Budget) -> Reconstruction:
        watcher = None if budget.on_step is None else Callback(budget.on_step)
        best, failed = _Best(observation, replace(budget, on_step=watcher), watcher), None
        plan = self.plan(observation, budget)
        reasons: list[str] = []
        for place, attack in enumerate(plan.attacks, start=1):
            searches = attack is plan.search
            if best.distance < SOLVED and (searches or attack in plan.late):
                break  # no search nor more peeling comes nearer
            if searches:
                reasons.append(plan.why)
            try:
                part = _part(attack, plan.attacks[place:] or (*plan.also, *plan.polish))
                if searches:
                    best.search(plan.search, generator, part)
                else:
                    best.solve(attack, generator, part)
                    reasons.append(f"{type(attack).__name__} {best.how(attack)}")
            except (ThreatModelError, UnsupportedNetworkError) as error:
                failed = error if failed is None or searches else failed
                reasons.append(f"{type(attack).__name__} does not apply: {error}")
            if best.ended:
                break
        if failed is not None and best.found is None:
            raise failed if plan.search in plan.attacks else ThreatModelError("; ".join(reasons))
        return self._refined(best, plan, generator).explained(reasons)

    def _refined(self, best: "_Best", plan: Plan, generator: Generator) -> "_Best":
        """Go on from what the search found where its rule says so, and never end below one color."""
        if best.ended and not best.out_of_time:
            return best
        best.budget = replace(best.budget, restart=None)  # the number is that of a restart of the plan's search
        with suppress(InversefedError), foreign_code("what goes on from the search", best.watcher):
            if best.distance >= (SOLVED if best.pictures else EXACT):
                for each in plan.also:
                    if not best.ended:
                        best.search(each, generator)
                self._polished(best, plan, generator)
            if (colors := best.colors(plan.steady)) is not None:
                if not plan.bounded:
                    best.search(self.in_range, generator)
                best.settle(*colors)
        return best

    def _polished(self, best: "_Best", plan: Plan, generator: Generator) -> None:
        """Go on in pixels from what matches best, and keep what leaves less than a share of it."""
        for place, attack in enumerate(plan.polish, start=1):
            if best.found is not None and not best.ended:
                start = _Found(best.observation.network.normalize(best.found.images))
                best.search(replace(attack, start=start), generator, _part(attack, plan.polish[place:]), plan.share)


@dataclass(frozen=True, eq=False)
class _Found:
    """A start where something was found already.

    Args:
        inputs: normalized pictures, `[n, c, h, w]`.
    """

    inputs: Tensor = field(repr=False)

    def __call__(self, shape: Sequence[int], generator: Generator, dtype: torch.dtype) -> Tensor:
        """The same for every restart, `[restarts, n, c, h, w]`."""
        return self.inputs.to(generator.device, dtype).expand(tuple(shape)).clone()


def _part(attack: Attack, following: Sequence[Attack]) -> float:
    """Of the time that is left, an attack's part: by iterations where all are searches, else half of it."""
    iterations = [each.max_iterations for each in (attack, *following) if isinstance(each, GradientInversion)]
    if not following:
        return 1.0
    return iterations[0] / sum(iterations) if len(iterations) > len(following) else 0.5


@dataclass(eq=False)
class _Best:
    """Of all that was found, what matches the update best."""

    observation: Observation
    budget: Budget = Budget()
    watcher: Callback[[Step], object] | None = None
    found: Reconstruction | None = None
    attack: Attack | None = None
    distance: float = math.inf
    exact: bool = False
    ended: bool = False
    asked: bool = False
    cut: dict[str, str] = field(default_factory=dict)
    cut_short: tuple[str, ...] = ()
    _began: float = field(default_factory=lambda: time.monotonic())

    def solve(self, method: Attack, generator: Generator, part: float = 1.0) -> None:
        """Run an exact method, which keeps no checkpoint; arguments are those of `search`."""

        def run(turn: Budget) -> tuple[Reconstruction, str]:
            return method(self.observation, generator, replace(turn, checkpoint=None, resume=None)), ""

        try:
            self._take(method, run, part)
        finally:
            name = type(method).__name__
            self.cut_short += (name,) if name in self.cut and name not in self.cut_short else ()

    def search(self, search: GradientInversion, generator: Generator, part: float = 1.0, share: float = 1.0) -> None:
        """Run a search, with as many iterations as fit into its part of the time.

        Args:
            search: what is run.
            generator: the only source of randomness.
            part: of the time that is left, what it may take.
            share: of what is best, what must not be left for it to be better.
        """

        def run(turn: Budget) -> tuple[Reconstruction, str]:
            spare = 0.0 if turn.seconds is None else turn.seconds * (1 / part - 1)  # what those that follow would have
            return as_fits(search, self.observation, generator, turn, spare)

        self._take(search, run, part, share)

    def _take(
        self, attack: Attack, run: Callable[[Budget], tuple[Reconstruction, str]], part: float, share: float = 1.0
    ) -> None:
        """Run an attack in its part of the time that is left, and take in what it found; nothing where none is left."""
        if self._late:
            self.cut[type(attack).__name__] = _NOT_BEGUN
            return
        before, left = time.monotonic() - self._began, self.budget.left(self._began)
        if left is not None:
            left *= part
        turn = self.watched(replace(self.budget, seconds=left), before)
        try:
            with foreign_code(type(attack).__name__, self.watcher):
                found, fewer = run(turn)
        except InversefedError:
            if left is not None and time.monotonic() - self._began - before >= left:
                self.cut[type(attack).__name__] = "ended"  # it may refuse what it had no time for
            raise
        self.add(found, attack, share)
        if left is not None and (fewer or found.status is Status.STOPPED) and not self.asked:
            self.cut[type(attack).__name__] = fewer or "ended"

    def how(self, attack: Attack) -> str:
        """What became of an exact method, as a clause without its subject."""
        if self.cut.get(type(attack).__name__) == _NOT_BEGUN:
            return "had no time"
        return "is exact" if self.exact else "is not exact here"

    def add(self, found: Reconstruction, attack: Attack, share: float = 1.0) -> None:
        """Take in what an attack found; it is the last if it is exact, or was ended from outside, not by its part."""
        found = completed(found, attack, self.observation)
        assert found.matching_error is not None
        self.exact, distance = found.proven, found.matching_error
        stopped = found.status is Status.STOPPED and (self.asked or self._over)
        self.ended = self.exact or stopped or found.status is Status.INTERRUPTED
        if self.found is None or distance < share * self.distance:
            self.found, self.attack, self.distance = found, attack, distance
        elif self.ended:
            self.found = replace(self.found, status=found.status)

    def colors(self, steady: bool) -> tuple[Inputs, float] | None:
        """Pictures of one color each, and their matching cost, if they explain the update as well as what was found.

        Where the update holds few numbers, hardly worse is as well, but for what several restarts agree on and for a
        search whose prior says the rest.
        """
        if self.found is None or not self.observation.client_known or not self.pictures:
            return None
        images, cost = matched_color(self.observation, self.found.labels, self.budget.left(self._began))
        if self.explains_more(cost) or (self.distance < cost and (steady or self._settled)):
            return None
        return images, cost

    @property
    def pictures(self) -> bool:
        """Whether the examples are pictures, of which no search comes nearer than `SOLVED`; rows have few values."""
        return pictured(self.observation.network.space)

    @property
    def _settled(self) -> bool:
        """Whether a picture that explains a little more than one color is more likely to be nearer than that.

        What several restarts agree on is; any other, where the update holds enough numbers.
        """
        assert self.found is not None
        if isinstance(self.attack, GradientInversion) and self.attack.agrees:
            ended = (Status.FINISHED, Status.CONVERGED)
            return sum(each.status in ended for each in self.found.candidates) > 1
        return Facts(self.observation).share_known >= _SCARCE

    def explains_more(self, cost: float) -> bool:
        """Whether what was found explains clearly more than colors of this matching cost."""
        return self.distance < (_CLEARLY if cost < _MUCH else 1.0) * cost

    def settle(self, images: Inputs, cost: float) -> None:
        """Take pictures of one color each, unless something was found in the meantime that explains clearly more."""
        assert self.found is not None
        if self.explains_more(cost):
            return
        message = (
            f"The search explains less of the update (relative matching cost {self.distance:.2g}) than pictures of one "
            f"color each, found by matching the update itself ({cost:.2g}), or hardly more: these are the result."
        )
        evidence = {"relative_matching_cost": cost, "of_the_search": self.distance}
        finding = Finding(Code.CONSTANT_COLOR, "warning", message, evidence)
        candidate = Candidate(images, self.found.labels, cost, self.found.status, iterations=1)
        self.found = replace(
            self.found, images=images, loss=cost, candidates=(*self.found.candidates, candidate),
            findings=(*self.found.findings, finding), matching_error=cost, undetermined=None,
        )  # fmt: skip
        self.distance = cost

    @property
    def _over(self) -> bool:
        """Whether there is no time left; without a limit, who was stopped was stopped for good."""
        return self.budget.seconds is None or time.monotonic() - self._began >= self.budget.seconds

    @property
    def out_of_time(self) -> bool:
        """Whether it ended only because its time was over: the colors, of a few evaluations, are still looked at."""
        interrupted = self.found is not None and self.found.status is Status.INTERRUPTED
        return self._late and not (self.exact or self.asked or interrupted)

    @property
    def _late(self) -> bool:
        """Whether something was found, and there is no time left to go on."""
        return self.found is not None and self.budget.seconds is not None and self._over

    def watched(self, budget: Budget, before: float) -> Budget:
        """The budget, its watcher told all seconds and shown what is best, be it older than what is running."""
        on_step = budget.on_step
        if on_step is None:
            return budget

        def look(step: Step) -> bool:
            told = replace(step, seconds=before + step.seconds, best=lambda: self._better(step.best))
            self.asked |= bool(on_step(told))
            return self.asked

        return replace(budget, on_step=look)

    def explained(self, reasons: Sequence[str]) -> Reconstruction:
        """The result, with the reason for it among its findings."""
        assert self.found is not None
        message = f"{type(self.attack).__name__} was chosen: {'; '.join(reasons)}."
        evidence: dict[str, object] = {"attack": repr(self.attack)}
        status, cut_short = self.found.status, self.found.cut_short
        if self.cut and not self.exact:
            shortened = ", ".join(f"{name} ({how})" for name, how in self.cut.items())
            message += f" For want of time these were cut short: {shortened}; with more time they might find more."
            evidence["cut"] = list(self.cut)
            cut_short = self.cut_short
            status = Status.STOPPED if status in (Status.FINISHED, Status.CONVERGED) else status
        finding = Finding(Code.ATTACK_CHOSEN, "info", message, evidence)
        network, images = self.observation.network, self.found.images
        real = images.is_floating_point()
        images = images.clamp(network.low, network.high) if real and not self.exact else images  # as private pixels are
        error = self.found.matching_error if torch.equal(images, self.found.images) else None
        return replace(
            self.found, images=images, status=status, findings=(finding, *self.found.findings), matching_error=error,
            cut_short=cut_short,
        )  # fmt: skip

    def _better(self, current: Callable[[], Tensor]) -> Tensor:
        images = current()
        if self.found is None or matching_error(self.observation, images, self.found.labels) < self.distance:
            return images
        return self.found.images
