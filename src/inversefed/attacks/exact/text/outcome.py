"""From sentences to a result: their labels, and whether the client makes the observed update of them again."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inversefed.attacks.exact.dense_batch.rank_decomposition import assigned_labels
from inversefed.attacks.exact.text.roles import TextRoles, layer_inputs, read_roles
from inversefed.attacks.exact.verify import verified
from inversefed.attacks.labels.nearest_update import labels_of
from inversefed.attacks.matching_error import matching_error
from inversefed.errors import InversefedError, ThreatModelError, UnsupportedNetworkError
from inversefed.fl.losses import labels_are_inputs
from inversefed.fl.targets import as_targets, class_count
from inversefed.fl.threat import Observation
from inversefed.inputs.tokens import Tokens
from inversefed.types import Candidate, Finding, Reconstruction, Status, Targets

__all__ = ["resolved", "result", "tokens_of"]

_TRIED = 64
"""Most sets of labels that are tried, each for an update of the client, where no head tells them."""


def tokens_of(observation: Observation) -> Tokens:
    """What the network is fed, where that is sentences.

    Raises:
        UnsupportedNetworkError: it is fed something else.
    """
    space = observation.network.space
    if not isinstance(space, Tokens):
        raise UnsupportedNetworkError(f"this reads token ids; the network is fed {space!r}")
    return space


def resolved(observation: Observation, roles: TextRoles | None) -> TextRoles:
    """The roles that were given, and where none were those that a run of the network tells.

    Raises:
        UnsupportedNetworkError: the network is fed no tokens, or names are unknown.
    """
    space, network, given = tokens_of(observation), observation.network, roles or TextRoles()
    known = {name for name, _ in network.module.named_parameters(remove_duplicate=False)}
    named = given.tokens, given.positions, *given.first, *given.second
    if unknown := [name for name in named if name and name not in known]:
        raise UnsupportedNetworkError(
            f"the network has no weights named {', '.join(unknown)}; TextRoles names them as named_parameters does, "
            f"such as {', '.join(sorted(known)[:8])}"
        )
    return read_roles(network, space, given)


def result(
    attack: object,
    observation: Observation,
    sentences: Sequence[Sequence[int]],
    how: str,
    evidence: dict[str, Any],
    told: tuple[Finding, ...] = (),
    status: Status = Status.FINISHED,
) -> Reconstruction:
    """Sentences with their labels, exact if the client makes the observed update of them again.

    Args:
        attack: that found them.
        observation: what the server sees.
        sentences: as many as there are examples; where there are fewer, they are repeated in turn.
        how: what was done, as a sentence without its end.
        evidence: figures of it.
        told: what else was found out.
        status: how it ended.
    """
    space, count = tokens_of(observation), observation.num_examples
    repeated = [sentences[place % len(sentences)] for place in range(count)]
    ids = space.ids(repeated).to(observation.network.device)
    ids, labels, more = _labeled(observation, ids)
    found = Candidate(ids, labels, matching_error(observation, ids, labels), status, iterations=1)
    return verified(attack, found, how, evidence, told=(*more, *told))


def _labeled(observation: Observation, ids: Tensor) -> tuple[Tensor, Targets, tuple[Finding, ...]]:
    """The sentences in the order of their labels, and these: granted, told by a rule, or solved for in the head.

    Labels of the next token's loss are the sentences themselves.

    dW_head = sum_i delta_i f_i^T    =>    delta = (dW_head pinv(F))^T,    f_i: what the head is fed, known by now
    """
    if labels_are_inputs(observation.network.loss):
        return ids, ids, ()
    if len(ids) == 1:
        labels, told = labels_of(observation, ids)
        return ids, labels, told
    network = observation.network
    gradient = observation.gradient.get(f"{network.head}.weight")
    if gradient is not None:
        features = layer_inputs(network, f"{network.head}.weight", ids).double()
        deltas = (gradient.double() @ torch.linalg.pinv(features)).T
        labels, order = assigned_labels(observation, str(network.head), ids, deltas.cpu())
        return ids[order], labels[order], ()
    tried = _possible(observation, len(ids))
    costs = [matching_error(observation, ids, labels) for labels in tried]
    return ids, tried[min(range(len(tried)), key=costs.__getitem__)], ()


def _possible(observation: Observation, count: int) -> list[Targets]:
    """All labels that sentences of a small batch can have."""
    network = observation.network
    if observation.labels is not None:
        orders = list(itertools.islice(itertools.permutations(range(count)), _TRIED))
        return [observation.labels[list(order)] for order in orders]
    try:
        classes = class_count(network)
    except InversefedError:
        classes = 0
    if not 0 < classes**count <= _TRIED:
        raise ThreatModelError(
            "the gradient of the head was not sent, so the labels of several sentences are not told; hand them over "
            "(known labels)"
        )
    every = torch.tensor(list(itertools.product(range(classes), repeat=count)), device=network.device)
    return [as_targets(network, each) for each in every]
