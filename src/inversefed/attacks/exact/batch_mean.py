"""Rows in front of BatchNorm in train mode: their mean, by the statistics that are sent; the network as it saw them.

    sum_i dL/dz_i = 0   =>   gb = 0,   gW spans {x_i - mean(x)},   rank b - 1
    mean(W x + c) = (new - (1 - m) old) / m    =>   mean(x) = W^+ (mean(W x + c) - c)

BatchNorm in train mode takes what is common to a batch out of it, and so out of the gradient of the layer in front.
Running statistics that come back with the update hold it (see `fl.batchnorm`). With the statistics of the batch the
network is one of single rows again, in eval mode, as far as its outputs go; its slopes still couple the rows, so that
targets are told by the head: `gW_head = S^T H`, with what goes into it, H, known. Own derivation.
"""

import copy
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from inversefed.attacks.exact.dense_batch.rank_decomposition import dealt
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.batchnorm import batch_moments, moments
from inversefed.fl.hooks import record
from inversefed.fl.network import Network
from inversefed.fl.recovered_targets import recovered_targets
from inversefed.fl.targets import loss_slope
from inversefed.fl.threat import Observation
from inversefed.fl.train_mode import batchnorm_by_batch
from inversefed.networks.natural_noise import natural_noise
from inversefed.types import Inputs, Targets

__all__ = ["NormalizedBatch", "targets_by_head"]


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        rank: singular values of a weight below this share of the largest leave the mean open.
    """

    rank: float = 1e-4


TOLERANCES = Tolerances()


@dataclass(frozen=True, eq=False)
class NormalizedBatch:
    """What the statistics of BatchNorm tell of a batch.

    Args:
        mean: of what the first layer was fed, float64 on the CPU, `[d]`.
        network: its BatchNorm in eval mode, at the statistics of the batch.
    """

    mean: Tensor = field(repr=False)
    network: Network

    @classmethod
    def of(cls, observation: Observation, layer: str) -> "NormalizedBatch":
        """Of an update with the client's running buffers.

        Args:
            observation: what the server sees.
            layer: the linear layer in front of BatchNorm.

        Raises:
            ThreatModelError: the statistics were not sent, or are of several steps.
            UnsupportedNetworkError: no BatchNorm stands right behind the layer, or it has fewer outputs than inputs.
        """
        network, behind = observation.network, _behind(observation, layer)
        if observation.buffers is None:
            raise ThreatModelError(
                f"BatchNorm {behind} in train mode takes the mean of the batch out of the gradient of layer {layer}, "
                "and its running statistics, which hold it, were not sent; where the client sends them, grant them "
                "with ThreatModel(buffers='sent')"
            )
        probe = natural_noise(network, observation.num_examples)
        found = batch_moments(network, observation.buffers, {name: each.numbers for name, each in
                                                              moments(network, probe).items()})  # fmt: skip
        weight, bias = (network.params[f"{layer}.{part}"].detach().cpu().double() for part in ("weight", "bias"))
        sizes = torch.linalg.svdvals(weight)
        if weight.shape[0] < weight.shape[1] or float(sizes[-1]) <= TOLERANCES.rank * float(sizes[0]):
            raise UnsupportedNetworkError(
                f"BatchNorm {behind} sent the mean of the {len(weight)} outputs of layer {layer}, which leaves that of "
                f"its {weight.shape[1]} inputs open; it has to have as many outputs as inputs"
            )
        mean = torch.linalg.lstsq(weight, (found[behind].mean.detach().cpu().double() - bias)[:, None]).solution[:, 0]
        module = copy.deepcopy(network.module)
        for name, each in found.items():
            part = module.get_submodule(name).eval()
            part.get_buffer("running_mean").copy_(each.mean)
            part.get_buffer("running_var").copy_(each.variance)
        return cls(mean, replace(network, module=module))


def _behind(observation: Observation, layer: str) -> str:
    """The BatchNorm that is fed with what a linear layer gives.

    Raises:
        UnsupportedNetworkError: there is none.
    """
    network = observation.network
    names = [layer, *batchnorm_by_batch(network.module)]
    layers = {name: network.module.get_submodule(name) for name in names}
    _, runs = record(
        layers,
        lambda: network.features(natural_noise(network, observation.num_examples)),
        lambda _, __, inputs: inputs.detach(),
    )
    given = next(run.outputs for run in runs if run.name == layer)
    for run in runs:
        if run.name != layer and run.inputs.shape == given.shape and torch.equal(run.inputs, given):
            return run.name
    raise UnsupportedNetworkError(
        f"the gradient of layer {layer} lacks a direction, and no BatchNorm in train mode right behind it explains that"
    )


def targets_by_head(observation: Observation, images: Inputs) -> tuple[Targets, Tensor]:
    """The targets of examples that are known, by the gradient of the last layer, and the order as they were granted.

    Args:
        observation: for the network, in its own mode, and labels that are granted.
        images: all examples of the batch, `[b, ..]`.

    Returns:
        Targets, and the order `[b]` that examples take to stand as granted labels do; as they are without.

    Raises:
        UnsupportedNetworkError: no linear layer is the last, or it sees too little to tell b examples apart.
        ThreatModelError: the loss does not tell its targets.
    """
    network = observation.network.to(torch.float64)
    head, count = network.head, len(images)
    weight = None if head is None else observation.gradient.get(f"{head}.weight")
    if head is None or weight is None or weight.ndim != 2:
        raise UnsupportedNetworkError("no linear layer is the network's last, and only its gradient tells the labels")
    inputs = network.held(images)
    fed, outputs = network.linear_inputs(inputs)[head].double(), network.apply(network.params, inputs).detach()
    if count > fed.shape[1]:
        raise UnsupportedNetworkError(f"layer {head} sees {fed.shape[1]} numbers, too few for {count} examples")
    slopes = torch.linalg.lstsq(fed.T.cpu(), weight.detach().cpu().double().T, driver="gelsd").solution.to(outputs)
    granted = observation.labels
    if granted is None:
        targets = recovered_targets(network, outputs, slopes)
        targets = targets.to(observation.network.dtype) if targets.is_floating_point() else targets
        return targets, torch.arange(count, device=images.device)
    held = granted.to(outputs) if granted.is_floating_point() else granted
    away = [(loss_slope(network, outputs, each.expand(count, *each.shape)) - slopes).norm(dim=1) for each in held]
    return dealt(granted, torch.stack(away, dim=1).to(images.device))
