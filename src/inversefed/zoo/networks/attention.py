"""A vision transformer whose first attention sees patches and positions as they are: no norm before it, no skip around.

    z = E patches + positions,  x = attention(z),  x + mlp(norm(x)), then one block with norms and skips

It is the design that APRIL (Lu et al. 2022, arXiv:2112.14087) reads pictures from; `vit_b_16` and the like put a norm
in front and a skip around, and are not open to it.
"""

import torch
from torch import Tensor, nn

__all__ = ["BareViT"]


class BareViT(nn.Module):
    """64 patches of 4x4, a class token, two blocks of width 128 with 4 heads; for 32x32 pictures."""

    def __init__(self, num_classes: int, num_channels: int) -> None:
        super().__init__()
        width = 128
        self.embed = nn.Conv2d(num_channels, width, 4, stride=4)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.positions = nn.Parameter(0.02 * torch.randn(1, 65, width))
        self.attention0 = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp0 = _mlp(width)
        self.norm1 = nn.LayerNorm(width)
        self.attention1 = nn.MultiheadAttention(width, 4, batch_first=True)
        self.mlp1 = _mlp(width)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Pictures `[n, c, 32, 32]` to logits `[n, k]`."""
        patches = self.embed(images).flatten(2).mT
        x = torch.cat([self.token.expand(len(patches), -1, -1), patches], dim=1) + self.positions
        x = self.attention0(x, x, x, need_weights=False)[0]
        x = x + self.mlp0(x)
        y = self.norm1(x)
        x = x + self.attention1(y, y, y, need_weights=False)[0]
        x = x + self.mlp1(x)
        logits: Tensor = self.head(self.norm(x[:, 0]))
        return logits


def _mlp(width: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
