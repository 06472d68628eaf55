"""Max unpooling by alternation: which pixel of each window was the maximum, and what the convolution before it saw.

Behind the pooling the values `v` and the loss gradient `d` are known, one number a window. With winners `j(w)`,

    (1)  gW[o] = sum_w d[o, w] patch(a, j(w))      linear in the input a, and linear in the winners
    (2)  v[o, w] = (W a + b)[o, j(w)]              where v > 0

Given `a`, a regression of `gW[o]` on all patches shows large coefficients at the winners (1), and the winners'
forward values are near `v` (2). Each kind is weighted by its own current error, measured at the present winners by the
median: together they decide windows that neither decides alone. Given the winners, (1) is a linear system for `a`,
with one matrix for all input channels; rows that fit badly, since a winner behind them is wrong, count less. The two
are repeated from a first image until no winner changes. This builds on R-GAP (Zhu and Blaschko 2021,
arXiv:2010.07733), which takes winners as known.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from inversefed.attacks.exact.peel.conv_block import Block, KnownBlock
from inversefed.attacks.exact.peel.conv_input import correlation_matrix
from inversefed.attacks.exact.peel.feature_inversion import search_features, shallow
from inversefed.attacks.exact.watch import Watch
from inversefed.networks.layer_chain import Layer, run

__all__ = ["ROUNDS", "Unpooled", "unpool", "zeroed"]

ROUNDS = 80
"""Most rounds of the alternation; eight are usual, and a narrow network takes fifty."""


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        steps: of a search for the image, which is a guess for the next round.
        projected: rounds that end with such a search; later ones are near enough without.
        damping: of the regression, relative to its diagonal, while the guess is rough; and of the equations that are
            solved.
        least_damping: of the regression at the end: about the rounding of single precision, in which values are known.
        trusted: relative errors below one over this lower the damping, by the square of their product with it.
        settled: relative misfit below which winners that stay are right.
        zero: where ReLU's output is known to rounding, what is smaller, relative to the root mean square, is a zero.
        even: share of the gradient's root mean square that is added to a row's misfit, so that no row outweighs all
            others.
        mad: median of |x| for a standard normal x.
        tiny: a scatter that is zero is divided by as this.
    """

    steps: int = 40
    projected: int = 2
    damping: float = 1e-3
    least_damping: float = 1e-7
    trusted: float = 10.0
    settled: float = 1e-5
    zero: float = 1e-5
    even: float = 1e-6
    mad: float = 0.6745
    tiny: float = 1e-12


TOLERANCES = Tolerances()


@dataclass(frozen=True, eq=False)
class Unpooled:
    """What the alternation came to.

    Args:
        values: what went into the convolution, `[c, h, w]`.
        delta: the loss gradient there.
        image: a normalized image that roughly fits, `[c, h, w]`.
        residual: relative error of the weight gradient's equations.
        settled: no winner changes any more, and the equations hold.
    """

    values: Tensor = field(repr=False)
    delta: Tensor = field(repr=False)
    image: Tensor = field(repr=False)
    residual: float
    settled: bool


@dataclass(frozen=True, eq=False)
class _Known(KnownBlock):
    @property
    def alive(self) -> Tensor:
        return (self.values > 0) & (self.delta != 0)


def unpool(
    layers: tuple[Layer, ...],
    block: Block,
    values: Tensor,
    delta: Tensor,
    gradient: Tensor,
    image: Tensor,
    watch: Watch,
) -> Unpooled:
    """Find a block's winners and its input.

    Args:
        layers: the network up to the end of the block.
        block: the block, in double precision.
        values: what comes out of it, `[o, p, q]`.
        delta: the loss gradient there.
        gradient: of the loss with respect to the block's folded weight.
        image: a first normalized image, `[c, h, w]`, from which the search starts.
        watch: asked after each round.
    """
    below = layers[: block.start]
    known = _Known.of(block, values, delta, gradient)
    inputs = run(below, image[None].to(values))[0]
    winners, weights, residual, settled, damping = None, None, 1.0, False, TOLERANCES.damping
    for number in range(ROUNDS):
        found, damping = decide(known, inputs, winners, damping)
        changed = winners is None or bool((found != winners)[known.alive].any())
        winners = found
        inputs, misfit = solve(known, winners, inputs, weights)
        residual = float(misfit.norm() / gradient.norm())
        if number > TOLERANCES.projected + 1:
            size = misfit.square().mean(1).sqrt()
            weights = 1 / (size + TOLERANCES.even * gradient.square().mean().sqrt())
            weights = weights / weights.mean()
        settled = not changed and residual < TOLERANCES.settled
        stop = watch(residual, image)
        if number < TOLERANCES.projected and not stop and below:
            shape, function = (image.shape[0], image.shape[1], image.shape[2]), shallow(below, torch.float32)
            image = watch.keep(search_features(function, inputs[None], shape, TOLERANCES.steps, watch)[0])
            inputs = run(below, image[None].to(values))[0]
        if settled or stop:
            break
    assert winners is not None
    return Unpooled(zeroed(inputs), block.backward(block.spread(known.at(winners))), image, residual, settled)


