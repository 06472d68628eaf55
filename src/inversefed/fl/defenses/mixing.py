"""Mixup: a client trains on mixtures of its pictures, and on the same mixtures of their labels.

    x'_i = lam x_i + (1 - lam) x_p(i),    y'_i = lam y_i + (1 - lam) y_p(i),    lam ~ Beta(alpha, alpha)

Zhang et al. (2018), arXiv:1710.09412; as a defense it was tried by Huang et al. (2021), arXiv:2112.00059. One example
has no partner and stays what it is.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Generator, Tensor

from inversefed.errors import ConfigError
from inversefed.types import Inputs, Targets

__all__ = ["Mixup", "mixed"]


@dataclass(frozen=True)
class Mixup:
    """Mix each example with another of its batch, at one share for all.

    Args:
        alpha: of the Beta distribution that the share is drawn from; larger is nearer to one half.

    Raises:
        ConfigError: alpha is not above 0; when called, class indices instead of probabilities.

    >>> images, labels = torch.rand(2, 3, 4, 4), torch.eye(5)[[1, 3]]
    >>> _, targets = Mixup(8.0)(images, labels, Generator().manual_seed(0))
    >>> targets.sum(dim=1)
    tensor([1., 1.])
    """

    alpha: float = 1.0
    acts_on: ClassVar[Literal["data"]] = "data"
    mixes_labels: ClassVar[bool] = True
    """It is given probabilities `[n, k]`, for class indices have no mixtures."""
    mixes_examples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not self.alpha > 0:
            raise ConfigError(f"Mixup needs alpha > 0, got {self.alpha}")

    def __call__(self, images: Inputs, labels: Targets, generator: Generator) -> tuple[Inputs, Targets]:
        """Draw the share and the partners, and mix."""
        if not labels.is_floating_point():
            raise ConfigError("Mixup mixes labels: give probabilities [n, k], such as torch.eye(k)[labels]")
        count = len(images)
        share = self.drawn(generator)
        partners = next_in_turn(torch.randperm(count, generator=generator, device=generator.device)).to(images.device)
        return mixed(images, share, partners), mixed(labels, share, partners)

    def drawn(self, generator: Generator) -> float:
        """One share from the Beta distribution."""
        alphas = torch.full((2,), self.alpha, dtype=torch.float64, device=generator.device)
        draws = torch._standard_gamma(alphas, generator=generator)
        return float(draws[0] / draws.sum().clamp(min=1e-300))


def next_in_turn(order: Tensor) -> Tensor:
    """Each one's partner: the next in the order, the first after the last; so nobody is paired with itself.

    >>> next_in_turn(torch.tensor([2, 0, 1]))
    tensor([1, 2, 0])
    """
    partners = torch.empty_like(order)
    partners[order] = order.roll(-1)
    return partners


def mixed(values: Tensor, share: float | Tensor, partners: Tensor) -> Tensor:
    """`share` of each and the rest of its partner.

    >>> mixed(torch.tensor([[0.0], [4.0]]), 0.75, torch.tensor([1, 0])).flatten()
    tensor([1., 3.])
    """
    return share * values + (1 - share) * values[partners]
