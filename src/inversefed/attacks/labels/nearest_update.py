"""Labels where the pictures are known already: of those that are tried, the ones whose update comes nearest.

    y = argmin_y |client(network, x, y) - u|^2,    y among the classes, -1 and 1, and  z - c gb / |gb|_inf,  z - c gb

A method that solves for the picture needs no labels; only the proof of its result does. Of numbers the derivative
of a distance points from the target to the output z, along the gradient gb of the head's bias: c is the number of
outputs for Huber's loss, half of it for the squared error, and any at all for the absolute error, whose update is the
same for all targets on one side: then the label is one of them.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import suppress

import torch
from torch import Tensor

from inversefed.attacks.labels.recovered import RecoveredLabels
from inversefed.attacks.matching_error import matching_error
from inversefed.errors import InversefedError, ThreatModelError
from inversefed.findings import Code
from inversefed.fl.foreign import foreign_code
from inversefed.fl.targets import as_targets, class_count, forms
from inversefed.fl.threat import Observation
from inversefed.types import Finding, Inputs, Targets

__all__ = ["labels_of"]

_MOST_CLASSES = 64
"""Most classes that are tried where no rule tells the label; each costs an update."""


def labels_of(
    observation: Observation, images: Inputs, stop: Callable[[], bool] = lambda: False
) -> tuple[Targets, tuple[Finding, ...]]:
    """Granted or recovered labels; else those with which the update of a known picture comes nearest.

    Args:
        observation: of one example.
        images: its picture, `[1, c, h, w]` in pixel space.
        stop: whether the time is used up, asked before each but the first that is tried.

    Returns:
        The labels, and the finding `labels-tried` where no rule told them.

    Raises:
        ThreatModelError: no rule applies, and none that is tried gives an update.
    """
    if observation.labels is not None:
        return observation.labels, ()
    try:
        found = RecoveredLabels()(observation)
        return found if found.is_floating_point() else as_targets(observation.network, found), ()
    except ThreatModelError:
        best, least = None, math.inf
        for each in _tried(observation, images):
            if best is not None and stop():
                break
            cost = _cost(observation, images, each)
            best, least = (each, cost) if cost < least else (best, least)
        if best is None:
            raise
        message = (
            "No rule tells the label. It is the one, of those that were tried, whose update comes nearest; others "
        )
        message += "may make the same."
        return best, (Finding(Code.LABELS_TRIED, "info", message, {"relative_matching_cost": least}),)


def _tried(observation: Observation, images: Inputs) -> Iterator[Targets]:
    network, taken = observation.network, forms(observation.network)
    if "classes" in taken and class_count(network) <= _MOST_CLASSES:
        yield from torch.arange(class_count(network), device=network.device)[:, None]
    if not {"rows", "values"} & set(taken):
        return
    form = "rows" if "rows" in taken else "values"  # the absolute error broadcasts values against rows, unseen
    outputs, width = network.features(images), max(1, network.num_classes)
    shape = outputs.shape if form == "rows" else outputs.shape[:1]
    if width == 1:
        yield from (outputs.new_full(shape, sign) for sign in (1.0, -1.0, 0.0))
    bias = observation.gradient.get(f"{network.head}.bias")
    if bias is None or bias.numel() != outputs.numel() or not bool(bias.any()):
        return
    pull = bias.detach().to(outputs).reshape(shape)
    for each in (*(factor * pull for factor in (width / 2, width, 0.5, 1.0)), pull.sign()):
        yield outputs.reshape(shape) - each


def _cost(observation: Observation, images: Inputs, labels: Tensor) -> float:
    with suppress(InversefedError), foreign_code("the update of a label"):  # a loss may refuse it
        return matching_error(observation, images, labels)
    return math.inf