def zeroed(values: Tensor) -> Tensor:
    """What came out of a ReLU, known to rounding, with zeros that are zero."""
    return values * (values > TOLERANCES.zero * values.square().mean().sqrt())


def decide(known: _Known, inputs: Tensor, winners: Tensor | None, damping: float) -> tuple[Tensor, float]:
    """Choose the pixel of each window that won, by both kinds of evidence.

    Args:
        known: what is known at the block.
        inputs: the present guess of what goes in.
        winners: the present winners, at which the errors are measured; `None` at first.
        damping: of the regression, relative to its diagonal; an inexact guess wants more.

    Returns:
        The winners, `[o, windows]`, and the damping for the next round.
    """
    if known.block.places.shape[1] == 1:
        return torch.zeros_like(known.values, dtype=torch.long), damping
    off = known.block.windows(inputs) - known.values[..., None]
    shown = _regressed(known, inputs, damping)
    gain, spread = -2 * shown * known.delta[..., None], off.square()
    if winners is None:
        winners = (gain / gain.abs().mean() + spread / spread.mean()).argmin(-1)
    alive, error = known.alive, torch.ones(())
    for _ in range(2):
        noise = _median_by_row((shown - known.at(winners)).abs(), alive)[:, None, None] / TOLERANCES.mad
        error = off.gather(-1, winners[..., None])[..., 0][alive].abs().median() / TOLERANCES.mad
        winners = (gain / (noise + TOLERANCES.tiny).square() + spread / (error + TOLERANCES.tiny).square()).argmin(-1)
    relative = float(error / known.values[alive].mean())
    return winners, min(
        TOLERANCES.damping, max(TOLERANCES.least_damping, TOLERANCES.damping * (TOLERANCES.trusted * relative) ** 2)
    )


def _regressed(known: _Known, inputs: Tensor, damping: float) -> Tensor:
    """Coefficients of the weight gradient on all patches of the input, `[o, windows, taps]`."""
    patches = known.block.patches(inputs)
    gram = patches.T @ patches
    gram.diagonal().add_(damping * gram.diagonal().mean())
    coefficients = torch.cholesky_solve(patches.T @ known.gradient.flatten(1).T, torch.linalg.cholesky(gram))
    return coefficients.T[:, known.block.places]


def _median_by_row(errors: Tensor, alive: Tensor) -> Tensor:
    """The median over the live windows of each output channel; over all of them where a channel has none."""
    overall = errors[alive].median()
    rows = [row[mask].median() if bool(mask.any()) else overall for row, mask in zip(errors, alive, strict=True)]
    return torch.stack(rows)


def solve(known: _Known, winners: Tensor, prior: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Solve the weight gradient's equations for the input, drawn to a prior where they leave it open.

    Args:
        known: what is known at the block.
        winners: the pixel of each window that won.
        prior: the guess before.
        weights: how much each row counts; `None` for all the same.

    Returns:
        The input, not negative where it comes out of a ReLU, and the misfit of each row, `[rows, c]`.
    """
    block = known.block
    kernel = (block.weight.shape[2], block.weight.shape[3])
    matrix = correlation_matrix(kernel, block.stride, block.padding, block.shape, block.spread(known.at(winners))[None])
    rows = known.gradient.permute(0, 2, 3, 1).reshape(-1, block.shape[0])
    weighted = matrix if weights is None else matrix * weights[:, None]
    gram = matrix.T @ weighted
    damping = TOLERANCES.damping * gram.diagonal().mean()
    gram.diagonal().add_(damping)
    right = weighted.T @ rows + damping * prior.flatten(1).T
    found = torch.cholesky_solve(right, torch.linalg.cholesky(gram))
    values = found.T.reshape(block.shape)
    return values.clamp(min=0) if block.start else values, matrix @ found - rows
