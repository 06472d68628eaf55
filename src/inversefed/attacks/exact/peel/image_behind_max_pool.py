"""The image from the output of the first convolution, ReLU and max pooling, with undecided pooling indices left open.

    max_{j in w} z_j = v_w  where v_w > 0,   max_{j in w} z_j <= 0  elsewhere,   low <= x <= high,   z = W x + b

The inequalities are convex, the equality at the winner is not. So the present winner is held to the equality, all else
one-sidedly, and by the absolute error: wrong winners are outliers, and least squares would follow them. Each round
solves the reweighted least squares (weights `1 / |r|`) by conjugate gradients and looks for the winners anew, with
momentum from round to round; when no winner changes, plain least squares at the equalities end it.

Windows that overlap, as those of a ResNet's stem, often have the same winner, and then the values alone leave the image
open. But no pixel is above the least value of all windows that see it, which bars most from winning. And with the loss
gradient d behind the pooling the weight gradient of the convolution says more:

    gW[o] = sum_w d[o, w] patch(x, j(w))        linear in x at these winners

`image_from_both` holds the image to both kinds of equations, each in units of its own sum of absolute values, without
momentum. A winner is then the pixel that explains the value of its window and what is left of gW best:

    j(w) = argmin_j  (z_j - v_w)^2 / s1^2  +  (|gW[o] - .. - d[o, w] (patch_j - patch_now)|^2 - |gW[o] - ..|^2) / s2^2
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from inversefed.attacks.exact.peel.conv_block import Block, KnownBlock
from inversefed.attacks.exact.watch import Stopped, Watch

__all__ = ["FirstBlock", "PooledImage", "image_from_both", "image_from_pooled"]


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
        both: most rounds with the weight gradient; some fifty are usual.
        inner: steps of conjugate gradients in each.
        turns: most times that winners are chosen in a round, since each choice changes what is left of the gradient.
        likely: share of the winners that look wrong which are not changed at once, the less likely ones.
        grain: share of the mean squared residual that a weight is one over, for a few outliers to count as such.
        mad: median of |x| for a standard normal x.
        equal: difference, in root mean squares, below which two windows show the same value, that of one pixel which
            both see.
        explained: relative error of the weight gradient below which the last winners are those of the image: a few that
            are wrong make no more of it.
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
    both: int = 80
    inner: int = 30
    turns: int = 3
    likely: float = 0.9
    grain: float = 1e-2
    mad: float = 0.6745
    equal: float = 1e-5
    explained: float = 2e-2


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
    known, image = pooled.float(), start.float()
    before, winners, settled = image, None, False
    for _ in range(TOLERANCES.rounds):
        looked, residual, active = _active(small, known, image)
        still = winners is not None and not bool((looked != winners)[known > 0].any())
        winners, error = looked, float((residual.abs() * active).mean())
        settled = still and error < TOLERANCES.near * float(known.mean())
        if watch(error, image) or settled:
            break
        floor = (residual.square() * active).mean() + TOLERANCES.floor
        outside = _outside(image, bounds)
        weight = small.spread(active / (residual.square() + floor).sqrt())
        held = (outside != 0) / (outside.square() + floor).sqrt()
        right = small.backward(-small.spread(active * residual / (residual.square() + floor).sqrt())) - held * outside
        try:
            step = _conjugate_gradients(small, weight, held, right, TOLERANCES.steps, watch)
        except Stopped:
            break
        image, before = image + step + TOLERANCES.momentum * (image - before), image
    return _finished(block, pooled, image.double(), watch) if settled else PooledImage(image.double(), False)


def image_from_both(
    block: Block,
    values: Tensor,
    delta: Tensor,
    gradient: Tensor,
    start: Tensor,
    bounds: tuple[Tensor, Tensor],
    watch: Watch,
) -> PooledImage:
    """Find the image behind a network's first block from its outputs and its weight gradient.

    Args:
        block: the block, in double precision; it starts at the image.
        values: what came out of it, `[o, p, q]`.
        delta: the loss gradient there.
        gradient: of the loss with respect to the block's folded weight, `[o, c, k, l]`.
        start: a first image, `[c, h, w]`.
        bounds: the least and the greatest value of the normalized image, broadcastable to it.
        watch: shown the image after each round, and asked within.
    """
    exact = FirstBlock.of(block, values, delta, gradient)
    shown, image, winners, near = exact.to(torch.float32), start.float(), None, False
    for _ in range(TOLERANCES.both):
        winners, before = shown.likely(image, winners), winners
        step, error = shown.step(image, winners, _outside(image, bounds), watch)
        near = error < TOLERANCES.explained
        still = before is not None and not bool((winners != before)[shown.alive].any())
        if watch(error, image) or step is None or (near and still):
            break
        image = image + step
    found, error = image.double(), math.inf
    for _ in range(2 * TOLERANCES.again if near else 0):
        winners = exact.winners(found)
        step, missed = exact.step(found, winners, torch.zeros_like(found), watch, squared=True)
        if step is None or not missed < error:
            break
        found, error = found + step, missed
    return PooledImage(found, near)


def _outside(image: Tensor, bounds: tuple[Tensor, Tensor]) -> Tensor:
    """How far each pixel is above the greatest value or below the least."""
    low, high = (bound.to(image) for bound in bounds)
    return (image - high).clamp(min=0) - (low - image).clamp(min=0)


@dataclass(frozen=True, eq=False)
class FirstBlock(KnownBlock):
    """What is known of a network's first block, and the image that it tells."""

    @property
    def alive(self) -> Tensor:
        """The windows that show a value."""
        return self.values > 0

    @cached_property
    def barred(self) -> Tensor:
        """The pixels of each window that another window which sees them is too small for, `[o, windows, taps]`."""
        places, taps = self.block.places, self.block.places.shape[1]
        spread = self.values[..., None].expand(-1, -1, taps).flatten(1)
        most = torch.full((len(spread), self.block.grid[1] * self.block.grid[2]), math.inf).to(spread)
        most.scatter_reduce_(1, places.flatten().expand(len(spread), -1), spread, "amin")
        return most[:, places] < (self.values - TOLERANCES.equal * self.values.square().mean().sqrt())[..., None]

    def winners(self, image: Tensor) -> Tensor:
        """The winners of an image, `[o, windows]`."""
        return self.block.windows(image).masked_fill(self.barred, -math.inf).argmax(-1)

    def at_pixels(self, winners: Tensor) -> Tensor:
        """The loss gradient in front of the pooling with these winners, `[o, p, q]`."""
        return self.block.spread(self.at(winners))

    def explained(self, image: Tensor, delta: Tensor) -> Tensor:
        """The weight gradient of an image with this loss gradient, `[o, c, k, l]`."""
        explained: Tensor = torch.nn.grad.conv2d_weight(  # type: ignore[no-untyped-call]
            image[None], list(self.block.weight.shape), delta[None], self.block.stride, self.block.padding
        )
        return explained

    def likely(self, image: Tensor, winners: Tensor | None) -> Tensor:
        """The winners by both kinds of equations, from those before, `[o, windows]`."""
        off, alive, places = self.block.windows(image) - self.values[..., None], self.alive, self.block.places
        winners = self.winners(image) if winners is None else winners
        patches = self.block.patches(image)
        products, delta = patches.T @ patches, self.delta[..., None]
        size = products.diagonal()
        for _ in range(TOLERANCES.turns):
            rest = (self.explained(image, self.at_pixels(winners)) - self.gradient).flatten(1)
            noise = rest.abs().median() / TOLERANCES.mad
            error = off.gather(-1, winners[..., None])[..., 0][alive].abs().median() / TOLERANCES.mad
            now = places[torch.arange(len(places)), winners]
            along = rest @ patches
            moved = size[places] + size[now][..., None] - 2 * products[now[..., None], places]
            change = 2 * delta * (along[:, places] - along.gather(1, now)[..., None]) + delta.square() * moved
            cost = off.square() / (error.square() + TOLERANCES.floor)
            cost = cost + change / (noise.square() + TOLERANCES.floor * self.gradient.square().mean())
            least = cost.masked_fill(self.barred, math.inf).min(dim=-1)
            gain = cost.gather(-1, winners[..., None])[..., 0] - least.values
            turned = (least.indices != winners) & alive
            if not bool(turned.any()):
                break
            turned &= gain >= gain[turned].quantile(TOLERANCES.likely)
            winners = torch.where(turned, least.indices, winners)
        return winners

    def step(
        self, image: Tensor, winners: Tensor, outside: Tensor, watch: Watch, squared: bool = False
    ) -> tuple[Tensor | None, float]:
        """The step to the solution at these winners, nothing where time is used up, and the gradient's relative error.

        Args:
            image: from where.
            winners: of each window.
            outside: how far each pixel is outside its bounds.
            watch: asked within.
            squared: by least squares, and not by the absolute error.
        """
        block, hot = self.block, F.one_hot(winners, self.block.places.shape[1]).bool()
        off = block.windows(image) - self.values[..., None]
        active = (hot & self.alive[..., None]) | ((off > 0) & ~self.alive[..., None])
        delta = self.at_pixels(winners)
        rest = self.explained(image, delta) - self.gradient
        scales = float(self.values.abs().sum()), float(self.gradient.abs().sum())

        def weight(residual: Tensor, counted: Tensor, scale: float) -> Tensor:
            mean = (residual.square() * counted).sum() / counted.sum()
            if squared:
                return counted / (scale * scale * torch.ones_like(residual))
            return counted / (residual.square() + TOLERANCES.grain * mean + TOLERANCES.floor * scale**-2).sqrt() / scale

        first = weight(off, active, scales[0])
        second = weight(rest, torch.ones_like(rest), scales[1])
        held = (outside != 0) * first[active].mean()
        counts = block.spread(first)
        right = -block.backward(block.spread(first * off)) - held * outside - block.backward(delta, second * rest)
        diagonal = block.backward(counts, block.weight.square()) + held

        def product(direction: Tensor) -> Tensor:
            both = block.backward(counts * block.forward(direction)) + held * direction
            return both + block.backward(delta, second * self.explained(direction, delta))

        error = float(rest.abs().sum()) / scales[1]
        try:
            steps = TOLERANCES.last if squared else TOLERANCES.inner
            return _solved(product, diagonal, right, steps, watch), error
        except Stopped:
            return None, error


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

    def product(direction: Tensor) -> Tensor:
        return block.backward(weight * block.forward(direction)) + held * direction

    return _solved(product, diagonal, right, steps, watch)


def _solved(product: Callable[[Tensor], Tensor], diagonal: Tensor, right: Tensor, steps: int, watch: Watch) -> Tensor:
    """Solve `product(d) = right` by conjugate gradients, preconditioned by the diagonal.

    Raises:
        Stopped: the time is used up.
    """
    inverse = 1 / (diagonal + TOLERANCES.diagonal * diagonal.mean())
    found, rest = torch.zeros_like(right), right
    scaled = inverse * rest
    direction, size = scaled, (rest * scaled).sum()
    enough = size * (TOLERANCES.solved_double if right.dtype == torch.float64 else TOLERANCES.solved)
    for _ in range(steps):
        if not size > enough:
            break
        watch.go_on()
        image = product(direction)
        length = size / (direction * image).sum()
        found, rest = found + length * direction, rest - length * image
        scaled = inverse * rest
        following = (rest * scaled).sum()
        direction, size = scaled + following / size * direction, following
    return found
