"""A verdict over several targets, from the reports of their audits.

    theta = mean over targets of the mean over its seeds,   with Student's interval over targets

Targets are the unit: two seeds on one picture say less than one seed on two pictures. What is judged is the margin of
each repeat over its null runs, which is 0 on average for updates that say nothing; the margin of the full attack over
the best control; the share of targets that are called, against the share that chance calls; exact recoveries; how often
the true picture is the nearest of many; and labels.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

import torch
from torch import Tensor

from inversefed.errors import InputError
from inversefed.evaluation.identification import nearest, unlike
from inversefed.evaluation.intervals import Interval, mean_interval
from inversefed.evaluation.verdict import Answer, Figures, Judgement, Verdict
from inversefed.report.model import Report
from inversefed.report.summary import audited
from inversefed.thresholds import CALLS_LEVEL, FEWEST_TARGETS, IDENTICAL_DB

__all__ = ["Called", "Identified", "LabelsFound", "TargetsFigures", "TargetsVerdict", "judge"]


@dataclass(frozen=True, kw_only=True)
class Called(Interval):
    """The share of targets that were called, beside what chance calls.

    Args:
        by_chance: the share that would be called if no update said anything, in [0, 1].
        p_value: the chance of as many calls if no update says anything, in [0, 1].
    """

    by_chance: float
    p_value: float


@dataclass(frozen=True, kw_only=True)
class Identified(Interval):
    """The share of pictures whose truth is the nearest of all candidates.

    Args:
        candidates: how many there were, the least of all reports.
        by_chance: what luck gives, in (0, 1].
    """

    candidates: int
    by_chance: float


@dataclass(frozen=True, kw_only=True)
class LabelsFound(Interval):
    """The share of labels that were recovered.

    Args:
        majority: what somebody gets who always says the most frequent one, in (0, 1].
        by_chance: what luck gives; `None` where the number of classes is not known.
    """

    majority: float
    by_chance: float | None


@dataclass(frozen=True)
class TargetsFigures:
    """The numbers behind a verdict on several targets.

    Args:
        targets: how many different pictures or batches, from 1.
        audits: how many reports.
        pictures: how many pictures in all of them.
        margin_over_null: of each repeat over the mean of its null runs, in dB.
        margin_over_controls: of each full attack over the best control, in dB.
        called: the share of targets that were called.
        exact: the share of targets of which a picture was recovered exactly.
        identified: how often the truth was the nearest of all candidates; `None` without candidates.
        labels: the share of labels recovered; `None` where they were granted, or are not classes.
        answers: how many audits came to each answer, by its words; those that none came to are left out.
    """

    targets: int
    audits: int
    pictures: int
    margin_over_null: Interval
    margin_over_controls: Interval
    called: Called
    exact: Interval
    identified: Identified | None = None
    labels: LabelsFound | None = None
    answers: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class TargetsVerdict(Judgement):
    """A judgement of the updates of several targets.

    Args:
        figures: the numbers behind it.
    """

    figures: TargetsFigures


def judge(reports: Sequence[Report], candidates: Tensor | None = None) -> TargetsVerdict:
    """Judge several audits together.

    Args:
        reports: one a target and seed, each with a truth and a verdict on it.
        candidates: pictures of the same data set, `[N, c, h, w]`, among which the true one has to be the nearest;
            truths among them are left out.

    Raises:
        InputError: no report, or one without a truth or a verdict, or whose truths leave no candidate.
    """
    _check(reports)
    targets = _by_target(reports)
    among = None if candidates is None else _candidates(reports, candidates)

    def over(measure: Callable[[Report], float], share: bool = False) -> Interval:
        values = [fmean(measure(report) for report in each) for each in targets]
        return mean_interval(values, share=share)

    by_chance = {"by_chance": fmean(map(_chance, reports)), "p_value": _calls(targets)}
    figures = TargetsFigures(
        targets=len(targets),
        audits=len(reports),
        pictures=sum(report.count for report in reports),
        margin_over_null=over(_over_null),
        margin_over_controls=over(_over_controls),
        called=Called(**vars(over(_leaked, share=True)), **by_chance),
        exact=over(_exact, share=True),
        identified=None if candidates is None or among is None else _identified(over, candidates, among),
        labels=_labels(over, reports),
        answers=_answers(reports),
    )
    margins = (figures.margin_over_null, figures.margin_over_controls)
    positive = all(each.low is not None and each.low > 0 for each in margins)
    leaked = figures.exact.mean > 0 or positive or figures.called.p_value <= CALLS_LEVEL
    return TargetsVerdict(leaked, _sentence(leaked, figures), _scope(reports), figures)


def _check(reports: Sequence[Report]) -> None:
    if not reports:
        raise InputError("a verdict over several targets needs reports; got none")
    for number, report in enumerate(reports):
        if report.truth is None or report.verdict is None or _unmeasured(report.verdict):
            lacks = "truth" if report.truth is None else "verdict; audit with null runs, to their end"
            raise InputError(f"report {number} of {len(reports)} has no {lacks}")


def _unmeasured(verdict: Verdict) -> bool:
    """Whether it is open because runs on random updates, or the one beside them, were not carried out."""
    figures = verdict.figures
    missing = figures.score_of_repeat is None or figures.nulls < figures.nulls_planned
    return bool(figures.undecided_because) and missing


def _by_target(reports: Sequence[Report]) -> list[list[Report]]:
    """Audits of the same pictures together."""
    found: dict[str, list[Report]] = {}
    for report in reports:
        assert report.truth is not None
        pixels = report.truth.images.detach().cpu().contiguous().numpy().tobytes()
        found.setdefault(hashlib.sha256(pixels).hexdigest(), []).append(report)
    return list(found.values())


def _figures(report: Report) -> Figures:
    assert report.verdict is not None
    return report.verdict.figures


def _finite(values: Tensor) -> float:
    """The mean, in which what is not finite counts as the lowest score there is, none of 0 dB against all of 200."""
    return float(values.double().nan_to_num(nan=-IDENTICAL_DB, neginf=-IDENTICAL_DB, posinf=IDENTICAL_DB).mean())


def _over_null(report: Report) -> float:
    """Mean over pictures of the repeat's margin over the mean of the null runs; an exact result has the full one's."""
    figures = _figures(report)
    shown = figures.margins if figures.margins_of_repeat is None else figures.margins_of_repeat
    assert shown is not None
    nulls = figures.margins_of_nulls
    return _finite(shown) - (fmean(map(_finite, nulls)) if nulls else 0.0)


def _over_controls(report: Report) -> float:
    margins = _figures(report).margins
    assert margins is not None
    return _finite(margins)


def _leaked(report: Report) -> float:
    assert report.verdict is not None
    return float(report.verdict.leaked)


def _exact(report: Report) -> float:
    """Whether a picture of it was recovered exactly."""
    return float(bool(_figures(report).pictures_exact))


def _chance(report: Report) -> float:
    """How often an update that says nothing would be called; an exact result never by chance."""
    return float(_figures(report).false_alarms_at_most or 0.0)


def _calls(targets: Sequence[Sequence[Report]]) -> float:
    """The chance of as many calls among the first audits of all targets, if no update says anything."""
    from scipy import stats

    first = [reports[0] for reports in targets]
    rate = max(map(_chance, first))
    return float(stats.binom.sf(sum(map(_leaked, first)) - 1, len(first), rate)) if rate else 1.0


def _candidates(reports: Sequence[Report], candidates: Tensor) -> list[int]:
    """Among how many each report's truth is looked for: itself, and the candidates that are none of its truths."""
    truths = [report.truth.images for report in reports if report.truth is not None]
    return [1 + int(unlike(candidates, images).sum()) for images in truths]


