"""A simulation that also matches the inputs of the head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from inversefed.attacks.head.head_inputs import HeadInputs
from inversefed.attacks.simulations.simulation import Compared, Simulation
from inversefed.fl.clients.client import as_sent
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.types import Inputs, Params, Scalar

__all__ = ["KnownFeatures"]


@dataclass(frozen=True, eq=False)
class KnownFeatures(Simulation):
    """Run the client as it is believed to be, where what went into its head is known, example by example.

        weight |f(x) - h| / |h|,    sums of absolute values

    The features of a local step are compared at the weights that the step saw.

    Args:
        trunk: the network up to its head.
        features: `[n, d]`, in the order of the labels.
        weight: of their relative absolute error.
    """

    trunk: Network
    features: Tensor = field(repr=False)
    weight: float

    @classmethod
    def of(cls, observation: Observation, found: HeadInputs, weight: float) -> "KnownFeatures":
        """Those that were solved for; no layer of a network whose features were is random."""
        network = observation.network
        trunk = replace(network.without_head(), functional=True)
        return cls(trunk, found.features.to(network.device, network.dtype), weight)

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Inputs, labels: Tensor
    ) -> Compared:
        """The client's update beside the one observed; the penalty is for features that differ."""
        client, network, steps = observation.client, observation.network, observation.unrolled
        if steps is None:
            error = self._error([network.params], [slice(None)], images)
            return Compared(client(network, images, labels), observation.update, error)
        path = (network.params, *steps.walk(network, images, labels))
        error = self._error(path, steps.slices, images)
        return Compared(as_sent(network, path[-1], client.sends), observation.update, error)

    def _error(self, path: Sequence[Params], parts: Sequence[slice], images: Inputs) -> Scalar:
        """At the weights before each step."""
        weights = [{name: params[name] for name in self.trunk.params} for params in path]
        seen = torch.cat([self.trunk.apply(w, images[part]) for w, part in zip(weights, parts, strict=False)])
        return self.weight * (seen - self.features).abs().sum() / self.features.abs().sum()
