"""Pair the pictures that an attack recovered with the truths they stand for.

An update is a sum over examples, so an attack on a batch returns its pictures in no particular order.
The pairing is the assignment of the greatest total peak signal-noise ratio, of pixels clamped to [0, 1]:

    p* = argmax over permutations p of  sum_i PSNR(reconstruction[p_i], target[i])
       = argmin over permutations p of  sum_i log(mse(reconstruction[p_i], target[i]) + 1e-20)

where 1e-20 is the cap of 200 dB. The sum of the errors themselves would be another matter: a copy saves it little, so
that a picture of noise with less contrast than another can draw the copy away from its own truth. Scores of a batch
are those of the pairing that suits them best; a report of several pictures says so.

H. W. Kuhn, "The Hungarian method for the assignment problem", 1955.
"""

import math
from typing import TypeAlias

import torch
from torch import Tensor

from inversefed.errors import InputError
from inversefed.types import Batch, Inputs, Labels, Targets

__all__ = ["Permutation", "align", "errors", "paired"]

Permutation: TypeAlias = Labels  # integers, one an image, as labels are
"""Entry `i` is the index of the reconstruction paired with target `i`."""

_LEAST = 1e-20
"""The squared error below which pictures count as equal: 200 dB, as `metrics` caps it."""


def align(
    reconstruction_images: Inputs,
    target_images: Inputs,
    *,
    reconstruction_labels: Targets | None = None,
    target_labels: Targets | None = None,
) -> Permutation:
    """Find which reconstruction belongs to which target.

    Args:
        reconstruction_images: recovered pictures; values outside [0, 1] are clamped, and a picture with
            NaN is as far from every target as a picture can be, 0 dB.
        target_images: the truths, as many, of the same shape.
        reconstruction_labels: hand these in, with `target_labels`, where the attack was told the labels:
            as many pairs as possible then have equal labels, and the cost decides among such pairings.
        target_labels: the true ones, class indices or numbers.

    Returns:
        A permutation: entry `i` is the index of the reconstruction paired with target `i`.

    Raises:
        InputError: numbers or shapes of pictures differ, or only one of the two label arguments is given.

    >>> targets = torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1)
    >>> align(targets[[2, 0, 1]], targets)
    tensor([1, 2, 0])
    """
    from scipy.optimize import linear_sum_assignment

    _check(reconstruction_images, target_images)
    cost = (errors(reconstruction_images, target_images) + _LEAST).log()
    cost = cost + _label_mismatch(reconstruction_labels, target_labels, like=cost)
    reconstructions, targets = linear_sum_assignment(cost.numpy())
    permutation = torch.empty(len(targets), dtype=torch.long)
    permutation[torch.from_numpy(targets)] = torch.from_numpy(reconstructions)
    return permutation


def paired(images: Inputs, labels: Targets, truth: Batch, told: bool) -> Permutation:
    """Which picture of a result belongs to which truth: by pixels, and within a label where labels were told.

    Args:
        images: recovered pictures.
        labels: of each of them.
        truth: the private examples.
        told: whether the attack was told the labels.
    """
    if not told:
        return align(images, truth.images)
    return align(images, truth.images, reconstruction_labels=labels, target_labels=truth.labels)


def _check(reconstruction: Tensor, target: Tensor) -> None:
    if reconstruction.shape != target.shape:
        raise InputError(
            f"align expects as many reconstructions as targets, of one shape; got {tuple(reconstruction.shape)} "
            f"and {tuple(target.shape)}. Pairing unequal numbers is not supported yet: select equally many of both."
        )


def errors(reconstruction: Tensor, target: Tensor) -> Tensor:
    """Mean squared error of every reconstruction (rows) with every target (columns), at most 1.

    Of ids it is the share of places that differ.

    Args:
        reconstruction: `[n, *shape]`; values outside [0, 1] are clamped, and NaN is as far off as can be.
        target: `[m, *shape]`.

    Returns:
        `[n, m]`, float64, in [0, 1].

    >>> errors(torch.tensor([[3, 4]]), torch.tensor([[3, 4], [3, 5]]))
    tensor([[0.0000, 0.5000]], dtype=torch.float64)
    """
    if not target.is_floating_point():
        found, true = (ids.detach().cpu().flatten(1) for ids in (reconstruction, target))
        return (found[:, None] != true[None]).double().mean(dim=2)
    rows, columns = (images.detach().cpu().double().clamp(0, 1).flatten(1) for images in (reconstruction, target))
    distance = torch.cdist(rows, columns, compute_mode="donot_use_mm_for_euclid_dist")
    return (distance.square() / max(rows.shape[1], 1)).nan_to_num(nan=1.0)


def _label_mismatch(reconstruction: Tensor | None, target: Tensor | None, like: Tensor) -> Tensor:
    """A cost that no saving in pixels can outweigh: `n` pixel costs differ by less than `n |log 1e-20|`."""
    if reconstruction is None and target is None:
        return torch.zeros_like(like)
    if reconstruction is None or target is None or not len(reconstruction) == len(target) == len(like):
        raise InputError("align expects labels of both sides, one an image, or of neither")
    found, true = (each.detach().cpu().double().reshape(len(like), -1) for each in (reconstruction, target))
    differ = ~torch.isclose(found[:, None], true[None, :], rtol=1e-5, atol=1e-6).all(dim=2)
    return differ * (1.0 - len(like) * math.log(_LEAST))
