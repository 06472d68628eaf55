"""APRIL: the photograph in front of an attention that sees patches and positions, exactly, or a refusal."""

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

import inversefed
from inversefed import FedSGD, recipes
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.zoo import constants, networks


class Separate(nn.Module):
    """Three linear layers for query, key and value, and an extra token behind the patches' mean; pieces can be added.

    Args:
        norm: a norm in front of the attention.
        skip: a skip around it.
        width: of the tokens.
    """

    def __init__(self, norm: bool = False, skip: bool = False, width: int = 80) -> None:
        super().__init__()
        self.embed, self.positions = nn.Conv2d(3, width, 4, 4, bias=False), nn.Parameter(torch.randn(64, width))
        self.query, self.key, self.value = nn.Linear(width, 32), nn.Linear(width, 32), nn.Linear(width, width)
        self.norm, self.skip = nn.LayerNorm(width) if norm else nn.Identity(), skip
        self.mix, self.head = nn.Linear(width, width), nn.Linear(64 * width, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embed(images).flatten(2).mT + self.positions
        y = self.norm(x)
        seen = nn.functional.scaled_dot_product_attention(self.query(y), self.key(y), self.value(y))
        return self.head(torch.tanh(self.mix(x + seen if self.skip else seen)).flatten(1))


def audited(module: nn.Module, images: torch.Tensor, dtype: torch.dtype = torch.float64) -> inversefed.Report:
    return inversefed.audit(
        module.eval().to(dtype),
        images,
        torch.arange(len(images)) + 4,
        mean=constants.cifar10_mean,
        std=constants.cifar10_std,
        attack=recipes.april(),
        nulls=0,
    )


def decibels(report: inversefed.Report) -> float:
    return float(report.scores["peak_signal_noise_ratio"])


def test_a_double_precision_gradient_gives_the_photograph_away(photos: torch.Tensor) -> None:
    report = audited(networks.build("BareViT", seed=0), photos[:1])
    assert decibels(report) > 150 and report.labels.tolist() == [4]
    assert "exact" in {finding.code for finding in report.findings}


def test_a_single_precision_gradient_costs_the_digits_that_the_condition_says(photos: torch.Tensor) -> None:
    report = audited(networks.build("BareViT", seed=0), photos[:1], torch.float32)
    (finding,) = [finding for finding in report.findings if finding.code in ("exact", "not-exact")]
    assert 1e4 < finding.evidence["condition"] < 1e8
    assert decibels(report) > 40


def test_separate_projections_and_an_embedding_without_bias(photos: torch.Tensor) -> None:
    torch.manual_seed(0)
    assert decibels(audited(Separate(), photos[:1])) > 150


def test_a_refusal_says_what_stands_in_the_way(photos: torch.Tensor) -> None:
    torch.manual_seed(0)
    with pytest.raises(UnsupportedNetworkError, match=r"something stands between .* such as a norm"):
        audited(Separate(norm=True), photos[:1])
    with pytest.raises(UnsupportedNetworkError, match="by a skip connection"):
        audited(Separate(skip=True), photos[:1])
    with pytest.raises(UnsupportedNetworkError, match="64 patches of 48 values are more than a width of 56"):
        audited(Separate(width=56), photos[:1])
    with pytest.raises(UnsupportedNetworkError, match="no convolution cuts the picture into patches"):
        audited(networks.build("LeNetZhu", seed=0), photos[:1])
    with pytest.raises(UnsupportedNetworkError, match="such as a norm"):
        audited(VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=192, mlp_dim=64), photos[:1])
    with pytest.raises(ThreatModelError, match="one example; got 2"):
        audited(networks.build("BareViT", seed=0), photos)


def test_it_says_beforehand_what_it_would_do(photos: torch.Tensor) -> None:
    network = inversefed.freeze(networks.build("BareViT", seed=0), (3, 32, 32))
    update = FedSGD()(network, photos[:1], torch.tensor([4]))
    said = recipes.april().check(inversefed.Observation(network, FedSGD(), update, 1))
    assert said == "reads the picture's 64 patches off the gradient of positions, without a search"
