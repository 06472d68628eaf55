"""The world: a client makes its update of a private batch, and the server sees what the threat model lets through.

module, batch --freeze--> Network --client--> update --defenses--> update --observe(threat)--> Observation
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn

from inversefed.errors import ConfigError
from inversefed.fl.apart import apart
from inversefed.fl.batchnorm import sent_buffers
from inversefed.fl.checks import check_inputs, check_pieces, check_threat
from inversefed.fl.clients import Client, FedSGD
from inversefed.fl.clients.client import check_client
from inversefed.fl.defenses import Context, Defense, data_defenses, network_defenses, update_defenses
from inversefed.fl.defenses.protocols import mixes_labels
from inversefed.fl.foreign import foreign_code
from inversefed.fl.losses import CrossEntropy, labels_are_inputs
from inversefed.fl.network import Loss, Network, freeze
from inversefed.fl.targets import as_rows, as_targets, check_labels
from inversefed.fl.threat import Observation, ThreatModel, observe
from inversefed.inputs import InputSpace
from inversefed.numerics import float32_products
from inversefed.types import Batch, Inputs, Params, Targets

__all__ = ["computed", "defended", "frozen", "observed", "prepared", "simulate"]


def observed(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
    client: Client = FedSGD(),
    defenses: Sequence[Defense] = (),
    threat: ThreatModel = ThreatModel(),
    loss: Loss | None = None,
    seed: int = 0,
    inputs: InputSpace | None = None,
) -> tuple[Observation, Batch]:
    """What the server sees, and the truth that it does not see.

    Arguments and errors are those of `inversefed.audit`.
    """
    check_pieces(client=client, loss=CrossEntropy() if loss is None else loss, defenses=defenses)
    check_client(client)
    check_threat(threat, seed)
    network, truth = frozen(module, images, labels, mean=mean, std=std, loss=loss, inputs=inputs)
    return simulate(network, truth, client=client, defenses=defenses, threat=threat, seed=seed), truth


def frozen(
    module: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    mean: float | Sequence[float] | Tensor | None = None,
    std: float | Sequence[float] | Tensor | None = None,
    loss: Loss | None = None,
    inputs: InputSpace | None = None,
) -> tuple[Network, Batch]:
    """The network as a value, and the private batch in its number format, on its device.

    Raises:
        InputError: pictures or labels that cannot be used.
        UnsupportedNetworkError: the module cannot be audited.
    """
    network = freeze(module, check_inputs(images, inputs), mean=mean, std=std, loss=loss)
    check_labels(labels, images.shape[0], network)
    return network, Batch(network.held(images.detach()), as_targets(network, labels))


def simulate(
    network: Network, truth: Batch, *, client: Client, defenses: Sequence[Defense], threat: ThreatModel, seed: int
) -> Observation:
    """Let the client make its update of a private batch, and the server see what the threat model grants.

    Args:
        network: as it is before any defense.
        truth: the private batch.
        client: how the update is made.
        defenses: what is done to it before it leaves, in order.
        threat: what the server knows.
        seed: of what the client draws.

    Raises:
        ConfigError: labels that are granted, and are the private examples themselves.
    """
    if threat.labels == "known" and labels_are_inputs(network.loss):
        raise ConfigError(
            f"the labels of {network.loss!r} are the sentences themselves, which are to be found: leave labels unknown"
        )
    world = Generator().manual_seed(2 * seed)
    # Far from 0 and the steps that follow it, which are the masks that the server simulates.
    private = network.with_masks(int(torch.randint(2**31, 2**62, (), generator=world)))
    for change in network_defenses(defenses):
        private = change(private)
    # Whatever sees the private pictures may keep them: the world runs copies, and the server is given none of those.
    module, own_loss, own_client, own_defenses = apart((private.module, private.loss, client, tuple(defenses)))
    own = replace(private, module=module, loss=own_loss)
    images, targets = prepared(own, truth, own_defenses, world)
    with float32_products(network.device):
        update = computed(own_client, own, images, targets)
        update = defended(update, own, Batch(images, truth.labels), own_defenses, world)
        buffers = sent_buffers(own_client, own, images, targets) if threat.buffers == "sent" else None
    return observe(private, client, update, truth, threat, buffers, defenses)


def prepared(
    network: Network, batch: Batch, defenses: Sequence[Defense], generator: Generator
) -> tuple[Inputs, Targets]:
    """What the client computes with: its batch after the defenses of the data, in order."""
    images, labels = batch.images, batch.labels
    for defense in data_defenses(defenses):
        if mixes_labels(defense) and not labels.is_floating_point():
            labels = as_targets(network, as_rows(network, labels))
        images, labels = defense(images, labels, generator)
    return images, labels


def computed(client: Client, network: Network, images: Inputs, labels: Targets) -> Params:
    """The client's update of what it computes with.

    Raises:
        UnsupportedNetworkError: network, loss and client do not go together.
    """
    with foreign_code("the client's update of this batch"):
        return client(network, images, labels)


def defended(
    update: Params, network: Network, batch: Batch, defenses: Sequence[Defense], generator: Generator
) -> Params:
    """Apply those defenses that act on the update, in order."""
    for defense in update_defenses(defenses):
        update = defense(update, Context(network, batch), generator)
    return update
