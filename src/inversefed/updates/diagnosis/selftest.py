"""Self-test: the client that is believed in has to reproduce its own update, and the owner's.

    client(network, x~, y~) = client(network, x~, y~)       for stand-in pictures x~, through files and back

If it does not, no attack that simulates it can match anything, and its failure would say nothing. With one training
example of the owner's the same is asked of the real update; then wrong normalization and mode have nowhere to hide.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from inversefed.errors import InversefedError, ThreatModelError, UnsupportedNetworkError
from inversefed.findings import Code
from inversefed.fl.clients import FedSGD
from inversefed.fl.network import Network
from inversefed.fl.targets import as_targets, made_up_targets
from inversefed.fl.threat import Observation
from inversefed.networks.natural_noise import natural_noise
from inversefed.types import Finding, Inputs, Params, Targets
from inversefed.updates.described import is_summed
from inversefed.updates.metadata import Metadata
from inversefed.updates.update import Update, as_observation, as_run

__all__ = ["check_example", "self_test"]

_Constants: TypeAlias = float | tuple[float, ...]

_MOST_EXAMPLES, _MOST_STEPS = 4, 4
"""What is simulated at most: the way is the same for more."""
_ONE_VALUE = "more than 1 value per channel"
"""What torch says where BatchNorm has one number to normalize."""
_SAME = 0.999
_ALIKE = 0.98
_USUAL: Mapping[str, tuple[_Constants, _Constants]] = {
    "--mean 0 --std 1": (0.0, 1.0),
    "--mean 0.5 --std 0.5": (0.5, 0.5),
    "--mean 0.5 --std 0.25": (0.5, 0.25),
    "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "--mean 0.4914 0.4822 0.4465 --std 0.247 0.2435 0.2616": ((0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)),
    "--mean 0.1307 --std 0.3081": (0.1307, 0.3081),
}
"""Normalizations that are tried on an example: none, by halves, ImageNet's, CIFAR-10's and MNIST's."""


def self_test(network: Network, metadata: Metadata) -> tuple[Finding, ...]:
    """Simulate the believed client on stand-in pictures, and read its update as one that came.

    Returns:
        A `scale` finding: an info if it is reproduced, an error if not; nothing where no client can be simulated.
    """
    count = min(metadata.num_examples or metadata.batch_size or 1, _MOST_EXAMPLES)
    small = replace(
        metadata,
        num_examples=count,
        batch_size=None if metadata.batch_size is None else min(metadata.batch_size, count),
        local_steps=None if metadata.local_steps is None else min(metadata.local_steps, _MOST_STEPS),
    )
    images = natural_noise(network, count)
    try:
        labels = made_up_targets(network, count)
        nothing = {name: torch.zeros_like(weight) for name, weight in network.params.items()}
        believed = as_observation(network, Update(nothing, small))
        sent = believed.client(believed.network, images, labels)
        if not all(bool(part.isfinite().all()) for part in sent.values()):
            message = "By what is stated, training diverges on stand-in pictures: check --learning-rate and --momentum."
            return (Finding(Code.SCALE, "warning", message),)
        summed = is_summed(small, network) and small.kind in (None, "gradient")
        wire = {name: part * count for name, part in sent.items()} if summed else sent
        seen = as_observation(network, Update(wire, small))
        again = seen.client(seen.network, images, labels)
        gradient = FedSGD()(believed.network, images, labels)
    except ThreatModelError:
        return ()
    except Exception as error:  # foreign code of the network: whatever it raises means the same
        return (_cannot_run("Self-test failed: the believed client cannot run on stand-in pictures", error),)
    same, _ = _compare(_change(seen, again), _change(seen, seen.update))
    direction, ratio = _compare(seen.gradient, gradient)
    evidence = {"self_test": {"cosine": same, "direction": direction, "scale": ratio}}
    if same < _SAME:
        message = (
            f"Self-test failed: the believed client does not reproduce its own update on stand-in pictures (cosine "
            f"{same:.3f}), so no attack can. Check for random layers in the network of --network, and --bn-mode."
        )
        return (Finding(Code.SCALE, "error", message, evidence),)
    message = (
        f"Self-test passed: the believed client reproduces its own update of stand-in pictures (cosine {same:.6f}); "
        f"as a gradient it has a cosine of {direction:.3f} with the gradient itself, and {ratio:.2g} times its norm."
    )
    return (Finding(Code.SCALE, "info", message, evidence),)


