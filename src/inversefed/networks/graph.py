"""A network as a traced graph, and the one table of layers without weights that everything reads it by.

`torch.fx` runs the forward pass once on stand-ins and notes each call. The same layer can be written as a module
(`nn.ReLU()`), a function (`F.relu`, `torch.relu_`) or a method (`x.relu()`); `LAYER_KINDS` joins these forms and says
what holds for the layer, whoever asks: the chain of layers, the architecture, the diagnosis. A new activation is one
line there.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.apart import apart
from inversefed.fl.network import Network

__all__ = ["LAYER_KINDS", "Affine", "LayerKind", "arguments", "called", "kind_of", "trace", "unread"]


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


def trace(network: Network, shapes: bool = False) -> fx.GraphModule:
    """Trace a private copy of a network's module in eval mode.

    Args:
        network: any.
        shapes: take the copy to the CPU in double precision, run it on one gray picture, and note the shape of each
            node's tensor as `node.meta["shape"]`.

    Raises:
        UnsupportedNetworkError: it cannot be traced, as where its forward pass depends on its data.

    >>> from inversefed.fl.network import freeze
    >>> traced = trace(freeze(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2)), shapes=True)
    >>> [node.meta["shape"] for node in traced.graph.nodes if node.op == "call_module"]
    [(1, 12), (1, 5)]
    """
    module = apart(network.module).eval().requires_grad_(False)
    try:
        if not shapes:
            return fx.symbolic_trace(module)
        traced = fx.symbolic_trace(module.to("cpu", torch.float64))
        middle = network.space.middle(1)
        _Shapes(traced).run(middle.double() if middle.is_floating_point() else middle)
    except Exception as error:  # tracing runs foreign code: whatever it raises means the same
        raise UnsupportedNetworkError(f"the network cannot be read layer by layer: {error}") from error
    return traced


class _Shapes(fx.Interpreter):
    """Notes the shape of each node's tensor. torch's own `ShapeProp` prints a traceback where a node fails."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        return result


def arguments(node: fx.Node, *names: str) -> dict[str, Any]:
    """What a node gives its function behind the tensor, by name.

    Args:
        node: calls a function or a method.
        names: of the arguments that may be given by position.
    """
    return {**dict(zip(names, node.args[1:], strict=False)), **node.kwargs}


def called(node: fx.Node) -> str:
    """The name of the layer, function or method that a node calls, as its author wrote it."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    return name if node.op == "call_module" else name.lstrip("_")


_IGNORED = ("inplace", "return_indices", "_stacklevel", "dtype", "memory_format")
"""Arguments that change no value here."""


def _by_arguments(kind: "LayerKind", node: fx.Node) -> nn.Module | None:
    """The module with the arguments that a node gives its function; nothing where it gives others."""
    assert kind.module is not None and kind.arguments is not None
    names = kind.arguments
    given = {name: value for name, value in arguments(node, *names).items() if name not in _IGNORED}
    more = any(value for name, value in given.items() if name not in names)  # `antialias=False` asks for nothing
    if more or any(isinstance(value, fx.Node) for value in given.values()) or len(node.args) > len(names) + 1:
        return None
    return kind.module(**{name: value for name, value in given.items() if name in names and value is not None})


def _flattened(_: "LayerKind", node: fx.Node) -> nn.Module | None:
    return nn.Flatten() if len(node.meta["shape"]) == 2 else None


def _average(_: "LayerKind", node: fx.Node) -> nn.Module | None:
    """The average pooling whose output has the height and width that the node's has."""
    return nn.AdaptiveAvgPool2d(tuple(node.meta["shape"])[2:])


def _mean(_: "LayerKind", node: fx.Node) -> nn.Module | None:
    """The average over all places, in front of a `Flatten` where the mean drops the axes."""
    return nn.AdaptiveAvgPool2d(1) if len(node.all_input_nodes[0].meta["shape"]) == 4 else None


def _mean_of_series(_: "LayerKind", node: fx.Node) -> nn.Module | None:
    """The average over all places of a series, in front of a `Flatten`."""
    return nn.AdaptiveAvgPool1d(1) if len(node.all_input_nodes[0].meta["shape"]) == 3 else None


