"""Diagnosis before attack: does an update fit this network, and is it what it is said to be?

    diagnose(network, tensors, metadata) -> findings

Most of it is exact. The head's gradient of cross entropy sums to zero over the classes, and only labels make it
negative; neighboring layers owe each other the same sums; BatchNorm in train mode lets the scale of its input not
matter. So a wrong sign, a wrong learning rate, tensors in each other's place, another mode or added noise contradict
the numbers themselves, without one private picture. What no number shows is left unsaid.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TypeVar

from torch import Tensor

from inversefed.errors import InputError, InversefedError, UpdateMismatchError
from inversefed.findings import Code
from inversefed.fl.clients import Client, LocalSteps
from inversefed.fl.clients.local_optimizers import LocalSGD
from inversefed.fl.network import Network, first_names
from inversefed.types import Finding
from inversefed.updates.described import described, is_summed, stated_by
from inversefed.updates.diagnosis import (
    batchnorm_mode,
    bias_alignment,
    clipped_norm,
    head_sums,
    misplaced_tensors,
    quantization_levels,
    scale,
    sparsity,
)
from inversefed.updates.diagnosis.conservation import relations
from inversefed.updates.diagnosis.evidence import Subject
from inversefed.updates.diagnosis.input_normalization import normalized_in_training, normalized_otherwise
from inversefed.updates.diagnosis.names_and_shapes import fits
from inversefed.updates.diagnosis.selftest import check_example, self_test
from inversefed.updates.diagnosis.signs import Steps, stepped, steps_of
from inversefed.updates.metadata import Metadata

__all__ = ["CODES", "MISFITS", "check_example", "diagnose", "require_usable", "self_test"]

CODES = (
    *(Code.SIGN, Code.SCALE, Code.NAMES, Code.SHAPES, Code.NON_FINITE, Code.BATCHNORM_TRAIN_MODE, Code.NORMALIZATION),
    *(Code.OPTIMIZER, Code.CLIPPED, Code.NOISED, Code.PRUNED, Code.QUANTIZED, Code.FROZEN),
)
"""What a finding may be about."""
MISFITS = (Code.NAMES, Code.SHAPES, Code.QUANTIZED, Code.NON_FINITE)
"""What errors are about that leave nothing to compare an update by."""
_Found = TypeVar("_Found")
_LOG = logging.getLogger(__name__)
_ORDER = {"error": 0, "warning": 1, "info": 2}


def diagnose(
    network: Network,
    tensors: Mapping[str, Tensor],
    metadata: Metadata,
    sent: Sequence[str] | None = None,
    client: Client | None = None,
) -> tuple[Finding, ...]:
    """Say what is wrong with an update, or may be, and what to change.

    Args:
        network: as it was sent out, in the mode and with the normalization that are believed.
        tensors: the update by name, as it came; running buffers may be among them.
        metadata: what is stated about it.
        sent: the names that are expected, where the client sends only a part; `None` for what `client` sends.
        client: the client, where it is given instead of described by the metadata: what it says of its steps counts.

    Returns:
        Errors, which make it unusable, then warnings, then infos. It never raises on an unusable update.

    >>> import torch
    >>> from inversefed.fl.clients import FedSGD
    >>> from inversefed.fl.network import freeze
    >>> network = freeze(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 5)), (3, 2, 2))
    >>> gradient = FedSGD()(network, torch.rand(1, 3, 2, 2), torch.tensor([2]))
    >>> flipped = {name: -part for name, part in gradient.items()}
    >>> stated = Metadata(kind="gradient", num_examples=1)
    >>> [f.level for f in diagnose(network, gradient, stated) if f.level != "info"]
    []
    >>> [(f.code, f.level) for f in diagnose(network, flipped, stated)][0]
    ('sign', 'error')
    """
    believed = _believed(metadata, network) if client is None else client
    metadata = stated_by(client, metadata)
    expected = believed.sent_names(network) if sent is None else tuple(sent)
    first = first_names(network.module)
    tensors = {first.get(name, name): part for name, part in tensors.items()}
    misfits = fits(network, tensors, expected, believed)
    if misfits:
        return misfits
    own = {name: tensors[name] for name in expected}
    buffers = {name: tensors[name] for name, _ in network.module.named_buffers() if name in tensors}
    steps = _steps(believed, metadata)
    adaptive = steps is not None and steps.alone and not isinstance(steps.optimizer, LocalSGD)
    found = _examined(Subject(network, own, buffers, metadata, adaptive))
    if all(finding.level != "error" for finding in found):
        found += _asked(self_test, network, metadata)
    return tuple(sorted(found, key=lambda finding: _ORDER[finding.level]))


def _believed(metadata: Metadata, network: Network) -> Client:
    """The client that metadata describe, whose numbers of examples may contradict each other."""
    count = max(metadata.num_examples or 1, metadata.batch_size or 1)
    return described(metadata, metadata.kind or "gradient", count, is_summed(metadata, network))


def _steps(client: Client, metadata: Metadata) -> LocalSteps | None:
    """The steps of a client, with as many examples as are stated; `None` where they contradict it."""
    with suppress(InversefedError):
        return client.steps(max(metadata.num_examples or 1, metadata.batch_size or 1))
    return None


def require_usable(findings: Sequence[Finding]) -> None:
    """Refuse an update that has an error among its findings.

    Raises:
        UpdateMismatchError: its names, shapes or numbers do not fit the network.
        InputError: any other error.
    """
    errors = [finding for finding in findings if finding.level == "error"]
    if not errors:
        return
    more = f" ({len(errors) - 1} more errors: see `inversefed inspect`)" if len(errors) > 1 else ""
    kind = UpdateMismatchError if errors[0].unfit else InputError
    raise kind(errors[0].message + more)


def _examined(subject: Subject) -> tuple[Finding, ...]:
    """All checks in their order, as far as they mean anything for the optimizer that was run."""
    found = (*_asked(sparsity.frozen, subject), *_asked(scale.kind_contradicted, subject))
    if any(finding.level == "error" for finding in found):
        return found
    steps = None if subject.metadata.kind == "gradient" else steps_of(subject)
    if steps is not None or subject.adaptive:
        return (*found, *_of_another_optimizer(subject, steps))
    return (*found, *_of_sgd(subject))


def _of_another_optimizer(subject: Subject, steps: Steps | None) -> tuple[Finding, ...]:
    """What can be asked of changes that are no multiple of a gradient."""
    found = [*_asked(quantization_levels.rounded, subject)]
    if steps is not None:
        found += _asked(stepped, subject, steps)
    found += _asked(batchnorm_mode.check_mode, subject, ())
    found += _asked(scale.signs_only, subject)
    return (*found, *_asked(normalized_in_training, subject.network))


def _of_sgd(subject: Subject) -> tuple[Finding, ...]:
    """Checks of a gradient: what was done to the numbers first, since relations hold only for numbers as made."""
    rounded = _asked(quantization_levels.rounded, subject)
    made = (*_asked(sparsity.pruned, subject), *_asked(quantization_levels.quantized, subject), *rounded)
    # Of a change that is less than the last digit of the weights neither size nor bounds are left.
    lost = any(each.level == "warning" for each in rounded)
    bounded = () if lost else _asked(clipped_norm.bounded, subject)
    clamped = () if lost or bounded else _asked(clipped_norm.clamped, subject)
    # Entries that were cut leave the sums over the classes that noise would.
    altered = any(each.level == "warning" for each in made) or bool(clamped)
    found = list(made)
    related = _asked(relations, subject)
    found += _asked(batchnorm_mode.check_mode, subject, related)
    if batchnorm_mode.seen_mode(subject, related) != "eval":
        related = tuple(each for each in related if not each.normalized)
    noised = () if altered else _asked(misplaced_tensors.noised, subject, head_sums.head_noise(subject), related)
    found += noised
    altered = altered or bool(noised)
    if not altered:
        found += _asked(misplaced_tensors.check_places, subject, related) or _asked(bias_alignment.check_rows, subject)
    if not lost:
        found += (*_asked(scale.signs_and_scale, subject, altered), *bounded, *clamped)
    found += _asked(normalized_otherwise, subject)
    return tuple(found)


def _asked(check: Callable[..., tuple[_Found, ...]], *arguments: object) -> tuple[_Found, ...]:
    """What a check says; nothing, but a line in the log, where the network's own code stops it."""
    try:
        return check(*arguments)
    except Exception as error:  # foreign code of the network: what the other checks say must not be lost by it
        _LOG.warning("%s was not checked: %s: %s", check.__name__, type(error).__name__, str(error)[:200])
        return ()
