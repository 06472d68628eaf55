"""The cocktail party: a batch of photographs from a first linear layer by blind separation, roughly."""

import time

import pytest
import torch
from torch import nn

from inversefed import Batch, FedSGD, Observation, ThreatModel, freeze, observe, recipes
from inversefed.attacks.exact.dense_batch.rank_decomposition import mixture
from inversefed.attacks.exact.watch import Watch
from inversefed.errors import UnsupportedNetworkError
from inversefed.types import Budget, Status
from inversefed.zoo import constants, networks, pictures

LABELS = torch.tensor([3, 0, 7, 3, 9, 1, 1, 5])


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.stack([pictures.photo(name, (3, 32, 32)) for name in pictures.photo_names()])


def seen(images: torch.Tensor, between: nn.Module, labels: str = "unknown") -> Observation:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(3072, 64), between, nn.Linear(64, 10))
    network = freeze(module, (3, 32, 32), mean=constants.cifar10_mean, std=constants.cifar10_std)
    update = FedSGD()(network, images, LABELS)
    return observe(network, FedSGD(), update, Batch(images, LABELS), ThreatModel(labels=labels))


def decibels(found: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    return -10 * (found - truth).square().flatten(1).mean(dim=1).log10()


@pytest.mark.parametrize("between", [nn.ReLU(), nn.Sigmoid(), nn.GELU()])
def test_eight_photographs_are_recognized_behind_any_activation(images: torch.Tensor, between: nn.Module) -> None:
    found = recipes.cocktail_party()(seen(images, between), torch.Generator().manual_seed(0))
    order = torch.cdist(images.flatten(1), found.images.flatten(1)).argmin(dim=1)
    assert sorted(order.tolist()) == list(range(8))
    gray = decibels(torch.full_like(images, 0.5), images)
    gained = decibels(found.images[order], images) - gray
    assert float(gained.median()) > 8 and float(gained.min()) > 2
    assert found.labels[order].tolist() == LABELS.tolist()
    assert [finding.code for finding in found.findings] == ["approximate"]


def test_pictures_stay_in_range_and_granted_labels_are_dealt_out(images: torch.Tensor) -> None:
    found = recipes.cocktail_party(50)(seen(images, nn.Sigmoid(), "known"), torch.Generator().manual_seed(0))
    assert float(found.images.min()) >= 0 and float(found.images.max()) <= 1
    assert found.labels.sort().values.tolist() == LABELS.sort().values.tolist()


def test_a_budget_ends_it_with_the_best_so_far(images: torch.Tensor) -> None:
    steps = []
    budget = Budget(on_step=lambda step: steps.append(step.best().shape) or len(steps) == 2)
    found = recipes.cocktail_party()(seen(images, nn.ReLU()), torch.Generator().manual_seed(0), budget)
    assert found.status is Status.STOPPED and steps == [(8, 3, 32, 32)] * 2


def test_the_clock_ends_it_within_a_round(images: torch.Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    mixed, now, slogdet = mixture(seen(images, nn.ReLU())), [0.0], torch.linalg.slogdet

    def counted(matrix: torch.Tensor) -> object:
        now[0] += 1.0
        return slogdet(matrix)

    monkeypatch.setattr(torch.linalg, "slogdet", counted)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Watch(Budget(seconds=4.5))
    found = recipes.cocktail_party().unmix(mixed, torch.Generator().manual_seed(0), watch)
    assert watch.stopped and now[0] == 5.0 and bool(found.isfinite().all())


def test_a_network_that_begins_otherwise_is_refused(images: torch.Tensor) -> None:
    network = freeze(networks.build("LeNetZhu", seed=0), (3, 32, 32))
    update = FedSGD()(network, images, LABELS)
    with pytest.raises(UnsupportedNetworkError, match="no linear layer with bias sees the flattened pictures"):
        recipes.cocktail_party()(Observation(network, FedSGD(), update, 8), torch.Generator())
