"""How close a reconstruction is to the truth: one number per image, never pooled over the batch.

`__all__` is the registry, and a parameter's name says what a metric is given: `images`, `target` (examples of any
input space, reconstruction first), `pictures`, `true_pictures` (pixel space, where the examples are pictures),
`labels`, `target_labels` (classes, or answers of yes and no),
`features` (a callable, images to `[n, d]`), `perceptual` (a callable, two pictures to one distance).
A reconstruction is judged as the picture it would be shown as, so pixels are clamped to [0, 1] first.
A new metric is a function, its name in `__all__`, and its line in `FACTS`.

    MSE = mean (x - x*)^2        PSNR = -10 log10 MSE        SSIM: luminance x contrast x structure

Z. Wang et al., "Image quality assessment: from error visibility to structural similarity", 2004.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from inversefed.errors import InputError
from inversefed.inputs import MEASURES, Measure
from inversefed.thresholds import IDENTICAL_DB
from inversefed.types import Images, Inputs, Scores, Targets

__all__ = [
    "feature_mean_squared_error",
    "label_accuracy",
    "learned_perceptual_image_patch_similarity",
    "mean_squared_error",
    "peak_signal_noise_ratio",
    "structural_similarity",
]

WINDOW_RADIUS, WINDOW_SIGMA = 5, 1.5
"""Wang et al. (2004), section III.B: an 11 x 11 Gaussian window with a standard deviation of 1.5 pixels."""


FACTS: Mapping[str, Measure] = {
    **MEASURES,
    "feature_mean_squared_error": Measure(
        "Feature error",
        "",
        False,
        ".3g",
        "Mean squared difference of what the network says of both pictures. 0 is equal.",
    ),
    "label_accuracy": Measure(
        "Label", "", True, ".2f", "1 if the label is the true one, else 0; its mean is the share."
    ),
    "learned_perceptual_image_patch_similarity": Measure(
        "Learned perceptual distance",
        "",
        False,
        ".3f",
        "LPIPS, or what the setting names instead: how different the pictures look to a trained network, fitted to "
        "what people see. 0 is the same picture, about 0.5 and more an unrelated one. It is made for pictures of 64 "
        "pixels and more.",
    ),
    "mean_squared_error": Measure(
        "Mean squared error", "", False, ".3g", "Mean squared difference of pixels in [0, 1]. 0 is the same picture."
    ),
    "peak_signal_noise_ratio": Measure(
        "Peak signal-noise ratio (PSNR)",
        "dB",
        True,
        ".2f",
        "The squared error on a logarithmic scale: 10 dB more is a tenth of the error. From about 20 dB a small "
        "picture can usually be recognized, above 40 dB the eye hardly sees a difference, and 200 dB is the cap, "
        "given to identical pictures. It forgives blur and punishes a small shift, so look at the pictures too.",
    ),
    "structural_similarity": Measure(
        "Structural similarity (SSIM)",
        "",
        True,
        ".3f",
        "Agreement of local brightness, contrast and pattern. 1 is the same picture, about 0 an unrelated one.",
    ),
}


def feature_mean_squared_error(images: Inputs, target: Inputs, features: Callable[[Tensor], Tensor]) -> Scores:
    """Mean squared difference of the features of both pictures, 0 for equal ones.

    Args:
        images: reconstructions in pixel space; clamped to [0, 1].
        target: the truths, of the same shape.
        features: takes images to `[n, d]`, here a network's logits.

    Returns:
        One number per image, in squared units of the features, at least 0.

    Raises:
        InputError: the shapes differ.

    >>> feature_mean_squared_error(torch.zeros(2, 1, 4, 4), torch.ones(2, 1, 4, 4), lambda x: 3 * x.flatten(1))
    tensor([9., 9.])
    """
    with torch.no_grad():
        found, true = (features(pixels).flatten(1) for pixels in _values(images, target))
        return (found - true).square().mean(dim=1)


def label_accuracy(labels: Targets, target_labels: Targets) -> Scores:
    """Whether each label is the true one: 1 or 0 per example; of several answers of yes or no all must be.

    Args:
        labels: the recovered class indices, or answers of 0 and 1, `[n]` or `[n, k]`. Probabilities `[n, k]` where the
            truth is one class each count by the greatest.
        target_labels: the true ones, as many.

    Raises:
        InputError: the numbers of labels differ.

    >>> label_accuracy(torch.tensor([3, 1]), torch.tensor([3, 2]))
    tensor([1., 0.])
    """
    if labels.ndim == 2 and target_labels.ndim == 1 and labels.shape[1] > 1:
        labels = labels.argmax(dim=1)
    if labels.numel() != target_labels.numel() or len(labels) != len(target_labels):
        raise InputError(f"label_accuracy expects as many labels as truths, got {len(labels)} and {len(target_labels)}")
    found, true = (each.to(labels.device).double().reshape(len(labels), -1) for each in (labels, target_labels))
    return (found.round() == true).all(dim=1).float()


def learned_perceptual_image_patch_similarity(
    pictures: Images, true_pictures: Images, perceptual: Callable[[Tensor, Tensor], Tensor]
) -> Scores:
    """How different two pictures look by the features of a trained network (LPIPS), 0 for the same picture.

    Args:
        pictures: reconstructions in pixel space; clamped to [0, 1].
        true_pictures: the truths, of the same shape.
        perceptual: takes both to one distance an image; `lpips.read_perceptual` makes one from a file of weights.

    Raises:
        InputError: the shapes differ, or pictures that the network does not take.

    >>> difference = lambda images, target: (images - target).abs().mean(dim=(1, 2, 3))
    >>> learned_perceptual_image_patch_similarity(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), difference)
    tensor([1.])
    """
    with torch.no_grad():
        return perceptual(*_pixels(pictures, true_pictures))


def mean_squared_error(images: Inputs, target: Inputs) -> Scores:
    """Mean squared difference of pixels, from 0 for the same picture to 1; of ids the share of places that differ.

    Args:
        images: reconstructions in pixel space; clamped to [0, 1].
        target: the truths, of the same shape.

    Raises:
        InputError: the shapes differ.

    >>> mean_squared_error(torch.full((1, 3, 8, 8), 0.5), torch.ones(1, 3, 8, 8))
    tensor([0.2500])
    """
    found, true = _values(images, target)
    if not true.is_floating_point():
        return (found != true).float().flatten(1).mean(dim=1)
    return (found - true).square().mean(dim=tuple(range(1, true.ndim)))


def peak_signal_noise_ratio(images: Inputs, target: Inputs) -> Scores:
    """Squared error on a logarithmic scale, in decibels (dB): from 0 to 200, the cap, which identical images have.

    Args:
        images: reconstructions in pixel space; clamped to [0, 1].
        target: the truths, of the same shape.

    Raises:
        InputError: the shapes differ.

    >>> peak_signal_noise_ratio(torch.full((1, 3, 8, 8), 0.9), torch.ones(1, 3, 8, 8))
    tensor([20.0000])
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio as ratio

    found, true = _values(images, target)
    if not true.is_floating_point():
        return (-10 * mean_squared_error(found, true).log10()).clamp(max=IDENTICAL_DB)
    # Without dim and reduction the error is pooled over the batch before the logarithm.
    decibels: Tensor = ratio(found, true, data_range=1.0, dim=tuple(range(1, true.ndim)), reduction="none")
    return decibels.clamp(max=IDENTICAL_DB)


