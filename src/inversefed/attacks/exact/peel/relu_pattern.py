"""Recover ReLU activation patterns where the activations are known only up to rounding error.

Solved values of units that were off scatter around zero, and how far the negative ones go tells how far. What lies
clearly above was on, and what lies near that bound is in doubt. The convolution below decides: its weight gradient has
more equations than its input has unknowns,

    gW[o] = sum_p d[o, p] patch(a, p),    d[o, p] = (side of unit o, p) times what is known,

and with a unit on the wrong side no `a` fulfills them all. To first order, what is left of them is the sum of what each
wrong unit leaves: `P E_u`, with `E_u` its own part of gW and `P` the projection away from what some `a` can explain. So
which units of those in doubt are turned over is again a linear least-squares problem. Repeated until nothing is left.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversefed.attacks.exact.peel.conv_input import (
    conditioned,
    gradient_matrix,
    gradient_rows,
    images,
    misfit,
    require_plain,
)
from inversefed.attacks.exact.peel.preceding_conv import PrecedingConv, overdetermined, preceding_conv, require_shifts
from inversefed.attacks.exact.peel.relu_pattern_pooled import pattern_behind_average
from inversefed.attacks.exact.peel.state import PeelState, Setting
from inversefed.errors import UnsupportedNetworkError
from inversefed.networks.layer_shapes import padding_of

__all__ = ["ActivationPattern", "equations_beside", "relu_pattern"]


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        rounds: most guesses of all sides; each turns over what the last one shows to be wrong.
        clear: how far above the scatter of zeros a value counts as on.
        above: between so many times that bound ..
        below: .. and so many times it no value may lie where nothing below checks it.
        spare: independent equations above the rank that it takes to check sides.
        single: how many units are turned over one by one, beside all that are likely.
        cheap: the most entries of the matrix that is decomposed for each of those.
        mostly: share of the channels that are alike in how far zeros scatter, where one of them is known worse than the
            others.
        doubt: how far on the way to the other side a unit is in doubt.
        far: how far all are that were off by their values.
        most: how many units in doubt are asked.
        together: how many of those at once, which the size of their common equations bounds.
        likely: share of its own change by which a unit has to be turned over for it to be on the other side, half way.
        sure: where no unit is in more doubt than this, what the equations still leave is noise of the loss gradient.
        noise: so many times the median of that noise may come in a channel ..
        worst: .. up to this share of the channel.
        condition: the least condition of equations that check sides.
        dead: share of the median channel's size below which one is off altogether.
        tiny: near the least number of double precision: what is divided by is not zero, and nothing else changes.
        ridge: added to the diagonal of ones where units are weighed together, for two that change the same are one
            equation.
    """

    rounds: int = 16
    clear: float = 2.0
    above: float = 3.0
    below: float = 0.75
    spare: int = 8
    single: int = 8
    cheap: int = 500_000
    mostly: float = 0.75
    doubt: float = 0.03
    far: float = 0.05
    most: int = 20_000
    together: int = 256
    likely: float = 0.5
    sure: float = 0.5
    noise: float = 10.0
    worst: float = 1e-2
    condition: float = 1e-6
    dead: float = 1e-3
    tiny: float = 1e-300
    ridge: float = 1e-9


TOLERANCES = Tolerances()


@dataclass(frozen=True, eq=False)
class ActivationPattern:
    """Which units were on, `[n, ..]`, up to what share a channel's equations hold, and whether these checked it."""

    on: Tensor = field(repr=False)
    tolerance: float
    checked: bool = True


@dataclass(frozen=True, eq=False)
class _PatternGuess:
    """A guess: which units were on, `[n, ..]`, and how doubtful each is, from 0 to 1."""

    on: Tensor = field(repr=False)
    doubt: Tensor = field(repr=False)


def relu_pattern(setting: Setting, front: PeelState, slope: float) -> ActivationPattern | None:
    """Tell which units of the activation at the front were on; nothing where the numbers do not tell.

    Args:
        setting: what peeling works on.
        front: behind a ReLU or LeakyReLU.
        slope: of its other side.

    Raises:
        UnsupportedNetworkError: an average hides the sides, and nothing gives them away.
        Stopped: the time is used up.
    """
    if front.known and front.exact:
        return ActivationPattern(front.values > 0, front.tolerance)
    feed = preceding_conv(front.left[:-1], front.fork, setting.image_shape)
    guess = _by_value(front.values, slope) if front.known else _by_places(setting, front, feed, slope)
    if feed is not None and overdetermined(feed, len(guess.on)):
        equations = _Equations.of(setting, front, feed, slope)
        told = _checked(setting, front, equations, guess)
        if front.known and len(guess.on) == 1 and not (told is not None and told.checked):
            told = _checked(setting, front, equations, _by_value(front.values, slope, TOLERANCES.mostly)) or told
        return told
    near = guess.doubt > torch.where(guess.on, 1 / TOLERANCES.above, TOLERANCES.below)
    certain = not front.known or not bool(near.any())
    return ActivationPattern(guess.on, front.tolerance) if certain and not front.rounded else None


