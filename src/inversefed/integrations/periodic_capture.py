"""Captures one after another, each so many steps after the last, for callbacks of trainers."""

from pathlib import Path
from typing import Literal

from torch import nn
from torch.optim import Optimizer

from inversefed.errors import ConfigError
from inversefed.integrations.capture import Capture

__all__ = ["PeriodicCapture"]


class PeriodicCapture:
    """Record some steps, every so many steps.

    Args:
        folder: holds a folder for each capture, `step-000100` for the one that begins after 100 steps.
        every: how many steps from the beginning of one capture to that of the next; 0 for the first alone.
        steps: how many steps each of them is of.
        sends: as for `capture`.

    Raises:
        ConfigError: less than one step, or captures that would overlap.
    """

    def __init__(
        self,
        folder: str | Path,
        every: int = 0,
        steps: int = 1,
        sends: Literal["gradient", "delta", "weights"] | None = None,
    ) -> None:
        if steps < 1 or every < 0 or 0 < every < steps:
            raise ConfigError(
                f"a capture is of 1 step or more, and another begins after at least as many; got steps={steps} and "
                f"every={every}; every=0 records the first steps alone"
            )
        self.folders: list[Path] = []
        """Where the captures that ended were written."""
        self.latest: Capture | None = None
        """The last of them; it keeps the weights from before."""
        self._folder, self._every, self._steps, self._sends = Path(folder).expanduser(), every, steps, sends
        self._running: Capture | None = None
        self._began = -1

    @property
    def running(self) -> Capture | None:
        """The capture that is under way."""
        return self._running

    def begin(self, step: int, model: nn.Module, optimizer: Optimizer, processes: int) -> None:
        """Begin a capture if one is due, before a step that follows so many others.

        Raises:
            ConfigError: no optimizer of this model.
        """
        due = (self._began < 0 and not self._every) or (self._every and step % self._every == 0 and step != self._began)
        if self._running is None and due:
            self._began = step
            self._running = Capture(model, optimizer, sends=self._sends, steps=self._steps, processes=processes)
            self._running.__enter__()

    def end(self, writes: bool, last: bool = False) -> None:
        """End the capture that is under way, after its last step or the training's, and write it.

        Args:
            writes: whether this process writes the files.
            last: whether no step follows; then a capture of fewer steps is one, and one of none is none.
        """
        running = self._running
        if running is None or not (running.complete or last):
            return
        if not running.steps:
            self.abandon()
            return
        self._running = None
        running.__exit__(None, None, None)
        self.latest = running
        if writes:
            self.folders.append(running.write(self._folder / f"step-{self._began:06d}"))

    def abandon(self) -> None:
        """Give up the capture that is under way, and write nothing."""
        if self._running is not None:
            self._running.__exit__(ConfigError, ConfigError("given up"), None)
        self._running = None
