"""The linear system of a transformer's patches, solved by its singular values (see `patch_embedding`).

(dL/dpositions)^T A = dL/dE,    A = gray + V f(S) U^T (dL/dE - dL/dE of gray),    dL/dpositions^T = U S V^T
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from inversefed.attacks.exact.transformer.token_inputs import TokenEntry, token_entry
from inversefed.fl.threat import Observation
from inversefed.thresholds import EXACT
from inversefed.types import Params

__all__ = ["TokenSystem", "token_system", "told"]

_SURE = 1e-2
"""Relative error of the patches, by rounding and condition, up to which their own equations prove them: 40 dB."""


@dataclass(frozen=True, eq=False)
class TokenSystem:
    """`tokens^T A = weights` by its singular values, float64.

    Args:
        left: singular vectors over the width, `[width, rank]`.
        values: singular values, falling, `[patches]`; 0 where there are no equations.
        right: singular vectors over the patches, `[patches, patches]`.
        told: which singular values are more than the number format's rounding.
        weights: the patch embedding's gradient less that of the gray picture, `[width, values]`.
        gray: entries of a gray picture, `[patches, values]`, from which the solution departs.
        residual: the share of the weights' squared norm that no patches explain.
    """

    left: Tensor = field(repr=False)
    values: Tensor = field(repr=False)
    right: Tensor = field(repr=False)
    told: Tensor = field(repr=False)
    weights: Tensor = field(repr=False)
    gray: Tensor = field(repr=False)
    residual: float

    @classmethod
    def of(cls, entry: TokenEntry, gradient: Params) -> "TokenSystem":
        """Take the system of an update apart."""
        tokens = entry.tokens(gradient) * entry.scale
        weights = gradient[entry.embed].detach().cpu().double().flatten(1)
        left, some, right = torch.linalg.svd(tokens.T, full_matrices=len(tokens) > tokens.shape[1])
        values = some.new_zeros(len(tokens))
        values[: len(some)] = some
        told = values > torch.finfo(gradient[entry.positions].dtype).eps * values[0]
        gray = entry.patches.gain * 0.5 + entry.patches.offset
        rest = weights - left[:, : len(some)] @ (left[:, : len(some)].T @ weights)
        residual = float(rest.square().sum() / weights.square().sum())
        return cls(left, values, right.T, told, weights - tokens.T @ gray, gray, residual)

    @property
    def free(self) -> float:
        """The share of the patches that the equations leave open."""
        return 1 - int(self.told.sum()) / len(self.gray)

    @property
    def condition(self) -> float:
        """Greatest singular value over the least that tells something."""
        return float(self.values[0] / self.values[self.told][-1])

    def solution(self, strength: float) -> Tensor:
        """The patches, `[patches, values]`; what has singular values below a share of the greatest stays near gray."""
        inverse = self.values / (self.values.square() + (strength * self.values[0]) ** 2)
        turned = self.left[:, : len(self.values)].T @ self.weights
        kept = inverse.where(self.told, 0.0)[: len(turned), None]
        return self.gray + self.right[:, : len(turned)] @ (kept * turned)

    def open_directions(self, strength: float) -> Tensor:
        """Directions over the patches, each as long as the equations leave it room, `[patches, patches]`."""
        least = strength * self.values[0]
        return self.right * (least / (self.values.square().where(self.told, 0.0) + least**2).sqrt())

    def proves(self, dtype: torch.dtype) -> bool:
        """Whether more equations than unknowns hold, and leave the patches no room."""
        spare = len(self.weights) > len(self.gray) and not self.free
        return spare and self.residual < EXACT and self.condition * torch.finfo(dtype).eps < _SURE


def token_system(observation: Observation) -> tuple[TokenEntry, TokenSystem]:
    """How a picture enters a transformer, and the equations for its patches.

    Args:
        observation: made-up pictures go through a private copy of its network, in eval mode.

    Raises:
        ThreatModelError: the update is not that of one example in plain steps, or lacks what is needed.
        UnsupportedNetworkError: no learned positions are added to patches of the picture, or there are more than twice
            as many patches as the tokens are wide.
    """
    entry = token_entry(observation)
    return entry, TokenSystem.of(entry, observation.gradient)


def told(entry: TokenEntry, system: TokenSystem) -> str:
    """What can be solved for, in words."""
    count, values = entry.patches.index.shape
    missed = f"; {entry.patches.unseen:.1%} of the picture is in no patch" if entry.patches.unseen else ""
    left = f"; {system.free:.1%} of that stays open, and is looked for through the network" if system.free else ""
    return (
        f"solves for {count} patches of {values} values from the gradients of {entry.positions} and {entry.embed}: "
        f"{int(system.told.sum())} independent equations for the {count} patches, value by value{left}{missed}"
    )
