"""The sentences of a report: what was recovered, how the run ended, and what that does not mean.

The thresholds here describe, they do not judge: they choose the words of one sentence, and the numbers
stand beside it. A statistical verdict, with intervals, is another matter.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Literal

from inversefed.evaluation.controls import described
from inversefed.evaluation.verdict import margins
from inversefed.thresholds import CLEARLY_DB, PARTLY_DB
from inversefed.types import Scores, Status

__all__ = ["SCOPE", "believed", "headline", "pairing", "recovery", "status_note"]

Recovery = Literal["recovered", "recovered in part", "not recovered"]

PSNR = "peak_signal_noise_ratio"

_MOST_NAMED = 8
"""Pictures that a sentence names."""

SCOPE = (
    "These results are those of one attack, with one budget, under one threat model. "
    "Not recovered by these attacks within this budget is not the same as private."
)

_NOTES: Mapping[Status, str] = {
    Status.FINISHED: "",
    Status.CONVERGED: "",
    Status.PRUNED: "Other starts matched the update better, so this one was given up early.",
    Status.STOPPED: "Its time budget or its caller ended the attack early; this is the best result so far.",
    Status.INTERRUPTED: "The attack was cut short; this is the best result so far.",
    Status.NON_FINITE: "The loss became NaN or infinite; this is the last finite result, if there is one.",
}


def recovery(margin: float) -> Recovery:
    """Describe one picture by how far it is above the best control; not a verdict.

    Args:
        margin: PSNR of the reconstruction less that of the best picture that needs no gradient, in dB.

    >>> recovery(11.3), recovery(1.5), recovery(float("nan"))
    ('recovered', 'recovered in part', 'not recovered')
    """
    if margin >= CLEARLY_DB:
        return "recovered"
    return "recovered in part" if margin >= PARTLY_DB else "not recovered"


def headline(
    scores: Mapping[str, Scores], baselines: Mapping[str, Mapping[str, Scores]], count: int, also: str = ""
) -> str:
    """Say in one sentence what was recovered, with the controls beside it.

    Args:
        scores: one number per image, by the metric's name.
        baselines: the same, by the control's name.
        count: how many pictures there are.
        also: what is in the update all the same, so that nobody takes that for safety; empty for nothing.

    >>> import torch
    >>> score, gray = ({"peak_signal_noise_ratio": torch.tensor([value])} for value in (24.31, 11.8))
    >>> headline(score, {"gray": gray}, count=1)
    "A picture was recovered from the client's update: 24.3 dB, where a gray image scores 11.8 dB."
    """
    if PSNR not in scores:
        return f"The attack produced {count} picture{'s'[: count != 1]}, and there is no truth to compare with."
    controls = {name: found[PSNR] for name, found in baselines.items() if PSNR in found}
    kinds = Counter(map(recovery, margins(scores[PSNR], controls, floor=0.0).tolist()))
    return f"{_count(kinds, count)}{also and ', though '}{also}: {_decibels(scores[PSNR], controls)}."


def believed(agreed: Scores | None) -> str:
    """Say which of several pictures other starts come to as well; nothing for one, or where there was no other start.

    Args:
        agreed: decibels by which they agree better than with one color, `[n]`.

    >>> import torch
    >>> believed(torch.tensor([14.7, 0.2]))
    'Other starts of the attack come to the same picture 0 (14.7 dB), and to another picture 1 (0.2 dB).'
    """
    if agreed is None or len(agreed) < 2:
        return ""
    named = [(index, value, f"{index} ({value:.1f} dB)") for index, value in enumerate(agreed.tolist())]
    same = [text for _, value, text in named if value >= CLEARLY_DB]
    rest = [text for _, value, text in named if not value >= CLEARLY_DB]
    told = [f"to the same {_numbered(same)}"] if same else []
    told += [f"to {'another' if len(rest) == 1 else 'other'} {_numbered(rest)}"] if rest else []
    return f"Other starts of the attack come {', and '.join(told)}."


def _numbered(names: list[str]) -> str:
    if len(names) > _MOST_NAMED:
        return f"pictures {', '.join(names[:_MOST_NAMED])} and {len(names) - _MOST_NAMED} more"
    return f"pictures {', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else f"picture {names[0]}"


def pairing(count: int) -> str:
    """Say how several pictures were paired with the truths; nothing for one."""
    if count < 2:
        return ""
    return (
        "An update is a sum over its pictures and keeps no order. Each truth was paired with a reconstruction so that "
        "their total PSNR is greatest, so the scores below are those of the pairing that suits them best."
    )


def status_note(status: Status) -> str:
    """Say what a reader must know of how the run ended; nothing if it ended as planned."""
    return _NOTES[status]


def _count(kinds: Counter[Recovery], count: int) -> str:
    """The subject and verb of the headline."""
    source = "from the client's update"
    if count == 1:
        kind = next(iter(kinds))
        return f"{'The' if kind == 'not recovered' else 'A'} picture was {kind} {source}"
    back, partly = kinds["recovered"], kinds["recovered in part"]
    also = f", {partly} more in part" if partly else ""
    return f"{back or 'None'} of {count} pictures were recovered {source}{also}"


def _decibels(scores: Scores, controls: Mapping[str, Scores]) -> str:
    """The numbers of the headline: the mean, and those of the controls."""
    average = " on average" if len(scores) > 1 else ""
    named = [f"{described(name).phrase} scores {_mean(found)}" for name, found in _telling(controls).items()]
    where = f", where {' and '.join(named)}" if named else ""
    return f"{_mean(scores)}{average}{where}"


def _telling(controls: Mapping[str, Scores]) -> dict[str, Scores]:
    """The controls that a headline names: plain pictures always, what a run gave where it is the highest bar."""
    means = {name: float(found.double().mean()) for name, found in controls.items()}
    plain = ("constant", "gray")
    return {name: found for name, found in controls.items() if name in plain or means[name] >= max(means.values())}


def _mean(scores: Scores) -> str:
    mean = scores.double().mean()
    return f"{mean:.1f} dB" if mean.isfinite() else "no finite score"
