"""One job on a machine that has neither the ledger nor the files: all it needs comes in, all that it made goes out.

    record + module + pictures --hashes agree?--> audit --> Done: outcome and files  (or Refused: why)
    record + setting + training data ------------> point --> Done: outcome

Nothing here knows who carries the values over. The record holds the SHA-256 of network and pictures, and what came is
held to them, so that a result is never that of other weights or pixels.
"""

import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inversefed.experiments.frontier_jobs import Loaded, PointSpec, measured
from inversefed.experiments.ledger import Outcome
from inversefed.experiments.places import remove_abandoned
from inversefed.experiments.table import outcome_of
from inversefed.experiments.work import progress_of, taken_up, why, write_private
from inversefed.frontier import Data
from inversefed.report.png import preview
from inversefed.scenario import Held, Scenario
from inversefed.specs.load_setting import Setting
from inversefed.types import Batch, Step

__all__ = ["Done", "Private", "Refused", "Said", "audited", "measured_there", "private_of"]

_EVERY = 5.0
"""Seconds between two words of a running search."""
_WORKPLACE = "inversefed-task."


@dataclass(frozen=True, eq=False)
class Private:
    """The pictures of an audit, apart from its network.

    Args:
        images: the private ones, `[n, c, h, w]`, in [0, 1].
        labels: theirs.
        others: public ones of the same kind, for the controls.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    others: Batch | None = field(default=None, repr=False)


@dataclass(frozen=True, eq=False)
class Done:
    """What a job came to.

    Args:
        outcome: what the ledger keeps.
        files: of its report, by name.
    """

    outcome: Outcome
    files: Mapping[str, bytes] = field(repr=False)


@dataclass(frozen=True)
class Refused:
    """Why a job could not be done, which another attempt would not change.

    Args:
        error: the exception's name and message.
    """

    error: str


@dataclass(frozen=True, eq=False)
class Said:
    """How far a running job is.

    Args:
        progress: iteration, iterations, loss and remaining seconds, as the ledger has them.
        picture: the best so far, as a PNG; `None` for what is no picture.
        checkpoint: the state of its search, where that is newer than what was said before.
    """

    progress: Mapping[str, Any]
    picture: bytes | None = field(repr=False)
    checkpoint: bytes | None = field(default=None, repr=False)


def private_of(held: Held) -> Private | None:
    """The pictures of a scenario whose tensors are at hand; `None` where the update came from outside."""
    if held.received is not None or held.truth is None:
        return None
    return Private(held.truth.images, held.truth.labels, held.others)


def audited(
    record: str,
    module: nn.Module | None,
    private: Private | None,
    threads: int,
    device: str = "cpu",
    tell: Callable[[Said], object] = lambda _: None,
    checkpoint: bytes | None = None,
) -> Done | Refused:
    """Audit one job.

    Args:
        record: of the scenario, as JSON.
        module: its network; `None` to load network and pictures by the names in the record.
        private: its pictures; `None` likewise.
        threads: CPU threads; results are the same bits only with the same number.
        device: where the network goes.
        tell: told now and then how far the search is.
        checkpoint: the state of a search that was cut short, which goes on from there to the same bits.
    """
    torch.set_num_threads(threads)
    began = time.perf_counter()
    try:
        scenario = _loaded(Scenario.from_dict(json.loads(record)), module, private, device)
        with _workplace() as folder:
            state = folder / "search.checkpoint"
            if checkpoint is not None:
                write_private(state, checkpoint)
            report = taken_up(scenario, state, _Teller(tell, state))
        seconds = time.perf_counter() - began
        return Done(outcome_of(report, seconds), report.files(tensors=True))
    except Exception as error:  # the last door: one job that cannot be done does not stop the others
        return Refused(why(error))


def measured_there(
    record: str,
    setting: Setting | None,
    data: Data | str | None,
    threads: int,
    device: str = "cpu",
    tell: Callable[[Said], object] = lambda _: None,
) -> Done | Refused:
    """Measure one point of the privacy-utility frontier; it leaves no files.

    Args:
        record: of the point, as JSON.
        setting: its network and pictures; `None` to load all by the names in the record.
        data: what to train on, or why there is nothing; `None` likewise.
        threads: CPU threads; results are the same bits only with the same number.
        device: where the network goes.
        tell: told now and then how far its attacks are.
    """
    torch.set_num_threads(threads)
    try:
        spec = PointSpec.from_dict(json.loads(record))
        if setting is None or data is None:
            setting, data = Loaded().of(spec)
        setting.module.to(device)
        return Done(measured(spec, setting, data, _Teller(tell)), {})
    except Exception as error:  # the last door, as above
        return Refused(why(error))


def _loaded(scenario: Scenario, module: nn.Module | None, private: Private | None, device: str) -> Scenario:
    """The scenario with its tensors, as they came; those of other hashes are refused."""
    if module is None or private is None:
        return scenario.loaded(device)
    images, labels, others = private.images, private.labels, private.others
    return scenario.of(module.to(device), images, labels, others, scenario.mean, scenario.std)


class _Teller:
    """Passes on a step now and then, with the checkpoint where it is a new one."""

    def __init__(self, tell: Callable[[Said], object], checkpoint: Path | None = None) -> None:
        self._tell, self._checkpoint, self._sent = tell, checkpoint, 0
        self._last = time.monotonic()

    def __call__(self, step: Step) -> None:
        if time.monotonic() - self._last > _EVERY:
            self._last = time.monotonic()
            self._tell(Said(progress_of(step), preview(step.best()[0]), self._newer()))

    def _newer(self) -> bytes | None:
        if self._checkpoint is None:
            return None
        with contextlib.suppress(OSError):
            written = self._checkpoint.stat().st_mtime_ns
            if written != self._sent:
                self._sent = written
                return self._checkpoint.read_bytes()
        return None


@contextmanager
def _workplace() -> Iterator[Path]:
    """A folder for the state of a search, for its owner only; those that killed processes left are removed."""
    remove_abandoned(Path(tempfile.gettempdir()), _WORKPLACE)
    with tempfile.TemporaryDirectory(prefix=f"{_WORKPLACE}{os.getpid()}.", ignore_cleanup_errors=True) as folder:
        yield Path(folder)
