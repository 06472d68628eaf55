"""Optimizers of the attack: plain values that build a `torch.optim` optimizer for one restart.

`signed=True` hands the optimizer only the signs of the image gradient (Geiping et al. 2020, section 4):
with it, Adam takes steps of equal length in every pixel. `signed="soft"` hands it `tanh(s g) / s`, s falling from 1
to 0, which bounds a gradient at first and in the end leaves it as it is, as Geiping's later framework `breaching` does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from inversefed.errors import ConfigError

__all__ = ["LBFGS", "SGD", "Adam", "NormalizedMomentum"]


@runtime_checkable
class Optimizer(Protocol):
    """Builds the optimizer of one restart."""

    @property
    def lr(self) -> float:
        """Step length at the start."""
        ...

    @property
    def signed(self) -> bool | Literal["soft"]:
        """Whether the image gradient is replaced by its sign, or by a soft one."""
        ...

    def build(self, variables: Sequence[Tensor]) -> torch.optim.Optimizer:
        """A fresh optimizer over these leaves."""
        ...


@runtime_checkable
class SeveralEvaluations(Protocol):
    """An optimizer one iteration of which evaluates the cost several times."""

    @property
    def inner(self) -> int:
        """How often at most."""
        ...


def evaluations(optimizer: Optimizer) -> int:
    """How often one iteration evaluates the cost at most; once if it does not say.

    >>> evaluations(LBFGS(inner=5)), evaluations(Adam())
    (5, 1)
    """
    return optimizer.inner if isinstance(optimizer, SeveralEvaluations) else 1


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015); the paper's choice, on signs, with lr 0.1."""

    lr: float = 0.1
    signed: bool | Literal["soft"] = True

    def __post_init__(self) -> None:
        if self.signed not in (True, False, "soft"):
            raise ConfigError(f"signed is True, False or 'soft', not {self.signed!r}")

    def build(self, variables: Sequence[Tensor]) -> torch.optim.Optimizer:
        """`torch.optim.Adam`."""
        return torch.optim.Adam(list(variables), lr=_positive(self.lr))


@dataclass(frozen=True)
class SGD:
    """Gradient descent with momentum; the defaults are the fixed ones of 2020."""

    lr: float = 0.01
    momentum: float = 0.9
    nesterov: bool = True
    signed: bool = True

    def build(self, variables: Sequence[Tensor]) -> torch.optim.Optimizer:
        """`torch.optim.SGD`."""
        return torch.optim.SGD(list(variables), lr=_positive(self.lr), momentum=self.momentum, nesterov=self.nesterov)


@dataclass(frozen=True)
class LBFGS:
    """Limited-memory BFGS, the optimizer of DLG (Zhu et al. 2019); one iteration is up to `inner` evaluations.

    Args:
        lr: length of the quasi-Newton step.
        inner: L-BFGS updates an iteration.
        history: pairs that are remembered.
        line_search: `True` for strong Wolfe conditions.
        tolerance: an iteration ends where a step changes loss and variables by less.
        signed: as for the others; it destroys the curvature and is there for the 2020 code.
    """

    lr: float = 1.0
    inner: int = 20
    history: int = 100
    line_search: bool = False
    tolerance: float = 1e-9
    signed: bool = False

    def build(self, variables: Sequence[Tensor]) -> torch.optim.Optimizer:
        """`torch.optim.LBFGS`."""
        return torch.optim.LBFGS(
            list(variables),
            lr=_positive(self.lr),
            max_iter=self.inner,
            history_size=self.history,
            tolerance_grad=100 * self.tolerance,
            tolerance_change=self.tolerance,
            line_search_fn="strong_wolfe" if self.line_search else None,
        )


@dataclass(frozen=True)
class NormalizedMomentum:
    """Steps of a length that `lr` alone decides, along an average with Nesterov's look-ahead.

        q = gradient / rms(gradient),  m <- b m + (1 - b) q,  z <- z - lr (b m + (1 - b) q)

    The scale of the cost does not count, and the entries of a step keep their proportions, which signs do not.
    """

    lr: float = 1.5
    momentum: float = 0.9
    signed: bool = False

    def build(self, variables: Sequence[Tensor]) -> torch.optim.Optimizer:
        """One buffer a variable."""
        return _NormalizedMomentum(list(variables), {"lr": _positive(self.lr), "momentum": self.momentum})


class _NormalizedMomentum(torch.optim.Optimizer):
    """The rule of `NormalizedMomentum`."""

    def step(self, closure: Callable[[], float]) -> float:  # type: ignore[override]
        """Take one step and return the loss before it."""
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for variable in group["params"]:
                self._move(variable, group["lr"], group["momentum"])
        return loss

    @torch.no_grad()
    def _move(self, variable: Tensor, lr: float, momentum: float) -> None:
        assert variable.grad is not None
        direction = variable.grad / variable.grad.square().mean().sqrt().clamp(min=torch.finfo(variable.dtype).tiny)
        buffer = self.state[variable].setdefault("buffer", torch.zeros_like(variable))
        buffer.lerp_(direction, 1 - momentum)
        variable.sub_(lr * (momentum * buffer + (1 - momentum) * direction))


def _positive(lr: float) -> float:
    if not lr > 0:
        raise ConfigError(f"an optimizer needs lr > 0, got {lr}")
    return lr
