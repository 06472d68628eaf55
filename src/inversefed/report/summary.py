"""What a report says to someone who has never heard of a gradient: what leaked, how, and what would stop it.

Words only: which of them are said follows from the verdict where there is one, else from the descriptive thresholds
of `words`. Measures are named as what to try next, each with the command that audits it; none is promised to work.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from inversefed.evaluation.verdict import Figures, Verdict, margins
from inversefed.report.model import Report
from inversefed.report.sentences import PSNR, recovery
from inversefed.thresholds import EXACT_DB

__all__ = ["Measure", "Outcome", "answer", "meaning", "measures", "outcome"]

Outcome = Literal["exact", "leaked", "part", "open", "none", "unknown"]


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


def outcome(report: Report) -> Outcome:
    """What came of the attack, in one word: by the verdict where there is one.

    Args:
        report: what is told.
    """
    if report.verdict is not None:
        return _judged(report.verdict)
    same = any(finding.code in ("exact", "same-update") for finding in report.findings)
    if PSNR not in report.scores:
        return "open" if same else "unknown"
    kinds = _recoveries(report)
    if "came back" in kinds:
        exact = same and set(kinds) == {"came back"} and bool((report.scores[PSNR] >= EXACT_DB).all())
        return "exact" if exact else "leaked"
    return "part" if "came back in part" in kinds else "none"


def _judged(verdict: Verdict) -> Outcome:
    if verdict.leaked:
        return "exact" if verdict.figures.exact else "leaked"
    return "none" if verdict.figures.decided else "open"


def answer(report: Report) -> tuple[str, str]:
    """The first sentence, and the figures that belong to it.

    Args:
        report: what is told.

    Returns:
        What came back, and its scores beside those of the controls, or nothing where there is no truth.
    """
    subject, _, figures = report.headline.partition(": ")
    told = outcome(report)
    if report.truth is None:
        subject = _alone(report, told) or subject
    elif told == "exact":
        subject = (
            f"{_pictures(report, 'The private picture was', 'All {} private pictures were')} read out of the update"
        )
    elif told == "open":
        subject = "It is not decided whether a private picture was recovered"
    elif report.verdict is not None:
        if told == "none":
            subject = "No private picture was recovered by these attacks"
        elif "came back" not in _recoveries(report):
            subject = "Something of the private data came back from the update"
    return subject.rstrip(".") + ".", figures[:1].upper() + figures[1:]


def _unfinished(report: Report) -> bool:
    """Whether the verdict is open because something was left out."""
    return report.verdict is not None and bool(report.verdict.figures.undecided_because)


def _alone(report: Report, told: Outcome) -> str:
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
        case "none":
            return "Nothing shows that these attacks recovered a picture"
    return ""


def meaning(report: Report) -> str:
    """What was done, and what its result means, without a technical term.

    Args:
        report: what is told.
    """
    who = _pictures(report, "a private picture", "{} private pictures")
    what = _pictures(report, "the picture", "the pictures")
    told = _ALONE if report.truth is None else _COMPARED
    result = (_UNFINISHED if _unfinished(report) else told.get(outcome(report), _ALONE["unknown"])).format(what=what)
    return (
        f"A device learned from {who} and sent only an update, the numbers by which a shared model changes. An attack "
        f"was given that update and the model, but {_pictures(report, 'not the picture', 'none of the pictures')}. "
        f"{result}{_labels(report)}"
    )


def measures(report: Report) -> tuple[str, tuple[Measure, ...]]:
    """What to do next: what would stop it, or what would make a good result surer.

    Args:
        report: what is told.

    Returns:
        A title, and the measures, the most effective first.
    """
    if outcome(report) in ("none", "open", "unknown"):
        return "What would make this surer", _surer(report)
    return "What would stop it", (_noise(report), *_mixing(report), _SWEEP)


_ALONE: Mapping[Outcome, str] = {
    "exact": "What it found gives the very same update, and any change to it that one can see gives another: whoever "
    "receives such an update can find it too. There is no private picture here to compare with.",
    "leaked": "It looked for what would give the same update, and came to the same from different starts. Whoever "
    "receives such an update can do that. There is no private picture here to compare with.",
    "open": "What it found gives the very same update, but something else may do so too, and there is no private "
    "picture here to compare with.",
    "none": "Started elsewhere, it finds something else, or it finds as much in an update of random numbers. There is "
    "no private picture here to compare with, and another attack might find more.",
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


def _noise(report: Report) -> Measure:
    used = _defenses(report)
    if used:
        return Measure(
            "More of what was used",
            f"{', '.join(used)} did not stop it. Stronger settings, noise above all, leave less to recover.",
        )
    return Measure(
        "Noise, before the update is sent",
        "Limit the size of the update, then add random numbers to it. The more, the less can be recovered, and the "
        "more slowly the model learns; with differential privacy the protection can be stated as a number.",
        _simulated(report, '--defenses "Clip(1.0)" "GaussianNoise(0.01)" --output with-noise'),
    )


def _mixing(report: Report) -> tuple[Measure, ...]:
    aggregate = Measure(
        "Let nobody see a single update",
        "With secure aggregation the server only receives the sum over many devices, which hides each one's part.",
    )
    if report.count > 8:
        return (aggregate,)
    command = "" if report.config.get("images") else _simulated(report, "--num-images 16 --output together")
    text = (
        f"This update was made from {_pictures(report, 'one picture', '{} pictures')}. Larger batches mix more of them."
    )
    return (Measure("More pictures in one update", text, command), aggregate)


def _simulated(report: Report, options: str) -> str:
    """The command that makes another update; nothing where the update came from a file and is what it is."""
    given = report.config.get("update") or report.config.get("after")
    return f"{_AGAIN} {options}" if report.config and not given else ""


def _surer(report: Report) -> tuple[Measure, ...]:
    brought = report.config.get("update") or report.config.get("after")
    compared = Measure(
        "Compare with the private picture",
        "Whoever has it can have the result scored against it, and against guesses; the attack never sees it.",
        f"{_AGAIN} --truth PICTURE.png --output compared" if brought else "",
    )
    harder = Measure(
        "Attack harder",
        "More starts and more time find what one short search misses.",
        f"{_AGAIN} --restarts 8 --seed 1 --output harder" if report.config else "",
    )
    worse = Measure(
        "Let the attacker know more",
        "An attacker may guess or know the labels, or the client's settings; the worst case is the one to rely on.",
        f"{_AGAIN} --known-labels --output worst-case" if report.config else "",
    )
    knows = Measure(
        "Attack with knowledge of the defense",
        f"{', '.join(_defenses(report))} was in use. An attack that knows it may recover more.",
        "inversefed defend --sweep",
    )
    finished = Measure(
        "Carry it out to its end",
        "The verdict says what was cut short or left out. More time, on a machine with less to do, decides it.",
        f"{_AGAIN} --time-budget 10m --output longer" if report.config else "",
    )
    first = (finished,) if _unfinished(report) else ()
    first = (*first, *(() if report.truth is not None else (compared,)))
    return (*first, harder, worse, *((knows,) if _defenses(report) else ()))


def _defenses(report: Report) -> list[str]:
    found = report.scenario.get("defenses") or ()
    return [str(each) for each in found] if isinstance(found, list | tuple) else [str(found)]


def _recoveries(report: Report) -> list[str]:
    controls = {name: found[PSNR] for name, found in report.baselines.items() if PSNR in found}
    return [recovery(margin) for margin in margins(report.scores[PSNR], controls, floor=0.0).tolist()]


def _labels(report: Report) -> str:
    """Whether labels that nobody told the attack were found."""
    threat, found = report.scenario.get("threat_model"), report.scores.get("label_accuracy")
    if not isinstance(threat, Mapping) or threat.get("labels") != "unknown" or found is None or not len(found):
        return ""
    right = int(found.sum())
    if right and outcome(report) in ("none", "open", "unknown"):
        return (
            " But it named the right class." if len(found) == 1 else f" But it named {right} of {len(found)} classes."
        )
    if len(found) == 1:
        return " It also named the right class." if right else ""
    return f" It named the right class of {right} of {len(found)}." if right else ""


def _pictures(report: Report, one: str, many: str) -> str:
    return one if report.count == 1 else many.format(report.count)
