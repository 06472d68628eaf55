"""Soteria: leave out of the head's gradient what says most about the picture.

    m_j = 0 where |dr_j / dx| / |r_j| is among the smallest,    dW <- dW * m  (by column)

with r the representation that goes into the head, Sun et al. (2021), arXiv:2012.06043: of all perturbations of r with
so many entries, this one takes the reconstruction furthest from the picture, to first order. Only one layer's gradient
is touched; everything before it is sent as it is.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Generator, Tensor

from inversefed.errors import ConfigError, UnsupportedNetworkError
from inversefed.fl.defenses.protocols import Context
from inversefed.fl.network import Network
from inversefed.types import Inputs, Params

__all__ = ["Soteria"]

_AT_ONCE = 64
"""Entries of the representation whose gradients are computed together."""


@dataclass(frozen=True)
class Soteria:
    """Set columns of the head's weight gradient to zero, those of the entries that determine the picture most.

    Args:
        share: of the columns, in (0, 1]; the paper takes 0.01 to 0.8.

    Raises:
        ConfigError: no such share.
        UnsupportedNetworkError: when called, a network whose last layer is unclear.
    """

    share: float = 0.5
    reads_examples: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ConfigError(f"Soteria leaves out a share in (0, 1], got {self.share}")

    def __call__(self, update: Params, context: Context, generator: Generator) -> Params:
        """Choose the columns by the private pictures, and leave them out."""
        name = defended_tensor(context.network)
        if name not in update:
            return dict(update)
        ranks = sensitivity(context.network, context.batch.images)
        pruned = ranks.argsort()[: round(self.share * len(ranks))]
        kept = torch.ones_like(ranks).index_fill(0, pruned, 0.0)
        return {each: part * kept if each == name else part for each, part in update.items()}


def defended_tensor(network: Network) -> str:
    """The name of the weight whose gradient Soteria changes.

    Raises:
        UnsupportedNetworkError: the last layer is unclear, or is not linear.
    """
    name = f"{network.head}.weight".lstrip(".")
    if network.head is None or network.params[name].ndim != 2:
        raise UnsupportedNetworkError("Soteria prunes the gradient of a last, linear layer; this network has none")
    return name


def sensitivity(network: Network, images: Inputs) -> Tensor:
    """`|dr_j / dx| / |r_j|` for every entry of what goes into the head, summed over the pictures; `[d]`."""
    body = network.without_head()
    with torch.enable_grad():
        inputs = images.detach().clone().requires_grad_()
        features = body.apply(body.params, inputs)
        rows = torch.eye(features.shape[1], dtype=features.dtype, device=features.device)
        parts = [rows[at : at + _AT_ONCE] for at in range(0, len(rows), _AT_ONCE)]
        slopes = torch.cat([_slopes(features, inputs, part) for part in parts])
    return (slopes / (features.detach().abs().T + 1e-6)).sum(dim=1)


def _slopes(features: Tensor, inputs: Tensor, rows: Tensor) -> Tensor:
    """Norm of the gradient of each chosen entry, for each picture; `[chosen, n]`."""
    vectors = rows[:, None].expand(-1, len(features), -1)
    (slopes,) = torch.autograd.grad(features, inputs, vectors, retain_graph=True, is_grads_batched=True)
    norms: Tensor = slopes.flatten(2).norm(dim=2)
    return norms
