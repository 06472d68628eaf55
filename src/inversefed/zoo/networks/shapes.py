"""Networks whose first linear layer fixes the size of the picture say so when another size comes.

A hook on that layer looks at the number of features that reach it, so the module stays a plain chain of layers for
anyone who walks or traces it.
"""

from functools import partial
from typing import Any

from torch import nn

from inversefed.errors import ConfigError, UnsupportedNetworkError

__all__ = ["CIFAR_SIZE", "expect_features", "require_channels"]

CIFAR_SIZE = "It is built for 32x32 pictures: resize them, or choose a network with global pooling, such as ResNet20."
"""Advice for the networks whose linear layer fixes the size."""


def expect_features(linear: nn.Linear, name: str, advice: str) -> nn.Linear:
    """Make `linear` refuse an input of another width, naming the network.

    Args:
        linear: a layer that was just built; it is returned with the check in place.
        name: the network's name, for the message.
        advice: what size of picture the network takes, and what to do instead.
    """
    linear.register_forward_pre_hook(partial(_check, name=name, advice=advice))
    return linear


def _check(linear: nn.Module, inputs: tuple[Any, ...], *, name: str, advice: str) -> None:
    expected, came = linear.in_features, inputs[0].shape[-1]
    if came != expected:
        raise UnsupportedNetworkError(
            f"{name}: its linear layer takes {expected} features, and these pictures give {came}. {advice}"
        )


def require_channels(name: str, num_channels: int, expected: int) -> None:
    """Refuse a number of channels that the network's first layer cannot take.

    Raises:
        ConfigError: `num_channels` is not `expected`.
    """
    if num_channels != expected:
        raise ConfigError(
            f"{name} takes pictures of {expected} channel(s), not {num_channels}; "
            f"leave num_channels at {expected}, or choose a network that takes any, such as ConvNet64 or ResNet20"
        )
