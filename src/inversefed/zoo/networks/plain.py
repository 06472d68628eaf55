"""Chains of layers without skip connections: ConvNet, LeNetZhu, MLP, TwoLP, AllConv, McMahan and "Beyond Inferring".

References:
    Geiping et al., "Inverting Gradients", NeurIPS 2020 (ConvNet, MLP). Zhu et al., "Deep Leakage from Gradients",
    NeurIPS 2019 (LeNetZhu, wide uniform weights and sigmoids). Wang et al., "Beyond Inferring Class Representatives",
    INFOCOM 2019 (the two of that name). McMahan et al., "Communication-Efficient Learning of Deep Networks from
    Decentralized Data", AISTATS 2017 (McMahan, the FedAvg paper's CNN). Springenberg et al., "Striving for Simplicity:
    The All Convolutional Net", ICLR workshop 2015 (strides in place of pooling, as in AllConv).
"""

from collections import OrderedDict
from itertools import pairwise

from torch import nn

from inversefed.zoo.networks.shapes import CIFAR_SIZE, expect_features, require_channels

__all__ = ["ACTIVATIONS", "all_conv", "beyond_inferring", "convnet", "lenet_zhu", "mcmahan", "mlp", "perceptron"]

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}
"""What may stand between the layers of a perceptron, by name."""


def convnet(width: int, num_classes: int, num_channels: int) -> nn.Sequential:
    """Build the VGG-like ConvNet: eight 3x3 convolutions with BatchNorm, two poolings, one linear layer."""
    w = width
    layers: OrderedDict[str, nn.Module] = OrderedDict()

    def block(index: int, inputs: int, outputs: int) -> None:
        layers[f"conv{index}"] = nn.Conv2d(inputs, outputs, 3, padding=1)
        layers[f"bn{index}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{index}"] = nn.ReLU()

    for index, (inputs, outputs) in enumerate([(num_channels, w), (w, 2 * w), (2 * w, 2 * w), (2 * w, 4 * w)]):
        block(index, inputs, outputs)
    block(4, 4 * w, 4 * w)
    block(5, 4 * w, 4 * w)
    layers["pool0"] = nn.MaxPool2d(3)
    nn.Conv2d(4 * w, 4 * w, 3)  # 2020 made conv6 twice and kept the second: the first only draws random numbers
    block(6, 4 * w, 4 * w)
    block(7, 4 * w, 4 * w)
    layers["pool1"] = nn.MaxPool2d(3)
    layers["flatten"] = nn.Flatten()
    layers["linear"] = expect_features(nn.Linear(36 * w, num_classes), f"ConvNet{w}", CIFAR_SIZE)
    return nn.Sequential(layers)


def lenet_zhu(num_classes: int, num_channels: int) -> nn.Sequential:
    """Build the LeNet of Zhu et al. 2019: smooth (sigmoid) and drawn from uniform(-0.5, 0.5), so that DLG works."""
    layers = OrderedDict[str, nn.Module](
        conv0=nn.Conv2d(num_channels, 12, 5, padding=2, stride=2),
        act0=nn.Sigmoid(),
        conv1=nn.Conv2d(12, 12, 5, padding=2, stride=2),
        act1=nn.Sigmoid(),
        conv2=nn.Conv2d(12, 12, 5, padding=2, stride=1),
        act2=nn.Sigmoid(),
        flatten=nn.Flatten(),
        linear=expect_features(nn.Linear(768, num_classes), "LeNetZhu", CIFAR_SIZE),
    )
    network = nn.Sequential(layers)
    for parameter in network.parameters():  # weight, bias, layer by layer: the order of the draws
        nn.init.uniform_(parameter, -0.5, 0.5)
    return network


def mlp(hidden: tuple[int, ...], name: str, num_classes: int, num_channels: int) -> nn.Sequential:
    """Build a perceptron on flattened 32x32 pictures, with ReLU between its layers."""
    network = perceptron(hidden, "relu", num_channels * 32 * 32, num_classes)
    first = network.get_submodule("linear0")
    assert isinstance(first, nn.Linear)
    expect_features(first, name, CIFAR_SIZE)
    return network


def perceptron(hidden: tuple[int, ...], activation: str, features: int, num_classes: int) -> nn.Sequential:
    """Build linear layers on flattened examples.

    Args:
        hidden: outputs of each layer but the last.
        activation: between them, a key of `ACTIVATIONS`.
        features: numbers of an example.
        num_classes: outputs of the last.
    """
    layers = OrderedDict[str, nn.Module](flatten=nn.Flatten())
    for index, (inputs, outputs) in enumerate(pairwise((features, *hidden))):
        layers[f"linear{index}"] = nn.Linear(inputs, outputs)
        layers[f"{activation}{index}"] = ACTIVATIONS[activation]()
    layers[f"linear{len(hidden)}"] = nn.Linear((features, *hidden)[-1], num_classes)
    return nn.Sequential(layers)


def all_conv(num_classes: int, num_channels: int) -> nn.Sequential:
    """Build three 3x3 convolutions with BatchNorm, the last two of stride 2 in place of pooling, and a linear layer."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = num_channels
    for index, (outputs, stride) in enumerate([(32, 1), (64, 2), (128, 2)]):
        layers[f"conv{index}"] = nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride)
        layers[f"bn{index}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{index}"] = nn.ReLU()
        inputs = outputs
    layers["flatten"] = nn.Flatten()
    layers["linear"] = expect_features(nn.Linear(8192, num_classes), "AllConv", CIFAR_SIZE)
    return nn.Sequential(layers)


def mcmahan(num_classes: int, num_channels: int) -> nn.Sequential:
    """Build the CNN of the FedAvg paper: 5x5 convolutions of 32 and 64 channels, each pooled, 512 units; on 32x32."""
    layers = OrderedDict[str, nn.Module](
        conv0=nn.Conv2d(num_channels, 32, 5, padding=2),
        relu0=nn.ReLU(),
        pool0=nn.MaxPool2d(2),
        conv1=nn.Conv2d(32, 64, 5, padding=2),
        relu1=nn.ReLU(),
        pool1=nn.MaxPool2d(2),
        flatten=nn.Flatten(),
        linear0=expect_features(nn.Linear(4096, 512), "McMahan", CIFAR_SIZE),
        relu2=nn.ReLU(),
        linear1=nn.Linear(512, num_classes),
    )
    return nn.Sequential(layers)


def beyond_inferring(name: str, channels: int, num_classes: int, num_channels: int) -> nn.Sequential:
    """Build the network of Wang et al. 2019; it ends in a softmax, and its linear layer is of MNIST's size.

    Raises:
        ConfigError: `num_channels` is not the network's own.
    """
    require_channels(name, num_channels, channels)
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = channels
    for index, (outputs, stride) in enumerate([(32, 2), (64, 1), (128, 2), (256, 1)]):
        layers[f"conv{index}"] = nn.Conv2d(inputs, outputs, 3, padding=1, stride=stride)
        layers[f"act{index}"] = nn.LeakyReLU()
        inputs = outputs
    layers["flatten"] = nn.Flatten()
    advice = "12544 = 256 x 7 x 7, which is 28x28 pictures (MNIST's size): 32x32 never ran through it, in 2020 either."
    layers["linear0"] = expect_features(nn.Linear(12544, 12544), name, advice)
    layers["act4"] = nn.LeakyReLU()
    layers["linear1"] = nn.Linear(12544, num_classes)
    layers["softmax"] = nn.Softmax(dim=1)
    return nn.Sequential(layers)
