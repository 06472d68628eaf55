"""What the server knows, and the wall: an attack receives an `Observation` and nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import torch
from torch import Tensor

from inversefed.errors import ConfigError, InputError, UpdateMismatchError, shown
from inversefed.fl.clients import Client, FedAvg
from inversefed.fl.clients.dpsgd import DPSGD
from inversefed.fl.clients.partial import sent_names, trainer, unknown, with_trainer
from inversefed.fl.clients.secure_sum import SumOfClients
from inversefed.fl.defenses.noise import GaussianNoise
from inversefed.fl.defenses.protocols import Defense
from inversefed.fl.network import Network
from inversefed.fl.targets import check_labels
from inversefed.types import Batch, Params, Targets

__all__ = ["Observation", "ThreatModel", "observe"]

_BUILT = {
    "labels": ("unknown", "known"),
    "counts": ("unknown",),
    "num_examples": ("known",),
    "client": ("known", "unknown"),
    "order": ("unknown", "known"),
    "buffers": ("network", "sent"),
    "defenses": ("unknown", "known"),
    "server": ("honest",),
}


@dataclass(frozen=True)
class ThreatModel:
    """What an honest but curious server is granted beside the update and the network it sent.

    Args:
        labels: whether it knows the labels, in order.
        counts: whether it knows how often each label occurs.
        num_examples: whether it knows how many examples the update was made from.
        client: whether it knows the client's settings (steps, learning rate, slices).
        order: whether it knows in which order a client that shuffles took its examples.
        buffers: which running BatchNorm statistics it has; `"network"`: those it sent out; `"sent"`: also those that
            the client sends back, which in train mode hold the statistics of its batch.
        defenses: whether it knows which defenses the client runs, and how strong (Kerckhoffs' principle); never what
            they drew.
        server: `"honest"` follows the protocol.

    Raises:
        ConfigError: a value that there is no attack for yet.

    >>> ThreatModel(labels="known").labels
    'known'
    """

    labels: Literal["unknown", "known"] = "unknown"
    counts: Literal["unknown"] = "unknown"
    num_examples: Literal["known"] = "known"
    client: Literal["known", "unknown"] = "known"
    order: Literal["unknown", "known"] = "unknown"
    buffers: Literal["network", "sent"] = "network"
    defenses: Literal["unknown", "known"] = "unknown"
    server: Literal["honest"] = "honest"

    def __post_init__(self) -> None:
        for each in fields(self):
            value, known = getattr(self, each.name), _BUILT[each.name]
            if value not in known:
                raise ConfigError(
                    f"ThreatModel({each.name}={value!r}) is not built; known: {', '.join(map(repr, known))}"
                )


@dataclass(frozen=True, eq=False)
class Observation:
    """All that an attack may use.

    Args:
        network: the network that the server sent out.
        client: the client as the attacker believes it to be.
        update: what came back, by parameter name.
        num_examples: how many examples made it.
        labels: their labels, where the threat model grants them.
        buffers: the client's running buffers after its update, by name, where it sent them along.
        defenses: those that the attacker believes the client runs, the noise of DP-SGD as noise on the update; none
            where it knows of none. A defense of the network is part of `network` too, for the server sent that out.

    Raises:
        UpdateMismatchError: the names or shapes of the update, or of the buffers, are not the network's.
        InputError: it holds NaN or infinite values, or there is no example.
    """

    network: Network
    client: Client
    update: Params = field(repr=False)
    num_examples: int
    labels: Targets | None = None
    buffers: Params | None = field(default=None, repr=False)
    defenses: tuple[Defense, ...] = ()

    def __post_init__(self) -> None:
        if self.num_examples < 1:
            raise InputError(f"an update is made from at least one example, not {self.num_examples}")
        sent = sent_names(self.client, self.network)
        check_update({name: self.network.params[name] for name in sent}, self.update)
        if self.labels is not None:
            check_labels(self.labels, self.num_examples, self.network)
        if self.buffers is not None:
            check_buffers(dict(self.network.module.named_buffers()), self.buffers)

    def to(self, dtype: torch.dtype) -> "Observation":
        """The same observation in another number format; itself in its own."""
        if dtype == self.network.dtype:
            return self
        network = self.network.to(dtype)
        labels = self.labels.to(dtype) if self.labels is not None and self.labels.is_floating_point() else self.labels
        buffers = None if self.buffers is None else _in_format(self.buffers, dtype)
        return replace(self, network=network, update=_in_format(self.update, dtype), buffers=buffers, labels=labels)

    @property
    def gradient(self) -> Params:
        """The update read as a gradient of the loss."""
        return self.client.as_gradient(self.network, self.update, self.num_examples)

    @property
    def batch_shape(self) -> tuple[int, int, int, int]:
        """`(n, c, h, w)` of what is to be found."""
        return (self.num_examples, *self.network.image_shape)


def _in_format(tensors: Params, dtype: torch.dtype) -> Params:
    return {name: part.to(dtype) if part.is_floating_point() else part for name, part in tensors.items()}


def observe(
    network: Network,
    client: Client,
    update: Params,
    batch: Batch,
    threat: ThreatModel,
    buffers: Params | None = None,
    defenses: Sequence[Defense] = (),
) -> Observation:
    """Let through what the threat model allows, and nothing else of the batch.

    Args:
        network: the network that the client trained, with the draws that it made for itself.
        client: the client that made the update.
        update: the update as it left, defenses applied.
        batch: the private batch; its images never pass.
        threat: what the server knows.
        buffers: the client's running buffers after the update (`batchnorm.sent_buffers`), needed where they are sent.
        defenses: what the client runs, which passes where the threat model has it known.

    Raises:
        InputError: the threat model has the buffers sent, and there are none.
    """
    if threat.buffers == "sent" and buffers is None:
        raise InputError("ThreatModel(buffers='sent') needs the client's buffers; see fl.batchnorm.sent_buffers")
    labels = batch.labels if threat.labels == "known" else None
    sent = dict(buffers) if threat.buffers == "sent" and buffers is not None else None
    believed = _believed(client, network.mask_seed, batch.images.shape[0], threat)
    # The draws of dropout, and the order, are the client's own: the server's copy starts from another seed.
    told = (*_noise(client, batch.images.shape[0]), *defenses) if threat.defenses == "known" else ()
    return Observation(network.with_masks(0), believed, dict(update), batch.images.shape[0], labels, sent, told)


def _noise(client: Client, num_examples: int) -> tuple[Defense, ...]:
    """The noise of DP-SGD as one on the finished update; of local steps that are not plain SGD only its order."""
    inner, share = trainer(client), 1.0
    if isinstance(inner, SumOfClients):
        sizes = inner.parts(num_examples)
        share = len(sizes) ** (-0.5 if inner.reduction == "mean" else 0.5)
        inner, num_examples = inner.client, max(sizes)
    if not isinstance(inner, DPSGD) or not inner.noise_multiplier:
        return ()
    scale = 1.0 if inner.sends == "gradient" else inner.lr * inner.local_steps**0.5
    return (GaussianNoise(share * scale * inner.noise_std(num_examples)),)


def _believed(client: Client, seed: int, num_examples: int, threat: ThreatModel) -> Client:
    """The client as the server knows it."""
    if threat.client == "unknown":
        return unknown(client)
    inner = trainer(client)
    if isinstance(inner, DPSGD | SumOfClients):
        return with_trainer(client, inner.believed())
    if threat.order == "known" and isinstance(inner, FedAvg):
        return with_trainer(client, inner.in_order(num_examples, seed))
    return client


def check_update(params: Params, update: Mapping[str, Tensor]) -> None:
    """Refuse an update that does not fit the weights.

    Raises:
        UpdateMismatchError: with the first three names or shapes that differ.
        InputError: NaN or infinite values, with the tensors that hold them.
    """
    missing = [f"{name} is missing" for name in params if name not in update]
    extra = [f"{shown(name)} is not a trainable parameter of the network" for name in update if name not in params]
    shapes = [
        f"{name} has shape {tuple(update[name].shape)}, expected {tuple(weight.shape)}"
        for name, weight in params.items()
        if name in update and update[name].shape != weight.shape
    ]
    wrong = missing + extra + shapes
    if wrong:
        raise UpdateMismatchError(
            f"the update does not fit the network: {'; '.join(wrong[:3])}"
            + (f"; and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        )
    bad = [name for name, part in update.items() if not bool(part.isfinite().all())]
    if bad:
        raise InputError(
            f"the update holds NaN or infinite values in {', '.join(bad[:3])} ({len(bad)} of {len(update)} tensors); "
            "check the network's weights and the client's learning rate"
        )


def check_buffers(own: Params, sent: Mapping[str, Tensor]) -> None:
    """Refuse running buffers that are not the network's.

    Raises:
        UpdateMismatchError: with the first three names that are missing, unknown or of another shape.
    """
    wrong = [f"{name} is missing" for name in own if name not in sent]
    wrong += [f"{shown(name)} is no buffer of the network" for name in sent if name not in own]
    wrong += [
        f"{name} has shape {tuple(sent[name].shape)}, expected {tuple(buffer.shape)}"
        for name, buffer in own.items()
        if name in sent and sent[name].shape != buffer.shape
    ]
    if wrong:
        raise UpdateMismatchError(f"the buffers do not fit the network: {'; '.join(wrong[:3])}")
