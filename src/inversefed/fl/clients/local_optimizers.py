"""The optimizers that a client runs, as functions on named weights that can be differentiated through.

Each follows the update rule of `torch.optim` of the same name, without writing in place, so that an
attack can unroll the client's local steps; the operations and their order are torch's own for one tensor after another,
so that on one machine the bits are, too.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from inversefed.types import Params

__all__ = ["LocalAdam", "LocalAdamW", "LocalSGD"]

State: TypeAlias = Mapping[str, tuple[Tensor, ...]]
"""Per weight: the moments; empty before the first step."""


@runtime_checkable
class LocalOptimizer(Protocol):
    """One local step: weights, their gradients and the moments so far, to new weights and moments."""

    def __call__(self, params: Params, gradients: Params, state: State, lr: float, step: int) -> tuple[Params, State]:
        """Take local step number `step`, from 0."""
        ...


@runtime_checkable
class DecaysWeights(Protocol):
    """A local optimizer that says how it decays weights, as ours do."""

    @property
    def weight_decay(self) -> float:
        """Factor of the weights."""
        ...


def weight_decay_of(optimizer: LocalOptimizer) -> float:
    """The weight decay of a local optimizer; 0 if it does not say. Of one that is linear it is an L2 penalty.

    >>> weight_decay_of(LocalSGD(weight_decay=0.01))
    0.01
    """
    return float(optimizer.weight_decay) if isinstance(optimizer, DecaysWeights) else 0.0


@dataclass(frozen=True)
class LocalSGD:
    """Stochastic gradient descent, with momentum if wanted.

    Args:
        momentum: share of the last direction that is kept, in [0, 1).
        weight_decay: L2 penalty that is added to the gradient.
        nesterov: look ahead along the momentum.
    """

    momentum: float = 0.0
    weight_decay: float = 0.0
    nesterov: bool = False

    def __call__(self, params: Params, gradients: Params, state: State, lr: float, step: int) -> tuple[Params, State]:
        """Take one step."""
        new_params, new_state = {}, {}
        for name, weight in params.items():
            gradient = _decayed(gradients[name], weight, self.weight_decay)
            if self.momentum:
                moment = gradient if step == 0 else self.momentum * state[name][0] + gradient
                new_state[name] = (moment,)
                gradient = torch.add(gradient, moment, alpha=self.momentum) if self.nesterov else moment
            new_params[name] = torch.add(weight, gradient, alpha=-lr)
        return new_params, new_state


@dataclass(frozen=True)
class LocalAdam:
    """Adam (Kingma and Ba 2015), with L2 weight decay as in `torch.optim.Adam`.

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second.
        eps: added to the root of the second moment. At a zero gradient the root has no finite
            derivative, so an attack differentiates it at `eps**2` instead.
        weight_decay: L2 penalty that is added to the gradient.
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __call__(self, params: Params, gradients: Params, state: State, lr: float, step: int) -> tuple[Params, State]:
        """Take one step."""
        decayed = {name: _decayed(gradients[name], weight, self.weight_decay) for name, weight in params.items()}
        return _adam(self, params, decayed, state, lr, step)


@dataclass(frozen=True)
class LocalAdamW:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019, arXiv:1711.05101), as `torch.optim.AdamW` has it.

        w_{i+1} = (1 - lr decay) w_i - lr m / (sqrt(v) + eps)

    Args:
        beta1: decay of the first moment.
        beta2: decay of the second.
        eps: as for `LocalAdam`.
        weight_decay: of the weights themselves, times the learning rate; no part of the gradient.

    >>> import torch
    >>> weight = {"w": torch.ones(1)}
    >>> LocalAdamW(weight_decay=0.5)(weight, {"w": torch.ones(1)}, {}, 0.1, 0)[0]["w"]
    tensor([0.8500])
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.01

    def __call__(self, params: Params, gradients: Params, state: State, lr: float, step: int) -> tuple[Params, State]:
        """Take one step."""
        shrunk = {name: (1 - lr * self.weight_decay) * weight for name, weight in params.items()}
        return _adam(self, shrunk, gradients, state, lr, step)


def _adam(
    settings: LocalAdam | LocalAdamW, params: Params, gradients: Params, state: State, lr: float, step: int
) -> tuple[Params, State]:
    """The step of Adam, from weights and gradients that weight decay has changed already."""
    new_params, new_state = {}, {}
    for name, weight in params.items():
        gradient = gradients[name]
        first, second = state.get(name, (0.0 * gradient.detach(), 0.0 * gradient.detach()))
        first = torch.lerp(first, gradient, 1 - settings.beta1)
        second = torch.addcmul(settings.beta2 * second, gradient, gradient, value=1 - settings.beta2)
        new_state[name] = (first, second)
        root = _root(second, 1 - settings.beta2 ** (step + 1), settings.eps) + settings.eps
        new_params[name] = torch.addcdiv(weight, first, root, value=-lr / (1 - settings.beta1 ** (step + 1)))
    return new_params, new_state


def _root(second: Tensor, share: float, eps: float) -> Tensor:
    """The root of the second moment over `share`, which corrects for few steps; differentiated at `eps**2` or more."""
    root: Tensor = second.detach().sqrt() / share**0.5
    if not second.requires_grad:
        return root
    smooth: Tensor = (second / share).clamp_min(eps**2).sqrt()
    return root + (smooth - smooth.detach())


def _decayed(gradient: Tensor, weight: Tensor, decay: float) -> Tensor:
    return torch.add(gradient, weight, alpha=decay) if decay else gradient
