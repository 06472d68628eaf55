"""A network as a chain of layers, for methods that go through it layer by layer.

The module is traced once (torch.fx) and read as `layer_1, .., layer_n`, each fed by the one before it. Functions
become the modules of the same name, so a method dispatches on types alone. A network with branches, or whose
forward pass depends on its data, is no chain and is refused.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.network import Network

__all__ = ["Layer", "chain"]

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


@dataclass(frozen=True, eq=False)
class Layer:
    """One link of the chain.

    Args:
        name: where it stands in the module, `""` for a function; its weights are `name.weight` and so on.
        module: what it computes, in eval mode and double precision, weights included.
        shape: shape of one example's output.
    """

    name: str
    module: nn.Module = field(repr=False)
    shape: tuple[int, ...]


def chain(network: Network) -> tuple[Layer, ...]:
    """Read a network as a chain, in the order of execution, in double precision.

    Raises:
        UnsupportedNetworkError: it cannot be traced, branches, trains its BatchNorm, or uses an unknown function.

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
        ShapeProp(traced).propagate(torch.full((1, *network.image_shape), 0.5, dtype=torch.float64))
    except Exception as error:  # tracing runs foreign code: whatever it raises means the same
        raise UnsupportedNetworkError(f"the network cannot be read layer by layer: {error}") from error
    nodes = [node for node in traced.graph.nodes if isinstance(node.meta.get("tensor_meta"), tuple)]
    nodes = [node for node in nodes if hasattr(node.meta["tensor_meta"], "shape") and node.op != "output"]
    layers = []
    for before, node in pairwise(nodes):
        if [source for source in node.all_input_nodes if source in nodes] != [before]:
            raise UnsupportedNetworkError(f"the network is no chain of layers: it branches at {node.name}")
        layers.append(Layer(str(node.target) if node.op == "call_module" else "", _module(traced, node), _shape(node)))
    return tuple(layers)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape[1:])


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
