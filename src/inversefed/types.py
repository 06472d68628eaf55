"""The values that pass between the rooms: shapes, batches, candidates, reconstructions.

Shapes are written in the types, `Images = Float[Tensor, "n c h w"]`, and checked by jaxtyping and
beartype in the tests; without those two packages the same names mean plain tensors.
"""

import importlib.util
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from torch import Tensor

from inversefed.errors import ConfigError
from inversefed.findings import Finding

if TYPE_CHECKING or importlib.util.find_spec("jaxtyping"):
    from jaxtyping import Float, Int, Shaped
else:

    class _Plain:
        """Stands in for jaxtyping's types where it is not installed."""

        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Float = Int = Shaped = _Plain

__all__ = [
    "Batch",
    "Budget",
    "Candidate",
    "Finding",
    "Images",
    "Inputs",
    "Labels",
    "Limit",
    "Logits",
    "Params",
    "Point",
    "Reconstruction",
    "Scalar",
    "Scores",
    "SoftLabels",
    "Status",
    "Step",
    "Targets",
]

Images: TypeAlias = Float[Tensor, "n c h w"]
"""Pictures in pixel space, [0, 1], unless a name says otherwise."""

Inputs: TypeAlias = Shaped[Tensor, "n *shape"]
"""Examples of any input space: real numbers in [0, 1], pictures among them, or integer ids."""

Labels: TypeAlias = Int[Tensor, "n"]
"""Class indices."""

SoftLabels: TypeAlias = Float[Tensor, "n *k"]
"""Labels that are no class indices: class probabilities `[n, k]`, one row an example, or other numbers, `[n]` too."""

LabelSets: TypeAlias = Int[Tensor, "n k"]
"""Sets of class indices, one row an example, ended by -1: what `MultiLabelMarginLoss` takes."""

Targets: TypeAlias = Labels | SoftLabels | LabelSets
"""Labels as a loss takes them."""

Logits: TypeAlias = Float[Tensor, "n k"]
"""What the network says of a batch."""

PlaceLogits: TypeAlias = Float[Tensor, "n length vocabulary"]
"""What a language model says of each place of sentences: which token is next."""

Sentences: TypeAlias = Int[Tensor, "n length"]
"""Token ids, padded at their end."""

Scores: TypeAlias = Float[Tensor, "n"]
"""One number an image."""

Scalar: TypeAlias = Float[Tensor, ""]
"""A tensor that holds one number."""

Params: TypeAlias = Mapping[str, Tensor]
"""Weights, gradients or updates: by name, never by position."""


Point: TypeAlias = Literal["truth", "result", "stand-in"]
"""At which pictures the limit of an update is taken."""


class Status(StrEnum):
    """How a restart, or a whole attack, ended."""

    FINISHED = "finished"
    """All that was planned was done."""
    CONVERGED = "converged"
    """The stated criterion was met before the last iteration."""
    STOPPED = "stopped"
    """The time budget or the caller's callback ended it; the result is the best so far."""
    INTERRUPTED = "interrupted"
    """Ctrl-C ended it; the result is the best so far."""
    PRUNED = "pruned"
    """Other restarts matched the update better at a rung; the result is its best until then."""
    NON_FINITE = "non-finite"
    """The loss became NaN or infinite; the result is the last finite one, if any."""


@dataclass(frozen=True, eq=False)
class Batch:
    """A client's private examples: the truth, which no attack ever sees.

    Args:
        images: the examples: pictures in pixel space, [0, 1], or those of another input space, `[n, *shape]`.
        labels: class indices, -1 where the owner of pictures did not tell them; or numbers, as the loss takes them.
    """

    images: Inputs = field(repr=False)
    labels: Targets


