"""A ReLU whose input is zero within rounding: the side that the update tells makes an exact result one."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversefed.attacks.exact.edge_units import settled
from inversefed.attacks.exact.verify import matched
from inversefed.attacks.matching_error import matching_error
from inversefed.fl.clients import FedSGD
from inversefed.fl.network import freeze
from inversefed.fl.threat import Observation
from inversefed.thresholds import EXACT

EDGES = 3


class Functional(nn.Module):
    """ReLU as a function, as people write it into `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(48, 12), nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(F.relu(self.first(images.flatten(1))))


def on_the_edge(relu_as: str) -> tuple[Observation, Tensor, Tensor, Tensor]:
    """An update, its picture, its label, and a picture of a few roundings beside it for which units turned over."""
    torch.manual_seed(0)
    module = Functional()
    with torch.no_grad():
        module.head.weight[:, :EDGES] *= 0.05  # parts of the update as small as those of a unit among thousands
        module.first.weight[EDGES:].mul_(20)
    image, label = torch.rand(1, 3, 4, 4), torch.tensor([2])
    with torch.no_grad():  # zero within rounding, but on
        inside = module.first.weight[:EDGES].double() @ image.double().flatten()
        module.first.bias[:EDGES] = (3e-7 - inside).float()
    layers = nn.Sequential(nn.Flatten(), module.first, nn.ReLU(), module.head)
    network = freeze(layers if relu_as == "layer" else module, (3, 4, 4))
    observation = Observation(network, FedSGD(), FedSGD()(network, image, label), 1)
    rows = module.first.weight[:EDGES].detach()
    beside = image - 3e-6 * (torch.linalg.pinv(rows) @ torch.ones(EDGES)).view_as(image)
    return observation, image, label, beside


@pytest.mark.parametrize("relu_as", ["layer", "function"])
def test_units_within_rounding_of_zero_are_turned_to_the_side_that_the_update_tells(relu_as: str) -> None:
    observation, image, label, beside = on_the_edge(relu_as)
    assert EXACT < matching_error(observation, beside, label) < 1e-3
    found, cost = matched(observation, beside, label)
    assert cost < EXACT
    assert cost == matching_error(observation, found, label)
    assert float((found - image).abs().max()) < 2e-5


def test_it_ends_where_it_is_told_to_and_leaves_other_differences_alone() -> None:
    observation, image, label, beside = on_the_edge("layer")
    cost = matching_error(observation, beside, label)
    stopped = settled(observation, beside, label, cost, lambda: True)
    assert stopped[0] is beside and stopped[1] == cost
    darker = image * 0.99  # no rounding
    cost = matching_error(observation, darker, label)
    assert settled(observation, darker, label, cost, lambda: False)[1] > EXACT
