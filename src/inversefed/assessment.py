"""One audited update: what the attack found, what its control runs came to, and the verdict on both.

A result is exact where the client, run on it, makes the same update,

    |client(x^) - u|^2 / |u|^2 < 1e-8,

with pixels in their range, and where it is the picture that did. Other pictures may make the same update: behind an
average over pixels there are many. Where there is a truth, a picture is exact if it is within 40 dB of it and nearer
than any plain picture. Where there is none, nothing else may make the update: a random change of the picture has to be
shown by it but for a share of 1e-4, also 40 dB (see `unseen`, or the equations of peeling, if it was that), the update
must hold at least as many numbers as the pictures do, and no null run may come out the same. What is not exact is left
to the null runs.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from inversefed.attacks import Attack, SearchAttack
from inversefed.attacks.identifiability.hidden import zero_head
from inversefed.attacks.identifiability.limit import limit
from inversefed.attacks.matching_error import matching_error
from inversefed.controls.runs import ControlRuns, own_repeat, plan, run
from inversefed.controls.uniqueness import undetermined_share
from inversefed.errors import InversefedError
from inversefed.evaluation import align, controls
from inversefed.evaluation.agreement import agreement
from inversefed.evaluation.identification import nearest, unlike
from inversefed.evaluation.metrics import peak_signal_noise_ratio
from inversefed.evaluation.power import Rehearsed
from inversefed.evaluation.verdict import Evidence, Verdict, answered, decide, greatest, margins
from inversefed.findings import Code
from inversefed.fl.batchnorm import sent_buffers
from inversefed.fl.clients import Client
from inversefed.fl.defenses.protocols import Defense
from inversefed.fl.foreign import foreign_code
from inversefed.fl.losses import labels_are_inputs
from inversefed.fl.network import Network
from inversefed.fl.targets import as_targets, class_count, forms
from inversefed.fl.threat import Observation, ThreatModel
from inversefed.inputs import InputSpace
from inversefed.numerics import float32_products
from inversefed.report.scope import scope
from inversefed.report.spoken import spoken
from inversefed.thresholds import EXACT, EXACT_DB, NEARBY, NULLS, OPEN, PIXEL_SLACK
from inversefed.types import Batch, Budget, Finding, Inputs, Limit, Point, Reconstruction, Scores, Status, Targets

__all__ = ["Assessment", "as_seen", "paired", "public_batches"]

_MORE = "give it more time"
_STOPPED = "the attack was stopped by whoever watched it, and no runs on random updates followed; run it to its end"
_ENDED = {
    Status.INTERRUPTED: "the attack was interrupted, and no runs on random updates followed; run it to its end",
    Status.NON_FINITE: "the loss of the attack became NaN or infinite, so that what is left of it tells nothing; try "
    "another attack, or a smaller step length",
}
"""Why an attack is not repeated, by how it ended."""
_NOWHERE = (
    "the client makes the very update again of what was found, but nothing shows that it does so of nothing else, and "
    "a method without a start cannot be repeated from another; compare it with the truth"
)
_NO_LOOK = (
    "the client makes the very update again of what was found, and there was no time to look whether it does so of "
    "nothing else; give it more time"
)
_CARRIED_OUT = "were carried out before the time, or somebody, ended them; give it more time, or ask for fewer"
_NO_REPEAT = "the attack could not be repeated on the update, so there is nothing to compare with; try another attack"
_SAME_TWICE = (
    "the method comes to the same from every start, so that two runs that agree show nothing; compare it with the truth"
)


@dataclass(frozen=True, eq=False)
class Assessment:
    """What an audit has in hand when its attack is done.

    Args:
        observation: what was attacked.
        truth: the pictures behind it, if they are known.
        threat: what the attacker was granted.
        reconstruction: what it found.
        others: public pictures of the same kind.
        until: by the monotonic clock, when what is asked of the result itself has to be known; `None` for no limit.
    """

    observation: Observation
    truth: Batch | None
    threat: ThreatModel
    reconstruction: Reconstruction
    others: Batch | None = None
    until: float | None = None

    @cached_property
    def read(self) -> Observation:
        """The observation, of the client as the attack came to read it where its settings were hidden."""
        client = self.reconstruction.client
        return replace(self.observation, client=client) if isinstance(client, Client) else self.observation

    @cached_property
    def order(self) -> align.Permutation | None:
        """Which reconstruction belongs to which truth."""
        return None if self.truth is None else paired(self.reconstruction, self.truth, self.threat)

    @property
    def _space(self) -> InputSpace:
        return self.observation.network.space

    @property
    def found(self) -> Batch:
        """What was recovered, in the order of the truth."""
        return _ordered(self.reconstruction, self.order)

    @cached_property
    def cost(self) -> float:
        """How far the update of the result is from the one observed, as it was measured already, or now."""
        if self.reconstruction.matching_error is not None:
            return self.reconstruction.matching_error
        return matching_error(self.read, self.reconstruction.images, self.reconstruction.labels)

    @cached_property
    def exact(self) -> Tensor:
        """Which pictures are exact, `[n]`, in the order of the truth."""
        if not self.reproduces:
            return torch.zeros(self.observation.num_examples, dtype=torch.bool)
        if self.truth is not None:
            images = self.found.images
            return (self._decibels(images) >= EXACT_DB) & (self._margins(images) > 0)
        numbers = sum(part.numel() for part in self.observation.update.values())
        if numbers < self.reconstruction.images.numel():
            return torch.zeros(self.observation.num_examples, dtype=torch.bool)
        return self.unseen <= OPEN

    @cached_property
    def unseen(self) -> Scores:
        """The share of a change of each picture that the update does not show, as the attack or the update tells it."""
        return self._looked[0]

    @cached_property
    def _looked(self) -> tuple[Scores, bool]:
        """That share, and whether time ended the look at it."""
        told, cut = self.reconstruction.undetermined, False
        if told is not None:
            return torch.full((self.observation.num_examples,), float(told), dtype=torch.float64), cut

        def stop() -> bool:
            nonlocal cut
            cut = self.until is not None and time.monotonic() >= self.until
            return cut

        found, random = self.reconstruction, torch.Generator().manual_seed(0)
        return undetermined_share(self.read, found.images, found.labels, random, stop=stop), cut

    @cached_property
    def reproduces(self) -> bool:
        """Whether the result makes the update again, and is made of pixels."""
        images = self.reconstruction.images
        real = images.is_floating_point()
        inside = not real or bool(((images >= -PIXEL_SLACK) & (images <= 1 + PIXEL_SLACK)).all())
        return self.cost < EXACT and inside

    def trials(
        self,
        attack: Attack,
        budget: Budget,
        nulls: int | None,
        seed: int,
        left: float | None,
        watch: Callable[[int, int], object] | None,
        stopped: bool = False,
    ) -> ControlRuns:
        """Run the controls, unless the attack was ended, or lost, before it came to a result.

        Args:
            attack: what the audit ran.
            budget: what it had.
            nulls: how many null runs; `None` for as many as a verdict needs.
            seed: of the audit.
            left: seconds that are left; `None` for no limit.
            watch: told of each run.
            stopped: whether the attack's own watcher ended it.
        """
        began = time.monotonic()
        count = self._usual(attack) if nulls is None else nulls
        if nulls == 0 or not count:
            return ControlRuns(why="" if nulls == 0 else _NOWHERE)
        if ended := _STOPPED if stopped else _ENDED.get(self.reconstruction.status):
            return ControlRuns(planned=count, why=ended)
        scored = self.truth is not None
        runs = 1 if scored else 2
        exact = bool(self.exact.all())
        left = None if left is None else left - (time.monotonic() - began)
        planned = plan(
            attack, self.observation, self.reconstruction, count,
            seed=seed, budget=budget, left=left, runs=runs,
        )  # fmt: skip
        proven = exact and nulls is None
        again = scored and self.observation.num_examples > 1 and not exact and not self._finalists()
        repeat = None if proven else own_repeat(attack, budget, self.reconstruction, planned)
        other = another(self.read, self.others) if scored else None
        return run(replace(planned, again=again), self.observation, other, repeat, watch, prior=scored)

    def _usual(self, attack: Attack) -> int:
        """How many null runs a verdict needs: none beside a proof, where one of a search is made to be shown.

        A closed form has no picture of a random update to show, and may take long to find that out. Without a truth
        null runs tell nothing of one that comes to the same from every start.
        """
        search = isinstance(attack, SearchAttack)
        if bool(self.exact.all()):
            return 1 if search else 0
        return 0 if self.reproduces and self.truth is None and not search else NULLS

    def pictures(self, done: ControlRuns) -> dict[str, Inputs]:
        """The pictures of every control, paired with the truth; none without one."""
        if self.truth is None:
            return {}
        found = controls.guesses(self.truth, None if self.others is None else self.others.images, self._space)
        runs: dict[str, list[tuple[Reconstruction, ...]]] = {
            "prior": [(each,) for each in done.prior],
            "other": [done.other],
            "null": list(done.nulls),
        }
        for name, tried in runs.items():
            shown = [self._paired(each[0]) for each in tried if each]
            if shown:
                found[name] = max(shown, key=lambda images: greatest(self._margins(images)))
        return found

    def agreement(self, done: ControlRuns) -> Scores | None:
        """How far other starts agree with each picture, in the attack's own order; `None` where there was no other."""
        others = self._finalists() or [each.images for each in (*done.again, *done.repeat[1:])]
        return agreement(self.reconstruction.images, others, self._space) if others else None

    def _finalists(self) -> list[Inputs]:
        """What other restarts came to that went to the end."""
        lost = (Status.PRUNED, Status.NON_FINITE)
        ended = [each.images for each in self.reconstruction.candidates if each.status not in lost]
        return [images for images in ended if not torch.equal(images, self.reconstruction.images)]

    def limit(self, defenses: tuple[Defense, ...], seconds: float) -> Limit | str:
        """How much of the pictures the update holds, or why that is not known.

        It is taken at the truth, else at a result that makes about the same update, else at a stand-in.

        Args:
            defenses: what the client ran.
            seconds: about how long it may take.
        """
        if self.reconstruction.status is Status.INTERRUPTED:
            return "the audit was interrupted before it was computed"
        at, labels, point = self._near()
        try:
            with foreign_code("the limit of the update"):
                return limit(self.read, at, labels, point=point, defenses=defenses, seconds=seconds)
        except (InversefedError, MemoryError, torch.OutOfMemoryError) as error:
            return str(error) or "there was not enough memory for it"

    def _near(self) -> tuple[Inputs | None, Targets, Point]:
        """Pictures near the private ones, as far as there are any, with their labels."""
        if self.truth is not None:
            return self.truth.images, self.truth.labels, "truth"
        found = self.reconstruction
        return (found.images, found.labels, "result") if self.cost < NEARBY else (None, found.labels, "stand-in")

    def verdict(
        self,
        done: ControlRuns,
        attack: str,
        seconds: float,
        scenario: Mapping[str, Any],
        rehearsed: Rehearsed = Rehearsed(),
        limit: Limit | None = None,
    ) -> Verdict | None:
        """Judge.

        Args:
            done: the control runs.
            attack: its `repr`.
            seconds: that it took.
            scenario: what was audited.
            rehearsed: the same attack on public stand-ins. Their bar is that of the real audit: its null runs hold the
                numbers of an update of the same client.
            limit: of the update; `None` where that is not known.
        """
        evidence = self.evidence(done)
        tried = scope(
            attack,
            self.reconstruction,
            seconds,
            scenario.get("threat_model", {}),
            len(scenario.get("defenses", ())),
            _repeats(done),
        )
        found = decide(evidence, tried)
        if found is None:
            return None
        identified, candidates = self._identified()
        figures = replace(
            found.figures,
            matching_error=self.cost,
            unseen=self._most_unseen(),
            null_iterations=done.iterations,
            null_iterations_without_limit=done.wanted,
            seconds_of_controls=done.seconds,
            identified=identified,
            candidates=candidates,
            identified_by_chance=None if candidates is None else 1 / candidates,
            power=rehearsed.power(evidence.bar if self.truth is not None else 0.0),
        )
        said = found.sentence if figures.power is None else f"{found.sentence} {figures.power}"
        scores = None if self.truth is None else self._decibels(self.found.images)
        told = replace(found, sentence=said, figures=figures)
        found = answered(told, limit, scores, self._bars(done))
        return replace(found, sentence=spoken(found.sentence, self._space), scope=spoken(found.scope, self._space))

    @property
    def rehearsed(self) -> float:
        """The score of a stand-in: its best picture in dB over the best plain picture; infinity where one is exact."""
        return (
            math.inf if bool(self.exact.any()) else greatest(self._over_controls(ControlRuns())((self.reconstruction,)))
        )

    def evidence(self, done: ControlRuns) -> Evidence:
        """The scores of all runs, and whether the result is exact."""
        none = torch.full((self.observation.num_examples,), float("-inf"), dtype=torch.float64)
        found = self._agreeing(done, none) if self.truth is None else self._compared(done, none)
        return replace(found, why=self._left_out(done, found))

    def _left_out(self, done: ControlRuns, found: Evidence) -> str:
        """What was left out that might have told of a leak, as a sentence without its stop; nothing where nothing was.

        An exact method that was cut might have come to the picture. Where the search alone was, the audit without a
        limit has the same repeats: they say "no" for it where they have all their iterations and are not above the null
        runs. Without a truth they are all there is.
        """
        if self.reproduces and not bool(self.exact.any()) and "_looked" in vars(self) and self._looked[1]:
            return _NO_LOOK
        if done.why or not done.planned:
            return done.why
        if not done.complete:
            return f"{len(done.nulls)} of {done.planned} runs on random updates {_CARRIED_OUT}"
        if found.repeat is None:
            return _SAME_TWICE if done.repeat else _NO_REPEAT
        if methods := self.reconstruction.cut_short:
            return f"{', '.join(methods)} ended before it was done, and might have found more; {_MORE}"
        return self._too_short(done, greatest(found.repeat) > found.bar)

    def _too_short(self, done: ControlRuns, above: bool) -> str:
        """What had fewer iterations than without a limit of time, if that may have cost the answer."""
        stopped = self.reconstruction.status is Status.STOPPED
        few, wanted = done.iterations or 0, done.wanted or 0
        if few < wanted and few < done.fewest:
            return f"there was time for {few} iterations in each repeat, where {done.fewest} show a picture; {_MORE}"
        if few < wanted and (stopped or self.truth is None):
            return f"there was time for {few} of {wanted} iterations in each repeat; {_MORE}"
        ended = stopped and above and self.truth is not None
        return f"the search was ended before it was done; {_MORE}" if ended else ""

    def _compared(self, done: ControlRuns, none: Scores) -> Evidence:
        """How far each run is above the controls."""
        score = self._over_controls(done)
        return Evidence(
            self.exact,
            score((self.reconstruction,)),
            score(done.repeat) if done.repeat else None,
            [score(each) if each else none for each in done.nulls],
            done.planned,
            self.reproduces,
        )

    def _agreeing(self, done: ControlRuns, none: Scores) -> Evidence:
        """What two runs from different starts agree on, in the result's own order; nothing of those that have none."""
        alone = any(_error(each) < EXACT for null in done.nulls for each in null)
        exact = torch.zeros_like(self.exact) if alone else self.exact
        nulls = [_agreement(each, self._space) if each else none for each in done.nulls]
        if not done.repeat or all(torch.equal(done.repeat[0].images, each.images) for each in done.repeat[1:]):
            return Evidence(exact, None, None, nulls, done.planned, self.reproduces)
        order = align.align(done.repeat[0].images, self.reconstruction.images)
        return Evidence(exact, None, _agreement(done.repeat, self._space)[order], nulls, done.planned, self.reproduces)

    def _over_controls(self, done: ControlRuns) -> Callable[[tuple[Reconstruction, ...]], Scores]:
        """Scores a run by its margins over the best control; the null runs are no control here."""
        bars = self._bars(done)
        return lambda runs: margins(self._decibels(self._paired(runs[0])), bars)

    def _bars(self, done: ControlRuns) -> dict[str, Scores]:
        """What the controls score; nothing without a truth."""
        return {name: self._decibels(images) for name, images in self.pictures(done).items() if name != "null"}

    def findings(self, done: ControlRuns) -> tuple[Finding, ...]:
        """What the control runs say of the audit itself, and what kept any attack from seeing pictures."""
        found = list(zero_head(self.observation))
        if not done.complete and not done.why:
            message = (
                f"{len(done.nulls)} of {done.planned} null runs were carried out before the time, or somebody, ended "
                "them; fewer than planned cannot tell leakage from chance. Give more time, or ask for fewer."
            )
            found.append(Finding(Code.NULL_RUNS_CUT, "warning", message, {"nulls": len(done.nulls)}))
        exact = self.evidence(done).exact
        if self.reproduces and not bool(exact.all()):
            evidence = {"relative_matching_cost": self.cost, "pictures_exact": int(exact.sum())}
            found.append(Finding(Code.SAME_UPDATE, "warning", self._same_update(), evidence))
        return tuple(found)

    def _same_update(self) -> str:
        if self.truth is not None:
            return (
                "The client makes the same update of the result again, but not all of it is the truth to "
                f"{EXACT_DB:.0f} dB: other pictures make this update too."
            )
        return (
            "The client makes the same update of the result again, but nothing shows that it is the only one: other "
            "pictures may make this update too."
        )

    def _most_unseen(self) -> float | None:
        """The share that the update leaves open of the picture that it settles least; `None` where nobody looked."""
        return float(self.unseen.max()) if "unseen" in vars(self) else None

    def _paired(self, found: Reconstruction) -> Tensor:
        assert self.truth is not None
        return found.images[paired(found, self.truth, self.threat).to(found.images.device)]

    def _decibels(self, images: Tensor) -> Scores:
        assert self.truth is not None
        return peak_signal_noise_ratio(images, self.truth.images).cpu()

    def _margins(self, images: Tensor) -> Scores:
        """Over the plain pictures alone."""
        assert self.truth is not None
        plain = {name: self._decibels(each) for name, each in controls.guesses(self.truth, space=self._space).items()}
        return margins(self._decibels(images), plain)

    def _identified(self) -> tuple[float | None, int | None]:
        """How often the true picture is the nearest of all candidates, and how many there are; nothing without."""
        if self.truth is None or self.others is None:
            return None, None
        hits = nearest(self.found.images, self.truth.images, self.others.images)
        return float(hits.double().mean()), 1 + int(unlike(self.others.images, self.truth.images).sum())


