"""Is a network smooth, and does it keep places? That decides which search fits it.

A network of sigmoid, tanh, GELU or softplus has second derivatives that say something; one with ReLU or max pooling is
linear between its kinks, and there all the difficulty lies. One that averages over places before its head tells only
how much there is of a feature, not where.
"""

from collections.abc import Callable, Collection

import torch
from torch import fx, nn
from torch.nn import functional as F

from inversefed.fl.apart import apart
from inversefed.fl.network import Network
from inversefed.networks.layer_chain import arguments

__all__ = ["averages", "hides_contrast", "kinks", "normalizes", "pools"]

_LAYERS = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.Hardshrink,
    nn.Softshrink, nn.Threshold, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d, nn.FractionalMaxPool2d,
)  # fmt: skip
_FUNCTIONS = {
    torch.relu, F.relu, F.relu6, F.leaky_relu, F.prelu, F.hardtanh, F.hardsigmoid, F.hardswish, F.threshold,
    torch.max_pool2d, F.max_pool2d, F.adaptive_max_pool2d, torch.abs, torch.maximum, torch.minimum, torch.clamp,
    "relu", "relu_", "clamp", "abs", "clip",
}  # fmt: skip
_POOLS = (nn.MaxPool2d, nn.AdaptiveMaxPool2d, nn.FractionalMaxPool2d)
_POOL_FUNCTIONS = {torch.max_pool2d, F.max_pool2d, F.adaptive_max_pool2d}
_AVERAGES = (nn.AvgPool2d, nn.AdaptiveAvgPool2d)
_AVERAGE_FUNCTIONS = {F.avg_pool2d, F.adaptive_avg_pool2d, torch.mean, "mean"}


_NORMS = (nn.GroupNorm, nn.LayerNorm, nn.RMSNorm, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.LocalResponseNorm)
_NORM_FUNCTIONS = {
    F.group_norm, F.layer_norm, F.rms_norm, F.instance_norm, F.local_response_norm, F.normalize,
    torch.rsqrt, torch.std, torch.var, torch.norm, "rsqrt", "std", "var", "norm",
}  # fmt: skip
"""The last ones are what a norm that is written by hand is made of."""


def kinks(network: Network) -> tuple[str, ...]:
    """Names of the layers and functions that are not smooth; empty for a smooth network.

    Functions are seen where the forward pass can be traced (torch.fx), layers always.

    >>> from inversefed.fl.network import freeze
    >>> kinks(freeze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.GELU(), nn.Flatten(), nn.Linear(144, 2)), (3, 8, 8)))
    ()
    """
    return _used(network, _LAYERS, _FUNCTIONS)


def averages(network: Network) -> tuple[str, ...]:
    """Names of the layers and functions that average over places, after which a position is no longer known.

    >>> from inversefed.fl.network import freeze
    >>> pooled = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> averages(freeze(pooled, (3, 8, 8)))
    ('AdaptiveAvgPool2d',)
    """
    return _used(network, _AVERAGES, _AVERAGE_FUNCTIONS, _over_places)


def pools(network: Network) -> tuple[str, ...]:
    """Names of the layers and functions that let one place of several win, and hide which.

    >>> from inversefed.fl.network import freeze
    >>> pools(freeze(nn.Sequential(nn.MaxPool2d(2), nn.Flatten(), nn.Linear(48, 2)), (3, 8, 8)))
    ('MaxPool2d',)
    """
    return _used(network, _POOLS, _POOL_FUNCTIONS)


def normalizes(network: Network) -> tuple[str, ...]:
    """Names of the layers and functions that scale features by what they see, and so hide contrast and brightness.

    BatchNorm is one of them in train mode, and where it keeps no running statistics.

    >>> from inversefed.fl.network import freeze
    >>> layers = nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 2)
    >>> [normalizes(freeze(nn.Sequential(*layers).train(mode), (3, 8, 8))) for mode in (True, False)]
    [('BatchNorm2d', 'GroupNorm'), ('GroupNorm',)]
    """
    batch = {
        type(layer).__name__
        for layer in network.module.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None)
    }
    return tuple(sorted(batch.union(_used(network, _NORMS, _NORM_FUNCTIONS))))


def hides_contrast(network: Network) -> bool:
    """Whether the first layers are a convolution and BatchNorm in train mode, which undoes any contrast of the batch.

    Layers are taken in the module's own order.

    >>> from inversefed.fl.network import freeze
    >>> layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)
    >>> [hides_contrast(freeze(nn.Sequential(*layers).train(mode), (3, 8, 8))) for mode in (True, False)]
    [True, False]
    """
    own = [layer for layer in network.module.modules() if any(True for _ in layer.parameters(recurse=False))]
    return len(own) > 1 and isinstance(own[0], nn.Conv2d) and isinstance(own[1], nn.BatchNorm2d) and own[1].training


def _over_places(node: fx.Node) -> bool:
    """Whether a mean is not one over channels that keeps its axes, as a norm written by hand takes it."""
    given = arguments(node, "dim", "keepdim")
    over = given.get("dim")
    axes = {over} if isinstance(over, int) else set(over) if isinstance(over, list | tuple) else set()
    return not given.get("keepdim") or {axis % 4 for axis in axes if isinstance(axis, int)} == {2, 3}


def _used(
    network: Network,
    layers: tuple[type[nn.Module], ...],
    functions: Collection[object],
    counts: Callable[[fx.Node], bool] = lambda _: True,
) -> tuple[str, ...]:
    found = {type(layer).__name__ for layer in network.module.modules() if isinstance(layer, layers)}
    try:
        nodes = list(fx.symbolic_trace(apart(network.module)).graph.nodes)
    except Exception:  # tracing runs foreign code: whatever it raises means that only layers can be seen
        nodes = []
    for node in nodes:
        if node.op in ("call_function", "call_method") and node.target in functions and counts(node):
            found.add(getattr(node.target, "__name__", str(node.target)))
    return tuple(sorted(found))
