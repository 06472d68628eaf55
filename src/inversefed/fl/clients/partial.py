"""What of an update a server gets, and what it knows of the client: part of the tensors, or no settings at all.

    sent = { name: update[name]  for names that match }

In personalized federated learning some layers never leave the client (FedPer, Arivazhagan et al. 2019,
arXiv:1912.00818). Here the server still knows the weights that it sent out; what it lacks is their change.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

from inversefed.errors import ConfigError, ThreatModelError
from inversefed.fl.clients.fedavg import Client, FedSGD
from inversefed.fl.network import Network
from inversefed.types import Images, Labels, Params, SoftLabels

__all__ = ["Shares"]

Sent: TypeAlias = Literal["gradient", "delta", "weights"]
"""What an update can be."""


@dataclass(frozen=True)
class Shares:
    """A client that sends only some tensors of its update.

    Args:
        client: how the update is made.
        names: patterns of the tensors that are sent, such as `"0.*"` or `"*.bias"`; `"!"` in front leaves out.

    Raises:
        ConfigError: no pattern, or patterns that fit no tensor of the network.

    >>> import torch
    >>> from inversefed.fl.network import freeze
    >>> network = freeze(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)), (3, 2, 2))
    >>> list(Shares(FedSGD(), ("*.bias",))(network, torch.rand(1, 3, 2, 2), torch.tensor([2])))
    ['1.bias']
    """

    client: Client
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not isinstance(self.names, tuple) or not self.names or not all(isinstance(name, str) for name in self.names):
            raise ConfigError(f"Shares needs patterns of names, such as ('0.*', '*.bias'); got {self.names!r}")
        if not isinstance(self.client, Client) or isinstance(self.client, type):
            raise ConfigError(f"Shares needs a client, such as FedAvg(); got {self.client!r}")

    def __call__(self, network: Network, images: Images, labels: Labels | SoftLabels) -> Params:
        """Compute the whole update and send a part of it."""
        update = self.client(network, images, labels)
        return {name: update[name] for name in self.sent(network)}

    def as_gradient(self, network: Network, update: Params, num_examples: int) -> Params:
        """As the client's own, of what is there."""
        return self.client.as_gradient(network, update, num_examples)

    def sent(self, network: Network) -> tuple[str, ...]:
        """The names of what is sent, in the network's order."""
        chosen = tuple(name for name in network.params if _fits(name, self.names))
        if not chosen:
            raise ConfigError(
                f"no tensor of the network fits {self.names}; there are {', '.join(list(network.params)[:6])}, .."
            )
        return chosen


@dataclass(frozen=True)
class UnknownClient:
    """A client of which the server knows nothing but what kind of update it sends.

    Args:
        sends: `"gradient"`, `"delta"` for new minus old weights, or `"weights"`.
    """

    sends: Sent = "delta"

    def __call__(self, network: Network, images: Images, labels: Labels | SoftLabels) -> Params:
        """Nothing can be simulated.

        Raises:
            ThreatModelError: always.
        """
        raise ThreatModelError(
            "this attack simulates the client, and the threat model hides the client's settings; use one that does "
            "without, such as recipes.surrogate(), or grant them (client='known')"
        )

    def as_gradient(self, network: Network, update: Params, num_examples: int) -> Params:
        """The update with a gradient's sign; its scale is unknown, and left as it is."""
        if self.sends == "gradient":
            return update
        if self.sends == "weights":
            return {name: network.params[name].detach() - new for name, new in update.items()}
        return {name: -change for name, change in update.items()}


def trainer(client: Client) -> Client:
    """The client that makes the update, whatever part of it is sent."""
    return trainer(client.client) if isinstance(client, Shares) else client


def with_trainer(client: Client, other: Client) -> Client:
    """The same client, its update made by another one."""
    return replace(client, client=with_trainer(client.client, other)) if isinstance(client, Shares) else other


def sends(client: Client) -> Sent:
    """What a client's update is: a gradient, new minus old weights, or the new weights."""
    inner = trainer(client)
    sent: Sent = getattr(inner, "sends", "gradient" if isinstance(inner, FedSGD) else "delta")
    return sent


def sent_names(client: Client, network: Network) -> tuple[str, ...]:
    """The names of the tensors that a client sends."""
    if not isinstance(client, Shares):
        return tuple(network.params)
    inner = sent_names(client.client, network)
    return tuple(name for name in client.sent(network) if name in inner)


def unknown(client: Client) -> Client:
    """What is left of a client where its settings are hidden."""
    return with_trainer(client, UnknownClient(sends(client)))


def new_weights(client: Client, network: Network, update: Params) -> Params | None:
    """The client's weights after its local steps, as far as they were sent; `None` where it sends a gradient."""
    kind = getattr(trainer(client), "sends", "gradient")
    if kind == "gradient":
        return None
    sent = update if kind == "weights" else {n: network.params[n].detach() + u for n, u in update.items()}
    return {name: sent.get(name, weight.detach()) for name, weight in network.params.items()}


def _fits(name: str, patterns: Sequence[str]) -> bool:
    kept = [pattern for pattern in patterns if not pattern.startswith("!")]
    left_out = any(fnmatchcase(name, pattern[1:]) for pattern in patterns if pattern.startswith("!"))
    return not left_out and (not kept or any(fnmatchcase(name, pattern) for pattern in kept))
