"""Updates that a user brings: out of a file, with what the file says of them, to what an attack may see.

    file --read_update--> Update(tensors, metadata) --as_observation--> Observation

As the clients of this package send them, a weight delta is new minus old weights and a gradient is that of the mean
loss. Which of them a file holds is told by its `kind`, and the client that the attacker believes in reads it with the
right sign and scale; no attack guesses.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from inversefed.errors import ConfigError, MetadataError, UpdateMismatchError
from inversefed.findings import Code
from inversefed.fl.apart import apart
from inversefed.fl.clients import Client
from inversefed.fl.clients.client import check_client
from inversefed.fl.clients.views import inner_client
from inversefed.fl.network import Network
from inversefed.fl.targets import as_targets, check_labels
from inversefed.fl.threat import Observation, check_update
from inversefed.fl.threat_model import ThreatModel
from inversefed.fl.train_mode import batchnorm_by_batch
from inversefed.types import Finding, Params, Targets
from inversefed.updates.described import described, is_summed, kind_of
from inversefed.updates.files import read_tensors, write_tensors
from inversefed.updates.left_out import left_out
from inversefed.updates.metadata import Kind, Metadata, read_metadata
from inversefed.updates.split_state_dict import parted

__all__ = [
    "Metadata",
    "Update",
    "as_observation",
    "as_run",
    "assumptions",
    "expected_tensors",
    "read_update",
    "write_update",
]

_MOST_PIXELS = 2**22
"""Values of a batch that a file may ask an attack to look for, 1,365 pictures of 3x32x32; its user may ask for more."""


@dataclass(frozen=True, eq=False)
class Update:
    """What a file holds; nothing of it is interpreted yet.

    Args:
        tensors: by parameter name; running buffers and frozen parameters may be among them.
        metadata: what stands beside them.
    """

    tensors: Params = field(repr=False)
    metadata: Metadata = Metadata()


def expected_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a module by name, buffers included: what an update for it may hold."""
    return dict(module.state_dict(keep_vars=True))


def read_update(
    path: str | os.PathLike[str],
    expected: Mapping[str, Tensor] | None = None,
    *,
    strict: bool = True,
    stated: Metadata = Metadata(),
) -> Update:
    """Read an update from `.safetensors`, `.npz`, `.pt`, `.pth` or `.ckpt`, without trust.

    Args:
        path: the file.
        expected: the network's tensors by name (`expected_tensors`). Their shapes are compared with the file's before
            anything of it is materialised, their order names tensors that have none. `None`: nothing is compared.
        strict: refuse names and shapes that are not the network's. Without it such a file is read, to be looked at, as
            long as it is not more than twice as large. Tensors that are missing are a matter of `as_observation`.
        stated: what its user knows better than the file; it wins over what stands there, even if that cannot be.

    Raises:
        InputError: no such file, or a damaged one; `MetadataError`: metadata that cannot be.
        UnsafeFileError: a file that could run code, or that asks for more memory or time than it should.
        UpdateMismatchError: with the first three names or shapes that are not the network's.

    >>> import tempfile, torch
    >>> file = Path(tempfile.mkdtemp()) / "update.safetensors"
    >>> write_update(file, Update({"bias": torch.ones(3)}, Metadata(kind="gradient")))
    >>> read_update(file).metadata.given()
    {'kind': 'gradient'}
    """
    names = frozenset(each.name for each in fields(Metadata))
    content = read_tensors(path, expected, notes=names - set(expected or ()), strict=strict)
    return Update(content.tensors, read_metadata(content.notes, stated))


def write_update(path: str | os.PathLike[str], update: Update) -> None:
    """Write an update in the format that the suffix names.

    Raises:
        InputError: another suffix than `.safetensors`, `.npz`, `.pt` or `.pth`, or a folder that cannot be written to.
    """
    write_tensors(Path(path), update.tensors, update.metadata.given())


def as_observation(
    network: Network,
    update: Update,
    after: bool = False,
    num_examples: int | None = None,
    *,
    client: Client | None = None,
    labels: Targets | None = None,
) -> Observation:
    """Turn what a file holds into what an attack receives.

    Args:
        network: the network that the update is for, with the weights from before it.
        update: its tensors and metadata.
        after: they are new weights, whatever the metadata say.
        num_examples: how many examples made it; `None` for what the metadata say, else a batch, else one.
        client: the client as its owner knows it, of which the attacker believes all but what it draws, such as noise;
            `None` for the one that the metadata describe.
        labels: the labels, where they are handed to the attack, in any form that the loss takes.

    Returns:
        An observation in the network's number format and on its device. Frozen parameters are left out if the update
        does not change them; running buffers are those after the update.

    Raises:
        UpdateMismatchError: names or shapes are not the network's, or a frozen parameter was changed.
        InputError: NaN or infinite values, or more examples than should be looked for on a file's word.
        ConfigError: the client sends another kind of update than the file holds.
    """
    told = update.metadata
    if client is not None:
        check_client(client)
    kind = _kind(told, after, client)
    count = num_examples or told.num_examples or told.batch_size or 1
    if num_examples is None and count * math.prod(network.image_shape) > _MOST_PIXELS:
        raise MetadataError(
            f"by its metadata the update is one of {count} examples, which may not fit into memory; repeat the number "
            "as --num-examples to look for them all",
            "num_examples",
        )
    network = _in_parts(_in_mode(network, told.bn_mode), told)
    params, buffers = parted(network, update.tensors, kind)
    summed = is_summed(told, network)
    if summed and kind == "gradient":
        params = {name: part / count for name, part in params.items()}
    believed = described(told, kind, count, summed) if client is None else client.believed(ThreatModel(), count, 0)
    _check_parts(network, believed, params)
    if labels is not None:
        check_labels(labels, count, network)
        labels = as_targets(network, labels)
    return Observation(network, believed, params, count, labels, buffers)


