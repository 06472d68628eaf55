"""i-RevNet: a network that loses nothing before its last pooling, each block being invertible.

With the channels split in halves (x1, x2), a block gives (x2', x1' + F(x2)), where ' is space-to-depth if the block
has stride 2. So x2 and then x1 can be read back.

Reference:
    Jacobsen, Smeulders, Oyallon, "i-RevNet: Deep Invertible Networks", ICLR 2018.
"""

from typing import no_type_check

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["IRevNet", "space_to_depth"]


@no_type_check
def space_to_depth(x: Tensor, block: int = 2) -> Tensor:
    """Move each `block` x `block` square of pixels into channels, `[n, c, h, w]` to `[n, c b b, h/b, w/b]`.

    The new channels are ordered by row in the square, column in the square, old channel.
    """
    n, c, h, w = x.shape
    squares = x.reshape(n, c, h // block, block, w // block, block)
    return squares.permute(0, 3, 5, 1, 2, 4).reshape(n, c * block * block, h // block, w // block)


class _Block(nn.Module):
    """One invertible block on the two halves, concatenated: `inputs` channels to `2 * outputs`."""

    def __init__(self, inputs: int, outputs: int, stride: int, first: bool) -> None:
        super().__init__()
        self.stride = stride
        self.pad = 2 * outputs - inputs if stride == 1 else 0
        self.middle, inner = (inputs + self.pad) // 2, outputs // 4
        half = inputs + self.pad - self.middle
        layers: list[nn.Module] = [] if first else [nn.BatchNorm2d(half), nn.ReLU()]
        layers += [nn.Conv2d(half, inner, 3, stride, padding=1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()]
        layers += [nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.Dropout(0.1)]
        layers += [nn.BatchNorm2d(inner), nn.ReLU(), nn.Conv2d(inner, outputs, 3, padding=1, bias=False)]
        self.residual = nn.Sequential(*layers)

    @no_type_check  # torch.fx calls it with a stand-in for the tensor
    def forward(self, x: Tensor) -> Tensor:
        if self.pad:
            x = F.pad(x, (0, 0, 0, 0, 0, self.pad))
        x1, x2 = x[:, : self.middle], x[:, self.middle :]
        change = self.residual(x2)
        if self.stride == 2:
            x1, x2 = space_to_depth(x1), space_to_depth(x2)
        return torch.cat([x2, x1 + change], 1)


class IRevNet(nn.Module):
    """The i-RevNet for 32x32 pictures (up to 100 classes) or for 224x224 pictures (more).

    Args:
        num_classes: number of logits; above 100 the ImageNet form is built.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        small = num_classes <= 100
        depths = (18, 18, 18) if small else (6, 16, 72, 6)
        strides = (1, 2, 2) if small else (2, 2, 2, 2)
        widths = (16, 64, 256) if small else (24, 96, 384, 1536)
        self.initial = 1 if small else 2
        channels = 3 * self.initial**2
        blocks: list[nn.Module] = []
        for depth, stride, width in zip(depths, strides, widths, strict=True):
            for index in range(depth):
                blocks.append(_Block(channels, width, stride if index == 0 else 1, first=not blocks))
                channels = 2 * width
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(channels, momentum=0.9)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(channels, num_classes)

    @no_type_check  # torch.fx calls it with a stand-in for the tensor
    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of the pictures `x`, normalized, `[n, 3, h, w]` with sides divisible by 4 (32)."""
        if self.initial > 1:
            x = space_to_depth(x, self.initial)
        x = self.relu(self.bn(self.blocks(x)))
        logits: Tensor = self.linear(self.flatten(self.pool(x)))
        return logits
