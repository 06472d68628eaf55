"""Every metric at once, of a reconstruction or of a control.

A metric is called with what its parameters name, so one that is added to `metrics.__all__` is scored
and reported without a change here. What is not there is not invented: without labels or features the
metrics that need them are left out.
"""

import inspect
from collections.abc import Callable

from torch import Tensor

from inversefed.evaluation import metrics
from inversefed.inputs import InputSpace, pictured
from inversefed.types import Batch, Inputs, Scores, Targets

__all__ = ["score"]


def score(
    found: Batch | Inputs,
    truth: Batch,
    features: Callable[[Tensor], Tensor] | None = None,
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    space: InputSpace | None = None,
) -> dict[str, Scores]:
    """Judge examples by every metric of the registry, in its order, and by the measures of their input space.

    Args:
        found: pictures and their labels, in the order of the truth; or pictures alone, which leaves out
            what needs labels.
        truth: the private examples; labels that are not known, below 0, or that are numbers such as those of a
            regression, leave out what needs labels.
        features: takes images to `[n, d]`; `None` leaves out what needs it.
        perceptual: takes two batches of images to one distance each; `None` leaves out what needs it.
        space: what the examples are; `None` for pictures. Metrics of pictures are left out for others.

    Returns:
        One number per image, by the metric's name.

    Raises:
        InputError: numbers or shapes do not fit the truth.

    >>> import torch
    >>> truth = Batch(torch.zeros(1, 1, 8, 8), torch.tensor([3]))
    >>> score(truth.images + 0.1, truth)["peak_signal_noise_ratio"]
    tensor([20.0000])
    """
    images, labels = (found.images, found.labels) if isinstance(found, Batch) else (found, None)
    if labels is not None and labels.numel() == truth.labels.numel():  # of one output, [n] and [n, 1] are the same
        labels = labels.reshape(truth.labels.shape)
    given = {
        "images": images,
        "target": truth.images,
        "labels": labels,
        "target_labels": truth.labels,
        "features": features,
        "perceptual": perceptual,
    }
    if labels is None or not _judged(labels, truth.labels):
        given |= {"labels": None, "target_labels": None}
    if pictured(space):
        given |= {"pictures": images, "true_pictures": truth.images}
    known = {name: value for name, value in given.items() if value is not None}
    wanted = {name: inspect.signature(getattr(metrics, name)).parameters.keys() for name in metrics.__all__}
    found_scores = {
        name: getattr(metrics, name)(**{parameter: known[parameter] for parameter in parameters})
        for name, parameters in wanted.items()
        if parameters <= known.keys()
    }
    return found_scores if space is None else {**space.measures(images, truth.images), **found_scores}


def _judged(found: Targets, true: Targets) -> bool:
    """Whether labels are right or wrong: classes that are known, or answers of yes and no, not other numbers."""
    if true.is_floating_point():
        return found.numel() == true.numel() and bool(((true == 0) | (true == 1)).all())
    return not bool((true < 0).any())  # the owner gave pictures without their labels