def _check_parts(network: Network, client: Client, params: Params) -> None:
    """Refuse an update of other tensors than the client sends; where it is one of fewer, say how it is audited."""
    sent = client.sent_names(network)
    missing = [name for name in sent if name not in params]
    kept = [name for name in params if name in network.params and name not in sent]
    there = [name for name in params if name in network.params]
    if missing and there and len(there) == len(params):
        more = f"; and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise UpdateMismatchError(
            f"the update does not fit the network: {'; '.join(f'{name} is missing' for name in missing[:3])}{more}. "
            + left_out(network, there, client)
        )
    if kept:
        raise UpdateMismatchError(
            f"the update holds {', '.join(kept[:3])}, which the client does not send: change the patterns of Shares in "
            f"--client, or leave {'it' if len(kept) == 1 else 'them'} out of the file"
        )
    check_update({name: network.params[name] for name in sent}, params)


def assumptions(metadata: Metadata, after: bool = False, num_examples: int | None = None) -> tuple[Finding, ...]:
    """What had to be assumed where neither file nor options say it."""
    kind = "new_weights" if after else metadata.kind
    found = []
    if kind is None:
        found.append(
            (
                Code.KIND_ASSUMED,
                "The update was taken for a gradient; say --kind if it is a weight delta or new weights.",
            )
        )
    if kind in ("weight_delta", "new_weights"):
        if metadata.learning_rate is None:
            found.append(
                (Code.CLIENT_UNKNOWN, "The learning rate is not known, so the default attack reads the client's "
                 "settings from the update, as far as it tells them; with the true ones, --learning-rate and "
                 "--local-steps, more may be recovered.")
            )  # fmt: skip
        elif metadata.local_steps is None:
            found.append(
                (Code.LOCAL_STEPS_ASSUMED, "One local step was assumed; give --local-steps if there were more.")
            )
    if num_examples is None and metadata.num_examples is None:
        number = metadata.batch_size or 1
        found.append(
            (
                Code.NUM_EXAMPLES_ASSUMED,
                f"The update was taken for one of {number} examples; give --num-examples if not.",
            )
        )
    return tuple(Finding(code, "warning", message) for code, message in found)


def _kind(told: Metadata, after: bool, client: Client | None) -> Kind:
    """What the tensors are; the client, where one is given, has to send that."""
    sent = None if client is None else kind_of(client)
    kind: Kind | None = "new_weights" if after else told.kind
    if client is not None and kind is not None and sent != kind:
        name = type(inner_client(client)).__name__
        word = {"weight_delta": "sends='delta'", "new_weights": "sends='weights'"}.get(kind, "FedSGD()")
        raise ConfigError(
            f"the update is of kind {kind}, but the client, {name}, sends {sent}; change --kind or --client, "
            f"where {word} sends it"
        )
    return kind or sent or "gradient"


def as_run(network: Network, told: Metadata) -> Network:
    """The same network, run as the client ran it: in micro-batches, and by `torch.autocast` in its number format.

    An attack simulates it in full precision, for a coarse format would hide the small differences that it looks for.
    """
    formats = {"bfloat16": torch.bfloat16, "float16": torch.float16, None: None}
    return replace(network, micro_batch=told.micro_batch_size or 0, autocast=formats[told.autocast])


def _in_parts(network: Network, told: Metadata) -> Network:
    """The same network, run in the client's micro-batches where they matter: where BatchNorm couples a batch."""
    coupled = bool(batchnorm_by_batch(network.module))
    return replace(network, micro_batch=told.micro_batch_size or 0) if coupled else network


def _in_mode(network: Network, mode: str | None) -> Network:
    """The same network, its BatchNorm layers in the mode that the metadata tell."""
    layers = [layer for layer in network.module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if mode is None or all(layer.training == (mode == "train") for layer in layers):
        return network
    module = apart(network.module)
    for layer in module.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.training = mode == "train"
    return replace(network, module=module)
