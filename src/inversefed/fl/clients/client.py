"""What a client is: a function from (network, images, labels) to an update, and what the house asks it.

    update = client(network, images, labels),       gradient = client.as_gradient(network, update, n)

Simulation, attacks, controls, diagnosis and report ask a client for nothing else, and never for its class: whoever
implements this protocol is audited like the clients that come with the package.
"""

from abc import abstractmethod
from typing import Literal, Protocol, TypeAlias, get_args, runtime_checkable

from inversefed.errors import ConfigError
from inversefed.fl.clients.local_steps import LocalSteps
from inversefed.fl.network import Network
from inversefed.fl.threat_model import ThreatModel
from inversefed.types import Inputs, Params, Targets

__all__ = ["Client", "Sends", "as_sent", "check_client"]

Sends: TypeAlias = Literal["gradient", "delta", "weights"]
"""What an update is: a gradient, new minus old weights, or the new weights."""


@runtime_checkable
class Client(Protocol):
    """What the house asks of a client.

    One that derives from it need only say what it `sends` and compute it: it is then simulated as it is, and attacks
    that follow local steps do not apply. What a client draws it draws from `network.mask_seed` alone, so that an
    audit can be repeated.

    >>> import torch
    >>> from inversefed.fl.clients.local_steps import loss_gradient
    >>> class Halved(Client):
    ...     sends = "gradient"
    ...     def __call__(self, network, images, labels):
    ...         gradient = loss_gradient(network, network.params, images, labels)
    ...         return {name: part / 2 for name, part in gradient.items()}
    ...     def as_gradient(self, network, update, num_examples):
    ...         return {name: 2 * part for name, part in update.items()}
    >>> check_client(Halved())
    """

    @property
    @abstractmethod
    def sends(self) -> Sends:
        """What its update is."""
        ...

    @abstractmethod
    def __call__(self, network: Network, images: Inputs, labels: Targets) -> Params:
        """Compute the update of a batch."""
        ...

    def as_gradient(self, network: Network, update: Params, num_examples: int) -> Params:
        """Read an update of this client as a gradient: its sign right, its scale as far as it is known.

        By default the mean gradient of the local steps, `(old - new) / (lr * steps)`: exact for one plain step; with
        momentum or Adam only sign and direction are meant. Without steps a change of weights has the sign of a
        gradient, and a scale of its own.
        """
        if self.sends == "gradient":
            return update
        steps = self.steps(num_examples)
        scale = 1.0 if steps is None else steps.lr * steps.count
        if self.sends == "weights":
            return {name: (network.params[name].detach() - new) / scale for name, new in update.items()}
        return {name: -change / scale for name, change in update.items()}

    def steps(self, num_examples: int) -> LocalSteps | None:
        """The local steps that lead to the update of so many examples; `None` where it is not made in such steps.

        With `additive` and without `clients`, the default of both, it promises that the update is what these steps
        come to: attacks take them themselves.

        Raises:
            ConfigError: fewer examples than a step takes.
        """
        return None

    def believed(self, threat: ThreatModel, num_examples: int, seed: int) -> "Client":
        """The client as a server simulates it that knows its settings, and of its draws what the threat model grants.

        A client that draws leaves its draws out here, or writes down those that are granted.

        Args:
            threat: what the server knows; whether it knows the settings at all is seen to elsewhere.
            num_examples: how many examples the update is of.
            seed: the client's private seed, `network.mask_seed`.
        """
        return self

    def sent_names(self, network: Network) -> tuple[str, ...]:
        """The names of the tensors that it sends, in the network's order."""
        return tuple(network.params)


_ASKED = {
    "sends": "'gradient', 'delta' or 'weights'",
    "__call__": "(network, images, labels) -> update",
    "as_gradient": "(network, update, num_examples) -> gradient",
    "steps": "(num_examples) -> LocalSteps, or None",
    "believed": "(threat, num_examples, seed) -> the client as the server simulates it",
    "sent_names": "(network) -> names of the tensors that it sends",
}
"""The parts of the protocol, as a message names them."""


def check_client(client: object, where: str = "an audit") -> None:
    """Refuse what is no client, and say what it lacks.

    Args:
        client: anything.
        where: who needs it, for the message.

    Raises:
        ConfigError: a class, a part of the protocol that is not there, or an unknown kind of update.

    >>> check_client(len)
    Traceback (most recent call last):
    ...
    inversefed.errors.ConfigError: an audit needs a client, such as FedAvg(); <built-in function len> lacks sends: ...
    """
    if isinstance(client, type):
        raise ConfigError(f"{where} needs a client, such as FedAvg(), called; got the class {client.__name__}")
    missing = [f"{part}: {meaning}" for part, meaning in _ASKED.items() if not hasattr(client, part)]
    if missing:
        raise ConfigError(
            f"{where} needs a client, such as FedAvg(); {client!r} lacks {'; '.join(missing)}; whoever derives from "
            "inversefed.fl.clients.Client writes sends and __call__, and has the rest"
        )
    if isinstance(client, Client) and client.sends not in get_args(Sends):
        raise ConfigError(f"a client sends 'gradient', 'delta' or 'weights'; {client!r} sends {client.sends!r}")


def as_sent(network: Network, params: Params, sends: Sends) -> Params:
    """What leaves a client whose weights have become these: they, or their change."""
    if sends == "weights":
        return params
    return {name: new - network.params[name].detach() for name, new in params.items()}
