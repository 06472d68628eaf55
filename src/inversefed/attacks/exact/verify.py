"""Verification of an exact result: the client is run on it and has to give the same update.

Examples are stored rounded, most pictures with eight bits a pixel. Where a result is near enough, the nearest that can
be stored (`InputSpace.snap`) is the private one itself, bit by bit, and the update says so: it comes out nearer than
that of the result.

Where a ReLU's input is zero within rounding, the picture within its rounding that makes the update is looked for (see
`edge_units`), and verified as any other.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from inversefed.attacks.exact.edge_units import settled
from inversefed.attacks.matching_error import matching_error
from inversefed.findings import Code
from inversefed.fl.threat import Observation
from inversefed.thresholds import EXACT, OPEN, SOLVED
from inversefed.types import Candidate, Finding, Inputs, Reconstruction

__all__ = ["exactness", "matched", "verified"]


_ROUGH = 1e-2
"""Relative matching cost above which a result is too far off for its rounding to tell anything."""


def matched(
    observation: Observation, images: Inputs, labels: Tensor, stop: Callable[[], bool] = lambda: False
) -> tuple[Inputs, float]:
    """The images and their `matching_error`, rounded, or within their rounding, where that matches the update better.

    Args:
        observation: what the server sees.
        images: in pixel space.
        labels: theirs.
        stop: asked before each further update of the client.
    """
    cost = matching_error(observation, images, labels)
    if not 0 < cost < _ROUGH:
        return images, cost
    rounded = observation.network.space.snap(images)
    nearer = matching_error(observation, rounded, labels)
    images, cost = (rounded, nearer) if nearer < cost else (images, cost)
    return settled(observation, images, labels, cost, stop) if EXACT <= cost < SOLVED else (images, cost)


def verified(
    attack: object,
    candidate: Candidate,
    how: str,
    evidence: Mapping[str, Any] | None = None,
    undetermined: float | None = None,
    told: tuple[Finding, ...] = (),
) -> Reconstruction:
    """What an exact method found as its result, exact where the client makes the observed update of it again.

    Args:
        attack: the method.
        candidate: what it found; its loss is its `matching_error`.
        how: what was done, as a sentence without its end.
        evidence: further figures for the finding.
        undetermined: share of the pictures that the equations leave open, if they tell.
        told: what else was found out.
    """
    return Reconstruction(
        candidate.images,
        candidate.labels,
        candidate.loss,
        candidate.status,
        (candidate,),
        (exactness(candidate.loss, how, evidence, undetermined), *told),
        matching_error=candidate.loss,
        undetermined=undetermined,
        made_by=repr(attack),
        proven=candidate.loss < EXACT,
    )


def exactness(
    cost: float, how: str, evidence: Mapping[str, Any] | None = None, undetermined: float | None = None
) -> Finding:
    """Say whether a result is exact.

    Args:
        cost: its `matching_error`.
        how: what was done, as a sentence without its end.
        evidence: figures beside the cost.
        undetermined: share of the pictures that the equations leave open, if they tell.

    Returns:
        The finding `exact`, or the warning `not-exact`.
    """
    left_open = {} if undetermined is None else {"unseen": undetermined}
    figures = {"relative_matching_cost": cost, **(evidence or {}), **left_open}
    if cost < EXACT and undetermined is not None and undetermined > OPEN:
        message = (
            f"Exact to the update, which comes out the same: {how}. But {undetermined:.1%} of the picture stays open, "
            "where other values make the same update too."
        )
        return Finding(Code.EXACT, "info", message, figures)
    if cost < EXACT:
        return Finding(Code.EXACT, "info", f"Exact: {how}, and the update comes out the same.", figures)
    return Finding(Code.NOT_EXACT, "warning", f"{how[:1].upper()}{how[1:]}, but the update differs.", figures)
