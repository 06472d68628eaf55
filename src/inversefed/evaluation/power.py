"""How likely the verdict would have called a leak, had there been one: the power of the test, by rehearsals.

    power = r / N,     its interval by Clopper and Pearson (1934),     r of N stand-ins recovered

Stand-ins are public pictures of the same kind; how far the private ones are like them is for the reader to judge. The
interval is exact for independent stand-ins, whatever the share: of 8 stand-ins none recovered leaves up to 37 %.
"""

from dataclasses import dataclass

from inversefed.evaluation.intervals import share_interval
from inversefed.thresholds import LEAST_DB

__all__ = ["Power", "Rehearsed"]


@dataclass(frozen=True)
class Rehearsed:
    """What rehearsals came to, before anything is known of the update that is audited.

    Args:
        scores: of each stand-in its best picture in dB (PSNR) over the best control; infinity where one was recovered
            exactly, minus infinity where the attack refused the update.
        planned: how many were asked for.
        why: why there are fewer, as a sentence without its stop; empty where none is missing.
        note: what else must be known of them, likewise.
        seconds: wall time of all.
        cached: whether they were read from an earlier audit of the same setting.
    """

    scores: tuple[float, ...] = ()
    planned: int = 0
    why: str = ""
    note: str = ""
    seconds: float = 0.0
    cached: bool = False

    def power(self, bar: float) -> "Power | None":
        """The share that the verdict would have called; `None` where nothing was rehearsed.

        Args:
            bar: the best null run of the real audit, in dB over the best control; minus infinity where there was none.

        >>> Rehearsed((2.0, -1.0, 0.05), 3).power(float("-inf")).recovered
        1
        """
        if not self.scores:
            return None
        recovered = sum(score > max(LEAST_DB, bar) for score in self.scores)
        return Power(recovered, len(self.scores), self.planned, self.why, self.seconds, note=self.note)


@dataclass(frozen=True)
class Power:
    """The share of stand-ins that the verdict would have called.

    Args:
        recovered: how many were, from 0.
        rehearsals: of how many, from 1.
        planned: of how many that were asked for.
        why: why there were fewer, as a sentence without its stop; empty where none is missing.
        seconds: wall time of all.
        level: of the interval.
        note: what else must be known of them, as a sentence without its stop.

    >>> power = Power(8, 8, 8)
    >>> power.share, [round(end, 2) for end in power.interval]
    (1.0, [0.63, 1.0])
    >>> print(power)
    In rehearsals on 8 public stand-ins the same attack recovered 8 (100%; 63 to 100% at 95% confidence).
    """

    recovered: int
    rehearsals: int
    planned: int
    why: str = ""
    seconds: float = 0.0
    level: float = 0.95
    note: str = ""

    @property
    def share(self) -> float:
        """Of the stand-ins, in [0, 1]."""
        return self.recovered / self.rehearsals

    @property
    def interval(self) -> tuple[float, float]:
        """The exact interval of that share."""
        return share_interval(self.recovered, self.rehearsals, self.level)

    @property
    def reach(self) -> str:
        """That interval in words."""
        low, high = self.interval
        return f"{100 * low:.0f} to {high:.0%} at {self.level:.0%} confidence"

    def __str__(self) -> str:
        many = "1 public stand-in" if self.rehearsals == 1 else f"{self.rehearsals} public stand-ins"
        text = f"In rehearsals on {many} the same attack recovered {self.recovered} ({self.share:.0%}; {self.reach})."
        missing = f" {self.planned} were asked for: {self.why}." if self.rehearsals < self.planned else ""
        return text + missing + (f" {self.note}." if self.note else "")
