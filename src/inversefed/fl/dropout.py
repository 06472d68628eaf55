"""Random layers with given draws: dropout masks and the like as inputs.

    dropout:  y = x * m / (1 - p),    m in {0, 1}, or in [0, 1] where it is relaxed
    noise:    y = e,                  e ~ N(0, 1)

A dropout layer in train mode draws `m` anew for each example and local step, a noise layer `e`. An attacker who does
not know the draws can put values of its own in their place, and differentiate with respect to them.
"""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn

from inversefed.fl.hooks import record, replaced_outputs

__all__ = ["NormalNoise", "dropout_layers", "given_masks", "noise_layers"]

_PER_CHANNEL = (nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)


class NormalNoise(nn.Module):
    """Standard normal draws in the shape of what it is given; it draws in every mode, as a variational layer does."""

    def forward(self, like: Tensor) -> Tensor:
        """Draw from the random state, which `Network` fixes."""
        return torch.randn_like(like)


def dropout_layers(module: nn.Module) -> dict[str, nn.Dropout | nn.Dropout1d | nn.Dropout2d | nn.Dropout3d]:
    """The dropout layers that are on, by name; alpha dropout, which does not multiply by a mask, is not among them.

    >>> list(dropout_layers(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5))))
    ['1']
    """
    return {
        name: layer
        for name, layer in module.named_modules()
        if isinstance(layer, (nn.Dropout, *_PER_CHANNEL)) and layer.training and 0 < layer.p < 1
    }


def noise_layers(module: nn.Module) -> dict[str, NormalNoise]:
    """The layers that draw normal noise, by name."""
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, NormalNoise)}


def mask_shapes(module: nn.Module, run: Callable[[], object]) -> dict[str, tuple[int, ...]]:
    """The shape of one example's draw in each dropout layer that is on, or noise layer, that runs.

    Args:
        module: holds the layers.
        run: runs it, on any pictures.
    """

    def drawn(_: str, layer: nn.Module, inputs: Tensor) -> tuple[int, ...]:
        shape = tuple(inputs.shape[1:])
        return (shape[0], *(1,) * (len(shape) - 1)) if isinstance(layer, _PER_CHANNEL) else shape

    _, runs = record({**dropout_layers(module), **noise_layers(module)}, run, drawn)
    shapes = {each.name: each.inputs for each in runs}
    return {name: shape for name, shape in shapes.items() if math.prod(shape)}


def given_masks(module: nn.Module, masks: Mapping[str, Tensor]) -> AbstractContextManager[None]:
    """Within it, the named dropout layers multiply by these masks, and noise layers give them as they are.

    Of more draws than examples the first are taken.
    """

    def given(name: str, layer: nn.Module, inputs: Tensor, _: Tensor) -> Tensor:
        mask = masks[name][: inputs.shape[0]]
        return mask if isinstance(layer, NormalNoise) else inputs * (mask / (1 - float(layer.p)))  # type: ignore[arg-type]

    return replaced_outputs({name: module.get_submodule(name) for name in masks}, given)
