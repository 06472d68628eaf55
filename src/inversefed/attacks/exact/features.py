"""Images whose features are known.

Without pooling, by L-BFGS with strong Wolfe line search: with more features than pixels it converges to the solution.

    x = argmin |f(x) - a|^2 / |a|^2

Kinks, of max pooling above all, stall a line search. There the search goes through Fourier coefficients and colors
(`parametrizations.Spectral`), by the absolute error, with noise on the image that fades and total variation that fades.

    x = argmin |f(x + noise) - a|_1 / |a|_1 + weight TV(x)
"""

import copy
import math
import time
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from inversefed.attacks.exact.watch import Watch
from inversefed.attacks.optimizers import NormalizedMomentum
from inversefed.attacks.parametrizations import Spectral
from inversefed.fl.chain import Layer, run

__all__ = ["invert_features", "search_features", "shallow"]

_CHUNK = 10
_RATE, _NOISE, _SMOOTH = 1.5, 0.15, 1e-2
_CALM, _ROUGH = 0.5, 0.7
"""The parts of the search after which noise and total variation are gone."""


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
    x = start.detach().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [x], max_iter=_CHUNK, max_eval=_CHUNK, history_size=50, tolerance_grad=0,
        tolerance_change=max(1e-26, 1e-2 * eps**2),
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        loss = (function(x) - features).square().sum() / scale
        (x.grad,) = torch.autograd.grad(loss, x)
        return loss.detach()

    used, losses = 0, list[float]()
    while used < evaluations and not watch.stop():
        loss = float(optimizer.step(closure))  # type: ignore[no-untyped-call]
        losses.append(loss)
        before, used = used, optimizer.state[x]["func_evals"]
        if watch(loss, shown(x.detach())) or used - before < _CHUNK:  # it ended by its own criterion
            break
        if patience is not None and len(losses) > patience and loss > 0.99 * losses[-1 - patience]:
            break
    return x.detach()


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
        The image, `[c, h, w]`, and the last relative error.
    """
    features, spectral, noise = features.float(), Spectral(), Generator().manual_seed(seed)
    scale = features.abs().sum()
    variables = (grain * torch.randn((1, *image_shape), generator=noise)).requires_grad_()
    stepper = NormalizedMomentum(_RATE).build([variables])
    began, left, share, error = time.monotonic(), watch.left(), 0.0, math.inf

    def closure() -> float:
        image = spectral(variables)
        disturbed = image + _NOISE * max(0.0, 1 - share / _CALM) * torch.randn(image.shape, generator=noise)
        loss = (function(disturbed) - features).abs().sum() / scale
        total = loss + _SMOOTH * max(0.0, 1 - share / _ROUGH) * _variation(image)
        (variables.grad,) = torch.autograd.grad(total, variables)
        return loss.item()

    for number in range(rounds):
        share = min(1.0, max(number / rounds, (time.monotonic() - began) / left))
        stepper.param_groups[0]["lr"] = _RATE * (1 + math.cos(math.pi * share)) / 2
        error = stepper.step(closure)
        if watch(error, shown(spectral(variables).detach())) or share >= 1:
            break
    return spectral(variables).detach()[0], error


def _variation(image: Tensor) -> Tensor:
    down, across = image.diff(dim=-2).abs().mean(), image.diff(dim=-1).abs().mean()
    return down + across


def shallow(layers: tuple[Layer, ...], dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Some layers as a function of images, in a number format."""
    cast = _cast(layers, dtype)
    return lambda images: run(cast, images)


def _cast(layers: tuple[Layer, ...], dtype: torch.dtype) -> tuple[Layer, ...]:
    return tuple(Layer(part.name, copy.deepcopy(part.module).to(dtype), part.shape) for part in layers)
