"""Layers that draw, with values that are given instead.

    dropout:  y = x * m / (1 - p),    m in {0, 1}, or in [0, 1] where it is relaxed
    noise:    y = e,                  e ~ N(0, 1)

A dropout layer in train mode draws `m` anew for each example and local step, a noise layer `e`. An attacker who does
not know the draws can put values of its own in their place, and differentiate with respect to them.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

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
    shapes: dict[str, tuple[int, ...]] = {}

    def note(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def see(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> None:
            shape = tuple(inputs[0].shape[1:])
            shapes[name] = (shape[0], *(1,) * (len(shape) - 1)) if isinstance(layer, _PER_CHANNEL) else shape

        return see

    layers: dict[str, nn.Module] = {**dropout_layers(module), **noise_layers(module)}
    handles = [layer.register_forward_hook(note(name)) for name, layer in layers.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return {name: shape for name, shape in shapes.items() if math.prod(shape)}


@contextmanager
def given_masks(module: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """Within it, the named dropout layers multiply by these masks, and noise layers give them as they are.

    Of more draws than examples the first are taken.
    """

    def replaced(mask: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        def multiply(layer: nn.Module, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
            if isinstance(layer, NormalNoise):
                return mask[: inputs[0].shape[0]]
            kept = mask[: inputs[0].shape[0]] / (1 - float(layer.p))  # type: ignore[arg-type]
            output: Tensor = inputs[0] * kept
            return output

        return multiply

    handles = [module.get_submodule(name).register_forward_hook(replaced(mask)) for name, mask in masks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
