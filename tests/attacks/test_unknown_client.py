"""Settings of a client that nobody stated, read from its update."""

import math

import pytest
import torch
from torch import nn

import inversefed
from inversefed import FedAvg, ThreatModel, recipes
from inversefed.attacks.matching_error import matching_error
from inversefed.attacks.unknown_client import counted_steps, of_one_step, readings
from inversefed.fl.clients.local_optimizers import LocalAdam, LocalSGD
from inversefed.fl.simulate import observed
from inversefed.fl.threat import Observation
from inversefed.report.gate import leakage
from inversefed.types import Batch

HIDDEN = ThreatModel(client="unknown")


def network(classes: int = 6) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 8, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(8 * 64, classes))
        return nn.Sequential(*layers).eval()


def dense() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 5)).eval()


def pictures(count: int, shape: tuple[int, ...] = (3, 8, 8)) -> torch.Tensor:
    return torch.rand(count, *shape, generator=torch.Generator().manual_seed(3))


def seen(client: FedAvg, count: int, module: nn.Module | None = None, **threat: str) -> tuple[Observation, Batch]:
    granted = ThreatModel(client="unknown", **threat)
    return observed(
        network() if module is None else module, pictures(count), torch.arange(count), client=client, threat=granted
    )


@pytest.mark.parametrize("sends", ["delta", "weights"])
@pytest.mark.parametrize("rate", [0.5, 0.01])
def test_the_rate_of_one_step_follows_from_the_head(rate: float, sends: str) -> None:
    observation, _ = seen(FedAvg(1, rate, sends=sends), 1)
    read = of_one_step(observation).client
    assert (read.local_steps, read.sends) == (1, sends)
    assert read.lr == pytest.approx(rate, rel=1e-3)


def test_the_rate_of_several_examples_follows_from_classes_that_are_missing() -> None:
    observation, _ = seen(FedAvg(1, 0.1), 4)
    assert of_one_step(observation).client.lr == pytest.approx(0.1, rel=0.1)


def test_without_a_head_the_rate_is_that_of_stand_ins() -> None:
    module = nn.Sequential(nn.Conv2d(3, 5, 8, bias=False), nn.Flatten()).eval()
    observation, _ = seen(FedAvg(1, 0.1), 1, module)
    assert 0.02 < of_one_step(observation).client.lr < 0.5


def test_batchnorm_counts_the_steps() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4)).train()
    observation, truth = seen(FedAvg(3, 0.05), 4, module, buffers="sent")
    assert counted_steps(observation) == 3
    assert {each.client.local_steps for each in readings(observation, truth.images, truth.labels)} == {3}
    assert counted_steps(seen(FedAvg(3, 0.05), 4, module)[0]) is None


@pytest.mark.parametrize(
    "client",
    [
        FedAvg(1, 0.3),
        FedAvg(2, 0.2),
        FedAvg(4, 0.1),
        FedAvg(2, 0.2, batch_size=2),
        FedAvg(2, 0.002, optimizer=LocalAdam()),
    ],
)
def test_near_the_truth_the_settings_are_those_of_the_client(client: FedAvg) -> None:
    observation, truth = seen(client, 4)
    read = readings(observation, truth.images, truth.labels)[0]
    found = read.client
    assert (found.local_steps, found.batch_size, type(found.optimizer)) == (
        client.local_steps, client.batch_size, type(client.optimizer),
    )  # fmt: skip
    assert found.lr == pytest.approx(client.lr, rel=0.01)
    assert read.error < 1e-4


def test_a_time_that_is_over_leaves_the_first_reading() -> None:
    observation, truth = seen(FedAvg(2, 0.2), 2)
    assert [each.client.local_steps for each in readings(observation, truth.images, truth.labels, lambda: True)] == [1]


def test_momentum_is_read_as_a_larger_rate() -> None:
    observation, truth = seen(FedAvg(2, 0.02, optimizer=LocalSGD(momentum=0.9)), 1)
    read = readings(observation, truth.images, truth.labels)[0].client
    assert read.local_steps * read.lr == pytest.approx(0.02 * 2.9, rel=0.05)


def test_a_picture_of_one_step_is_exact_without_any_setting() -> None:
    module = dense()
    report = inversefed.audit(module, pictures(1), torch.tensor([2]), client=FedAvg(1, 0.1), threat=HIDDEN, nulls=0)
    assert float(report.scores["peak_signal_noise_ratio"]) > 60
    assert report.reproduces
    told = [each for each in report.findings if each.code == "client-read"]
    assert len(told) == 1
    assert "1 step of SGD with learning rate 0.1." in told[0].message


def test_an_update_without_a_stated_rate_is_judged_without_a_truth() -> None:
    module = dense()
    observation, _ = observed(module, pictures(1), torch.tensor([2]), client=FedAvg(1, 0.1), threat=HIDDEN)
    report = inversefed.audit_observation(observation, threat=HIDDEN, nulls=1)
    assert report.verdict is not None
    assert report.verdict.answer == "recovered"
    assert report.limit is not None
    assert leakage(report.to_dict()).answer == "recovered"


def test_several_steps_are_told_from_one_by_attacking_as_both() -> None:
    observation, truth = seen(FedAvg(4, 0.3), 1, labels="known")
    found = recipes.best()(observation, torch.Generator().manual_seed(0))
    assert isinstance(found.client, FedAvg)
    assert found.matching_error is not None
    assert found.matching_error < 0.1
    assert math.isinf(matching_error(observation, truth.images, truth.labels))


def test_somebody_who_ends_the_search_gets_what_was_found() -> None:
    averaged = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    observation, _ = seen(FedAvg(4, 0.3), 1, averaged.eval())
    calls = []
    found = recipes.best()(
        observation,
        torch.Generator().manual_seed(0),
        inversefed.Budget(on_step=lambda step: calls.append(step) or len(calls) > 3),
    )
    assert len(calls) == 4
    assert found.images.shape == (1, 3, 8, 8)