def _identified(over: Callable[..., Interval], candidates: Tensor, among: Sequence[int]) -> Identified:
    """How often the true picture is the nearest of all candidates; their number is the least of all reports'."""

    def hits(report: Report) -> float:
        assert report.truth is not None
        return float(nearest(report.images, report.truth.images, candidates).double().mean())

    chance = fmean(1 / count for count in among)
    return Identified(**vars(over(hits, share=True)), candidates=min(among), by_chance=chance)


def _labels(over: Callable[..., Interval], reports: Sequence[Report]) -> LabelsFound | None:
    """The share of labels recovered, beside what somebody gets who always says the most frequent one."""
    facts = [audited(report) for report in reports]
    known = any(each.labels == "known" for each in facts)
    if known or any("label_accuracy" not in report.scores for report in reports):
        return None
    labels = torch.cat([report.truth.labels.cpu() for report in reports if report.truth is not None])
    if labels.is_floating_point():  # several answers each: none is the most frequent
        return None
    classes = [each.num_classes for each in facts if each.num_classes is not None]
    found = over(lambda report: float(report.scores["label_accuracy"].double().mean()), share=True)
    return LabelsFound(
        **vars(found),
        majority=float(labels.bincount().max() / len(labels)),
        by_chance=fmean(1 / count for count in classes) if classes else None,
    )


def _answers(reports: Sequence[Report]) -> Mapping[str, int]:
    found = Counter(str(report.verdict.answer) for report in reports if report.verdict is not None)
    return {str(answer): found[str(answer)] for answer in Answer if found[str(answer)]}


def _sentence(leaked: bool, figures: TargetsFigures) -> str:
    count = figures.targets
    shares = f"{figures.called.mean:.0%} of {count} targets called, {figures.exact.mean:.0%} exact"
    over_null, over_controls = _between(figures.margin_over_null), _between(figures.margin_over_controls)
    measured = f"{over_null} over random updates, {over_controls} over the best control, {shares}"
    if count < FEWEST_TARGETS:
        measured += f"; too few targets for intervals, which take {FEWEST_TARGETS} at least"
    present = figures.answers.get(Answer.IN_THE_UPDATE, 0)
    held = f" In {present} of {figures.audits} audits a picture is in the update that was not recovered."
    found = f"{'Leaked' if leaked else 'Not recovered by these attacks within this budget'}: {measured}."
    return found + (held if present else "")


def _between(found: Interval) -> str:
    if found.low is None or found.high is None or math.isclose(found.low, found.high):
        return f"{found.mean:.1f} dB"
    return f"{found.mean:.1f} dB ({found.low:.1f} to {found.high:.1f})"


def _scope(reports: Sequence[Report]) -> str:
    """What was tried, once for all audits that tried the same."""
    said = [report.verdict.scope for report in reports if report.verdict is not None]
    more = f" That of the first; {len(said) - 1} more with their own times." if len(said) > 1 else ""
    return f"{said[0]}{more}"
