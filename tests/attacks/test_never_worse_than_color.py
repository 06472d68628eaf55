"""A picture is never worse than the one color that explains the update best; normalized features keep to the range."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from benchmarks.small_networks import SMALL_NETWORKS
from inversefed import audit, freeze
from inversefed.attacks import auto, recipes
from inversefed.attacks.constant_color import matched_color
from inversefed.attacks.matching_error import matching_error
from inversefed.evaluation.metrics import peak_signal_noise_ratio
from inversefed.fl.clients import FedAvg, FedSGD
from inversefed.fl.simulate import observed
from inversefed.networks.architecture import architecture
from inversefed.types import Budget, Status
from inversefed.zoo import pictures

LABEL = torch.tensor([3])
CHELSEA, COFFEE = (pictures.photo(name, (3, 16, 16))[None] for name in ("chelsea", "coffee"))


def narrow() -> nn.Sequential:
    """A frozen backbone with a head that sees few features: 74 numbers for 768 values."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(1024, 64), nn.ReLU(),
        nn.Linear(64, 10),
    ).requires_grad_(False)  # fmt: skip
    module[-1].requires_grad_(True)
    return module.eval()


def normalized(norm: nn.Module, pool: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2) if pool else nn.Identity(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512 if pool else 2048, 10),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("client", [FedSGD(), FedAvg(local_steps=2, lr=1e-2)])
def test_the_color_is_found_by_matching_the_update(client) -> None:
    colors = torch.tensor([[0.9, 0.2, 0.1], [0.3, 0.4, 0.8]]).view(2, 3, 1, 1).expand(2, 3, 16, 16)
    observation, truth = observed(normalized(nn.Identity()), colors, torch.tensor([3, 5]), client=client)
    images, cost = matched_color(observation, truth.labels)
    assert torch.allclose(images, colors, atol=0.02)
    assert cost == matching_error(observation, images, truth.labels)


def test_little_time_still_gives_a_color() -> None:
    observation, truth = observed(normalized(nn.Identity()), CHELSEA, LABEL)
    images, cost = matched_color(observation, truth.labels, seconds=1e-9)
    assert images.shape == CHELSEA.shape
    assert math.isfinite(cost)


@pytest.mark.parametrize("iterations", [60, pytest.param(None, marks=pytest.mark.slow)])  # all of them take long
def test_a_search_that_explains_less_than_one_color_is_not_the_result(iterations: int | None) -> None:
    observation, _ = observed(narrow(), CHELSEA, LABEL, mean=0.5, std=0.25)
    weak = replace(recipes.best(), searches=tuple(rule for rule in recipes.best().searches if not rule.steady))
    found = weak(observation, torch.Generator().manual_seed(1), Budget(max_iterations=iterations))
    color, _ = matched_color(observation, found.labels)
    assert torch.equal(found.images, color) and any(f.code == "constant-color" for f in found.findings)
    flat = CHELSEA.mean(dim=(2, 3), keepdim=True).expand_as(CHELSEA)
    assert peak_signal_noise_ratio(found.images, CHELSEA) > peak_signal_noise_ratio(flat, CHELSEA) - 2
    assert bool(((found.images >= 0) & (found.images <= 1)).all())


@pytest.mark.parametrize("iterations", [100, pytest.param(None, marks=pytest.mark.slow)])
def test_where_an_update_holds_few_numbers_a_strong_prior_is_nearer_than_one_color(iterations: int | None) -> None:
    gains = []
    for name in pictures.photo_names()[:3]:
        photo = pictures.photo(name, (3, 16, 16))[None]
        observation, _ = observed(narrow(), photo, LABEL, mean=0.5, std=0.25)
        found = recipes.best()(observation, torch.Generator().manual_seed(1), Budget(max_iterations=iterations))
        color, _ = matched_color(observation, found.labels)
        gains.append(peak_signal_noise_ratio(found.images, photo) - peak_signal_noise_ratio(color, photo))
    assert torch.cat(gains).mean() > 0.3


@pytest.mark.parametrize("count", [1, 4])
def test_a_search_that_is_cut_before_it_explains_anything_gives_way_to_one_color(count: int) -> None:
    images, labels = CHELSEA.expand(count, -1, -1, -1), torch.arange(count)
    observation, _ = observed(SMALL_NETWORKS["global-pool"].build(), images, labels)
    budget = Budget(seconds=1e-9)
    found = recipes.best()(observation, torch.Generator().manual_seed(1), budget)
    cost = matching_error(observation, found.images, found.labels)
    assert cost <= matched_color(observation, found.labels, seconds=0.0)[1]
    assert found.status is not Status.FINISHED, "more time might have found more"


