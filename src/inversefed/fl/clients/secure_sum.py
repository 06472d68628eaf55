"""Secure aggregation: the server sees the sum of several clients' updates, and none of them alone.

    update = sum_k (n_k / n) u_k,      u_k = client(network, images_k, labels_k)

Bonawitz et al. (2017), eprint 2017/281. The masks of the protocol cancel in the sum, so that it is modelled as one
client that holds all the pictures. What does not cancel is the rounding: SecAgg+ (Bell et al. 2020, eprint 2020/704) as
Flower runs it clips each client's weighted values to +-8 and rounds them at random to 2^22 levels, steps of 3.8e-6.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Generator, Tensor

from inversefed.errors import ConfigError
from inversefed.fl.clients.client import Client, Sends, check_client
from inversefed.fl.clients.fedavg import FedSGD
from inversefed.fl.clients.local_steps import LocalSteps
from inversefed.fl.clients.partial import Shares
from inversefed.fl.defenses.quantization import stochastically_rounded
from inversefed.fl.network import Network
from inversefed.fl.threat_model import ThreatModel
from inversefed.types import Inputs, Params, Targets

__all__ = ["SumOfClients"]

_RANGE, _LEVELS = 8.0, 2**22
"""Flower's `clipping_range` and `quantization_range`."""

_APART = 10_000_019
"""Between the private seeds of two clients: further than local steps take one, and odd, for torch's generator looks at
the last 32 bits of a seed only."""

_SALT = 0x2545F491
"""So that the rounding is not the stream that dropout draws from the same seed."""


@dataclass(frozen=True)
class SumOfClients(Client):
    """Several clients whose updates the server sees only as one sum; the batch is dealt out among them in order.

    Args:
        client: what each of them does.
        clients: how many there are, with as many examples each.
        sizes: or how many examples each of them has; empty for equal parts.
        reduction: `"mean"`, weighted by the numbers of examples as in federated averaging, or `"sum"`.
        rounding: clip and round each client's part as Flower's SecAgg+ does.

    Raises:
        ConfigError: fewer than one client, a client that sends part of its update (let that one wrap this), a sum of
            whole weights, or when called, a batch that cannot be dealt out so.

    >>> from inversefed.fl.network import freeze
    >>> network = freeze(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)), (3, 2, 2))
    >>> images, labels = torch.rand(4, 3, 2, 2), torch.tensor([2, 0, 1, 1])
    >>> together, alone = (client(network, images, labels)["1.bias"] for client in (SumOfClients(), FedSGD()))
    >>> torch.allclose(together, alone, atol=1e-6)
    True
    """

    client: Client = FedSGD()
    clients: int = 2
    sizes: tuple[int, ...] = ()
    reduction: Literal["mean", "sum"] = "mean"
    rounding: bool = False

    def __post_init__(self) -> None:
        check_client(self.client, "SumOfClients")
        if isinstance(self.client, Shares | SumOfClients):
            raise ConfigError(
                f"SumOfClients needs a client that sends all of its update, such as FedAvg(); got {self.client!r}; to "
                "send part of the sum, write Shares(SumOfClients(..), ..)"
            )
        if self.clients < 1 or any(size < 1 for size in self.sizes):
            raise ConfigError(f"SumOfClients needs at least one client, each with an example; got {self!r}")
        if self.reduction not in ("mean", "sum") or (self.reduction == "sum" and self.client.sends == "weights"):
            raise ConfigError(
                "SumOfClients reduces by 'mean', or by 'sum' where clients send gradients or deltas; got "
                f"{self.reduction!r} of {self.client!r}"
            )

    @property
    def sends(self) -> Sends:
        """What the sum is of."""
        return self.client.sends

    def __call__(self, network: Network, images: Inputs, labels: Targets) -> Params:
        """Let each client compute its update, and add them up."""
        total: Params = {}
        buffers: list[dict[str, Tensor]] = []
        generator = Generator().manual_seed(network.mask_seed ^ _SALT) if self.rounding else None
        for own, part, weight in self._dealt(network, len(images)):
            update = self.client(own, images[part], labels[part])
            sent = {name: _rounded(weight * value, generator) for name, value in update.items()}
            total = {name: total[name] + value for name, value in sent.items()} if total else sent
            if own.carried is not None:
                buffers.append(own.carried)
        if network.carried is not None:
            network.carried.update(_mean(buffers))
        return total

    def as_gradient(self, network: Network, update: Params, num_examples: int) -> Params:
        """Read the sum as one client's update; of clients with different numbers of local steps only roughly."""
        sizes = self.parts(num_examples)
        if self.reduction == "sum":
            update = {name: value / len(sizes) for name, value in update.items()}
        return self.client.as_gradient(network, update, max(sizes))

    def parts(self, num_examples: int) -> tuple[int, ...]:
        """How many examples each client has.

        Raises:
            ConfigError: the batch cannot be dealt out so.
        """
        if self.sizes and sum(self.sizes) == num_examples:
            return self.sizes
        if self.sizes or num_examples % self.clients:
            wanted = f"sizes {self.sizes}" if self.sizes else f"{self.clients} equal parts"
            raise ConfigError(f"SumOfClients cannot deal {num_examples} examples out in {wanted}; give fitting sizes")
        return (num_examples // self.clients,) * self.clients

    def steps(self, num_examples: int) -> LocalSteps:
        """The steps of each client; one that declares none is taken to take one, and to change its gradient."""
        sizes = self.parts(num_examples)
        own = {size: self.client.steps(size) for size in set(sizes)}
        clients = [own[size] or LocalSteps(size, (slice(0, size),), additive=False) for size in sizes]
        most = max(clients, key=lambda each: each.examples)
        share = len(sizes) ** (-0.5 if self.reduction == "mean" else 0.5)
        return replace(most, noise=share * most.noise, clients=tuple(clients))

    def believed(self, threat: ThreatModel, num_examples: int, seed: int) -> "SumOfClients":
        """The clients as a server simulates them that knows all but what they draw: here, their orders as well."""
        most, drawn = max(self.parts(num_examples)), replace(threat, order="unknown")
        return replace(self, client=self.client.believed(drawn, most, seed), rounding=False)

    def _dealt(self, network: Network, num_examples: int) -> Iterator[tuple[Network, slice, float]]:
        """Each client's network, with draws and buffers of its own, its examples, and its weight in the sum."""
        start, carried = 0, network.carried
        for index, size in enumerate(self.parts(num_examples)):
            part = slice(start, start + size)
            own = network.with_masks((network.mask_seed + index * _APART) % 2**62)
            masks = {name: mask[:, part] for name, mask in network.masks.items()}
            copied = None if carried is None else {name: buffer.clone() for name, buffer in carried.items()}
            yield (
                replace(own, masks=masks, carried=copied),
                part,
                size / num_examples if self.reduction == "mean" else 1.0,
            )
            start += size


def _rounded(values: Tensor, generator: Generator | None) -> Tensor:
    """Values on SecAgg+'s levels, each rounded up or down at random so that it is right on average."""
    if generator is None:
        return values
    step = 2 * _RANGE / _LEVELS
    places = (values.detach().double().clamp(-_RANGE, _RANGE) + _RANGE) / step
    return (stochastically_rounded(places, generator) * step - _RANGE).to(values.dtype)


def _mean(buffers: list[dict[str, Tensor]]) -> Params:
    """The clients' running buffers as the server averages them; counters are equal and stay whole."""
    return {
        name: torch.stack([each[name].double() for each in buffers]).mean(dim=0).to(first.dtype)
        for name, first in buffers[0].items()
    }
