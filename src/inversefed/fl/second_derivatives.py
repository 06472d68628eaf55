"""Modules as a search needs them: without wrappers, and with operations that torch can differentiate twice.

The gradient of a guess is differentiated once more, with respect to the guess. Compiled modules have no second
derivative, and neither have `hardsigmoid` and margin losses; what they compute can be had in a form that has one.
"""

import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from inversefed.fl.losses import Loss, WrappedLoss, made_up_calls

__all__ = ["TwiceDifferentiable", "twice_differentiable", "unwrap_parts", "unwrapped"]


def unwrapped(module: nn.Module) -> nn.Module:
    """The module within `torch.compile`, DataParallel and DistributedDataParallel, however they are nested.

    Only what stands around the whole network is taken off, and the module itself is returned, not a copy.

    >>> inner = nn.Linear(2, 2)
    >>> unwrapped(nn.DataParallel(inner)) is inner
    True
    """
    while (name := _wraps(module)) is not None:
        module = module.get_submodule(name)
    return module


def unwrap_parts(module: nn.Module) -> None:
    """Take such wrappers off the parts of a module, in place; their parameters keep their names."""
    for name, part in list(module.named_modules()):
        if name and (inner := _wraps(part)) is not None:
            module.set_submodule(name, _PassesOn(inner, part.get_submodule(inner)))


def _wraps(module: nn.Module) -> str | None:
    """The name under which a wrapper holds what it wraps."""
    if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return "module"
    return "_orig_mod" if "_orig_mod" in module._modules else None  # torch.compile's own class takes seconds to import


class _PassesOn(nn.Module):
    def __init__(self, name: str, inner: nn.Module) -> None:
        super().__init__()
        self.add_module(name, inner)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        (inner,) = self._modules.values()
        assert inner is not None
        return inner(*args, **kwargs)


def _hardsigmoid(inputs: Tensor, inplace: bool = False) -> Tensor:  # noqa: ARG001 - torch's own arguments
    return F.relu6(inputs + 3) / 6


def _multi_margin_loss(
    inputs: Tensor, target: Tensor, p: int = 1, margin: float = 1.0, weight: Tensor | None = None,
    size_average: bool | None = None, reduce: bool | None = None, reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """`sum_j w[y] max(0, margin - z_y + z_j)^p / k` over all other classes j."""
    rows, labels = inputs.reshape(-1, inputs.shape[-1]), target.reshape(-1, 1)
    over = (margin - rows.gather(1, labels) + rows).clamp(min=0) ** p
    over = over if weight is None else over * weight[labels]
    own = F.one_hot(labels[:, 0], rows.shape[1]).bool()
    each = over.masked_fill(own, 0).sum(dim=1) / rows.shape[1]
    return _reduced(each if inputs.ndim > 1 else each[0], size_average, reduce, reduction)


def _multilabel_margin_loss(
    inputs: Tensor, target: Tensor, size_average: bool | None = None, reduce: bool | None = None,
    reduction: str = "mean",
) -> Tensor:  # fmt: skip
    """`sum max(0, 1 - z_y + z_j) / k` over labels y, which end at the first -1, and all classes j that are none."""
    rows, labels = (part.reshape(-1, inputs.shape[-1]) for part in (inputs, target))
    counted = (labels >= 0).cumprod(dim=1).bool()
    own = (F.one_hot(labels.clamp(min=0), rows.shape[1]) * counted[:, :, None]).any(dim=1)
    over = (1 - rows.gather(1, labels.clamp(min=0))[:, :, None] + rows[:, None]).clamp(min=0)
    each = over.masked_fill(~(counted[:, :, None] & ~own[:, None]), 0).sum(dim=(1, 2)) / rows.shape[1]
    return _reduced(each if inputs.ndim > 1 else each[0], size_average, reduce, reduction)


def _reduced(each: Tensor, size_average: bool | None, reduce: bool | None, reduction: str) -> Tensor:
    if size_average is not None or reduce is not None:  # torch's older names for the same
        reduction = "none" if reduce is False else "sum" if size_average is False else "mean"
    return {"none": each, "sum": each.sum(), "mean": each.mean()}[reduction]


_EQUAL: Mapping[Callable[..., Any], Callable[..., Any]] = {
    F.hardsigmoid: _hardsigmoid,
    F.multi_margin_loss: _multi_margin_loss,
    F.multilabel_margin_loss: _multilabel_margin_loss,
}
"""Operations without a second derivative in torch, and an equal form."""


class TwiceDifferentiable(TorchFunctionMode):
    """Within it, operations that torch cannot differentiate twice run in an equal form that it can.

    Attributes:
        replaced: whether one did.
    """

    def __init__(self) -> None:
        super().__init__()
        self.replaced = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation."""
        self.replaced = self.replaced or func in _EQUAL
        return _EQUAL.get(func, func)(*args, **(kwargs or {}))


def twice_differentiable(loss: Loss, outputs: int, like: Tensor) -> Loss:
    """The loss in an equal form, where it uses an operation that torch cannot differentiate twice; else as it is.

    Args:
        loss: any.
        outputs: how many outputs the network has.
        like: of the number format and device of these.

    >>> [twice_differentiable(each, 4, Tensor([0.0])) for each in (nn.MultiMarginLoss(), nn.MSELoss())]
    [MultiMarginLoss(), MSELoss()]
    """
    with TwiceDifferentiable() as mode, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for zeros, labels in made_up_calls(loss, like.new_zeros(2, outputs)):
            with suppress(Exception):  # the loss is foreign code, and takes one of these forms at most
                loss(zeros, labels)
    return _Twice(loss) if mode.replaced else loss


@dataclass(frozen=True, repr=False)
class _Twice(WrappedLoss):
    """A loss that runs in such a form."""

    def __call__(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """The loss of the batch."""
        with TwiceDifferentiable():
            return self.loss(outputs, labels)