def structural_similarity(pictures: Images, true_pictures: Images) -> Scores:
    """Agreement of local brightness, contrast and pattern, from -1 to 1, which only equal pictures have.

    The window is Gaussian, 11 pixels wide with a standard deviation of 1.5, and the mean is taken where
    it lies wholly inside the picture. In pictures with a side below 11 it is the widest odd window that
    fits, of radius `r` and standard deviation `r / 3.5`; below 3 only brightness is compared.

    Args:
        pictures: reconstructions in pixel space; clamped to [0, 1].
        true_pictures: the truths, of the same shape.

    Raises:
        InputError: the shapes differ.

    >>> structural_similarity(torch.full((1, 1, 16, 16), 0.5), torch.ones(1, 1, 16, 16))
    tensor([0.8000])
    """
    from torchmetrics.functional.image import structural_similarity_index_measure as similarity

    found, true = _pixels(pictures, true_pictures)
    radius = min(WINDOW_RADIUS, (min(found.shape[-2:]) - 1) // 2)
    sigma = WINDOW_SIGMA if radius == WINDOW_RADIUS else max(radius, 0.1) / 3.5
    # Without data_range the range is taken from the batch. The library's own mean counts reflected borders.
    _, full = similarity(found, true, sigma=sigma, data_range=1.0, reduction="none", return_full_image=True)
    height, width = full.shape[-2:]
    inside: Tensor = full[..., radius : height - radius, radius : width - radius]
    return inside.mean(dim=(1, 2, 3))


def _values(images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Both on one device: real numbers clamped to [0, 1] in one type of at least single precision, ids as they are."""
    if images.shape != target.shape or images.ndim < 2:
        raise InputError(
            f"a metric compares examples [n, *shape] of one shape, reconstruction first; "
            f"got {tuple(images.shape)} and {tuple(target.shape)}"
        )
    if not target.is_floating_point():
        return images.detach(), target.detach().to(images.device)
    dtype = torch.promote_types(torch.promote_types(images.dtype, target.dtype), torch.float32)
    found, true = (pixels.detach().to(images.device, dtype).clamp(0, 1) for pixels in (images, target))
    return found, true


def _pixels(pictures: Tensor, true: Tensor) -> tuple[Tensor, Tensor]:
    """The values of pictures."""
    if pictures.shape != true.shape or pictures.ndim != 4:
        raise InputError(
            "a metric of pictures compares images [n, c, h, w] of one shape, reconstruction first; "
            f"got {tuple(pictures.shape)} and {tuple(true.shape)}"
        )
    return _values(pictures, true)
