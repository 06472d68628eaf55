"""Feature inversion: the images whose features at a layer are known.

Without pooling, by L-BFGS with strong Wolfe line search: with more features than pixels it converges to the solution.

    x = argmin |f(x) - a|^2 / |a|^2

Where some pixels hardly show in the features, it slows down long before their rounding is reached. Gauss-Newton steps
end it, each a linear least-squares problem that LSMR solves (Fong and Saunders 2011, arXiv:1006.0758) from products
with the Jacobian J, which is never formed.

    x <- x + argmin_d |J d - (a - f(x))|^2

Kinks, of max pooling above all, stall a line search. There the search goes through Fourier coefficients and colors
(`parametrizations.Spectral`), by the absolute error, with noise on the image that fades and total variation that fades.

    x = argmin |f(x + noise) - a|_1 / |a|_1 + weight TV(x)
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import scipy
import torch
from torch import Generator, Tensor

from inversefed.attacks.exact.watch import Stopped, Watch
from inversefed.attacks.pieces.optimizers import NormalizedMomentum
from inversefed.attacks.pieces.parametrizations import Spectral
from inversefed.attacks.search.minimize import Conditions, Descent, Evaluated, Variables, advance, differentiate
from inversefed.networks.layer_chain import Layer, run

__all__ = ["invert_features", "search_features", "shallow", "solve_features"]


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        chunk: evaluations of L-BFGS between two looks at the clock and the watch.
        history: pairs that L-BFGS remembers.
        change: share of the squared rounding by which a step must lower the loss.
        least_change: likewise at least, about the squared rounding of double precision.
        gained: share of an earlier loss above which patience ends.
        steps: Gauss-Newton steps.
        products: LSMR's iterations in each.
        solved: relative residual at which those end.
        gain: share of the error above which a step is the last.
        rate: step length behind kinks, as `recipes.spectral` has it.
        noise: standard deviation of the noise on the image there, likewise.
        smooth: weight of total variation there, likewise.
        calm: part of the search after which noise is gone.
        rough: part of the search after which total variation is gone.
    """

    chunk: int = 10
    history: int = 50
    change: float = 1e-2
    least_change: float = 1e-26
    gained: float = 0.99
    steps: int = 16
    products: int = 100
    solved: float = 1e-9
    gain: float = 0.8
    rate: float = 1.5
    noise: float = 0.15
    smooth: float = 1e-2
    calm: float = 0.5
    rough: float = 0.7


TOLERANCES = Tolerances()


def invert_features(
    function: Callable[[Tensor], Tensor],
    features: Tensor,
    start: Tensor,
    eps: float,
    evaluations: int,
    watch: Watch,
    patience: int | None = None,
    shown: Callable[[Tensor], Tensor] = lambda images: images,
) -> Tensor:
    """Find the normalized images whose features are these.

    Args:
        function: takes images to their features.
        features: what comes out of it.
        start: first images, `[n, c, h, w]`, in the number format that the function computes in.
        eps: rounding of the features; the search ends when a step gains less than it could.
        evaluations: most evaluations.
        watch: shown the images from time to time.
        patience: rounds after which it ends if they gained less than a share of 1e-2; a local minimum, most likely.
        shown: from the images that are being found to what the watch is shown.
    """
    features, scale = features.to(start.dtype), features.square().sum().to(start.dtype)
    x = start.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x], max_iter=TOLERANCES.chunk, max_eval=TOLERANCES.chunk, history_size=TOLERANCES.history, tolerance_grad=0,
        tolerance_change=max(TOLERANCES.least_change, TOLERANCES.change * eps**2),
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    nearest, least = start.detach(), math.inf

    def closure() -> Tensor:
        nonlocal nearest, least
        watch.go_on()  # one round may take minutes where pictures are large
        loss = (function(x) - features).square().sum() / scale
        x.grad = torch.autograd.grad(loss, x)[0].contiguous()  # L-BFGS wants it flat, and channels_last is not
        value = loss.detach()
        if float(value) < least:
            nearest, least = x.detach().clone(), float(value)
        return value

    used, losses = 0, list[float]()
    while used < evaluations and not watch.stop():
        try:
            loss = float(optimizer.step(closure))  # type: ignore[no-untyped-call]
        except Stopped:  # in the middle of a line search, whose last point is as good as any
            return nearest
        losses.append(loss)
        before, used = used, optimizer.state[x]["func_evals"]
        if watch(loss, shown(x.detach())) or used - before < TOLERANCES.chunk:  # it ended by its own criterion
            break
        if patience is not None and len(losses) > patience and loss > TOLERANCES.gained * losses[-1 - patience]:
            break
    return x.detach()


