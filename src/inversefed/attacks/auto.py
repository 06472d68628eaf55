"""Choose an attack by what the server sees: exact methods where they apply, else the search that fits the network.

    known defenses: the search that has them in its model, beside what follows
    exact methods in turn, each verified; else
    smooth network, one example: curvature      kinks, or several examples: first-order search

Under max pooling exact methods take an alternation that may fail, so there the search goes first. What matches the
update best, of all that was found, is the result. The choice is data, the fields of `Choose`; its reason becomes a
finding of the report.

Of a time budget each method may take half of what is left where others follow, so that the search always gets to a
picture. A search and those that go on from it share what is left in proportion to their iterations, for the last
decibels are found in pixels; one that does not fit into its part is made shorter (see `pace`). What was cut short is
told, for it might have found more.
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
from inversefed.attacks.head.inputs import separate
from inversefed.attacks.identifiability import layer_counts
from inversefed.attacks.matching_error import relative_matching_cost
from inversefed.attacks.search.inversion import GradientInversion
from inversefed.attacks.search.time_schedule import as_fits
from inversefed.attacks.simulations import OptimizedMasks, Simulation
from inversefed.errors import InversefedError, ThreatModelError, UnsupportedNetworkError
from inversefed.fl.dropout import dropout_layers
from inversefed.fl.foreign import Callback, foreign_code
from inversefed.fl.losses import CrossEntropy
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.networks.architecture import Architecture, architecture
from inversefed.thresholds import SOLVED
from inversefed.types import Budget, Candidate, Finding, Images, Reconstruction, Status, Step

__all__ = ["Choose"]

_PLACED = 16
"""Most examples whose places are searched: each step of the simulated client sees all of them."""
_MATTERS = 0.75
"""What the order must change of an update's norm, as momentum makes it do: below, more is lost by searching the order
than by a wrong one."""


_CLEARLY = 0.03
"""Share of what pictures of one color each leave of the update, below which a picture explains clearly more. Above it
an underdetermined search is as often farther from the truth than one color as it is nearer."""
_MUCH = 0.5
"""Matching cost below which pictures of one color each explain much of the update; a search that explains more than
colors that explain hardly anything is not given up for them."""
_NEARER, _SMALL = 0.6, 1e8
"""Share of its matching cost that going on in pixels must bring a search to where nothing hides contrast, for a smaller
gain often leads away from the truth; and operations of a forward pass up to which that costs little."""

_NOT_BEGUN = "not begun"


@dataclass(frozen=True)
class Choose:
    """Try what is exact, then search.

    Args:
        exact: methods that apply to one example, in the order they are tried.
        layers: peeling, which follows.
        wide: what the head sees, inverted, where that is as much as the picture holds.
        quickly: peeling that comes before that, without what takes long in it.
        batch: the same for several examples.
        smooth: the search for one example through a network without kinks.
        several: the search for several examples through such a network, or a larger one that averages over places.
        kinked: the search for networks with ReLU, max pooling and the like.
        averaged: the search through small networks among them that average over places before their head.
        deep: the search for one example through larger ones.
        pooled: the search for a first picture under max pooling, where an exact method follows.
        unknown: the search where the client's settings are unknown.
        shuffled: the search where the client shuffles, or where it is not known which of its steps saw which label.
        training: the search where the first layers are a convolution and BatchNorm in train mode.
        normalized: the search where the network normalizes its features otherwise; short, for the last decibels are
            found in pixels.
        bounded: the search that is tried as well where one color explains as much as what was found.
        polish: searches that go on then in pixels, each from what matches the update best.
        masks: how the other searches simulate a client whose dropout is on.
    """

    exact: tuple[Attack, ...]
    layers: Attack
    wide: Attack
    quickly: Attack
    batch: tuple[Attack, ...]
    smooth: GradientInversion
    several: GradientInversion
    kinked: GradientInversion
    averaged: GradientInversion
    deep: GradientInversion
    pooled: GradientInversion
    unknown: GradientInversion
    shuffled: GradientInversion
    training: GradientInversion
    normalized: GradientInversion
    bounded: GradientInversion
    polish: tuple[GradientInversion, ...]
    masks: Simulation = OptimizedMasks()

    def searching(self, **changes: Any) -> "Choose":
        """The same choice, its searches with other restarts, precision or compilation."""
        changed: dict[str, Any] = {
            name: each.searching(**changes) for name, each in vars(self).items() if isinstance(each, GradientInversion)
        }
        return replace(self, **changed)

    def search(self, observation: Observation) -> tuple[GradientInversion, str]:
        """The search that fits, and why."""
        network, steps = observation.network, observation.unrolled
        if not observation.client_known:
            return self.unknown, "the client's settings are unknown, so a gradient between the weights stands for them"
        several = steps is not None and steps.shuffles and len(steps.one_pass) > 1
        if several and _is_plain(network):
            return self.shuffled, "the client shuffles in an order that is not known, so the order is searched too"
        traits = architecture(network)
        if traits.first_batchnorm_trains:
            return self.training, "BatchNorm in train mode takes contrast and brightness out of the update"
        if _unplaced(observation):
            return self.shuffled, "which local step saw which label is not known, so the order is searched too"
        search, why = self._usual(traits, observation)
        if masked := dropout_layers(network.module):
            return replace(search, simulation=self.masks), f"{why}; the masks of {', '.join(masked)} are searched too"
        return search, why

    def _usual(self, traits: Architecture, observation: Observation) -> tuple[GradientInversion, str]:
        """By kinks, averages and the number of examples."""
        found, means, count = traits.nonsmooth_layers, traits.averages, observation.num_examples
        if (norms := traits.normalizations) and not means:
            return self.normalized, f"the network normalizes its features ({', '.join(norms)}), which hides contrast"
        if not found and count > 1:
            return self.several, f"the network is smooth, and curvature misleads where {count} examples are mixed"
        if not found:
            return self.smooth, "the network is smooth, so its curvature guides the search"
        why = f"the network has kinks ({', '.join(found)}), where curvature misleads"
        if means:
            large = self.deep if count == 1 else self.several
            search = self.averaged if _is_small(observation) else large
            return search, f"{why}, and averages over places ({', '.join(means)})"
        return self.kinked, why

    def plan(self, observation: Observation) -> tuple[tuple[Attack, ...], str]:
        """All that is tried, in order, and why its search was chosen."""
        search, why = self.search(observation)
        if observation.num_examples > 1:
            return (*self.batch, search), why
        peeled = (self.quickly, self.wide, self.layers) if _applies(self.wide, observation) else (self.layers,)
        methods = (*self.exact, *peeled)
        if not (found := architecture(observation.network).max_pools):
            return (*methods, search), why
        if any(_applies(method, observation) for method in methods):
            first = search if search == self.normalized else self.pooled
            return (first, *methods), f"{why}; {', '.join(found)} makes exact methods slow, so they follow"
        return (search,), f"{why}; no exact method applies"

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
        return self._carried_out(observation, generator, budget)

    def _carried_out(self, observation: Observation, generator: Generator, budget: Budget) -> Reconstruction:
        watcher = None if budget.on_step is None else Callback(budget.on_step)
        best, failed = _Best(observation, replace(budget, on_step=watcher), watcher), None
        plan, why = self.plan(observation)
        reasons: list[str] = []
        for place, attack in enumerate(plan, start=1):
            if not self._brings_more(attack, best):
                break
            if isinstance(attack, GradientInversion):
                reasons.append(why)
            try:
                best.take(attack, generator, _part(attack, plan[place:] or self._following(plan, observation)))
                if not isinstance(attack, GradientInversion):
                    reasons.append(f"{type(attack).__name__} {best.how(attack)}")
            except (ThreatModelError, UnsupportedNetworkError) as error:
                failed = error if failed is None or isinstance(attack, GradientInversion) else failed
                reasons.append(f"{type(attack).__name__} does not apply: {error}")
            if best.ended:
                break
        if failed is not None and best.found is None:
            raise failed
        return self._refined(best, plan, generator).explained(reasons)

    def _brings_more(self, attack: Attack, best: "_Best") -> bool:
        """Whether an attack may come nearer than what was found; no search nor more peeling does, where it is near."""
        late = isinstance(attack, GradientInversion) or attack == self.layers
        return not late or best.distance >= SOLVED

    def _refined(self, best: "_Best", plan: Sequence[Attack], generator: Generator) -> "_Best":
        """Go on from what a search found where features are normalized, and never end below one color."""
        if best.ended and not best.out_of_time:
            return best
        with suppress(InversefedError), foreign_code("what goes on from the search", best.watcher):
            normalized, near = self.normalized in plan, best.distance < SOLVED
            if not near:
                self._polished(best, self._following(plan, best.observation), generator, 1.0 if normalized else _NEARER)
            if (colors := best.colors()) is not None:
                if not normalized:
                    best.take(self.bounded, generator)
                best.settle(*colors)
        return best

    def _following(self, plan: Sequence[Attack], observation: Observation) -> tuple[GradientInversion, ...]:
        """The searches that go on from what the plan finds."""
        if self.normalized in plan:
            return self.polish
        return self.polish[:1] if self.kinked in plan and _is_small(observation) else ()

    def _polished(
        self, best: "_Best", searches: Sequence[GradientInversion], generator: Generator, share: float
    ) -> None:
        """Go on in pixels from what matches best, and keep what leaves less than a share of it."""
        for place, attack in enumerate(searches, start=1):
            if best.found is not None and not best.ended:
                start = _Found(best.observation.network.normalize(best.found.images))
                best.take(replace(attack, start=start), generator, _part(attack, searches[place:]), share)


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


def _is_small(observation: Observation) -> bool:
    return observation.network.operations() * observation.num_examples < _SMALL


def _scarce(observation: Observation) -> bool:
    """Whether an update holds less than half as many independent numbers as its pictures have values."""
    return 2 * sum(row.numbers for row in layer_counts.count(observation)) < math.prod(observation.batch_shape)


def _unplaced(observation: Observation) -> bool:
    """Whether it matters which local step saw which label, and neither the server nor the head's gradient tells."""
    steps, network, count = observation.unrolled, observation.network, observation.num_examples
    if observation.labels is not None or steps is None or len(steps.one_pass) < 2:
        return False
    if not _is_plain(network) or dropout_layers(network.module) or count > _PLACED:
        return False
    try:
        separate(observation)
    except (ThreatModelError, UnsupportedNetworkError):
        return _order_matters(observation)
    return False


