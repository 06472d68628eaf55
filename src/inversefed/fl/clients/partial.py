"""A client of which the server gets a part of the tensors.

    sent = { name: update[name]  for names that match }

In personalized federated learning some layers never leave the client (FedPer, Arivazhagan et al. 2019,
arXiv:1912.00818). The server still knows the weights that it sent out; what it lacks is their change.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from inversefed.errors import ConfigError
from inversefed.fl.clients.client import Client, Sends, check_client
from inversefed.fl.clients.local_steps import LocalSteps
from inversefed.fl.network import Network
from inversefed.fl.threat_model import ThreatModel
from inversefed.types import Inputs, Params, Targets

__all__ = ["Shares"]


@dataclass(frozen=True)
class Shares(Client):
    """A client that sends only some tensors of its update.

    Args:
        client: how the update is made.
        names: patterns of the tensors that are sent, such as `"0.*"` or `"*.bias"`; `"!"` in front leaves out.

    Raises:
        ConfigError: no pattern, or patterns that fit no tensor of the network.

    >>> import torch
    >>> from inversefed.fl.clients import FedSGD
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
        check_client(self.client, "Shares")

    @property
    def sends(self) -> Sends:
        """What the client sends a part of."""
        return self.client.sends

    def __call__(self, network: Network, images: Inputs, labels: Targets) -> Params:
        """Compute the whole update and send a part of it."""
        update = self.client(network, images, labels)
        return {name: update[name] for name in self.sent_names(network)}

    def as_gradient(self, network: Network, update: Params, num_examples: int) -> Params:
        """As the client's own, of what is there."""
        return self.client.as_gradient(network, update, num_examples)

    def steps(self, num_examples: int) -> LocalSteps | None:
        """Those behind the whole update."""
        return self.client.steps(num_examples)

    def believed(self, threat: ThreatModel, num_examples: int, seed: int) -> "Shares":
        """A part of what the server believes of the client."""
        return replace(self, client=self.client.believed(threat, num_examples, seed))

    def sent_names(self, network: Network) -> tuple[str, ...]:
        """The names of what is sent, in the network's order.

        Raises:
            ConfigError: the patterns fit none.
        """
        there = self.client.sent_names(network)
        chosen = tuple(name for name in network.params if name in there and _fits(name, self.names))
        if not chosen:
            raise ConfigError(f"no tensor of the network fits {self.names}; there are {', '.join(there[:6])}, ..")
        return chosen


def _fits(name: str, patterns: Sequence[str]) -> bool:
    kept = [pattern for pattern in patterns if not pattern.startswith("!")]
    left_out = any(fnmatchcase(name, pattern[1:]) for pattern in patterns if pattern.startswith("!"))
    return not left_out and (not kept or any(fnmatchcase(name, pattern) for pattern in kept))
