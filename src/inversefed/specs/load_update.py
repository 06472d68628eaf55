"""An update that was made elsewhere: from names and files to what the attack sees, and the truth that it does not."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from inversefed.errors import ConfigError, InputError, MetadataError
from inversefed.fl.clients import Client, FedSGD
from inversefed.fl.clients.views import unknown
from inversefed.fl.network import Loss, Network, freeze
from inversefed.fl.targets import as_targets, class_count
from inversefed.fl.threat import Observation, ThreatModel, noise_of
from inversefed.inputs import Columns, Images, Series, Tokens
from inversefed.specs.load_setting import Setting
from inversefed.specs.sources import Sources, Stated
from inversefed.types import Batch, Finding
from inversefed.updates.described import stated_by
from inversefed.updates.diagnosis import diagnose, require_usable
from inversefed.updates.finding_notes import read_notes
from inversefed.updates.metadata import InputKind
from inversefed.updates.update import Metadata, Update, as_observation, assumptions, expected_tensors, read_update

__all__ = [
    "Received",
    "believed_client",
    "diagnosed_client",
    "insisted",
    "is_received",
    "names_update",
    "read_network",
    "read_received",
    "receive",
    "stated",
]


_KINDS: Mapping[type, InputKind] = {Images: "images", Columns: "columns", Series: "series", Tokens: "tokens"}


@dataclass(frozen=True, eq=False)
class Received:
    """An update from outside, ready to be attacked."""

    observation: Observation
    threat: ThreatModel
    truth: Batch | None = field(default=None, repr=False)
    findings: tuple[Finding, ...] = ()


def names_update(sources: Sources) -> bool:
    """Whether the sources name a file of an update, be they right otherwise or not."""
    return sources.update is not None or sources.after is not None


def is_received(sources: Sources, defended: bool = False) -> bool:
    """Whether the sources name an update that was made elsewhere.

    Raises:
        ConfigError: sources that need an update without one, or that contradict each other.
    """
    told = [name for name in ("truth", *stated(sources).given()) if getattr(sources, name)]
    if not names_update(sources):
        if told:
            raise ConfigError(f"--{told[0].replace('_', '-')} tells of an update made elsewhere; name it by --update")
        return False
    if sources.update is not None and sources.after is not None:
        raise ConfigError("--update is an update and --after the weights after it: give one of them")
    if sources.images or defended:
        raise ConfigError("--images and --defenses are for updates that are made here; with --update give --truth")
    if sources.after is not None and sources.kind not in (None, "new_weights"):
        raise ConfigError(f"--after names new weights, and --kind says {sources.kind}; use --update")
    return True


def read_network(setting: Setting, loss: Loss) -> Network:
    """The network as it was sent out.

    Raises:
        UnsupportedNetworkError: it does not run on pictures of that shape.
        InputError: the normalization does not fit it.
    """
    return freeze(setting.module, setting.space, mean=setting.mean, std=setting.std, loss=loss)


def read_received(sources: Sources, setting: Setting, strict: bool = True) -> Update:
    """The update, its metadata overridden by the sources, as one of as many examples as there are pictures behind it.

    Args:
        sources: as given.
        setting: what was read of them.
        strict: refuse a file whose names and shapes are not the network's.

    Raises:
        InputError: a file that cannot be used; `UnsafeFileError` and `UpdateMismatchError` among them.
    """
    told = stated(sources)
    told = replace(told, kind="new_weights") if sources.after else told
    found = read_update(_file(sources), expected_tensors(setting.module), strict=strict, stated=told)
    taken, fed = found.metadata.inputs, _KINDS.get(type(setting.space))
    if taken is not None and fed is not None and taken != fed:
        raise MetadataError(
            f"the file says of itself that the network was fed {taken}, and the audit takes {fed}; for rows give "
            '--table FILE, for others --inputs, such as "Tokens(length=32, vocabulary=30522)", or correct the file',
            "inputs",
        )
    return _with_count(found, setting)


def receive(sources: Sources, setting: Setting, asked: Client, loss: Loss, threat: ThreatModel) -> Received:
    """Read an update, and turn it into an observation.

    Args:
        sources: how update, network and pictures are named.
        setting: what was read of them.
        asked: the client, where its owner says more than the file; the default leaves it to the file.
        loss: the client's training loss.
        threat: what the server knows.

    Raises:
        InputError: a file that cannot be used, or pictures and labels that do not fit it.
        ConfigError: sources that contradict each other or the file.
    """
    network, update = read_network(setting, loss), read_received(sources, setting)
    client = believed_client(asked)
    held = diagnosed_client(asked, threat.client == "unknown", network)
    diagnosis = diagnose(network, update.tensors, update.metadata, client=held)
    require_usable(diagnosis)
    labels = setting.labels.to(network.device) if threat.labels == "known" else None
    if labels is not None and (sources.labels is None or not len(labels)):
        raise ConfigError("--known-labels hands the labels of an update to the attack: give them by --labels")
    count = insisted(sources, setting)
    observation = as_observation(network, update, num_examples=count, client=client, labels=labels)
    if threat.client == "unknown":
        observation = replace(observation, client=unknown(observation.client, network))
    if threat.defenses == "known" and client is not None:
        observation = replace(observation, defenses=noise_of(client, observation.num_examples))
    noted = read_notes(_file(sources))
    findings = (*noted, *diagnosis, *assumptions(stated_by(client, update.metadata)))
    return Received(observation, _threat(threat, observation), _truth(setting, observation), findings)


def _file(sources: Sources) -> Path:
    return Path(sources.update or str(sources.after)).expanduser()


def insisted(sources: Sources, setting: Setting) -> int | None:
    """How many examples the user says there are, whatever that takes; `None` for what the file says."""
    return sources.num_examples or len(setting.images) or None


def _with_count(update: Update, setting: Setting) -> Update:
    """The same update, one of as many examples as there are pictures behind it, where nobody says how many."""
    if update.metadata.num_examples is not None or not len(setting.images):
        return update
    return replace(update, metadata=replace(update.metadata, num_examples=len(setting.images)))


def stated(sources: Stated) -> Metadata:
    """What the sources say of the update.

    Raises:
        ConfigError: a value out of range.
    """
    return Metadata(**{each.name: getattr(sources, each.name) for each in fields(Stated)})


def believed_client(asked: Client) -> Client | None:
    """The client that was asked for; the default stands for what the metadata tell."""
    return None if asked == FedSGD() else asked


def diagnosed_client(asked: Client, hidden: bool, network: Network) -> Client | None:
    """The same, as far as the update may be held to what it says."""
    client = believed_client(asked)
    return unknown(client, network) if client is not None and hidden else client


def _threat(threat: ThreatModel, observation: Observation) -> ThreatModel:
    """What the server knows, here told by what there is."""
    return replace(
        threat,
        client="known" if observation.client_known else "unknown",
        buffers="network" if observation.buffers is None else "sent",
    )


def _truth(setting: Setting, observation: Observation) -> Batch | None:
    """The private pictures, where they were given."""
    if not len(setting.images):
        return None
    network, count = observation.network, observation.num_examples
    if len(setting.images) != count or len(setting.labels) != count:
        raise InputError(
            f"the update is one of {count} examples, with {len(setting.images)} of them by --truth and "
            f"{len(setting.labels)} labels; give as many of each, or --num-examples"
        )
    images, labels = network.held(setting.images), setting.labels.to(network.device)
    if labels.is_floating_point():
        return Batch(images, as_targets(network, labels))
    if int(labels.max()) >= class_count(network):
        raise InputError(f"--labels must lie in 0..{class_count(network) - 1} for this network")
    return Batch(images, labels.long() if bool((labels < 0).any()) else as_targets(network, labels))
