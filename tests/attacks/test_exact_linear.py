"""Proposition 3.1 of Geiping et al. (2020): the input of a linear layer with bias, exactly."""

import pytest
import torch
from torch import nn

from inversefed import Batch, FedAvg, FedSGD, ThreatModel, freeze, observe, recipes
from inversefed.attacks.exact.linear import linear_inputs
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.zoo import constants, networks


def seen(network: object, client: object, images: torch.Tensor, labels: torch.Tensor) -> object:
    batch = Batch(images, labels)
    return observe(network, client, client(network, images, labels), batch, ThreatModel())


@pytest.mark.parametrize("name", ["MLP", "TwoLP"])
@pytest.mark.parametrize("client", [FedSGD(), FedAvg(local_steps=3, lr=0.01)])
def test_the_picture_in_front_of_a_first_linear_layer(photos: torch.Tensor, name: str, client: object) -> None:
    network = freeze(networks.build(name, seed=0), (3, 32, 32), mean=constants.cifar10_mean, std=constants.cifar10_std)
    found = recipes.linear()(seen(network, client, photos[:1], torch.tensor([7])), torch.Generator())
    assert float((found.images - photos[:1]).abs().max()) < 1e-5
    assert found.labels.tolist() == [7]


@pytest.mark.parametrize("name", ["LeNetZhu", "ConvNet16", "ResNet20", "MLP"])
def test_the_features_in_front_of_every_linear_layer(photos: torch.Tensor, name: str) -> None:
    network = freeze(networks.build(name, seed=1).eval(), (3, 32, 32))
    found = linear_inputs(network, FedSGD()(network, photos[:1], torch.tensor([2])))
    truth = network.linear_inputs(photos[:1])
    assert set(found) == set(truth)
    for layer, features in truth.items():
        assert float((found[layer] - features.flatten()).abs().max()) < 1e-5 * max(1.0, float(features.abs().max()))


def test_a_layer_without_bias_or_at_many_positions_is_left_out() -> None:
    module = nn.Sequential(nn.Unflatten(3, (2, 4)), nn.Linear(4, 5), nn.Flatten(), nn.Linear(240, 6, bias=False))
    network = freeze(module, (3, 8, 8))
    assert linear_inputs(network, FedSGD()(network, torch.rand(1, 3, 8, 8), torch.tensor([0]))) == {}


def test_it_says_why_it_cannot_be_used(photos: torch.Tensor) -> None:
    mlp = freeze(networks.build("MLP", seed=0), (3, 32, 32))
    with pytest.raises(ThreatModelError, match="one example"):
        recipes.linear()(seen(mlp, FedSGD(), photos, torch.tensor([0, 1])), torch.Generator())
    lenet = freeze(networks.build("LeNetZhu", seed=0), (3, 32, 32))
    with pytest.raises(UnsupportedNetworkError, match="no linear layer with bias sees the flattened picture"):
        recipes.linear()(seen(lenet, FedSGD(), photos[:1], torch.tensor([0])), torch.Generator())
