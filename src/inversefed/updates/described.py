"""From metadata to the client that they describe, and back."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Literal

from inversefed.errors import InversefedError, MetadataError
from inversefed.fl.clients import Client, FedAvg, FedSGD
from inversefed.fl.clients.local_optimizers import LocalSGD
from inversefed.fl.clients.views import UnknownClient, inner_client
from inversefed.fl.losses import reduction_of
from inversefed.fl.network import Network
from inversefed.updates.metadata import Kind, Metadata

__all__ = ["described", "is_summed", "kind_of", "option", "stated_by"]

_ALWAYS = ("local_steps", "lr")
"""What is written even if it is the default."""


def described(told: Metadata, kind: Kind, count: int, summed: bool) -> Client:
    """The client that the metadata describe.

    Args:
        told: the metadata.
        kind: of the update.
        count: its examples.
        summed: whether the client's loss is a sum and the network's is a mean.

    Raises:
        MetadataError: a batch of more examples than there are.
    """
    if kind == "gradient":
        return FedSGD()
    sent: Literal["delta", "weights"] = "delta" if kind == "weight_delta" else "weights"
    if told.learning_rate is None:
        return UnknownClient(sent)
    size = 0 if told.batch_size is None or told.batch_size == count else told.batch_size
    if size > count:
        message = f"the update has {count} examples and a batch size of {size}; change --batch-size or --num-examples"
        raise MetadataError(message, "batch_size")
    # The gradient of a sum is so many times that of the mean, and so is the step.
    lr = told.learning_rate * ((size or count) if summed else 1)
    optimizer = LocalSGD(momentum=told.momentum or 0.0)
    return FedAvg(told.local_steps or 1, lr, batch_size=size, optimizer=optimizer, sends=sent)


def is_summed(told: Metadata, network: Network) -> bool:
    """Whether by the metadata the client's loss is a sum, where the network's is a mean."""
    return told.loss_reduction == "sum" and reduction_of(network.loss) != "sum"


def kind_of(client: Client) -> Kind:
    """What kind of update a client sends, in the words of metadata."""
    kinds: Mapping[str, Kind] = {"delta": "weight_delta", "weights": "new_weights", "gradient": "gradient"}
    return kinds[client.sends]


def stated_by(client: Client | None, told: Metadata) -> Metadata:
    """Metadata with what a client that was given says in their place, as far as their words go."""
    if client is None:
        return told
    inner, told = inner_client(client), replace(told, kind=told.kind or kind_of(client))
    if not isinstance(inner, FedAvg):
        return told
    try:
        count = told.num_examples or told.batch_size or 1
        momentum = inner.optimizer.momentum if isinstance(inner.optimizer, LocalSGD) else 0.0
        steps = len(inner.slices(count)) if inner.epochs is not None else inner.local_steps
        size = inner.batch_size or told.num_examples or told.batch_size
        return replace(told, learning_rate=inner.lr, local_steps=steps, momentum=momentum or None, batch_size=size)
    except InversefedError:  # a client that no file could describe, such as one of 20,000 steps
        return told


def option(piece: object) -> str:
    """A piece as it is written on the command line, what it has by default left out.

    >>> option(FedAvg(2, 0.1, optimizer=LocalSGD(0.9), sends="weights"))
    "FedAvg(local_steps=2, lr=0.1, optimizer=LocalSGD(momentum=0.9), sends='weights')"
    """
    if not is_dataclass(piece) or isinstance(piece, type):
        return repr(piece)
    usual = {each.name: each.default for each in fields(piece)}
    given = {each.name: getattr(piece, each.name) for each in fields(piece) if each.repr}
    told = [f"{name}={option(value)}" for name, value in given.items() if name in _ALWAYS or value != usual[name]]
    return f"{type(piece).__name__}({', '.join(told)})"
