"""Pictures that are nobody's: random, with the spectrum, contrast and correlated channels of photographs.

    amplitude of a spatial frequency f  ~  1 / f

which is what natural scenes have on average (Field 1987, J. Opt. Soc. Am. A 4, 2379).
"""

import torch
from torch import Generator, Tensor

from inversefed.fl.network import Network
from inversefed.types import Images

__all__ = ["MEAN", "STD", "stand_ins"]

MEAN, STD = 0.47, 0.25
"""Mean and standard deviation of the pixels, near those of every set of color photographs."""
_SHARED = 0.9
"""Share of a channel's amplitude that all channels have in common."""


def stand_ins(network: Network, count: int, seed: int = 0) -> Images:
    """Draw pictures for a network, in pixel space.

    Args:
        network: gives their shape, device and number format.
        count: how many.
        seed: the same seed gives the same pictures.
    """
    channels, height, width = network.image_shape
    generator = Generator().manual_seed(seed)
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    falling = 1 / (rows.square() + columns.square()).sqrt().clamp_min(1 / max(height, width, 2))
    own, shared = (_drawn(count, size, height, width, falling, generator) for size in (channels, 1))
    pictures = _SHARED * shared + (1 - _SHARED**2) ** 0.5 * own
    offsets = 0.1 * torch.randn(count, 1, 1, 1, generator=generator)
    drawn: Tensor = (MEAN + offsets + STD * pictures).clamp(0, 1)
    return drawn.to(network.device, network.dtype)


def _drawn(count: int, channels: int, height: int, width: int, falling: Tensor, generator: Generator) -> Tensor:
    """White noise, filtered; mean 0 and deviation 1 in each picture."""
    white = torch.randn(count, channels, height, width, generator=generator)
    drawn: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * falling, s=(height, width))
    drawn = drawn - drawn.mean(dim=(2, 3), keepdim=True)
    return drawn / drawn.square().mean(dim=(2, 3), keepdim=True).sqrt().clamp_min(1e-6)
