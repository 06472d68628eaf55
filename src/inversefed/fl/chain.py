"""A network as a chain of layers, for methods that go through it layer by layer.

The module is traced once (torch.fx) and read as `layer_1, .., layer_n`, each fed by the one before it. Functions
become the modules of the same name, so a method dispatches on types alone. Two ways from one layer that are summed, as
in a residual network (He et al. 2016, arXiv:1512.03385), are one layer, `Residual`, which holds both. A network with
other branches, that uses weights twice, or whose forward pass depends on its data, is no chain and is refused.
"""

import copy
import operator
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.network import Network
from inversefed.types import Params

__all__ = ["Layer", "Residual", "chain", "flat", "run"]

_FUNCTIONS: Mapping[Any, type[nn.Module]] = {
    torch.sigmoid: nn.Sigmoid,
    F.sigmoid: nn.Sigmoid,
    "sigmoid": nn.Sigmoid,
    torch.tanh: nn.Tanh,
    F.tanh: nn.Tanh,
    "tanh": nn.Tanh,
    torch.relu: nn.ReLU,
    F.relu: nn.ReLU,
    "relu": nn.ReLU,
}
_POOLINGS: Mapping[Any, type[nn.Module]] = {
    F.max_pool2d: nn.MaxPool2d,
    torch.max_pool2d: nn.MaxPool2d,
    F.avg_pool2d: nn.AvgPool2d,
}
_POOLING_ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")
_RESHAPES = (torch.flatten, torch.reshape, "flatten", "view", "reshape")
_SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
_AVERAGES = (torch.mean, "mean")


@dataclass(frozen=True, eq=False)
class Layer:
    """One link of the chain.

    Args:
        name: where it stands in the module, `""` for a function; its weights are `name.weight` and so on.
        module: what it computes, in eval mode and double precision, weights included.
        shape: shape of one example's output.
        trained: whether an update holds the gradient of its weight, and of nothing else, under its name. It does not
            where the weight is frozen, parametrized, or shared with another layer.
    """

    name: str
    module: nn.Module = field(repr=False)
    shape: tuple[int, ...]
    trained: bool = True

    def weight_gradient(self, gradient: Params) -> Tensor:
        """The gradient of its weight.

        Raises:
            UnsupportedNetworkError: the update holds none of its own.
        """
        self.require_gradient()
        return gradient[f"{self.name}.weight"]

    def require_gradient(self) -> None:
        """Refuse a layer whose weight has no gradient of its own.

        Raises:
            UnsupportedNetworkError: it is one.
        """
        if not self.trained:
            raise UnsupportedNetworkError(
                f"the update holds no gradient of {self.name}.weight by itself (frozen, parametrized, or shared with "
                "another layer), and so no equations for what went into it"
            )


class Residual(nn.Module):
    """Two ways from one layer, whose ends are summed.

    Args:
        body: the longer way.
        shortcut: the other one; empty where it is the input itself.
    """

    def __init__(self, body: tuple[Layer, ...], shortcut: tuple[Layer, ...]) -> None:
        super().__init__()
        self.body, self.shortcut = body, shortcut
        self.parts = nn.ModuleList(layer.module for layer in (*body, *shortcut))  # for `to`

    def forward(self, inputs: Tensor) -> Tensor:
        """The sum."""
        return run(self.body, inputs) + run(self.shortcut, inputs)


def chain(network: Network) -> tuple[Layer, ...]:
    """Read a network as a chain, in the order of execution, in double precision.

    Raises:
        UnsupportedNetworkError: it cannot be traced, branches otherwise than into sums of two ways, uses weights twice,
            trains its BatchNorm, or uses an unknown function.

    >>> from inversefed.fl.network import freeze
    >>> network = freeze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 2)), (3, 8, 8))
    >>> [(layer.name, type(layer.module).__name__) for layer in chain(network)]
    [('0', 'Conv2d'), ('1', 'Sigmoid'), ('2', 'Flatten'), ('3', 'Linear')]
    """
    module = copy.deepcopy(network.module).to("cpu", torch.float64).requires_grad_(False)
    if any(isinstance(part, nn.modules.batchnorm._BatchNorm) and part.training for part in module.modules()):
        raise UnsupportedNetworkError("the layers cannot be told apart while BatchNorm runs in train mode")
    module.eval()
    try:
        traced = fx.symbolic_trace(module)
        _Shapes(traced).run(torch.full((1, *network.image_shape), 0.5, dtype=torch.float64))
    except Exception as error:  # tracing runs foreign code: whatever it raises means the same
        raise UnsupportedNetworkError(f"the network cannot be read layer by layer: {error}") from error
    ways: dict[fx.Node, tuple[Layer, ...]] = {}
    last, untrained = None, _untrained(network)
    for node in traced.graph.nodes:
        if node.op != "output" and _is_tensor(node):
            ways[node] = _way_to(traced, node, ways, untrained)
            last = node
    layers = ways[last] if last is not None else ()
    weighted = [layer.name for layer in flat(layers) if any(True for _ in layer.module.parameters())]
    if twice := sorted({name for name in weighted if weighted.count(name) > 1}):
        raise UnsupportedNetworkError(f"the network is no chain of layers: it runs {twice[0]} twice")
    return layers


