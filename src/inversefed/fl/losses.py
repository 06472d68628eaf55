"""Loss functions of the client: (outputs, labels) -> scalar.

Labels are class indices `[n]`, or probabilities `[n, k]` where an attack optimizes over them too; for binary cross
entropy and regression they are numbers, one an output. Any other function of outputs and labels is a loss as well;
of torch's own losses those that are one of ours become it where they come in (`as_loss`).
"""

import copy
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversefed.types import Labels, Logits, Scalar, SoftLabels, Targets

__all__ = ["BinaryCrossEntropy", "CrossEntropy", "FocalLoss", "MeanSquaredError", "NegativeLogLikelihood"]

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""(logits `[n, k]`, labels `[n]` or probabilities `[n, k]`) -> scalar."""


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

    def __call__(self, logits: Logits, labels: Targets) -> Scalar:
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


@runtime_checkable
class Reduces(Protocol):
    """A loss that says how its examples come to one number, as all of ours and of torch's do."""

    @property
    def reduction(self) -> str:
        """`"mean"` or `"sum"`."""
        ...


def reduction_of(loss: Loss) -> str:
    """How a loss comes from its examples to one number: `"mean"` where it does not say.

    >>> reduction_of(nn.MSELoss(reduction="sum")), reduction_of(nn.functional.mse_loss)
    ('sum', 'mean')
    """
    return loss.reduction if isinstance(loss, Reduces) else "mean"


def is_plain_cross_entropy(loss: Loss) -> bool:
    """Whether it is softmax cross entropy of the labels as they are, without smoothing or class weights."""
    return isinstance(loss, CrossEntropy) and not loss.label_smoothing


def as_loss(loss: Loss | None) -> Loss:
    """A loss as the house computes with it: the mean cross entropy for none, ours for a torch module that is the same.

    Whatever holds more than ours do, such as class weights or an index to leave out, stays as it is.

    >>> as_loss(nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum"))
    CrossEntropy(reduction='sum', label_smoothing=0.1)
    >>> as_loss(nn.CrossEntropyLoss(weight=torch.ones(3)))
    CrossEntropyLoss()
    """
    if loss is None:
        return CrossEntropy()
    if type(loss) not in (nn.CrossEntropyLoss, nn.NLLLoss):
        return loss
    assert isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss)
    if loss.weight is not None or loss.ignore_index != _NO_INDEX or loss.reduction not in ("mean", "sum"):
        return loss
    reduction: Literal["mean", "sum"] = "mean" if loss.reduction == "mean" else "sum"
    if isinstance(loss, nn.CrossEntropyLoss):
        return CrossEntropy(reduction, loss.label_smoothing)
    return NegativeLogLikelihood(reduction)


_NO_INDEX = -100
"""torch's default of the label that is left out, which is none."""


@dataclass(frozen=True, repr=False)
class WrappedLoss:
    """A loss that is run in another way: it reduces and prints as the loss itself."""

    loss: Loss

    @property
    def reduction(self) -> str:
        """That of the loss itself."""
        return reduction_of(self.loss)

    def __repr__(self) -> str:
        return repr(self.loss)


@dataclass(frozen=True, repr=False)
class _Cast(WrappedLoss):
    """A loss that only computes in its own number format, since it holds numbers such as class weights in it."""

    dtype: torch.dtype

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The loss, in the number format of the outputs."""
        labels = labels.to(self.dtype) if labels.is_floating_point() else labels
        return self.loss(logits.to(self.dtype), labels).to(logits.dtype)


def in_precision(loss: Loss, outputs: int, own: torch.dtype, dtype: torch.dtype, device: torch.device) -> Loss:
    """The same loss for outputs of another number format: a module is cast, and what cannot be runs in its own.

    Args:
        loss: any.
        outputs: how many outputs the network has.
        own: the number format that it runs in now.
        dtype: the one that it is to take.
        device: where it runs.
    """
    wanted = _taken(loss, outputs, own, device)
    if wanted <= _taken(loss, outputs, dtype, device):
        return loss
    if isinstance(loss, nn.Module):
        cast = copy.deepcopy(loss).to(dtype)
        if wanted <= _taken(cast, outputs, dtype, device):
            return cast
    return _Cast(loss, own)


def _taken(loss: Loss, outputs: int, dtype: torch.dtype, device: torch.device) -> set[int]:
    """With labels of which form, by number, a loss runs in a number format."""
    zeros, found = torch.zeros(2, outputs, dtype=dtype, device=device), set[int]()
    for number, labels in enumerate((zeros[:, 0].long(), zeros[:, 0], zeros)):
        with suppress(Exception), warnings.catch_warnings():  # the loss is foreign code
            warnings.simplefilter("ignore")
            loss(zeros, labels)
            found.add(number)
    return found


def _like(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels as numbers, one an output: those of one output may be `[n]`."""
    return (labels[:, None] if labels.ndim == 1 and logits.shape[1] == 1 else labels).to(logits.dtype)
