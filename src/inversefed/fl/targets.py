"""The targets that a loss takes, found by calling it on random values and never by its name.

    classes: integers [n]        values: real numbers [n]        rows: real numbers [n, k], one an output

Softmax cross entropy takes classes, binary cross entropy and regression take values or rows. One output stands for two
classes, 0 and 1. The labels of the next token's loss are the sentences themselves, which is none of these forms. A form
counts as taken if the loss is one finite real number that has a derivative, and if no example's derivative depends on
another example's label: what broadcasts `[n]` against `[n, 1]` does not take `[n]`.
"""

import warnings
from dataclasses import replace
from typing import Literal, TypeAlias

import torch
from torch import Generator, Tensor

from inversefed.errors import InputError, UnsupportedNetworkError
from inversefed.fl.foreign import foreign_code
from inversefed.fl.losses import CrossEntropy, labels_are_inputs
from inversefed.fl.network import Network, eval_mode
from inversefed.types import Labels, Logits, SoftLabels, Targets

__all__ = [
    "Form",
    "as_rows",
    "as_targets",
    "check_labels",
    "class_count",
    "classes_of",
    "forms",
    "kinds",
    "loss_slope",
    "made_up_outputs",
    "made_up_targets",
]

Form: TypeAlias = Literal["classes", "values", "rows"]

_FORMS: tuple[Form, ...] = ("classes", "values", "rows")
_MEANT = {"classes": "class indices [n]", "values": "floats [n]", "rows": "floats [n, {k}]"}


def class_count(network: Network) -> int:
    """How many classes there are: one an output, and two for a single one."""
    return max(2, network.num_classes)


def loss_slope(network: Network, outputs: Logits, targets: Targets) -> Tensor:
    """The derivative of the loss with respect to the network's outputs, `[n, k]`.

    Args:
        network: for its loss.
        outputs: what the network says, `[n, k]`.
        targets: the labels, in a form that the loss takes.

    Raises:
        UnsupportedNetworkError: the loss raises, or is not one finite real number with a derivative.
    """
    with torch.enable_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        leaf = outputs.detach().clone().requires_grad_()
        given = f"outputs {list(outputs.shape)} and labels {list(targets.shape)} of {targets.dtype}"
        with foreign_code(f"the loss {network.loss!r} on {given}"):
            value = network.loss(leaf, targets)
            _check_value(network, value)
            (slope,) = torch.autograd.grad(value.reshape(()), leaf, materialize_grads=True)
    if not bool(slope.isfinite().all()):
        raise UnsupportedNetworkError(f"the derivative of the loss {network.loss!r} is not finite")
    return slope.detach()


def _check_value(network: Network, value: object) -> None:
    if not isinstance(value, Tensor) or value.numel() != 1 or value.dtype.is_complex:
        came = f"{list(value.shape)} of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise UnsupportedNetworkError(
            f"a loss must give one real number for a batch, and {network.loss!r} gives {came}; reduce it by mean or sum"
        )
    if not bool(value.isfinite()) or not value.requires_grad:
        what = "cannot be differentiated" if bool(value.isfinite()) else f"is {float(value)}"
        raise UnsupportedNetworkError(
            f"a loss must be finite and differentiable with respect to the network's outputs; {network.loss!r} {what}"
        )


def forms(network: Network) -> tuple[Form, ...]:
    """The forms of labels that the network's loss takes; none where it takes labels of another kind.

    Raises:
        UnsupportedNetworkError: the network does not run.

    >>> from torch import nn
    >>> from inversefed.fl.network import freeze
    >>> module = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    >>> forms(freeze(module, (3, 2, 2), loss=nn.BCEWithLogitsLoss()))
    ('rows',)
    """
    if isinstance(network.loss, CrossEntropy):
        return ("classes", "rows")
    if labels_are_inputs(network.loss):
        return ()
    return network.once(_taken)


def _taken(network: Network) -> tuple[Form, ...]:
    outputs = made_up_outputs(network)
    return tuple(form for form in _FORMS if _takes(network, outputs, form))


