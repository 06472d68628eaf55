"""Did the update leak, and how sure is that? One target against its null runs.

The attack is repeated on k null updates, which are random and as long as the real one, and once more on the real one,
all with the same iterations and the same starts. Each repeat is scored by its best picture's margin in decibels over
the best control, the highest bar that needs no update:

    T = max_i [ PSNR(x^_i, x*_i) - max_c PSNR(c_i, x*_i) ]        p = (1 + #{j : T_j >= T_0}) / (k + 1)

If the real update says nothing either, the k + 1 scores are exchangeable, so that T_0 is above all others with chance
at most 1 / (k + 1): the bound on false alarms, whatever attack, network or picture it is (Barnard 1963; Besag and
Clifford 1989). The full attack must then be above the controls and all null runs as well, which can only lower the
chance. The greatest of a batch is a fair score because that of the null runs is the greatest too; a picture that is
above all of it is called by itself with the same bound for the whole batch (Westfall and Young 1993).

PSNR is the score because pictures are paired with truths so that its sum is greatest, and no other metric is best
under that pairing; it is one number an image, and grows with nothing but a smaller squared error.

Where there is no truth, two runs from different starts stand for each other:

    T = max_i min( PSNR(x^_i, z^_i) - max_c PSNR(c_i, z^_i),  -10 log10 |client(x^) - u|^2 / |u|^2 )

by how many decibels they agree better than with one color, but no more than by how many they explain the update. A
random update can be agreed on, but not explained; an update that many pictures explain is not agreed on. Both together
show that the update settles a picture, not that it is the client's.

A "no" is said only where everything was carried out that might have said "yes". What was left out, for want of time or
because somebody ended it, leaves the verdict open, with its reason.

Such a "no" is still one about the attack. What it means for the picture is told by the limit of the update (see
`limit`): far above all controls, the picture is in the update, and a better attack would find it; near what the prior
alone scores, it is not.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from inversefed.evaluation.membership import Membership
from inversefed.evaluation.power import Power
from inversefed.thresholds import AGREEMENT_DB, IN_THE_UPDATE_DB, LEAST_DB, MISFIT, NOT_IN_THE_UPDATE_DB
from inversefed.types import Limit, Scores

__all__ = ["AGREED", "COMPARED", "Answer", "Evidence", "Figures", "Judgement", "Verdict", "answered", "decide",
           "greatest", "margins", "with_records"]  # fmt: skip


COMPARED = "dB of PSNR over the best control"
"""The unit of all scores of a verdict where there is a truth."""
AGREED = "dB by which two runs agree better than with one color, or explain the update, whichever is less"
"""The unit where there is none."""


class Answer(StrEnum):
    """What a verdict comes to."""

    RECOVERED = "recovered"
    """A picture was recovered exactly, or beyond chance."""
    IN_THE_UPDATE = "in the update, not recovered"
    """The limit of the update is far above all controls, and the attack was not."""
    RECORDS = "records found, not recovered"
    """Records that were asked for are in the update, which does not show that a picture can be had from it."""
    NOT_IN_THE_UPDATE = "not in the update"
    """The limit is near what a picture scores that needs no update: no attack does better, near where it was taken."""
    UNDECIDED = "undecided"
    """Something was left out, the limit is between the two, or there is none."""


@dataclass(frozen=True, eq=False)
class Figures:
    """The numbers behind a verdict on one target; `report.json` has them by these names.

    Args:
        exact: whether all pictures were recovered exactly.
        pictures_exact: which were: indices in [0, n), in the order of the truth where there is one.
        above_all_nulls: whether a picture is above every null run and every control.
        decided: False where something was left out, or found and nothing tells whether it is the picture.
        undecided_because: what was left out, as a sentence without its stop; `None` for nothing.
        nulls: null runs that were carried out, from 0.
        nulls_planned: null runs that were asked for, from 0.
        false_alarms_at_most: bound on the chance that an update that says nothing is called, in (0, 0.5]; `None` where
            not all null runs were carried out.
        p_value: of the repeat among the null runs, in (0, 1]; `None` without both.
        unit: that of all scores and margins: `COMPARED` with a truth, `AGREED` without.
        score: the best picture's margin, in `unit`, any sign; `None` where nothing was measured.
        score_of_repeat: that of the repeat on the same terms as the null runs; `None` where there was none.
        best_null: the highest score of a null run, minus infinity where none came to a picture; `None` without one.
        margin_over_nulls: `score_of_repeat` less `best_null`, in dB; `None` without both.
        margins: each picture's margin, `[n]`, in `unit`; `None` where nothing was measured.
        margins_of_repeat: those of the repeat, `[n]`.
        margins_of_nulls: those of each null run, `[n]` each; minus infinity where the attack refused the null update.
        pictures_leaked: which pictures were recovered, exactly or beyond chance.
        matching_error: squared distance of the update of the result from the one observed, relative to the
            latter's square, from 0; `None` where it was not computed.
        unseen: share, by its square, of a change of the least settled picture that the update does not show, in
            [0, 1]; `None` where nobody looked.
        null_iterations: iterations of each repeat; `None` where a repeat has none.
        null_iterations_without_limit: what they would have been without a limit of time.
        seconds_of_controls: wall time of all control runs; `None` where there were none.
        identified: share of the pictures whose truth is the nearest of all candidates, in [0, 1]; `None` without
            public pictures.
        candidates: among how many it was looked for, the truth with them.
        identified_by_chance: what luck gives, in (0, 1].
        power: how often the verdict calls public stand-ins in the same setting; `None` without rehearsals.
        limit_over_controls: by how many dB the limit of the update is above the best control, and the prior, `[n]`;
            `None` without a limit.
        records_asked: how many records were asked for; `None` where nobody asked.
        records_called: how many of them are called in the update, each with chance 5 % at most if it was not.
        records_p_value: of all of them together, that none was, in (0, 1].
        below_limit: by how many dB each picture of the result is below the limit, `[n]`; `None` without a limit or a
            truth. What was computed in another number format than the update may be above.
    """

    exact: bool = False
    pictures_exact: tuple[int, ...] = ()
    above_all_nulls: bool = False
    decided: bool = True
    undecided_because: str | None = None
    nulls: int = 0
    nulls_planned: int = 0
    false_alarms_at_most: float | None = None
    p_value: float | None = None
    unit: str = COMPARED
    score: float | None = None
    score_of_repeat: float | None = None
    best_null: float | None = None
    margin_over_nulls: float | None = None
    margins: Scores | None = None
    margins_of_repeat: Scores | None = None
    margins_of_nulls: tuple[Scores, ...] = ()
    pictures_leaked: tuple[int, ...] = ()
    matching_error: float | None = None
    unseen: float | None = None
    null_iterations: int | None = None
    null_iterations_without_limit: int | None = None
    seconds_of_controls: float | None = None
    identified: float | None = None
    candidates: int | None = None
    identified_by_chance: float | None = None
    power: Power | None = None
    limit_over_controls: Scores | None = None
    below_limit: Scores | None = None
    records_asked: int | None = None
    records_called: int | None = None
    records_p_value: float | None = None

    def __getitem__(self, name: str) -> Any:
        """A figure by its name, for scripts that read `verdict.figures["score"]`.

        Raises:
            KeyError: there is no such figure.

        >>> Figures(nulls=19)["nulls"]
        19
        """
        if name not in (each.name for each in fields(self)):
            raise KeyError(name)
        return getattr(self, name)


@dataclass(frozen=True, eq=False)
class Judgement:
    """Whether something leaked, as far as these attacks can tell; each kind of verdict has figures of its own.

    Args:
        leaked: whether pictures were recovered beyond what the controls reach.
        sentence: that, in one plain sentence.
        scope: which attacks were tried, with what budget, and what the attacker was given.
    """

    leaked: bool
    sentence: str
    scope: str


@dataclass(frozen=True, eq=False)
class Verdict(Judgement):
    """A judgement of one update.

    Args:
        figures: the numbers behind it.
        answer: whether a picture was recovered, is in the update all the same, or is not.
    """

    figures: Figures = Figures()
    answer: Answer = Answer.UNDECIDED

    def __post_init__(self) -> None:
        if self.leaked:
            object.__setattr__(self, "answer", Answer.RECOVERED)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a verdict on one target rests on; all scores are margins in decibels, one an image.

    Args:
        exact: which pictures were recovered exactly, `[n]`; the client makes the same update of the result again.
        recovered: the full attack's margins over the best control; `None` without a truth.
        repeat: those of its repeat on the same terms as the null runs; `None` where there was none.
        nulls: those of each null run; minus infinity where the attack refused the null update.
        planned: how many null runs were asked for.
        reproduces: whether the client makes the same update of the result again, exact or not.
        why: what was left out that might have told of a leak, as a sentence without its stop; empty for nothing.
    """

    exact: Tensor
    recovered: Scores | None
    repeat: Scores | None = None
    nulls: Sequence[Scores] = ()
    planned: int = 0
    reproduces: bool = False
    why: str = ""

    @property
    def complete(self) -> bool:
        """Whether all null runs were carried out that were asked for, and at least one."""
        return self.repeat is not None and len(self.nulls) >= max(1, self.planned)

    @property
    def bar(self) -> float:
        """What has to be surpassed: the best null run."""
        return max(map(greatest, self.nulls), default=float("-inf"))

    @property
    def above(self) -> list[int]:
        """Pictures whose repeat is above every null run, and the full attack above them and the controls."""
        if not self.complete or self.repeat is None:
            return []
        return _places((self.repeat > self.bar) & self._enough(self.repeat))

    @property
    def leaked(self) -> list[int]:
        """Pictures that were recovered, exactly or beyond chance."""
        return sorted({*_places(self.exact), *self.above})

    @property
    def reason(self) -> str:
        """Why the verdict is open whatever was found, as a sentence without its stop; nothing where it is not."""
        if self.leaked:
            return ""
        if self.why or self.complete:
            return self.why
        if self.repeat is None:
            return "there is no repeat of the attack to compare with runs on random updates"
        return f"only {len(self.nulls)} of {self.planned} runs on random updates were carried out"

    @property
    def decided(self) -> bool:
        """False where something was left out, or was found and what would tell whether it is the picture does not tell.

        With a truth, the full attack is above all there is to compare with, but its repeat, a shorter one, is not;
        without one, the result makes the same update again, but others may do so too.
        """
        if self.leaked:
            return True
        if self.reason:
            return False
        return not (self.reproduces if self.recovered is None else bool((self.recovered > self._least).any()))

    @property
    def p_value(self) -> float | None:
        """Of the repeat among the null runs."""
        if not self.nulls or self.repeat is None:
            return None
        score = greatest(self.repeat)
        return (1 + sum(greatest(null) >= score for null in self.nulls)) / (len(self.nulls) + 1)

    def _enough(self, repeat: Scores) -> Tensor:
        """Which pictures the full attack recovered well enough, chance aside."""
        return repeat > AGREEMENT_DB if self.recovered is None else self.recovered.to(repeat.device) > self._least

    @property
    def _least(self) -> float:
        """What the full attack has to surpass."""
        return max(LEAST_DB, self.bar)