def _by_value(values: Tensor, slope: float, most: float = 1.0) -> _PatternGuess:
    """By how values stand to the scatter of zeros: that of the channel, but no less than of this share of all."""
    if slope:
        return _PatternGuess(values > 0, torch.zeros_like(values))
    size = values.square().mean(dim=(0, *range(2, values.ndim)), keepdim=True).sqrt()
    size = size.clamp(min=TOLERANCES.dead * float(size.median())) + TOLERANCES.tiny
    scatter = (-values / size).amax(dim=(0, *range(2, values.ndim)), keepdim=True).clamp(min=0)
    bound = TOLERANCES.clear * size * scatter.clamp(min=float(scatter.quantile(most)))
    apart = torch.where(values > bound, bound / values, (values / bound).clamp(min=TOLERANCES.far))
    return _PatternGuess(values > bound, apart.nan_to_num(nan=0.0))


def _by_places(setting: Setting, front: PeelState, feed: PrecedingConv | None, slope: float) -> _PatternGuess:
    if feed is None or feed.added is not None or slope:
        raise UnsupportedNetworkError(
            f"what comes out of {front.left[-1].module} is only known as a mean over places, and no convolution in "
            "front of it tells where it was on"
        )
    require_shifts(feed, len(front.delta), front.delta.shape[1:])
    shown = pattern_behind_average(feed.gradient(setting.gradient), front.delta, setting.eps)
    on = shown > 0.5
    return _PatternGuess(on, ((shown - on.to(shown)).abs() * 2).clamp(max=1))


def _checked(
    setting: Setting, front: PeelState, equations: "_Equations", guess: _PatternGuess
) -> ActivationPattern | None:
    """The sides, put right where the convolution's equations do not hold; nothing where they cannot be."""
    check = equations.check(guess.on)
    if check is None:
        return ActivationPattern(guess.on, front.tolerance, checked=False) if front.known else None
    for _ in range(TOLERANCES.rounds):
        if check.holds(front.tolerance):
            return ActivationPattern(check.on, front.tolerance, check.enough)
        best = check
        for turned in _turned(equations.conv, check, equations.change(check.on), guess.doubt):
            setting.watch.go_on()
            tried = equations.check(check.on ^ turned)
            if tried is not None and float(tried.rest.norm()) < float(best.rest.norm()):
                best = tried
            if best.holds(front.tolerance):
                break
        if best is check:
            break
        check = best
    noise = TOLERANCES.noise * float(check.off.median())
    certain = not front.known and not bool((guess.doubt > TOLERANCES.sure).any())
    return ActivationPattern(check.on, noise) if certain and noise < TOLERANCES.worst and check.holds(noise) else None


@dataclass(frozen=True, eq=False)
class _Check:
    """What the convolution's equations say of a guess.

    Args:
        on: which units were on, by that guess.
        enough: so many equations are left over that a wrong guess shows.
        inputs: what goes into the convolution then, `[n, c, h, w]`.
        spanned: orthonormal columns that span what some input explains of the gradient, `[.., pixels]`.
        rest: what is left of the gradient, `[o k l, c]`.
        off: the share of each output channel that this is, `[o]`.
    """

    on: Tensor
    enough: bool
    inputs: Tensor
    spanned: Tensor
    rest: Tensor
    off: Tensor

    def holds(self, tolerance: float) -> bool:
        """Whether no channel is off by a larger share."""
        return not bool((self.off > tolerance).any())