def paired(reconstruction: Reconstruction, truth: Batch, threat: ThreatModel) -> align.Permutation:
    """Which reconstruction belongs to which truth: by pixels, and within a label where labels were granted."""
    return align.paired(reconstruction.images, reconstruction.labels, truth, threat.labels == "known")


def another(observation: Observation, others: Batch | None) -> Observation | None:
    """What the server would see had others been the client's pictures; nothing where that cannot be said.

    No defense is applied, and the client is the one that the attacker believes in; one that is unknown cannot be run.
    """
    batches = public_batches(observation, others, 1) if observation.client_known else ()
    return as_seen(observation, batches[0]) if batches else None


def public_batches(observation: Observation, others: Batch | None, most: int) -> tuple[Batch, ...]:
    """Public pictures in batches as large as the private one, no picture twice, on the network's device.

    Args:
        observation: of the private batch.
        others: public pictures with labels, none of them private.
        most: batches at most.

    Returns:
        As many as there are pictures for; none where the loss takes labels that nobody can tell for them.
    """
    network, count = observation.network, observation.num_examples
    labels = None if others is None else _of_others(network, others.labels)
    if others is None or labels is None:
        return ()
    images = network.held(others.images)
    parts = (slice(number * count, (number + 1) * count) for number in range(min(most, len(images) // count)))
    return tuple(Batch(images[part], labels[part]) for part in parts)


def as_seen(observation: Observation, batch: Batch) -> Observation:
    """What the server would see of a batch of its own, made by the client that it believes in, without any defense."""
    network = observation.network
    with float32_products(network.device):
        update = observation.client(network, batch.images, batch.labels)
        sent = (
            None
            if observation.buffers is None
            else sent_buffers(observation.client, network, batch.images, batch.labels)
        )
    known = None if observation.labels is None else batch.labels
    return Observation(network, observation.client, dict(update), observation.num_examples, known, sent)


def _of_others(network: Network, labels: Targets) -> Targets | None:
    """Labels for public pictures, as the loss takes them; nothing where it takes no classes, and nobody can tell."""
    if labels_are_inputs(network.loss):
        return as_targets(network, labels)
    if labels.is_floating_point() or (network.num_classes > 1 and "classes" not in forms(network)):
        return None
    return as_targets(network, labels.to(network.device).long() % class_count(network))


def _ordered(found: Reconstruction, order: align.Permutation | None) -> Batch:
    return Batch(found.images, found.labels) if order is None else Batch(found.images[order], found.labels[order])


def _agreement(runs: tuple[Reconstruction, ...], space: InputSpace) -> Scores:
    """By how many decibels two runs agree better than with one color, and explain the update, whichever is less."""
    first, second = (each.images for each in runs)
    return agreement(first, [second], space).clamp(max=_explained(runs))


def _repeats(done: ControlRuns) -> str:
    if not done.nulls:
        return ""
    each = "" if done.iterations is None else f" of {done.iterations} iterations"
    count = len(done.nulls)
    runs = "a random update in a run" if count == 1 else f"{count} random updates in runs"
    return f"Repeated on {runs}{each}; all controls took {done.seconds:.1f} s."


def _error(run: Reconstruction) -> float:
    """The matching error of a control run, which all of them were measured for."""
    assert run.matching_error is not None
    return run.matching_error


def _explained(runs: tuple[Reconstruction, ...]) -> float:
    """Decibels of the update that the worse of the runs makes again."""
    cost = max(map(_error, runs))
    return -10 * math.log10(max(cost, 1e-30)) if math.isfinite(cost) else -math.inf
