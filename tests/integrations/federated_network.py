"""A network that the auditing process imports."""

import torch
from torch import nn


def build() -> nn.Module:
    """A linear classifier of 3x8x8 pictures in 4 classes, always with the same weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
