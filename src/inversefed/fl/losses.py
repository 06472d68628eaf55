"""What a client minimizes: (outputs, labels) -> scalar.

Labels are class indices `[n]`, or probabilities `[n, k]` where an attack optimizes over them too; for binary cross
entropy and regression they are numbers, one an output. Any other function of outputs and labels is a loss as well.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from torch.nn import functional as F

from inversefed.types import Labels, Logits, Scalar, SoftLabels, Targets

__all__ = ["BinaryCrossEntropy", "CrossEntropy", "FocalLoss", "MeanSquaredError", "NegativeLogLikelihood"]


@dataclass(frozen=True)
class CrossEntropy:
    """Cross entropy of softmax probabilities.

    Args:
        reduction: `"mean"` or `"sum"` over the examples.
        label_smoothing: how much of each label is spread over all classes, in [0, 1).

    >>> import torch
    >>> CrossEntropy()(torch.zeros(2, 4), torch.tensor([0, 3]))
    tensor(1.3863)
    """

    reduction: Literal["mean", "sum"] = "mean"
    label_smoothing: float = 0.0

    def __call__(self, logits: Logits, labels: Labels | SoftLabels) -> Scalar:
        """Loss of the batch."""
        return F.cross_entropy(logits, labels, reduction=self.reduction, label_smoothing=self.label_smoothing)


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """Binary cross entropy of the sigmoid of each output: one output for yes or no, or several independent answers.

    Args:
        reduction: `"mean"` or `"sum"` over examples and outputs.

    >>> import torch
    >>> BinaryCrossEntropy()(torch.zeros(2, 1), torch.tensor([0, 1]))
    tensor(0.6931)
    """

    reduction: Literal["mean", "sum"] = "mean"

    def __call__(self, logits: Logits, labels: Targets) -> Scalar:
        """Loss of the batch; labels in [0, 1], `[n]` for one output, else `[n, k]`."""
        return F.binary_cross_entropy_with_logits(logits, _like(labels, logits), reduction=self.reduction)


@dataclass(frozen=True)
class MeanSquaredError:
    """Squared error of the outputs themselves: regression.

    Args:
        reduction: `"mean"` or `"sum"` over examples and outputs.

    >>> import torch
    >>> MeanSquaredError()(torch.zeros(2, 1), torch.tensor([1.0, 3.0]))
    tensor(5.)
    """

    reduction: Literal["mean", "sum"] = "mean"

    def __call__(self, logits: Logits, labels: SoftLabels) -> Scalar:
        """Loss of the batch; labels `[n]` for one output, else `[n, k]`."""
        return F.mse_loss(logits, _like(labels, logits), reduction=self.reduction)


@dataclass(frozen=True)
class NegativeLogLikelihood:
    """Negative log-likelihood, for a network whose outputs are logarithms of probabilities (a log-softmax at its end).

    Args:
        reduction: `"mean"` or `"sum"` over the examples.

    >>> import torch
    >>> NegativeLogLikelihood()(torch.full((2, 4), 0.25).log(), torch.tensor([0, 3]))
    tensor(1.3863)
    """

    reduction: Literal["mean", "sum"] = "mean"

    def __call__(self, logits: Logits, labels: Labels) -> Scalar:
        """Loss of the batch."""
        return F.nll_loss(logits, labels, reduction=self.reduction)


@dataclass(frozen=True)
class FocalLoss:
    """Cross entropy that counts an example less the surer the network is of it, `-(1 - p)^gamma log p`.

    Lin et al. (2017), arXiv:1708.02002, equation 4; the paper's gamma is 2.

    Args:
        gamma: how much less; 0 is cross entropy.
        reduction: `"mean"` or `"sum"` over the examples.

    >>> import torch
    >>> FocalLoss()(torch.zeros(2, 4), torch.tensor([0, 3]))
    tensor(0.7798)
    """

    gamma: float = 2.0
    reduction: Literal["mean", "sum"] = "mean"

    def __call__(self, logits: Logits, labels: Labels) -> Scalar:
        """Loss of the batch."""
        log = logits.log_softmax(dim=1).gather(1, labels[:, None]).squeeze(1)
        each = -((1 - log.exp()) ** self.gamma) * log
        return each.mean() if self.reduction == "mean" else each.sum()


def _like(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels as numbers, one an output: those of one output may be `[n]`."""
    return (labels[:, None] if labels.ndim == 1 and logits.shape[1] == 1 else labels).to(logits.dtype)
