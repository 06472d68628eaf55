"""Which of several attacks is best in a setting: successive halving over public stand-ins, whose truth is known.

    rung r = 0 .. R - 1:   score every member that is left, on the same stand-ins, with 2^(r + 1 - R) of its iterations,
                           and keep the better half (ceil(m / 2) of m),        R = ceil(log2(members))

so that every rung costs about as much as the one before, and the last one sees whole runs (Jamieson and Talwalkar 2016,
"Non-stochastic best arm identification", arXiv:1502.07943, algorithm 1). A score is the mean over stand-ins of the
decibels (PSNR) that a picture gains over its own best color; of equal scores the earlier member's counts.

The same stand-ins for all: what makes one picture harder than another is the same for every member.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Choice", "Rung", "chosen", "rungs", "told"]


@dataclass(frozen=True)
class Rung:
    """What was compared, and with how much of its iterations.

    Args:
        share: of the iterations of a whole run, in (0, 1].
        scores: mean gain in dB of each member by its number; minus infinity where an attack refused the update.
    """

    share: float
    scores: dict[int, float]


@dataclass(frozen=True)
class Choice:
    """Which member of a portfolio was chosen, and why.

    Args:
        attacks: all members, as text.
        number: of the one that was chosen, from 0.
        rungs: those that were carried out, in order.
        stand_ins: on how many public batches members were compared.
        why: what ended it before its last rung, as a sentence without its stop; empty where nothing did.
        seconds: wall time of all.
        cached: whether it was read from an earlier audit of the same setting.

    >>> found = chosen(("rules", "strong", "weak"), 1, lambda member, _, share: share * (1.0, 3.0, 2.0)[member])
    >>> found.attack, [round(rung.share, 2) for rung in found.rungs]
    ('strong', [0.5, 1.0])
    >>> print(found)
    On 1 public stand-in strong did best of 3 attacks: +3.0 dB over one color, and the first of them +0.5 dB.
    """

    attacks: tuple[str, ...]
    number: int = 0
    rungs: tuple[Rung, ...] = ()
    stand_ins: int = 0
    why: str = ""
    seconds: float = 0.0
    cached: bool = False

    @property
    def attack(self) -> str:
        """The one that was chosen, as text."""
        return self.attacks[self.number]

    def last(self, number: int) -> float | None:
        """The score of a member in the last rung that it was in; `None` where it was in none."""
        return next((rung.scores[number] for rung in reversed(self.rungs) if number in rung.scores), None)

    def plain(self) -> dict[str, Any]:
        """All of it, its members by their text."""
        rungs = [
            {"share": rung.share, "scores": {self.attacks[each]: score for each, score in rung.scores.items()}}
            for rung in self.rungs
        ]
        return {**vars(self), "rungs": rungs, "chosen": self.attack}

    def __str__(self) -> str:
        if not self.rungs:
            return f"{self.attack} was kept: {self.why}."
        many = "1 public stand-in" if self.stand_ins == 1 else f"{self.stand_ins} public stand-ins"
        first = f", and the first of them {told(self.last(0))}" if self.number else ", as the first of them"
        best = f"{self.attack} did best of {len(self.attacks)} attacks: {told(self.last(self.number))} over one color"
        return f"On {many} {best}{first}." + (f" It ended early: {self.why}." if self.why else "")


def rungs(members: int) -> list[tuple[int, float]]:
    """How many members are compared in each rung, and with what share of their iterations.

    >>> rungs(11)
    [(11, 0.125), (6, 0.25), (3, 0.5), (2, 1.0)]
    """
    left, found = members, []
    while left > 1:
        found.append(left)
        left = -(-left // 2)
    return [(count, 2.0 ** (place + 1 - len(found))) for place, count in enumerate(found)]


def chosen(
    attacks: Sequence[str], stand_ins: int, score: Callable[[int, int, float], float | None], why: str = ""
) -> Choice:
    """Choose by successive halving.

    Args:
        attacks: the members as text, the one that is kept in doubt first.
        stand_ins: how many there are.
        score: of a member on a stand-in, both by number, with a share of its iterations: dB over one color. `None`
            where there is no time for it: then the rungs that were carried out decide.
        why: there would be no time, as a sentence without its stop.
    """
    left, done = list(range(len(attacks))), list[Rung]()
    for _, share in rungs(len(attacks)):
        scores = {}
        for member in left:
            found = [each for place in range(stand_ins) if (each := score(member, place, share)) is not None]
            if len(found) < stand_ins:
                return Choice(tuple(attacks), left[0], tuple(done), stand_ins, why)
            scores[member] = math.fsum(found) / stand_ins if math.inf not in map(abs, found) else -math.inf
        done.append(Rung(share, scores))
        left = sorted(left, key=lambda member: -scores[member])[: -(-len(left) // 2)]  # stable: the earlier of equals
    return Choice(tuple(attacks), left[0], tuple(done), stand_ins)


def told(decibels: float | None) -> str:
    """A score in words.

    >>> told(1.25), told(float("-inf"))
    ('+1.2 dB', 'nothing')
    """
    return "nothing" if decibels is None or not math.isfinite(decibels) else f"{decibels:+.1f} dB"