@dataclass(frozen=True, eq=False)
class _Equations:
    """What a convolution's weight gradient says of its input, and of the side of each unit behind it.

    Args:
        feed: the convolution.
        open_delta: the loss gradient behind the activation, `[n, o, p, q]`.
        slope: of the activation's other side.
        gradient: that of the weight, BatchNorm folded in.
        beside: `gradient_matrix` of a convolution that sees the same input, if there is one.
        rows: the right-hand sides of both.
    """

    feed: PrecedingConv
    open_delta: Tensor
    slope: float
    gradient: Tensor
    beside: Tensor | None
    rows: Tensor

    @classmethod
    def of(cls, setting: Setting, front: PeelState, feed: PrecedingConv, slope: float) -> "_Equations":
        """Those of the convolution that feeds the activation at the front."""
        require_plain(feed.conv, (feed.shape[0], len(front.delta) * feed.shape[1], feed.shape[2]))
        gradient = feed.gradient(setting.gradient)
        own, more = gradient_rows(gradient), None
        if feed.beside is not None:
            more = equations_beside(setting, front, feed.shape)
        beside, rows = (None, own) if more is None else (more[0], torch.cat([own, more[1]]))
        return cls(feed, front.delta, slope, gradient, beside, rows)

    @property
    def conv(self) -> nn.Conv2d:
        """The convolution."""
        return self.feed.conv

    def change(self, on: Tensor) -> Tensor:
        """What turning a unit over adds to the loss gradient in front of it, `[n, o, p, q]`."""
        return self.open_delta * torch.where(on, self.slope - 1.0, 1.0 - self.slope)

    def check(self, on: Tensor) -> _Check | None:
        """What they say of these sides; nothing where no equation is left over."""
        delta = self.open_delta * torch.where(on, 1.0, self.slope)
        delta = delta if self.feed.added is None else delta + self.feed.added
        matrix = gradient_matrix(self.conv, self.feed.shape, delta)
        matrix = matrix if self.beside is None else torch.cat([matrix, self.beside])
        if (factors := conditioned(matrix)) is not None:
            spanned, enough = factors[0], True
            explained = spanned.T @ self.rows
            inputs = torch.linalg.solve_triangular(factors[1], explained, upper=True)
        else:
            left, sizes, right = torch.linalg.svd(matrix, full_matrices=False)
            kept = sizes > TOLERANCES.condition * sizes[0]
            spare = int(matrix.any(dim=1).sum()) - int(kept.sum())
            if spare <= 0:
                return None
            spanned, enough = left[:, kept], spare >= TOLERANCES.spare
            explained = spanned.T @ self.rows
            inputs = right[kept].T @ (explained / sizes[kept, None])
        rest = (self.rows - spanned @ explained)[: self.gradient.numel() // self.rows.shape[1]]
        return _Check(on, enough, images(inputs.T, self.feed.shape), spanned, rest, misfit(rest, self.gradient))


def equations_beside(setting: Setting, front: PeelState, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor] | None:
    """What the other way of the innermost sum says of the input of the longer one: `gradient_matrix` and its rows.

    Args:
        setting: what peeling works on.
        front: within the longer way.
        shape: `(c, h, w)` of the input.
    """
    fork = front.fork
    if fork is None or fork.beside is None or fork.delta is None:
        return None
    conv = fork.beside.module
    assert isinstance(conv, nn.Conv2d)
    require_plain(conv, (shape[0], len(fork.delta) * shape[1], shape[2]))
    rows = gradient_rows(fork.beside.weight_gradient(setting.gradient))
    return gradient_matrix(conv, shape, fork.delta), rows


def _turned(conv: nn.Conv2d, check: _Check, change: Tensor, doubt: Tensor) -> Iterator[Tensor]:
    """Which units in doubt are on the other side, `[n, o, p, q]`: all that are likely, then one after another.

    Args:
        conv: the convolution.
        check: of the present guess.
        change: of each unit's loss gradient if it is turned over.
        doubt: of each unit.
    """
    asked = doubt.flatten().topk(min(TOLERANCES.most, doubt.numel()))
    units = asked.indices[asked.values > TOLERANCES.doubt]
    if not len(units):
        return
    parts, own = _left_by(units, conv, check.inputs, change)
    wanted = (parts * check.rest[own]).flatten(1).sum(dim=1)
    taps = own.shape[1]
    spans = check.spanned[: conv.out_channels * taps].reshape(conv.out_channels, taps, -1)
    left = torch.eye(taps) - spans @ spans.transpose(1, 2)  # the projection within the rows of each output channel
    size = (left[own[:, 0] // taps] @ parts * parts).sum(dim=(1, 2)).clamp(min=TOLERANCES.tiny)
    likely = (wanted.square() / size).topk(min(TOLERANCES.together, len(units))).indices
    units, parts, own, wanted = units[likely], parts[likely], own[likely], wanted[likely]
    explained = torch.einsum("utp,utc->upc", check.spanned[own], parts).flatten(1)
    both = parts.flatten(1) @ parts.flatten(1).T * (own[:, :1] == own[:, 0]) - explained @ explained.T
    scale = both.diagonal().clamp(min=TOLERANCES.tiny).rsqrt()
    both, wanted = both * scale[:, None] * scale, wanted * scale
    both.diagonal().add_(TOLERANCES.ridge)
    share = torch.linalg.solve(both, wanted) * scale
    single = units[: TOLERANCES.single, None] if check.spanned.numel() <= TOLERANCES.cheap else units[:0, None]
    for each in (units[share > TOLERANCES.likely], *single):
        turned = torch.zeros(doubt.numel(), dtype=torch.bool)
        turned[each] = True
        yield turned.reshape(doubt.shape)


def _left_by(units: Tensor, conv: nn.Conv2d, inputs: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """What each unit changes of the gradient if it is turned over, `[units, k l, c]`, and in which rows."""
    _, channels, places = change.flatten(2).shape
    example, channel, place = units // places // channels, units // places % channels, units % places
    seen = F.unfold(inputs, conv.kernel_size, padding=padding_of(conv), stride=conv.stride)[example, :, place]
    taps = conv.weight[0, 0].numel()
    parts = (seen * change.flatten()[units][:, None]).reshape(len(units), -1, taps).transpose(1, 2)
    return parts, channel[:, None] * taps + torch.arange(taps)
