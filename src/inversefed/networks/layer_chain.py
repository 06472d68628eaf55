"""A network as a chain of layers, for methods that go through it layer by layer.

The module is traced once (torch.fx) and read as `layer_1, .., layer_n`, each fed by the one before it. Functions
become the modules of the same name, so a method dispatches on types alone. Layers of series `[n, c, l]` become those
of pictures of height one, `[n, c, 1, l]`: a convolution's weight `[o, c, k]` is read as `[o, c, 1, k]`. Two ways from
one layer that are summed, as in a residual network (He et al. 2016, arXiv:1512.03385), are one layer, `Residual`, which
holds both. Ways from one layer whose channels are put side by side, as in a U-Net, are one, too: `Concatenation`. A
network with other branches, that uses weights twice, or whose forward pass depends on its data, is no chain and is
refused.
"""

import copy
import operator
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, fx, nn

from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.network import Network, first_names
from inversefed.fl.train_mode import batchnorm_in_train_mode
from inversefed.networks.graph import called, kind_of, trace, unread
from inversefed.types import Params

__all__ = ["Concatenation", "Layer", "Residual", "Ways", "chain", "flat", "run"]

_SUMS = {operator.add, operator.iadd, torch.add, "add", "add_"}
_CONCATENATIONS = {torch.cat, torch.concat, torch.concatenate}


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
        """The gradient of its weight, in the shape of the weight.

        Raises:
            UnsupportedNetworkError: the update holds none of its own.
        """
        self.require_gradient()
        weight = self.module.get_parameter("weight")
        return gradient[f"{self.name}.weight"].reshape(weight.shape)

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


class Ways(nn.Module):
    """Ways from one layer that come together again.

    Args:
        ways: of layers each; one that is empty is the input itself.
    """

    def __init__(self, *ways: tuple[Layer, ...]) -> None:
        super().__init__()
        self.ways = ways
        self.parts = nn.ModuleList(layer.module for way in ways for layer in way)  # for `to`


class Residual(Ways):
    """Two ways from one layer, whose ends are summed.

    Args:
        body: the longer way.
        shortcut: the other one; empty where it is the input itself.
    """

    def __init__(self, body: tuple[Layer, ...], shortcut: tuple[Layer, ...]) -> None:
        super().__init__(body, shortcut)
        self.body, self.shortcut = body, shortcut

    def forward(self, inputs: Tensor) -> Tensor:
        """The sum."""
        return run(self.body, inputs) + run(self.shortcut, inputs)


class Concatenation(Ways):
    """Ways from one layer, in the order in which their channels stand one after another."""

    def forward(self, inputs: Tensor) -> Tensor:
        """All channels."""
        return torch.cat([run(way, inputs) for way in self.ways], dim=1)


def chain(network: Network) -> tuple[Layer, ...]:
    """Read a network as a chain, in the order of execution, in double precision.

    Raises:
        UnsupportedNetworkError: it cannot be traced, branches otherwise than into sums of two ways and concatenations
            of channels, uses weights twice, trains its BatchNorm, or uses an unknown function.

    >>> from inversefed.fl.network import freeze
    >>> network = freeze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(144, 2)), (3, 8, 8))
    >>> [(layer.name, type(layer.module).__name__) for layer in chain(network)]
    [('0', 'Conv2d'), ('1', 'Sigmoid'), ('2', 'Flatten'), ('3', 'Linear')]
    """
    if batchnorm_in_train_mode(network.module):
        raise UnsupportedNetworkError("the layers cannot be told apart while BatchNorm runs in train mode")
    traced, series = trace(network, shapes=True), len(network.space.shape) == 2
    ways: dict[fx.Node, tuple[Layer, ...]] = {}
    last, untrained = None, _untrained(network)
    for node in traced.graph.nodes:
        if node.op != "output" and _is_tensor(node):
            ways[node] = _way_to(traced, node, ways, untrained, series)
            last = node
    layers = ways[last] if last is not None else ()
    weighted = [layer.name for layer in flat(layers) if any(True for _ in layer.module.parameters())]
    if twice := sorted({name for name in weighted if weighted.count(name) > 1}):
        raise UnsupportedNetworkError(
            f"the network is no chain of layers: it runs {twice[0]} twice, or {twice[0]} lies on several ways that "
            "come together"
        )
    return layers


def flat(layers: tuple[Layer, ...]) -> tuple[Layer, ...]:
    """All layers, those of several ways in their place: of a sum the body, then the shortcut."""
    found: list[Layer] = []
    for layer in layers:
        inner = layer.module
        found += [each for way in inner.ways for each in flat(way)] if isinstance(inner, Ways) else [layer]
    return tuple(found)


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
    traced: fx.GraphModule,
    node: fx.Node,
    ways: Mapping[fx.Node, tuple[Layer, ...]],
    untrained: Collection[str],
    series: bool,
) -> tuple[Layer, ...]:
    """The layers from the image to a node, those to the nodes in front of it being known; of a series as a picture."""
    if node.op == "placeholder":
        return ()
    if node.op == "get_attr":
        raise UnsupportedNetworkError(f"the network uses its tensor {node.target} outside of a layer")
    sources = [source for source in node.all_input_nodes if source in ways]
    joined = _concatenated(node)
    if joined and all(source in ways for source in joined):
        fork = _common([ways[source] for source in joined])
        parts = tuple(ways[source][fork:] for source in joined)
        whole = (Layer("", Concatenation(*parts), _shape(node, series)),) if len(parts) > 1 else parts[0]
        return (*ways[joined[0]][:fork], *whole)
    if len(sources) == 1 and len([each for each in node.args if each is sources[0]]) < 2:
        name = str(node.target) if node.op == "call_module" else ""
        way = ways[sources[0]]
        for layer in _layers(traced, node, name, name not in untrained, series):
            way = _followed_by(way, layer)
        return way
    if len(sources) != 2 or node.target not in _SUMS or node.kwargs:
        which = f"layer {called(node)}" if node.op == "call_module" else f"{called(node)}()"
        raise UnsupportedNetworkError(
            f"the network is no chain of layers: branches come together in {which}, which neither sums two of "
            "them nor puts their channels side by side"
        )
    body, shortcut = sorted((ways[source] for source in sources), key=len, reverse=True)
    fork = _common((body, shortcut))
    return (*body[:fork], Layer("", Residual(body[fork:], shortcut[fork:]), _shape(node, series)))


