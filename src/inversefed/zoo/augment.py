"""The usual augmentation of small pictures: a shifted crop after padding, and a mirror image half of the time."""

import torch
from torch import Generator
from torch.nn import functional as F

from inversefed.errors import ConfigError
from inversefed.types import Images

__all__ = ["random_crop", "random_flip"]


def random_crop(images: Images, padding: int, generator: Generator) -> Images:
    """Pad each picture with black on all sides and cut the old size out of a random place, its own for each.

    Args:
        images: pictures on the CPU.
        padding: pixels on each side.
        generator: a CPU generator.

    Raises:
        ConfigError: `padding` is negative.

    >>> random_crop(torch.rand(2, 3, 8, 8), 4, torch.Generator()).shape
    torch.Size([2, 3, 8, 8])
    """
    if padding < 0:
        raise ConfigError(f"padding is a number of pixels, 0 or more, not {padding}")
    n, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4)
    top, left = torch.randint(2 * padding + 1, (2, n, 1), generator=generator)
    rows, columns = top + torch.arange(height), left + torch.arange(width)
    example = torch.arange(n)[:, None, None]
    return padded.permute(0, 2, 3, 1)[example, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def random_flip(images: Images, generator: Generator) -> Images:
    """Mirror each picture left to right with probability 1/2."""
    flip = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flip[:, None, None, None], images.flip(-1), images)