def _places(chosen: Tensor) -> list[int]:
    return [index for index, each in enumerate(chosen.tolist()) if each]


def greatest(margins: Scores) -> float:
    """The score of a run: its best picture's margin; what is no number counts as least.

    >>> greatest(torch.tensor([1.0, float("nan"), 2.0]))
    2.0
    """
    return float(margins.double().nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf")).max())


def margins(scores: Scores, controls: Mapping[str, Scores], floor: float | None = None) -> Tensor:
    """Decibels over the best control, image by image: `PSNR(x^_i, x*_i) - max_c PSNR(c_i, x*_i)`.

    Args:
        scores: PSNR of the reconstructions in dB, `[n]`.
        controls: the same of each control, by its name.
        floor: a bar in dB that holds beside the controls; `None` for none.

    Returns:
        `[n]`, float64, on the device of the scores; the scores themselves where there is no bar.

    >>> margins(torch.tensor([20.0]), {"gray": torch.tensor([12.0]), "constant": torch.tensor([15.0])})
    tensor([5.], dtype=torch.float64)
    """
    bars = [found.double().to(scores.device) for found in controls.values()]
    bars += [] if floor is None else [torch.full_like(scores, floor, dtype=torch.float64)]
    return scores.double() - torch.stack(bars).amax(dim=0) if bars else scores.double()


def decide(evidence: Evidence, scope: str) -> Verdict | None:
    """Judge one target.

    Args:
        evidence: what was measured.
        scope: which attacks were tried, with what budget, and what the attacker was given.

    Returns:
        `None` where no null runs were asked for, and nothing was recovered exactly.

    >>> null = torch.tensor([-2.0])
    >>> no = torch.tensor([False])
    >>> found = decide(Evidence(no, torch.tensor([9.0]), torch.tensor([7.0]), [null] * 19, 19), "One attack.")
    >>> found.leaked, found.figures.p_value, found.figures.best_null
    (True, 0.05, -2.0)
    """
    if not (evidence.leaked or evidence.complete or evidence.planned or evidence.why):
        return None
    repeat, recovered, bar = evidence.repeat, evidence.recovered, evidence.bar
    shown = repeat if recovered is None else recovered
    figures = Figures(
        exact=bool(evidence.exact.all()),
        pictures_exact=tuple(_places(evidence.exact)),
        above_all_nulls=bool(evidence.above),
        decided=evidence.decided,
        undecided_because=evidence.reason or None,
        nulls=len(evidence.nulls),
        nulls_planned=evidence.planned,
        false_alarms_at_most=1 / (len(evidence.nulls) + 1) if evidence.complete else None,
        p_value=evidence.p_value,
        unit=AGREED if recovered is None else COMPARED,
        score=None if shown is None else greatest(shown),
        score_of_repeat=None if repeat is None else greatest(repeat),
        best_null=bar if evidence.nulls else None,
        margin_over_nulls=greatest(repeat) - bar if repeat is not None and evidence.nulls else None,
        margins=shown,
        margins_of_repeat=repeat,
        margins_of_nulls=tuple(evidence.nulls),
        pictures_leaked=tuple(evidence.leaked),
    )
    return Verdict(bool(evidence.leaked), _sentence(evidence), scope, figures)


def answered(
    found: Verdict, limit: Limit | None, scores: Scores | None = None, controls: Mapping[str, Scores] | None = None
) -> Verdict:
    """A verdict that says what its "no" means, by the limit of the update.

    Args:
        found: the verdict on the attack.
        limit: of the update; `None` where it has none, and a "no" stays open then.
        scores: PSNR of the result in dB, `[n]`, in the order of the limit; `None` without a truth.
        controls: the same of each control, by its name; nothing without a truth.

    >>> no = Verdict(False, "Not recovered by these attacks within this budget: far off.", "One attack.")
    >>> limit = Limit((121.2,), (3072,), 3072, "rounding to float32", "truth", 12.0)
    >>> found = answered(no, limit, torch.tensor([7.0]), {"constant": torch.tensor([19.3])})
    >>> str(found.answer), round(float(found.figures.limit_over_controls)), found.leaked
    ('in the update, not recovered', 102, False)
    """
    if limit is None:
        return found
    known = [float("nan") if each is None else each for each in limit.limit_psnr]
    bound = torch.tensor(known, dtype=torch.float64)
    room = margins(bound, controls or {}, floor=limit.prior)
    below = None if scores is None else bound - scores.double().cpu()
    figures = replace(found.figures, limit_over_controls=room, below_limit=below)
    answer = _answer(found, greatest(room), limit)
    return replace(found, figures=figures, answer=answer, sentence=_with_limit(found.sentence, answer, limit, room))


def with_records(found: Verdict, records: Membership) -> Verdict:
    """A verdict that tells of records that were asked for, so that an update that has them does not read as safe.

    All records together are judged at their own level of false alarms, 5 %, beside that of the pictures.

    Args:
        found: the verdict on the attack.
        records: whether they were in the update.

    >>> from inversefed.evaluation.membership import judge_members
    >>> no = Verdict(False, "Not recovered by these attacks within this budget: far off.", "One attack.")
    >>> asked = judge_members(torch.arange(20.0, 40.0), torch.arange(19.0))
    >>> told = with_records(no, asked)
    >>> str(told.answer), told.leaked, told.figures.records_called, told.sentence[:60]
    ('records found, not recovered', False, 20, 'The update shows that some of the 20 records that were asked')
    """
    figures = replace(
        found.figures,
        records_asked=len(records.scores),
        records_called=int(records.called.sum()),
        records_p_value=records.p_value,
    )
    if not records.found or found.leaked:
        return replace(found, figures=figures, sentence=f"{found.sentence} {records.sentence}")
    answer = found.answer if found.answer is Answer.IN_THE_UPDATE else Answer.RECORDS
    return replace(found, figures=figures, answer=answer, sentence=f"{records.sentence} {found.sentence}")


def _answer(found: Verdict, room: float, limit: Limit) -> Answer:
    """What a verdict comes to, where the limit of the best picture is so far above all controls.

    A limit that took some of the picture as known can only deny; so can one at a truth that did not make the update.
    """
    if found.leaked:
        return Answer.RECOVERED
    if not found.figures.decided or NOT_IN_THE_UPDATE_DB < room < IN_THE_UPDATE_DB:
        return Answer.UNDECIDED
    if room <= NOT_IN_THE_UPDATE_DB:
        return Answer.NOT_IN_THE_UPDATE
    return Answer.IN_THE_UPDATE if limit.whole and not _misfits(limit) else Answer.UNDECIDED


def _misfits(limit: Limit) -> bool:
    """Whether other pictures than those where the limit was taken made the update."""
    return limit.misfit is not None and limit.misfit > MISFIT


_POINTS = {
    "truth": "",
    "result": ", as far as the attack's result tells, where this was measured",
    "stand-in": ", as far as a picture made up tells, where this was measured; the private one may differ",
}
"""What is added where the limit was not taken at the truth."""


def _with_limit(sentence: str, answer: Answer, limit: Limit, room: Scores) -> str:
    """The sentence of a verdict, with what the update holds before it, or after it where that decides nothing."""
    best = int(room.nan_to_num(nan=float("-inf")).argmax())
    which = "the picture" if len(room) == 1 else f"picture {best}"
    bound, told = limit.limit_psnr[best], limit.determined[best]
    most = "" if limit.whole else " at most, with all but its middle taken as known"
    held = f"{told} of {limit.of} directions, to {bound or 0.0:.1f} dB{most}{_POINTS[limit.at]}"
    match answer:
        case Answer.RECOVERED:
            return sentence
        case Answer.IN_THE_UPDATE:
            return f"In the update, not recovered: the update holds {which} in {held}. {sentence}"
        case Answer.NOT_IN_THE_UPDATE:
            alone = f"{(bound or 0.0) - float(room[best]):.1f} dB can be had without the update"
            return f"Not in the update: it holds {which} in {held}, where {alone}. {sentence}"
    if _misfits(limit):
        return f"{sentence} Other pictures than the truth made this update, as far as its derivative tells."
    return f"{sentence} The update holds {which} in {held}."


def _sentence(evidence: Evidence) -> str:
    if bool(evidence.exact.any()):
        return _exactly(evidence) if evidence.recovered is not None else _settled(evidence)
    if evidence.reason:
        return f"Not decided: {evidence.reason}.{_so_far(evidence)}"
    return _agreement(evidence) if evidence.recovered is None else _comparison(evidence, evidence.recovered)


def _so_far(evidence: Evidence) -> str:
    """What was measured by then, where there is a truth; it is no verdict."""
    if evidence.recovered is None or not math.isfinite(score := greatest(evidence.recovered)):
        return ""
    picture = "The picture" if len(evidence.recovered) == 1 else "The best picture"
    return f" {picture} is {_decibels(score)} the best control so far."


def _exactly(evidence: Evidence) -> str:
    count, exact, leaked = len(evidence.exact), len(_places(evidence.exact)), len(evidence.leaked)
    what = "the picture was" if count == 1 else f"{'all' if exact == count else f'{exact} of'} {count} pictures were"
    if 1 == exact < count:
        what = f"1 of {count} pictures was"
    more = leaked - exact
    also = f" {more} more {'is' if more == 1 else 'are'} above all controls and random updates." if more else ""
    return f"Leaked: {what} recovered exactly, and the client makes the very update of the result again.{also}"


def _settled(evidence: Evidence) -> str:
    count, exact = len(evidence.exact), len(_places(evidence.exact))
    if count == 1:
        what = "a picture was found of which the client makes the very update again, and of no other picture near it"
    else:
        some = "all" if exact == count else f"{exact} of {count}"
        what = (
            f"{count} pictures were found of which the client makes the very update again, and {some} of them cannot "
            "be changed without changing it"
        )
    return f"Leaked: {what}. There was no truth to compare with."


def _comparison(evidence: Evidence, recovered: Scores) -> str:
    count, leaked = len(recovered), evidence.leaked
    score = greatest(recovered[leaked]) if leaked else greatest(recovered)
    picture = "the picture" if count == 1 else "the best picture"
    if not evidence.decided:
        return _undecided(evidence, f"{picture} is {_decibels(score)} the best control")
    measured = f"{picture} is {_decibels(score)} the best control, and that of {_runs(evidence)}"
    if not leaked:
        return f"Not recovered by these attacks within this budget: {measured}."
    which = "" if count == 1 else f"{len(leaked)} of {count} pictures: "
    return f"Leaked: {which}{measured}; {_chance(evidence)}."


def _undecided(evidence: Evidence, measured: str) -> str:
    """The full attack found something, and the null runs are too short to tell whether that is chance."""
    repeat = greatest(evidence.repeat) if evidence.repeat is not None else float("nan")
    return (
        f"Not decided: {measured}, but that of a repeat as short as the null runs is {_decibels(repeat)} it, and of "
        f"{_runs(evidence)}. Give the null runs more iterations: they have more where the attack has more, or more "
        "restarts."
    )


def _agreement(evidence: Evidence) -> str:
    repeat, leaked = evidence.repeat, evidence.leaked
    agreed = float("nan") if repeat is None else greatest(repeat[leaked] if leaked else repeat)
    measured = (
        f"two runs from different starts agree on a picture, and explain the update, by {agreed:.1f} dB, and "
        f"{_runs(evidence, agree=True)}"
    )
    if not evidence.decided:
        return (
            "Not decided without the truth: the client makes the very update again of what was found, but nothing "
            f"shows that it does so of nothing else, and {measured}."
        )
    if not leaked:
        return (
            f"Not recovered by these attacks within this budget, as far as one can tell without the truth: {measured}."
        )
    count = len(evidence.exact)
    what = "a picture" if count == 1 else f"{len(leaked)} of {count} pictures"
    whose = "it is" if len(leaked) == 1 else "they are"
    return (
        f"The update settles {what}: {measured}; {_chance(evidence)}. "
        f"Whether {whose} the client's cannot be told without the truth."
    )


def _runs(evidence: Evidence, agree: bool = False) -> str:
    bar, count = evidence.bar, len(evidence.nulls)
    runs = "the run on a random update" if count == 1 else f"the best of {count} runs on random updates"
    if bar == float("-inf"):
        return f"{runs} gave none"
    return f"those on random updates at most {bar:.1f} dB" if agree else f"{runs} is {_decibels(bar)} it"


def _decibels(margin: float) -> str:
    if margin != margin or margin == float("-inf"):
        return "without a score against"
    return f"{abs(margin):.1f} dB {'above' if margin > 0 else 'below'}"


def _chance(evidence: Evidence) -> str:
    return f"an update that says nothing would do so at most once in {len(evidence.nulls) + 1} audits"
