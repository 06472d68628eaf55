"""Losses as 2020 handed them out: `loss_fn(x, y) -> (value, name, format)`, and `loss_fn.metric` likewise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from inversefed.compat.metrics import psnr

__all__ = ["Loss", "Measure", "classification", "restoration"]


@dataclass(frozen=True)
class Measure:
    """A number that says its name and how it is printed.

    Args:
        name: what it is called.
        format: a format specification.
        of: (outputs, targets) -> scalar.
    """

    name: str
    format: str
    of: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, x: Tensor | None = None, y: Tensor | None = None) -> Any:
        """Return (value, name, format), or (name, format) where nothing is given to measure."""
        if x is None or y is None:
            return self.name, self.format
        return self.of(x, y), self.name, self.format


@dataclass(frozen=True)
class Loss:
    """What is minimized, and the metric that is meant.

    Args:
        loss: the minimized measure; a call of the whole is a call of this.
        metric: the other.
    """

    loss: Measure
    metric: Measure

    def __call__(self, x: Tensor | None = None, y: Tensor | None = None) -> Any:
        """Return (value, name, format) of the loss, or (name, format)."""
        return self.loss(x, y)


def classification() -> Loss:
    """Return the mean cross entropy, and accuracy in [0, 1]."""
    return Loss(Measure("CrossEntropy", "1.5f", _cross_entropy), Measure("Accuracy", "6.2%", _accuracy))


def restoration() -> Loss:
    """Return half the mean squared error, and the mean PSNR in dB, for networks that return pictures."""
    return Loss(Measure("MSE", ".6f", _half_squared_error), Measure("avg PSNR", ".3f", _psnr))


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels)


def _accuracy(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.detach().argmax(dim=1) == labels).float().mean()


def _half_squared_error(images: Tensor, targets: Tensor) -> Tensor:
    return 0.5 * F.mse_loss(images, targets)


def _psnr(images: Tensor, targets: Tensor) -> Tensor:
    return torch.tensor(psnr(images, targets))
