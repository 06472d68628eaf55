"""Automatic transformation: a client trains on transformed pictures, whose gradients invert worse.

    x' = T_3(T_2(T_1(x)))

ATS, Gao et al. (2021), arXiv:2011.12505, searches short policies of common augmentations; those that its search found
are strings of indices such as `3-1-7`. The transforms here are of the same families (Table 1 there) with one fixed
magnitude each, so a policy is a deterministic function, and one that can be differentiated: an attacker who knows the
policy can run it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from inversefed.errors import ConfigError, unknown_name
from inversefed.types import Images, Targets

__all__ = ["ATS", "TRANSFORMS"]

Transform = Callable[[Tensor, float], Tensor]


def _affine(images: Tensor, rows: list[list[float]]) -> Tensor:
    """Sample at the places that a matrix on coordinates in [-1, 1] says; zero (black) outside."""
    theta = torch.tensor(rows, dtype=images.dtype, device=images.device).expand(len(images), 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, align_corners=False)


def _rotate(images: Tensor, degrees: float) -> Tensor:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return _affine(images, [[cos, -sin, 0.0], [sin, cos, 0.0]])


def _roll(images: Tensor, share: float, axis: int) -> Tensor:
    """Shift by whole pixels, what leaves at one side being lost."""
    by = round(share * images.shape[axis])
    kept = images.narrow(axis, 0, images.shape[axis] - by)
    black = torch.zeros_like(images.narrow(axis, 0, by))
    return torch.cat([black, kept], dim=axis)


def _contrast(images: Tensor, factor: float) -> Tensor:
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + factor * (images - mean)


def _saturation(images: Tensor, factor: float) -> Tensor:
    gray = images.mean(dim=1, keepdim=True)
    return gray + factor * (images - gray)


def _blur(images: Tensor, share: float) -> Tensor:
    """Mix with the mean of the 3x3 neighborhood."""
    around = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    return (1 - share) * images + share * around


TRANSFORMS: Mapping[str, tuple[Transform, float]] = {
    "brightness": (lambda images, by: images + by, 0.2),
    "contrast": (_contrast, 0.5),
    "flip": (lambda images, _: images.flip(-1), 1.0),
    "invert": (lambda images, _: 1 - images, 1.0),
    "rotate": (_rotate, 30.0),
    "saturation": (_saturation, 0.3),
    "shear_x": (lambda images, by: _affine(images, [[1.0, by, 0.0], [0.0, 1.0, 0.0]]), 0.3),
    "shear_y": (lambda images, by: _affine(images, [[1.0, 0.0, 0.0], [by, 1.0, 0.0]]), 0.3),
    "smooth": (_blur, 0.8),
    "translate_x": (lambda images, share: _roll(images, share, -1), 0.25),
    "translate_y": (lambda images, share: _roll(images, share, -2), 0.25),
}
"""Name -> function of (images, magnitude), and the magnitude."""


@dataclass(frozen=True)
class ATS:
    """Transform every picture by a short policy before the client computes with it.

    Args:
        policy: names from `TRANSFORMS`, in order; with a colon and a number, of another magnitude.

    Raises:
        ConfigError: an empty policy, an unknown name, or a magnitude that is no number.

    >>> ATS(("flip",)).transformed(torch.tensor([0.1, 0.9]).view(1, 1, 1, 2)).flatten()
    tensor([0.9000, 0.1000])
    """

    policy: tuple[str, ...] = ("translate_x", "contrast", "rotate")
    acts_on: ClassVar[Literal["data"]] = "data"
    mixes_examples: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not isinstance(self.policy, tuple) or not self.policy:
            raise ConfigError(f"ATS needs a tuple of names, such as ('rotate', 'contrast'); got {self.policy!r}")
        for step in self.policy:
            _read(step)

    def __call__(self, images: Images, labels: Targets, generator: Generator) -> tuple[Images, Targets]:
        """Transform the pictures; labels stay."""
        return self.transformed(images), labels

    def transformed(self, images: Images) -> Images:
        """The policy as a function, differentiable; pixels are held to [0, 1]."""
        for step in self.policy:
            transform, magnitude = _read(step)
            images = transform(images, magnitude).clamp(0, 1)
        return images


def _read(step: str) -> tuple[Transform, float]:
    name, _, magnitude = str(step).partition(":")
    if name not in TRANSFORMS:
        raise unknown_name("transform", name, TRANSFORMS)
    transform, usual = TRANSFORMS[name]
    try:
        return transform, float(magnitude) if magnitude else usual
    except ValueError as error:
        raise ConfigError(f"the magnitude of {name} must be a number, got {magnitude!r}") from error
