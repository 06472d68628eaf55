"""Denoisers as image priors: any function from images to cleaner images.

`DenoiserPrior` and `DenoiserStep` take one. It may be a trained network: it is called with pictures `[n, c, h, w]` in
pixel space, [0, 1], without a graph. The one here is classical and needs no training.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from inversefed.errors import ConfigError
from inversefed.types import Images

__all__ = ["BlockTransform"]

Denoise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BlockTransform:
    """Drop the small coefficients of the cosine transform of every block, and average the overlapping blocks.

    A sliding transform with hard thresholds (Yaroslavsky, Egiazarian and Astola 2001, doi:10.1117/12.424969).

    Args:
        threshold: size below which a coefficient of an orthonormal transform is dropped, in pixel units; about 3 times
            the noise. The mean of a block stays.
        size: side of a block, in pixels.
    """

    threshold: float = 0.1
    size: int = 4

    def __post_init__(self) -> None:
        if self.threshold < 0 or self.size < 2:
            raise ConfigError(
                f"BlockTransform needs threshold >= 0 and size >= 2; got {self.threshold} and {self.size}"
            )

    def __call__(self, images: Images) -> Images:
        """Denoise each channel."""
        height, width = images.shape[-2:]
        border = self.size - 1
        planes = images.reshape(-1, 1, height, width)
        # Blocks that reach over the border see the border's pixels again.
        padded = F.pad(planes, [border] * 4, mode="replicate")
        basis = _cosines(self.size, images)
        blocks = F.conv2d(padded, basis)
        small = blocks.abs() < self.threshold
        small[:, 0] = False
        whole = F.conv_transpose2d(blocks.masked_fill(small, 0.0), basis) / self.size**2
        return whole[..., border : border + height, border : border + width].reshape(images.shape)


def check_denoiser(denoise: object) -> None:
    """Refuse what cannot be called, and classes where values are expected.

    Raises:
        ConfigError: with what is expected.
    """
    if not callable(denoise) or isinstance(denoise, type):
        raise ConfigError(f"a denoiser is a function of pictures, or a value such as BlockTransform(); got {denoise!r}")


def _cosines(size: int, like: Tensor) -> Tensor:
    """The orthonormal cosine transform of a block as convolution kernels `[size^2, 1, size, size]`, the mean first."""
    places = torch.arange(size, dtype=torch.float64)
    rows = torch.cos(math.pi / size * (places[None, :] + 0.5) * places[:, None]) * math.sqrt(2 / size)
    rows[0] /= math.sqrt(2)
    return torch.einsum("ay,bx->abyx", rows, rows).reshape(size * size, 1, size, size).to(like)
