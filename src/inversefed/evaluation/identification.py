"""Does a reconstruction tell which picture it is of? The true one among others of the same kind.

    hit_i = [ |x^_i - x*_i|^2 < min_j |x^_i - o_j|^2 ]

A blurred picture may score few decibels and still be told from all others; one that is told no better than chance, 1 in
N + 1, shows nobody's picture. Others should come from the same data set: among unlike pictures, color alone decides.
"""

import torch
from torch import Tensor

from inversefed.errors import InputError
from inversefed.types import Images

__all__ = ["nearest"]


def nearest(images: Images, target: Images, others: Tensor) -> Tensor:
    """Whether each true picture is nearer to its reconstruction, by squared error, than all others are.

    Args:
        images: reconstructions in the order of the truth; clamped to [0, 1].
        target: the truths.
        others: `[m, c, h, w]`, candidates that are not in the batch; those equal to a truth are left out.

    Returns:
        One truth value an image; false where the reconstruction is not finite.

    Raises:
        InputError: shapes differ, or there is no other picture.

    >>> true = torch.tensor([0.2, 0.8]).view(2, 1, 1, 1)
    >>> nearest(torch.tensor([0.3, 0.1]).view(2, 1, 1, 1), true, torch.full((1, 1, 1, 1), 0.5))
    tensor([ True, False])
    """
    if images.shape != target.shape or others.shape[1:] != target.shape[1:] or not len(others):
        shapes = ", ".join(str(tuple(each.shape)) for each in (images, target, others))
        raise InputError(f"reconstructions, truths and at least one other must have one shape of picture; got {shapes}")
    found, true, rest = (each.detach().cpu().double().flatten(1) for each in (images, target, others))
    rest = rest[(torch.cdist(rest, true) > 0).all(dim=1)]
    found = found.clamp(0, 1)
    to_truth = (found - true).square().sum(dim=1)
    to_others = torch.cdist(found, rest, compute_mode="donot_use_mm_for_euclid_dist").square()
    return (to_truth[:, None] < to_others).all(dim=1) & to_truth.isfinite()
