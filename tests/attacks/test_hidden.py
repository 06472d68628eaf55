"""A head of zeros: no gradient comes back through it, and audit and inspection say so."""

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import inversefed
from inversefed import FedAvg, FedSGD, Observation, recipes
from inversefed.attacks.identifiability.identify import identify
from inversefed.zoo import networks


def transformer() -> VisionTransformer:
    """torchvision's, whose head starts at zero."""
    torch.manual_seed(0)
    return VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=32, mlp_dim=32, num_classes=10).eval()


def convolutional() -> nn.Module:
    module = networks.build("LeNetZhu", seed=0)
    nn.init.zeros_(module.get_submodule(str(inversefed.freeze(module, (3, 32, 32)).head)).weight)
    return module


def codes(module: nn.Module, images: Tensor, **options: object) -> list[str]:
    search = recipes.geiping(max_iterations=1)
    report = inversefed.audit(module, images, torch.tensor([4]), attack=search, nulls=0, **options)
    return [finding.code for finding in report.findings]


def test_an_audit_says_that_a_head_of_zeros_stops_all_gradients(photos: Tensor) -> None:
    assert "zero-head" in codes(transformer(), photos[:1])
    assert "zero-head" in codes(convolutional(), photos[:1])


def test_it_is_not_said_where_a_gradient_comes_back(photos: Tensor) -> None:
    assert "zero-head" not in codes(networks.build("LeNetZhu", seed=0), photos[:1])
    assert "zero-head" not in codes(transformer(), photos[:1], client=FedAvg(local_steps=2, lr=0.1))


def test_an_inspection_says_what_is_left(photos: Tensor) -> None:
    network = inversefed.freeze(transformer(), (3, 32, 32))
    update = FedSGD()(network, photos, torch.tensor([4, 2]))
    (finding,) = [
        each for each in identify(Observation(network, FedSGD(), update, 2)).limits if each.code == "zero-head"
    ]
    assert "only what goes into the head, 32 numbers an example" in finding.message