def _over_length(node: fx.Node) -> bool:
    """Whether a mean is one over the last of three axes, which it drops."""
    over = arguments(node, "dim", "keepdim").get("dim")
    return _drops_axes(node) and over in (2, -1, (2,), (-1,), [2], [-1])


def _over_places(node: fx.Node) -> bool:
    """Whether a mean is one over height and width."""
    over = arguments(node, "dim", "keepdim").get("dim")
    return isinstance(over, list | tuple) and {axis % 4 for axis in over if isinstance(axis, int)} == {2, 3}


def _drops_axes(node: fx.Node) -> bool:
    """Whether a mean is not one over channels that keeps its axes, as a norm written by hand takes it."""
    return not arguments(node, "dim", "keepdim").get("keepdim")


def _zeros(node: fx.Node) -> tuple[int, int, int, int] | None:
    """How many zeros a padding adds left, right, above and below; nothing where it adds something else."""
    given = arguments(node, "pad", "mode", "value")
    sides, value = given.get("pad"), given.get("value")
    plain = given.get("mode", "constant") == "constant" and value in (None, 0)
    if not plain or not isinstance(sides, list | tuple) or not all(isinstance(side, int) for side in sides):
        return None
    if len(sides) > 4:
        return None
    left, right, top, bottom = [*sides, 0, 0, 0, 0][:4]
    return left, right, top, bottom


def _padding(_: "LayerKind", node: fx.Node) -> nn.Module | None:
    sides = _zeros(node)
    return None if sides is None else nn.ZeroPad2d(sides)


def _affine(affine: Callable[[float], tuple[float, float]], _: "LayerKind", node: fx.Node) -> nn.Module | None:
    """Arithmetic of a tensor with a number behind it, or of a sum or product in any order."""
    numbers = [each for each in node.args if isinstance(each, int | float)]
    behind = numbers == [*node.args[1:]] or node.target in (operator.add, operator.mul)
    if len(numbers) != 1 or len(node.args) != 2 or node.kwargs or not behind:
        return None
    scale, shift = affine(float(numbers[0]))
    return Affine(scale, shift) if scale else None


def _always(_: fx.Node) -> bool:
    return True


@dataclass(frozen=True, eq=False)
class LayerKind:
    """A kind of layer without weights of its own, in all forms in which it is written.

    Args:
        module: the layer as a module; `None` for a function that no module stands for.
        forms: names of the functions of `torch` and `torch.nn.functional` and of the methods of tensors that compute
            it, with those of the same name and `_` that do so in place; or functions from elsewhere.
        arguments: names of the function's arguments behind the tensor, by position, which the module takes by the same
            names; `None` where the function is not read as the module.
        smooth: has a continuous slope.
        piecewise_linear: `f(z) = J(z) z` wherever it has a Jacobian `J`, so that `sum of delta x` is the same in front
            of the layer and behind it, channel by channel.
        max_pool: lets one place of several win, and hides which.
        average: averages over places, after which a position is no longer known.
        normalizes: scales features by what it sees, and so hides contrast and brightness.
        when: of which calls that holds.
        read: from a call, whose tensors' shapes are known, to the module; `None` where there is none.
        unread: what the network does where a call of such a function is no layer; empty where its name says enough.
    """

    module: type[nn.Module] | None
    forms: tuple[str | Callable[..., Any], ...] = ()
    arguments: tuple[str, ...] | None = ()
    smooth: bool = True
    piecewise_linear: bool = False
    max_pool: bool = False
    average: bool = False
    normalizes: bool = False
    when: Callable[[fx.Node], bool] = field(default=_always, repr=False)
    read: Callable[["LayerKind", fx.Node], nn.Module | None] = field(default=_by_arguments, repr=False)
    unread: str = field(default="", repr=False)

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """All functions that compute it."""
        names = [each for form in self.forms if isinstance(form, str) for each in (form, f"{form}_")]
        found = [getattr(space, name) for space in (F, torch) for name in names if hasattr(space, name)]
        return (*found, *(form for form in self.forms if not isinstance(form, str)))

    @property
    def methods(self) -> tuple[str, ...]:
        """All methods of tensors that compute it."""
        names = [each for form in self.forms if isinstance(form, str) for each in (form, f"{form}_")]
        return tuple(name for name in names if hasattr(Tensor, name))

    def module_of(self, node: fx.Node) -> nn.Module | None:
        """What a call computes, as a module; nothing where there is none.

        Args:
            node: calls a function or method of this kind in a graph that was traced with shapes.
        """
        found = None if self.module is None or self.arguments is None else self.read(self, node)
        return None if found is None else found.eval()