@dataclass(frozen=True, eq=False)
class Candidate:
    """What one restart of an attack came to.

    Args:
        images: the examples, as they travel (`inputs`).
        labels: the labels that go with them.
        loss: the matching cost of these images, priors left out.
        status: how the restart ended.
        iterations: how many iterations it ran.
        history: the minimized loss, one entry an iteration.
        soft_labels: the probabilities behind the labels, where these were optimized too.
        restart: its number among the starts of its search, from 0.
        seed: of the random numbers that its steps drew; `None` where they drew none.
    """

    images: Inputs = field(repr=False)
    labels: Targets
    loss: float
    status: Status = Status.FINISHED
    iterations: int = 0
    history: tuple[float, ...] = field(default=(), repr=False)
    soft_labels: SoftLabels | None = field(default=None, repr=False)
    restart: int = 0
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What an attack recovered.

    Args:
        images: the chosen examples, as they travel (`inputs`).
        labels: the labels that go with them.
        loss: what the attack minimized, priors left out, in the unit of its own objective.
        status: how the attack ended.
        candidates: every restart that ran.
        findings: what the attack found out on its way, for people.
        matching_error: how far the client's update of these images and labels is from the one observed,
            `|g - g*|^2 / |g*|^2` as `matching_error` measures it; infinite where it is no number, `None` where
            nobody has measured it yet.
        undetermined: share of the pictures' values, 0 to 1, that the update leaves open by the attack's own equations;
            `None` where it has none that tell.
        made_by: the `repr` of the attack that made it, which is another than the one called where that chose one.
        proven: whether the attack proved that the update is that of these images.
        cut_short: exact methods that a time budget ended before they were done, and that might have found more.
        client: the client as the attack came to read it from the update, where nobody knows its settings; `None` for
            the one that was observed.
    """

    images: Inputs = field(repr=False)
    labels: Targets
    loss: float
    status: Status
    candidates: tuple[Candidate, ...] = field(default=(), repr=False)
    findings: tuple[Finding, ...] = ()
    matching_error: float | None = None
    undetermined: float | None = None
    made_by: str = field(default="", repr=False)
    proven: bool = False
    cut_short: tuple[str, ...] = ()
    client: object = field(default=None, repr=False)


@dataclass(frozen=True)
class Limit:
    """How much of each picture an update holds, near the point where its derivative was taken.

    Args:
        limit_psnr: the PSNR in dB that no method exceeds on average over pictures like these, one a picture; `None` for
            those of a batch that there was no time for.
        determined: directions of a picture that the update tells better than the prior does, one number a picture.
        of: values of a picture, from 1.
        noise: what was taken to blur the update.
        at: where the derivative was taken: a result or a stand-in is typical, and need not be this picture.
        prior: the PSNR where the update says nothing, in dB.
        whole: whether whole pictures were looked at; else a window in the middle of one, with the rest taken as known,
            which is a bound, and may be far above.
        seconds: wall time, from 0.
        misfit: how much more of what the truth leaves unexplained lies along changes of the pictures than noise would
            have there: about 1 for noise, and many times that where other pictures made the update; `None` where
            nothing is left unexplained, or there is no truth.
    """

    limit_psnr: tuple[float | None, ...]
    determined: tuple[int | None, ...]
    of: int
    noise: str
    at: Point
    prior: float
    whole: bool = True
    seconds: float = 0.0
    misfit: float | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """A look at a running attack, handed to `on_step` after each iteration.

    Args:
        restart: which restart, from 0.
        restarts: how many are planned.
        iteration: how many iterations of this restart are done.
        iterations: how many are planned.
        loss: the minimized loss at this iteration.
        seconds: wall time since the attack began.
        best: returns the best images so far, of all restarts, in pixel space, by the attack's own loss.
        remaining: seconds to the planned end at the rate so far, or to the end of the time budget if that comes
            first; infinite where it is not known.
        rate: iterations a second, of all restarts together.
    """

    restart: int
    restarts: int
    iteration: int
    iterations: int
    loss: float
    seconds: float
    best: Callable[[], Tensor] = field(repr=False)
    remaining: float = math.inf
    rate: float = 0.0


@dataclass(frozen=True)
class Budget:
    """How long an attack may run, and who is told about it.

    Args:
        seconds: wall time in all; `None` for no limit.
        max_iterations: replaces the attack's own number of iterations a restart.
        on_step: called with a `Step` after each iteration; a true answer stops the attack, and
            the best so far is the result.
        checkpoint: a file that the state of the search is written to: before its first step, now and then, and when it
            ends.
        resume: a file written so by the same attack on the same observation, where the search is taken up.
        restart: run only this restart of the search, from 0, as it ran beside the others: with the same attack and
            seed it has the same start and draws the same numbers. It goes to its end, though others might have pruned
            it; where several restarts were evaluated together, it may differ in rounding.

    Raises:
        ConfigError: no iteration, no time, or a restart below 0.
    """

    seconds: float | None = None
    max_iterations: int | None = None
    on_step: Callable[[Step], object] | None = None
    checkpoint: Path | None = None
    resume: Path | None = None
    restart: int | None = None

    def left(self, began: float) -> float | None:
        """Seconds that are left, at least a moment; `None` without a limit.

        Args:
            began: when it began to run, by `time.monotonic`.
        """
        return None if self.seconds is None else max(1e-3, self.seconds - (time.monotonic() - began))

    def within(self, share: float) -> Callable[[], bool]:
        """Tells whether a share of the time is over, counted from now; it never is without a limit."""
        until = math.inf if self.seconds is None else time.monotonic() + share * self.seconds
        return lambda: time.monotonic() >= until

    def __post_init__(self) -> None:
        enough = self.max_iterations is None or (type(self.max_iterations) is int and self.max_iterations >= 1)
        if not enough or (self.seconds is not None and not self.seconds > 0):
            raise ConfigError(
                "a budget needs at least one iteration and some time; "
                f"got max_iterations={self.max_iterations!r} and seconds={self.seconds!r}"
            )
        if self.restart is not None and (type(self.restart) is not int or self.restart < 0):
            raise ConfigError(f"restart is the number of a restart, from 0, or None for all; got {self.restart!r}")
