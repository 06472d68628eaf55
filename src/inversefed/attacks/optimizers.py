"""The attack's optimisers: plain values that build a `torch.optim` optimiser for one restart.

`signed=True` hands the optimiser only the signs of the image gradient (Geiping et al. 2020, section 4):
with it, Adam takes steps of equal length in every pixel.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from inversefed.errors import ConfigError

__all__ = ["LBFGS", "SGD", "Adam"]


@runtime_checkable
class Optimizer(Protocol):
    """Builds the optimiser of one restart."""

    @property
    def lr(self) -> float:
        """Step length at the start."""
        ...

    @property
    def signed(self) -> bool:
        """Whether the image gradient is replaced by its sign."""
        ...

    def build(self, variables: Sequence[Tensor]) -> torch.optim.Optimizer:
        """A fresh optimiser over these leaves."""
        ...


@dataclass(frozen=True)
class Adam:
    """Adam (Kingma and Ba 2015); the paper's choice, on signs, with lr 0.1."""

    lr: float = 0.1
    signed: bool = True

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
    """Limited-memory BFGS, the optimiser of DLG (Zhu et al. 2019); one iteration is up to `inner` evaluations.

    Args:
        lr: length of the quasi-Newton step.
        inner: L-BFGS updates an iteration.
        history: pairs that are remembered.
        line_search: `True` for strong Wolfe conditions.
        signed: as for the others; it destroys the curvature and is there for the 2020 code.
    """

    lr: float = 1.0
    inner: int = 20
    history: int = 100
    line_search: bool = False
    signed: bool = False

    def build(self, variables: Sequence[Tensor]) -> torch.optim.Optimizer:
        """`torch.optim.LBFGS`."""
        return torch.optim.LBFGS(
            list(variables),
            lr=_positive(self.lr),
            max_iter=self.inner,
            history_size=self.history,
            line_search_fn="strong_wolfe" if self.line_search else None,
        )


def _positive(lr: float) -> float:
    if not lr > 0:
        raise ConfigError(f"an optimiser needs lr > 0, got {lr}")
    return lr
