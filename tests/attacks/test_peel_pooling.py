"""Peeling through max pooling: winners by alternation, the picture to float precision, and an honest best otherwise."""

import itertools
import time

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import inversefed
from inversefed import recipes
from inversefed.attacks.exact.peel.conv_block import Block, block_below
from inversefed.attacks.exact.peel.image_behind_max_pool import FirstBlock, image_from_pooled
from inversefed.attacks.exact.watch import Watch
from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.network import freeze
from inversefed.networks.layer_chain import Layer, chain, run
from inversefed.types import Budget, Step
from inversefed.zoo import constants, networks


class Mcmahan(nn.Module):
    """The FedAvg paper's CNN at half the picture's side and the width, with functions in the place of modules."""

    def __init__(self, seed: int, pool_first: bool = False) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Conv2d(3, 32, 5, padding=2), nn.Conv2d(32, 64, 5, padding=2)
        self.hidden, self.head = nn.Linear(1024, 64), nn.Linear(64, 10)
        self.pool_first = pool_first

    def block(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(F.max_pool2d(x, 2)) if self.pool_first else F.max_pool2d(torch.relu(x), kernel_size=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(self.second(self.block(self.first(x))))
        return self.head(F.relu(self.hidden(torch.flatten(x, 1))))


def normalized_modules() -> nn.Module:
    """BatchNorm with weights of its own, in modules."""
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 48, 5, padding=2), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(48, 32, 3, padding=1),
        nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip
    for part in module:
        if isinstance(part, nn.BatchNorm2d):
            nn.init.uniform_(part.weight, 0.5, 1.5)
            nn.init.normal_(part.bias, std=0.1)
    return module


def audited(module: nn.Module, image: torch.Tensor, **options: object) -> inversefed.Report:
    return inversefed.audit(
        module.eval(),
        image,
        torch.tensor([3]),
        mean=constants.cifar10_mean,
        std=constants.cifar10_std,
        attack=recipes.peel(),
        nulls=0,
        **options,
    )


@pytest.fixture
def small(photos: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(photos, 2)


@pytest.mark.parametrize(("seed", "number", "pool_first"), [(0, 0, False), (1, 1, False), (0, 1, True)])
def test_a_picture_behind_two_poolings_is_exact_from_float32(
    small: torch.Tensor, seed: int, number: int, pool_first: bool
) -> None:
    report = audited(Mcmahan(seed, pool_first), small[number : number + 1])
    assert float(report.scores["peak_signal_noise_ratio"]) > 100
    assert report.reconstruction.loss < 1e-8
    assert "exact" in {finding.code for finding in report.findings}


def test_batchnorm_is_folded_into_the_convolution(small: torch.Tensor) -> None:
    report = audited(normalized_modules(), small[:1])
    assert float(report.scores["peak_signal_noise_ratio"]) > 100 and report.reconstruction.loss < 1e-8


def test_a_stopped_search_gives_its_best_and_says_so(small: torch.Tensor) -> None:
    steps: list[Step] = []
    report = audited(Mcmahan(0), small[:1], on_step=lambda step: steps.append(step) or len(steps) == 30)
    found = report.reconstruction
    assert found.status == "stopped" and len(steps) == 30 and steps[-1].best().shape == found.images.shape
    assert "not-exact" in {finding.code for finding in report.findings}
    assert float(report.scores["peak_signal_noise_ratio"]) > 12


def test_what_pooling_hides_too_well_is_searched_and_not_called_exact(photos: torch.Tensor) -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(4), nn.Flatten(), nn.Linear(1024, 10)]
    report = audited(nn.Sequential(*layers), photos[:1])
    assert "not-exact" in {finding.code for finding in report.findings}
    gray = float(-10 * (photos[:1] - 0.5).square().mean().log10())
    assert float(report.scores["peak_signal_noise_ratio"]) > gray


@pytest.mark.parametrize("layers", [[1, 1, 1, 1], pytest.param([2, 2, 2, 2], marks=pytest.mark.slow)])
def test_a_picture_behind_a_stem_with_windows_that_overlap_is_exact(photos: torch.Tensor, layers: list[int]) -> None:
    """torchvision's ResNet18, and the half of it: the sums are peeled though max pooling stands in front of them."""
    resnet = pytest.importorskip("torchvision.models.resnet")
    torch.manual_seed(0)
    report = audited(resnet.ResNet(resnet.BasicBlock, layers, num_classes=10), photos[:1])
    assert report.verdict is not None and report.verdict.leaked
    assert float(report.scores["peak_signal_noise_ratio"]) > 120


def test_no_pixel_wins_a_window_that_another_window_is_too_small_for() -> None:
    layers, block = block_of(nn.MaxPool2d(3, 2, 1))
    image = torch.rand(2, 13, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    values = run(layers, image[None])[0].flatten(1)
    shown = FirstBlock(block, values, torch.zeros_like(values), torch.zeros_like(block.weight))
    true, alive = block.windows(image).argmax(-1), values > 0
    assert not bool(shown.barred.gather(-1, true[..., None])[..., 0][alive].any())
    assert float(shown.barred[alive].double().mean()) > 0.3  # most of what several windows see


def test_pooling_behind_a_sigmoid_is_refused(photos: torch.Tensor) -> None:
    smooth = [nn.Conv2d(3, 8, 3, padding=1), nn.Sigmoid(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(2048, 10)]
    with pytest.raises(UnsupportedNetworkError, match="got Sigmoid -> MaxPool2d"):
        audited(nn.Sequential(*smooth), photos[:1])


POOLS = [
    nn.MaxPool2d(2), nn.MaxPool2d((3, 2), 2), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, 2, ceil_mode=True),
    nn.MaxPool2d(2, 3, dilation=(1, 2)),
]  # fmt: skip


def block_of(pool: nn.Module, *, stride: int = 1) -> tuple[tuple[Layer, ...], Block]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(2, 5, 3, stride, 1), nn.BatchNorm2d(5), nn.ReLU(), pool, nn.Flatten()).eval()
    head = nn.Linear(module(torch.zeros(1, 2, 13, 11)).shape[1], 3)
    layers = chain(freeze(nn.Sequential(*module, head).eval(), (2, 13, 11)))
    return layers[:4], block_below(layers, 4, (2, 13, 11))


@pytest.mark.parametrize(("pool", "stride"), list(itertools.product(POOLS, [1, 2])))
def test_a_block_is_what_its_layers_are(pool: nn.Module, stride: int) -> None:
    layers, block = block_of(pool, stride=stride)
    inputs = torch.rand(2, 13, 11, dtype=torch.float64)
    expected = run(layers, inputs[None])[0]
    torch.testing.assert_close(block.windows(inputs).amax(-1).clamp(min=0).reshape(expected.shape), expected)
    outputs, seen = torch.randn(block.grid, dtype=torch.float64), torch.randn(5, *block.places.shape).double()
    pairs = [
        ((block.forward(inputs) * outputs).sum(), (inputs * block.backward(outputs)).sum()),
        ((outputs.flatten(1)[:, block.places] * seen).sum(), (outputs * block.spread(seen)).sum()),
    ]
    for there, back in pairs:
        torch.testing.assert_close(there, back)


def test_first_features_alone_give_the_picture_from_a_rough_start(small: torch.Tensor) -> None:
    layers = chain(freeze(Mcmahan(0), (3, 16, 16)))[:3]
    block, truth = block_below(layers, 3, (3, 16, 16)), small[0].double()
    rough = truth + 0.03 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    bounds = (torch.zeros(1).double(), torch.ones(1).double())
    found = image_from_pooled(block, run(layers, truth[None])[0], rough, bounds, Watch())
    assert found.settled and float((found.image - truth).abs().max()) < 1e-8


def test_the_clock_is_asked_within_each_round_behind_pooling(
    small: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers = chain(freeze(Mcmahan(0), (3, 16, 16)))[:3]
    block, truth, now = block_below(layers, 3, (3, 16, 16)), small[0].double(), [0.0]
    rough = truth + 0.03 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(0))
    bounds, values = (torch.zeros(1).double(), torch.ones(1).double()), run(layers, truth[None])[0]
    forward = Block.forward

    def counted(self: Block, inputs: torch.Tensor) -> torch.Tensor:
        now[0] += 1.0
        return forward(self, inputs)

    monkeypatch.setattr(Block, "forward", counted)
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    image_from_pooled(block, values, rough, bounds, Watch())
    whole, now[0] = now[0], 0.0
    for seconds in (30.5, whole - 10.5):  # in a round, and in the least squares that end it
        now[0] = 0.0
        found = image_from_pooled(block, values, rough, bounds, Watch(Budget(seconds=seconds)))
        assert not found.settled and now[0] <= seconds + 3
        assert float((found.image - truth).norm()) < float((rough - truth).norm())


def test_a_watch_stops_by_the_clock_and_when_told_and_rounds_are_no_iterations() -> None:
    image = torch.zeros(1, 2, 2)
    assert not Watch()(1.0, image) and not Watch(Budget(max_iterations=1))(1.0, image)
    assert Watch(Budget(seconds=1e-9))(1.0, image)
    told = Watch(Budget(on_step=lambda step: step.iteration == 2))
    assert [told(1.0, image), told(0.5, image), told.stop()] == [False, True, True]
    assert told.history == (1.0, 0.5)


@pytest.mark.parametrize("name", ["ConvNet16"])
def test_below_deep_pooling_the_features_are_searched(photos: torch.Tensor, name: str) -> None:
    report = audited(networks.build(name, seed=0), photos[:1], max_iterations=120)
    assert float(report.scores["peak_signal_noise_ratio"]) > 12
