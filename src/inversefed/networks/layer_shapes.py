"""Input and output shapes of each layer with weights, for any network that runs.

A chain of layers (`chain`) says more, but a network that branches has none; the shapes are there for both.
"""

from collections import Counter
from dataclasses import dataclass, field

from torch import Tensor, nn

from inversefed.fl.hooks import record
from inversefed.fl.network import Network, eval_mode

__all__ = ["Geometry", "geometry", "padding_of", "residues"]


@dataclass(frozen=True, eq=False)
class Geometry:
    """One layer with weights.

    Args:
        name: where it stands in the module; its weights are `name.weight` and so on.
        module: the layer itself, to be read, not run.
        inputs: shape of what goes in, for one example.
        outputs: shape of what comes out, likewise.
        runs: how often one forward pass runs it.
    """

    name: str
    module: nn.Module = field(repr=False)
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    runs: int = 1


def geometry(network: Network) -> tuple[Geometry, ...]:
    """The layers that hold trained weights and run on one tensor, in the order in which they run first.

    Args:
        network: one gray picture is sent through it, in eval mode.

    >>> from inversefed.fl.network import freeze
    >>> network = freeze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)), (3, 8, 8))
    >>> [(layer.name, layer.inputs, layer.outputs) for layer in geometry(network)]
    [('0', (3, 8, 8), (4, 6, 6)), ('3', (144,), (2,))]
    """
    owners = {name.rpartition(".")[0] for name in network.params}
    layers = {name: layer for name, layer in network.module.named_modules() if name in owners}
    gray = network.space.middle(1)
    with eval_mode(network.module):
        _, runs = record(layers, lambda: network.features(gray), lambda _, __, inputs: tuple(inputs.shape[1:]))
    runs = tuple(run for run in runs if isinstance(run.outputs, Tensor))  # attention gives a pair
    times = Counter(run.name for run in runs)
    first = {run.name: run for run in reversed(runs)}
    return tuple(
        Geometry(name, layers[name], first[name].inputs, tuple(first[name].outputs.shape[1:]), count)
        for name, count in times.items()
    )


def residues(module: nn.Conv2d, inputs: tuple[int, ...], outputs: tuple[int, ...], axis: int) -> list[tuple[int, int]]:
    """Along one axis, for each residue of a pixel modulo the stride: how many taps meet how many such pixels.

    A strided convolution falls into parts, one for each residue, which see none of each other's pixels.

    Args:
        module: the convolution.
        inputs: `(c, h, w)` of its input.
        outputs: `(o, p, q)` of its output.
        axis: 0 for the height, 1 for the width.

    >>> residues(nn.Conv2d(1, 1, 3, stride=2, padding=1), (1, 8, 8), (1, 4, 4), 0)
    [(1, 4), (2, 4)]
    """
    stride, dilation, side = module.stride[axis], module.dilation[axis], inputs[1 + axis]
    taps = [dilation * k for k in range(module.kernel_size[axis])]
    padding = padding_of(module)[axis]
    found = []
    for residue in range(stride):
        mine = [tap for tap in taps if (tap - padding) % stride == residue]
        met = {stride * p + tap - padding for tap in mine for p in range(outputs[1 + axis])}
        found.append((len(mine), len([pixel for pixel in met if 0 <= pixel < side])))
    return found


def padding_of(module: nn.Conv2d) -> tuple[int, int]:
    """How many zeros a convolution adds in front of each axis, also where it is told in words.

    >>> padding_of(nn.Conv2d(1, 1, 5, padding="same"))
    (2, 2)
    """
    if module.padding == "valid":
        return 0, 0
    if isinstance(module.padding, str):
        down, across = (module.dilation[axis] * (module.kernel_size[axis] - 1) // 2 for axis in (0, 1))
        return down, across
    return int(module.padding[0]), int(module.padding[1])