_bent = partial(LayerKind, smooth=False)
_normalizing = partial(LayerKind, arguments=None, normalizes=True)
_max_pool = partial(LayerKind, smooth=False, piecewise_linear=True, max_pool=True)
_average_pool = partial(LayerKind, piecewise_linear=True, average=True)
_WINDOW = ("kernel_size", "stride", "padding")
_OTHER_AXES = "takes a mean over other axes than height and width"

LAYER_KINDS: tuple[LayerKind, ...] = (
    _bent(nn.ReLU, ("relu",), piecewise_linear=True),
    _bent(nn.LeakyReLU, ("leaky_relu",), ("negative_slope",), piecewise_linear=True),
    _bent(nn.RReLU, ("rrelu",), ("lower", "upper"), piecewise_linear=True),
    _bent(nn.PReLU, ("prelu",), None),
    _bent(nn.ReLU6, ("relu6",)),
    _bent(nn.Hardtanh, ("hardtanh",), ("min_val", "max_val")),
    _bent(nn.Hardsigmoid, ("hardsigmoid",)),
    _bent(nn.Hardswish, ("hardswish",)),
    _bent(nn.Hardshrink, ("hardshrink",), ("lambd",), piecewise_linear=True),
    _bent(nn.Softshrink, ("softshrink",), ("lambd",)),
    _bent(nn.Threshold, ("threshold",), ("threshold", "value")),
    LayerKind(nn.Sigmoid, ("sigmoid",)),
    LayerKind(nn.LogSigmoid, ("logsigmoid",)),
    LayerKind(nn.Tanh, ("tanh",)),
    LayerKind(nn.Tanhshrink, ("tanhshrink",)),
    LayerKind(nn.GELU, ("gelu",), ("approximate",)),
    LayerKind(nn.SiLU, ("silu",)),
    LayerKind(nn.Mish, ("mish",)),
    LayerKind(nn.ELU, ("elu",), ("alpha",)),
    LayerKind(nn.SELU, ("selu",)),
    LayerKind(nn.CELU, ("celu",), ("alpha",)),
    LayerKind(nn.GLU, ("glu",), ("dim",)),
    LayerKind(nn.Softplus, ("softplus",), ("beta", "threshold")),
    LayerKind(nn.Softsign, ("softsign",)),
    LayerKind(nn.Softmax, ("softmax",), ("dim",)),
    LayerKind(nn.LogSoftmax, ("log_softmax",), ("dim",)),
    _max_pool(nn.MaxPool1d, ("max_pool1d",), (*_WINDOW, "dilation", "ceil_mode")),
    _max_pool(nn.MaxPool2d, ("max_pool2d",), (*_WINDOW, "dilation", "ceil_mode")),
    _max_pool(nn.MaxPool3d, ("max_pool3d",), (*_WINDOW, "dilation", "ceil_mode")),
    _max_pool(nn.AdaptiveMaxPool1d, ("adaptive_max_pool1d",), ("output_size",)),
    _max_pool(nn.AdaptiveMaxPool2d, ("adaptive_max_pool2d",), ("output_size",)),
    _max_pool(nn.AdaptiveMaxPool3d, ("adaptive_max_pool3d",), ("output_size",)),
    _max_pool(nn.FractionalMaxPool2d, ("fractional_max_pool2d",), None),
    _average_pool(nn.AvgPool1d, ("avg_pool1d",), (*_WINDOW, "ceil_mode", "count_include_pad")),
    _average_pool(
        nn.AvgPool2d, ("avg_pool2d",), (*_WINDOW, "ceil_mode", "count_include_pad", "divisor_override")
    ),
    _average_pool(nn.AdaptiveAvgPool2d, ("adaptive_avg_pool2d",), ("output_size",), read=_average),
    _average_pool(nn.AdaptiveAvgPool2d, ("mean",), when=_over_places, read=_mean, unread=_OTHER_AXES),
    _average_pool(nn.AdaptiveAvgPool1d, ("adaptive_avg_pool1d",), ("output_size",)),
    _average_pool(nn.AdaptiveAvgPool1d, ("mean",), when=_over_length, read=_mean_of_series, unread=_OTHER_AXES),
    LayerKind(None, ("mean",), when=_drops_axes, average=True),
    LayerKind(nn.Upsample, ("interpolate",), ("size", "scale_factor", "mode", "align_corners"), piecewise_linear=True),
    LayerKind(nn.ZeroPad2d, ("pad",), when=lambda node: _zeros(node) is not None, read=_padding, piecewise_linear=True),
    LayerKind(nn.Flatten, ("flatten", "reshape", "view", "squeeze"), read=_flattened, piecewise_linear=True),
    LayerKind(nn.Identity, ("contiguous", "clone"), piecewise_linear=True),
    LayerKind(nn.Dropout, ("dropout",), ("p",), piecewise_linear=True),
    LayerKind(nn.Dropout2d, ("dropout2d",), ("p",), piecewise_linear=True),
    LayerKind(Affine, ("add", operator.add, operator.iadd), read=partial(_affine, lambda c: (1.0, c))),
    LayerKind(Affine, ("sub", operator.sub, operator.isub), read=partial(_affine, lambda c: (1.0, -c))),
    LayerKind(Affine, ("mul", operator.mul, operator.imul), read=partial(_affine, lambda c: (c, 0.0))),
    LayerKind(
        Affine, ("div", operator.truediv, operator.itruediv),
        read=partial(_affine, lambda c: (1 / c if c else 0.0, 0.0)),
    ),
    _normalizing(nn.GroupNorm, ("group_norm",)),
    _normalizing(nn.LayerNorm, ("layer_norm",)),
    _normalizing(nn.RMSNorm, ("rms_norm",)),
    _normalizing(nn.InstanceNorm1d, ("instance_norm",)),
    _normalizing(nn.InstanceNorm2d),
    _normalizing(nn.InstanceNorm3d),
    _normalizing(nn.LocalResponseNorm, ("local_response_norm",)),
    _normalizing(None, (F.normalize, "rsqrt", "std", "var", "norm")),  # what a norm that is written by hand is made of
    _bent(None, ("abs", "maximum", "minimum", "clamp", "clip")),
)  # fmt: skip
"""All kinds, each once; tests run every form of each. BatchNorm is not among them: its mode decides what it does."""

