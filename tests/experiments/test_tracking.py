"""Curves and scores for TensorBoard and MLflow: in local files, by choice, and nowhere else."""

import pickle
import socket
from pathlib import Path

import pytest

from inversefed.errors import ConfigError
from inversefed.experiments.ledger import Ledger, new_owner
from inversefed.experiments.plan_file import parse_plan
from inversefed.experiments.planning import add_run, write_jobs
from inversefed.experiments.tracking import MLflow, TensorBoard, Tracker, read_tracker
from inversefed.experiments.work import work

PLAN = "{name: demo, attacks: [{geiping: {max_iterations: 25}}], nulls: 0}"


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("something connects")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def swept(folder: Path, tracker: Tracker) -> tuple[str, float]:
    ledger = Ledger(str(folder / "ledger.db"))
    run = add_run(ledger, parse_plan(PLAN))
    write_jobs(ledger, run)
    assert work(ledger.url, ledger.folder, run, new_owner(), tracker=pickle.loads(pickle.dumps(tracker))) == 1
    ((job, content),) = ledger.rows(run)
    ledger.close()
    assert content is not None, job.error
    return job.hash[:16], content["peak_signal_noise_ratio"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_tensorboard_has_the_curve_and_the_scores(tmp_path: Path, no_network: None) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    name, psnr = swept(tmp_path, read_tracker(f"tensorboard:{tmp_path / 'board'}"))
    events = EventAccumulator(str(tmp_path / "board" / name)).Reload()
    assert [each.step for each in events.Scalars("loss")] == [1, 11, 21]
    assert events.Scalars("result/peak_signal_noise_ratio")[0].value == pytest.approx(psnr)


@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_the_curve_and_the_scores(tmp_path: Path, no_network: None) -> None:
    mlflow = pytest.importorskip("mlflow", reason="mlflow is not installed here; make test-mlflow has it")
    name, psnr = swept(tmp_path, MLflow(tmp_path / "flow"))
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'flow' / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("inversefed").experiment_id])
    assert run.info.run_name == name and run.info.status == "FINISHED"
    assert run.data.metrics["peak_signal_noise_ratio"] == pytest.approx(psnr)
    assert run.data.params["network"] == "LeNetZhu"
    assert [each.step for each in client.get_metric_history(run.info.run_id, "loss") if each.step] == [1, 11, 21]


def test_what_cannot_be_tracked_is_said_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for text in ("wandb:x", "tensorboard", "tensorboard:"):
        with pytest.raises(ConfigError, match="--track is"):
            read_tracker(text)

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr("importlib.import_module", missing)
    with pytest.raises(ConfigError, match=r"pip install 'inversefed\[tensorboard\]'"):
        TensorBoard(tmp_path)
