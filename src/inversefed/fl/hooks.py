"""What goes into the layers of a module while it runs, and what comes out; and other values in place of that."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from torch import Tensor, nn

__all__ = ["LayerRun", "record", "replaced_outputs"]

Seen = TypeVar("Seen")
Result = TypeVar("Result")


@dataclass(frozen=True, eq=False)
class LayerRun(Generic[Seen]):
    """One layer, run once.

    Args:
        name: where it stands in the module.
        layer: it.
        inputs: what was kept of the first tensor that it was given.
        outputs: what it gave: a tensor, or whatever its kind gives.
    """

    name: str
    layer: nn.Module = field(repr=False)
    inputs: Seen = field(repr=False)
    outputs: Any = field(repr=False)


def record(
    layers: Mapping[str, nn.Module], run: Callable[[], Result], keep: Callable[[str, nn.Module, Tensor], Seen]
) -> tuple[Result, tuple[LayerRun[Seen], ...]]:
    """Run something and note each run of some layers, in the order in which they end.

    Args:
        layers: by name; a run that is given no tensor is left out.
        run: runs them, such as `lambda: network.features(images)`.
        keep: what is kept of a layer's first input, from its name, itself and that tensor. It is called before the
            layer runs, so that layers that work in place have not yet changed it, and may raise to end the run.

    Returns:
        What `run` gives, and the runs.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    >>> layers = dict(net.named_children())
    >>> _, runs = record(layers, lambda: net(torch.ones(1, 3)), lambda name, layer, inputs: tuple(inputs.shape))
    >>> [(each.name, each.inputs, tuple(each.outputs.shape)) for each in runs]
    [('0', (1, 3), (1, 2)), ('1', (1, 2), (1, 2))]
    """
    runs: list[LayerRun[Seen]] = []
    begun: dict[str, list[Seen]] = {name: [] for name in layers}

    def begin(name: str, layer: nn.Module, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        inputs = next((value for value in (*given, *named.values()) if isinstance(value, Tensor)), None)
        if inputs is not None:
            begun[name].append(keep(name, layer, inputs))

    def end(name: str, layer: nn.Module, _: tuple[Any, ...], __: Mapping[str, Any], outputs: Any) -> None:
        if begun[name]:
            runs.append(LayerRun(name, layer, begun[name].pop(), outputs))

    hooks = [layer.register_forward_pre_hook(partial(begin, name), with_kwargs=True) for name, layer in layers.items()]
    hooks += [layer.register_forward_hook(partial(end, name), with_kwargs=True) for name, layer in layers.items()]
    try:
        result = run()
    finally:
        for hook in hooks:
            hook.remove()
    return result, tuple(runs)


@contextmanager
def replaced_outputs(
    layers: Mapping[str, nn.Module], replace: Callable[[str, nn.Module, Tensor, Tensor], Tensor]
) -> Iterator[None]:
    """Within it, some layers give something else.

    Args:
        layers: by name.
        replace: what a layer gives, from its name, itself, what it was given and what it would give.

    >>> import torch
    >>> net = nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    >>> with replaced_outputs({"1": net[1]}, lambda name, layer, inputs, outputs: 0 * inputs):
    ...     net(torch.ones(1, 3)).tolist()
    [[0.0, 0.0]]
    """

    def hook(name: str, layer: nn.Module, inputs: tuple[Any, ...], outputs: Any) -> Tensor:
        return replace(name, layer, inputs[0], outputs)

    hooks = [layer.register_forward_hook(partial(hook, name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for each in hooks:
            each.remove()
