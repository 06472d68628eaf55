"""Peeling past averages over places and sums of two ways, of one example and of several at once."""

from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import inversefed
from inversefed import FedSGD, recipes
from inversefed.attacks.exact.peel import relu_pattern as sides_module
from inversefed.attacks.exact.peel.attack import head_of
from inversefed.attacks.exact.peel.conv_input import by_sign
from inversefed.attacks.exact.peel.forecast import forecast
from inversefed.attacks.exact.peel.layers import descend
from inversefed.attacks.exact.peel.preceding_conv import overdetermined, preceding_conv
from inversefed.attacks.exact.peel.relu_pattern import relu_pattern
from inversefed.attacks.exact.peel.relu_pattern_pooled import pattern_behind_average
from inversefed.attacks.exact.peel.state import PeelState, Setting
from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.network import freeze
from inversefed.networks.layer_chain import Residual, chain, flat, run
from inversefed.zoo import constants, networks, pictures
from inversefed.zoo.networks.resnet import ResNetSpec, resnet


def small_resnet(seed: int = 0) -> nn.Module:
    """Three stages of two blocks for 16x16 pictures, which end at 4x4 places."""
    torch.manual_seed(seed)
    return resnet(ResNetSpec((2, 2, 2), 32), 10).eval()


class Before(nn.Module):
    """A block with BatchNorm and ReLU in front of its convolutions (He et al. 2016, arXiv:1603.05027)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = nn.BatchNorm2d(inputs), nn.BatchNorm2d(outputs)
        self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride != 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(F.relu(self.one(x)))
        return torch.add(self.second(torch.relu(self.two(y))), self.short(x))


def averaged(*, width: int = 128) -> nn.Module:
    """Plain convolutions whose last maps are averaged by a function."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, stride=2, padding=1)
            self.third, self.fourth = nn.Conv2d(64, width, 3, 2, 1), nn.Conv2d(width, 64, 5, padding=2)
            self.head = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in (self.first, self.second, self.third, self.fourth):
                x = layer(x).relu()
            return self.head(x.mean((2, 3)))

    torch.manual_seed(0)
    return Net().eval()


def before() -> nn.Module:
    torch.manual_seed(0)
    blocks = [Before(32, 32, 1), Before(32, 64, 2), Before(64, 128, 2), Before(128, 128, 1)]
    end = [nn.BatchNorm2d(128), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, 10)]
    return nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), *blocks, *end).eval()


def tiles(number: int) -> torch.Tensor:
    """Photographs at 16x16, the first of them again from their other halves where there are too few."""
    names = pictures.photo_names()
    whole = torch.stack([pictures.photo(names[i % len(names)], (3, 32, 32)) for i in range(number)])
    return F.avg_pool2d(whole, 2)


