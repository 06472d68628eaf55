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
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from inversefed.types import Scores

__all__ = ["Evidence", "Verdict", "decide", "greatest", "margins"]

AGREEMENT_DB = 3.0
"""By how much two runs must agree better than with one color: half the squared error, the descriptive threshold of
`words`."""


@dataclass(frozen=True)
class Verdict:
    """Whether an update leaked, as far as these attacks can tell.

    Args:
        leaked: whether a picture was recovered beyond what the controls reach.
        sentence: that, in one plain sentence.
        scope: which attacks were tried, with what budget, and what the attacker was given.
        figures: the numbers behind it, as plain data.
    """

    leaked: bool
    sentence: str
    scope: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a verdict on one target rests on; all scores are margins in decibels, one an image.

    Args:
        exact: whether the client, run on the result, makes the same update again, and nothing speaks against it.
        recovered: the full attack's margins over the best control; `None` without a truth.
        repeat: those of its repeat on the same terms as the null runs; `None` where there was none.
        nulls: those of each null run; minus infinity where the attack refused the null update.
        planned: how many null runs were asked for.
    """

    exact: bool
    recovered: Scores | None
    repeat: Scores | None = None
    nulls: Sequence[Scores] = ()
    planned: int = 0

    @property
    def complete(self) -> bool:
        """Whether all null runs were carried out that were asked for, and at least one."""
        return self.repeat is not None and len(self.nulls) >= max(1, self.planned)

    @property
    def bar(self) -> float:
        """What has to be surpassed: the best null run."""
        return max(map(greatest, self.nulls), default=float("-inf"))

    @property
    def above(self) -> bool:
        """Whether the repeat is above every null run, and the full attack above them and the controls."""
        if not self.complete or self.repeat is None or not greatest(self.repeat) > self.bar:
            return False
        if self.recovered is None:
            return greatest(self.repeat) > AGREEMENT_DB
        return greatest(self.recovered) > max(0.0, self.bar)

    @property
    def p_value(self) -> float | None:
        """Of the repeat among the null runs."""
        if not self.nulls or self.repeat is None:
            return None
        score = greatest(self.repeat)
        return (1 + sum(greatest(null) >= score for null in self.nulls)) / (len(self.nulls) + 1)


def greatest(margins: Scores) -> float:
    """The score of a run: its best picture's margin; what is no number counts as least.

    >>> greatest(torch.tensor([1.0, float("nan"), 2.0]))
    2.0
    """
    return float(margins.double().nan_to_num(nan=float("-inf"), posinf=float("inf"), neginf=float("-inf")).max())


def margins(scores: Scores, controls: Mapping[str, Scores]) -> Tensor:
    """Decibels over the best control, image by image.

    >>> margins(torch.tensor([20.0]), {"gray": torch.tensor([12.0]), "constant": torch.tensor([15.0])})
    tensor([5.], dtype=torch.float64)
    """
    if not controls:
        return scores.double()
    return scores.double() - torch.stack([found.double().to(scores.device) for found in controls.values()]).amax(dim=0)


def decide(evidence: Evidence, scope: str, figures: Mapping[str, Any] | None = None) -> Verdict | None:
    """Judge one target.

    Args:
        evidence: what was measured.
        scope: which attacks were tried, with what budget, and what the attacker was given.
        figures: further numbers to keep with the verdict.

    Returns:
        `None` where there is nothing to judge by: no exact result, and not all of the null runs.

    >>> null = torch.tensor([-2.0])
    >>> found = decide(Evidence(False, torch.tensor([9.0]), torch.tensor([7.0]), [null] * 19, 19), "One attack.")
    >>> found.leaked, found.figures["p_value"], found.figures["best_null"]
    (True, 0.05, -2.0)
    """
    if not (evidence.exact or evidence.complete):
        return None
    leaked = evidence.exact or evidence.above
    return Verdict(leaked, _sentence(evidence), scope, {**_figures(evidence), **(figures or {})})


def _figures(evidence: Evidence) -> dict[str, Any]:
    repeat, recovered, bar = evidence.repeat, evidence.recovered, evidence.bar
    shown = repeat if recovered is None else recovered
    return {
        "exact": evidence.exact,
        "above_all_nulls": evidence.above,
        "nulls": len(evidence.nulls),
        "nulls_planned": evidence.planned,
        "false_alarms_at_most": 1 / (len(evidence.nulls) + 1) if evidence.complete else None,
        "p_value": evidence.p_value,
        "unit": _UNITS[recovered is not None],
        "score": None if shown is None else greatest(shown),
        "score_of_repeat": None if repeat is None else greatest(repeat),
        "best_null": bar if evidence.nulls else None,
        "margin_over_nulls": greatest(repeat) - bar if repeat is not None and evidence.nulls else None,
        "margins": shown,
        "margins_of_repeat": repeat,
        "margins_of_nulls": list(evidence.nulls),
        "pictures_leaked": _leaked(evidence),
    }


_UNITS = {
    True: "dB of PSNR over the best control",
    False: "dB by which two runs agree better than with one color, or explain the update, whichever is less",
}


def _leaked(evidence: Evidence) -> list[int]:
    """Which pictures leaked, each by itself."""
    shown = evidence.repeat if evidence.recovered is None else evidence.recovered
    if shown is None or not (evidence.exact or evidence.above):
        return []
    bar = float("-inf") if evidence.exact else max(0.0, evidence.bar)
    return [index for index, margin in enumerate(shown.tolist()) if margin > bar]


def _sentence(evidence: Evidence) -> str:
    if evidence.exact:
        return _exactly(evidence)
    return _agreement(evidence) if evidence.recovered is None else _comparison(evidence, evidence.recovered)


def _exactly(evidence: Evidence) -> str:
    if evidence.recovered is None:
        return (
            "Leaked: pictures were found on which the client makes the very update again, "
            "and an update of random numbers has none."
        )
    what = "the picture was" if len(evidence.recovered) == 1 else f"all {len(evidence.recovered)} pictures were"
    return f"Leaked: {what} recovered exactly, and the client makes the very update of the result again."


def _comparison(evidence: Evidence, recovered: Scores) -> str:
    count, score = len(recovered), greatest(recovered)
    picture = "the picture" if count == 1 else "the best picture"
    measured = f"{picture} is {_decibels(score)} the best control, and that of {_runs(evidence)}"
    if not evidence.above:
        return f"Not recovered by these attacks within this budget: {measured}."
    which = "" if count == 1 else f"{len(_leaked(evidence))} of {count} pictures: "
    return f"Leaked: {which}{measured}; {_chance(evidence)}."


def _agreement(evidence: Evidence) -> str:
    agreed = greatest(evidence.repeat) if evidence.repeat is not None else float("nan")
    measured = (
        f"two runs from different starts agree on a picture, and explain the update, by {agreed:.1f} dB, and "
        f"{_runs(evidence, agree=True)}"
    )
    if not evidence.above:
        return (
            f"Not recovered by these attacks within this budget, as far as one can tell without the truth: {measured}."
        )
    return (
        f"The update settles a picture: {measured}; {_chance(evidence)}. "
        "Whether it is the client's cannot be told without the truth."
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