_BY_MODULE: Mapping[type[nn.Module], LayerKind] = {kind.module: kind for kind in LAYER_KINDS[::-1] if kind.module}
_BY_CALL: Mapping[Any, tuple[LayerKind, ...]] = {
    target: tuple(kind for kind in LAYER_KINDS if target in (*kind.functions, *kind.methods))
    for each in LAYER_KINDS
    for target in (*each.functions, *each.methods)
}


def kind_of(layer: nn.Module | fx.Node) -> LayerKind | None:
    """The kind of a module, or of a call of a function or method; `None` for all others, as those with weights.

    >>> kind_of(nn.ReLU6()).smooth, kind_of(nn.Linear(1, 1))
    (False, None)
    """
    if isinstance(layer, nn.Module):
        return next((_BY_MODULE[base] for base in type(layer).__mro__ if base in _BY_MODULE), None)
    if layer.op not in ("call_function", "call_method"):
        return None
    return next((kind for kind in _BY_CALL.get(layer.target, ()) if kind.when(layer)), None)


def unread(node: fx.Node) -> str:
    """Why a call is read as no layer, as a sentence without its subject, the network.

    Args:
        node: calls a function or method.
    """
    told = (kind.unread for kind in _BY_CALL.get(node.target, ()) if kind.unread)
    return next(told, f"uses {called(node)}(), which is not read as a layer")
