"""Feature inversion: the images whose features at a layer are known.

Without pooling, by L-BFGS with strong Wolfe line search: with more features than pixels it converges to the solution.

    x = argmin |f(x) - a|^2 / |a|^2

Where some pixels hardly show in the features, it slows down long before their rounding is reached. Gauss-Newton steps
end it, each a linear least-squares problem that LSMR solves (Fong and Saunders 2011, arXiv:1006.0758) from products
with the Jacobian J.

    x <- x + argmin_d |J d - (a - f(x))|^2

Behind trained layers J is so badly conditioned that a thousand products do not solve it. So J is formed once, in single
precision, and of some of its rows the Cholesky factor R of their normal equations: with d = R^-1 e a few dozen do.

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

from inversefed.attacks.exact.peel.conv_least_squares import cholesky
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
        slow: share of the error above which a step, which no factor conditions, shows that one is needed.
        rounded: relative error, in roundings, below which it does not: features are no better known.
        unknowns: most numbers of an image for which the Jacobian is formed.
        rows: of it, times the numbers of the image, whose factor conditions those iterations.
        columns: of it that are formed at once.
        solved: relative residual at which those end.
        shortest: share of a step that it is cut down to, at least, where more of it does not lower the error.
        gain: share of the error above which a step is the last, unless it is conditioned and far from rounding.
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
    slow: float = 0.5
    rounded: float = 100.0
    unknowns: int = 4096
    rows: float = 3.0
    columns: int = 32
    solved: float = 1e-9
    shortest: float = 0.1
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
    single: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """End the search for the normalized images whose features are these, from near enough that few kinks are crossed.

    Args:
        function: takes images to their features, in double precision.
        features: what comes out of it.
        start: first images, `[n, c, h, w]`.
        eps: rounding of the features, at which it ends.
        watch: shown the images after each step.
        shown: from the images that are being found to what the watch is shown.
        single: the same function in single precision, for the factor of an image that is small enough.
    """
    size, image, error = float(features.norm()), start, _missed(function, features, start)
    factor = None
    for _ in range(TOLERANCES.steps):
        if error <= eps * size:
            break
        try:
            nearer, missed = _stepped(function, features, image, error, watch, factor)
            slow = missed > TOLERANCES.slow * error and missed > TOLERANCES.rounded * eps * size
            if slow and factor is None and single is not None and image.numel() <= TOLERANCES.unknowns:
                factor = _factor(single, image.float(), watch)
                nearer, missed = _stepped(function, features, image, error, watch, factor)
        except Stopped:
            break
        if not missed < error:
            break
        before, image, error = error, nearer, missed
        going = factor is not None and error > TOLERANCES.rounded * eps * size  # through kinks, however slowly
        if watch((error / size) ** 2, shown(image)) or (error > TOLERANCES.gain * before and not going):
            break
    return image


def _stepped(
    function: Callable[[Tensor], Tensor],
    features: Tensor,
    image: Tensor,
    error: float,
    watch: Watch,
    factor: Tensor | None,
) -> tuple[Tensor, float]:
    """A Gauss-Newton step from an image, or as much of it as lowers the error, and the error then.

    Raises:
        Stopped: the time is used up.
    """
    step, share = _gauss_newton(function, features, image, watch, factor), 1.0
    while not (missed := _missed(function, features, image + share * step)) < error and share > TOLERANCES.shortest:
        share /= 2  # beyond the kinks that it crosses the step is not the best one
    return image + share * step, missed


def _missed(function: Callable[[Tensor], Tensor], features: Tensor, image: Tensor) -> float:
    with torch.no_grad():
        return float((function(image) - features).norm())


def _factor(function: Callable[[Tensor], Tensor], image: Tensor, watch: Watch) -> Tensor:
    """The Cholesky factor of the normal equations of some rows of the Jacobian at an image, lower, in double precision.

    Raises:
        Stopped: the time is used up.
    """
    unknowns, several = image.numel(), TOLERANCES.columns
    reached, pulled, weights = _linearized(function, image.repeat(several, 1, 1, 1).requires_grad_())
    few = min(reached[0].numel(), int(TOLERANCES.rows * unknowns))
    rows = torch.randperm(reached[0].numel(), generator=Generator().manual_seed(0))[:few].to(image.device)
    columns = list[Tensor]()
    for first in range(0, unknowns, several):
        watch.go_on()
        directions = torch.zeros(several, unknowns, device=image.device)
        directions[:, first:].fill_diagonal_(1.0)
        (pushed,) = torch.autograd.grad(pulled, weights, directions.reshape(pulled.shape), retain_graph=True)
        columns.append(pushed.flatten(1)[:, rows])
    jacobian = torch.cat(columns)[:unknowns]
    return cholesky(jacobian @ jacobian.T * (reached[0].numel() / few)).double()


def _linearized(function: Callable[[Tensor], Tensor], images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The features of images that need a gradient, and `J^T weights` with the weights, which are zero.

    Its gradient in them gives products with J.
    """
    reached = function(images)
    weights = torch.zeros_like(reached, requires_grad=True)
    (pulled,) = torch.autograd.grad(reached, images, weights, create_graph=True)
    return reached, pulled, weights


def _gauss_newton(
    function: Callable[[Tensor], Tensor], features: Tensor, image: Tensor, watch: Watch, factor: Tensor | None
) -> Tensor:
    """The step from an image, of its shape.

    Raises:
        Stopped: the time is used up.
    """
    image = image.detach().requires_grad_()
    reached, pulled, weights = _linearized(function, image)

    def solved(step: Tensor, transposed: bool) -> Tensor:
        if factor is None:
            return step
        triangle = factor if transposed else factor.T
        solution: Tensor = torch.linalg.solve_triangular(triangle, step.flatten()[:, None], upper=not transposed)
        return solution

    def apply(step: Any) -> Any:
        watch.go_on()
        along = solved(torch.from_numpy(step).to(image), transposed=False).reshape(image.shape)
        return torch.autograd.grad(pulled, weights, along, retain_graph=True)[0].flatten().cpu().numpy()

    def transposed(row: Any) -> Any:
        wanted = torch.from_numpy(row).to(image).reshape(reached.shape)
        (step,) = torch.autograd.grad(reached, image, wanted, retain_graph=True)
        return solved(step, transposed=True).flatten().cpu().numpy()

    operator = scipy.sparse.linalg.LinearOperator(
        (reached.numel(), image.numel()), matvec=apply, rmatvec=transposed, dtype=np.float64
    )
    missing = (features - reached).detach().flatten().cpu().numpy()
    step: Tensor = torch.from_numpy(
        scipy.sparse.linalg.lsmr(
            operator, missing, atol=TOLERANCES.solved, btol=TOLERANCES.solved, conlim=0, maxiter=TOLERANCES.products
        )[0]
    )
    return solved(step.to(image), transposed=False).reshape(image.shape)


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