def solve_features(
    function: Callable[[Tensor], Tensor],
    features: Tensor,
    start: Tensor,
    eps: float,
    watch: Watch,
    shown: Callable[[Tensor], Tensor] = lambda images: images,
) -> Tensor:
    """End the search for the normalized images whose features are these, from near enough that few kinks are crossed.

    Args:
        function: takes images to their features, in double precision.
        features: what comes out of it.
        start: first images, `[n, c, h, w]`.
        eps: rounding of the features, at which it ends.
        watch: shown the images after each step.
        shown: from the images that are being found to what the watch is shown.
    """
    size, image, error = float(features.norm()), start, _missed(function, features, start)
    for _ in range(TOLERANCES.steps):
        if error <= eps * size:
            break
        try:
            nearer = image + _gauss_newton(function, features, image, watch)
        except Stopped:
            break
        before, error = error, _missed(function, features, nearer)
        if not error < before:
            break
        image = nearer
        if watch((error / size) ** 2, shown(image)) or error > TOLERANCES.gain * before:
            break
    return image


def _missed(function: Callable[[Tensor], Tensor], features: Tensor, image: Tensor) -> float:
    with torch.no_grad():
        return float((function(image) - features).norm())


def _gauss_newton(function: Callable[[Tensor], Tensor], features: Tensor, image: Tensor, watch: Watch) -> Tensor:
    """The step from an image, of its shape.

    Raises:
        Stopped: the time is used up.
    """
    image = image.detach().requires_grad_()
    reached = function(image)
    weights = torch.zeros_like(reached, requires_grad=True)
    (pulled,) = torch.autograd.grad(reached, image, weights, create_graph=True)  # J^T weights, so its gradient gives J

    def apply(step: Any) -> Any:
        watch.go_on()
        (row,) = torch.autograd.grad(
            pulled, weights, torch.from_numpy(step).to(image).reshape(image.shape), retain_graph=True
        )
        return row.flatten().cpu().numpy()

    def transposed(row: Any) -> Any:
        (step,) = torch.autograd.grad(
            reached, image, torch.from_numpy(row).to(image).reshape(reached.shape), retain_graph=True
        )
        return step.flatten().cpu().numpy()

    operator = scipy.sparse.linalg.LinearOperator(
        (reached.numel(), image.numel()), matvec=apply, rmatvec=transposed, dtype=np.float64
    )
    missing = (features - reached).detach().flatten().cpu().numpy()
    step: Tensor = torch.from_numpy(
        scipy.sparse.linalg.lsmr(
            operator, missing, atol=TOLERANCES.solved, btol=TOLERANCES.solved, conlim=0, maxiter=TOLERANCES.products
        )[0]
    )
    return step.to(image).reshape(image.shape)


def search_features(
    function: Callable[[Tensor], Tensor],
    features: Tensor,
    image_shape: tuple[int, int, int],
    rounds: int,
    watch: Watch,
    grain: float = 0.0,
    seed: int = 0,
    shown: Callable[[Tensor], Tensor] = lambda images: images,
) -> tuple[Tensor, float]:
    """Find a normalized image whose features behind kinks are these, in single precision.

    Args:
        function: takes images to their features.
        features: what comes out of it, `[1, ..]`.
        image_shape: `(c, h, w)`.
        rounds: how many steps; with less time than they take, the schedule runs by the clock.
        watch: asked after each step.
        grain: standard deviation of the noise in the coefficients that it starts from.
        seed: of that noise and of the one on the image.
        shown: from the image that is being found to what the watch is shown.

    Returns:
        The image, `[c, h, w]`, and the last relative error; infinite where numbers were lost on the way.
    """
    spectral, random = Spectral(), Generator().manual_seed(seed)
    start = {"images": grain * torch.randn((1, *image_shape), generator=random)}
    pace = _Pace(rounds, time.monotonic(), watch.left())
    search = _FeatureSearch(function, features.float(), spectral, pace, watch, shown)
    descent = Descent(0, start, NormalizedMomentum(TOLERANCES.rate), random)
    advance([descent], search, search, rounds, search)
    error = descent.history[-1] if descent.history and descent.status is None else math.inf
    return spectral(descent.last["images"])[0], error