def made_up_outputs(network: Network, least: int = 2) -> Logits:
    """What the network says of random pictures in eval mode, `[n, k]`, n no less than `least` and other than k.

    Raises:
        UnsupportedNetworkError: the network does not run.
    """
    number = least + (least == network.num_classes)
    images = network.space.stand_ins(number, Generator().manual_seed(0))
    if images.is_floating_point():
        images = network.low.cpu() + (network.high - network.low).cpu() * images
    with eval_mode(network.module):
        return replace(network, masks={}, carried=None, functional=False).features(images)


def _takes(network: Network, outputs: Logits, form: Form) -> bool:
    """Whether the loss takes such labels, example by example."""
    targets = _made_up(network, len(outputs), form)
    other = targets.clone()
    other[-1] = other[0]
    try:
        slope, changed = (loss_slope(network, outputs, each) for each in (targets, other))
    except UnsupportedNetworkError:
        return False
    if network.num_classes > 1:  # class weights divide by the weights of all labels, which changes lengths alone
        slope, changed = (torch.nn.functional.normalize(each, dim=1) for each in (slope, changed))
    return torch.allclose(slope[:-1], changed[:-1], rtol=1e-4, atol=1e-5 * float(slope.abs().max()))


def _made_up(network: Network, count: int, form: Form) -> Targets:
    generator = Generator().manual_seed(0)
    if form == "classes":
        return torch.arange(count, device=network.device) % class_count(network)
    shape = (count,) if form == "values" else (count, network.num_classes)
    drawn = torch.rand(shape, generator=generator, dtype=torch.float64)
    if form == "rows" and network.num_classes > 1:  # probabilities, which all losses of rows take
        drawn = drawn / drawn.sum(dim=1, keepdim=True)
    return drawn.to(network.device, network.dtype)


def made_up_targets(network: Network, count: int) -> Targets:
    """Labels for pictures of nobody: each class in turn, where the loss takes classes.

    Raises:
        UnsupportedNetworkError: the loss takes none of the forms, so that nobody but the owner can name labels.
    """
    if labels_are_inputs(network.loss):
        return network.space.stand_ins(count, Generator().manual_seed(0)).to(network.device)
    taken = forms(network)
    if not taken:
        raise _untaken(network, taken, "none are given")
    if "classes" in taken or network.num_classes == 1:
        return as_targets(network, torch.arange(count, device=network.device) % class_count(network))
    return _made_up(network, count, taken[0])


def as_targets(network: Network, labels: Tensor) -> Targets:
    """Labels in the form that the loss takes; as they are where it takes them so.

    Of one output 0 and 1 may be integers or floats, `[n]` or `[n, 1]`; rows of 0 and 1 may be integers.

    Raises:
        UnsupportedNetworkError: the loss does not take them.

    >>> from torch import nn
    >>> from inversefed.fl.network import freeze
    >>> module = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    >>> as_targets(freeze(module, (3, 2, 2), loss=nn.BCEWithLogitsLoss()), torch.tensor([0, 1]))
    tensor([[0.],
            [1.]])
    """
    labels = labels.detach().to(network.device)
    labels = labels.to(network.dtype) if labels.is_floating_point() else labels.long()
    if isinstance(network.loss, CrossEntropy) or labels_are_inputs(network.loss):
        return labels
    taken = forms(network)
    for form in _wanted(labels, network.num_classes):
        if form in taken:
            return _shaped(network, labels, form)
    # Of two examples at least: the loss of one is a single number even where nothing reduces it.
    again = torch.arange(max(2, len(labels)), device=network.device)
    outputs = made_up_outputs(network)
    try:
        loss_slope(network, outputs[again % len(outputs)], labels[again % len(labels)])
    except UnsupportedNetworkError as error:
        came = f"labels {list(labels.shape)} of {labels.dtype} came; called with them, {error}"
        raise _untaken(network, taken, came) from error
    return labels


def _wanted(labels: Tensor, outputs: int) -> tuple[Form, ...]:
    """Which forms labels of this shape and type can be brought into, as they are first."""
    whole = not labels.is_floating_point() or bool((labels == labels.round()).all())
    if labels.ndim == 1:
        own: tuple[Form, ...] = ("values",) if labels.is_floating_point() else ("classes",)
        more: tuple[Form, ...] = ("values", "rows") if outputs == 1 else ()
        return (*own, *more, *(("classes",) if whole and outputs == 1 else ()))
    if labels.ndim != 2 or labels.shape[1] != outputs:
        return ()
    return ("rows", "values", *(("classes",) if whole else ())) if outputs == 1 else ("rows",)


