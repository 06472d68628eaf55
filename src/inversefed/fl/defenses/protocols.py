"""What a defense is: of the data, of the network, or of the finished update.

    update* = defend_update(client(defend_network(network), defend_data(images*, labels*)))

All three stand in one `defenses=` tuple and run in the world: before the client, around its network, and after it,
before the server looks. Which of them a value is, its class attribute `acts_on` says; a value without one is a defense
of the update. The attacker is not told that a defense ran.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeAlias, cast, runtime_checkable

from torch import Generator

from inversefed.fl.network import Network
from inversefed.types import Batch, Images, Params, Targets

__all__ = [
    "Context",
    "DataDefense",
    "Defense",
    "NetworkDefense",
    "UpdateDefense",
    "acts_on",
    "data_defenses",
    "network_defenses",
    "update_defenses",
]

Place: TypeAlias = Literal["data", "network", "update"]


@dataclass(frozen=True, eq=False)
class Context:
    """What a client knows while it defends its update: its network and its private batch."""

    network: Network
    batch: Batch


@runtime_checkable
class DataDefense(Protocol):
    """Changes the private examples before the client computes with them.

    One that changes each example by itself says so, `mixes_examples: ClassVar[bool] = False`; of any other, epsilon is
    not known.
    """

    acts_on: ClassVar[Literal["data"]]

    def __call__(self, images: Images, labels: Targets, generator: Generator) -> tuple[Images, Targets]:
        """The examples that the client uses instead."""
        ...


@runtime_checkable
class NetworkDefense(Protocol):
    """Changes the network that the client computes with, and that the server sent."""

    acts_on: ClassVar[Literal["network"]]

    def __call__(self, network: Network) -> Network:
        """The network that is used instead."""
        ...


@runtime_checkable
class UpdateDefense(Protocol):
    """Changes an update before it leaves the client.

    One that looks at the private batch for that says so, `reads_examples: ClassVar[bool] = True`: it undoes what noise
    in the update promised.
    """

    def __call__(self, update: Params, context: Context, generator: Generator) -> Params:
        """The update that is sent instead."""
        ...


Defense: TypeAlias = UpdateDefense | DataDefense | NetworkDefense


def acts_on(defense: object) -> Place:
    """Where a defense stands in the line: on the data, the network, or the update.

    >>> from inversefed import defenses
    >>> acts_on(defenses.Clip(1.0))
    'update'
    """
    place: Place = getattr(defense, "acts_on", "update")
    return place


def data_defenses(defenses: Sequence[Defense]) -> tuple[DataDefense, ...]:
    """Those of a tuple that act on the data, in order."""
    return tuple(cast(DataDefense, defense) for defense in defenses if acts_on(defense) == "data")


def network_defenses(defenses: Sequence[Defense]) -> tuple[NetworkDefense, ...]:
    """Those that act on the network, in order."""
    return tuple(cast(NetworkDefense, defense) for defense in defenses if acts_on(defense) == "network")


def update_defenses(defenses: Sequence[Defense]) -> tuple[UpdateDefense, ...]:
    """Those that act on the finished update, in order."""
    return tuple(cast(UpdateDefense, defense) for defense in defenses if acts_on(defense) == "update")
