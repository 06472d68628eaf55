"""Which pictures of a batch are to be believed? Those that another start comes to as well.

    A_i = PSNR(x^_i, z^_i) - max( PSNR(flat(x^_i), x^_i), PSNR(flat(z^_i), z^_i) )

with x^ the result, z^ what another start of the same attack came to, paired by assignment, and flat(.) a picture's own
mean color: by how many decibels the two agree better than with one color. What the update settles is found from every
start; what the prior made up differs. It needs no truth, and is no proof: all starts share the attack's labels, and
what it solved for beforehand.
"""

from collections.abc import Sequence

import torch

from inversefed.evaluation import controls
from inversefed.evaluation.align import align
from inversefed.evaluation.metrics import peak_signal_noise_ratio
from inversefed.evaluation.verdict import margins
from inversefed.inputs import InputSpace
from inversefed.types import Batch, Inputs, Scores

__all__ = ["agreement"]


def agreement(images: Inputs, others: Sequence[Inputs], space: InputSpace | None = None) -> Scores:
    """How far other results agree with this one, picture by picture.

    Args:
        images: the result, `[n, *shape]`, pictures in pixel space.
        others: what other starts came to, of the same shape, in any order.
        space: what they are; `None` for pictures.

    Returns:
        Decibels over what one color reaches, `[n]`, in the order of `images`: the median over the others.

    >>> result = torch.rand(2, 3, 8, 8)
    >>> bool((agreement(result, [result.flip(0)]) > 50).all())
    True
    """
    return (
        torch.stack([_with(images.detach().cpu(), other.detach().cpu(), space) for other in others])
        .median(dim=0)
        .values
    )


def _with(images: Inputs, other: Inputs, space: InputSpace | None) -> Scores:
    paired, real = other[align(other, images)], images.is_floating_point()
    flat = {
        name: _flat(each.clamp(0, 1) if real else each, space) for name, each in (("ours", images), ("theirs", paired))
    }
    return margins(peak_signal_noise_ratio(images, paired), flat)


def _flat(images: Inputs, space: InputSpace | None) -> Scores:
    """What an example's best control scores against it: of a picture its own mean color."""
    guesses = controls.guesses(Batch(images, torch.zeros(len(images)).long()), space=space)
    return torch.stack([peak_signal_noise_ratio(each, images) for each in guesses.values()]).amax(dim=0)
