"""A network as a chain of layers, for methods that go through it layer by layer.

The module is traced once (torch.fx) and read as `layer_1, .., layer_n`, each fed by the one before it. Functions
become the modules of the same name, so a method dispatches on types alone. Two ways from one layer that are summed, as
in a residual network (He et al. 2016, arXiv:1512.03385), are one layer, `Residual`, which holds both. A network with
other branches, that uses weights twice, or whose forward pass depends on its data, is no chain and is refused.
"""

import copy
import operator
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.apart import apart
from inversefed.fl.network import Network, first_names
from inversefed.types import Params

__all__ = ["Affine", "Layer", "Residual", "arguments", "chain", "flat", "run"]

_WINDOW = ("kernel_size", "stride", "padding")
_FUNCTIONS: Mapping[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    target: (kind, names)
    for kind, names, *targets in (
        (nn.ReLU, (), torch.relu, F.relu, "relu", "relu_"),
        (nn.Sigmoid, (), torch.sigmoid, F.sigmoid, "sigmoid"),
        (nn.Tanh, (), torch.tanh, F.tanh, "tanh"),
        (nn.LeakyReLU, ("negative_slope",), F.leaky_relu),
        (nn.GELU, ("approximate",), F.gelu),
        (nn.SiLU, (), F.silu),
        (nn.Mish, (), F.mish),
        (nn.ELU, ("alpha",), F.elu),
        (nn.SELU, (), F.selu),
        (nn.Softplus, ("beta", "threshold"), F.softplus),
        (nn.Hardswish, (), F.hardswish),
        (nn.Hardsigmoid, (), F.hardsigmoid),
        (nn.ReLU6, (), F.relu6),
        (nn.LogSoftmax, ("dim",), F.log_softmax, torch.log_softmax, "log_softmax"),
        (nn.Softmax, ("dim",), F.softmax, torch.softmax, "softmax"),
        (nn.MaxPool2d, (*_WINDOW, "dilation", "ceil_mode"), F.max_pool2d, torch.max_pool2d),
        (nn.AvgPool2d, (*_WINDOW, "ceil_mode", "count_include_pad", "divisor_override"), F.avg_pool2d),
        (nn.Upsample, ("size", "scale_factor", "mode", "align_corners"), F.interpolate),
        (nn.Identity, (), "contiguous", "clone", torch.clone),
    )
    for target in targets
}
"""Functions, the module that computes the same, and the names of its arguments by position."""
_NO_MATTER = ("inplace", "return_indices", "_stacklevel", "dtype", "memory_format")
"""Arguments that change no value here."""
_CONSTANTS: Mapping[Any, Callable[[float], tuple[float, float]]] = {
    target: affine
    for affine, *targets in (
        (lambda c: (1.0, c), operator.add, operator.iadd, torch.add, "add", "add_"),
        (lambda c: (1.0, -c), operator.sub, operator.isub, torch.sub, "sub", "sub_"),
        (lambda c: (c, 0.0), operator.mul, operator.imul, torch.mul, "mul", "mul_"),
        (lambda c: (1 / c if c else 0.0, 0.0), operator.truediv, operator.itruediv, torch.div, "div", "div_"),
    )
    for target in targets
}
"""Arithmetic with a constant c behind the tensor: what it multiplies by, 0 for nothing that can be undone, and adds."""
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


class Affine(nn.Module):
    """Arithmetic with constants: `scale * x + shift`, the same for all numbers.

    Args:
        scale: not 0.
        shift: is added.
    """

    def __init__(self, scale: float, shift: float) -> None:
        super().__init__()
        self.scale, self.shift = scale, shift

    def forward(self, inputs: Tensor) -> Tensor:
        """The result."""
        return self.scale * inputs + self.shift


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
    module = apart(network.module).to("cpu", torch.float64).requires_grad_(False)
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
    uses = Counter(first_names(network.module).values())
    own = {name for name in network.params if uses[name] == 1}
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
    if node.op == "get_attr":
        raise UnsupportedNetworkError(f"the network uses its tensor {node.target} outside of a layer")
    sources = [source for source in node.all_input_nodes if source in ways]
    if len(sources) == 1 and len([each for each in node.args if each is sources[0]]) < 2:
        name = str(node.target) if node.op == "call_module" else ""
        way = ways[sources[0]]
        for layer in _layers(traced, node, name, name not in untrained):
            way = _followed_by(way, layer)
        return way
    if len(sources) != 2 or node.target not in _SUMS or node.kwargs:
        raise UnsupportedNetworkError(
            f"the network is no chain of layers: branches come together in {_called(node)}, which is no sum of two"
        )
    body, shortcut = sorted((ways[source] for source in sources), key=len, reverse=True)
    fork = next(
        (i for i, pair in enumerate(zip(body, shortcut, strict=False)) if pair[0] is not pair[1]), len(shortcut)
    )
    return (*body[:fork], Layer("", Residual(body[fork:], shortcut[fork:]), _shape(node)))


