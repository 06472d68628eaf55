"""Priors, what images look like whatever the update says: (images, observation) -> scalar.

Priors receive pixels; those of the 2020 code were taken in the network's normalized input space, and
so are these, by the observation's own normalization.
"""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from inversefed.attacks.pieces.denoisers import BlockTransform, Denoise, check_denoiser
from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.threat import Observation
from inversefed.types import Images, Inputs, Scalar

__all__ = ["ColorTotalVariation", "DenoiserPrior", "SquaredNorm", "TotalVariation"]


@dataclass(frozen=True)
class ColorTotalVariation:
    """Mean length of the color gradient, of the channels and of their differences, in normalized space.

        mean sqrt(dx^2 + dy^2)   over   red, green, blue, red - green, red - blue, green - blue

    An edge in brightness alone leaves the differences flat, so it costs less than one in color, as pictures have them.
    It is the "double opponent" total variation of the framework `breaching` (Geiping et al. 2022), isotropic.

    Args:
        weight: 0.1 in `breaching`'s settings "modern".
    """

    weight: float = 0.1

    def __call__(self, images: Images, observation: Observation) -> Scalar:
        """Weighted color total variation of the batch; pictures of other than three channels have no differences."""
        x = observation.network.normalize(images)
        if x.shape[1] == 3:
            x = torch.cat([x, x[:, [0, 0, 1]] - x[:, [1, 2, 2]]], dim=1)
        across = F.pad(x[..., 1:] - x[..., :-1], (0, 1))
        down = F.pad(x[..., 1:, :] - x[..., :-1, :], (0, 0, 0, 1))
        # The root has no slope at 0, where flat pictures are.
        return self.weight * (across.square() + down.square() + 1e-10).sqrt().mean()


@dataclass(frozen=True)
class DenoiserPrior:
    """Half the mean squared distance of a picture from its denoised self, which is held fixed.

    Its slope is `x - D(x)` over the number of pixels: regularization by denoising (Romano, Elad and Milanfar 2017,
    arXiv:1611.02862).

    Args:
        denoise: the denoiser, from pictures in pixel space to cleaner ones.
        weight: of the prior.
    """

    denoise: Denoise = BlockTransform()
    weight: float = 1.0

    def __post_init__(self) -> None:
        check_denoiser(self.denoise)

    def __call__(self, images: Images, observation: Observation) -> Scalar:
        """Weighted distance."""
        with torch.no_grad():
            clean = self.denoise(images.detach())
        return self.weight * (images - clean).square().mean() / 2


@dataclass(frozen=True)
class TotalVariation:
    """Mean absolute difference of neighboring pixels, along x plus along y, in normalized space; of series in time.

    Anisotropic total variation (Rudin, Osher and Fatemi 1992) as in Geiping et al. (2020), eq. 4.

    Args:
        weight: the paper's alpha; 1e-2 in its Table 1 for LeNet, 1e-4 to 1e-1 elsewhere.
    """

    weight: float = 1e-2

    def __call__(self, images: Inputs, observation: Observation) -> Scalar:
        """Weighted total variation of the batch.

        Raises:
            UnsupportedNetworkError: the values of an example have no neighbors, as those of a row have none.
        """
        if images.ndim < _NEIGHBORED:
            raise UnsupportedNetworkError(
                f"TotalVariation compares neighbors, and the values of {observation.network.space.noun}s have none; "
                "use a recipe without it, such as without_prior()"
            )
        return self.weight * total_variation(observation.network.normalize(images))


@dataclass(frozen=True)
class SquaredNorm:
    """Mean square of the normalized pixels, a pull towards the mean color.

    One of the image priors of Yin et al. (2021), arXiv:2104.07586, eq. 8.
    """

    weight: float = 1e-6

    def __call__(self, images: Inputs, observation: Observation) -> Scalar:
        """Weighted mean square of the batch."""
        return self.weight * observation.network.normalize(images).square().mean()


_NEIGHBORED = 3
"""Axes from which examples have places, one after the other: `[n, c, l]`."""


def total_variation(x: Inputs) -> Scalar:
    """Mean absolute difference of neighbors, along x plus along y; of series `[n, c, l]` along their length."""
    neighbors = (x.narrow(axis, 0, x.shape[axis] - 1) - x.narrow(axis, 1, x.shape[axis] - 1) for axis in _places(x))
    return sum((each.abs().mean() for each in neighbors if each.numel()), start=x.new_zeros(()))


def _places(x: Inputs) -> range:
    """The axes behind examples and channels, the last one first."""
    return range(x.ndim - 1, 1, -1)
