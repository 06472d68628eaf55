"""Peeling where ways from one layer are put side by side, as in U-Nets, DenseNets and Inception networks."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import inversefed
from inversefed import recipes
from inversefed.attacks.exact.peel.forecast import forecast
from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.network import freeze
from inversefed.networks.layer_chain import Concatenation, chain, flat, run
from inversefed.zoo import pictures

SHAPE = (3, 16, 16)


class UNet(nn.Module):
    """One step down and up again, beside what was there before it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.down = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.up, self.last = nn.ConvTranspose2d(64, 32, 2, 2), nn.Conv2d(64, 128, 3, 2, 1)
        self.head = nn.Linear(128 * 64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        deep = self.up(self.down(F.max_pool2d(x, 2)).relu())
        return self.head(self.last(torch.cat([deep, x], dim=1)).relu().flatten(1))


class Dense(nn.Module):
    """Each layer sees all before it (Huang et al. 2017, arXiv:1608.06993)."""

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.grown = nn.ModuleList(nn.Conv2d(channels, 24, 3, padding=1) for channels in (32, 56))
        self.last, self.head = nn.Conv2d(80, 128, 3, stride, 1), nn.Linear(128 * 256 // stride**2, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        for layer in self.grown:
            x = torch.cat((x, torch.relu(layer(x))), 1)
        return self.head(self.last(x).relu().flatten(1))


class Inception(nn.Module):
    """Four ways of which none is the input itself (Szegedy et al. 2015, arXiv:1409.4842)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.one, self.five = nn.Conv2d(3, 32, 3, 1, 1), nn.Conv2d(32, 16, 1), nn.Conv2d(32, 48, 5, 1, 2)
        self.three = nn.Sequential(nn.Conv2d(32, 24, 1), nn.ReLU(), nn.Conv2d(24, 32, 3, padding=1))
        self.pooled, self.head = nn.Conv2d(32, 16, 1), nn.Linear(112 * 256, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        ways = [self.one(x), self.three(x), self.five(x), self.pooled(F.max_pool2d(x, 3, 1, 1))]
        return self.head(torch.concat(ways, dim=-3).relu().flatten(1))


class Listed(nn.Module):
    """As torchvision's DenseNet writes it: a list of layers' outputs is put side by side again for each."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.head = nn.Conv2d(16, 8, 3, padding=1), nn.Linear(24 * 256, 10)

    def forward(self, x: Tensor) -> Tensor:
        seen = [self.first(x)]
        seen.append(self.second(torch.cat(seen, 1)))
        seen.append(self.third(torch.cat(seen, 1)))
        return self.head(torch.cat(seen, 1).flatten(1))


class Averaged(UNet):
    """The head sees a mean over places of what stands side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        return self.head(torch.cat([self.up(self.down(F.max_pool2d(x, 2)).relu()), x], dim=1).mean((2, 3)))


def built(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return kind().eval()


@pytest.fixture(scope="module")
def image() -> Tensor:
    return F.avg_pool2d(pictures.photo("chelsea", (3, 32, 32))[None], 2)


@pytest.mark.parametrize("kind", [UNet, Dense, Inception])
def test_the_chain_computes_what_the_network_does(kind: type[nn.Module], image: Tensor) -> None:
    network = freeze(built(kind), SHAPE)
    layers = chain(network)
    with torch.no_grad():
        torch.testing.assert_close(run(layers, image.double()), network.module.double()(image.double()))
    weighted = [name for name, _ in network.module.named_modules() if f"{name}.weight" in network.params]
    assert sorted(layer.name for layer in flat(layers) if layer.name in weighted) == sorted(weighted)
    assert any(isinstance(layer.module, Concatenation) for layer in layers)


@pytest.mark.parametrize("kind", [UNet, Dense])
def test_where_the_input_is_one_of_the_ways_peeling_reaches_the_image(kind: type[nn.Module], image: Tensor) -> None:
    module = built(kind)
    assert forecast(chain(freeze(module, SHAPE)), SHAPE).depth == 0
    report = inversefed.audit(module, image, torch.tensor([3]), mean=0.5, std=0.25, attack=recipes.peel(), nulls=0)
    assert report.reconstruction.proven
    assert float(report.scores["peak_signal_noise_ratio"]) > 100


def test_where_it_is_not_one_of_the_ways_is_peeled(image: Tensor) -> None:
    module = built(Inception)
    report = inversefed.audit(module, image, torch.tensor([3]), mean=0.5, std=0.25, nulls=0)  # as `best()` chooses
    assert report.reconstruction.proven
    assert float(report.scores["peak_signal_noise_ratio"]) > 100


def test_several_pictures_are_peeled_past_it_together(image: Tensor) -> None:
    module, images = built(lambda: Dense(stride=1)), torch.cat([image, image.flip(3)])
    report = inversefed.audit(
        module, images, torch.tensor([3, 5]), mean=0.5, std=0.25, attack=recipes.peel(), nulls=0
    )  # fmt: skip
    assert report.reconstruction.proven
    assert float(report.scores["peak_signal_noise_ratio"].min()) > 90


def test_layers_on_several_ways_are_named() -> None:
    with pytest.raises(UnsupportedNetworkError, match=r"second lies on several ways that come together"):
        chain(freeze(built(Listed), SHAPE))


def test_a_mean_behind_it_is_refused_with_its_reason(image: Tensor) -> None:
    layers = chain(freeze(built(Averaged), SHAPE))
    with pytest.raises(UnsupportedNetworkError, match=r"peeling stops at Concatenation"):
        forecast(layers, SHAPE)


def test_one_part_alone_is_the_part_itself() -> None:
    class Alone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(768, 10)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.cat([x], 1).flatten(1))

    assert [layer.name for layer in chain(freeze(built(Alone), SHAPE)) if layer.name] == ["head"]