def check_example(
    network: Network, tensors: Params, metadata: Metadata, images: Inputs, labels: Targets
) -> tuple[Finding, ...]:
    """Ask whether the believed client makes this update of the owner's own examples.

    Args:
        network: as it was sent out.
        tensors: the update that was made of these examples and no others.
        metadata: what is stated about it.
        images: the examples, in pixel space.
        labels: their classes, or numbers as the loss takes them.

    Returns:
        One finding: an info if they match, else an error that names what would make them match, if that was found.
    """
    told = replace(metadata, num_examples=len(images))
    try:
        labels = as_targets(network, labels)
        theirs = as_observation(network, Update(tensors, told))
        cosine, ratio = _match(theirs, told, images, labels)
    except UnsupportedNetworkError as error:  # foreign code of the network or the loss
        return (_cannot_run("The believed client cannot run on the example", error),)
    except InversefedError as error:
        return (Finding(Code.NAMES, "error", f"The example cannot be compared with the update: {error}"),)
    evidence = {"cosine": cosine, "scale": ratio}
    if cosine > _SAME and abs(math.log(ratio)) < 0.02:
        message = (
            f"The believed client makes this update of the example (cosine {cosine:.6f}, {ratio:.4g} times the norm)."
        )
        return (Finding(Code.SCALE, "info", message, evidence),)
    if cosine < -_ALIKE:
        message = (
            f"Of the example the believed client makes the opposite update (cosine {cosine:.3f}): the sign is wrong."
        )
        return (Finding(Code.SIGN, "error", message + " Negate the tensors, or change --kind.", evidence),)
    if cosine > _SAME or (cosine > _ALIKE and abs(math.log(ratio)) > 0.1):
        message = (
            f"The scale is wrong: the update is {ratio:.3g} times what the believed client makes of the example. "
            "Change --learning-rate, --local-steps, --momentum or --loss-reduction, or it was clipped."
        )
        return (Finding(Code.SCALE, "error", message, evidence),)
    return (_cause(network, tensors, told, images, labels, evidence),)


def _cause(
    network: Network, tensors: Params, told: Metadata, images: Inputs, labels: Targets, evidence: dict[str, float]
) -> Finding:
    """What would make the example match."""
    start = f"The believed client does not make this update of the example (cosine {evidence['cosine']:.3f})"
    best = max(_tried(network, tensors, told, images, labels), key=lambda found: abs(found[0]))
    if abs(best[0]) > _ALIKE and 1 - abs(best[0]) < 0.3 * (1 - evidence["cosine"]):
        verb = "it does" if abs(best[0]) > _SAME else "it nearly does"
        message = f"{start}, but {verb} with {best[2]} (cosine {best[0]:.4f})."
        return Finding(best[1], "error", message, {**evidence, "with": best[2], "cosine_then": best[0]})
    message = (
        f"{start}, nor with another usual normalization or mode of BatchNorm: check --weights, --mean and --std, "
        "--example-label, the preparation of the picture, and augmentation or dropout at the client."
    )
    return Finding(Code.NORMALIZATION, "error", message, evidence)


def _tried(
    network: Network, tensors: Params, told: Metadata, images: Inputs, labels: Targets
) -> Iterator[tuple[float, str, str]]:
    """The cosine that other settings give, with finding code and options; 0 where the client cannot run with them."""
    for code, cure, other, stated in _others(network, told):
        try:
            yield _match(as_observation(other, Update(tensors, stated)), stated, images, labels)[0], code, cure
        except Exception:  # foreign code of the network, such as BatchNorm that refuses one example in train mode
            yield 0.0, code, cure


def _cannot_run(start: str, error: Exception) -> Finding:
    """What to change where the client raises instead of making an update."""
    if _ONE_VALUE in str(error):
        message = (
            f"{start}: BatchNorm in train mode cannot normalize one value a channel, which is what a single example "
            "leaves it in this network. Give --num-examples (and --batch-size) of the client, or --bn-mode eval."
        )
        return Finding(Code.BATCHNORM_TRAIN_MODE, "error", message)
    message = f"{start} ({str(error)[:200]}). Check --network, --image-shape, --loss and --bn-mode."
    return Finding(Code.SCALE, "error", message)


def _others(network: Network, told: Metadata) -> Iterator[tuple[str, str, Network, Metadata]]:
    """The usual other settings, as finding code, options, network and metadata."""
    channels = network.image_shape[0]
    for options, (mean, std) in _USUAL.items():
        if isinstance(mean, float) or len(mean) == channels:
            yield Code.NORMALIZATION, options, _normalizing(network, mean, std), told
    for mode in ("train", "eval"):
        changed = replace(told, bn_mode=mode)
        yield Code.BATCHNORM_TRAIN_MODE, f"--bn-mode {mode}", network, changed


def _normalizing(network: Network, mean: _Constants, std: _Constants) -> Network:
    def constant(values: _Constants, like: Tensor) -> Tensor:
        return torch.as_tensor(values, dtype=like.dtype, device=like.device).expand(len(like)).reshape(-1, 1, 1)

    # A value of its own, so that what the network keeps about its normalization is found out anew.
    return replace(network, mean=constant(mean, network.mean), std=constant(std, network.std))


def _match(seen: Observation, told: Metadata, images: Inputs, labels: Targets) -> tuple[float, float]:
    """Cosine between the real update and that of the believed client, and the real one's norm over the other."""
    where = seen.network.device
    ours = seen.client(as_run(seen.network, told), images.to(where, seen.network.dtype), labels.to(where))
    return _compare(_change(seen, seen.update), _change(seen, ours))


def _change(seen: Observation, update: Params) -> Params:
    """What was sent, as a change: new weights less the old ones."""
    return seen.client.as_gradient(seen.network, update, seen.num_examples)


def _compare(ours: Params, theirs: Params) -> tuple[float, float]:
    """Cosine, and ratio of the norms."""
    pairs = [(ours[name].detach().double(), theirs[name].detach().double()) for name in theirs]
    product = sum(float((a * b).sum()) for a, b in pairs)
    first, second = (math.sqrt(sum(float(pair[side].square().sum()) for pair in pairs)) for side in (0, 1))
    if not first or not second:
        return (1.0 if first == second else 0.0), 1.0
    return product / (first * second), first / second
