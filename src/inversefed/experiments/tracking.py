"""Searches and results for the tools that people watch trainings with: TensorBoard and MLflow, into local folders.

Nothing is tracked unless it is asked for, no server is talked to, and no picture is written: a curve of the loss for
each audit, its settings, and its scores. `callback` makes a tracker an `on_step` of any audit.
"""

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from inversefed.errors import ConfigError, InputError
from inversefed.types import Step

__all__ = ["MLflow", "TensorBoard", "Tracker", "callback", "read_tracker"]

_EVERY = 10
"""Iterations between two points of a curve."""


@runtime_checkable
class Tracker(Protocol):
    """Something that keeps curves and results."""

    def point(self, name: str, iteration: int, values: Mapping[str, float]) -> None:
        """Keep a point of a curve.

        Args:
            name: of the audit.
            iteration: its iteration, all restarts counted, from 1.
            values: by the curve's name.
        """
        ...

    def result(self, name: str, settings: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Keep what an audit came to, and end its curves.

        Args:
            name: of the audit.
            settings: what it was.
            scores: what came of it.
        """
        ...


def callback(tracker: Tracker, name: str) -> Callable[[Step], None]:
    """An `on_step` that keeps the loss of a search.

    Args:
        tracker: where.
        name: of the audit.

    >>> kept = []
    >>> class List:
    ...     def point(self, name, iteration, values): kept.append((name, iteration, values))
    ...     def result(self, name, settings, scores): ...
    >>> follow = callback(List(), "mine")
    >>> for done in range(1, 21):
    ...     follow(Step(0, 1, done, 20, loss=1 / done, seconds=0.0, best=list))
    >>> kept
    [('mine', 1, {'loss': 1.0}), ('mine', 11, {'loss': 0.0909...})]
    """

    def follow(step: Step) -> None:
        if (step.iteration - 1) % _EVERY == 0 and math.isfinite(step.loss):
            tracker.point(name, step.iteration + step.restart * step.iterations, {"loss": step.loss})

    return follow


def read_tracker(text: str) -> "Tracker":
    """Read `tensorboard:FOLDER` or `mlflow:FOLDER`.

    Raises:
        ConfigError: another tool, no folder, or a tool that is not installed.
    """
    kind, _, folder = text.partition(":")
    kinds: Mapping[str, Callable[[Path], Tracker]] = {"tensorboard": TensorBoard, "mlflow": MLflow}
    if kind not in kinds or not folder:
        raise ConfigError(f"--track is tensorboard:FOLDER or mlflow:FOLDER, not {text!r}")
    return kinds[kind](Path(folder).expanduser().absolute())


@dataclass(frozen=True)
class TensorBoard:
    """Event files, one folder an audit: `tensorboard --logdir FOLDER`.

    Args:
        folder: where they go.

    Raises:
        ConfigError: tensorboard is not installed.
    """

    folder: Path
    _open: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        _import("tensorboard", "tensorboard")

    def point(self, name: str, iteration: int, values: Mapping[str, float]) -> None:
        """Keep a point of a curve."""
        for curve, value in values.items():
            self._writer(name).add_scalar(curve, value, iteration)

    def result(self, name: str, settings: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Keep what an audit came to."""
        writer = self._writer(name)
        for score, value in scores.items():
            writer.add_scalar(f"result/{score}", value, 0)
        writer.add_text("settings", "\n".join(f"- {key}: `{value}`" for key, value in settings.items()), 0)
        writer.close()
        del self._open[name]

    def _writer(self, name: str) -> Any:
        if name not in self._open:
            from torch.utils.tensorboard import SummaryWriter

            try:
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._open[name] = SummaryWriter(str(self.folder / name))
            except OSError as error:
                raise InputError(f"cannot write to {self.folder}: {error.strerror or error}; see --track") from error
        return self._open[name]


@dataclass(frozen=True)
class MLflow:
    """One MLflow run an audit, in an SQLite file of the folder: `mlflow ui --backend-store-uri sqlite:///FOLDER/mlflow.db`.

    MLflow's own telemetry is switched off before it is imported.

    Args:
        folder: where the file goes.

    Raises:
        ConfigError: mlflow is not installed.
    """

    folder: Path
    _runs: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self._client()

    def point(self, name: str, iteration: int, values: Mapping[str, float]) -> None:
        """Keep a point of a curve."""
        client, run = self._client(), self._run(name)
        for curve, value in values.items():
            client.log_metric(run, curve, value, step=iteration)

    def result(self, name: str, settings: Mapping[str, Any], scores: Mapping[str, float]) -> None:
        """Keep what an audit came to."""
        client, run = self._client(), self._run(name)
        for key, setting in settings.items():
            client.log_param(run, key, str(setting)[:500])
        for score, value in scores.items():
            client.log_metric(run, score, value)
        client.set_terminated(run)
        del self._runs[name]

    def _client(self) -> Any:
        os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
        os.environ["DO_NOT_TRACK"] = "true"
        mlflow = _import("mlflow", "mlflow")
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"cannot write to {self.folder}: {error.strerror or error}; see --track") from error
        return mlflow.MlflowClient(tracking_uri=f"sqlite:///{self.folder / 'mlflow.db'}")

    def _run(self, name: str) -> str:
        if name not in self._runs:
            client = self._client()
            found = client.get_experiment_by_name("inversefed")
            experiment = client.create_experiment("inversefed") if found is None else found.experiment_id
            self._runs[name] = client.create_run(experiment, run_name=name).info.run_id
        return self._runs[name]


def _import(module: str, extra: str) -> Any:
    import importlib

    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{module} is not installed: pip install 'inversefed[{extra}]'") from error