def _shaped(network: Network, labels: Tensor, form: Form) -> Targets:
    if form == "classes":
        return labels.flatten().long()
    floats = labels.to(network.dtype)
    return floats.flatten() if form == "values" else floats.reshape(len(labels), -1)


def _untaken(network: Network, taken: tuple[Form, ...], came: str) -> UnsupportedNetworkError:
    known = " or ".join(_MEANT[form].format(k=network.num_classes) for form in taken)
    takes = f"takes {known}" if known else "takes neither class indices [n] nor floats [n] or [n, k]"
    return UnsupportedNetworkError(
        f"the loss {network.loss!r} {takes}, for a network of {network.num_classes} outputs; {came}"
    )


def classes_of(targets: Targets, outputs: int) -> Labels | None:
    """Class indices `[n]`, where the labels are such; of one output also where they are floats 0 and 1."""
    if not targets.is_floating_point():
        return targets if targets.ndim == 1 else None
    if outputs > 1 or not bool(((targets == 0) | (targets == 1)).all()):
        return None
    return targets.flatten().long()


def as_rows(network: Network, labels: Targets) -> SoftLabels:
    """Labels as numbers, one an output, `[n, k]`: classes as probabilities. It is what labels are mixed as."""
    if labels.is_floating_point():
        return labels
    rows = torch.nn.functional.one_hot(labels, class_count(network))[:, -max(1, network.num_classes) :]
    return rows.to(network.dtype)


def kinds(labels: Targets) -> Labels:
    """A number for each example, `[n]`, the same for equal labels of whatever form."""
    if labels.ndim == 1 and not labels.is_floating_point():
        return labels
    numbers: Labels = torch.unique(labels, dim=0, return_inverse=True)[1]
    return numbers


def check_labels(labels: Tensor, num_examples: int, network: Network) -> None:
    """Refuse labels that no loss takes, by their shape, type and range; the loss itself is not called.

    Raises:
        InputError: wrong shape or type, a label out of range, or numbers that are not finite.
    """
    numbers = isinstance(labels, Tensor) and not labels.dtype.is_complex and labels.dtype != torch.bool
    if labels_are_inputs(network.loss):
        wanted = (num_examples, *network.space.shape)
        if not numbers or labels.is_floating_point() or tuple(labels.shape) != wanted:
            raise InputError(f"labels of {network.loss!r} are the sentences themselves, ids {list(wanted)}: give them")
        return
    plain = isinstance(network.loss, CrossEntropy)
    if not numbers or labels.ndim not in (1, 2) or (plain and not _fits_cross_entropy(labels, network)):
        what = f"shape {tuple(labels.shape)} of {labels.dtype}" if isinstance(labels, Tensor) else repr(labels)
        also = "" if plain else ", or floats [n] or [n, k] where the loss takes such"
        raise InputError(f"labels are class indices, an integer tensor of shape [n]{also}; got {what}")
    if labels.shape[0] != num_examples:
        raise InputError(f"{num_examples} images need as many labels; got {labels.shape[0]}")
    if not bool(labels.isfinite().all()):
        raise InputError("labels must be finite numbers; got NaN or infinity")
    if num_examples and labels.ndim == 1 and not labels.is_floating_point():
        _check_range(labels, network)


def _fits_cross_entropy(labels: Tensor, network: Network) -> bool:
    return labels.ndim == 1 + labels.is_floating_point() and labels.shape[1:] in ((), (network.num_classes,))


def _check_range(labels: Tensor, network: Network) -> None:
    classes, single = class_count(network), network.num_classes == 1
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        also = " (a single output is two classes; give the numbers of a regression as floats)" if single else ""
        raise InputError(
            f"labels must lie in 0..{classes - 1} for this network{also}; got {int(labels.min())}..{int(labels.max())}"
        )
    if single and isinstance(network.loss, CrossEntropy):
        raise InputError(
            "the network has a single output, and softmax cross entropy of one class is always 0; give the client's "
            "loss, such as loss=BinaryCrossEntropy() for two classes"
        )
