"""The images of a batch from features known at one or several layers of the network.

    x = argmin sum_k |f_k(x) - a_k|^2 / |a_k|^2

L-BFGS from a little noise finds it where the layers are wide, and Gauss-Newton steps end it. Where they are narrow,
L-BFGS ends in a local minimum, and a search by the absolute error (see `feature_inversion`), from one start after
another, comes near enough for both: a small error tells, since there are more features than pixels.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from inversefed.attacks.exact.peel.feature_inversion import invert_features, search_features, solve_features
from inversefed.attacks.exact.watch import Watch
from inversefed.networks.layer_chain import Layer, run
from inversefed.thresholds import FOUND

__all__ = ["Known", "invert_each"]


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        grain: noise in the coefficients that searches start from.
        rounds: steps of each of those searches.
        speck: noise that the first image starts from: where all is off nothing tells a way.
        near: the relative error from which a search came near.
        ended: searches that came near and were no image, or that are all far, after which there are no more.
        hopeless: times `near` that all of them must be off for that.
        tried: evaluations after which L-BFGS is given up ..
        promising: .. where the relative squared error is not that small.
        patience: rounds without gain that end it later.
        aside: share of half the range up to which zero is near enough to the middle.
        tiny: near the least number of double precision: features that are all zero are divided by it.
    """

    grain: float = 0.5
    rounds: int = 250
    speck: float = 0.1
    near: float = 0.035
    ended: int = 4
    hopeless: float = 2.0
    tried: int = 250
    promising: float = 5e-3
    patience: int = 20
    aside: float = 0.5
    tiny: float = 1e-300


TOLERANCES = Tolerances()


@dataclass(frozen=True, eq=False)
class Known:
    """What is known at one depth.

    Args:
        layers: those in front of it, which keep examples apart.
        values: what comes out of them, `[n, ..]`.
        clipped: negative numbers come out as zeros.
        channels: of which channels it is known, `[c]`; of all by default.
    """

    layers: tuple[Layer, ...]
    values: Tensor = field(repr=False)
    clipped: bool = False
    channels: Tensor | None = field(default=None, repr=False)

    def read(self, outputs: Tensor) -> Tensor:
        """Of what comes out of the layers, or of the values, the numbers that are known, `[n, ..]`."""
        outputs = outputs if self.channels is None else outputs[:, self.channels]
        return (outputs.relu() if self.clipped else outputs).flatten(1)


def invert_each(
    known: Sequence[Known],
    bounds: tuple[Tensor, Tensor],
    image_shape: tuple[int, int, int],
    eps: float,
    evaluations: int,
    watch: Watch,
    starts: int,
) -> Tensor:
    """Find, one by one, the normalized images, `[n, c, h, w]` in double precision.

    Each is looked for in single precision where what is known is no better, and finished in double. Where one cannot be
    found, no more than one start is spent on each of those behind it.

    Args:
        known: at each depth, of all examples.
        bounds: the least and the greatest value of the normalized image, broadcastable to it.
        image_shape: `(c, h, w)`.
        eps: rounding of what is known.
        evaluations: most evaluations of a start.
        watch: shown the images from time to time.
        starts: most searches that a local minimum leads to.
    """
    number = len(known[0].values)
    middle, scale = _units(bounds)
    found, starts = middle.expand(number, *image_shape).clone(), 1 + starts
    one = _One(known, middle, scale, image_shape, eps, evaluations, watch)
    for place in range(number):

        def shown(images: Tensor, place: int = place) -> Tensor:
            return torch.cat([found[:place], middle + scale * images.double(), found[place + 1 :]])

        image, misfit = one(place, starts, shown)
        found[place] = middle + scale * image
        starts = starts if misfit < FOUND else 1
    return found


