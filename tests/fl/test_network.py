"""Any module works, and none is touched."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from inversefed import FedSGD, freeze
from inversefed.errors import InputError, UnsupportedNetworkError
from inversefed.zoo import networks

SHAPE = (3, 8, 8)


class Attention(nn.Module):
    """A stranger's transformer: patches, LayerNorm, attention with and without nn.MultiheadAttention."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, 4)
        self.norm = nn.LayerNorm(16)
        self.attend = nn.MultiheadAttention(16, 2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        normed = self.norm(tokens)
        tokens = tokens + self.attend(normed, normed, normed, need_weights=False)[0]
        tokens = tokens + F.scaled_dot_product_attention(normed, normed, normed)
        return self.head(tokens.mean(1))


class Tied(nn.Module):
    """Two layers that share their weights, and one that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(192, 192), nn.Linear(192, 192)
        self.second.weight = self.first.weight
        self.unused, self.head = nn.Linear(3, 3), nn.Linear(192, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.tanh(self.second(torch.tanh(self.first(x.flatten(1))))))


def conv(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), *layers, nn.Flatten(), nn.Linear(512, 4, bias=False)
    )


def parametrized() -> nn.Module:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(192, 4))
    return nn.Sequential(nn.Flatten(), layer)


MODULES = {
    "group-norm": lambda: conv(nn.GroupNorm(2, 8), nn.GELU()),
    "bias-free": lambda: conv(nn.Softplus()),
    "batch-norm": lambda: conv(nn.BatchNorm2d(8), nn.Tanh()),
    "instance-norm": lambda: conv(nn.InstanceNorm2d(8, affine=True, track_running_stats=True), nn.Tanh()),
    "dropout": lambda: conv(nn.Tanh(), nn.Dropout(0.5)),
    "attention": Attention,
    "tied": Tied,
    "parametrized": parametrized,
}


def snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_gradient_equals_plain_pytorch_and_can_be_differentiated(name: str, training: bool) -> None:
    torch.manual_seed(3)
    module = MODULES[name]().double().train(training)
    before, state = snapshot(module), torch.get_rng_state()
    images, labels = torch.rand(2, *SHAPE, dtype=torch.float64), torch.tensor([1, 3])
    state = torch.get_rng_state()
    network = freeze(module, SHAPE, mean=0.4, std=0.3)
    network = network.with_masks(5)

    update = FedSGD()(network, images, labels)

    torch.manual_seed(5)  # the same dropout masks
    reference = copy.deepcopy(module)
    loss = F.cross_entropy(reference((images - 0.4) / 0.3), labels)
    expected = torch.autograd.grad(loss, list(reference.parameters()), materialize_grads=True)
    torch.set_rng_state(state)
    assert list(update) == [key for key, _ in module.named_parameters()]
    for ours, theirs in zip(update.values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)

    guess = images.clone().requires_grad_()
    value = sum(part.square().sum() for part in FedSGD()(network, guess, labels).values())
    (slope,) = torch.autograd.grad(value, guess)
    step = torch.zeros_like(images)
    step[0, 1, 2, 3] = 1e-5
    with torch.no_grad():
        up, down = (
            sum(part.square().sum() for part in FedSGD()(network, images + sign * step, labels).values())
            for sign in (1, -1)
        )
    assert float((up - down) / 2e-5) == pytest.approx(float(slope[0, 1, 2, 3]), rel=1e-4, abs=1e-9)

    assert module.training is training and all(p.grad is None for p in module.parameters())
    assert torch.equal(torch.get_rng_state(), state)
    for key, value in module.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_a_frozen_network_is_a_snapshot(tiny: nn.Module) -> None:
    network = freeze(tiny, SHAPE)
    images = torch.rand(1, *SHAPE)
    before = network.features(images)
    with torch.no_grad():
        tiny[0].weight.mul_(2.0)
    assert torch.equal(network.features(images), before)


def test_frozen_parameters_are_no_part_of_the_update(tiny: nn.Module) -> None:
    tiny[0].requires_grad_(False)
    network = freeze(tiny, SHAPE)
    assert list(network.params) == ["3.weight", "3.bias"]
    assert list(FedSGD()(network, torch.rand(1, *SHAPE), torch.tensor([0]))) == ["3.weight", "3.bias"]


def test_normalization_belongs_to_the_network(tiny: nn.Module) -> None:
    network = freeze(tiny, SHAPE, mean=[0.1, 0.2, 0.3], std=torch.tensor([1.0, 2.0, 4.0])[:, None, None])
    images = torch.rand(2, *SHAPE)
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    torch.testing.assert_close(network.features(images), tiny((images - mean) / std).detach())
    torch.testing.assert_close(network.denormalize(network.normalize(images)), images)


@pytest.mark.parametrize(
    ("name", "head"), [("LeNetZhu", "fc.0"), ("ResNet20", "fc"), ("MLP", None), ("squeezenet1_1", "classifier.1")]
)
def test_the_head_is_found_by_running_the_network(name: str, head: str | None) -> None:
    module = networks.build(name, num_classes=10, seed=0)
    shape = (3, 64, 64) if name == "squeezenet1_1" else (3, 32, 32)
    network = freeze(module, shape)
    assert network.num_classes == 10
    assert network.params[f"{network.head}.weight"].shape[0] == 10
    if head is not None and name != "LeNetZhu":
        assert network.head == head


def test_random_layers_in_train_mode_are_a_function_of_the_mask_seed() -> None:
    network = freeze(conv(nn.Dropout(0.5)).train(), SHAPE)
    images = torch.rand(1, *SHAPE)
    assert torch.equal(network.features(images), network.features(images))
    assert not torch.equal(network.features(images), network.with_masks(1).features(images))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(5, 2)), "cannot run on images"),
        (nn.Conv2d(3, 4, 3), "logits"),
        (nn.Sequential(nn.Flatten(), nn.ReLU()), "no trainable parameters"),
        (nn.GRU(8, 2), "cannot run|logits"),
    ],
)
def test_modules_that_cannot_be_audited_are_refused_with_the_reason(module: nn.Module, reason: str) -> None:
    with pytest.raises(UnsupportedNetworkError, match=reason):
        freeze(module, SHAPE)


@pytest.mark.parametrize("bad", [{"mean": [0.1, 0.2]}, {"std": 0.0}, {"std": float("nan")}, {"mean": float("inf")}])
def test_normalization_that_does_not_fit_is_refused(tiny: nn.Module, bad: dict) -> None:
    with pytest.raises(InputError):
        freeze(tiny, SHAPE, **bad)


def test_a_shape_that_is_none_is_refused(tiny: nn.Module) -> None:
    with pytest.raises(InputError, match="channels, height, width"):
        freeze(tiny, (3, 0, 8))


def test_functional_call_is_what_runs(tiny: nn.Module) -> None:
    network = freeze(tiny, SHAPE)
    images = torch.rand(1, *SHAPE)
    doubled = {name: 2 * value for name, value in network.params.items()}
    torch.testing.assert_close(network.apply(doubled, images), functional_call(tiny, doubled, (images,)))


def test_pixels_that_are_inputs_already_are_not_rounded_again(tiny: nn.Module) -> None:
    network, images = freeze(tiny, SHAPE), torch.rand(1, *SHAPE)
    assert network.normalize(images) is images and network.denormalize(images) is images
