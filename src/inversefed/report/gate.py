"""How much a report says has leaked, as one number that a pipeline can hold to a limit.

The leakage of a picture is how many decibels its reconstruction is above the best control, which is a picture that
needs no update at all, or what the same attack made of an update that holds nothing. That of a report is its worst
picture's; an average would hide one.

    leakage = max_i [ PSNR(x^_i, x*_i) - max over controls of PSNR(control_i, x*_i) ] - max(0, best null run)

A null run, where the verdict has some, is scored in the same way, its best picture over the best control. Where the
report scores null runs among its controls, picture by picture, they are not counted twice.
Where there is no truth, nothing can be measured so, and the report's own verdict stands in for it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from inversefed.errors import ConfigError, InputError
from inversefed.evaluation.verdict import Answer, margins
from inversefed.report.sentences import PSNR
from inversefed.thresholds import CLEARLY_DB

__all__ = ["DEFAULT_LIMIT", "Leakage", "Outcome", "leakage", "outcome"]

Outcome = Literal["above", "below", "unknown"]

DEFAULT_LIMIT = CLEARLY_DB
"""Decibels that a report without a verdict is held to: half the squared error of the best control."""

_CUT_SHORT = {"interrupted", "non-finite"}


@dataclass(frozen=True)
class Leakage:
    """What a report says has leaked.

    Args:
        decibels: the worst picture's margin over its best control; `None` where there is no truth to measure with.
        picture: which one that is.
        control: its best control's name.
        exact: whether the forward operator confirmed that the update comes from the recovered pictures.
        leaked: what the report's verdict says, `None` where it has none.
        evidence: why a result below a limit cannot be trusted, or nothing.
        undecided: whether the verdict is neither a yes nor a no.
        power: share of public stand-ins that the verdict would have called, in [0, 1]; `None` without rehearsals.
        answer: what the verdict comes to, `None` where it does not say.
        members: how many records that were asked for are called in the update, at least one where `members_found`;
            `None` where nobody asked.
        members_found: whether all of them together show that some were.
    """

    decibels: float | None
    picture: int | None = None
    control: str | None = None
    exact: bool = False
    leaked: bool | None = None
    evidence: str = ""
    undecided: bool = False
    power: float | None = None
    answer: str | None = None
    members: int | None = None
    members_found: bool = False


def leakage(report: Mapping[str, Any]) -> Leakage:
    """Measure the leakage in a report.

    Args:
        report: the dictionary of `Report.to_dict`, or what `read_report` read.

    Raises:
        InputError: entries that are not what a report holds.

    >>> leakage({"scores": {"peak_signal_noise_ratio": [24.0, 14.0]}, "status": "finished",
    ...          "baselines": {"gray": {"peak_signal_noise_ratio": [11.0, 13.5]}}}).decibels
    13.0
    """
    worst, unmeasured = _worst(report)
    verdict = _table(report, "verdict")
    leaked, figures = verdict.get("leaked"), _table(verdict, "figures")
    if leaked is not None and not isinstance(leaked, bool):
        raise InputError(f"the verdict's entry leaked must be true or false, got {leaked!r}")
    # The verdict knows which pictures are exact; without one, what the attack proved stands.
    proven = report.get("proven", False)
    if not isinstance(proven, bool):
        raise InputError(f"the report's entry proven must be true or false, got {proven!r}")
    named, told = figures.get("pictures_exact"), proven or figures.get("exact") is True
    exact = told if named is None else bool(named)
    decibels, picture, control = worst or (None, None, None)
    null = 0.0 if "null" in _table(report, "baselines") else _best_null(figures)
    if decibels is not None and null > 0:
        decibels, control = decibels - null, "null runs"
    undecided = figures.get("decided") is False
    evidence, answer = _evidence(report, unmeasured, figures), verdict.get("answer")
    said = None if answer is None else str(answer)
    power, records = _power(figures), _members(report)
    return Leakage(decibels, picture, control, exact, leaked, evidence, undecided, power, said, *records)


def outcome(
    found: Leakage, limit: float | None = None, min_power: float | None = None, max_members: int | None = None
) -> Outcome:
    """Hold a leakage to a limit.

    Args:
        found: what a report says.
        limit: decibels over the best control; `None` leaves it to the report's verdict, and to `DEFAULT_LIMIT` where
            there is none.
        min_power: in [0, 1]; a report with less power, or without rehearsals, is no evidence that little leaked.
        max_members: how many records may be called where the update shows that some were in it; `None` for none. With a
            number, a report that no records were asked for in is no evidence.

    Returns:
        `"above"` where more leaked than that, an exact recovery that no verdict contradicts, or more records; `"below"`
        where it did not; `"unknown"` where the report is no evidence for either, or is held to its verdict, and that
        says that the picture is in the update.

    Raises:
        ConfigError: a limit that is no number of decibels, a least power that is no share, or no number of records.

    >>> outcome(Leakage(2.0), 3.0), outcome(Leakage(4.0), 3.0), outcome(Leakage(None), 3.0)
    ('below', 'above', 'unknown')
    """
    if limit is not None and not math.isfinite(limit):
        raise ConfigError(f"a limit on leakage is a number of decibels such as 3, got {limit!r}")
    if min_power is not None and not 0 <= min_power <= 1:
        raise ConfigError(f"the least power is a share such as 0.8, from 0 to 1, got {min_power!r}")
    if max_members is not None and max_members < 0:
        raise ConfigError(f"the most records that may be called is a number from 0, got {max_members!r}")
    if _above(found, limit) or (found.members_found and (found.members or 1) > (max_members or 0)):
        return "above"
    if max_members is not None and found.members is None:
        return "unknown"
    if min_power is not None and (found.power is None or found.power < min_power):
        return "unknown"
    if limit is None and found.answer == Answer.IN_THE_UPDATE:
        return "unknown"
    judged = found.decibels is not None or found.leaked is not None
    return "below" if judged and not found.evidence else "unknown"


def _above(found: Leakage, limit: float | None) -> bool:
    if found.exact and found.leaked is not False:
        return True
    if found.leaked is not None and (limit is None or found.decibels is None):
        return found.leaked
    return found.decibels is not None and found.decibels > (DEFAULT_LIMIT if limit is None else limit)


def _worst(report: Mapping[str, Any]) -> tuple[tuple[float, int, str] | None, int]:
    """The greatest margin with its picture and control, and how many pictures have no finite score."""
    scores = _numbers(_table(report, "scores"), PSNR)
    controls = {name: _numbers(_table(_table(report, "baselines"), name), PSNR) for name in _table(report, "baselines")}
    beside = {name: [value or 0.0 for value in found] for name, found in controls.items() if found}
    if any(len(found) != len(scores) for found in beside.values()):
        raise InputError(f"a control of the report has not as many entries of {PSNR} as there are pictures")
    missing = sum(score is None for score in scores)
    if missing == len(scores):
        return None, missing
    over = margins(
        torch.tensor([-math.inf if score is None else score for score in scores], dtype=torch.float64),
        {name: torch.tensor(found, dtype=torch.float64) for name, found in beside.items()},
    )
    margin, index = max((margin, index) for index, margin in enumerate(over.tolist()) if scores[index] is not None)
    _, control = max(((found[index], name) for name, found in beside.items()), default=(0.0, "none"))
    return (margin, index, control), missing


def _best_null(figures: Mapping[str, Any]) -> float:
    """Decibels over the best control that the best null run reached; 0 where there is none, or none was better."""
    found = figures.get("best_null")
    compared = "PSNR" in str(figures.get("unit"))  # `COMPARED`, as this version or an earlier one words it
    return max(0.0, float(found)) if isinstance(found, int | float) and compared else 0.0


def _power(figures: Mapping[str, Any]) -> float | None:
    share = _table(figures, "power").get("share")
    return float(share) if isinstance(share, int | float) else None


def _members(report: Mapping[str, Any]) -> tuple[int | None, bool]:
    """How many records are called in the update, and whether all together show that some were in it."""
    records = _table(report, "membership")
    p_value, level, called = (records.get(name) for name in ("p_value", "level", "called"))
    if not records:
        return None, False
    if not isinstance(p_value, int | float) or not isinstance(level, int | float) or not isinstance(called, list):
        raise InputError("the report's entry 'membership' must have numbers p_value and level, and a list called")
    found, count = p_value <= level, sum(each is True for each in called)
    return max(count, 1) if found else count, found


def _evidence(report: Mapping[str, Any], unmeasured: int, figures: Mapping[str, Any]) -> str:
    status = str(report.get("status"))
    if figures.get("decided") is False:
        because = figures.get("undecided_because")
        return f"its verdict could not decide whether a picture was recovered{f': {because}' if because else ''}"
    if status in _CUT_SHORT:
        return f"the attack ended {status}, so what it did not recover shows nothing"
    return f"{unmeasured} of its pictures have no finite score" if unmeasured else ""


def _table(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = content.get(name) or {}
    if not isinstance(found, Mapping):
        raise InputError(f"the report's entry {name!r} must be an object, got {type(found).__name__}")
    return found


def _numbers(content: Mapping[str, Any], name: str) -> list[float | None]:
    found = content.get(name) or []
    if not isinstance(found, list) or not all(each is None or type(each) in (int, float) for each in found):
        raise InputError(f"the report's entry {name!r} must be a list of numbers")
    return [None if each is None else float(each) for each in found]
