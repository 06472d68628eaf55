"""A network that the zoo does not have: GroupNorm, attention, 16x16 pictures, 4 classes."""

import torch
from torch import Tensor, nn


class Patches(nn.Module):
    """Sixteen patches that look at each other once."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 16, kernel_size=4, stride=4)
        self.norm = nn.GroupNorm(4, 16)
        self.attention = nn.MultiheadAttention(16, num_heads=2, batch_first=True)
        self.head = nn.Linear(16, 4)

    def forward(self, inputs: Tensor) -> Tensor:
        tokens = self.norm(self.embed(inputs)).flatten(2).transpose(1, 2)
        mixed, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return self.head((tokens + mixed).mean(dim=1))


def build() -> nn.Module:
    """What `--network own_network:build` calls, without arguments."""
    torch.manual_seed(0)  # the command's --seed does not reach this far
    return Patches()
