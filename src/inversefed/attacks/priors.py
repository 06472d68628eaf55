"""What pictures look like, whatever the update says: (images, observation) -> scalar.

Priors receive pixels; those of the 2020 code were taken in the network's normalized input space, and
so are these, by the observation's own normalization.
"""

from dataclasses import dataclass

from inversefed.fl.threat import Observation
from inversefed.types import Images, Scalar

__all__ = ["SquaredNorm", "TotalVariation"]


@dataclass(frozen=True)
class TotalVariation:
    """Mean absolute difference of neighboring pixels, along x plus along y, in normalized space.

    Anisotropic total variation (Rudin, Osher and Fatemi 1992) as in Geiping et al. (2020), eq. 4.

    Args:
        weight: the paper's alpha; 1e-2 in its Table 1 for LeNet, 1e-4 to 1e-1 elsewhere.
    """

    weight: float = 1e-2

    def __call__(self, images: Images, observation: Observation) -> Scalar:
        """Weighted total variation of the batch."""
        return self.weight * total_variation(observation.network.normalize(images))


@dataclass(frozen=True)
class SquaredNorm:
    """Mean square of the normalized pixels, a pull towards the mean color.

    One of the image priors of Yin et al. (2021), arXiv:2104.07586, eq. 8.
    """

    weight: float = 1e-6

    def __call__(self, images: Images, observation: Observation) -> Scalar:
        """Weighted mean square of the batch."""
        return self.weight * observation.network.normalize(images).square().mean()


def total_variation(x: Images) -> Scalar:
    """Mean absolute difference of neighbors, along x plus along y."""
    across = (x[:, :, :, :-1] - x[:, :, :, 1:]).abs()
    down = (x[:, :, :-1, :] - x[:, :, 1:, :]).abs()
    return sum((part.mean() for part in (across, down) if part.numel()), start=x.new_zeros(()))
