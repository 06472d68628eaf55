"""The simulation of a client whose settings are known."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from inversefed.attacks.simulations.simulation import Compared, Simulation
from inversefed.fl.threat import Observation
from inversefed.types import Inputs

__all__ = ["KnownClient"]


@dataclass(frozen=True)
class KnownClient(Simulation):
    """Run the client as the attacker believes it to be; what it draws for itself is drawn once, with another seed."""

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Inputs, labels: Tensor
    ) -> Compared:
        """The client's update beside the one observed."""
        return Compared(observation.client(observation.network, images, labels), observation.update)
