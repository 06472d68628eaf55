"""The input of a linear layer with bias, in closed form, whatever the layers behind it.

    gW_i = d_i a^T,  gb_i = d_i   =>   a = gW_i / gb_i   for every row i with gb_i != 0

(Geiping et al. 2020, arXiv:2003.14053, Prop. 3.1). Rows are combined by least squares,
`a = gb^T gW / |gb|^2`. It holds for one example, or where the update is that of one example in
several local steps and the layer is the first. A layer that is applied at several positions sums over
them, its gradient is not of rank one, and it is left out.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from inversefed.attacks.exact.verify import verified
from inversefed.attacks.labels.nearest_update import labels_of
from inversefed.attacks.matching_error import matching_error
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.types import Budget, Candidate, Params, Reconstruction, Status

__all__ = ["LinearInput"]


def linear_inputs(network: Network, gradient: Params) -> Mapping[str, Tensor]:
    """Recover what went into every linear layer with bias.

    Args:
        network: the network that the gradient belongs to.
        gradient: of the loss of one example, at any scale.

    Returns:
        By layer name, the input `[features]`; layers without bias, without signal, or whose gradient is
        not of rank one are left out.

    >>> from inversefed.fl.clients import FedSGD
    >>> from inversefed.fl.network import freeze
    >>> network = freeze(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)), (3, 2, 2))
    >>> image = torch.rand(1, 3, 2, 2)
    >>> gradient = FedSGD()(network, image, torch.tensor([2]))
    >>> bool((linear_inputs(network, gradient)["1"] - image.flatten()).abs().max() < 1e-5)
    True
    """
    found = {}
    for name in network.linear_layers():
        weight, bias = gradient.get(f"{name}.weight"), gradient.get(f"{name}.bias")
        if weight is None or bias is None or not bool(bias.any()):
            continue
        features = (bias @ weight) / bias.square().sum()
        tolerance = 1e3 * torch.finfo(weight.dtype).eps
        if (weight - torch.outer(bias, features)).norm() <= tolerance * weight.norm():
            found[name] = features
    return found


@dataclass(frozen=True)
class LinearInput:
    """Read the picture off the first linear layer, where that layer sees the flattened picture itself."""

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Solve; neither randomness nor budget is used.

        Raises:
            ThreatModelError: the update is not that of one example.
            UnsupportedNetworkError: no linear layer with bias sees the picture.
        """
        network = observation.network
        layer, inputs = _solved(observation)
        images = network.denormalize(inputs.reshape(observation.batch_shape))
        labels, told = labels_of(observation, images)
        loss = matching_error(observation, images, labels)
        chosen = Candidate(images, labels, loss, Status.FINISHED, iterations=1)
        how = f"the picture was read off layer {layer} in closed form, without a search"
        return verified(self, chosen, how, told=told)

    def check(self, observation: Observation) -> str:
        """Say what it would do.

        Raises:
            ThreatModelError: as when it is called.
            UnsupportedNetworkError: likewise.
        """
        return f"reads the picture off layer {_solved(observation)[0]}, whose input it is"


def _solved(observation: Observation) -> tuple[str, Tensor]:
    """The layer that sees the picture, and what it saw."""
    network = observation.network
    if observation.num_examples != 1:
        raise ThreatModelError(
            f"a linear layer's input is exact for one example; this update has {observation.num_examples}"
        )
    layer = layer_on_the_picture(network)
    if layer is None or f"{layer}.bias" not in network.params:
        raise UnsupportedNetworkError(
            "no linear layer with bias sees the flattened picture; use an optimization attack such as geiping()"
        )
    inputs = linear_inputs(network, observation.gradient).get(layer)
    if inputs is None:
        raise UnsupportedNetworkError(
            f"the gradient of layer {layer} is not of rank one, so it is not one example's as it was computed "
            "(noise, pruning or quantization does that); use an optimization attack such as geiping()"
        )
    return layer, inputs


def layer_on_the_picture(network: Network) -> str | None:
    """The first linear layer whose input is the normalized picture, flattened."""
    # Two pictures: BatchNorm in train mode refuses one, where a layer has but one place for each channel.
    probe = torch.rand((2, *network.image_shape), generator=Generator().manual_seed(0))
    probe = probe.to(network.device, network.dtype)
    expected = network.normalize(probe).flatten()
    for name, inputs in network.linear_inputs(probe).items():
        if inputs.numel() == expected.numel() and torch.equal(inputs.flatten(), expected):
            return name
    return None
