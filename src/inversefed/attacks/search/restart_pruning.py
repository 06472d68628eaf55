"""Restart pruning by successive halving: (restarts, iterations) -> rungs `(until, keep)`.

Up to each rung all restarts that are left advance; there the `keep` that match the update best go on. Starts differ
early, and the late iterations, which cost most, are spent on the few that lead: successive halving (Jamieson and
Talwalkar 2016, arXiv:1502.07943).
"""

import math
from dataclasses import dataclass

from inversefed.errors import ConfigError

__all__ = ["KeepAll", "SuccessiveHalving"]

Rungs = tuple[tuple[int, int], ...]
"""Iterations in rising order, each with the number of restarts that go on from there; the last is the end."""


@dataclass(frozen=True)
class KeepAll:
    """Run every restart to its end, as the papers do."""

    def __call__(self, restarts: int, iterations: int) -> Rungs:
        """One rung."""
        return ((iterations, restarts),)


@dataclass(frozen=True)
class SuccessiveHalving:
    """At each of some shares of the iterations, keep a share of the restarts.

    The defaults spend between one and one and a half full restarts on each rung: 32 restarts cost 4.7.

    Args:
        at: shares of the iterations, rising, where restarts are compared.
        keep: the share of all restarts, falling, that goes on from each; at least one does.

    Raises:
        ConfigError: shares that are no shares, or not as many of one as of the other.

    >>> SuccessiveHalving()(32, 600)
    ((24, 12), (72, 5), (210, 2), (600, 2))
    """

    at: tuple[float, ...] = (0.04, 0.12, 0.35)
    keep: tuple[float, ...] = (0.375, 0.15, 0.05)

    def __post_init__(self) -> None:
        shares = all(0 < share < 1 for share in (*self.at, *self.keep))
        ordered = self.at == tuple(sorted(self.at)) and self.keep == tuple(sorted(self.keep, reverse=True))
        if len(self.at) != len(self.keep) or not shares or not ordered:
            raise ConfigError(
                "SuccessiveHalving needs as many shares `at` (rising) as `keep` (falling), all between 0 and 1; "
                f"got {self.at} and {self.keep}"
            )

    def __call__(self, restarts: int, iterations: int) -> Rungs:
        """The rungs; those that would drop nobody are left out."""
        rungs: list[tuple[int, int]] = []
        left = restarts
        for at, keep in zip(self.at, self.keep, strict=True):
            until, survivors = max(1, round(at * iterations)), max(1, math.ceil(keep * restarts))
            if survivors < left and until < iterations:
                rungs.append((until, survivors))
                left = survivors
        return (*rungs, (iterations, left))
