"""From metadata to the client that they describe, and back."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any, Literal

from inversefed.errors import InversefedError, MetadataError
from inversefed.fl.clients import Client, FedAvg, FedSGD
from inversefed.fl.clients.local_optimizers import LocalAdam, LocalAdamW, LocalOptimizer, LocalSGD
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
    times = (size or count) if summed else 1
    optimizer = _optimizer(told, times)
    # The gradient of a sum is so many times that of the mean, and so is a step that is linear in it.
    lr = told.learning_rate * (times if isinstance(optimizer, LocalSGD) else 1)
    client = FedAvg(told.local_steps or 1, lr, batch_size=size, optimizer=optimizer, sends=sent)
    return client if told.epochs is None else replace(client, epochs=told.epochs)


def _optimizer(told: Metadata, times: int) -> LocalOptimizer:
    """The local optimizer that steps by mean gradients as the stated one does by gradients so many times as long."""
    decay = told.weight_decay or 0.0
    if told.optimizer not in ("adam", "adamw"):
        return LocalSGD(told.momentum or 0.0, decay / times, nesterov=told.optimizer == "nesterov")
    usual = LocalAdam() if told.optimizer == "adam" else LocalAdamW(weight_decay=0.0)
    given = {"beta1": told.beta1, "beta2": told.beta2, "eps": told.eps}
    kept: Any = {name: value for name, value in given.items() if value is not None}
    adam = replace(usual, **kept)
    own = decay / times if told.optimizer == "adam" else decay
    return replace(adam, eps=adam.eps / times, weight_decay=own)


def _words(optimizer: LocalOptimizer) -> dict[str, Any]:
    """What `_optimizer` reads, of one that metadata have words for; of another, nothing of the stated one is left."""
    names = ("momentum", "weight_decay", "beta1", "beta2", "eps")
    if isinstance(optimizer, LocalSGD):
        own = {"optimizer": "nesterov" if optimizer.nesterov else None, "momentum": optimizer.momentum or None}
        return {**dict.fromkeys(names), **own, "weight_decay": optimizer.weight_decay or None}
    if isinstance(optimizer, LocalAdam | LocalAdamW):
        kind = "adam" if isinstance(optimizer, LocalAdam) else "adamw"
        return {"optimizer": kind, "momentum": None, **vars(optimizer)}
    return {"optimizer": None, **dict.fromkeys(names)}


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
        steps = len(inner.slices(count)) if inner.epochs is not None else inner.local_steps
        size = inner.batch_size or told.num_examples or told.batch_size
        words = _words(inner.optimizer)
        return replace(told, learning_rate=inner.lr, local_steps=steps, batch_size=size, epochs=inner.epochs, **words)
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
