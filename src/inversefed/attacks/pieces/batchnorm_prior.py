"""The BatchNorm prior of GradInversion: images whose features have the statistics that BatchNorm layers keep.

    sum over layers  |mean(x) - mean*|  +  |variance(x) - variance*|

with Euclidean norms over channels (Yin et al. 2021, arXiv:2104.07586, eq. 9). The targets are what the network keeps of
its training data, what the client's buffers hold after its update, or, best, the private batch's own statistics, which
follow from both (`inversefed.fl.batchnorm`).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from inversefed.errors import ConfigError, ThreatModelError, UnsupportedNetworkError
from inversefed.fl.batchnorm import Moments, batch_moments, buffers_of, moments, running_moments
from inversefed.fl.threat import Observation
from inversefed.types import Inputs, Params, Scalar

__all__ = ["BatchNormStatistics"]

_SOURCES = ("network", "sent", "batch")


@dataclass(frozen=True)
class BatchNormStatistics:
    """Distance of the pictures' feature statistics from those that BatchNorm layers keep.

    It takes one forward pass a step, about a seventh of a step's time forward and twice that back.

    Args:
        weight: the paper's alpha.
        source: where the targets come from. `"network"`: the running statistics that the server sent out, which a
            trained network has of its training data and an untrained one of nothing. `"sent"`: those that the client
            sent back. `"batch"`: the batch's own, from both; it needs one local step in train mode.
        relative: measure means in standard deviations and variances in variances of the target, averaged over channels
            and layers, so that the weight means the same for every network.

    Raises:
        ConfigError: an unknown source.
        UnsupportedNetworkError: when called for a client's statistics, if the network has no BatchNorm layer that keeps
            any. The server's own have no layer to be compared with then, and the prior is 0.
        ThreatModelError: when called, if the client's buffers are needed and were not sent, or say nothing.
    """

    weight: float = 0.1
    source: Literal["network", "sent", "batch"] = "network"
    relative: bool = False

    def __post_init__(self) -> None:
        if self.source not in _SOURCES:
            raise ConfigError(f"the statistics' source is one of {', '.join(_SOURCES)}, not {self.source!r}")

    def __call__(self, images: Inputs, observation: Observation) -> Scalar:
        """Weighted distance of the batch's statistics."""
        found = moments(observation.network, images)
        if not found and self.source == "network":
            return images.new_zeros(())
        if not found:
            raise UnsupportedNetworkError(
                "the network has no BatchNorm layer that keeps statistics, so none were sent; leave this prior out"
            )
        targets = self._targets(observation, {name: each.numbers for name, each in found.items()})
        distance = _relative if self.relative else _euclidean
        terms = [distance(found[name], target) for name, target in targets.items() if name in found]
        total = sum(terms[1:], start=terms[0])
        return self.weight * (total / len(terms) if self.relative else total)

    def _targets(self, observation: Observation, counts: Mapping[str, int]) -> dict[str, Moments]:
        network = observation.network
        if self.source == "network":
            return running_moments(network, buffers_of(network))
        sent = _sent(observation)
        return running_moments(network, sent) if self.source == "sent" else batch_moments(network, sent, counts)


def _sent(observation: Observation) -> Params:
    if observation.buffers is None:
        raise ThreatModelError(
            "the client's running buffers were not sent: grant them with ThreatModel(buffers='sent'), or use the "
            "network's own, source='network'"
        )
    return observation.buffers


def _euclidean(found: Moments, target: Moments) -> Tensor:
    means, variances = found.mean - target.mean, found.variance - target.variance
    distance: Tensor = torch.linalg.vector_norm(means) + torch.linalg.vector_norm(variances)
    return distance


def _relative(found: Moments, target: Moments) -> Tensor:
    variance = target.variance.clamp(min=1e-12)
    spread = (found.variance / variance - 1).abs().mean()
    return spread + ((found.mean - target.mean).abs() / variance.sqrt()).mean()
