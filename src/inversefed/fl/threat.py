"""Threat model and observation: what the server knows, and the only value that an attack receives."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from inversefed.errors import ConfigError, InputError, UpdateMismatchError, shown
from inversefed.fl.asked import Asked
from inversefed.fl.clients.client import Client, check_client
from inversefed.fl.clients.local_steps import LocalSteps
from inversefed.fl.clients.views import UnknownClient, inner_client, unknown
from inversefed.fl.defenses.noise import GaussianNoise
from inversefed.fl.defenses.protocols import Defense
from inversefed.fl.network import Network
from inversefed.fl.targets import check_labels
from inversefed.fl.threat_model import ThreatModel as ThreatModel
from inversefed.types import Batch, Params, Targets

__all__ = ["Observation", "noise_of", "observe"]


@dataclass(frozen=True, eq=False)
class Observation(Asked):
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
        ConfigError: the client lacks a part of its protocol.
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
        check_client(self.client)
        sent = self.client.sent_names(self.network)
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

    def anew(self) -> "Observation":
        """An equal one that nobody asked anything yet: what is found out of it ends with it, and not with this one."""
        return replace(self, network=replace(self.network))

    @property
    def gradient(self) -> Params:
        """The update read as a gradient of the loss."""
        return self.client.as_gradient(self.network, self.update, self.num_examples)

    @property
    def client_known(self) -> bool:
        """Whether the attacker can simulate the client; else it knows nothing but what kind of update came."""
        return not isinstance(inner_client(self.client), UnknownClient)

    @property
    def steps(self) -> LocalSteps | None:
        """The client's local steps, as it declares them.

        Raises:
            ConfigError: it declares something else.
        """
        steps: object = self.client.steps(self.num_examples)
        if steps is None or isinstance(steps, LocalSteps):
            return steps
        raise ConfigError(f"{self.client!r}.steps({self.num_examples}) must be LocalSteps or None; got {steps!r}")

    @property
    def unrolled(self) -> LocalSteps | None:
        """The local steps whose weights are sent, where an attack can take them itself.

        `None` for a gradient, for steps that change an example's gradient, and for the sum of several clients.
        """
        steps = self.steps
        return steps if steps is not None and steps.alone and self.client.sends != "gradient" else None

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Of what is to be found: `(n, c, h, w)` of pictures."""
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
    count, hidden = batch.images.shape[0], threat.client == "unknown"
    believed = unknown(client, network) if hidden else client.believed(threat, count, network.mask_seed)
    # The draws of dropout, and the order, are the client's own: the server's copy starts from another seed.
    told = (*noise_of(client, count), *defenses) if threat.defenses == "known" else ()
    return Observation(network.with_masks(0), believed, dict(update), count, labels, sent, told)


def noise_of(client: Client, num_examples: int) -> tuple[Defense, ...]:
    """The noise of DP-SGD as one on the finished update; of local steps that are not plain SGD only its order."""
    steps = client.steps(num_examples)
    if steps is None or not steps.noise:
        return ()
    scale = 1.0 if client.sends == "gradient" else steps.lr * steps.count**0.5
    return (GaussianNoise(scale * steps.noise),)


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
