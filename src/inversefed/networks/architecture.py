"""Facts about an architecture that decide which attack fits: non-smooth layers, averages, normalization, pooling.

A network of sigmoid, tanh, GELU or softplus has second derivatives that say something; one with ReLU or max pooling is
linear between its kinks, and there all the difficulty lies. One that averages over places before its head tells only
how much there is of a feature, not where.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from torch import nn

from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.network import Network
from inversefed.fl.train_mode import batchnorm_by_batch
from inversefed.networks.graph import LayerKind, called, kind_of, trace

__all__ = ["Architecture", "architecture"]


@dataclass(frozen=True)
class Architecture:
    """What a network's layers hide, and how a search can go through it; all names in alphabetical order.

    Args:
        nonsmooth_layers: names of the layers and functions whose slope jumps; empty for a smooth network.
        averages: names of those that average over places, after which a position is no longer known.
        max_pools: names of those that let one place of several win, and hide which.
        normalizations: names of those that scale features by what they see, and so hide contrast and brightness.
            BatchNorm is one of them in train mode, and where it keeps no running statistics.
        first_batchnorm_trains: whether the first layers with weights are a convolution and BatchNorm in train mode,
            which undoes any contrast of the batch; in the module's own order.
        first_norm_by_channel: whether the first layers are a convolution and what scales each channel by what it sees
            there (InstanceNorm, GroupNorm of one channel a group, BatchNorm by the batch), likewise.
    """

    nonsmooth_layers: tuple[str, ...]
    averages: tuple[str, ...]
    max_pools: tuple[str, ...]
    normalizations: tuple[str, ...]
    first_batchnorm_trains: bool
    first_norm_by_channel: bool


def architecture(network: Network) -> Architecture:
    """Read a network's architecture off one trace.

    Functions are seen where the forward pass can be traced (torch.fx), layers always.

    >>> from inversefed.fl.network import freeze
    >>> layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.GELU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)
    >>> architecture(freeze(nn.Sequential(*layers), (3, 8, 8)))
    Architecture(nonsmooth_layers=('MaxPool2d',), averages=(), max_pools=('MaxPool2d',),
        normalizations=('BatchNorm2d',), first_batchnorm_trains=True, first_norm_by_channel=True)
    """
    module = network.module
    seen = {(type(layer).__name__, kind_of(layer)) for layer in module.modules()}
    with suppress(UnsupportedNetworkError):
        seen |= {(called(node), kind_of(node)) for node in trace(network).graph.nodes}

    def names(holds: Callable[[LayerKind], bool]) -> set[str]:
        return {name for name, kind in seen if kind is not None and holds(kind)}

    by_batch = {type(layer).__name__ for layer in batchnorm_by_batch(module).values()}
    front = [layer for layer in module.modules() if not any(True for _ in layer.children())][:2]
    first = [layer for layer in module.modules() if any(True for _ in layer.parameters(recurse=False))][:2]
    return Architecture(
        nonsmooth_layers=tuple(sorted(names(lambda kind: not kind.smooth))),
        averages=tuple(sorted(names(lambda kind: kind.average))),
        max_pools=tuple(sorted(names(lambda kind: kind.max_pool))),
        normalizations=tuple(sorted(by_batch | names(lambda kind: kind.normalizes))),
        first_batchnorm_trains=len(first) == 2
        and isinstance(first[0], nn.Conv2d)
        and isinstance(first[1], nn.BatchNorm2d)
        and first[1].training,
        first_norm_by_channel=len(front) == 2
        and isinstance(front[0], nn.Conv2d)
        and (_by_channel(front[1]) or any(front[1] is layer for layer in batchnorm_by_batch(module).values())),
    )


def _by_channel(layer: nn.Module) -> bool:
    """Whether it scales each channel of each example by what it sees there."""
    alone = isinstance(layer, nn.GroupNorm) and layer.num_groups == layer.num_channels
    return alone or (isinstance(layer, nn.InstanceNorm2d) and (layer.training or not layer.track_running_stats))
