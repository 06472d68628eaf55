"""On which side of its kink a ReLU was, where what comes out of it was solved for and zeros are no longer zeros.

Solved values of units that were off scatter around zero, and how far the negative ones go tells how far. What lies
clearly above was on, and what lies near that bound is in doubt. The convolution below decides: its weight gradient has
more equations than its input has unknowns,

    gW[o] = sum_p d[o, p] patch(a, p),    d[o, p] = (side of unit o, p) times what is known,

and with a unit on the wrong side no `a` fulfills them all. To first order, what is left of them is the sum of what each
wrong unit leaves: `P E_u`, with `E_u` its own part of gW and `P` the projection away from what some `a` can explain. So
which units of those in doubt are turned over is again a linear least-squares problem. Repeated until nothing is left.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversefed.attacks.exact.convolution import (
    conditioned,
    gradient_matrix,
    gradient_rows,
    images,
    require_plain,
)
from inversefed.attacks.exact.feeding import Feeding, feeding, overdetermined, require_shifts
from inversefed.attacks.exact.front import Front, Setting
from inversefed.attacks.exact.places import places_on
from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.geometry import padding_of

__all__ = ["Told", "equations_beside", "sides"]

_ROUNDS = 8
_CLEAR = 2.0
"""How far above the scatter of zeros a value counts as on."""
_ABOVE, _BELOW = 3.0, 0.75
"""Between these multiples of that bound no value may lie where nothing below checks it."""
_DOUBT, _MOST, _TOGETHER = 0.03, 20_000, 256
"""How far on the way to the other side a unit is in doubt, how many of them are asked, how many of those at once."""
_SURE, _NOISE, _WORST = 0.5, 10, 1e-2
"""Where no unit is in more doubt than this, what the equations still leave is noise of the loss gradient: so many times
its median may come in a channel, up to this share of the channel."""
_FAINT = 0.1
"""Share of the median channel's gradient below which rounding of the loss gradient outweighs a channel's own."""


@dataclass(frozen=True, eq=False)
class Told:
    """Which units were on, `[n, ..]`, and up to what share the equations of a channel hold."""

    on: Tensor = field(repr=False)
    tolerance: float


@dataclass(frozen=True, eq=False)
class _Sides:
    """A guess: which units were on, `[n, ..]`, and how doubtful each is, from 0 to 1."""

    on: Tensor = field(repr=False)
    doubt: Tensor = field(repr=False)


def sides(setting: Setting, front: Front, slope: float) -> Told | None:
    """Tell which units of the activation at the front were on; nothing where the numbers do not tell.

    Args:
        setting: what peeling works on.
        front: behind a ReLU or LeakyReLU.
        slope: of its other side.

    Raises:
        UnsupportedNetworkError: an average hides the sides, and nothing gives them away.
    """
    if front.known and front.exact:
        return Told(front.values > 0, front.tolerance)
    feed = feeding(front.left[:-1], front.fork, setting.image_shape)
    guess = _by_value(front.values, slope) if front.known else _by_places(setting, front, feed, slope)
    if feed is not None and overdetermined(feed, len(guess.on)):
        return _checked(setting, front, feed, guess, slope)
    near = guess.doubt > torch.where(guess.on, 1 / _ABOVE, _BELOW)
    certain = not front.known or not bool(near.any())
    return Told(guess.on, front.tolerance) if certain and not front.rounded else None


def _by_value(values: Tensor, slope: float) -> _Sides:
    """By how values stand to the scatter of zeros, which goes, in all channels, as far as the most negative one."""
    size = values.square().mean(dim=(0, *range(2, values.ndim)), keepdim=True).sqrt() + 1e-300
    bound = _CLEAR * size * (-values / size).max().clamp(min=0)
    if slope:
        return _Sides(values > 0, torch.zeros_like(values))
    apart = torch.where(values > bound, bound / values, values.clamp(min=0) / bound)
    return _Sides(values > bound, apart.nan_to_num(nan=0.0))


def _by_places(setting: Setting, front: Front, feed: Feeding | None, slope: float) -> _Sides:
    if feed is None or feed.added is not None or slope:
        raise UnsupportedNetworkError(
            f"what comes out of {front.left[-1].module} is only known as a mean over places, and no convolution in "
            "front of it tells where it was on"
        )
    require_shifts(feed, len(front.delta), front.delta.shape[1:])
    shown = places_on(feed.gradient(setting.gradient), front.delta, setting.eps)
    on = shown > 0.5
    return _Sides(on, ((shown - on.to(shown)).abs() * 2).clamp(max=1))


def _checked(setting: Setting, front: Front, feed: Feeding, guess: _Sides, slope: float) -> Told | None:
    """The sides, put right where the convolution's equations do not hold; nothing where they cannot be."""
    require_plain(feed.conv, (feed.shape[0], len(guess.on) * feed.shape[1], feed.shape[2]))
    gradient, on = feed.gradient(setting.gradient), guess.on
    known, more = gradient_rows(gradient), None if feed.beside is None else equations_beside(setting, front, feed.shape)
    rows = known if more is None else torch.cat([known, more[1]])
    for _ in range(_ROUNDS):
        delta = front.delta * torch.where(on, 1.0, slope)
        matrix = gradient_matrix(feed.conv, feed.shape, delta if feed.added is None else delta + feed.added)
        factors = conditioned(matrix if more is None else torch.cat([matrix, more[0]]))
        if factors is None:
            return None
        explained = factors[0].T @ rows
        rest = (rows - factors[0] @ explained)[: len(known)]
        off, size = (part.reshape(len(gradient), -1).norm(dim=1) for part in (rest, known))
        misfit = off / (size + _FAINT * size.median())
        if not bool((misfit > front.tolerance).any()):
            return Told(on, front.tolerance)
        inputs = images(torch.linalg.solve_triangular(factors[1], explained, upper=True).T, feed.shape)
        change = front.delta * torch.where(on, slope - 1.0, 1.0 - slope)
        turned = _turned(feed.conv, inputs, factors[0], rest, change, guess.doubt)
        if not bool(turned.any()):
            break
        on = on ^ turned
    noise = _NOISE * float(misfit.median())
    certain = not front.known and not bool((guess.doubt > _SURE).any())
    return Told(on, noise) if certain and noise < _WORST and not bool((misfit > noise).any()) else None