def audited(module: nn.Module, images: torch.Tensor, labels: list[int], **options: object) -> inversefed.Report:
    return inversefed.audit(
        module, images, torch.tensor(labels), mean=constants.cifar10_mean, std=constants.cifar10_std,
        attack=recipes.peel(), nulls=0, **options,
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("make", [small_resnet, averaged, before])
def test_a_picture_behind_an_average_is_exact(make: object, dtype: torch.dtype) -> None:
    report = audited(make().to(dtype), tiles(2)[1:], [3])
    assert float(report.scores["peak_signal_noise_ratio"]) > 100
    assert report.labels.tolist() == [3] and "exact" in {finding.code for finding in report.findings}


@pytest.mark.slow
@pytest.mark.parametrize("labels", [[3, 5, 7], [4, 4, 1]])
def test_several_pictures_behind_an_average_are_exact(labels: list[int]) -> None:
    report = audited(small_resnet(), tiles(3), labels)
    assert float(report.scores["peak_signal_noise_ratio"].min()) > 90
    assert sorted(report.labels.tolist()) == sorted(labels)


@pytest.mark.slow
def test_a_narrow_residual_network_gives_its_picture_away(photos: torch.Tensor) -> None:
    report = audited(networks.build("ResNet20", seed=0).eval(), photos[1:2], [3])
    assert float(report.scores["peak_signal_noise_ratio"]) > 80


def test_inputs_without_negative_numbers_are_found_where_equations_are_fewer_than_unknowns() -> None:
    torch.manual_seed(0)
    matrix, inputs = torch.randn(60, 64).double(), torch.rand(64, 5).double()
    inputs[:24, :3], inputs[:, 2] = 0, 0  # channels with zeros, one of them with nothing else; two that are always on
    found, settled = by_sign(matrix, matrix @ inputs, 1e-6)
    assert settled.tolist() == [True, True, True, False, False]
    torch.testing.assert_close(found[:, :3], inputs[:, :3], rtol=0, atol=1e-8)
    assert not by_sign(matrix, matrix @ inputs.sub(1), 1e-6)[1][3:].any()


@pytest.mark.slow
def test_the_paper_s_wide_network_gives_its_picture_away_by_default(photos: torch.Tensor) -> None:
    module = networks.build("ResNet20-4", seed=0).eval()
    mean, std = constants.cifar10_mean, constants.cifar10_std
    report = inversefed.audit(module, photos[:1], torch.tensor([3]), mean=mean, std=std, nulls=0)
    # Whether the update comes out the same to 1e-4 as well depends on the processor: a ReLU may stand on its edge.
    assert float(report.scores["peak_signal_noise_ratio"]) > 100
    assert report.reconstruction.made_by.startswith("Peel(")


@pytest.mark.parametrize(
    ("number", "grid", "channels"), [(1, (4, 3), (48, 40)), (3, (3, 3), (48, 40)), (1, (4, 4), (14, 13))]
)
def test_moves_of_the_taps_tell_where_the_relu_was_on(
    number: int, grid: tuple[int, int], channels: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(*channels, 3, padding=1).double()
    inputs = torch.rand(number, channels[0], *grid).double()
    outputs = conv(inputs)
    pull = torch.randn(number, channels[1]).double()
    (gradient,) = torch.autograd.grad((outputs.relu().mean((2, 3)) * pull).sum(), conv.weight)
    open_delta = (pull / (grid[0] * grid[1]))[..., None, None].expand_as(outputs)
    found = pattern_behind_average(gradient, open_delta, 1e-15)
    torch.testing.assert_close(found, (outputs > 0).double(), rtol=0, atol=1e-6)


def test_too_few_channels_for_so_many_places_are_refused() -> None:
    with pytest.raises(UnsupportedNetworkError, match="only 64 channels to tell them apart"):
        audited(averaged(), torch.rand(1, 3, 48, 48), [3])
    alike, share = torch.rand(40, 1, 3, 3).double().expand(40, 48, 3, 3), torch.rand(1, 40, 1, 1).double()
    with pytest.raises(UnsupportedNetworkError, match=r"directions of 9 places apart"):
        pattern_behind_average(alike, share.expand(1, 40, 3, 3), 1e-7)


def test_noise_is_not_taken_for_places() -> None:
    torch.manual_seed(0)
    noise, share = torch.randn(40, 48, 3, 3).double(), torch.rand(1, 40, 1, 1).double().expand(1, 40, 3, 3)
    with pytest.raises(UnsupportedNetworkError, match="do not fit together as moves by one place"):
        pattern_behind_average(noise, share, 1e-7)


def fronts(module: nn.Module, images: torch.Tensor, labels: list[int]) -> tuple[Setting, PeelState, torch.Tensor]:
    """What peeling works on, where it starts, and the normalized truth."""
    network = freeze(module, images.shape[1:], mean=0.5, std=0.25)
    batch = inversefed.Batch(images, torch.tensor(labels))
    update = FedSGD()(network, images, batch.labels)
    observation = inversefed.observe(network, FedSGD(), update, batch, inversefed.ThreatModel())
    gradient = {name: part.double() for name, part in observation.gradient.items()}
    bounds = (torch.zeros(()).double(), torch.ones(()).double())
    setting = Setting(chain(network), gradient, network.image_shape, bounds, torch.finfo(network.dtype).eps)
    return setting, head_of(setting, observation)[0], (images.double() - 0.5) / 0.25


def test_units_on_the_wrong_side_are_found_by_what_they_leave_of_the_equations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    setting, front, truth = fronts(small_resnet(), tiles(1), [3])
    told, guess = [], sides_module._by_value

    def wrong(values: torch.Tensor, slope: float, most: float = 1.0) -> object:
        """The five least values that were on are taken for zeros, and five zeros for values."""
        right = guess(values, slope, most)
        on, flat_values = right.on.clone().flatten(), values.flatten()
        least = torch.where(on, flat_values, torch.inf).topk(5, largest=False).indices
        doubt = right.doubt.clone().flatten()
        off = (~on).nonzero().flatten()[:5]
        for units in (least, off):
            on[units], doubt[units] = ~on[units], 1.0
        told.append(right.on)
        return type(right)(on.reshape(values.shape), doubt.reshape(values.shape))

    monkeypatch.setattr(sides_module, "_by_value", wrong)
    reached = descend(setting, front)
    assert len(told) > 3  # the first of them behind what was solved for
    expected = run(reached.left, truth)
    assert float((reached.values - expected).norm() / expected.norm()) < 1e-4


def test_an_average_that_hides_a_relu_ends_peeling_at_what_came_out_of_it(photos: torch.Tensor) -> None:
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 32, 5, padding=2), nn.ReLU(), nn.AvgPool2d(2)]
    second = [nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 256, 10)]
    setting, front, _ = fronts(nn.Sequential(*first, *second).eval(), photos[:1], [3])
    reached = descend(setting, front)
    assert reached.ended and reached.known and reached.left == setting.layers[:3]
    assert forecast(setting.layers, (3, 32, 32)).left == reached.left
    report = audited(nn.Sequential(*first, *second), photos[:1], [3])
    constant = float(report.baselines["constant"]["peak_signal_noise_ratio"])
    assert float(report.scores["peak_signal_noise_ratio"]) > constant + 20


