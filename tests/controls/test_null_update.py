"""Null updates: the real one's numbers out of place, and nothing else of it."""

from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor, nn

from inversefed import FedAvg, FedSGD, ThreatModel, defenses
from inversefed.controls.null_update import null_observation, null_update
from inversefed.fl.defenses import Context
from inversefed.fl.simulate import observed
from inversefed.fl.threat import Observation
from inversefed.types import Batch
from inversefed.zoo import pictures


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


def sizes(part: Tensor) -> list[float]:
    return part.abs().flatten().sort().values.tolist()


def sent(observation: Observation, *chain: defenses.Defense) -> Observation:
    """The same with noise for an update, as it leaves a client that runs these defenses."""
    batch = Batch(torch.zeros(observation.batch_shape), torch.zeros(observation.num_examples, dtype=torch.long))
    context, random = Context(observation.network, batch), Generator().manual_seed(0)
    update = {name: torch.randn(part.shape, generator=random) for name, part in observation.update.items()}
    for defense in chain:
        update = defense(update, context, random)
    return replace(observation, update=update)


def test_only_sizes_of_the_entries_reach_the_null_and_not_where_they_stood(observation: Observation) -> None:
    null = null_update(observation, Generator().manual_seed(3))
    for name, part in observation.update.items():
        assert sizes(null[name]) == sizes(part)
    signs = (null["0.weight"].flatten() > 0).double().mean(), (observation.update["0.weight"] > 0).double().mean()
    assert 0.35 < float(signs[0]) < 0.65 and signs[0] != signs[1]


def test_zeros_and_levels_that_a_defense_left_are_kept(observation: Observation) -> None:
    for chain in (
        (defenses.TopK(0.1),),
        (defenses.SignQuantization(),),
        (defenses.TopK(0.3), defenses.SignQuantization()),
        (defenses.UniformQuantization(3),),
        (defenses.StochasticQuantization(2),),
    ):
        pruned = sent(observation, *chain)
        null = null_update(pruned, Generator().manual_seed(0))
        for name, part in pruned.update.items():
            assert sizes(null[name]) == sizes(part) and not torch.equal(null["0.weight"], pruned.update["0.weight"])


def test_levels_that_are_not_mirrored_at_zero_keep_their_signs_and_others_do_not(observation: Observation) -> None:
    def signs_kept(real: Observation) -> bool:
        null = null_update(real, Generator().manual_seed(0))
        return all(null[name].sort().values.equal(part.sort().values) for name, part in flattened(real, null))

    def flattened(real: Observation, null: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
        null.update({name: part.flatten() for name, part in null.items()})
        return [(name, part.flatten()) for name, part in real.update.items()]

    assert signs_kept(sent(observation, defenses.UniformQuantization(2)))
    assert not signs_kept(sent(observation, defenses.SignQuantization()))
    assert not signs_kept(sent(observation, defenses.TopK(0.1)))
    mirrored = {name: (2 * part).round().clamp(-2, 2) for name, part in sent(observation).update.items()}
    assert not signs_kept(replace(observation, update=mirrored))
    assert signs_kept(replace(observation, update={name: part + 0.3 for name, part in mirrored.items()}))


def test_the_head_s_bias_keeps_its_sum_and_its_signs(observation: Observation) -> None:
    bias = null_update(observation, Generator().manual_seed(0))["3.bias"]
    assert abs(float(bias.sum())) < 1e-5 * float(bias.norm())
    real = observation.update["3.bias"]
    assert bias.sort().values.equal(real.sort().values)
    drawn = [null_update(observation, Generator().manual_seed(seed))["3.bias"].argmin() for seed in range(20)]
    assert len(set(map(int, drawn))) == 4  # any class may be the one that it names


def test_of_new_weights_the_change_is_shuffled(observation: Observation) -> None:
    client = FedAvg(local_steps=1, lr=0.1, sends="weights")
    params = observation.network.params
    update = {name: params[name].detach() - 0.1 * part for name, part in observation.update.items()}
    null = null_update(Observation(observation.network, client, update, 2), Generator().manual_seed(0))
    for name, part in observation.update.items():
        change = (null[name] - params[name].detach()) / 0.1
        assert sizes(change) == pytest.approx(sizes(part), abs=1e-5)
        assert not torch.allclose(change, part, atol=1e-4)


def searched(observation: Observation, seed: int) -> Tensor:
    """Three steps by the sign towards pictures whose update points where the one observed does."""
    images = torch.rand(observation.batch_shape, generator=Generator().manual_seed(seed))
    for _ in range(3):
        images.requires_grad_()
        made = observation.client(observation.network, images, observation.labels)
        ends = [torch.cat([update[name].flatten() for name in made]) for update in (made, observation.update)]
        (slope,) = torch.autograd.grad(nn.functional.cosine_similarity(*ends, dim=0), images)
        images = (images.detach() + 0.2 * slope.sign()).clamp(0, 1)
    return images


CHAINS = {
    "pruned": (defenses.TopK(0.02),),
    "signs": (defenses.SignQuantization(),),
    "levels": (defenses.UniformQuantization(2),),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_an_update_that_says_nothing_stands_anywhere_among_its_nulls(chain: str) -> None:
    """Noise, as it leaves the client, is the best of itself and 4 nulls once in 5; pruned, it is far above dense ones.

    A binomial count (30, 1/5) is above 12 once in 300, a mean rank, uniform on 0 .. 4, out of its range once in 50.
    """
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 12), nn.Sigmoid(), nn.Linear(12, 4)).eval()
    photo, ranks = pictures.photo("chelsea", (3, 4, 4))[None], []
    for seed in range(30):
        real, _ = observed(
            module, photo, torch.tensor([1]), mean=0.5, std=0.25, threat=ThreatModel(labels="known"), seed=seed,
            defenses=(defenses.GaussianNoise(1e6), *CHAINS[chain]),
        )  # fmt: skip
        random = Generator().manual_seed(seed)
        updates = [real, *(null_observation(real, random) for _ in range(4))]
        errors = [float((searched(each, seed) - photo).square().sum()) for each in updates]
        ranks.append(sum(error <= errors[0] for error in errors[1:]))
    assert 1 <= ranks.count(0) <= 12, ranks
    assert 1.4 <= sum(ranks) / 30 <= 2.6, ranks


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
