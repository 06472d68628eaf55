"""Group consistency: each restart is pulled towards the consensus of all of them.

    loss_g + weight * mean (x_g - consensus)^2

Restarts of one search go wrong in different ways, so their mean is nearer the truth than most of them. Yin et al.
(2021), arXiv:2104.07586, section 3.4, pull every restart towards it, and first register the restarts to their mean, for
a network that averages over places finds the same thing at different ones. Here a picture's restarts are matched first
where labels leave open which is which; then they are moved onto the one that agrees best with all others, averaged, and
moved back.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inversefed.attacks.pieces.registration import matched, medoid, moved_mean, shifted, translation
from inversefed.errors import ConfigError
from inversefed.fl.targets import kinds as label_kinds

__all__ = ["GroupConsistency"]


@dataclass(frozen=True)
class GroupConsistency:
    """Pull restarts towards their registered mean.

    A meeting of G restarts of n pictures takes n G (G - 1) / 2 comparisons by FFT: which is
    about as long as a few steps.

    Args:
        weight: of the mean squared distance to the consensus, in normalized inputs. The paper has 0.01 for the squared
            norm beside a squared error; beside a cosine, more than about 0.01 outvotes the update.
        start: share of the iterations after which restarts first meet; the paper's 5,000 of 20,000.
        every: iterations between two meetings.
        reach: the longest shift that registration makes, as a share of a picture's side; 0 for the plain mean.
        circular: pictures wrap around, as they do for a network with circular padding.
        gain: by how much the correlation must rise for a shift to be made.
        moves: pull all restarts to the place of the one in the middle as well, as the paper does. Else each is pulled
            towards the consensus where it has it itself, and only the update says where that is.

    Raises:
        ConfigError: a share outside [0, 1), a reach above a half, or no iteration between meetings.
    """

    weight: float = 0.003
    start: float = 0.25
    every: int = 100
    reach: float = 0.25
    circular: bool = False
    gain: float = 0.05
    moves: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.start < 1 or not 0 <= self.reach <= 0.5 or self.every < 1:
            raise ConfigError(
                "restarts meet from a share of the iterations in [0, 1) on, at least 1 iteration apart, and are moved "
                f"by at most half a side; got start={self.start}, every={self.every} and reach={self.reach}"
            )

    def meets(self, iteration: int, iterations: int) -> bool:
        """Whether restarts meet before this iteration, counted from 0."""
        since = iteration - int(self.start * iterations)
        return since >= 0 and since % self.every == 0

    def consensus(self, restarts: Tensor, labels: Tensor | None = None) -> Tensor:
        """What restarts agree on, handed to each of them in its own order.

        Args:
            restarts: `[restarts, n, c, h, w]`.
            labels: `[n]`, the same for all restarts; pictures of different labels are never matched. `None`: any
                may be.

        Returns:
            `[restarts, n, c, h, w]`.
        """
        n = restarts.shape[1]
        kinds = torch.zeros(n, dtype=torch.long, device=restarts.device) if labels is None else label_kinds(labels)
        orders = [matched(each, restarts[0], kinds) for each in restarts]
        ordered = torch.stack([each[order] for each, order in zip(restarts, orders, strict=True)])
        agreed = torch.stack([self._agreed(ordered[:, number]) for number in range(n)], dim=1)
        pulls = torch.empty_like(restarts)
        for pull, order, each in zip(pulls, orders, agreed, strict=True):
            pull[order] = each
        return pulls

    def _agreed(self, pictures: Tensor) -> Tensor:
        """What the restarts `[restarts, c, h, w]` of one picture agree on, for each of them."""
        reach = int(self.reach * min(pictures.shape[-2:]))
        if not reach:
            return pictures.mean(dim=0).expand_as(pictures)
        mark = pictures[medoid(pictures, reach, self.circular)]
        found = torch.tensor([translation(each, mark, reach, self.circular, self.gain) for each in pictures])
        # From the mark's place to the one in the middle, where most of each picture stays in sight.
        middle = found.median(dim=0).values
        shifts = [(int(down), int(across)) for down, across in found - middle]
        instead = shifted(mark, (-int(middle[0]), -int(middle[1])), self.circular)
        agreed = moved_mean(pictures, shifts, instead, self.circular)
        if self.moves:
            return agreed.expand_as(pictures)
        return torch.stack([self._back(agreed, each, shift) for each, shift in zip(pictures, shifts, strict=True)])

    def _back(self, agreed: Tensor, own: Tensor, shift: tuple[int, int]) -> Tensor:
        """The consensus where a restart has it; what the shift leaves open is the restart's own."""
        back = (-shift[0], -shift[1])
        there = shifted(torch.ones_like(agreed[:1]), back, self.circular)
        return torch.where(there > 0, shifted(agreed, back, self.circular), own)
