"""Residual networks in their CIFAR form: a 3x3 stem, no first pooling, three or four stages (He et al., CVPR 2016).

The blocks are torchvision's, with 64 as the base width inside a block whatever the network's own width.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

__all__ = ["SPECS", "ResNetSpec", "resnet"]


@dataclass(frozen=True)
class ResNetSpec:
    """What sets one residual network apart.

    Args:
        depths: blocks in each stage.
        width: channels of the first stage; each later stage doubles them.
        bottleneck: three convolutions a block (expansion 4) instead of two.
        strides: of each stage; `None` is 1, 2, 2, ...
        max_pool: take the maximum over the last maps instead of the average.
    """

    depths: tuple[int, ...]
    width: int = 64
    bottleneck: bool = False
    strides: tuple[int, ...] | None = None
    max_pool: bool = False

    def stages(self) -> Iterable[tuple[int, int, int]]:
        """Return the channels, blocks and stride of each stage."""
        strides = self.strides or (1, *[2] * (len(self.depths) - 1))
        widths = [self.width * 2**index for index in range(len(self.depths))]
        return zip(widths, self.depths, strides, strict=True)


SPECS = {
    "ResNet20": ResNetSpec((3, 3, 3), 16),
    "ResNet20-nostride": ResNetSpec((3, 3, 3), 16, strides=(1, 1, 1)),
    "ResNet20-10": ResNetSpec((3, 3, 3), 160),
    "ResNet20-4": ResNetSpec((3, 3, 3), 64),
    "ResNet20-4-unpooled": ResNetSpec((3, 3, 3), 64, max_pool=True),
    "ResNet28-10": ResNetSpec((4, 4, 4), 160),
    "ResNet32": ResNetSpec((5, 5, 5), 16),
    "ResNet32-10": ResNetSpec((5, 5, 5), 160),
    "ResNet44": ResNetSpec((7, 7, 7), 16),
    "ResNet56": ResNetSpec((9, 9, 9), 16),
    "ResNet110": ResNetSpec((18, 18, 18), 16),
    "ResNet18": ResNetSpec((2, 2, 2, 2)),
    "ResNet34": ResNetSpec((3, 4, 6, 3)),
    "ResNet50": ResNetSpec((3, 4, 6, 3), bottleneck=True),
    "ResNet50-2": ResNetSpec((3, 4, 6, 3), 128, bottleneck=True),
    "ResNet101": ResNetSpec((3, 4, 23, 3), bottleneck=True),
    "ResNet152": ResNetSpec((3, 8, 36, 3), bottleneck=True),
}
"""The residual networks by their names of 2020; `-4` and `-10` are widths of 4 and 10 times 16."""


def resnet(spec: ResNetSpec, num_classes: int, num_channels: int = 3) -> nn.Sequential:
    """Build a residual network for small pictures of any size.

    Args:
        spec: depths, width and kind of block.
        num_classes: number of logits.
        num_channels: channels of the pictures.
    """
    from torchvision.models.resnet import BasicBlock, Bottleneck

    block = Bottleneck if spec.bottleneck else BasicBlock
    layers = OrderedDict[str, nn.Module](
        conv1=nn.Conv2d(num_channels, spec.width, 3, padding=1, bias=False),
        bn1=nn.BatchNorm2d(spec.width),
        relu=nn.ReLU(inplace=True),
    )
    channels, stages = spec.width, []
    for width, depth, stride in spec.stages():
        stages.append(_stage(block, channels, width, depth, stride))
        channels = width * block.expansion
    layers["layers"] = nn.Sequential(*stages)
    layers["pool"] = nn.AdaptiveMaxPool2d(1) if spec.max_pool else nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, num_classes)
    network = nn.Sequential(layers)
    _initialize(network)
    return network


def _stage(block: Any, inputs: int, width: int, depth: int, stride: int) -> nn.Sequential:
    outputs = width * block.expansion
    shortcut = None
    if stride != 1 or inputs != outputs:
        shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    first = block(inputs, width, stride, shortcut)
    return nn.Sequential(first, *[block(outputs, width) for _ in range(depth - 1)])


def _initialize(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
