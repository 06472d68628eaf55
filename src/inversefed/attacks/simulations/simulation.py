"""The protocol of a simulation: how an attacker runs the client on a guess."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Generator, Tensor

from inversefed.fl.threat import Observation
from inversefed.types import Inputs, Params, Scalar

__all__ = ["Compared", "Simulation"]


@dataclass(frozen=True, eq=False)
class Compared:
    """Two updates that should agree, and what is added to their distance.

    Args:
        predicted: what the guess gives.
        observed: what came.
        penalty: a scalar.
    """

    predicted: Params = field(repr=False)
    observed: Params = field(repr=False)
    penalty: Scalar | float = 0.0


@runtime_checkable
class Simulation(Protocol):
    """How a guess becomes an update that can be compared with the one observed.

    A simulation that derives from it need only say how: it searches one set of pictures, and nothing beside it.
    """

    def copies(self, observation: Observation) -> int:
        """How many sets of pictures are searched; they lie one after the other in the images."""
        return 1

    def start(self, observation: Observation, generator: Generator) -> Mapping[str, Tensor]:
        """The further variables of a restart, by name."""
        return {}

    def __call__(
        self, observation: Observation, variables: Mapping[str, Tensor], images: Inputs, labels: Tensor
    ) -> Compared:
        """Simulate, with labels of one set of pictures; variables that are missing stand at their start."""
        ...

    def result(self, images: Tensor, labels: Tensor) -> Tensor:
        """One set of pictures from all that were searched."""
        return images
