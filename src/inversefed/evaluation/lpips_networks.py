"""The networks that LPIPS takes features from, as functions of their weights: no layer here has a state of its own.

AlexNet, VGG-16, SqueezeNet 1.1 as torchvision has them, and the AlexNet of ST-LPIPS, which blurs before it skips
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["TRUNKS", "Trunk"]

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Trunk:
    """One network, up to where LPIPS looks.

    Args:
        features: (convolutions by name, normalized images) -> the features of each depth.
        first: shape of the first convolution, by which files are told apart.
        names: what its convolutions are called in torchvision's file: in `features.`, without `.weight`.
        slices: how many of them belong to each depth; the package lpips names a depth in front.
        channels: how many features each depth has.
        least: the smallest side of a picture.
        heads: the name of its channel weights in torchmetrics; nothing where they come with the network.
    """

    features: Callable[[Weights, Tensor], list[Tensor]]
    first: tuple[int, ...]
    names: tuple[str, ...]
    slices: tuple[int, ...]
    channels: tuple[int, ...]
    least: int
    heads: str = ""

    @property
    def depths(self) -> int:
        """How many depths are looked at."""
        return len(self.channels)

    def fits(self, tensors: Weights) -> bool:
        """Whether a file has all of its convolutions."""
        for spelled in self._spellings():
            names = set(spelled.values())
            if names <= tensors.keys() and tuple(tensors[next(iter(spelled.values()))].shape) == self.first:
                return True
        return False

    def convolutions(self, tensors: Weights) -> dict[str, Tensor]:
        """Its weights and biases, under torchvision's names without the `features.` in front."""
        spelled = next(each for each in self._spellings() if set(each.values()) <= tensors.keys())
        return {name: tensors[theirs] for name, theirs in spelled.items()}

    def _spellings(self) -> list[dict[str, str]]:
        """What each tensor is called by the package lpips, by torchmetrics, and by torchvision."""
        parts = [f"{name}.{part}" for name in self.names for part in ("weight", "bias")]
        depth_of = [depth for depth, count in enumerate(self.slices, start=1) for _ in range(2 * count)]
        lpips = {part: f"net.slice{depth}.{part}" for part, depth in zip(parts, depth_of, strict=True)}
        metrics = {part: f"net.slices.{depth - 1}.{part}" for part, depth in zip(parts, depth_of, strict=True)}
        return [lpips, metrics, *([{part: f"features.{part}" for part in parts}] if self.heads else [])]


def _convolved(w: Weights, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    return F.relu(F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding))


def _alex(w: Weights, x: Tensor) -> list[Tensor]:
    one = _convolved(w, "0", x, 4, 2)
    two = _convolved(w, "3", F.max_pool2d(one, 3, 2), padding=2)
    three = _convolved(w, "6", F.max_pool2d(two, 3, 2), padding=1)
    four = _convolved(w, "8", three, padding=1)
    return [one, two, three, four, _convolved(w, "10", four, padding=1)]


_VGG = (("0", "2"), ("5", "7"), ("10", "12", "14"), ("17", "19", "21"), ("24", "26", "28"))


def _vgg(w: Weights, x: Tensor) -> list[Tensor]:
    found: list[Tensor] = []
    for names in _VGG:
        x = F.max_pool2d(x, 2, 2) if found else x
        for name in names:
            x = _convolved(w, name, x, padding=1)
        found.append(x)
    return found


_FIRES = (("3", "4"), ("6", "7"), ("9",), ("10",), ("11",), ("12",))
_POOLED = {"3", "6", "9"}


def _squeeze(w: Weights, x: Tensor) -> list[Tensor]:
    found = [_convolved(w, "0", x, 2)]
    for names in _FIRES:
        x = found[-1]
        for name in names:
            x = F.max_pool2d(x, 3, 2, ceil_mode=True) if name in _POOLED else x
            x = _convolved(w, f"{name}.squeeze", x)
            x = torch.cat(
                [_convolved(w, f"{name}.expand1x1", x), _convolved(w, f"{name}.expand3x3", x, padding=1)], dim=1
            )
        found.append(x)
    return found


def _halved(x: Tensor) -> Tensor:
    """Every second pixel, after a blur of 3 x 3 (R. Zhang, arXiv 1904.11486)."""
    line = torch.tensor([1.0, 2.0, 1.0], device=x.device) / 4
    blur = torch.outer(line, line).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), mode="reflect"), blur, stride=2, groups=x.shape[1])


def _shift_tolerant(w: Weights, x: Tensor) -> list[Tensor]:
    one = F.relu(_halved(F.conv2d(x, w["0.weight"], w["0.bias"], padding=2)))
    two = _convolved(w, "5", _halved(F.max_pool2d(one, 3, 1)), padding=2)
    three = _convolved(w, "9", _halved(F.max_pool2d(two, 3, 1)), padding=1)
    four = _convolved(w, "11", three, padding=1)
    return [one, two, three, four, _convolved(w, "13", four, padding=1)]


def _fires(*numbers: int) -> tuple[str, ...]:
    return tuple(f"{number}.{part}" for number in numbers for part in ("squeeze", "expand1x1", "expand3x3"))


_ALEX_CHANNELS = (64, 192, 384, 256, 256)

TRUNKS: Mapping[str, Trunk] = {
    "LPIPS (alex)": Trunk(
        _alex, (64, 3, 11, 11), ("0", "3", "6", "8", "10"), (1,) * 5, _ALEX_CHANNELS, least=31, heads="alex"
    ),
    "LPIPS (vgg)": Trunk(
        _vgg,
        (64, 3, 3, 3),
        tuple(name for names in _VGG for name in names),
        tuple(map(len, _VGG)),
        (64, 128, 256, 512, 512),
        least=16,
        heads="vgg",
    ),
    "LPIPS (squeeze)": Trunk(
        _squeeze,
        (64, 3, 3, 3),
        ("0", *_fires(3, 4, 6, 7, 9, 10, 11, 12)),
        (1, 6, 6, 3, 3, 3, 3),
        (64, 128, 256, 384, 384, 512, 512),
        least=17,
        heads="squeeze",
    ),
    "ST-LPIPS (alex)": Trunk(
        _shift_tolerant, (64, 3, 11, 11), ("0", "5", "9", "11", "13"), (1,) * 5, _ALEX_CHANNELS, 32
    ),
}
"""Every network that is known, by the name of its metric."""
