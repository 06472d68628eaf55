"""An update that was made elsewhere: from options and files to what the attack sees, and the truth that it does not."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from inversefed.cli import options as given
from inversefed.cli.load import Setting, granted
from inversefed.errors import ConfigError, InputError
from inversefed.fl.clients import Client, FedSGD
from inversefed.fl.clients.views import unknown
from inversefed.fl.network import Network, freeze
from inversefed.fl.targets import as_targets, class_count
from inversefed.fl.threat import Observation, ThreatModel
from inversefed.specs import registry
from inversefed.types import Batch, Finding
from inversefed.updates.described import stated_by
from inversefed.updates.diagnosis import diagnose, require_usable
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


@dataclass(frozen=True, eq=False)
class Received:
    """An update from outside, ready to be attacked."""

    observation: Observation
    threat: ThreatModel
    truth: Batch | None = field(default=None, repr=False)
    findings: tuple[Finding, ...] = ()


def names_update(options: given.Setting) -> bool:
    """Whether the options name a file of an update, be they right otherwise or not."""
    return options.update is not None or options.after is not None


def is_received(options: given.Setting) -> bool:
    """Whether the options name an update that was made elsewhere.

    Raises:
        ConfigError: options that need an update without one, or that contradict each other.
    """
    told = [name for name in ("truth", *stated(options).given()) if getattr(options, name)]
    if not names_update(options):
        if told:
            raise ConfigError(f"--{told[0].replace('_', '-')} tells of an update made elsewhere; name it by --update")
        return False
    if options.update is not None and options.after is not None:
        raise ConfigError("--update is an update and --after the weights after it: give one of them")
    if options.images or options.defenses:
        raise ConfigError("--images and --defenses are for updates that are made here; with --update give --truth")
    if options.after is not None and options.kind not in (None, "new_weights"):
        raise ConfigError(f"--after names new weights, and --kind says {options.kind}; use --update")
    return True


def read_network(options: given.Setting, setting: Setting) -> Network:
    """The network as it was sent out.

    Raises:
        UnsupportedNetworkError: it does not run on pictures of that shape.
        InputError: the normalization does not fit it.
    """
    loss = registry.build("loss", options.loss)
    return freeze(setting.module, setting.images.shape[1:], mean=setting.mean, std=setting.std, loss=loss)


def read_received(options: given.Setting, setting: Setting, strict: bool = True) -> Update:
    """The update, its metadata overridden by the options, as one of as many examples as there are pictures behind it.

    Args:
        options: as given.
        setting: what was read of them.
        strict: refuse a file whose names and shapes are not the network's.

    Raises:
        InputError: a file that cannot be used; `UnsafeFileError` and `UpdateMismatchError` among them.
    """
    told = stated(options)
    told = replace(told, kind="new_weights") if options.after else told
    path = Path(options.update or str(options.after))
    return _with_count(read_update(path, expected_tensors(setting.module), strict=strict, stated=told), setting)


def receive(options: given.Setting, setting: Setting) -> Received:
    """Read an update, and turn it into an observation.

    Raises:
        InputError: a file that cannot be used, or pictures and labels that do not fit it.
        ConfigError: options that contradict each other or the file.
    """
    network, update = read_network(options, setting), read_received(options, setting)
    client = believed_client(options)
    diagnosis = diagnose(network, update.tensors, update.metadata, client=diagnosed_client(options, network))
    require_usable(diagnosis)
    labels = setting.labels.to(network.device) if options.known_labels else None
    if labels is not None and (options.labels is None or not len(labels)):
        raise ConfigError("--known-labels hands the labels of an update to the attack: give them by --labels")
    count = insisted(options, setting)
    observation = as_observation(network, update, num_examples=count, client=client, labels=labels)
    if options.unknown_client:
        observation = replace(observation, client=unknown(observation.client, network))
    findings = (*diagnosis, *assumptions(stated_by(client, update.metadata)))
    return Received(observation, _threat(options, observation), _truth(setting, observation), findings)


def insisted(options: given.Setting, setting: Setting) -> int | None:
    """How many examples the user says there are, whatever that takes; `None` for what the file says."""
    return options.num_examples or len(setting.images) or None


def _with_count(update: Update, setting: Setting) -> Update:
    """The same update, one of as many examples as there are pictures behind it, where nobody says how many."""
    if update.metadata.num_examples is not None or not len(setting.images):
        return update
    return replace(update, metadata=replace(update.metadata, num_examples=len(setting.images)))


def stated(options: given.Stated) -> Metadata:
    """What the options say of the update.

    Raises:
        ConfigError: a value out of range.
    """
    return Metadata(**{each.name: getattr(options, each.name) for each in fields(Metadata)})


def believed_client(options: given.Setting) -> Client | None:
    """The client that was asked for; the default stands for what the metadata tell."""
    client: Client = registry.build("client", options.client)
    return None if client == FedSGD() else client


def diagnosed_client(options: given.Setting, network: Network) -> Client | None:
    """The same, as far as the update may be held to what it says."""
    client = believed_client(options)
    return unknown(client, network) if client is not None and options.unknown_client else client


def _threat(options: given.Setting, observation: Observation) -> ThreatModel:
    """What the server knows, here told by what there is."""
    return replace(
        granted(options),
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
            f"the update is one of {count} examples, with {len(setting.images)} pictures by --truth and "
            f"{len(setting.labels)} labels; give as many of each, or --num-examples"
        )
    images, labels = setting.images.to(network.device, network.dtype), setting.labels.to(network.device)
    if labels.is_floating_point():
        return Batch(images, as_targets(network, labels))
    if int(labels.max()) >= class_count(network):
        raise InputError(f"--labels must lie in 0..{class_count(network) - 1} for this network")
    return Batch(images, labels.long() if bool((labels < 0).any()) else as_targets(network, labels))
