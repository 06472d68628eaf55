"""What a report says in words, computed once: what leaked, how sure that is, what it means, and what would stop it.

Text, page, gallery and Markdown render a `Summary` and add nothing to it, so that they cannot disagree. It is written
for readers who have never heard of a gradient, a data-protection officer above all: short sentences, and no figure
without what it is measured against. Which sentences are said follows from the verdict where there is one, else from the
descriptive thresholds. Measures are named as what to try next, each with the command that audits it; none is promised
to work.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from inversefed.evaluation.power import Power
from inversefed.evaluation.verdict import COMPARED, Answer, Figures, Verdict, margins
from inversefed.report.sections import Section, sections
from inversefed.report.sentences import PSNR, SCOPE, believed, pairing, recovery, status_note
from inversefed.report.spoken import noun, spoken_of
from inversefed.report.tables import Table
from inversefed.thresholds import EXACT, EXACT_DB
from inversefed.types import Finding, Limit, Scores, Status

if TYPE_CHECKING:
    from inversefed.report.model import Report

__all__ = ["Audited", "Measure", "Outcome", "Summary", "audited", "summarize"]

Outcome = Literal["exact", "leaked", "part", "present", "records", "open", "absent", "none", "unknown"]

_MARKS: Mapping[Outcome, str] = {
    "exact": "leaked",
    "leaked": "leaked",
    "part": "leaked in part",
    "present": "in the update, not recovered",
    "records": "records found, not recovered",
    "absent": "not in the update",
    "open": "not decided",
    "none": "not recovered",
    "unknown": "not known",
}

_MOST_MARGINS = 8
"""Pictures whose margins are said one by one; `report.json` has all."""


_P_VALUE = "{:.3g}, the share of runs, this one with them, that did at least as well"


@dataclass(frozen=True)
class Measure:
    """Something to do about what was found.

    Args:
        title: what, in a few words.
        text: why, in one or two sentences.
        command: what audits it, to be run in the report's folder; nothing where it is not a matter of options.
    """

    title: str
    text: str
    command: str = ""


@dataclass(frozen=True)
class Audited:
    """What the words of a report depend on of what was audited; read from the report's scenario in `audited` alone.

    Args:
        labels: `"known"` where the attacker was granted the labels, `"unknown"` where not; `None` where nobody said.
        defenses: each defense that was in use, as text.
        num_classes: classes of the network, from 1; `None` where it has none, or nobody said.
        rerun: whether the report's configuration runs the audit again.
        from_file: whether the update came from a file, and is what it is.
        own_pictures: whether the pictures were the caller's own.
    """

    labels: Literal["known", "unknown"] | None = None
    defenses: tuple[str, ...] = ()
    num_classes: int | None = None
    rerun: bool = False
    from_file: bool = False
    own_pictures: bool = False


@dataclass(frozen=True, eq=False)
class Summary:
    """What a report says.

    Args:
        outcome: what came of the attack, in one word: by the verdict where there is one.
        mark: the same for a reader.
        subject: the first sentence.
        scores: the figures that belong to it; empty where there is no truth.
        headline: what was recovered, in one sentence, with what the controls score; describes, does not judge.
        meaning: what was done, and what its result means, without a technical term.
        measures_title: what the measures are for.
        measures: what to do next, the most effective first.
        verdict: its sentence; empty where nobody judged.
        evidence: the figures behind the verdict: what each is, and what it says.
        limit: how much of the pictures the update holds, or why that is not known; empty where nobody asked.
        scope: what was tried, and what the attacker was given.
        status: how the attack ended.
        seconds: wall time of the attack.
        note: what a reader must know of how it ended; empty if as planned.
        pairing: how several pictures were paired with the truths; empty for one.
        believed: which pictures other starts come to as well; empty for one.
        count: pictures, from 1.
        starts: restarts of the attack.
        attack: its recipe, with what was changed.
        tables: the scores with the controls beside them, a table a metric.
        controls: names of the controls that were scored.
        not_computed: metrics that could have been asked for, and why they are not among the scores.
        findings: what was found out about the setting.
        setting: what was audited, how, and where: names and values as text.
        audited: what the words depend on of what was audited.
        sections: what it says beside its pictures: of records, labels, and the bound on any attack.
        noun: what one example is called.
    """

    outcome: Outcome
    mark: str
    subject: str
    scores: str
    headline: str
    meaning: str
    measures_title: str
    measures: tuple[Measure, ...]
    verdict: str
    evidence: tuple[tuple[str, str], ...]
    limit: str
    scope: str
    status: Status
    seconds: float
    note: str
    pairing: str
    believed: str
    count: int
    starts: int
    attack: str
    tables: tuple[Table, ...]
    controls: tuple[str, ...]
    not_computed: Mapping[str, str]
    findings: tuple[Finding, ...]
    setting: tuple[tuple[str, str], ...]
    audited: Audited
    sections: tuple[Section, ...] = ()
    noun: str = "picture"

    @property
    def labels_known(self) -> bool:
        """Whether the attacker was granted the labels."""
        return self.audited.labels == "known"


def summarize(report: "Report") -> Summary:
    """Put a report into words.

    Args:
        report: what is told.
    """
    found, facts = _outcome(report), audited(report)
    subject, scores = _answer(report, found)
    title, steps = _measures(report, found, facts)
    verdict = report.verdict
    told = Summary(
        outcome=found,
        mark=_MARKS[found],
        subject=subject,
        scores=scores,
        headline=report.headline,
        meaning=_meaning(report, found, facts),
        measures_title=title,
        measures=steps,
        verdict="" if verdict is None else verdict.sentence,
        evidence=() if verdict is None else evidence(verdict.figures, report.count),
        limit=_limit(report.limit, report.without_limit),
        scope=SCOPE if verdict is None else verdict.scope,
        status=report.status,
        seconds=report.seconds,
        note=status_note(report.status),
        pairing=pairing(report.count),
        believed=believed(report.agreed),
        count=report.count,
        starts=len(report.reconstruction.candidates),
        attack=report.attack,
        tables=report.tables,
        controls=tuple(report.baselines),
        not_computed=report.not_computed,
        findings=report.findings,
        setting=report.setting,
        audited=facts,
        sections=sections(report),
        noun=noun(report.inputs),
    )
    return spoken_of(told, report.inputs, _SENTENCES)


_SENTENCES = (
    "subject", "scores", "headline", "meaning", "measures_title", "measures", "verdict", "evidence", "limit", "scope",
    "note", "pairing", "believed", "findings", "sections",
)  # fmt: skip
"""Fields of a summary that are sentences."""


def audited(report: "Report") -> Audited:
    """Read of a report's scenario and configuration what its words depend on.

    Args:
        report: what is told.
    """
    scenario, config = report.scenario, report.config
    threat = scenario.get("threat_model")
    labels = threat.get("labels") if isinstance(threat, Mapping) else None
    found = scenario.get("defenses") or ()
    classes = scenario.get("num_classes")
    return Audited(
        labels=labels if labels in ("known", "unknown") else None,
        defenses=tuple(str(each) for each in found) if isinstance(found, list | tuple) else (str(found),),
        num_classes=None if classes is None else int(classes),
        rerun=bool(config),
        from_file=bool(config.get("update") or config.get("after")),
        own_pictures=bool(config.get("images")),
    )


def evidence(figures: Figures, count: int) -> tuple[tuple[str, str], ...]:
    """The figures behind a verdict in words: what each is, and what it says; what was not computed is left out.

    Args:
        figures: of one target.
        count: its pictures, from 1.

    >>> for name, text in evidence(Figures(nulls=19, nulls_planned=19, score=9.0, p_value=0.05), 1):
    ...     print(f"{name}: {text}")
    Runs on random updates: 19
    p-value: 0.05, the share of runs, this one with them, that did at least as well
    Result: 9.0 dB above the best control
    """
    compared = figures.unit == COMPARED
    said: list[tuple[str, str | None]] = [
        ("Not decided because", figures.undecided_because),
        ("Pictures recovered", _which(figures.pictures_leaked, count)),
        ("Pictures recovered exactly", _which(figures.pictures_exact, count)),
        ("Chance of a false alarm", _chance(figures)),
        ("Runs on random updates", _of(figures.nulls, figures.nulls_planned, "planned")),
        ("p-value", _number(figures.p_value, _P_VALUE)),
        ("Result", _decibels(figures.score, compared)),
        ("Each picture", _each(figures, compared)),
        ("Repeat as short as the runs on random updates", _decibels(figures.score_of_repeat, compared)),
        ("Best run on a random update", _decibels(figures.best_null, compared)),
        ("Limit of the update over the best control", _spread(figures.limit_over_controls)),
        ("Result below that limit", _spread(figures.below_limit)),
        ("Lead of the repeat over it", _number(figures.margin_over_nulls, "{:.1f} dB")),
        ("Difference of the two updates", _difference(figures.matching_error)),
        ("Left open by the update", _number(figures.unseen, "{:.2%} of a picture, at most")),
        ("Iterations of each repeat", _iterations(figures)),
        ("Time of all control runs", _number(figures.seconds_of_controls or None, "{:.1f} s")),
        ("Nearest of all candidates", _nearest(figures)),
        ("Rehearsals on public stand-ins", _rehearsed(figures.power)),
        ("Records that were asked for", _records(figures)),
    ]
    return tuple((name, text) for name, text in said if text)


def _which(pictures: tuple[int, ...], count: int) -> str | None:
    """Which of several pictures, by number; nothing for one, of which the sentence says all."""
    if count == 1:
        return None
    if len(pictures) in (0, count):
        return f"all {count}" if pictures else "none"
    return f"{len(pictures)} of {count}: number {', '.join(map(str, pictures))}"


def _rehearsed(power: Power | None) -> str | None:
    if power is None:
        return None
    return f"{power.recovered} of {power.rehearsals} recovered: power {power.share:.0%} ({power.reach})"


def _records(figures: Figures) -> str | None:
    if figures.records_asked is None or figures.records_p_value is None:
        return None
    return f"{figures.records_called} of {figures.records_asked} called; p = {figures.records_p_value:.2g} for all"


def _chance(figures: Figures) -> str | None:
    bound = figures.false_alarms_at_most
    if bound is None:
        return None
    return f"at most {bound:.1%}: once in {figures.nulls + 1} audits of updates that say nothing"


def _of(some: int, all_: int, what: str) -> str | None:
    """How many of how many; nothing where none were asked for."""
    if not all_:
        return None
    return str(some) if some == all_ else f"{some} of {all_} {what}"


def _number(value: float | None, form: str) -> str | None:
    return None if value is None or not math.isfinite(value) else form.format(value)


def _decibels(value: float | None, compared: bool) -> str | None:
    """A score: with a truth by the best control, else by how far two runs agree and explain the update."""
    if value is None:
        return None
    if not math.isfinite(value):
        return "came to no picture"
    if compared:
        return f"{abs(value):.1f} dB {'above' if value > 0 else 'below'} the best control"
    return f"two runs agree, and explain the update, by {value:.1f} dB"


def _each(figures: Figures, compared: bool) -> str | None:
    values = [] if figures.margins is None else figures.margins.tolist()
    if not 1 < len(values) <= _MOST_MARGINS:
        return None
    shown = ", ".join(f"{value:.1f}" if math.isfinite(value) else "none" for value in values)
    return f"{shown} dB {'above the best control' if compared else 'of agreement'}"


def _spread(values: Scores | None) -> str | None:
    """One number of decibels, or those of several pictures."""
    if values is None or len(values) > _MOST_MARGINS:
        return None
    return f"{', '.join(f'{value:.1f}' if math.isfinite(value) else 'not known' for value in values.tolist())} dB"


def _limit(limit: Limit | None, why: str) -> str:
    """How much of the pictures the update holds, by its information and what blurs it."""
    if limit is None:
        return f"not known: {why}" if why else ""
    both = zip(limit.limit_psnr, limit.determined, strict=True)
    each = [f"{bound:.1f} dB ({told} of {limit.of} directions)" for bound, told in both if bound is not None]
    more = f" and {len(each) - _MOST_MARGINS} more" if len(each) > _MOST_MARGINS else ""
    shown = ", ".join(each[:_MOST_MARGINS])
    return f"{shown}{more}, where the prior alone has {limit.prior:.1f} dB; at the {limit.at}; noise: {limit.noise}"


def _difference(cost: float | None) -> str | None:
    """What is left between the update of the result and the one observed."""
    return _number(cost, f"{{:.2g}} of the update, squared; less than {EXACT:g} is the same update")


def _iterations(figures: Figures) -> str | None:
    ran, wanted = figures.null_iterations, figures.null_iterations_without_limit
    if ran is None or wanted is None or ran == wanted:
        return None if ran is None else str(ran)
    return f"{ran}, where without a limit of time there are {wanted}"


def _nearest(figures: Figures) -> str | None:
    if figures.identified is None or figures.candidates is None or figures.identified_by_chance is None:
        return None
    return (
        f"{figures.identified:.0%} of the results are nearest to their own picture among {figures.candidates}; "
        f"{figures.identified_by_chance:.0%} by luck"
    )


def _outcome(report: "Report") -> Outcome:
    """What came of the attack, in one word; records that were found are told where no picture was."""
    told = _of_pictures(report)
    records = report.membership is not None and report.membership.found
    return "records" if records and told in ("absent", "open", "none", "unknown") else told


def _of_pictures(report: "Report") -> Outcome:
    """What came of the pictures: by the verdict where there is one."""
    if report.verdict is not None:
        return _judged(report.verdict)
    same = report.reconstruction.proven or report.reproduces
    if PSNR not in report.scores:
        return "open" if same else "unknown"
    kinds = _recoveries(report)
    if "recovered" in kinds:
        exact = same and set(kinds) == {"recovered"} and bool((report.scores[PSNR] >= EXACT_DB).all())
        return "exact" if exact else "leaked"
    return "part" if "recovered in part" in kinds else "none"


def _judged(verdict: Verdict) -> Outcome:
    if verdict.leaked:
        return "exact" if verdict.figures.exact else "leaked"
    told: Outcome = "none" if verdict.figures.decided else "open"
    return _BY_ANSWER.get(verdict.answer, told)


_BY_ANSWER: Mapping[Answer, Outcome] = {Answer.IN_THE_UPDATE: "present", Answer.NOT_IN_THE_UPDATE: "absent"}
"""What a "no" of the attack means, where the limit of the update tells."""


def _answer(report: "Report", told: Outcome) -> tuple[str, str]:
    """The first sentence, and the scores that belong to it, or nothing where there is no truth."""
    subject, _, figures = report.headline.partition(": ")
    if report.truth is None:
        subject = _alone(report, told) or subject
    elif told == "exact":
        subject = (
            f"{_pictures(report, 'The private picture was', 'All {} private pictures were')} read out of the update"
        )
    elif told in _SUBJECTS:
        subject = _SUBJECTS[told].format(who=_pictures(report, "The private picture is", "Private pictures are"))
    elif report.verdict is not None:
        if told == "none":
            subject = "No private picture was recovered by these attacks"
        elif "recovered" not in _recoveries(report):
            subject = "Something of the private data was recovered from the update"
    return subject.rstrip(".") + ".", figures[:1].upper() + figures[1:]


_SUBJECTS: Mapping[Outcome, str] = {
    "open": "It is not decided whether a private picture was recovered",
    "present": "{who} in the update, though not recovered by these attacks",
    "records": "Records that were asked for are in the update, though nothing shows that a picture was recovered",
    "absent": "{who} not in the update, as far as its noise and its derivative tell",
}
"""The first sentence beside the truth, where nothing was recovered for sure."""


def _unfinished(report: "Report") -> bool:
    """Whether the verdict is open because something was left out."""
    return report.verdict is not None and bool(report.verdict.figures.undecided_because)


def _alone(report: "Report", told: Outcome) -> str:
    """The first sentence where there is no truth to compare with; nothing where there is nothing to say."""
    figures = report.verdict.figures if report.verdict else Figures()
    leaked, some = len(figures.pictures_leaked), report.count > 1
    match told:
        case "exact":
            who = _pictures(report, "A picture was", "{} pictures were")
            return f"{who} read out of the update, and nothing near {_pictures(report, 'it', 'them')} fits it"
        case "leaked":
            what = f"{leaked} of {report.count} pictures" if some and leaked else "a picture"
            whose = "it is the private one" if leaked <= 1 else "they are the private ones"
            return f"The update settles {what}; whether {whose} cannot be told here"
        case "open" if _unfinished(report):
            return "It is not decided whether the update gives away a picture"
        case "open":
            found = _pictures(report, "a picture", "{} pictures")
            return f"The update comes out the same from {found} that the attack found, but perhaps from others too"
        case "present":
            return "Such an update holds its picture, though nothing shows that these attacks recovered it"
        case "absent":
            return "Such an update does not hold its picture, as far as its noise and its derivative tell"
        case "none":
            return "Nothing shows that these attacks recovered a picture"
    return _SUBJECTS["records"] if told == "records" else ""


def _meaning(report: "Report", found: Outcome, facts: Audited) -> str:
    """What was done, and what its result means, without a technical term."""
    who = _pictures(report, "a private picture", "{} private pictures")
    what = _pictures(report, "the picture", "the pictures")
    told = _ALONE if report.truth is None else _COMPARED
    result = (_UNFINISHED if _unfinished(report) else told.get(found, _ALONE["unknown"])).format(what=what)
    return (
        f"A device learned from {who} and sent only an update, the numbers by which a shared model changes. An attack "
        f"was given that update and the model, but {_pictures(report, 'not the picture', 'none of the pictures')}. "
        f"{result}{_labels(report, found, facts)}"
    )


def _measures(report: "Report", found: Outcome, facts: Audited) -> tuple[str, tuple[Measure, ...]]:
    """A title, and what would stop it, or would make a good result surer, the most effective first."""
    if found in ("none", "open", "unknown", "absent"):
        return "What would make this surer", _surer(report, facts)
    weigh = _SWEEP if report.pictured else replace(_SWEEP, command="")
    return "What would stop it", (_noise(facts), *_mixing(report, facts), weigh)


_ALONE: Mapping[Outcome, str] = {
    "exact": "What it found gives the very same update, and any change to it that one can see gives another: whoever "
    "receives such an update can find it too. There is no private picture here to compare with.",
    "leaked": "It looked for what would give the same update, and came to the same from different starts. Whoever "
    "receives such an update can do that. There is no private picture here to compare with.",
    "open": "What it found gives the very same update, but something else may do so too, and there is no private "
    "picture here to compare with.",
    "none": "Started elsewhere, it finds something else, or it finds as much in an update of random numbers. There is "
    "no private picture here to compare with, and another attack might find more.",
    "present": "The attack did not find a picture that the update settles, but an update like this one holds {what}: "
    "a better search may find what this one did not. There is no private picture here to compare with.",
    "records": "The update gives away that records that were asked for were in it: who has a picture can tell that it "
    "was used. Do not take it for safety that the attack did not show the picture.",
    "absent": "An update like this one tells hardly more of {what} than any picture of the kind would. There is no "
    "private picture here to compare with.",
    "unknown": "There is no private picture here to compare with, so look at what it found with care.",
}
"""What a result means where there is no truth."""

_COMPARED: Mapping[Outcome, str] = {
    "exact": "It recovered {what}, and checked the result against the update: whoever receives such an update can have "
    "{what}.",
    "leaked": "It looked for {what} that would give the same update. Whoever receives such an update can do that.",
    "part": "What it found is closer to {what} than a guess without any update, but it is no copy.",
    "open": "What it found is closer to {what} than a guess without any update, but the runs that would tell this from "
    "chance were too short.",
    "present": "It did not find {what}, but the update holds what it takes: a better search may find what this one did "
    "not. Do not take this for safety.",
    "records": "It was not shown to find {what}, but the update gives away that records that were asked for were in "
    "it: who has a picture can tell that it was used. Do not take this for safety.",
    "absent": "It found nothing, and near {what} no other attack would: what the update tells is lost in its noise, or "
    "was never in it.",
    "none": "What it found proves nothing: without the update one gets as close. Another attack might get closer.",
}
"""What it means beside the truth, `{what}`."""

_UNFINISHED = (
    "Not all was carried out that would tell a find from chance, so it is not decided whether {what} can be had; the "
    "verdict says what is missing."
)
"""What it means where something was left out, `{what}`."""

_AGAIN = "inversefed audit --config report.json"

_SWEEP = Measure(
    "Weigh the measures",
    "Each costs accuracy, and none is safe by itself. A sweep shows what still leaks under each of them, to an attack "
    "that knows it too, and what the model loses.",
    "inversefed defend --sweep",
)


def _noise(facts: Audited) -> Measure:
    if facts.defenses:
        return Measure(
            "More of what was used",
            f"{', '.join(facts.defenses)} did not stop it. Stronger settings, noise above all, leave less to recover.",
        )
    return Measure(
        "Noise, before the update is sent",
        "Limit the size of the update, then add random numbers to it. The more, the less can be recovered, and the "
        "more slowly the model learns; with differential privacy the protection can be stated as a number.",
        _simulated(facts, '--defenses "Clip(1.0)" "GaussianNoise(0.01)" --output with-noise'),
    )


def _mixing(report: "Report", facts: Audited) -> tuple[Measure, ...]:
    aggregate = Measure(
        "Let nobody see a single update",
        "With secure aggregation the server only receives the sum over many devices, which hides each one's part.",
    )
    if report.count > 8:
        return (aggregate,)
    command = "" if facts.own_pictures else _simulated(facts, "--num-images 16 --output together")
    text = (
        f"This update was made from {_pictures(report, 'one picture', '{} pictures')}. Larger batches mix more of them."
    )
    return (Measure("More pictures in one update", text, command), aggregate)


def _simulated(facts: Audited, options: str) -> str:
    """The command that makes another update; nothing where the update came from a file and is what it is."""
    return f"{_AGAIN} {options}" if facts.rerun and not facts.from_file else ""


def _surer(report: "Report", facts: Audited) -> tuple[Measure, ...]:
    compared = Measure(
        "Compare with the private picture",
        "Whoever has it can have the result scored against it, and against guesses; the attack never sees it.",
        f"{_AGAIN} --truth {'PICTURE.png' if report.pictured else 'FILE'} --output compared" if facts.from_file else "",
    )
    harder = Measure(
        "Attack harder",
        "More starts and more time find what one short search misses.",
        f"{_AGAIN} --restarts 8 --seed 1 --output harder" if facts.rerun else "",
    )
    worse = Measure(
        "Let the attacker know more",
        "An attacker may guess or know the labels, or the client's settings; the worst case is the one to rely on.",
        f"{_AGAIN} --known-labels --output worst-case" if facts.rerun else "",
    )
    knows = Measure(
        "Attack with knowledge of the defense",
        f"{', '.join(facts.defenses)} was in use. An attack that knows it may recover more.",
        _SWEEP.command if report.pictured else "",
    )
    finished = Measure(
        "Carry it out to its end",
        "The verdict says what was cut short or left out. More time, on a machine with less to do, decides it.",
        f"{_AGAIN} --time-budget 10m --output longer" if facts.rerun else "",
    )
    first = (finished,) if _unfinished(report) else ()
    first = (*first, *(() if report.truth is not None else (compared,)))
    return (*first, harder, worse, *((knows,) if facts.defenses else ()))


def _recoveries(report: "Report") -> list[str]:
    controls = {name: found[PSNR] for name, found in report.baselines.items() if PSNR in found}
    return [recovery(margin) for margin in margins(report.scores[PSNR], controls, floor=0.0).tolist()]


def _labels(report: "Report", told: Outcome, facts: Audited) -> str:
    """Whether labels that nobody told the attack were found."""
    found = report.scores.get("label_accuracy")
    if facts.labels != "unknown" or found is None or not len(found):
        return ""
    right = int(found.sum())
    if right and told in ("none", "open", "unknown", "present", "records", "absent"):
        return (
            " But it named the right class." if len(found) == 1 else f" But it named {right} of {len(found)} classes."
        )
    if len(found) == 1:
        return " It also named the right class." if right else ""
    return f" It named the right class of {right} of {len(found)}." if right else ""


def _pictures(report: "Report", one: str, many: str) -> str:
    return one if report.count == 1 else many.format(report.count)