def equations_beside(setting: Setting, front: Front, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor] | None:
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
    rows = gradient_rows(setting.gradient[f"{fork.beside.name}.weight"])
    return gradient_matrix(conv, shape, fork.delta), rows


def _turned(conv: nn.Conv2d, inputs: Tensor, q: Tensor, rest: Tensor, change: Tensor, doubt: Tensor) -> Tensor:
    """Which units in doubt are on the other side, `[n, o, p, q]`.

    Args:
        conv: the convolution.
        inputs: what goes into it by the present guess, `[n, c, h, w]`.
        q: orthonormal columns that span what some input explains of the gradient, `[o k l, pixels]`.
        rest: what the present guess leaves of the gradient, `[o k l, c]`.
        change: of each unit's loss gradient if it is turned over.
        doubt: of each unit.
    """
    asked = doubt.flatten().topk(min(_MOST, doubt.numel()))
    units = asked.indices[asked.values > _DOUBT]
    parts, own = _left_by(units, conv, inputs, change)
    wanted = (parts * rest[own]).flatten(1).sum(dim=1)
    likely = (wanted.square() / (parts.square().sum(dim=(1, 2)) + 1e-300)).topk(min(_TOGETHER, len(units))).indices
    units, parts, own, wanted = units[likely], parts[likely], own[likely], wanted[likely]
    explained = torch.einsum("utp,utc->upc", q[own], parts).flatten(1)
    both = parts.flatten(1) @ parts.flatten(1).T * (own[:, :1] == own[:, 0]) - explained @ explained.T
    scale = both.diagonal().clamp(min=1e-300).rsqrt()
    both, wanted = both * scale[:, None] * scale, wanted * scale
    both.diagonal().add_(1e-9)
    share = torch.linalg.solve(both, wanted) * scale
    turned = torch.zeros(doubt.numel(), dtype=torch.bool)
    turned[units[share > 0.5]] = True
    return turned.reshape(doubt.shape)


def _left_by(units: Tensor, conv: nn.Conv2d, inputs: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """What each unit changes of the gradient if it is turned over, `[units, k l, c]`, and in which rows."""
    _, channels, places = change.flatten(2).shape
    example, channel, place = units // places // channels, units // places % channels, units % places
    seen = F.unfold(inputs, conv.kernel_size, padding=padding_of(conv), stride=conv.stride)[example, :, place]
    taps = conv.weight[0, 0].numel()
    parts = (seen * change.flatten()[units][:, None]).reshape(len(units), -1, taps).transpose(1, 2)
    return parts, channel[:, None] * taps + torch.arange(taps)
