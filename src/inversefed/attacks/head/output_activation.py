"""The output activation behind the head: the softmax, log-softmax or sigmoid that some networks end in.

It has no weights, so it is part of the loss as far as the head's gradient goes: `nll(log_softmax(z))` is the cross
entropy of `z`. Which one it is shows when the head's output is replaced by random numbers.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from inversefed.errors import InversefedError
from inversefed.fl.hooks import replaced_outputs
from inversefed.fl.network import Network
from inversefed.fl.targets import made_up_outputs

__all__ = ["Behind", "behind_head"]

Behind = Callable[[Tensor], Tensor]
"""From the head's outputs `[n, k]` to the network's."""

_KNOWN: tuple[Behind, ...] = (
    lambda z: z,
    lambda z: z.log_softmax(dim=-1),
    lambda z: z.softmax(dim=-1),
    lambda z: z.softmax(dim=-1).log(),
    torch.sigmoid,
    F.logsigmoid,
)
_CLOSE = 1e-3
"""Difference of outputs, over their largest, that is rounding: of networks in half precision too."""


def behind_head(network: Network) -> Behind | None:
    """What turns the head's outputs into the network's; `None` where it is none of those that are known."""
    return network.once(_found)


def _found(network: Network) -> Behind | None:
    if network.head is None:
        return None
    given: list[Tensor] = []

    def drawn(_: str, __: nn.Module, ___: Tensor, output: Tensor) -> Tensor:
        numbers = torch.randn(output.shape, generator=Generator().manual_seed(len(given)), dtype=torch.float64)
        given.append(numbers.to(output.device, output.dtype))
        return given[-1]

    try:
        with replaced_outputs({network.head: network.module.get_submodule(network.head)}, drawn):
            outputs = made_up_outputs(network)
    except InversefedError:
        return None
    if not given or given[-1].shape != outputs.shape:
        return None
    scale = float((given[-1] * outputs).sum() / given[-1].square().sum())
    known: tuple[Behind, ...] = (*_KNOWN, lambda z: scale * z)
    return next((each for each in known if _same(each(given[-1]), outputs)), None)


def _same(found: Tensor, outputs: Tensor) -> bool:
    return bool((found - outputs).abs().max() <= _CLOSE * outputs.abs().max())
