"""What a defense is: of the data, of the network, or of the finished update.

    update* = defend_update(client(defend_network(network), defend_data(images*, labels*)))

All three stand in one `defenses=` tuple and run in the world: before the client, around its network, and after it,
before the server looks. Which of them a value is, its class attribute `acts_on` says; a value without one is a defense
of the update. What else a defense may say of itself are the small protocols here, each with the function that reads it
and knows what a defense is that does not say. The attacker is not told that a defense ran.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeAlias, cast, runtime_checkable

from torch import Generator

from inversefed.fl.network import Network
from inversefed.types import Batch, Inputs, Params, Targets

__all__ = [
    "Context",
    "DataDefense",
    "Defense",
    "MixesExamples",
    "MixesLabels",
    "NetworkDefense",
    "Placed",
    "ReadsExamples",
    "UpdateDefense",
    "acts_on",
    "data_defenses",
    "mixes_examples",
    "mixes_labels",
    "network_defenses",
    "reads_examples",
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
    """Changes the private examples before the client computes with them; see `MixesExamples` and `MixesLabels`."""

    acts_on: ClassVar[Literal["data"]]

    def __call__(self, images: Inputs, labels: Targets, generator: Generator) -> tuple[Inputs, Targets]:
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
    """Changes an update before it leaves the client; see `ReadsExamples`."""

    def __call__(self, update: Params, context: Context, generator: Generator) -> Params:
        """The update that is sent instead."""
        ...


Defense: TypeAlias = UpdateDefense | DataDefense | NetworkDefense


@runtime_checkable
class Placed(Protocol):
    """A defense that says where it stands in the line."""

    acts_on: ClassVar[Place]


@runtime_checkable
class MixesExamples(Protocol):
    """A defense of the data that says whether one example changes another: `False` for one that takes each by itself.

    Of one that does not say, epsilon is not known.
    """

    mixes_examples: ClassVar[bool]


@runtime_checkable
class MixesLabels(Protocol):
    """A defense of the data that says whether it is given labels as probabilities `[n, k]`, which have mixtures."""

    mixes_labels: ClassVar[bool]


@runtime_checkable
class ReadsExamples(Protocol):
    """A defense of the update that says whether it looks at the private batch: it undoes what noise promised then."""

    reads_examples: ClassVar[bool]


def acts_on(defense: object) -> Place:
    """Where a defense stands in the line: on the data, the network, or the update, if it does not say.

    >>> from inversefed import defenses
    >>> acts_on(defenses.Clip(1.0))
    'update'
    """
    return defense.acts_on if isinstance(defense, Placed) else "update"


def mixes_examples(defense: DataDefense) -> bool | None:
    """Whether one example changes another; `None` if it does not say."""
    return defense.mixes_examples if isinstance(defense, MixesExamples) else None


def mixes_labels(defense: DataDefense) -> bool:
    """Whether it is given labels as probabilities; not if it does not say."""
    return isinstance(defense, MixesLabels) and defense.mixes_labels


def reads_examples(defense: UpdateDefense) -> bool:
    """Whether it looks at the private batch; not if it does not say."""
    return isinstance(defense, ReadsExamples) and defense.reads_examples


def data_defenses(defenses: Sequence[Defense]) -> tuple[DataDefense, ...]:
    """Those of a tuple that act on the data, in order."""
    return tuple(cast(DataDefense, defense) for defense in defenses if acts_on(defense) == "data")


def network_defenses(defenses: Sequence[Defense]) -> tuple[NetworkDefense, ...]:
    """Those that act on the network, in order."""
    return tuple(cast(NetworkDefense, defense) for defense in defenses if acts_on(defense) == "network")


def update_defenses(defenses: Sequence[Defense]) -> tuple[UpdateDefense, ...]:
    """Those that act on the finished update, in order."""
    return tuple(cast(UpdateDefense, defense) for defense in defenses if acts_on(defense) == "update")
