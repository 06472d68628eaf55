"""Does another picture make the same update? What the update does not show of a change of the pictures.

With J the derivative of the client's update with respect to the pictures, a change d that the update does not show is
one with J d = 0. Of a random change d, of +1 or -1 in every value, the part that it shows is found by the method of
conjugate gradients on

    min_e |J (d - e)|^2        share_i = |d_i - e_i|^2 / |d_i|^2

so that what is left of it is not shown: nothing where the update settles all values of a picture, about 3/4 behind an
average over 2x2 pixels. What is hard to see is not found in time, and counts as not shown. This tells of pictures near
this one; that none far from it makes the same update is likely where the update holds more numbers than they, and is
not proven. Where time ends it, what was not found by then counts as not shown as well.

M. R. Hestenes and E. Stiefel, "Methods of conjugate gradients for solving linear systems", 1952.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor

from inversefed.attacks.matching_error import matching_error
from inversefed.errors import InversefedError
from inversefed.fl.threat import Observation
from inversefed.numerics import float32_products
from inversefed.thresholds import EXACT
from inversefed.types import Inputs, Scores, Targets

__all__ = ["undetermined_share"]

_STEPS = 100
_EXCHANGED = 8
"""Ids of an example that are exchanged, one at a time."""
_DONE = 1e-12
"""Where the gradient's square has fallen to this share, what is left is below rounding."""


def undetermined_share(
    observation: Observation,
    images: Inputs,
    labels: Targets,
    generator: Generator,
    steps: int = _STEPS,
    stop: Callable[[], bool] = lambda: False,
) -> Scores:
    """Measure how much of a random change of each picture its update does not show.

    Args:
        observation: network and client.
        images: the examples, `[n, *shape]`; of ids some are exchanged, one at a time.
        labels: theirs, as the loss takes them.
        generator: draws the change.
        steps: of conjugate gradients, most.
        stop: asked before each of them; they end where it says so.

    Returns:
        One share an image, 0 to 1; 1 where the client cannot be differentiated.

    >>> from torch import nn
    >>> from inversefed.fl.clients import FedSGD
    >>> from inversefed.fl.network import freeze
    >>> network = freeze(nn.Sequential(nn.AvgPool2d(2), nn.Flatten(), nn.Linear(12, 40)), (3, 4, 4))
    >>> images, labels = torch.rand(1, 3, 4, 4), torch.tensor([2])
    >>> update = FedSGD()(network, images, labels)
    >>> observation = Observation(network, FedSGD(), update, 1)
    >>> share = undetermined_share(observation, images, labels, Generator().manual_seed(0))
    >>> bool(0.5 < share < 0.95)
    True
    """
    if not images.is_floating_point():
        return _unseen_ids(observation, images, labels, generator, stop)
    change = torch.randint(0, 2, images.shape, generator=generator) * 2.0 - 1.0
    change = change.to(images)
    try:
        with float32_products(observation.network.device):
            left = change - _shown(_Derivative(observation, images, labels), change, steps, stop)
    except (
        RuntimeError,
        InversefedError,
    ):  # a foreign layer without a second derivative, which torch may not implement
        return torch.ones(len(images))
    share = left.flatten(1).square().mean(dim=1).nan_to_num(nan=1.0, posinf=1.0)
    return share.clamp(max=1.0).cpu()


def _unseen_ids(
    observation: Observation, ids: Inputs, labels: Targets, generator: Generator, stop: Callable[[], bool]
) -> Scores:
    """The share of some single ids, exchanged for others in turn, that the update does not show, for each example."""
    network, unseen = observation.network, torch.ones(len(ids))
    others = network.held(network.space.stand_ins(len(ids), generator))
    for index, own in enumerate(ids):
        differs = (others[index] != own).flatten().nonzero().flatten()
        places = differs[torch.randperm(len(differs), generator=generator)[:_EXCHANGED].to(differs.device)]
        shown = 0
        for place in places.tolist():
            if stop():
                break
            changed = ids.clone()
            changed[index].view(-1)[place] = others[index].view(-1)[place]
            shown += matching_error(observation, changed, labels) >= EXACT
        unseen[index] = 1.0 - shown / max(1, len(places))
    return unseen


class _Derivative:
    """J and its transpose, by autograd: the client's update is differentiated once, and that once more."""

    def __init__(self, observation: Observation, images: Inputs, labels: Targets) -> None:
        network = replace(observation.network, functional=True)
        self.images = images.detach().clone().requires_grad_()
        update = observation.client(network, self.images, labels)
        self.update = [part for part in update.values() if part.requires_grad]
        self.dual = [torch.zeros_like(part, requires_grad=True) for part in self.update]
        (self.back,) = torch.autograd.grad(self.update, self.images, self.dual, create_graph=True)

    def __call__(self, change: Tensor) -> list[Tensor]:
        """J change: the derivative of J^T dual, which is linear in it."""
        found = torch.autograd.grad(self.back, self.dual, change, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(dual) if part is None else part for part, dual in zip(found, self.dual, strict=True)]

    def transposed(self, update: list[Tensor]) -> Tensor:
        (found,) = torch.autograd.grad(self.update, self.images, update, retain_graph=True)
        return found


def _shown(derivative: _Derivative, change: Tensor, steps: int, stop: Callable[[], bool]) -> Tensor:
    """The part of a change that the update shows, as far as it is found."""
    found = torch.zeros_like(change)
    rest = derivative(change)
    slope = derivative.transposed(rest)
    direction, size = slope, slope.square().sum()
    enough = _DONE * size
    for _ in range(steps):
        if not size > enough or stop():
            break
        seen = derivative(direction)
        length = size / torch.stack([part.square().sum() for part in seen]).sum()
        found = found + length * direction
        rest = [part - length * along for part, along in zip(rest, seen, strict=True)]
        slope = derivative.transposed(rest)
        following = slope.square().sum()
        direction, size = slope + following / size * direction, following
    return found
