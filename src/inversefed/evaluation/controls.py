"""What no gradient would give: pictures that an attack has to beat before its scores mean anything.

A smooth or dark truth gives high scores to anyone who guesses. Each function takes the truth, whose
shape or statistics it may use, and returns a picture for each; `__all__` is the registry. The mean picture needs
pictures to take the mean of, so it stands beside the registry. Controls that run an attack, on an update that says
nothing or on somebody else's, are those of `inversefed.trials`.

    gray: x = 1/2        constant: x = argmin_c |x* - c|^2 = mean of x* per channel        mean: x = mean over others
"""

import torch
from torch import Tensor

from inversefed.errors import InputError
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


def mean(truth: Batch, others: Tensor) -> Images:
    """The mean picture of others of the same kind, which anybody may have.

    Args:
        truth: how many are asked for.
        others: `[m, c, h, w]`, pictures of the same shape, none of them a truth.

    Raises:
        InputError: there is none, or their shape is another.

    >>> mean(Batch(torch.zeros(1, 1, 1, 1), torch.tensor([0])), torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)).item()
    0.5
    """
    if not len(others) or others.shape[1:] != truth.images.shape[1:]:
        expected, found = tuple(truth.images.shape[1:]), tuple(others.shape)
        raise InputError(f"the mean picture needs others of shape {expected}, at least one; got {found}")
    return others.to(truth.images).mean(dim=0, keepdim=True).expand_as(truth.images).clone()


def guesses(truth: Batch, others: Tensor | None = None) -> dict[str, Images]:
    """Every control's pictures, by its name.

    Args:
        truth: the private examples.
        others: pictures for the mean picture; `None` leaves that one out.

    >>> sorted(guesses(Batch(torch.zeros(1, 1, 1, 2), torch.tensor([0]))))
    ['constant', 'gray']
    """
    found = {name: globals()[name](truth) for name in __all__}
    return found if others is None else found | {"mean": mean(truth, others)}
