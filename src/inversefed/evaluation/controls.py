"""What no gradient would give: pictures that an attack has to beat before its scores mean anything.

A smooth or dark truth gives high scores to anyone who guesses. Each function takes the truth, whose
shape or statistics it may use, and returns a picture for each; `__all__` is the registry.

    gray: x = 1/2        constant: x = argmin_c |x* - c|^2 = mean of x* per channel
"""

import torch

from inversefed.types import Batch, Images

__all__ = ["constant", "gray"]


def constant(truth: Batch) -> Images:
    """The best picture of one color: each truth's own mean color, which has the least squared error of all.

    It is taken from the truth, so no attack can guess a constant that scores higher in decibels. A truth
    of one color is its own constant.

    >>> constant(Batch(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), torch.tensor([0]))).flatten()
    tensor([0.5000, 0.5000])
    """
    return truth.images.mean(dim=(2, 3), keepdim=True).expand_as(truth.images).clone()


def gray(truth: Batch) -> Images:
    """The middle of the range, 0.5, everywhere.

    >>> gray(Batch(torch.zeros(1, 1, 1, 2), torch.tensor([0]))).flatten()
    tensor([0.5000, 0.5000])
    """
    return torch.full_like(truth.images, 0.5)


def guesses(truth: Batch) -> dict[str, Images]:
    """Every control's pictures, by its name.

    >>> sorted(guesses(Batch(torch.zeros(1, 1, 1, 2), torch.tensor([0]))))
    ['constant', 'gray']
    """
    return {name: globals()[name](truth) for name in __all__}