def _common(ways: Sequence[tuple[Layer, ...]]) -> int:
    """How many layers all ways begin with."""
    return next(
        (i for i, each in enumerate(zip(*ways, strict=False)) if any(layer is not each[0] for layer in each)),
        min(map(len, ways)),
    )


def _concatenated(node: fx.Node) -> tuple[fx.Node, ...]:
    """What a node puts side by side along the channels; nothing where it does something else."""
    if node.target not in _CONCATENATIONS or set(node.kwargs) - {"tensors", "dim", "axis"}:
        return ()
    parts = node.args[0] if node.args else node.kwargs.get("tensors")
    axis = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
    axes = len(node.meta["shape"])
    if axis not in (1, 1 - axes) or not isinstance(parts, list | tuple):
        return ()
    return tuple(part for part in parts if isinstance(part, fx.Node))


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


def _shape(node: fx.Node, series: bool) -> tuple[int, ...]:
    """Of one example; a series has height one."""
    shape = tuple(node.meta["shape"][1:])
    return (shape[0], 1, shape[1]) if series and len(shape) == 2 else shape


def _layers(traced: fx.GraphModule, node: fx.Node, name: str, trained: bool, series: bool) -> tuple[Layer, ...]:
    """A node as a layer; a mean over all places that drops their axes as two."""
    shape = _shape(node, series)
    if node.op == "call_module":
        module = traced.get_submodule(name)
        return (Layer(name, _of_height_one(module, shape) if series else module, shape, trained),)
    kind = kind_of(node)
    read = None if kind is None else kind.module_of(node)
    if read is None:
        raise UnsupportedNetworkError(f"the network {unread(node)}")
    module = _of_height_one(read, shape) if series else read
    if isinstance(module, nn.AdaptiveAvgPool1d | nn.AdaptiveAvgPool2d) and len(shape) == 1:
        places = (1,) if isinstance(module, nn.AdaptiveAvgPool1d) else (1, 1)
        return Layer(name, module, (*shape, *places)), Layer("", nn.Flatten(), shape)
    return (Layer(name, module, shape, trained),)


def _of_height_one(module: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """The layer of pictures of height one that computes the same as one of series; all others as they are.

    Args:
        module: in eval mode.
        shape: of one example's output, with a height where it has places.
    """
    match module:
        case nn.Conv1d():
            padding = module.padding if isinstance(module.padding, str) else (0, module.padding[0])
            conv = nn.Conv2d(
                module.in_channels, module.out_channels, (1, module.kernel_size[0]), (1, module.stride[0]), padding,
                (1, module.dilation[0]), module.groups, module.bias is not None, module.padding_mode, device="meta",
            )  # fmt: skip
            conv.weight = nn.Parameter(module.weight.detach()[:, :, None, :], requires_grad=False)
            conv.bias = module.bias
            return conv.eval()
        case nn.MaxPool1d():
            window, stride, pad = (1, _one(module.kernel_size)), (1, _one(module.stride)), (0, _one(module.padding))
            return nn.MaxPool2d(window, stride, pad, (1, _one(module.dilation)), ceil_mode=module.ceil_mode).eval()
        case nn.AvgPool1d():
            window, stride, pad = (1, _one(module.kernel_size)), (1, _one(module.stride)), (0, _one(module.padding))
            return nn.AvgPool2d(window, stride, pad, module.ceil_mode, module.count_include_pad).eval()
        case nn.AdaptiveAvgPool1d():
            return nn.AdaptiveAvgPool2d((1, _one(module.output_size))).eval()
        case nn.ConstantPad1d() if module.value == 0:
            return nn.ZeroPad2d((*module.padding, 0, 0)).eval()
        case nn.Dropout1d():
            return nn.Identity().eval()
        case nn.BatchNorm1d() if len(shape) == 3:
            norm = nn.BatchNorm2d(
                module.num_features, module.eps, module.momentum, module.affine, module.track_running_stats,
                device="meta",
            )  # fmt: skip
            norm.weight, norm.bias = module.weight, module.bias
            norm.running_mean, norm.running_var = module.running_mean, module.running_var
            norm.num_batches_tracked = module.num_batches_tracked
            return norm.eval()
    return module


def _one(size: int | tuple[int | None, ...] | None) -> int:
    """A number that may stand in a tuple by itself."""
    number = size[0] if isinstance(size, tuple) else size
    assert number is not None
    return number


def run(layers: tuple[Layer, ...], inputs: Tensor) -> Tensor:
    """Go through the layers in order."""
    for layer in layers:
        inputs = layer.module(inputs)
    return inputs
