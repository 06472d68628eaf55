"""Densely connected networks for small pictures: each layer sees all maps before it (Huang et al., CVPR 2017)."""

from typing import no_type_check

import torch
from torch import Tensor, nn

from inversefed.zoo.networks.shapes import CIFAR_SIZE, expect_features

__all__ = ["densenet40"]


class _DenseLayer(nn.Module):
    """A bottleneck layer that puts `growth` new maps in front of the old ones."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
        self.relu = nn.ReLU()

    @no_type_check  # torch.fx calls it with a stand-in for the tensor
    def forward(self, x: Tensor) -> Tensor:
        new = self.conv1(self.relu(self.bn1(x)))
        new = self.conv2(self.relu(self.bn2(new)))
        return torch.cat([new, x], 1)


def densenet40(growth: int, num_classes: int, num_channels: int = 3) -> nn.Sequential:
    """Build three dense parts of six bottleneck layers, for 32x32 pictures.

    Args:
        growth: maps that each layer adds, the paper's `k`.
        num_classes: number of logits.
        num_channels: channels of the pictures.
    """
    channels = 2 * growth
    layers: list[nn.Module] = [nn.Conv2d(num_channels, channels, 3, padding=1, bias=False)]
    for part in range(3):
        layers += [_DenseLayer(channels + index * growth, growth) for index in range(6)]
        channels += 6 * growth
        if part < 2:
            layers.append(_transition(channels))
            channels //= 2
    layers += [nn.BatchNorm2d(channels), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten()]
    linear = expect_features(nn.Linear(channels * 4, num_classes), "DenseNet40", CIFAR_SIZE)
    return nn.Sequential(*layers, linear)


def _transition(channels: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, channels // 2, 1, bias=False)
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), conv, nn.AvgPool2d(2))
