"""The matching error: how far the update of a guess is from the one observed, whatever an attack minimizes."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from inversefed.attacks.pieces.objectives import RelativeSquaredError
from inversefed.errors import ConfigError
from inversefed.fl.threat import Observation
from inversefed.numerics import float32_products
from inversefed.types import Inputs, Params, Reconstruction

__all__ = ["completed", "matching_error", "widened"]


def matching_error(observation: Observation, images: Inputs, labels: Tensor) -> float:
    """How far the update of a guess is from the one observed, `|g - g*|^2 / |g*|^2`; infinite if it is no number.

    It is the same for every attack, whatever that minimizes, and computed without TF32. An unknown client cannot be
    run, so it tells nothing there: infinite.
    """
    if not observation.client_known:
        return math.inf
    with torch.no_grad(), float32_products(observation.network.device):
        update = observation.client(observation.network, images, labels)
        cost = float(RelativeSquaredError()(widened(update), widened(observation.update)))
    return cost if math.isfinite(cost) else math.inf


def completed(found: object, attack: object, observation: Observation) -> Reconstruction:
    """A result with what its attack left unsaid: who made it, and its matching error, which is measured here once.

    Args:
        found: what an attack returned.
        attack: that attack.
        observation: what it attacked.

    Raises:
        ConfigError: it is no `Reconstruction`.
    """
    if not isinstance(found, Reconstruction):
        raise ConfigError(f"an attack must return a Reconstruction; {attack!r} returned {type(found).__name__}")
    error = found.matching_error
    if error is None:
        error = matching_error(observation, found.images, found.labels)
    return replace(found, matching_error=error, made_by=found.made_by or repr(attack))


def widened(update: Params) -> Params:
    """An update of 16 bits in float32, where its squares do not overflow."""
    return {name: part.to(torch.promote_types(part.dtype, torch.float32)) for name, part in update.items()}
