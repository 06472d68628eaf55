"""Which layer with weights feeds which, through functions that keep `sum of delta x` per channel.

A ReLU, a leaky one, a pooling, a dropout or a flattening z -> a has  sum delta_z z = sum delta_a a  in each channel,
because it is linear where it is. A branch or a sigmoid ends the way.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import fx, nn

from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.network import Network
from inversefed.networks.graph import kind_of, trace

__all__ = ["Edge", "edges"]

_GROUPED = (nn.GroupNorm, nn.LayerNorm)
_LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, *_GROUPED)
_QUESTIONS = ("size", "dim")


@dataclass(frozen=True)
class Edge:
    """Two layers with weights, one fed by the other.

    Args:
        front: the name of the one that is run first.
        behind: the name of the one that it feeds.
    """

    front: str
    behind: str


def edges(network: Network) -> tuple[Edge, ...]:
    """All pairs of such layers; none where the network cannot be traced.

    >>> from inversefed.fl.network import freeze
    >>> front = (nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    >>> net = nn.Sequential(*front, nn.Sigmoid(), nn.Linear(5, 2))
    >>> edges(freeze(net, (3, 8, 8)))
    (Edge(front='0', behind='3'),)
    """
    try:
        traced = trace(network)
    except UnsupportedNetworkError:
        return ()
    calls = [node for node in traced.graph.nodes if node.op == "call_module"]
    modules = dict(traced.named_modules())
    ran = [str(node.target) for node in calls]
    layers = [
        node for node in calls if isinstance(modules[str(node.target)], _LAYERS) and ran.count(str(node.target)) == 1
    ]
    return tuple(_found(layers, modules))


def _found(layers: list[fx.Node], modules: Mapping[str, nn.Module]) -> Iterator[Edge]:
    for node in layers:
        behind = _next(node, modules)
        if behind in layers and _fits(modules[str(node.target)], modules[str(behind.target)]):
            yield Edge(str(node.target), str(behind.target))


def _next(node: fx.Node, modules: Mapping[str, nn.Module]) -> fx.Node | None:
    """The next layer with weights, if the way to it neither branches nor bends."""
    while True:
        users = [user for user in node.users if not _is_question(user)]
        if len(users) != 1 or users[0].all_input_nodes[0] is not node or users[0].op == "output":
            return None
        (node,) = users
        if node.op == "call_module" and isinstance(modules[str(node.target)], _LAYERS):
            return node
        if not _keeps(node, modules):
            return None


def _keeps(node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    kind = kind_of(modules[str(node.target)] if node.op == "call_module" else node)
    return kind is not None and kind.piecewise_linear


def _is_question(node: fx.Node) -> bool:
    """Whether it only asks for a shape."""
    asks = node.op == "call_method" and node.target in _QUESTIONS
    return asks or (node.op == "call_function" and node.target is getattr and str(node.args[1]) == "shape")


def _fits(front: nn.Module, behind: nn.Module) -> bool:
    """Whether the channels of one are told apart in the other."""
    channels = _outputs(front)
    if isinstance(behind, nn.Conv2d):
        return bool(behind.groups == 1 and behind.in_channels == channels)
    if isinstance(behind, nn.Linear):
        maps = isinstance(front, nn.Conv2d | nn.BatchNorm2d | nn.GroupNorm)
        return bool(behind.in_features == channels or (maps and behind.in_features % channels == 0))
    return isinstance(behind, nn.BatchNorm1d | nn.BatchNorm2d) and behind.num_features == channels


def _outputs(layer: nn.Module) -> int:
    """How many channels a layer has weights for; 0 where they are not told apart."""
    match layer:
        case nn.Conv2d():
            return layer.out_channels
        case nn.Linear():
            return layer.out_features
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return layer.num_features
        case nn.GroupNorm():
            return layer.num_channels
        case nn.LayerNorm():
            return layer.normalized_shape[0] if len(layer.normalized_shape) == 1 else 0
    return 0
