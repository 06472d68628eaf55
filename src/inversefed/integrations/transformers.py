"""Capture in `transformers.Trainer`: a callback that records what its optimizer steps would send.

It needs the extra `transformers`, and is given to a trainer as any callback: `Trainer(.., callbacks=[callback])`.
"""

from pathlib import Path
from typing import Any, Literal

from inversefed.errors import ConfigError
from inversefed.integrations.capture import Capture
from inversefed.integrations.periodic_capture import PeriodicCapture

try:
    from transformers import TrainerCallback
except ImportError:  # the page of the reference is built without it
    TrainerCallback = None

__all__ = ["TrainerCapture"]


class TrainerCapture(TrainerCallback or object):  # type: ignore[misc]
    """Record optimizer steps of a `transformers.Trainer`, with its accumulation, mixed precision and processes.

    The trainer clips gradients to a norm of 1 unless `TrainingArguments(max_grad_norm=0)` says otherwise: what is
    recorded is what its optimizer was given.

    Args:
        folder: where the files go: into a folder for each capture, `step-000100` for the one after 100 steps.
        every: how many steps from the beginning of one capture to that of the next; 0 for the first steps alone.
        steps: how many optimizer steps each capture is of.
        sends: what the client sends, as for `capture`.

    Raises:
        ConfigError: `transformers` is not installed, or settings that cannot be.
    """

    def __init__(
        self,
        folder: str | Path,
        every: int = 0,
        steps: int = 1,
        sends: Literal["gradient", "delta", "weights"] | None = None,
    ) -> None:
        if TrainerCallback is None:
            raise ConfigError("TrainerCapture needs transformers: pip install 'inversefed[transformers]'")
        self._captures = PeriodicCapture(folder, every, steps, sends)

    @property
    def folders(self) -> list[Path]:
        """Where the captures that ended were written."""
        return self._captures.folders

    @property
    def latest(self) -> Capture | None:
        """The last capture that ended."""
        return self._captures.latest

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Forget a capture of a training that ended by an error."""
        self._captures.abandon()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin one before the first micro-batch of a step."""
        self._captures.begin(state.global_step, kwargs["model"], kwargs["optimizer"], args.world_size)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End it after its last step."""
        self._captures.end(state.is_world_process_zero)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End it after the training's last step."""
        self._captures.end(state.is_world_process_zero, last=True)
