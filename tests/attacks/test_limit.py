"""The limit of an update: the exact spectrum in double precision, counted ranks, and noise of known size."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from inversefed import Batch, FedAvg, FedSGD, Observation, ThreatModel, defenses, freeze, limit, observe
from inversefed.attacks.identifiability.limit import Tolerances, prior_psnr
from inversefed.controls.null_update import null_observation
from inversefed.errors import InputError, ThreatModelError, UnsupportedNetworkError
from inversefed.fl.clients import Client
from inversefed.fl.simulate import observed
from inversefed.networks.natural_noise import natural_noise
from inversefed.thresholds import MISFIT
from inversefed.zoo import networks, pictures

SHAPE = (3, 8, 8)


def smooth(side: int = 8) -> nn.Module:
    """Sees everything: strided convolutions and no average."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, stride=2), nn.Sigmoid(), nn.Conv2d(12, 12, 3, padding=1), nn.Sigmoid(),
        nn.Flatten(), nn.Linear(3 * side**2, 10),
    )  # fmt: skip


def pooled() -> nn.Module:
    """Loses directions behind its pools."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 20), nn.ReLU(), nn.Linear(20, 10)
    )


def seen(
    module: nn.Module, count: int = 1, client: Client = FedSGD(), side: int = 8, *changes: object
) -> tuple[Observation, Batch]:
    network = freeze(module, (3, side, side), mean=0.5, std=0.25)
    batch = Batch(natural_noise(network, count, seed=3), torch.arange(count) + 1)
    update = client(network, batch.images, batch.labels)
    for change in changes:
        update = change(update, defenses.Context(network, batch), torch.Generator().manual_seed(1))
    return observe(network, client, update, batch, ThreatModel()), batch


def exactly(observation: Observation, batch: Batch, deviations: dict[str, float]) -> tuple[Tensor, int]:
    """The whole spectrum in float64, from the Jacobian: limits in dB, and how many directions are told."""
    wide = observation.to(torch.float64)
    images = batch.images.double().requires_grad_()

    def update(images: Tensor) -> Tensor:
        made = wide.client(wide.network, images, batch.labels)
        return torch.cat([made[name].flatten() / deviations[name] for name in made])

    jacobian = torch.autograd.functional.jacobian(update, images).flatten(1)
    root = _root(*batch.images.shape[1:])
    size, number = len(root), len(images)
    whole = torch.block_diag(*[root] * number)
    _, values, axes = torch.linalg.svd(jacobian @ whole, full_matrices=False)
    open_part = torch.eye(size * number).double() - axes.T @ (axes * (values**2 / (1 + values**2))[:, None])
    spread = (whole @ open_part @ whole).diagonal().view(number, size).mean(dim=1)
    return -10 * spread.log10(), int((values > 1).sum())


def _root(channels: int, height: int, width: int) -> Tensor:
    """C^1/2 by the covariance of every two pixels, written out."""
    rows, columns = torch.fft.fftfreq(height).double(), torch.fft.fftfreq(width).double()
    power = 1 / (rows[:, None] ** 2 + columns**2).clamp(min=1 / max(height, width) ** 2)
    plane = torch.fft.ifft2(power / power.mean() * 0.25**2).real
    where = torch.cartesian_prod(torch.arange(height), torch.arange(width))
    apart = where[:, None] - where
    pixels = plane[apart[..., 0] % height, apart[..., 1] % width] * 1.0
    shared = torch.full((channels, channels), 0.9).double().fill_diagonal_(1.0)
    values, axes = torch.linalg.eigh(torch.kron(shared, pixels))
    return axes * values.clamp(min=0).sqrt() @ axes.T


def rounding(observation: Observation) -> dict[str, float]:
    return {name: 2.0**-24 * float(part.abs().max()) for name, part in observation.update.items()}


@pytest.mark.parametrize("module", [smooth, pooled])
@pytest.mark.parametrize("fewest", [300, 100_000])
def test_the_limit_is_that_of_the_exact_spectrum_hashed_or_whole(module: Callable[[], nn.Module], fewest: int) -> None:
    observation, batch = seen(module())
    found = limit(observation, batch, tolerances=Tolerances(fewest=fewest))
    decibels, told = exactly(observation, batch, rounding(observation))
    assert found.limit_psnr == pytest.approx(decibels.tolist(), abs=1.0)
    assert abs(found.determined[0] - told) <= 0.02 * found.of
    assert (found.of, found.at, found.noise) == (192, "truth", "rounding to float32")


def test_of_a_batch_each_picture_is_judged_beside_the_unknown_others() -> None:
    observation, batch = seen(smooth(6), count=3, side=6)
    found = limit(observation, batch)
    decibels, told = exactly(observation, batch, rounding(observation))
    assert found.limit_psnr == pytest.approx(decibels.tolist(), abs=1.0)
    assert abs(sum(found.determined) - told) <= 0.02 * 3 * found.of


def test_local_steps_have_a_limit_of_their_own() -> None:
    observation, batch = seen(smooth(6), 2, FedAvg(local_steps=2, lr=0.1), 6)
    weights = observation.network.params
    deviations = {name: 2.0**-24 * float(part.detach().abs().max()) for name, part in weights.items()}
    found = limit(observation, batch, seconds=60.0)  # on a loaded machine, too, all of both pictures
    assert found.limit_psnr == pytest.approx(exactly(observation, batch, deviations)[0].tolist(), abs=1.0)


def test_told_directions_are_the_rank_where_pixels_are_averaged() -> None:
    module = nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(48, 10))
    observation, batch = seen(module)
    found = limit(observation, batch)
    assert found.determined == (48,)
    assert found.limit_psnr[0] < 30


def test_ten_times_the_noise_costs_twenty_decibels_until_the_prior_is_left() -> None:
    heights = []
    for std in (1e-6, 1e-5, 1e3):
        observation, batch = seen(smooth(), 1, FedSGD(), 8, defenses.GaussianNoise(std))
        heights.append(limit(observation, batch).limit_psnr[0])
    assert heights[0] - heights[1] == pytest.approx(20.0, abs=1.0)
    assert heights[2] == pytest.approx(prior_psnr(), abs=0.1)


def test_noise_that_is_told_counts_without_the_truth() -> None:
    observation, _ = seen(smooth(), 1, FedSGD(), 8, defenses.GaussianNoise(1e3))
    silent, told = limit(observation), limit(observation, defenses=(defenses.GaussianNoise(1e3),))
    assert silent.at == told.at == "stand-in"
    assert told.limit_psnr[0] == pytest.approx(prior_psnr(), abs=0.1)
    assert "noise" in told.noise
    assert "noise" not in silent.noise


def test_a_clipped_update_holds_as_much_and_half_a_pruned_one_less() -> None:
    plain = limit(*seen(smooth())).limit_psnr[0]
    clipped = limit(*seen(smooth(), 1, FedSGD(), 8, defenses.Clip(1e-2))).limit_psnr[0]
    pruned = limit(*seen(smooth(), 1, FedSGD(), 8, defenses.TopK(0.05)))
    assert clipped == pytest.approx(plain, abs=1.0)
    assert pruned.limit_psnr[0] < plain - 20
    assert pruned.determined[0] < pruned.of


def test_too_little_time_looks_at_a_window_and_none_at_nothing() -> None:
    observation, batch = seen(smooth())
    small = limit(observation, batch, tolerances=Tolerances(most=50))
    whole = limit(observation, batch)
    assert (small.whole, whole.whole) == (False, True)
    assert small.limit_psnr[0] >= whole.limit_psnr[0]
    with pytest.raises(UnsupportedNetworkError, match="longer than"):
        limit(observation, batch, seconds=1e-9)


def test_of_a_batch_as_many_pictures_are_looked_at_as_fit_and_held_to_the_number_of_equations() -> None:
    network = freeze(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), SHAPE)
    images, labels = natural_noise(network, 4), torch.tensor([0, 1, 0, 1])
    update = FedSGD()(network, images, labels)
    found = limit(Observation(network, FedSGD(), update, 4), Batch(images, labels), tolerances=Tolerances(most=200))
    assert found.whole
    assert found.limit_psnr[1:] == found.determined[1:] == (None,) * 3
    assert found.determined[0] is not None
    assert found.determined[0] <= (2 * 192 + 2) // 4


class Opaque(Client):
    """A client whose update does not depend on pictures in any way that torch sees."""

    sends = "gradient"

    def __call__(self, network: object, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        return {name: part.detach() for name, part in FedSGD()(network, images, labels).items()}


def test_what_has_no_derivative_is_refused_in_words() -> None:
    observation, batch = seen(smooth())
    opaque = Observation(observation.network, Opaque(), observation.update, 1)
    with pytest.raises(UnsupportedNetworkError, match="derivative of the update"):
        limit(opaque, batch)
    hidden = observe(observation.network, FedSGD(), observation.update, batch, ThreatModel(client="unknown"))
    with pytest.raises(ThreatModelError, match="derivative of its client"):
        limit(hidden, batch)
    with pytest.raises(InputError, match="pictures of shape"):
        limit(observation, torch.rand(1, 3, 9, 9))
    nothing = {name: torch.zeros_like(part) for name, part in observation.update.items()}
    with pytest.raises(InputError, match="says nothing"):
        limit(Observation(observation.network, FedSGD(), nothing, 1), batch)


def test_frozen_layers_and_dropout_are_looked_at_as_they_are() -> None:
    module = smooth()
    for weight in module[0].parameters():
        weight.requires_grad_(False)
    found = limit(*seen(module))
    assert 0 < found.determined[0] < found.of
    torch.manual_seed(0)
    dropping = nn.Sequential(nn.Flatten(), nn.Linear(192, 30), nn.Dropout(0.5), nn.Linear(30, 10))
    assert math.isfinite(limit(*seen(dropping)).limit_psnr[0])


@pytest.mark.slow
def test_of_a_whole_picture_the_hashed_equations_say_what_all_of_them_say() -> None:
    image = pictures.photo("chelsea", (3, 32, 32))[None]
    observation, batch = observed(networks.build("LeNetZhu", seed=0), image, torch.tensor([3]), mean=0.5, std=0.25)
    hashed = limit(observation, batch, seconds=1000.0)
    whole = limit(observation, batch, seconds=1000.0, tolerances=Tolerances(fewest=10**9))
    assert hashed.determined == whole.determined == (3072,)
    assert hashed.limit_psnr == pytest.approx(whole.limit_psnr, abs=1.0)
    assert 110 < whole.limit_psnr[0] < 130


class _Doubled(torch.autograd.Function):
    """Twice its input, without a forward mode."""

    @staticmethod
    def forward(context, x):
        return 2 * x

    @staticmethod
    def backward(context, slope):
        return 2 * slope


class _Counted(nn.Module):
    calls = 0

    def forward(self, x):
        type(self).calls += 1
        return _Doubled.apply(x)


def test_without_a_forward_mode_the_time_is_looked_at_after_each_column() -> None:
    torch.manual_seed(0)
    network = freeze(nn.Sequential(_Counted(), nn.Flatten(), nn.Linear(192, 4)).eval(), (3, 8, 8))
    truth = Batch(torch.rand(1, 3, 8, 8), torch.tensor([1]))
    observation = Observation(network, FedSGD(), FedSGD()(network, truth.images, truth.labels), 1)
    assert limit(observation, truth).determined == (192,)
    before = _Counted.calls
    with pytest.raises(UnsupportedNetworkError, match="longer than"):
        limit(observation, truth, seconds=1e-6)
    assert _Counted.calls - before < 10  # a window of 12 columns would have taken as many more


def misfit(observation: Observation, batch: Batch) -> float | None:
    return limit(observation, batch, seconds=60.0).misfit


@pytest.mark.parametrize("client", [FedSGD(), pytest.param(FedAvg(local_steps=2, lr=0.01), marks=pytest.mark.slow)])
def test_what_the_truth_leaves_unexplained_is_told_from_noise_where_other_pictures_made_the_update(
    client: Client,
) -> None:
    plain, batch = seen(smooth(), 2, client)
    assert misfit(plain, batch) is None
    parts = [part.detach().square().sum() for part in plain.update.values()]
    size = float((sum(parts) / sum(part.numel() for part in plain.update.values())) ** 0.5)
    for share in (0.1, 1.0):
        noisy, _ = seen(smooth(), 2, client, 8, defenses.GaussianNoise(share * size))
        found = misfit(noisy, batch)
        assert found is not None and found < MISFIT / 1.5
    other = Batch(natural_noise(plain.network, 2, seed=4), batch.labels)
    found = misfit(plain, other)
    assert found is not None and found > 1.5 * MISFIT
    quantized, _ = seen(smooth(), 2, client, 8, defenses.SignQuantization())
    assert misfit(quantized, batch) is None


def test_an_update_of_random_numbers_holds_nothing_of_any_picture() -> None:
    observation, batch = seen(smooth())
    for seed in range(4):
        null = null_observation(observation, torch.Generator().manual_seed(seed))
        assert limit(null, batch, seconds=60.0).limit_psnr[0] < prior_psnr() + 3


def test_examples_that_a_norm_couples_have_a_limit_and_none_is_run_alone() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 10)).train()
    observation, batch = seen(module, 4)  # BatchNorm1d raises a ValueError where it is given one example to train on
    found = limit(observation, batch)
    assert len(found.determined) == 4 and all(0 < each <= 192 for each in found.determined)
