"""Modules as a search needs them: without wrappers, and with operations that torch can differentiate twice.

The gradient of a guess is differentiated once more, with respect to the guess. Compiled modules have no second
derivative, and neither has `hardsigmoid`; what they compute can be had in a form that has one.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

__all__ = ["TwiceDifferentiable", "unwrap_parts", "unwrapped"]


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


_EQUAL: Mapping[Callable[..., Any], Callable[..., Any]] = {F.hardsigmoid: _hardsigmoid}
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