@dataclass(frozen=True)
class _Pace:
    """How far a search is: by its rounds, or by the clock where there is less time than they take.

    Args:
        rounds: how many steps there are.
        began: when it began, by `time.monotonic`.
        left: seconds that there were then.
    """

    rounds: int
    began: float
    left: float

    def share(self, iteration: int) -> float:
        """Of the whole search, from 0 to 1."""
        return min(1.0, max(iteration / self.rounds, (time.monotonic() - self.began) / self.left))


@dataclass(frozen=True, eq=False)
class _FeatureSearch:
    """What `search_features` minimizes, how it steps, and who looks on: goal, course and watcher of the one loop."""

    function: Callable[[Tensor], Tensor]
    features: Tensor = field(repr=False)
    spectral: Spectral
    pace: _Pace
    watch: Watch
    shown: Callable[[Tensor], Tensor]

    @cached_property
    def scale(self) -> Tensor:
        """What the absolute error is relative to."""
        return self.features.abs().sum()

    def conditions(self, running: Sequence[Descent], iteration: int) -> Sequence[Conditions]:
        """Noise on the image and the weight of its total variation, which both fade."""
        share = self.pace.share(iteration)
        std, weight = (
            TOLERANCES.noise * max(0.0, 1 - share / TOLERANCES.calm),
            TOLERANCES.smooth * max(0.0, 1 - share / TOLERANCES.rough),
        )
        found = list[Conditions]()
        for descent in running:
            images = descent.variables["images"]
            noise = std * torch.randn(images.shape, generator=descent.generator)
            found.append((noise, images.new_tensor(weight)))
        return found

    def __call__(
        self, points: Sequence[Variables], conditions: Sequence[Conditions], iteration: int
    ) -> Sequence[Evaluated]:
        """The relative absolute error, with the gradient of the total variation beside its own."""
        return [
            differentiate(partial(self._loss, given), point) for point, given in zip(points, conditions, strict=True)
        ]

    def _loss(self, given: Conditions, variables: Variables) -> Tensor:
        noise, weight = given
        assert noise is not None and weight is not None
        image = self.spectral(variables["images"])
        error = (self.function(image + noise) - self.features).abs().sum() / self.scale
        smooth = weight * _variation(image)
        return error + (smooth - smooth.detach())

    jitter: ClassVar[float] = 0.0

    def lr(self, iteration: int) -> float:
        """Along half a cosine, from the whole rate to none."""
        return TOLERANCES.rate * (1 + math.cos(math.pi * self.pace.share(iteration))) / 2

    def left(self, iteration: int) -> float:
        """The share that is left."""
        return 1 - self.pace.share(iteration)

    def project(self, images: Tensor, done: int) -> Tensor:
        """Coefficients are as they are."""
        return images

    def converged(self, history: Sequence[float]) -> bool:
        """`False`: what it sees is noisy."""
        return False

    def over(self) -> bool:
        """`False`: a step is one evaluation."""
        return False

    def seen(self, group: Sequence[Descent]) -> bool:
        """Show the image and its error; whether to stop."""
        (descent,) = group
        if descent.status is not None:
            return True
        images = self.shown(self.spectral(descent.variables["images"]).detach())
        return self.watch(descent.history[-1], images) or self.pace.share(len(descent.history) - 1) >= 1


def _variation(image: Tensor) -> Tensor:
    down, across = image.diff(dim=-2).abs().mean(), image.diff(dim=-1).abs().mean()
    return down + across


def shallow(layers: tuple[Layer, ...], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Some layers as a function of images, in a number format."""
    cast = _cast(layers, dtype)
    return lambda images: run(cast, images)


def _cast(layers: tuple[Layer, ...], dtype: torch.dtype) -> tuple[Layer, ...]:
    return tuple(Layer(part.name, copy.deepcopy(part.module).to(dtype), part.shape, part.trained) for part in layers)