def test_colors_that_explain_hardly_anything_displace_nothing() -> None:
    observation, _ = observed(narrow(), CHELSEA, LABEL)
    best = auto._Best(observation, found=recipes.geiping(1, 1)(observation, torch.Generator()), distance=0.031)
    assert best.explains_more(0.86) and not best.explains_more(0.3) and not best.explains_more(0.03)


@pytest.mark.parametrize(
    "norm", [nn.GroupNorm(8, 16), nn.InstanceNorm2d(16, affine=True), nn.LayerNorm((16, 16, 16)), nn.BatchNorm2d(16)]
)
def test_normalized_features_are_searched_within_the_range(norm: nn.Module) -> None:
    module = normalized(norm)
    if isinstance(norm, nn.BatchNorm2d):
        module = normalized(nn.BatchNorm2d(16, track_running_stats=False))
    chosen = recipes.best()
    plan = chosen.plan(observed(module, COFFEE, LABEL)[0])
    assert plan.bounded and plan.search == recipes.in_range(100) and len(plan.polish) == 2
    assert type(norm).__name__ in plan.why
    report = audit(module, COFFEE, LABEL, mean=0.5, std=0.25, max_iterations=150, nulls=0)
    flat = report.baselines["constant"]["peak_signal_noise_ratio"]
    assert report.scores["peak_signal_noise_ratio"] > flat + 2


def test_one_picture_gets_what_batches_get() -> None:
    report = audit(normalized(nn.GroupNorm(8, 16), pool=False), COFFEE, LABEL, mean=0.5, std=0.25, nulls=0)
    assert report.scores["peak_signal_noise_ratio"] > 40


def test_where_places_are_averaged_the_mean_of_several_paths_is_nearer_than_any_color() -> None:
    rocket = pictures.photo("rocket", (3, 16, 16))[None]
    module = SMALL_NETWORKS["global-pool"].build().eval()
    report = audit(module, rocket, LABEL, mean=0.5, std=0.25, max_iterations=300, nulls=0)
    assert report.scores["peak_signal_noise_ratio"] > report.baselines["constant"]["peak_signal_noise_ratio"]


@pytest.mark.slow
def test_where_places_are_averaged_a_batch_keeps_what_its_restarts_agree_on() -> None:
    """One of the pictures is nearly of one color, and paths that differ there would cost it ten decibels."""
    photos = torch.stack([pictures.photo(name, (3, 16, 16)) for name in pictures.photo_names()[1:5]])
    module = SMALL_NETWORKS["global-pool"].build().eval()
    report = audit(module, photos, torch.tensor([3, 6, 9, 2]), mean=0.5, std=0.25, max_iterations=300, nulls=0)
    scores, flat = (each["peak_signal_noise_ratio"] for each in (report.scores, report.baselines["constant"]))
    assert scores.mean() > flat.mean() - 1.6
    assert scores[3] > 26


def test_what_normalizes_is_told_by_layer_and_by_function() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(768, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(nn.functional.layer_norm(x, x.shape[1:]).flatten(1))

    assert architecture(freeze(Functional(), (3, 16, 16))).normalizations == ("layer_norm",)
    assert architecture(freeze(normalized(nn.BatchNorm2d(16)), (3, 16, 16))).normalizations == ()
    training = normalized(nn.BatchNorm2d(16)).train()
    assert architecture(freeze(training, (3, 16, 16))).normalizations == ("BatchNorm2d",)


def test_a_mean_over_channels_that_a_norm_takes_is_no_average_over_places() -> None:
    class ByHand(nn.Module):
        def __init__(self, dims: int | tuple[int, int]) -> None:
            super().__init__()
            self.conv, self.head, self.dims = nn.Conv2d(3, 4, 3), nn.LazyLinear(4), dims

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return self.head((x * x.square().mean(self.dims, keepdim=True).rsqrt()).flatten(1))

    for dims, found in ((1, ()), ((2, 3), ("mean",))):
        module = ByHand(dims)
        module(CHELSEA)
        read = architecture(freeze(module, (3, 16, 16)))
        assert read.averages == found and read.normalizations == ("rsqrt",)
