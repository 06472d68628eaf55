"""What a client minimizes: (logits, labels) -> scalar.

Labels are class indices `[n]`, or probabilities `[n, k]` where an attack optimizes over them too.
"""

from dataclasses import dataclass
from typing import Literal

from torch.nn import functional as F

from inversefed.types import Labels, Logits, Scalar, SoftLabels

__all__ = ["CrossEntropy"]


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
