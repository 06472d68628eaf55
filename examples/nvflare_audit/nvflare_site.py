"""What the sites of the example have: a network, and two photographs each."""

from typing import Any

import torch
from torch import Tensor, nn

from inversefed import Batch
from inversefed.zoo import pictures

MEAN, STD, LEARNING_RATE = 0.5, 0.25, 0.1
NAMES = {"site-1": ("astronaut", "chelsea"), "site-2": ("coffee", "rocket")}


class Net(nn.Module):
    """A small convolutional network for 3x32x32 pictures in 4 classes."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.body = nn.Sequential(nn.Conv2d(3, 12, 5, 2, 2), nn.Sigmoid(), nn.Conv2d(12, 12, 5, 2, 2), nn.Sigmoid())
            self.head = nn.Linear(12 * 8 * 8, 4)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures to logits."""
        return self.head(self.body(images).flatten(1))  # type: ignore[no-any-return]


def private(site: str) -> Batch:
    """The pictures of a site, which it sends to nobody."""
    images = torch.stack([pictures.photo(name, (3, 32, 32)) for name in NAMES[site]])
    return Batch(images, torch.tensor([0, 1] if site == "site-1" else [2, 3]))


def private_of(fl_ctx: Any) -> Batch:
    """The same, as `AuditFilter(truth=..)` asks for it."""
    return private(fl_ctx.get_identity_name())