def eight_layers() -> nn.Module:
    """Three stages of one block, as the networks of small devices have."""
    torch.manual_seed(0)
    return resnet(ResNetSpec((1, 1, 1), 16), 10).eval()


def test_equations_to_spare_at_some_pixels_check_sides_in_front_of_a_stride(photos: torch.Tensor) -> None:
    torch.manual_seed(0)
    first = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(16, 64, 3, 2), nn.ReLU()]
    last = [nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)]
    setting, front, truth = fronts(nn.Sequential(*first, *last).eval(), tiles(1), [3])
    reached = descend(setting, front)  # of every fourth pixel the middle tap alone tells: 64 equations for 64 unknowns
    assert reached.left == setting.layers[:2] == forecast(setting.layers, (3, 16, 16)).left
    expected = run(reached.left, truth)
    assert float((reached.values - expected).norm() / expected.norm()) < 1e-4


@pytest.mark.slow
def test_a_trained_residual_network_gives_its_picture_away() -> None:
    module, private = eight_layers().train(), tiles(8)
    labels = torch.arange(8)
    mean, std = (torch.tensor(part)[:, None, None] for part in (constants.cifar10_mean, constants.cifar10_std))
    optimizer = torch.optim.Adam(module.parameters(), 2e-3)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(module((private - mean) / std), labels).backward()
        optimizer.step()
    scores = [
        float(audited(module.eval(), private[place : place + 1], [place]).scores["peak_signal_noise_ratio"])
        for place in range(3)
    ]
    assert sum(score > 60 for score in scores) >= 2, scores


def test_where_nothing_checks_a_side_peeling_stops(photos: torch.Tensor) -> None:
    setting, front, truth = fronts(small_resnet(), photos[:1], [3])
    reached = descend(setting, front)
    feed = preceding_conv(reached.left[:-1], reached.fork, setting.image_shape)
    assert (
        reached.ended
        and feed is not None
        and not overdetermined(feed, 1)
        and relu_pattern(setting, reached, 0.0) is None
    )
    expected = run(reached.left, truth)
    assert float((reached.values - expected).norm() / expected.norm()) < 1e-4


def test_sums_of_two_ways_are_layers_of_the_chain() -> None:
    network = freeze(before(), (3, 16, 16))
    layers = chain(network)
    both = [layer.module for layer in layers if isinstance(layer.module, Residual)]
    assert [len(each.shortcut) for each in both] == [1, 1, 1, 1] and all(len(each.body) == 6 for each in both)
    assert len(flat(layers)) == len(layers) + sum(len(each.body) + len(each.shortcut) - 1 for each in both)
    images = torch.rand(2, 3, 16, 16).double()
    torch.testing.assert_close(run(layers, images), before().double()(images))


def test_weights_that_run_twice_are_no_chain() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layers = OrderedDict(inner=nn.Conv2d(3, 3, 3, padding=1), head=nn.Linear(48, 5))
            self.layers = nn.ModuleDict(layers)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            inner = self.layers["inner"]
            return self.layers["head"](inner(inner(x)).flatten(1))

    with pytest.raises(UnsupportedNetworkError, match=r"runs layers\.inner twice"):
        chain(freeze(Twice(), (3, 4, 4)))


@pytest.mark.parametrize("axes", [(1,), (2,), (1, 2, 3)])
def test_means_over_other_axes_are_refused(axes: tuple[int, ...]) -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.LazyLinear(5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.mean(axes, keepdim=True).flatten(1))

    module = Mean()
    module(torch.zeros(1, 3, 4, 4))
    with pytest.raises(UnsupportedNetworkError, match="a mean over"):
        chain(freeze(module, (3, 4, 4)))
