"""Layers whose weights have no gradient of their own in the update: exact methods stop there, the search goes on."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from inversefed import audit, freeze
from inversefed.attacks import recipes
from inversefed.attacks.identifiability.identify import identify
from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.simulate import observed
from inversefed.networks.layer_chain import chain, flat
from inversefed.zoo import networks, pictures

IMAGE, LABEL = pictures.photo("chelsea", (3, 16, 16))[None], torch.tensor([3])


def smooth() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Sigmoid(), nn.Conv2d(16, 16, 3, padding=1), nn.Sigmoid(),
        nn.Flatten(), nn.Linear(1024, 48), nn.Sigmoid(), nn.Linear(48, 10),
    ).eval()  # fmt: skip


def frozen(*parts: int) -> nn.Sequential:
    module = smooth()
    for part in parts:
        module[part].requires_grad_(False)
    return module


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.head = nn.Linear(768, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.second(self.first(x).sigmoid()).sigmoid().flatten(1))


def normed() -> nn.Sequential:
    module = smooth()
    nn.utils.parametrizations.weight_norm(module[2])
    return module


def adapters() -> nn.Sequential:
    module = smooth().requires_grad_(False)
    module.insert(5, nn.Sequential(nn.Linear(1024, 4, bias=False), nn.Linear(4, 1024, bias=False)))
    return module


def bias_only() -> nn.Sequential:
    module = smooth()
    for name, weight in module.named_parameters():
        weight.requires_grad_(name.endswith("bias"))
    return module


@pytest.mark.parametrize(
    "build",
    [*(lambda p=p: frozen(*p) for p in [(0,), (2,), (5,), (7,), (0, 2), (0, 2, 5)]), Tied, normed, adapters, bias_only],
)
def test_the_search_goes_on_where_exact_methods_stop(build: Callable[[], nn.Module]) -> None:
    report = audit(build(), IMAGE, LABEL, max_iterations=2, nulls=0)
    chosen = next(f.message for f in report.findings if f.code == "attack-chosen")
    assert report.images.isfinite().all()
    assert "Error" not in chosen  # no method failed with an error that is not ours
    assert identify(observed(build(), IMAGE, LABEL)[0]).verdict


def test_the_first_layer_frozen_is_solved_behind() -> None:
    report = audit(frozen(0), IMAGE, LABEL, attack=recipes.peel(), nulls=0)
    assert report.scores["peak_signal_noise_ratio"] > 80


def test_only_the_head_is_enough_where_it_sees_as_much_as_the_picture_holds() -> None:
    module = nn.Sequential(*smooth()[:2], nn.Flatten(), nn.Linear(256, 10)).requires_grad_(False)
    module[-1].requires_grad_(True)
    report = audit(module.eval(), pictures.photo("chelsea", (3, 8, 8))[None], LABEL, nulls=0)
    assert report.scores["peak_signal_noise_ratio"] > 60


@pytest.mark.parametrize(
    ("build", "without"),
    [(lambda: frozen(2), {"2"}), (Tied, {"first", "second"}), (normed, {"2"}), (smooth, set())],
)
def test_a_layer_says_whether_the_update_holds_its_gradient(build: Callable[[], nn.Module], without: set) -> None:
    layers = flat(chain(freeze(build(), (3, 16, 16))))
    assert {layer.name for layer in layers if not layer.trained} == without


@pytest.mark.parametrize("build", [lambda: frozen(5), lambda: frozen(2, 5), bias_only])
def test_peel_says_which_layer_it_stops_at(build: Callable[[], nn.Module]) -> None:
    observation, _ = observed(build(), IMAGE, LABEL)
    with pytest.raises(UnsupportedNetworkError, match=r"no gradient of (5|7)\.weight|last linear layer"):
        recipes.peel()(observation, torch.Generator())


def test_a_frozen_residual_network_is_searched() -> None:
    module = networks.build("ResNet20", seed=0).requires_grad_(False)
    list(module.modules())[-1].requires_grad_(True)
    assert audit(module.eval(), IMAGE, LABEL, max_iterations=2, nulls=0).images.isfinite().all()
