"""Projections after a step: (inputs, network, iteration) -> inputs, with iterations counted from 1."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from inversefed.attacks.pieces.denoisers import BlockTransform, Denoise, check_denoiser
from inversefed.errors import ConfigError
from inversefed.fl.network import Network

__all__ = ["Box", "DenoiserStep", "MedianFilter"]


@dataclass(frozen=True)
class Box:
    """Clamp every pixel to the range of a picture, seen in the network's input space."""

    def __call__(self, inputs: Tensor, network: Network, iteration: int) -> Tensor:
        """Clamp."""
        low, high = network.normalize(network.low), network.normalize(network.high)
        return torch.max(torch.min(inputs, high), low)


@dataclass(frozen=True)
class DenoiserStep:
    """Move the guess towards its denoised self, now and then: plug and play.

    Venkatakrishnan, Bouman and Wohlberg (2013), doi:10.1109/GlobalSIP.2013.6737048.

    Args:
        denoise: the denoiser, from pictures in pixel space to cleaner ones.
        every: iterations between two such steps.
        strength: how far, in (0, 1].
    """

    denoise: Denoise = BlockTransform()
    every: int = 10
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_denoiser(self.denoise)
        if self.every < 1 or not 0 < self.strength <= 1:
            raise ConfigError(
                f"DenoiserStep needs every >= 1 and a strength in (0, 1]; got {self.every} and {self.strength}"
            )

    def __call__(self, inputs: Tensor, network: Network, iteration: int) -> Tensor:
        """Denoise, on iterations that `every` divides."""
        if iteration % self.every:
            return inputs
        with torch.no_grad():
            return inputs.lerp(network.normalize(self.denoise(network.denormalize(inputs))), self.strength)


@dataclass(frozen=True)
class MedianFilter:
    """Replace every pixel by the median of its neighborhood, now and then.

    Args:
        size: side of the neighborhood, odd; the picture is reflected at its border.
        every: iterations between two filterings.
    """

    size: int = 3
    every: int = 500

    def __call__(self, inputs: Tensor, network: Network, iteration: int) -> Tensor:
        """Filter each channel, on iterations that `every` divides."""
        if iteration % self.every:
            return inputs
        padded = F.pad(inputs, [self.size // 2] * 4, mode="reflect")
        windows = padded.unfold(2, self.size, 1).unfold(3, self.size, 1)
        return windows.flatten(start_dim=4).median(dim=-1).values
