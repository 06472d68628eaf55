"""SPEAR: several photographs at once from the zeros of a ReLU, exactly, or a refusal that says why."""

import dataclasses

import pytest
import torch
from torch import nn

from inversefed import Batch, FedAvg, FedSGD, Observation, ThreatModel, freeze, observe, recipes
from inversefed.attacks.exact.dense_batch.sparse_directions import NullVectors, SparseDescent
from inversefed.attacks.exact.dense_batch.spear import SparseBatch
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.defenses import Context, GaussianNoise
from inversefed.types import Budget, Reconstruction, Status
from inversefed.zoo import constants, networks, pictures

LABELS = torch.tensor([3, 0, 7, 3, 9, 1, 1, 5])


def photographs(count: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.stack([pictures.photo(name, (3, 32, 32)) for name in pictures.photo_names()[:count]]).to(dtype)


def perceptron(width: int, dtype: torch.dtype = torch.float64, between: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(3072, width), between(), nn.Linear(width, 60), nn.ReLU(), nn.Linear(60, 10)]
    return nn.Sequential(*layers).to(dtype)


def seen(module: nn.Module, images: torch.Tensor, client: object = FedSGD(), labels: str = "unknown") -> Observation:
    network = freeze(module, (3, 32, 32), mean=constants.cifar10_mean, std=constants.cifar10_std)
    truth = LABELS[: len(images)]
    update = client(network, images, truth)
    return observe(network, client, update, Batch(images, truth), ThreatModel(labels=labels))


def decibels(found: Reconstruction, images: torch.Tensor) -> tuple[float, torch.Tensor]:
    """PSNR of the worst picture, each paired with its own, and the labels in the true order."""
    distances = (found.images[:, None] - images[None]).square().flatten(2).mean(dim=2)
    nearest = distances.argmin(dim=0)
    assert sorted(nearest.tolist()) == list(range(len(images)))
    return float(-10 * distances[nearest, range(len(images))].max().clamp(min=1e-300).log10()), found.labels[nearest]


@pytest.mark.parametrize("recipe", [recipes.spear, recipes.sparse])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_a_batch_of_photographs_and_its_labels_are_exact(recipe: object, count: int) -> None:
    images = photographs(count)
    found = recipe()(seen(perceptron(400), images), torch.Generator().manual_seed(0))
    quality, labels = decibels(found, images)
    assert found.findings[0].code == "exact"
    assert quality > 200 and labels.tolist() == LABELS[:count].tolist()


@pytest.mark.parametrize("name", ["MLP", "TwoLP"])
def test_the_perceptrons_of_the_zoo_in_single_precision(name: str) -> None:
    images = photographs(8, torch.float32)
    found = recipes.sparse()(seen(networks.build(name, seed=0), images), torch.Generator().manual_seed(0))
    quality, labels = decibels(found, images)
    assert found.findings[0].code == "exact" and quality > 100
    assert labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize("steps", [1, 3])
def test_local_steps_on_the_whole_batch_mix_the_same_pictures(steps: int) -> None:
    images = photographs(4)
    client = FedAvg(local_steps=steps, lr=0.01)
    found = recipes.sparse()(seen(perceptron(200), images, client), torch.Generator().manual_seed(0))
    assert found.findings[0].code == "exact" and decibels(found, images)[0] > 200


def test_known_labels_fix_the_order_as_far_as_they_tell() -> None:
    images = photographs(5)
    found = recipes.sparse()(seen(perceptron(400), images, labels="known"), torch.Generator().manual_seed(0))
    assert found.labels.tolist() == LABELS[:5].tolist()
    alone = [1, 2, 4]  # the others share their label
    assert float((found.images[alone] - images[alone]).abs().max()) < 1e-9


def test_both_searches_find_directions_that_are_zero_where_a_relu_is_off() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand((150, 4), generator=generator) < 0.5
    sparse = torch.randn((150, 4), generator=generator, dtype=torch.float64) * mask
    mixing = torch.randn((4, 4), generator=generator, dtype=torch.float64)
    rows = torch.linalg.qr((sparse @ mixing)[mask.any(dim=1)])[0]
    for search in (NullVectors(256), SparseDescent()):
        proposed = search(rows, rows.new_zeros(4, 0), generator)
        zeros = ((rows @ proposed).abs() < 1e-7).sum(dim=0)
        most = (~mask[mask.any(dim=1)]).sum(dim=0)
        assert sorted(set(zeros.tolist()))[-1] == int(most.max())
        assert set(most.tolist()) <= set(zeros.tolist())


def test_a_refusal_says_what_is_missing() -> None:
    images, draws = photographs(4), torch.Generator()
    convolution = networks.build("LeNetZhu", seed=0).double()
    with pytest.raises(UnsupportedNetworkError, match="no linear layer with bias sees the flattened pictures"):
        recipes.spear()(seen(convolution, images), draws)
    with pytest.raises(UnsupportedNetworkError, match="zeros of a ReLU behind layer 1; Tanh follows it"):
        recipes.spear()(seen(perceptron(200, between=nn.Tanh), images), draws)
    with pytest.raises(UnsupportedNetworkError, match=r"4 pictures are more than layer 1 .* at most 3"):
        recipes.spear()(seen(perceptron(3), images), draws)
    twice = torch.cat([images[:1], images[:3]])
    with pytest.raises(ThreatModelError, match="rank 3, fewer than the 4 examples: two of them are alike"):
        recipes.spear()(seen(perceptron(200), twice), draws)


def test_noise_is_refused_and_not_fitted() -> None:
    observation = seen(perceptron(200), photographs(4))
    context = Context(observation.network, Batch(photographs(4), LABELS[:4]))
    noisy = GaussianNoise(1e-3)(observation.update, context, torch.Generator().manual_seed(0))
    with pytest.raises(ThreatModelError, match="noise, pruning or quantization"):
        recipes.sparse()(dataclasses.replace(observation, update=noisy), torch.Generator())


def test_what_is_not_separated_is_not_called_exact_and_a_budget_ends_the_search() -> None:
    images = photographs(8)
    few = SparseBatch(searches=(SparseDescent(starts=8, steps=8),), rounds=1)
    observation = seen(perceptron(24), images)
    with pytest.raises(ThreatModelError, match="directions with zeros were found"):
        few(observation, torch.Generator().manual_seed(0))
    rounds = []
    stopped = SparseBatch()(
        seen(perceptron(60), images), torch.Generator().manual_seed(0), Budget(on_step=lambda s: rounds.append(s) or 1)
    )
    assert stopped.status is Status.STOPPED and len(rounds) == 1
    assert stopped.findings[0].code == "not-exact" and stopped.loss > 1e-8


def test_it_says_beforehand_what_it_would_do() -> None:
    assert "looks for the 4 examples in the zeros" in SparseBatch().check(seen(perceptron(200), photographs(4)))
