"""The networks of 2020 give the weights and logits that the code of 2020 gave for the same seed (on the CPU)."""

import json
import subprocess
import sys
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch

from inversefed.errors import ConfigError, InputError, UnsupportedNetworkError
from inversefed.zoo import constants, networks
from inversefed.zoo.networks.irevnet import space_to_depth

FIGURES = json.loads((Path(__file__).parent / "networks_2020.json").read_text())
SMALL_TORCHVISION = ["squeezenet1_1", "shufflenet_v2_x0_5", "mobilenet_v3_small"]


@pytest.fixture(scope="module")
def formula_image():
    r, c = torch.arange(32, dtype=torch.float64)[:, None], torch.arange(32, dtype=torch.float64)[None]
    waves = [torch.sin(r / 7) * torch.cos(2 * c / 9), torch.cos((r + c) / 11), torch.sin(3 * (r - c) / 13)]
    image = (0.5 + 0.45 * torch.stack(waves)).float()
    mean, std = (torch.tensor(v)[:, None, None] for v in (constants.cifar10_mean, constants.cifar10_std))
    return ((image - mean) / std)[None]


@pytest.mark.parametrize("name", FIGURES)
def test_same_seed_gives_the_weights_of_2020(name, formula_image):
    figures = FIGURES[name]
    network = networks.build(name, seed=0).eval()
    tensors = [parameter.detach() for parameter in network.parameters()]
    assert sum(tensor.numel() for tensor in tensors) == figures["parameters"]
    assert len(tensors) == figures["tensors"]
    parts = (part for tensor in tensors for part in tensor.flatten().split(2**20))  # little memory at a time
    total = sum(part.double().abs().sum().item() for part in parts)
    assert total == pytest.approx(figures["abs_sum"], rel=1e-5)
    assert tensors[0].flatten()[:3].tolist() == pytest.approx(figures["first"], abs=1e-6)
    assert tensors[-1].flatten()[:3].tolist() == pytest.approx(figures["last"], abs=1e-6)
    if "logits" in figures:
        with torch.no_grad():
            assert network(formula_image)[0].tolist() == pytest.approx(figures["logits"], rel=1e-5, abs=1e-4)


def test_there_are_35_names_of_2020_then_three_more_and_torchvision_after_them():
    known = networks.names()
    assert len(known) == len(set(known))
    assert known[35:39] == ("AllConv", "McMahan", "BareViT", "alexnet")
    assert {*FIGURES, "BeyondInferringMNIST", "ConvNet8", "ConvNet16", "ConvNet32", "SRNet1", "SRNet3"} < set(
        known[:35]
    )
    assert "resnet18" in known[38:]


def test_the_first_attention_of_the_bare_transformer_sees_patches_and_positions_as_they_are():
    network = networks.build("BareViT", seed=0).eval()
    images = torch.rand(2, 3, 32, 32)
    seen = []
    network.attention0.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    assert network(images).shape == (2, 10) and network.positions.shape == (1, 65, 128)
    patches = network.embed(images).flatten(2).mT
    assert torch.equal(seen[0][:, 1:], patches + network.positions[:, 1:])
    assert torch.equal(networks.build("BareViT", seed=0).positions, network.positions)


@pytest.mark.parametrize("width", [8, 16, 32, 64])
def test_convnet_has_the_width_of_its_name(width):
    network = networks.build(f"ConvNet{width}", seed=0)
    assert [network.conv0.out_channels, network.conv7.out_channels] == [width, 4 * width]
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "weights", "sizes"),
    [
        ("AllConv", [(32, 3, 3, 3), (64, 32, 3, 3), (128, 64, 3, 3), (10, 8192)], [32, 16, 8]),
        ("McMahan", [(32, 3, 5, 5), (64, 32, 5, 5), (512, 4096), (10, 512)], [32, 16]),
    ],
)
def test_a_network_of_the_benchmark_has_the_layers_of_its_description(name, weights, sizes):
    network = networks.build(name, seed=0).eval()
    assert [tuple(weight.shape) for weight in network.parameters() if weight.ndim > 1] == weights
    seen = []
    for layer in network:
        if isinstance(layer, torch.nn.Conv2d):
            layer.register_forward_hook(lambda _, inputs, outputs: seen.append(outputs.shape[-1]))
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert seen == sizes


