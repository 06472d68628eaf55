"""How far a run is and how long it takes, as people say it."""

import json
from dataclasses import dataclass

from inversefed.experiments.ledger import Standing

__all__ = ["Progress", "length", "progress", "said", "shown_loss"]


def said(standing: Standing) -> str:
    """How far a run is, in a line."""
    parts = [f"{standing.counts['done']} of {standing.total} audits done"]
    parts += [
        f"{standing.counts[state]} {state}" for state in ("running", "queued", "failed") if standing.counts[state]
    ]
    return ", ".join(parts)


def length(seconds: float) -> str:
    """A length of time as people say it.

    >>> length(42.0), length(600.0), length(7300.0)
    ('42 s', '10 min', '2.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Progress:
    """How far a running job is.

    Args:
        iteration: of all its restarts together.
        iterations: how many there are.
        loss: what is minimized; `None` where it is not finite.
        remaining: seconds; `None` where nothing tells.
    """

    iteration: int
    iterations: int
    loss: float | None
    remaining: float | None

    @property
    def fraction(self) -> float:
        """The part that is done, in [0, 1]."""
        return min(1.0, self.iteration / max(1, self.iterations))

    def __str__(self) -> str:
        left = "" if self.remaining is None else f", {length(self.remaining)} left"
        return f"iteration {self.iteration} of {self.iterations}, loss {shown_loss(self.loss)}{left}"


_SAID = frozenset(Progress.__dataclass_fields__)


def progress(text: str | None) -> Progress | None:
    """What a job's `progress` says; `None` where it says nothing yet.

    >>> str(progress('{"iteration": 30, "iterations": 60, "loss": 0.25, "remaining": 75.0}'))
    'iteration 30 of 60, loss 0.25, 75 s left'
    """
    found = {} if text is None else json.loads(text)
    return Progress(**{name: found[name] for name in _SAID}) if found.keys() >= _SAID else None


def shown_loss(loss: float | None) -> str:
    """A loss as a table shows it."""
    return "not finite" if loss is None else f"{loss:.4g}"
