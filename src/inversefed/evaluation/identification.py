"""Does a reconstruction tell which picture it is of? The true one among others of the same kind.

    hit_i = [ |x^_i - x*_i|^2 < min_j |x^_i - o_j|^2 ]

A blurred picture may score few decibels and still be told from all others; one that is told no better than chance, 1 in
N + 1, shows nobody's picture. Others should come from the same data set: among unlike pictures, color alone decides.
"""

import torch
from torch import Tensor

from inversefed.errors import InputError
from inversefed.evaluation.align import errors
from inversefed.types import Inputs

__all__ = ["nearest", "unlike"]


def unlike(others: Tensor, target: Inputs) -> Tensor:
    """Which pictures are none of the truths, pixel by pixel: the candidates that a truth is told from.

    Args:
        others: `[m, c, h, w]`, pictures of the same kind.
        target: the truths.

    Returns:
        One truth value a picture.

    Raises:
        InputError: shapes differ, or none is: there must be at least one other picture to be told from.

    >>> unlike(torch.tensor([0.2, 0.5]).view(2, 1, 1, 1), torch.tensor([0.5]).view(1, 1, 1, 1))
    tensor([ True, False])
    """
    if others.shape[1:] != target.shape[1:]:
        raise InputError(
            f"candidates must be of the truths' shape {tuple(target.shape[1:])}; got {tuple(others.shape)}"
        )
    left = torch.ones(len(others), dtype=torch.bool, device=others.device)
    for true in target.to(others.device):
        left &= (others != true).flatten(1).any(dim=1)
    if not bool(left.any()):
        raise InputError(
            f"at least one other picture is needed that is no truth; of {len(others)} candidates none is left. "
            "Give pictures of the same kind that are not among the private ones"
        )
    return left


def nearest(images: Inputs, target: Inputs, others: Tensor) -> Tensor:
    """Whether each true picture is nearer to its reconstruction, by squared error, than all others are.

    Args:
        images: reconstructions in the order of the truth; clamped to [0, 1].
        target: the truths.
        others: `[m, c, h, w]`, candidates that are not in the batch; those equal to a truth are left out (`unlike`).

    Returns:
        One truth value an image; false where the reconstruction is not finite.

    Raises:
        InputError: shapes differ, or no other picture is left.

    >>> true = torch.tensor([0.2, 0.8]).view(2, 1, 1, 1)
    >>> nearest(torch.tensor([0.3, 0.1]).view(2, 1, 1, 1), true, torch.full((1, 1, 1, 1), 0.5))
    tensor([ True, False])
    """
    if images.shape != target.shape:
        raise InputError(
            f"reconstructions and truths must have one shape; got {tuple(images.shape)} and {tuple(target.shape)}"
        )
    rest, found = others[unlike(others, target)], images.detach().cpu()
    to_truth, to_others = errors(found, target).diagonal(), errors(found, rest)
    return (to_truth[:, None] < to_others).all(dim=1) & found.flatten(1).isfinite().all(dim=1)