def _units(bounds: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Where searches start, and the unit of their steps: zero and one, as it fits normalized pixels.

    Pixels that are not normalized have zero at the end of their range. There it is its middle and a quarter of it.
    """
    middle, half = (bounds[0] + bounds[1]) / 2, (bounds[1] - bounds[0]) / 2
    if bool((middle.abs() > TOLERANCES.aside * half).any()):
        return middle, half / 2
    return torch.zeros_like(middle), torch.ones_like(middle)


class _One:
    """Looks for one image after another behind the same layers, in units of `scale` from `middle`."""

    def __init__(
        self,
        known: Sequence[Known],
        middle: Tensor,
        scale: Tensor,
        image_shape: tuple[int, int, int],
        eps: float,
        evaluations: int,
        watch: Watch,
    ) -> None:
        coarse = torch.float64 if eps < torch.finfo(torch.float32).eps else torch.float32
        self.rough, self.fine = (_together(known, middle, scale, dtype) for dtype in (coarse, torch.float64))
        self.single = self.rough if coarse is torch.float32 else _together(known, middle, scale, torch.float32)
        values = [each.read(each.values.double()) for each in known]
        sizes = [each.norm(dim=1, keepdim=True).clamp(min=TOLERANCES.tiny) for each in values]
        self.sizes = torch.cat(sizes, dim=1)
        self.values = [each / size for each, size in zip(values, sizes, strict=True)]
        self.shape, self.eps, self.evaluations, self.watch, self.coarse = image_shape, eps, evaluations, watch, coarse

    def __call__(self, place: int, starts: int, shown: Callable[[Tensor], Tensor]) -> tuple[Tensor, float]:
        """The image, `[c, h, w]`, and its relative squared error."""
        values, sizes = torch.cat([each[place] for each in self.values])[None], self.sizes[place]
        noise, errors = Generator().manual_seed(place), list[float]()
        best, least = torch.zeros(1, *self.shape, dtype=torch.float64), math.inf
        for number in range(starts):
            start, near = TOLERANCES.speck * torch.randn((1, *self.shape), generator=noise), 0.0
            if number:
                searched = (self.shape, TOLERANCES.rounds, self.watch, TOLERANCES.grain, number, shown)
                start, near = search_features(self.single(sizes), values, *searched)
                errors.append(near)
            image = start.reshape(1, *self.shape).to(self.coarse)
            if near < TOLERANCES.near:
                image = self._inverted(self.rough(sizes), values, image, shown)
            misfit = _off(self.fine(sizes), image.double(), values)
            best, least = (image.double(), misfit) if misfit < least else (best, least)
            if least < FOUND or self.watch.stop() or _in_vain(errors):
                break
        if least < TOLERANCES.near**2:
            best = solve_features(self.fine(sizes), values, best, self.eps, self.watch, shown, self.single(sizes))
            least = _off(self.fine(sizes), best, values)
        return best[0], least

    def _inverted(
        self, function: Callable[[Tensor], Tensor], values: Tensor, start: Tensor, shown: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """By L-BFGS, which is given up early where it leads nowhere."""
        image = invert_features(
            function, values, start, self.eps, TOLERANCES.tried, self.watch, TOLERANCES.patience, shown
        )
        if _off(function, image, values) > TOLERANCES.promising:
            return image
        return invert_features(
            function, values, image, self.eps, self.evaluations, self.watch, TOLERANCES.patience, shown
        )


def _off(function: Callable[[Tensor], Tensor], image: Tensor, values: Tensor) -> float:
    """The relative squared error."""
    return float((function(image) - values).square().sum() / values.square().sum())


def _in_vain(errors: Sequence[float]) -> bool:
    """Whether searches with these relative errors leave no hope for the next: none came near, or enough did."""
    near = [error for error in errors if error < TOLERANCES.near]
    return len(near) >= TOLERANCES.ended or (
        len(errors) >= TOLERANCES.ended and min(errors) > TOLERANCES.hopeless * TOLERANCES.near
    )


def _together(
    known: Sequence[Known], middle: Tensor, scale: Tensor, dtype: torch.dtype
) -> Callable[[Tensor], Callable[[Tensor], Tensor]]:
    """Given the sizes of what is known at each depth, images to all of it in one row, of about unit size each."""
    shared = 0
    while all(len(each.layers) > shared and each.layers[shared] is known[0].layers[shared] for each in known):
        shared += 1
    cast = copy.deepcopy([known[0].layers[:shared], *[each.layers[shared:] for each in known]])
    for layer in (layer for part in cast for layer in part):
        layer.module.to(dtype)

    def of(sizes: Tensor) -> Callable[[Tensor], Tensor]:
        def features(images: Tensor) -> Tensor:
            start, rows = run(cast[0], middle.to(images) + scale.to(images) * images), []
            for layers, each, size in zip(cast[1:], known, sizes, strict=True):
                row = each.read(run(layers, start))
                rows.append(row / size.to(row))
            return torch.cat(rows, dim=1)

        return features

    return of