@pytest.mark.parametrize(
    "name", ["ConvNet8", "LeNetZhu", "MLP", "TwoLP", "ResNet20", "MobileNet", "DenseNet40", "AllConv", "McMahan"]
)
def test_gray_pictures_and_other_numbers_of_classes(name):
    network = networks.build(name, num_classes=7, num_channels=1, seed=0).eval()
    shape = networks.input_shape(name, num_channels=1)
    assert shape == (1, 32, 32)
    assert network(torch.rand(2, *shape)).shape == (2, 7)


def test_mobilenet_can_be_built_and_keeps_small_pictures_large():
    network = networks.build("MobileNet", seed=0).eval()
    assert network(torch.rand(2, 3, 32, 32)).shape == (2, 10)
    assert network.features(torch.rand(1, 3, 32, 32)).shape[-2:] == (4, 4)


def test_beyond_inferring_mnist_gives_probabilities():
    network = networks.build("BeyondInferringMNIST", seed=0)
    shape = networks.input_shape("BeyondInferringMNIST")
    assert shape == (1, 28, 28)
    with torch.no_grad():
        assert network(torch.rand(2, *shape)).sum(1).tolist() == pytest.approx([1, 1], abs=1e-5)


def test_beyond_inferring_cifar_refuses_cifar_with_the_reason():
    network = networks.build("BeyondInferringCifar", seed=0)
    with pytest.raises(UnsupportedNetworkError, match=r"takes 12544 features, and these pictures give 16384.*28x28"):
        network(torch.rand(1, 3, 32, 32))


@pytest.mark.parametrize("name", ["ConvNet8", "LeNetZhu", "MLP", "AllConv", "McMahan"])
def test_a_picture_of_another_size_is_refused_with_the_name(name):
    with pytest.raises(UnsupportedNetworkError, match=rf"{name}: .* built for 32x32"):
        networks.build(name, seed=0)(torch.rand(1, 3, 64, 64))


@pytest.mark.parametrize("name", ["SRNet1", "SRNet3"])
def test_networks_that_were_never_defined_are_refused(name):
    with pytest.raises(UnsupportedNetworkError, match="never defined"):
        networks.build(name)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ResNet21", {}, r"unknown network 'ResNet21'; did you mean .*ResNet20"),
        ("my_pkg.my_mod.make", {}, "with a colon before its factory: my_pkg.my_mod:make"),
        ("LeNetZhu", {"weights": "DEFAULT"}, "no published weights"),
        ("resnet18", {"num_channels": 1}, r"takes pictures of 3 channel\(s\), not 1"),
        ("iRevNet", {"num_channels": 1}, "3 channel"),
        ("resnet18", {"weights": "IMAGENET1K_V1"}, "pass num_classes=1000"),
        ("resnet18", {"weights": "IMAGENET1K_V7", "num_classes": 1000}, "did you mean IMAGENET1K_V1"),
        ("ConvNet", {"num_classes": 0}, "num_classes=0"),
        ("ConvNet", {"seed": -1}, "a seed lies between"),
    ],
)
def test_what_cannot_be_built_says_why(name, options, message):
    with pytest.raises(ConfigError, match=message):
        networks.build(name, **options)
    with pytest.raises(ConfigError, match="unknown network"):
        networks.input_shape("ResNet21")


