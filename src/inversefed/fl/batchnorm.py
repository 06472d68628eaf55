"""BatchNorm's statistics: what a layer computes of a batch, what it keeps running, and what that gives away.

    new = (1 - m) old + m batch,      so      batch = old + (new - old) / m

In train mode a layer normalizes by the mean and variance of its batch and mixes both into its running buffers
(Ioffe and Szegedy 2015, arXiv:1502.03167). So a client that sends the buffers along sends the statistics of its private
batch (Yin et al. 2021, arXiv:2104.07586, use them). torch keeps the unbiased variance but normalizes by the biased one,
which is (n - 1) / n of it, with n counted over examples and places.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from inversefed.errors import ThreatModelError
from inversefed.fl.clients import Client
from inversefed.fl.hooks import record
from inversefed.fl.network import Network
from inversefed.types import Inputs, Params, Targets

__all__ = ["Moments", "batch_moments", "buffers_of", "moments", "running_moments", "sent_buffers"]


class Moments(NamedTuple):
    """Mean and biased variance of each channel of what goes into a layer.

    Args:
        mean: `[channels]`.
        variance: `[channels]`.
        numbers: how many of a channel they are of; 0 for running buffers.
    """

    mean: Tensor
    variance: Tensor
    numbers: int = 0


def moments(network: Network, images: Inputs) -> dict[str, Moments]:
    """Statistics of what pictures put into each BatchNorm layer, by the layer's name, in the order the layers run.

    They can be differentiated with respect to the pictures. The network runs in its own mode, on all of them at once.
    """

    def of_batch(_: str, __: nn.Module, inputs: Tensor) -> Moments:
        channels = inputs.transpose(0, 1).flatten(start_dim=1)
        variance, mean = torch.var_mean(channels, dim=1, correction=0)
        return Moments(mean, variance, channels.shape[1])

    at_once = replace(network, micro_batch=0)
    _, runs = record(_layers(network), lambda: at_once.apply(network.params, images), of_batch)
    return {run.name: run.inputs for run in runs}


def buffers_of(network: Network) -> dict[str, Tensor]:
    """The network's own running buffers, by name."""
    return dict(network.module.named_buffers())


def running_moments(network: Network, buffers: Params) -> dict[str, Moments]:
    """Mean and variance that each layer keeps, out of buffers by name."""
    return {
        name: Moments(buffers[_join(name, "running_mean")], buffers[_join(name, "running_var")])
        for name in _layers(network)
    }


def batch_moments(network: Network, buffers: Params, counts: Mapping[str, int]) -> dict[str, Moments]:
    """The statistics of the private batch, out of running buffers before and after one local step.

    Args:
        network: as it was sent out, with its old buffers.
        buffers: those that came back.
        counts: numbers of a channel, by the layer's name, as `moments` counts them on pictures of the batch's shape.

    Returns:
        For each layer that runs in train mode.

    Raises:
        ThreatModelError: no layer moved its buffers, or there was more than one step, whose statistics are mixed.
    """
    old, new = (running_moments(network, each) for each in (buffers_of(network), buffers))
    found = {}
    for name, layer in _layers(network).items():
        steps, momentum = _update(network, buffers, name)
        if not layer.training or momentum == 0:
            continue
        if steps != 1:
            raise ThreatModelError(
                f"the batch's own statistics follow from the running buffers of one local step, but {name} counted "
                f"{steps}; match the buffers themselves, with source='sent'"
            )
        mean, variance = (
            before + (after - before) / momentum for before, after in zip(old[name][:2], new[name][:2], strict=True)
        )
        count = counts[name]
        found[name] = Moments(mean, variance * (count - 1) / count, count)
    if not found:
        raise ThreatModelError(
            "no BatchNorm layer ran in train mode, so the running buffers say nothing of the batch; "
            "use source='network'"
        )
    return found


def sent_buffers(client: Client, network: Network, images: Inputs, labels: Targets) -> Params:
    """The running buffers that a client has after its update, and sends along with it.

    The client runs on a network that takes its buffers from one call to the next; the network itself is left as it was.
    """
    carried = {name: buffer.detach().clone() for name, buffer in network.module.named_buffers()}
    client(replace(network, carried=carried), images, labels)
    return {name: buffer.detach() for name, buffer in carried.items()}


def _layers(network: Network) -> dict[str, nn.modules.batchnorm._BatchNorm]:
    """The layers that keep running statistics."""
    return {
        name: layer
        for name, layer in network.module.named_modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None
    }


def _update(network: Network, buffers: Params, name: str) -> tuple[int, float]:
    """How often a layer moved its buffers, and the share that the last batch has in them."""
    counter = _join(name, "num_batches_tracked")
    total = int(buffers[counter])
    momentum = _layers(network)[name].momentum
    steps = total - int(buffers_of(network)[counter])
    return steps, 1 / max(1, total) if momentum is None else float(momentum)


def _join(layer: str, name: str) -> str:
    return f"{layer}.{name}" if layer else name
