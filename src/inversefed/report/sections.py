"""What a report says beside its pictures: records that were asked for, labels, the choice, the bound on any attack.

Each is a title, a sentence, and figures by name; text, page and Markdown show them alike.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inversefed.evaluation.bounds import Bound, Mechanism, success_bound
from inversefed.evaluation.choice import Choice, told
from inversefed.evaluation.label_leakage import LabelLeakage
from inversefed.evaluation.membership import Called, Membership

if TYPE_CHECKING:
    from inversefed.report.model import Report

__all__ = ["Section", "sections"]

_COMPARED = "mean dB (PSNR) over each picture's own best color, at that share of the iterations of a whole run"
_MOST_NAMED = 16
"""Records that are called by number; `report.json` has all."""


@dataclass(frozen=True)
class Section:
    """A part of a report.

    Args:
        title: what it is about.
        sentence: what it comes to.
        facts: figures, each with its name.
    """

    title: str
    sentence: str
    facts: tuple[tuple[str, str], ...] = ()


def sections(report: "Report") -> tuple[Section, ...]:
    """The parts that there is something to say of.

    Args:
        report: what is told.
    """
    found = []
    if report.membership is not None:
        found.append(_records(report.membership))
    if report.label_leakage is not None:
        found.append(_labels(report.label_leakage))
    if report.choice is not None:
        found.append(_choice(report.choice))
    if report.bounds is not None:
        found.append(_bound(report))
    return tuple(found)


def _records(found: Membership) -> Section:
    count, out = len(found.scores), len(found.out_scores)
    called = found.called.nonzero().flatten().tolist()
    named = f": number {', '.join(map(str, called[:_MOST_NAMED]))}" if 0 < len(called) < count else ""
    more = f" and {len(called) - _MOST_NAMED} more" if named and len(called) > _MOST_NAMED else ""
    chance = f"{len(called)} of {count}{named}{more}; one that was not in it is called with chance {found.level:.0%}"
    if (out + 1) * found.level < 1:
        need = round(1 / found.level) - 1
        chance = f"none can be called: that takes {need} records known to be out, and there are {out}"
    auc, told = found.auc, None
    if auc is not None and auc.low is not None and auc.high is not None:
        reach = f"{auc.low:.1%} to {auc.high:.1%} at {auc.level:.0%} confidence"
        told = f"in {auc.mean:.1%} of all pairs ({reach}; 50% is luck)"
    facts = [
        ("Records called", chance),
        ("Above a record that is out", told),
        *((f"Called at {each.rate:.1%} false alarms", _called(each)) for each in found.called_at),
        ("Records known to be out", str(out)),
    ]
    return Section("Records that were asked for", found.sentence, tuple((name, text) for name, text in facts if text))


def _called(found: Called) -> str:
    if found.resolved:
        return f"{found.share:.1%}, above all but {found.false_alarms} of {found.out} that are out"
    need = round(1 / found.rate)
    return f"{found.share:.1%} are above all {found.out} that are out; measuring this rate takes {need:,} of them"


def _labels(found: LabelLeakage) -> Section:
    sure = f"p = {found.p_value:.2g}"
    sentence = (
        f"{found.right} of {found.total} labels were recovered from the update; whoever names the most frequent class "
        f"each time has {found.majority:.0%} of them on average ({sure})."
    )
    return Section("Labels", sentence)


def _choice(found: Choice) -> Section:
    """The scores of each attack, a row each, from the first comparison to the last that it was in."""
    facts = []
    for number, attack in enumerate(found.attacks):
        scores = [(rung.share, rung.scores[number]) for rung in found.rungs if number in rung.scores]
        if scores:
            facts.append((attack, ", ".join(f"{told(score)} at {share:.0%}" for share, score in scores)))
    if facts:
        facts.append(("What the figures are", _COMPARED))
    return Section("The attack, chosen on public stand-ins", str(found), tuple(facts))


def _bound(report: "Report") -> Section:
    assert report.bounds is not None
    one, every = report.bounds.per_release, report.bounds.cumulative
    title = "What no attack can exceed"
    if one.mechanism is None:
        return Section(title, f"There is {one.note}. What stands is what the attacks found.")
    middle = len(one.guesses) // 2
    sentence = (
        f"Whoever guesses {one.mechanism.secret} rightly with a chance of {one.guesses[middle]:.4g} before this update "
        f"does so with a chance of at most {one.success[middle]:.3f} after it, by any attack whatever: "
        f"{_noise(one.mechanism)}."
    )
    facts = [
        (f"A chance of {guess:.4g}", f"at most {after:.4g}{_after_all(every, index)}")
        for index, (guess, after) in enumerate(zip(one.guesses, one.success, strict=True))
    ]
    if one.labels is not None:
        facts.append(("A label", f"a chance of {one.labels[0]:.3g} becomes at most {one.labels[1]:.3g} (Fano)"))
    facts += [*_epsilons(report), *_measured(report, one.mechanism)]
    if every is not None and every.mechanism is not None:
        facts.append(("All rounds", _noise(every.mechanism)))
    if every is not None and every.note:
        facts.append(("All rounds", every.note))
    return Section(title, sentence, tuple(facts))


def _noise(mechanism: Mechanism) -> str:
    steps = f"{mechanism.steps} step{'s' * (mechanism.steps > 1)}"
    rate = f", sample rate {mechanism.sample_rate:.3g}" if mechanism.sample_rate < 1 else ""
    return f"noise of {mechanism.noise_multiplier:.3g} times the clipped length, {steps}{rate}"


def _after_all(every: Bound | None, index: int) -> str:
    return "" if every is None or not every.success else f", after all rounds at most {every.success[index]:.4g}"


def _epsilons(report: "Report") -> list[tuple[str, str]]:
    """What DP-SGD promises in the usual words, where that was computed; the bound is of the same noise."""
    promised = report.scenario.get("privacy", {})
    names = {"per_release": "Epsilon of this update", "cumulative": "Epsilon of all rounds"}
    return [
        (name, f"{spent['epsilon']:.3g} at delta {spent['delta']:g}, by the {spent['accountant'].upper()} accountant")
        for key, name in names.items()
        if (spent := promised.get(key)) is not None
    ]


def _measured(report: "Report", mechanism: Mechanism) -> list[tuple[str, str]]:
    """What was measured beside what is the most that it can be."""
    facts: list[tuple[str, str]] = []
    figures = report.verdict.figures if report.verdict else None
    if figures is not None and figures.score is not None:
        facts.append(("Best picture measured", f"{figures.score:+.1f} {figures.unit}"))
    if figures is not None and figures.identified is not None and figures.identified_by_chance is not None:
        (most,) = success_bound([figures.identified_by_chance], mechanism)
        facts.append((f"Nearest of {figures.candidates} candidates", f"{figures.identified:.3g}, at most {most:.3g}"))
    if report.label_leakage is not None:
        found = report.label_leakage
        (most,) = success_bound([found.majority], mechanism)
        facts.append(("Labels recovered", f"{found.right / found.total:.3g}, at most {most:.3g}"))
    if report.membership is not None:
        for each in report.membership.called_at:
            if each.resolved:
                (most,) = success_bound([each.false_alarms / each.out], mechanism)
                name = f"Records called at {each.rate:.1%} false alarms"
                facts.append((name, f"{each.share:.3g}, at most {most:.3g}"))
    return facts
