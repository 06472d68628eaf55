"""Natural noise: random images with the spectrum, contrast and correlated channels of photographs.

    amplitude of a spatial frequency f  ~  1 / f

which is what natural scenes have on average (Field 1987, J. Opt. Soc. Am. A 4, 2379).
"""

import torch
from torch import Generator, Tensor

from inversefed.fl.network import Network
from inversefed.inputs import pictured
from inversefed.types import Inputs

__all__ = ["MEAN", "SHARED", "STD", "natural_noise", "varied_noise"]

MEAN, STD = 0.47, 0.25
"""Mean and standard deviation of the pixels, near those of every set of color photographs."""
SHARED = 0.9
"""Share of a channel's amplitude that all channels have in common."""


def natural_noise(network: Network, count: int, seed: int = 0) -> Inputs:
    """Draw pictures for a network, in pixel space, all of one contrast; of another input space, its own stand-ins.

    Args:
        network: gives their shape, device and number format.
        count: how many.
        seed: the same seed gives the same pictures.
    """
    generator = Generator().manual_seed(seed)
    if not pictured(network.space):
        return network.held(network.space.stand_ins(count, generator))
    channels, height, width = network.image_shape
    falling = 1 / _frequencies(height, width).clamp_min(1 / max(height, width, 2))
    own, shared = (_drawn(count, size, height, width, falling, generator) for size in (channels, 1))
    pictures = SHARED * shared + (1 - SHARED**2) ** 0.5 * own
    offsets = 0.1 * torch.randn(count, 1, 1, 1, generator=generator)
    drawn: Tensor = (MEAN + offsets + STD * pictures).clamp(0, 1)
    return drawn.to(network.device, network.dtype)


def varied_noise(network: Network, count: int) -> Inputs:
    """Draw pictures for a network, in its range of pixels, each of a contrast and brightness of its own.

    Of another input space they are its stand-ins.

    Args:
        network: gives their shape, range and number format.
        count: how many; the same number gives the same pictures.
    """
    generator = Generator().manual_seed(0)
    if not pictured(network.space):
        return network.space.stand_ins(count, generator)
    channels, height, width = network.image_shape
    frequency = _frequencies(height, width).clamp(min=1 / max(height, width))
    gray = torch.randn(count, 1, height, width, generator=generator)
    color = torch.randn(count, channels, height, width, generator=generator)
    waves = torch.fft.irfft2(torch.fft.rfft2(gray + 0.35 * color) / frequency, s=(height, width))
    waves = waves - waves.mean(dim=(1, 2, 3), keepdim=True)
    waves = waves / waves.square().mean(dim=(1, 2, 3), keepdim=True).sqrt().clamp(min=1e-6)
    contrast = 0.1 + 0.25 * torch.rand(count, 1, 1, 1, generator=generator)
    light = MEAN + 0.13 * torch.randn(count, 1, 1, 1, generator=generator)
    low, high = network.low.cpu(), network.high.cpu()
    pictures: Tensor = low + (high - low) * (light + contrast * waves).clamp(0, 1).to(low.dtype)
    return pictures


def _frequencies(height: int, width: int) -> Tensor:
    """The spatial frequency of each coefficient of a real Fourier transform, in cycles a pixel."""
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    frequencies: Tensor = (rows.square() + columns.square()).sqrt()
    return frequencies


def _drawn(count: int, channels: int, height: int, width: int, falling: Tensor, generator: Generator) -> Tensor:
    """White noise, filtered; mean 0 and deviation 1 in each picture."""
    white = torch.randn(count, channels, height, width, generator=generator)
    drawn: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * falling, s=(height, width))
    drawn = drawn - drawn.mean(dim=(2, 3), keepdim=True)
    return drawn / drawn.square().mean(dim=(2, 3), keepdim=True).sqrt().clamp_min(1e-6)
