"""Capture in Lightning: a callback that records what a trainer's optimizer steps would send.

It needs the extra `lightning`, and is given to a trainer as any callback: `Trainer(.., callbacks=[callback])`.
"""

from pathlib import Path
from typing import Any, Literal

from inversefed.errors import ConfigError
from inversefed.integrations.capture import Capture
from inversefed.integrations.periodic_capture import PeriodicCapture
from inversefed.integrations.recorder import tensors_in

try:
    from lightning.pytorch import Callback
except ImportError:  # the page of the reference is built without it
    Callback = None

__all__ = ["LightningCapture"]


class LightningCapture(Callback or object):  # type: ignore[misc]
    """Record optimizer steps of a `lightning.Trainer`, with its accumulation, precision and processes.

    Examples are counted by the first tensor of each batch, so that `training_step` may call any part of the module.

    Args:
        folder: where the files go: into a folder for each capture, `step-000100` for the one after 100 steps.
        every: how many steps from the beginning of one capture to that of the next; 0 for the first steps alone.
        steps: how many optimizer steps each capture is of.
        sends: what the client sends, as for `capture`.

    Raises:
        ConfigError: `lightning` is not installed, or settings that cannot be.
    """

    def __init__(
        self,
        folder: str | Path,
        every: int = 0,
        steps: int = 1,
        sends: Literal["gradient", "delta", "weights"] | None = None,
    ) -> None:
        if Callback is None:
            raise ConfigError("LightningCapture needs lightning: pip install 'inversefed[lightning]'")
        self._captures = PeriodicCapture(folder, every, steps, sends)
        self._shape: tuple[int, ...] = ()

    @property
    def folders(self) -> list[Path]:
        """Where the captures that ended were written."""
        return self._captures.folders

    @property
    def latest(self) -> Capture | None:
        """The last capture that ended."""
        return self._captures.latest

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin one before the first micro-batch of a step; note how many examples a batch has.

        Raises:
            ConfigError: several optimizers.
        """
        given = next(tensors_in(batch), None)
        self._shape = () if given is None else tuple(given.shape)
        if batch_idx % trainer.accumulate_grad_batches == 0:
            if len(trainer.optimizers) != 1:
                raise ConfigError(f"LightningCapture records one optimizer; this module has {len(trainer.optimizers)}")
            self._captures.begin(trainer.global_step, pl_module, trainer.optimizers[0], trainer.world_size)

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Count the batch."""
        if self._captures.running is not None and self._shape:
            self._captures.running.examples(self._shape[0], self._shape[1:])

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """End it after its last step."""
        self._captures.end(trainer.is_global_zero)

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """End it after the training's last step."""
        self._captures.end(trainer.is_global_zero, last=True)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Give it up."""
        self._captures.abandon()
