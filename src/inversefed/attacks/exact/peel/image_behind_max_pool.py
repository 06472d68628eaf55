"""The image from the output of the first convolution, ReLU and max pooling, with undecided pooling indices left open.

    max_{j in w} z_j = v_w  where v_w > 0,   max_{j in w} z_j <= 0  elsewhere,   low <= x <= high,   z = W x + b

The inequalities are convex, the equality at the winner is not. So the present winner is held to the equality, all else
one-sidedly, and by the absolute error: wrong winners are outliers, and least squares would follow them. Each round
solves the reweighted least squares (weights `1 / |r|`) by conjugate gradients and looks for the winners anew, with
momentum from round to round; when no winner changes, plain least squares at the equalities end it.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from inversefed.attacks.exact.peel.conv_block import Block
from inversefed.attacks.exact.watch import Stopped, Watch

__all__ = ["PooledImage", "image_from_pooled"]


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        rounds: most rounds of winners.
        steps: of conjugate gradients in a round, which need not end.
        last: likewise at the end, in double precision.
        again: how often winners may change at the end.
        momentum: share of the last move that is made again.
        near: relative error below which winners that stay are taken for the right ones.
        floor: least squared residual that a weight is one over.
        diagonal: share of the mean diagonal that is added to it before it preconditions.
        solved: relative squared residual at which conjugate gradients end in single precision ..
        solved_double: .. and in double precision.
    """

    rounds: int = 150
    steps: int = 20
    last: int = 200
    again: int = 3
    momentum: float = 0.8
    near: float = 1e-4
    floor: float = 1e-14
    diagonal: float = 1e-3
    solved: float = 1e-12
    solved_double: float = 1e-20


TOLERANCES = Tolerances()


@dataclass(frozen=True, eq=False)
class PooledImage:
    """What was found: the normalized image, `[c, h, w]`, and whether its winners settled."""

    image: Tensor = field(repr=False)
    settled: bool


def image_from_pooled(
    block: Block, values: Tensor, start: Tensor, bounds: tuple[Tensor, Tensor], watch: Watch
) -> PooledImage:
    """Find the image behind a network's first block.

    Args:
        block: the block, in double precision; it starts at the image.
        values: what came out of it, `[o, p, q]`.
        start: a first image, `[c, h, w]`.
        bounds: the least and the greatest value of the normalized image, broadcastable to it.
        watch: shown the image after each round, and asked within.
    """
    small, pooled = block.to(torch.float32), values.flatten(1)
    known, image, (low, high) = pooled.float(), start.float(), (bound.float() for bound in bounds)
    before, winners, settled = image, None, False
    for _ in range(TOLERANCES.rounds):
        looked, residual, active = _active(small, known, image)
        still = winners is not None and not bool((looked != winners)[known > 0].any())
        winners, error = looked, float((residual.abs() * active).mean())
        settled = still and error < TOLERANCES.near * float(known.mean())
        if watch(error, image) or settled:
            break
        floor = (residual.square() * active).mean() + TOLERANCES.floor
        outside = (image - high).clamp(min=0) - (low - image).clamp(min=0)
        weight = small.spread(active / (residual.square() + floor).sqrt())
        held = (outside != 0) / (outside.square() + floor).sqrt()
        right = small.backward(-small.spread(active * residual / (residual.square() + floor).sqrt())) - held * outside
        try:
            step = _conjugate_gradients(small, weight, held, right, TOLERANCES.steps, watch)
        except Stopped:
            break
        image, before = image + step + TOLERANCES.momentum * (image - before), image
    return _finished(block, pooled, image.double(), watch) if settled else PooledImage(image.double(), False)


def _active(block: Block, pooled: Tensor, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The present winners, the residuals, and which of them count: equalities, and inequalities that do not hold."""
    residual = block.windows(image) - pooled[..., None]
    winners = residual.argmax(-1)
    equal = F.one_hot(winners, residual.shape[-1]).bool() & (pooled > 0)[..., None]
    return winners, residual, equal | (residual > 0)


def _finished(block: Block, pooled: Tensor, image: Tensor, watch: Watch) -> PooledImage:
    """Least squares at the equalities alone, in double precision; the winners must stay."""
    before, settled = None, False
    for _ in range(TOLERANCES.again):
        winners, residual, _ = _active(block, pooled, image)
        settled = before is not None and not bool((winners != before)[pooled > 0].any())
        if settled:
            break
        equal = (F.one_hot(winners, residual.shape[-1]) * (pooled > 0)[..., None]).to(image)
        right = block.backward(block.spread(-equal * residual))
        try:
            image = image + _conjugate_gradients(
                block, block.spread(equal), torch.zeros_like(image), right, TOLERANCES.last, watch
            )
        except Stopped:
            return PooledImage(image, False)
        before = winners
    return PooledImage(image, settled)


def _conjugate_gradients(block: Block, weight: Tensor, held: Tensor, right: Tensor, steps: int, watch: Watch) -> Tensor:
    """Solve `(W^T weight W + held) d = right`, preconditioned by the diagonal.

    Raises:
        Stopped: the time is used up.
    """
    diagonal = block.backward(weight, block.weight.square()) + held
    inverse = 1 / (diagonal + TOLERANCES.diagonal * diagonal.mean())
    found, rest = torch.zeros_like(right), right
    scaled = inverse * rest
    direction, product = scaled, (rest * scaled).sum()
    enough = product * (TOLERANCES.solved_double if right.dtype == torch.float64 else TOLERANCES.solved)
    for _ in range(steps):
        if not product > enough:
            break
        watch.go_on()
        image = block.backward(weight * block.forward(direction)) + held * direction
        length = product / (direction * image).sum()
        found, rest = found + length * direction, rest - length * image
        scaled = inverse * rest
        following = (rest * scaled).sum()
        direction, product = scaled + following / product * direction, following
    return found
