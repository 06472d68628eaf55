"""Progress of an exact method: the time budget and the caller's callback, asked after each round."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from inversefed.types import Budget, Step

__all__ = ["Stopped", "Watch"]


class Stopped(Exception):
    """The time is used up, or the caller said so."""


@dataclass(frozen=True, eq=False)
class Watch:
    """Counts rounds and says when to stop.

    Args:
        budget: how long the attack may run, and who is told about it.
        denormalize: takes network inputs `[n, c, h, w]` into pixel space.
        began: `time.monotonic()` at the start.
        rounds: the most rounds that there can be.
    """

    budget: Budget = Budget()
    denormalize: Callable[[Tensor], Tensor] = field(default=lambda inputs: inputs, repr=False)
    began: float = field(default_factory=lambda: time.monotonic())
    rounds: int = 1
    _losses: list[float] = field(default_factory=list, repr=False)
    _asked: list[bool] = field(default_factory=list, repr=False)
    _kept: list[Tensor] = field(default_factory=list, repr=False)
    _seen: list[Tensor] = field(default_factory=list, repr=False)

    @property
    def history(self) -> tuple[float, ...]:
        """The loss of each round so far."""
        return tuple(self._losses)

    @property
    def kept(self) -> tuple[Tensor, ...]:
        """The normalized images that searches ended with, or the last one seen if none did."""
        return tuple(self._kept or self._seen)

    def keep(self, image: Tensor) -> Tensor:
        """Note the image that a search ended with, as a result that may be the best there will be."""
        self._kept.append(image)
        return image

    @property
    def stopped(self) -> bool:
        """Whether an answer was "stop" already; it stays so."""
        return bool(self._asked)

    def left(self) -> float:
        """Seconds that are left, at least a moment; infinite without a limit."""
        seconds = self.budget.left(self.began)
        return math.inf if seconds is None else seconds

    def stop(self) -> bool:
        """Whether the time is used up, or the caller said so; rounds are no iterations of a restart."""
        seconds = self.budget.seconds
        if seconds is not None and time.monotonic() - self.began > seconds:
            self._asked.append(True)
        return self.stopped

    def clock(self) -> "Watch":
        """The same limit of time, for a part whose rounds are nobody's business."""
        return Watch(Budget(self.budget.seconds), began=self.began)

    def go_on(self) -> None:
        """For the middle of a long computation.

        Raises:
            Stopped: the time is used up.
        """
        if self.stop():
            raise Stopped

    def __call__(self, loss: float, inputs: Tensor) -> bool:
        """Note a round and answer whether to stop.

        Args:
            loss: what the round minimizes, in its own unit.
            inputs: the best normalized image so far, `[c, h, w]`, or images `[n, c, h, w]`.
        """
        self._losses.append(loss)
        self._seen[:] = [inputs]
        if self.budget.on_step is not None:
            count, seconds = len(self._losses), time.monotonic() - self.began
            images = inputs if inputs.ndim == 4 else inputs[None]
            step = Step(
                0, 1, count, max(self.rounds, count), loss, seconds, lambda: self.denormalize(images),
                rate=count / max(seconds, 1e-9),
            )  # fmt: skip
            if self.budget.on_step(step):
                self._asked.append(True)
        return self.stop()
