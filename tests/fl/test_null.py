"""Null updates: random, as long as the real one, and nothing else of it."""

import pytest
import torch
from torch import Generator, nn

from inversefed import FedAvg, FedSGD, ThreatModel
from inversefed.fl.null import null_observation, null_update
from inversefed.fl.threat import Observation
from inversefed.pipeline import observed


@pytest.fixture
def observation(tiny: nn.Module) -> Observation:
    images = torch.rand(2, 3, 8, 8, generator=Generator().manual_seed(0))
    return observed(tiny, images, torch.tensor([1, 2]))[0]


def test_each_tensor_keeps_its_length_and_loses_its_direction(observation: Observation) -> None:
    null = null_update(observation, Generator().manual_seed(0))
    assert null.keys() == observation.update.keys()
    for name, part in observation.update.items():
        assert null[name].shape == part.shape and null[name].dtype == part.dtype
        assert float(null[name].norm()) == pytest.approx(float(part.norm()), rel=1e-5)
    weight, real = null["0.weight"].flatten(), observation.update["0.weight"].flatten()
    assert abs(float(nn.functional.cosine_similarity(weight, real, dim=0))) < 0.3


def test_only_lengths_of_the_update_reach_the_null(observation: Observation) -> None:
    mirrored = Observation(
        observation.network, observation.client, {name: -part for name, part in observation.update.items()}, 2
    )
    first, second = (null_update(each, Generator().manual_seed(3)) for each in (observation, mirrored))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_head_s_bias_sums_to_zero_only_where_the_real_one_does(observation: Observation) -> None:
    bias = null_update(observation, Generator().manual_seed(0))["3.bias"]
    assert abs(float(bias.sum())) < 1e-5 * float(bias.norm())
    update = {**observation.update, "3.bias": torch.ones(4)}
    noised = Observation(observation.network, observation.client, update, 2)
    sums = [float(null_update(noised, Generator().manual_seed(seed))["3.bias"].sum()) for seed in range(10)]
    assert max(map(abs, sums)) > 0.1


def test_a_null_of_a_null_has_the_same_lengths_and_sum(observation: Observation) -> None:
    once = null_observation(observation, Generator().manual_seed(0))
    twice = null_observation(once, Generator().manual_seed(1))
    for name, part in once.update.items():
        assert float(twice.update[name].norm()) == pytest.approx(float(part.norm()), rel=1e-5)
        assert not torch.equal(twice.update[name], part)
    assert abs(float(twice.update["3.bias"].sum())) < 1e-5


def test_a_tensor_of_zeros_stays_zero(observation: Observation) -> None:
    update = {**observation.update, "0.bias": torch.zeros(6)}
    null = null_update(Observation(observation.network, FedSGD(), update, 2), Generator().manual_seed(0))
    assert not null["0.bias"].any()


def test_sent_buffers_are_replaced_by_the_server_s_own(tiny: nn.Module) -> None:
    module = nn.Sequential(nn.BatchNorm2d(3), *tiny).train()
    images = torch.rand(4, 3, 8, 8, generator=Generator().manual_seed(0))
    client, threat = FedAvg(local_steps=1, lr=0.1), ThreatModel(labels="known", buffers="sent")
    observation, _ = observed(module, images, torch.arange(4), client=client, threat=threat)
    null = null_observation(observation, Generator().manual_seed(0))
    assert not torch.equal(observation.buffers["0.running_mean"], module[0].running_mean)
    assert torch.equal(null.buffers["0.running_mean"], module[0].running_mean)
    assert torch.equal(null.labels, observation.labels)
