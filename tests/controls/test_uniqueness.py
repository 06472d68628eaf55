"""What an update does not show of a change of its pictures, beside what is known of the network."""

from dataclasses import replace

import pytest
import torch
from torch import Generator, nn

from inversefed import FedAvg, FedSGD, ThreatModel, recipes
from inversefed.assessment import Assessment
from inversefed.controls.runs import ControlRuns
from inversefed.controls.uniqueness import undetermined_share
from inversefed.fl.clients import Client
from inversefed.fl.simulate import observed


def share(module: nn.Module, client: Client = FedSGD(), count: int = 1) -> torch.Tensor:
    images = torch.rand(count, 3, 8, 8, generator=Generator().manual_seed(1))
    observation, truth = observed(module.eval(), images, torch.arange(count), client=client)
    return undetermined_share(observation, truth.images, truth.labels, Generator().manual_seed(0))


@pytest.fixture(autouse=True)
def weights() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("client", [FedSGD(), FedAvg(local_steps=6, lr=1e-2)])
def test_a_linear_layer_that_sees_the_picture_settles_it(client: Client) -> None:
    assert share(nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), client) < 1e-6


@pytest.mark.parametrize("side", [2, 4])
def test_an_average_leaves_open_what_it_averages_over(side: int) -> None:
    left = share(nn.Sequential(nn.AvgPool2d(side), nn.Flatten(), nn.Linear(3 * (8 // side) ** 2, 60)))
    assert float(left) == pytest.approx(1 - 1 / side**2, abs=0.12)


def test_pixels_that_no_window_reaches_stay_open_to_peeling_and_to_the_update() -> None:
    module = nn.Sequential(nn.Conv2d(3, 32, 3, 2), nn.LeakyReLU(), nn.Flatten(), nn.Linear(288, 4)).eval()
    assert float(share(module)) == pytest.approx(15 / 64, abs=1e-4)  # the last row and the last column
    observation, _ = observed(module, torch.rand(1, 3, 8, 8), torch.tensor([1]))
    found = recipes.peel()(observation, Generator())
    assert found.findings[0].evidence["unseen"] == pytest.approx(15 / 64, abs=1e-4)


def test_pictures_of_a_batch_are_told_apart() -> None:
    """Of two pictures that switch on other units, one has too few of them."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 40), nn.ReLU(), nn.Linear(40, 4))
    with torch.no_grad():
        module[1].weight.copy_(-torch.rand(40, 192))
        module[1].bias.copy_(-module[1].weight.sum(dim=1) * 0.6)
    images = torch.cat([torch.full((1, 3, 8, 8), 0.3), torch.full((1, 3, 8, 8), 0.9)])
    observation, truth = observed(module.eval(), images, torch.tensor([1, 2]))
    left = undetermined_share(observation, truth.images, truth.labels, Generator().manual_seed(0))
    assert left[0] < 1e-4 and left[1] == 1.0


def test_a_network_that_cannot_be_differentiated_twice_shows_nothing() -> None:
    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx, inputs):
            return inputs.clone()

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, gradient):
            return gradient

    class Layer(nn.Module):
        def forward(self, inputs):
            return Once.apply(inputs)

    assert share(nn.Sequential(nn.Flatten(), Layer(), nn.Linear(192, 10), Layer())) == 1.0


def test_where_time_ends_the_look_nothing_is_proven_and_the_audit_says_why() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    observation, truth = observed(module, torch.rand(1, 3, 8, 8), torch.tensor([3]))
    stopped = undetermined_share(observation, truth.images, truth.labels, Generator().manual_seed(0), stop=lambda: True)
    assert float(stopped) == 1.0
    found = replace(recipes.linear()(observation, Generator()), undetermined=None)
    whole, cut = (Assessment(observation, None, ThreatModel(), found, until=until) for until in (None, 0.0))
    assert bool(whole.exact.all()) and not whole.evidence(ControlRuns()).why
    assert cut.reproduces and not bool(cut.exact.any())
    assert "no time to look" in cut.evidence(ControlRuns()).why
