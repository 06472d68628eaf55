"""Loss functions of the client: (outputs, labels) -> scalar.

Labels are class indices `[n]`, or probabilities `[n, k]` where an attack optimizes over them too; for binary cross
entropy and regression they are numbers, one an output; for the next token's, the sentences themselves. Any other
function of outputs and labels is a loss as well; of torch's own losses those that are one of ours become it where they
come in (`as_loss`).

A loss with a link (`Linked`) also says what the network predicts, mu(o), and which targets give a derivative:

    cross entropy, binary cross entropy, Poisson      dl/do = mu(o) - y       mu = softmax, sigmoid, exp
    squared error                                     dl/do = 2 (mu(o) - y)   mu(o) = o
    Huber                                             dl/do = mu(o) - y       mu(o) = o, while |o - y| < delta

These are the canonical links of generalized linear models (Nelder and Wedderburn 1972) but for Huber's, whose
derivative keeps no more than a sign beyond delta.
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

from inversefed.types import Labels, Logits, PlaceLogits, Scalar, Sentences, SoftLabels, Targets

__all__ = [
    "BinaryCrossEntropy",
    "CrossEntropy",
    "FocalLoss",
    "Huber",
    "MeanSquaredError",
    "NegativeLogLikelihood",
    "NextToken",
    "PoissonNLL",
]

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

    def predict(self, outputs: Logits) -> Tensor:
        """The softmax, `[n, k]`."""
        return outputs.softmax(dim=1)

    def recover(self, outputs: Logits, slopes: Tensor) -> Tensor:
        """Probabilities `[n, k]`: `y = ((softmax(o) - dl/do) - e / k) / (1 - e)`, e what is smoothed."""
        smoothed = self.predict(outputs) - _each(slopes, self.reduction, len(outputs))
        return (smoothed - self.label_smoothing / outputs.shape[1]) / (1 - self.label_smoothing)


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

    def predict(self, outputs: Logits) -> Tensor:
        """The sigmoid, `[n, k]`."""
        return outputs.sigmoid()

    def recover(self, outputs: Logits, slopes: Tensor) -> Tensor:
        """Answers `[n, k]`: `y = sigmoid(o) - dl/do`."""
        return self.predict(outputs) - _each(slopes, self.reduction, outputs.numel())


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

    def predict(self, outputs: Logits) -> Tensor:
        """The outputs themselves."""
        return outputs

    def recover(self, outputs: Logits, slopes: Tensor) -> Tensor:
        """Numbers `[n, k]`: `y = o - (dl/do) / 2`."""
        return outputs - _each(slopes, self.reduction, outputs.numel()) / 2


@dataclass(frozen=True)
class Huber:
    """Squared error up to a distance, and the distance beyond it: regression that outliers do not carry away.

    `l = e^2 / 2` for `|e| <= delta`, else `delta (|e| - delta / 2)`, with `e = o - y` (Huber 1964, with torch's scale).

    Args:
        delta: the distance, greater than 0.
        reduction: `"mean"` or `"sum"` over examples and outputs.

    >>> import torch
    >>> Huber()(torch.zeros(2, 1), torch.tensor([0.5, 3.0]))
    tensor(1.3125)
    """

    delta: float = 1.0
    reduction: Literal["mean", "sum"] = "mean"

    def __call__(self, logits: Logits, labels: SoftLabels) -> Scalar:
        """Loss of the batch; labels `[n]` for one output, else `[n, k]`."""
        return F.huber_loss(logits, _like(labels, logits), reduction=self.reduction, delta=self.delta)

    def predict(self, outputs: Logits) -> Tensor:
        """The outputs themselves."""
        return outputs

    def recover(self, outputs: Logits, slopes: Tensor) -> Tensor:
        """Numbers `[n, k]`: `y = o - dl/do` where `|dl/do| < delta`; NaN where it is saturated, a sign alone."""
        each = _each(slopes, self.reduction, outputs.numel())
        return torch.where(each.abs() < self.delta * (1 - _SATURATED), outputs - each, torch.nan)


@dataclass(frozen=True)
class PoissonNLL:
    """Negative log-likelihood of counts, for outputs that are logarithms of rates: `exp(o) - y o`, up to a constant.

    Args:
        reduction: `"mean"` or `"sum"` over examples and outputs.

    >>> import torch
    >>> PoissonNLL()(torch.zeros(2, 1), torch.tensor([0, 3]))
    tensor(1.)
    """

    reduction: Literal["mean", "sum"] = "mean"

    def __call__(self, logits: Logits, labels: Targets) -> Scalar:
        """Loss of the batch; labels at least 0, `[n]` for one output, else `[n, k]`."""
        return F.poisson_nll_loss(logits, _like(labels, logits), log_input=True, full=False, reduction=self.reduction)

    def predict(self, outputs: Logits) -> Tensor:
        """The rates `exp(o)`, `[n, k]`."""
        return outputs.exp()

    def recover(self, outputs: Logits, slopes: Tensor) -> Tensor:
        """Counts `[n, k]`: `y = exp(o) - dl/do`."""
        return self.predict(outputs) - _each(slopes, self.reduction, outputs.numel())


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

    def predict(self, outputs: Logits) -> Tensor:
        """The probabilities `exp(o)`, `[n, k]`."""
        return outputs.exp()

    def recover(self, outputs: Logits, slopes: Tensor) -> Tensor:
        """The class as a row of 0 and 1, `[n, k]`: `y = -dl/do`."""
        return -_each(slopes, self.reduction, len(outputs))


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

    def predict(self, outputs: Logits) -> Tensor:
        """The softmax, `[n, k]`."""
        return outputs.softmax(dim=1)

    def recover(self, outputs: Logits, slopes: Tensor) -> Tensor:
        """The class as a row of 0 and 1, `[n, k]`: the label's derivative is the only negative one.

        `dl/do_j = w (p_j - [j = y])` with `w = (1 - p_y)^gamma - gamma p_y (1 - p_y)^(gamma - 1) log p_y > 0`.
        """
        return F.one_hot(slopes.argmin(dim=1), slopes.shape[1]).to(outputs.dtype)


@dataclass(frozen=True)
class NextToken:
    """Cross entropy of the next token at every place of a sentence, as language models are trained.

        l = -1/N sum_t log softmax(o_t)[v_(t+1)],    over the N places t whose next token is not the pad

    Its labels are the sentences themselves. Logits are `[n, length, vocabulary]`; the last token of a sentence is a
    target alone, so nothing but the loss says which one it is.

    Args:
        pad: the id that fills sentences up at their end; it is no target.
        reduction: `"mean"` or `"sum"` over the places of all sentences.

    >>> import torch
    >>> NextToken(pad=0)(torch.zeros(1, 4, 5), torch.tensor([[3, 2, 0, 0]]))
    tensor(1.6094)
    """

    pad: int = 0
    reduction: Literal["mean", "sum"] = "mean"

    def __call__(self, logits: PlaceLogits, labels: Sentences) -> Scalar:
        """Loss of the batch; logits `[n, length, vocabulary]`, labels the ids `[n, length]`."""
        outputs, targets = logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        total = F.cross_entropy(outputs, targets, ignore_index=self.pad, reduction="sum")
        return total if self.reduction == "sum" else total / (targets != self.pad).sum().clamp(min=1)

    @property
    def labels_are_inputs(self) -> bool:
        """True."""
        return True


@runtime_checkable
class Linked(Protocol):
    """A loss with a link: what its outputs predict, and which targets it had, by the derivative that they gave.

    `recover` undoes the derivative, reduction included. A loss without these two is called on targets instead.

    >>> loss, outputs, labels = PoissonNLL(), torch.zeros(2, 1, requires_grad=True), torch.tensor([0, 3])
    >>> (slopes,) = torch.autograd.grad(loss(outputs, labels), outputs)
    >>> loss.recover(outputs.detach(), slopes)
    tensor([[0.],
            [3.]])
    """

    def predict(self, outputs: Tensor) -> Tensor:
        """The prediction mu(o) of outputs `[n, k]`, as the targets are numbered, `[n, k]`."""
        ...

    def recover(self, outputs: Tensor, slopes: Tensor) -> Tensor:
        """The targets `[n, k]` under which the loss of a batch has a derivative; NaN where it does not tell them.

        Args:
            outputs: of the network, `[n, k]`.
            slopes: the derivative of the loss of this batch with respect to them, `[n, k]`.
        """
        ...


def link_of(loss: object) -> Linked | None:
    """The loss, if it has a link.

    >>> link_of(Huber(2.0)), link_of(nn.functional.mse_loss)
    (Huber(delta=2.0, reduction='mean'), None)
    """
    return loss if isinstance(loss, Linked) else None


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


@runtime_checkable
class OfPlaces(Protocol):
    """A loss of every place of a sentence, whose labels are the sentences themselves, as `NextToken` is.

    It takes logits `[n, length, vocabulary]` and ids `[n, length]`, so that nobody tells its labels but who has the
    sentences, and an attack finds them with these. A loss of your own says so by this one property.
    """

    @property
    def labels_are_inputs(self) -> bool:
        """Whether the labels are the inputs themselves."""
        ...


def labels_are_inputs(loss: object) -> bool:
    """Whether the labels of a loss are the inputs themselves: not so where it does not say.

    >>> labels_are_inputs(NextToken()), labels_are_inputs(CrossEntropy())
    (True, False)
    """
    return isinstance(loss, OfPlaces) and loss.labels_are_inputs


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
    reduction: Literal["mean", "sum"] = "sum" if reduction_of(loss) == "sum" else "mean"
    if reduction_of(loss) not in ("mean", "sum"):
        return loss
    if type(loss) is nn.CrossEntropyLoss and loss.weight is None and loss.ignore_index == _NO_INDEX:
        return CrossEntropy(reduction, loss.label_smoothing)
    if type(loss) is nn.NLLLoss and loss.weight is None and loss.ignore_index == _NO_INDEX:
        return NegativeLogLikelihood(reduction)
    if type(loss) is nn.HuberLoss:
        return Huber(loss.delta, reduction)
    if type(loss) is nn.PoissonNLLLoss and loss.log_input and not loss.full:
        return PoissonNLL(reduction)
    return loss


_SATURATED = 1e-4
"""Share of Huber's delta within which a derivative may be the delta itself, by rounding of single precision."""

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

    @property
    def labels_are_inputs(self) -> bool:
        """As those of the loss itself."""
        return labels_are_inputs(self.loss)

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
    found = set[int]()
    for number, (zeros, labels) in enumerate(made_up_calls(loss, torch.zeros(2, outputs, dtype=dtype, device=device))):
        with suppress(Exception), warnings.catch_warnings():  # the loss is foreign code
            warnings.simplefilter("ignore")
            loss(zeros, labels)
            found.add(number)
    return found


def made_up_calls(loss: Loss, zeros: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Outputs and labels on which a loss may run, in every form that labels have.

    Args:
        loss: of which it is only asked whether its labels are the inputs.
        zeros: outputs of two examples, `[2, k]`.
    """
    if labels_are_inputs(loss):
        return [(zeros[:, None].expand(-1, 2, -1), zeros.new_zeros(2, 2, dtype=torch.long))]
    return [(zeros, labels) for labels in (zeros[:, 0].long(), zeros.long(), zeros[:, 0], zeros)]


def _each(slopes: Tensor, reduction: str, terms: int) -> Tensor:
    """The derivative of each term of a loss by itself, from that of their mean or sum."""
    return slopes * terms if reduction == "mean" else slopes


def _like(labels: Tensor, logits: Tensor) -> Tensor:
    """Labels as numbers, one an output: those of one output may be `[n]`."""
    return (labels[:, None] if labels.ndim == 1 and logits.shape[1] == 1 else labels).to(logits.dtype)