@pytest.mark.parametrize("seed", [0, 7, None])
@pytest.mark.parametrize("name", ["LeNetZhu", "ResNet20", "squeezenet1_1"])
def test_building_leaves_the_global_random_state_alone(name, seed):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    networks.build(name, seed=seed)
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_building_leaves_pythons_random_state_alone():
    code = """
import random
from inversefed.zoo import networks
before = random.getstate()
for seed in (0, None):
    networks.build("LeNetZhu", seed=seed)
    assert random.getstate() == before
    with networks.seeding.seeded(3):
        assert random.random() == random.Random(9).random()
"""  # in a process of its own: the type checker of the tests draws from this state
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_failed_build_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    with pytest.raises(UnsupportedNetworkError):
        networks.build("SRNet1", seed=3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", ["ConvNet8", "AllConv", "McMahan", "squeezenet1_1"])
def test_the_seed_alone_decides_the_weights(name):
    def first(seed):
        return next(networks.build(name, seed=seed).parameters())

    assert torch.equal(first(5), first(5))
    assert not torch.equal(first(5), first(6))
    assert not torch.equal(first(None), first(None))


@pytest.mark.parametrize(
    "name", ["ConvNet8", "ResNet20-4-unpooled", "DenseNet40", "iRevNet", "MobileNet", "LeNetZhu", "McMahan"]
)
def test_the_layers_can_be_traced(name, formula_image):
    network = networks.build(name, seed=0).eval()
    traced = torch.fx.symbolic_trace(network)
    with torch.no_grad():
        assert torch.equal(traced(formula_image), network(formula_image))


def test_irevnet_is_invertible_up_to_the_pool():
    network = networks.build("iRevNet", seed=0).double().eval()
    x = torch.rand(1, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        y = network.blocks(x)
        for block in reversed(network.blocks):
            y = undo(block, y)
    assert (y - x).abs().max() < 1e-6


def undo(block, y):
    half = y.shape[1] // 2
    x2, change = y[:, :half], y[:, half:]
    if block.stride == 2:
        x2 = depth_to_space(x2)
    x1 = change - block.residual(x2)
    x1 = depth_to_space(x1) if block.stride == 2 else x1
    x = torch.cat([x1, x2], 1)
    return x[:, : x.shape[1] - block.pad]


def depth_to_space(x):
    n, c, h, w = x.shape
    return x.reshape(n, 2, 2, c // 4, h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // 4, 2 * h, 2 * w)


def test_space_to_depth_orders_row_column_channel():
    x = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert space_to_depth(x).flatten().tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


@pytest.mark.parametrize("name", [*SMALL_TORCHVISION, "googlenet"])
def test_torchvision_networks_return_logits(name):
    network = networks.build(name, num_classes=6, seed=0)
    shape = networks.input_shape(name)
    assert shape == (3, 224, 224)
    assert network(torch.rand(2, 3, 96, 96)).shape == (2, 6)


def test_imagenet_networks_resolve_in_any_spelling():
    network = networks.build_imagenet("MobileNetV2", num_classes=12, seed=0)
    assert type(network).__name__ == "MobileNetV2"
    assert network.features[0][0].stride == (2, 2)
    assert torch.equal(
        networks.build_imagenet("ResNet18", seed=1).fc.bias, networks.build("resnet18", 1000, seed=1).fc.bias
    )
    with pytest.raises(ConfigError, match=r"unknown ImageNet network 'ResNet19'; did you mean .*resnet18"):
        networks.build_imagenet("ResNet19")


def test_sizes_of_networks_for_larger_pictures():
    assert networks.input_shape("inception_v3") == (3, 299, 299)
    assert networks.input_shape("vit_h_14") == (3, 224, 224)
    assert networks.input_shape("vit_h_14", weights="IMAGENET1K_SWAG_E2E_V1") == (3, 518, 518)


def test_weights_come_through_torchvision_and_a_failed_download_is_an_input_error(monkeypatch):
    asked = []

    def offline(url, **_):
        asked.append(url)
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(InputError, match=r"could not be fetched from https://.*no route"):
        networks.build("squeezenet1_1", num_classes=1000, weights="DEFAULT", seed=0)
    assert len(asked) == 1
    networks.build("squeezenet1_1", num_classes=1000, seed=0)
    assert len(asked) == 1


def test_fetched_weights_are_in_the_network(monkeypatch):
    published = networks.build("inception_v3", num_classes=1000, seed=9).state_dict()
    whole = torch_inception_with_head(published)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", lambda url, **_: whole)
    network = networks.build("inception_v3", num_classes=1000, weights="DEFAULT", seed=0)
    assert torch.equal(network.fc.weight, published["fc.weight"])
    assert not any(name.startswith("Aux") for name in network.state_dict())
    assert isinstance(network(torch.rand(2, 3, 75, 75)), torch.Tensor)


def torch_inception_with_head(state):
    import torchvision

    whole = torchvision.models.inception_v3(init_weights=False).state_dict()
    return {name: state.get(name, tensor) for name, tensor in whole.items()}
