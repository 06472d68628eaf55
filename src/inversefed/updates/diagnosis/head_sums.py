"""Sums of the head's gradient, which cross entropy fixes whatever the images.

    dL/db = mean (p - y),   dL/dW = mean (p - y) h^T       =>   sums over the classes vanish,
    ||dL/db||_2 <= sqrt(2),  sum of its negative part >= -1,  and an entry is negative only for a label that is there

The first holds for every local step of SGD, so for weight deltas with momentum too, and for smoothed and mixed labels.
Noise breaks it: with entries of standard deviation s, sums over k classes have s sqrt(k), which measures s.
Labels from signs: iDLG, Zhao et al. (2020), arXiv:2001.02610.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from inversefed.updates.diagnosis.evidence import Subject, rms

__all__ = ["head_noise", "too_large"]

NOISE = 2e-3
"""Noise over the head's own root mean square that is called noise; products in TF32 leave a fifth of it."""


class Noise(NamedTuple):
    """What is left where nothing should be.

    Args:
        std: standard deviation of the entries' noise, in units of the update.
        rounding: what rounding explains of it.
        relative: over the root mean square of the head's entries.
    """

    std: float
    rounding: float
    relative: float


def head_noise(subject: Subject) -> Noise | None:
    """Standard deviation of what was added to the head's gradient, from its sums over the classes.

    Weight decay, which adds a multiple of the weights, is taken out first. `None` without a linear head.
    """
    if subject.head is None:
        return None
    names = [name for name in (subject.head, subject.head_bias) if name is not None]
    sums = torch.cat([subject.raw[name].sum(dim=0).flatten() for name in names])
    decay = torch.cat([subject.weights[name].sum(dim=0).flatten() for name in names])
    if len(sums) > 8:
        sums = sums - decay * (sums @ decay) / (decay @ decay).clamp_min(1e-300)
    classes = subject.raw[subject.head].shape[0]
    rounding = torch.cat([subject.rounding(name).square().sum(dim=0).flatten() for name in names])
    std = rms(sums) / classes**0.5
    size = rms(torch.cat([subject.raw[name].flatten() for name in names]))
    return Noise(std, float((rounding.mean() / classes).sqrt()), std / size if size else 0.0)


def is_noise(noise: Noise | None) -> bool:
    """Whether it is more than rounding and TF32 leave."""
    return noise is not None and noise.std > 6 * noise.rounding and noise.relative > NOISE


def negative_part(bias: Tensor) -> float:
    """Sum of the negative part, as a positive number.

    >>> negative_part(torch.tensor([0.5, -0.25, -0.25]))
    0.5
    """
    return float(-bias.clamp(max=0).sum())


def too_large(subject: Subject) -> float:
    """How many times larger the head's bias gradient is than a batch can make it; at most 1 where it is possible."""
    if subject.head_bias is None or subject.scale is None:
        return 0.0
    bias = subject.gradient[subject.head_bias]
    return max(negative_part(bias), negative_part(-bias), float(bias.norm()) / 2**0.5)