def _is_plain(network: Network) -> bool:
    """Whether the loss is one whose order of examples can be searched, by shares of each."""
    return isinstance(network.loss, CrossEntropy) and not network.loss.label_smoothing


def _order_matters(observation: Observation) -> bool:
    """Whether the client would send something else for stand-in examples in reversed order."""
    client, network = observation.client, observation.network
    images = torch.rand(observation.batch_shape, generator=Generator().manual_seed(0)).to(network.device, network.dtype)
    labels = torch.arange(observation.num_examples, device=network.device) % network.num_classes
    sent, reverse = (
        replace(observation, update=client(network, *examples)).gradient
        for examples in ((images, labels), (images.flip(0), labels.flip(0)))
    )
    apart = sum(float((sent[name] - reverse[name]).square().sum()) for name in sent)
    return apart > _MATTERS**2 * sum(float(part.square().sum()) for part in sent.values())


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
    _began: float = field(default_factory=lambda: time.monotonic())

    def take(self, attack: Attack, generator: Generator, part: float = 1.0, share: float = 1.0) -> None:
        """Run an attack in its part of the time that is left, and take in what it found; nothing where none is left.

        Args:
            attack: what is run.
            generator: the only source of randomness.
            part: of the time that is left, what it may take.
            share: of what is best, what must not be left for it to be better.
        """
        if self._late:
            self.cut[type(attack).__name__] = _NOT_BEGUN
            return
        before, left = time.monotonic() - self._began, self.budget.left(self._began)
        if left is not None:
            left *= part
        turn = self.watched(replace(self.budget, seconds=left), before)
        try:
            with foreign_code(type(attack).__name__, self.watcher):
                if isinstance(attack, GradientInversion):
                    found, fewer = as_fits(attack, self.observation, generator, turn)
                else:
                    found, fewer = attack(self.observation, generator, replace(turn, checkpoint=None, resume=None)), ""
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
        self.exact = any(finding.code == "exact" for finding in found.findings)
        stopped = found.status is Status.STOPPED and (self.asked or self._over)
        self.ended = self.exact or stopped or found.status is Status.INTERRUPTED
        distance = relative_matching_cost(self.observation, found.images, found.labels)
        if self.found is None or distance < share * self.distance:
            self.found, self.attack, self.distance = found, attack, distance
        elif self.ended:
            self.found = replace(self.found, status=found.status)

    def colors(self) -> tuple[Images, float] | None:
        """Pictures of one color each, and their matching cost, if they explain the update as well as what was found.

        Where the update holds few numbers, hardly worse is as well.
        """
        if self.found is None or not self.observation.client_known:
            return None
        images, cost = matched_color(self.observation, self.found.labels, self.budget.left(self._began))
        if self.explains_more(cost) or (self.distance < cost and not _scarce(self.observation)):
            return None
        return images, cost

    def explains_more(self, cost: float) -> bool:
        """Whether what was found explains clearly more than colors of this matching cost."""
        return self.distance < (_CLEARLY if cost < _MUCH else 1.0) * cost

    def settle(self, images: Images, cost: float) -> None:
        """Take pictures of one color each, unless something was found in the meantime that explains clearly more."""
        assert self.found is not None
        if self.explains_more(cost):
            return
        message = (
            f"The search explains less of the update (relative matching cost {self.distance:.2g}) than pictures of one "
            f"color each, found by matching the update itself ({cost:.2g}), or hardly more: these are the result."
        )
        evidence = {"relative_matching_cost": cost, "of_the_search": self.distance}
        finding = Finding("constant-color", "warning", message, evidence)
        candidate = Candidate(images, self.found.labels, cost, self.found.status, iterations=1)
        self.found = replace(
            self.found, images=images, loss=cost, candidates=(*self.found.candidates, candidate),
            findings=(*self.found.findings, finding),
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
        status = self.found.status
        if self.cut and not self.exact:
            shortened = ", ".join(f"{name} ({how})" for name, how in self.cut.items())
            message += f" For want of time these were cut short: {shortened}; with more time they might find more."
            evidence["cut"] = list(self.cut)
            status = Status.STOPPED if status in (Status.FINISHED, Status.CONVERGED) else status
        finding = Finding("attack-chosen", "info", message, evidence)
        network, images = self.observation.network, self.found.images
        images = images if self.exact else images.clamp(network.low, network.high)  # no private pixel is outside
        return replace(self.found, images=images, status=status, findings=(finding, *self.found.findings))

    def _better(self, current: Callable[[], Tensor]) -> Tensor:
        images = current()
        if self.found is None or relative_matching_cost(self.observation, images, self.found.labels) < self.distance:
            return images
        return self.found.images


def _applies(method: Attack, observation: Observation) -> bool:
    """Whether an exact method would take this observation, as far as it can say without solving anything."""
    check = getattr(method, "check", None)
    try:
        return check is None or bool(check(observation))
    except (ThreatModelError, UnsupportedNetworkError):
        return False
