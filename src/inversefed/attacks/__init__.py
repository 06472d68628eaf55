"""The inverse: from an `Observation` to data.

    x^ = argmin_x  match(client(network, x, y^), update*) + sum prior(x)

An attack is a value; it is called with an observation and a random generator, and returns a
`Reconstruction`. Nothing here can see the truth.
"""

from typing import Protocol, runtime_checkable

from torch import Generator

from inversefed.fl.threat import Observation
from inversefed.types import Budget, Reconstruction

__all__ = ["Attack"]


@runtime_checkable
class Attack(Protocol):
    """Anything that turns an observation into a reconstruction."""

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = ...) -> Reconstruction:
        """Attack within the budget."""
        ...
