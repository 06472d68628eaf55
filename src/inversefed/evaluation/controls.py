"""What no gradient would give: pictures that an attack has to beat before its scores mean anything.

A smooth or dark truth gives high scores to anyone who guesses. Each function takes the truth, whose
shape or statistics it may use, and returns a picture for each; `__all__` is the registry. The mean picture needs
pictures to take the mean of, so it stands beside the registry. Controls that run an attack, on an update that says
nothing or on somebody else's, are those of `inversefed.controls`.

    gray: x = 1/2        constant: x = argmin_c |x* - c|^2 = mean of x* per channel        mean: x = mean over others
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from inversefed.errors import InputError
from inversefed.inputs import InputSpace, pictured
from inversefed.inputs.real import mean_of, own_level
from inversefed.types import Batch, Images, Inputs

__all__ = ["constant", "gray"]


@dataclass(frozen=True)
class Described:
    """What a report calls a control.

    Args:
        title: heads its pictures and its column.
        phrase: names it in a sentence.
        meaning: what it is, in a few words.
    """

    title: str
    phrase: str
    meaning: str


DESCRIBED: Mapping[str, Described] = {
    "gray": Described("Plain gray", "a gray image", "0.5 everywhere"),
    "constant": Described(
        "Best single color",
        "the best constant color",
        "each picture's own mean color, better than any color that could be guessed",
    ),
    "mean": Described("Mean of other pictures", "the mean picture of others", "the mean of public pictures"),
    "typical_row": Described("Typical row", "the typical row", "means, and the most frequent value of each category"),
    "other_row": Described("Another row", "a row of somebody else", "public rows, one after another"),
    "prior": Described(
        "Attack without an update", "the attack's prior alone", "what the attack finds without any update"
    ),
    "other": Described(
        "Attack on another update", "the attack on another update", "what it finds in another example's update"
    ),
    "null": Described(
        "Attack on a random update",
        "the attack on a random update",
        "the best of what it finds in updates of random numbers",
    ),
}
"""Every control by its name, those that run an attack with them."""


def described(name: str) -> Described:
    """What a report calls a control; one that is not in the table goes by its name.

    >>> described("gray").title, described("my_guess").title
    ('Plain gray', 'My guess')
    """
    words = name.replace("_", " ")
    return DESCRIBED.get(name) or Described(words.capitalize(), words, words)


def constant(truth: Batch) -> Images:
    """The best picture of one color: each truth's own mean color, which has the least squared error of all.

    It is taken from the truth, so no attack can guess a constant that scores higher in decibels. A truth
    of one color is its own constant.

    >>> constant(Batch(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), torch.tensor([0]))).flatten()
    tensor([0.5000, 0.5000])
    """
    return own_level(truth.images)


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
    return mean_of(others, truth.images)


def guesses(truth: Batch, others: Tensor | None = None, space: InputSpace | None = None) -> dict[str, Inputs]:
    """Every control's examples, by its name: those of this registry for pictures, else those of the input space.

    Args:
        truth: the private examples.
        others: public examples, for the mean picture and its like; `None` leaves these out.
        space: what the examples are; `None` for pictures.

    >>> sorted(guesses(Batch(torch.zeros(1, 1, 1, 2), torch.tensor([0]))))
    ['constant', 'gray']
    """
    if space is not None and not pictured(space):
        return dict(space.controls(truth.images, others))
    found = {name: globals()[name](truth) for name in __all__}
    return found if others is None else found | {"mean": mean(truth, others)}