def flat(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """All layers, those within a `Residual` in its place: the body, then the shortcut."""
    found: list[Layer] = []
    for layer in layers:
        inner = layer.module
        found += (*flat(inner.body), *flat(inner.shortcut)) if isinstance(inner, Residual) else (layer,)
    return tuple(found)


class _Shapes(fx.Interpreter):
    """Notes the shape of each node's tensor. torch's own `ShapeProp` prints a traceback where a node fails."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        return result


def _is_tensor(node: fx.Node) -> bool:
    return "shape" in node.meta


def _untrained(network: Network) -> frozenset[str]:
    """Names of the layers whose weight is frozen, parametrized or shared with another layer."""
    every = list(network.module.named_parameters(remove_duplicate=False))
    uses = Counter(id(weight) for _, weight in every)
    own = {name for name, weight in every if name in network.params and uses[id(weight)] == 1}
    weighted = [
        name for name, layer in network.module.named_modules() if isinstance(getattr(layer, "weight", 0), Tensor)
    ]
    return frozenset(name for name in weighted if f"{name}.weight".lstrip(".") not in own)


def _way_to(
    traced: fx.GraphModule, node: fx.Node, ways: Mapping[fx.Node, tuple[Layer, ...]], untrained: Collection[str]
) -> tuple[Layer, ...]:
    """The layers from the image to a node, those to the nodes in front of it being known."""
    if node.op == "placeholder":
        return ()
    sources = [source for source in node.all_input_nodes if source in ways]
    if len(sources) == 1 and not (node.target in _SUMS and node.op != "call_module"):
        name = str(node.target) if node.op == "call_module" else ""
        return (*ways[sources[0]], *_layers(traced, node, name, name not in untrained))
    if len(sources) != 2 or node.target not in _SUMS or node.kwargs:
        raise UnsupportedNetworkError(f"the network is no chain of layers: it branches at {node.name}")
    body, shortcut = sorted((ways[source] for source in sources), key=len, reverse=True)
    fork = next(
        (i for i, pair in enumerate(zip(body, shortcut, strict=False)) if pair[0] is not pair[1]), len(shortcut)
    )
    return (*body[:fork], Layer("", Residual(body[fork:], shortcut[fork:]), _shape(node)))


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["shape"][1:])


def _layers(traced: fx.GraphModule, node: fx.Node, name: str, trained: bool) -> tuple[Layer, ...]:
    """A node as a layer; a mean over all places as two."""
    shape, (source, *_) = _shape(node), [each for each in node.all_input_nodes if _is_tensor(each)]
    if node.target not in _AVERAGES:
        return (Layer(name, _module(traced, node), shape, trained),)
    before, given = _shape(source), {**dict(zip(("dim", "keepdim"), node.args[1:], strict=False)), **node.kwargs}
    over = given.get("dim")
    if not isinstance(over, list | tuple) or {axis % 4 for axis in over} != {2, 3} or len(before) != 3:
        raise UnsupportedNetworkError(f"the network takes a mean over {over}, which has no layer of its own")
    average = Layer(name, nn.AdaptiveAvgPool2d(1), (before[0], 1, 1))
    return (average,) if len(shape) == 3 else (average, Layer("", nn.Flatten(), shape))


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module:
    if node.op == "call_module":
        return traced.get_submodule(str(node.target))
    if node.op in ("call_function", "call_method"):
        if node.target in _FUNCTIONS:
            return _FUNCTIONS[node.target]()
        if node.target in _RESHAPES and len(_shape(node)) == 1:
            return nn.Flatten()
        pooling = _pooling(node)
        if pooling is not None:
            return pooling
    raise UnsupportedNetworkError(f"the network uses {node.target}, which has no layer of its own")


def _pooling(node: fx.Node) -> nn.Module | None:
    """The module of a pooling function, with the node's own arguments."""
    if node.target is F.adaptive_avg_pool2d:
        return nn.AdaptiveAvgPool2d(_shape(node)[1:])
    kind = _POOLINGS.get(node.target)
    # F.max_pool2d is one of two functions behind a switch, and traced as either of them.
    if kind is None and getattr(node.target, "__name__", "") == "boolean_dispatch":
        kind = nn.MaxPool2d
    if kind is None:
        return None
    names = _POOLING_ARGUMENTS if kind is nn.MaxPool2d else ("kernel_size", "stride", "padding", "ceil_mode")
    given = {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}
    return kind(**{name: value for name, value in given.items() if name not in ("return_indices", "input")})


def run(layers: tuple[Layer, ...], inputs: Tensor) -> Tensor:
    """Go through the layers in order."""
    for layer in layers:
        inputs = layer.module(inputs)
    return inputs
