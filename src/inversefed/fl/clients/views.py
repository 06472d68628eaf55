"""A client seen from outside: what is left of it where its settings are hidden, and what its update is made of."""

from dataclasses import dataclass, replace

from inversefed.errors import ThreatModelError
from inversefed.fl.clients.client import Client, Sends
from inversefed.fl.clients.partial import Shares
from inversefed.fl.network import Network
from inversefed.types import Inputs, Params, Targets

__all__ = ["UnknownClient", "gradients_summed", "inner_client", "new_weights", "taken_for", "unknown"]


@dataclass(frozen=True)
class UnknownClient(Client):
    """A client of which the server knows nothing but what kind of update it sends.

    Args:
        sends: `"gradient"`, `"delta"` for new minus old weights, or `"weights"`.
    """

    sends: Sends = "delta"

    def __call__(self, network: Network, images: Inputs, labels: Targets) -> Params:
        """Nothing can be simulated.

        Raises:
            ThreatModelError: always.
        """
        raise ThreatModelError(
            "this attack simulates the client, and the threat model hides the client's settings; use one that does "
            "without, such as recipes.surrogate(), or grant them (client='known')"
        )


def inner_client(client: Client) -> Client:
    """The client that makes the update, whatever part of it is sent."""
    return inner_client(client.client) if isinstance(client, Shares) else client


def unknown(client: Client, network: Network) -> Client:
    """What is left of a client where its settings are hidden: the kind of its update, and which tensors come."""

    def hidden(each: Client) -> Client:
        if isinstance(each, Shares):
            return replace(each, client=hidden(each.client))
        names = each.sent_names(network)
        nothing = UnknownClient(each.sends)
        return nothing if len(names) == len(network.params) else Shares(nothing, names)

    return hidden(client)


def taken_for(client: Client, settings: Client) -> Client:
    """A client of hidden settings, taken for one that makes its update like this; it sends the same tensors.

    >>> from inversefed.fl.clients.fedavg import FedAvg
    >>> taken_for(Shares(UnknownClient(), ("*.bias",)), FedAvg(2, 0.1)).client.local_steps
    2
    """
    return replace(client, client=taken_for(client.client, settings)) if isinstance(client, Shares) else settings


def gradients_summed(client: Client, num_examples: int) -> int | None:
    """How many gradients of one example the update is a sum of; `None` where it is no sum of gradients."""
    steps = client.steps(num_examples)
    return None if steps is None else steps.gradients


def new_weights(client: Client, network: Network, update: Params) -> Params | None:
    """The client's weights after its local steps, as far as they were sent; `None` where it sends a gradient."""
    if client.sends == "gradient":
        return None
    sent = update if client.sends == "weights" else {n: network.params[n].detach() + u for n, u in update.items()}
    return {name: sent.get(name, weight.detach()) for name, weight in network.params.items()}
