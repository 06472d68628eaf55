"""The scope of a verdict: what was tried, for how long, and what the attacker knew.

An attack that failed says nothing of another one, of a longer one, or of one that is told more; so every verdict is
read with this beside it.
"""

from collections.abc import Mapping
from typing import Any

from inversefed.types import Reconstruction

__all__ = ["scope"]

_GRANTED = {
    ("labels", "known"): ("the labels", ""),
    ("labels", "unknown"): ("", "the labels"),
    ("client", "known"): ("the client's settings", ""),
    ("client", "unknown"): ("", "the client's settings"),
    ("buffers", "sent"): ("the running buffers that the client sent", ""),
}
"""What a choice of the threat model gives the attacker, or keeps from it."""


def scope(
    attack: str, found: Reconstruction, seconds: float, threat: Mapping[str, Any], defenses: int = 0, repeats: str = ""
) -> str:
    """Say in a few sentences what was tried and what was given.

    Args:
        attack: its `repr`.
        found: what it recovered, with the restarts behind it.
        seconds: wall time of the attack.
        threat: the threat model's fields and values.
        defenses: how many there were that the attack was not told of.
        repeats: what was done for the null runs, as a sentence.

    >>> import torch
    >>> from inversefed.types import Status
    >>> found = Reconstruction(torch.zeros(1, 1, 2, 2), torch.tensor([0]), 0.0, Status.FINISHED)
    >>> scope("Peel()", found, 1.0, {"labels": "unknown"})
    'Tried: Peel, for 1.0 s. Given: the network, its weights, the number of examples. Not given: the labels.'
    """
    granted = [_GRANTED.get((name, value), ("", "")) for name, value in threat.items()]
    given = ", ".join(["the network", "its weights", "the number of examples", *(yes for yes, _ in granted if yes)])
    kept = ", ".join([*(no for _, no in granted if no), *(["the defenses"] if defenses else [])])
    parts = [f"Tried: {_tried(attack, found)}, for {seconds:.1f} s.", repeats, f"Given: {given}."]
    return " ".join(part for part in [*parts, f"Not given: {kept}." if kept else ""] if part)


def _tried(attack: str, found: Reconstruction) -> str:
    """The attack's name, what it chose, and how far that went."""
    name, made_by = (each.partition("(")[0] for each in (attack, found.made_by or attack))
    name += f", which chose {made_by}" if made_by != name else ""
    restarts, steps = len(found.candidates), sum(candidate.iterations for candidate in found.candidates)
    if not steps:
        return name
    ran = f"{steps} iteration{'s'[: steps != 1]}"
    return f"{name}, {ran}" if restarts == 1 else f"{name}, {restarts} restarts of {ran} together"