def _followed_by(way: tuple[Layer, ...], layer: Layer) -> tuple[Layer, ...]:
    """A way with one more layer; zeros around a convolution's input become the padding of the convolution itself."""
    conv, pad = layer.module, way[-1].module if way else None
    if not isinstance(pad, nn.ZeroPad2d) or not isinstance(conv, nn.Conv2d) or conv.padding not in ((0, 0), "valid"):
        return (*way, layer)
    left, right, top, bottom = pad.padding
    if left != right or top != bottom or left < 0 or top < 0:
        return (*way, layer)
    conv = copy.copy(conv)
    conv.padding, conv.padding_mode = (top, left), "zeros"
    return (*way[:-1], replace(layer, module=conv))


def _called(node: fx.Node) -> str:
    """What a node calls, as its author wrote it."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return f"layer {name}" if node.op == "call_module" else f"{name}()"


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["shape"][1:])


def _layers(traced: fx.GraphModule, node: fx.Node, name: str, trained: bool) -> tuple[Layer, ...]:
    """A node as a layer; a mean over all places as two."""
    shape, (source, *_) = _shape(node), [each for each in node.all_input_nodes if _is_tensor(each)]
    if node.target not in _AVERAGES:
        return (Layer(name, _module(traced, node), shape, trained),)
    before, over = _shape(source), arguments(node, "dim", "keepdim").get("dim")
    if not isinstance(over, list | tuple) or {axis % 4 for axis in over} != {2, 3} or len(before) != 3:
        raise UnsupportedNetworkError(f"the network takes a mean over {over}, which is not read as a layer")
    average = Layer(name, nn.AdaptiveAvgPool2d(1), (before[0], 1, 1))
    return (average,) if len(shape) == 3 else (average, Layer("", nn.Flatten(), shape))


def _module(traced: fx.GraphModule, node: fx.Node) -> nn.Module:
    """What a node computes, as a module.

    Raises:
        UnsupportedNetworkError: there is none.
    """
    if node.op == "call_module":
        return traced.get_submodule(str(node.target))
    target: Any = node.target
    # F.max_pool2d is one of two functions behind a switch, and traced as either of them.
    target = F.max_pool2d if getattr(target, "__name__", "") == "boolean_dispatch" else target
    if target in _RESHAPES and len(_shape(node)) == 1:
        return nn.Flatten()
    if target in (F.dropout, F.dropout2d) and arguments(node, "p", "training").get("training") is False:
        return nn.Identity()
    if target is F.adaptive_avg_pool2d:
        return nn.AdaptiveAvgPool2d(_shape(node)[1:])
    found = _padding(node) if target is F.pad else _affine(node) if target in _CONSTANTS else None
    if target in _FUNCTIONS:
        found = _named(node, *_FUNCTIONS[target])
    if found is None:
        raise UnsupportedNetworkError(f"the network uses {_called(node)}, which is not read as a layer")
    return found


def arguments(node: fx.Node, *names: str) -> dict[str, Any]:
    """What a node gives its function behind the tensor, by name.

    Args:
        node: calls a function or a method.
        names: of the arguments that may be given by position.
    """
    return {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}


def _named(node: fx.Node, kind: type[nn.Module], names: tuple[str, ...]) -> nn.Module | None:
    """The module of a kind with the arguments that a node gives its function; nothing where it has others."""
    given = {name: value for name, value in arguments(node, *names).items() if name not in _NO_MATTER}
    more = any(value for name, value in given.items() if name not in names)  # `antialias=False` asks for nothing
    if more or any(isinstance(value, fx.Node) for value in given.values()) or len(node.args) > len(names) + 1:
        return None
    return kind(**{name: value for name, value in given.items() if name in names and value is not None})


def _padding(node: fx.Node) -> nn.Module | None:
    """Zeros around height and width."""
    given = arguments(node, "pad", "mode", "value")
    sides, value = given.get("pad"), given.get("value")
    plain = given.get("mode", "constant") == "constant" and value in (None, 0)
    if not plain or not isinstance(sides, list | tuple) or not all(isinstance(side, int) for side in sides):
        return None
    return nn.ZeroPad2d((*sides, *(0,) * (4 - len(sides)))) if len(sides) <= 4 else None


def _affine(node: fx.Node) -> nn.Module | None:
    """Arithmetic of a tensor with a number behind it, or of a sum or product in any order."""
    numbers = [each for each in node.args if isinstance(each, int | float)]
    behind = numbers == [*node.args[1:]] or node.target in (operator.add, operator.mul)
    if len(numbers) != 1 or len(node.args) != 2 or node.kwargs or not behind:
        return None
    scale, shift = _CONSTANTS[node.target](float(numbers[0]))
    return Affine(scale, shift) if scale else None


def run(layers: tuple[Layer, ...], inputs: Tensor) -> Tensor:
    """Go through the layers in order."""
    for layer in layers:
        inputs = layer.module(inputs)
    return inputs
