"""Parametrizations, what is searched instead of pixels: (search variable) -> network inputs.

    x = C irfft2( rfft2(z) / max(s f, 1) )

Pictures have most of their power in low frequencies and in brightness. A search in Fourier coefficients that are
scaled by the inverse frequency, and in decorrelated colors, makes steps of equal length move a picture as pictures
differ (Olah, Mordvintsev and Schubert 2017, "Feature Visualization", use the same preconditioner).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Generator, Tensor

from inversefed.errors import ConfigError
from inversefed.fl.network import Network

__all__ = ["InRange", "OneColor", "Pixels", "SpansRange", "Spectral"]

_TAIL = 0.005
"""Share of the pixels that may be darker than the dark end, and of those brighter than the bright one."""

Parametrization: TypeAlias = Callable[[Tensor], Tensor]
"""(search variable) -> network inputs `[n, c, h, w]`, in normalized space."""


@runtime_checkable
class MadeForNetwork(Protocol):
    """A parametrization that has to know the network whose inputs it makes."""

    def bound(self, network: Network) -> Parametrization:
        """The same for this network's inputs."""
        ...


@runtime_checkable
class OwnStart(Protocol):
    """A parametrization that draws its own variables: they are no pictures, and the attack's starts are not used."""

    def start(self, images: Tensor, generator: Generator) -> Tensor:
        """Fresh variables for so many pictures."""
        ...


def bound_to(parametrization: Parametrization, network: Network) -> Parametrization:
    """A parametrization for the inputs of this network."""
    return parametrization.bound(network) if isinstance(parametrization, MadeForNetwork) else parametrization


def started(parametrization: Parametrization, images: Tensor, generator: Generator) -> Tensor:
    """Its variables at the start: those that it draws itself, or these pictures, in normalized space."""
    return parametrization.start(images, generator) if isinstance(parametrization, OwnStart) else images


@dataclass(frozen=True)
class Pixels:
    """The network's normalized inputs themselves, as in the paper."""

    def __call__(self, variables: Tensor) -> Tensor:
        """Nothing changes."""
        return variables


@dataclass(frozen=True)
class OneColor:
    """One color an example: the mean of the variables of each channel."""

    def __call__(self, variables: Tensor) -> Tensor:
        """From `[n, c, h, w]` to network inputs of the same shape."""
        return variables.mean(dim=(-2, -1), keepdim=True).expand_as(variables)


@dataclass(frozen=True)
class Spectral:
    """Fourier coefficients scaled by the inverse frequency, in brightness and two color differences.

    Args:
        colors: how far a unit step moves brightness, red against blue, and green against both; for three channels.
    """

    colors: tuple[float, float, float] = (1.6, 0.5, 0.3)

    def __call__(self, variables: Tensor) -> Tensor:
        """From `[n, c, h, w]` to network inputs of the same shape."""
        height, width = variables.shape[-2:]
        down = torch.fft.fftfreq(height, device=variables.device)[:, None]
        across = torch.fft.rfftfreq(width, device=variables.device)[None, :]
        wide = torch.promote_types(variables.dtype, torch.float32)  # there is no transform of 16-bit numbers
        scale = (max(height, width) * (down.square() + across.square()).sqrt()).clamp(min=1.0).to(wide)
        spectrum = torch.fft.rfft2(variables.to(wide)) / scale
        inputs: Tensor = torch.fft.irfft2(spectrum, s=(height, width)).to(variables.dtype)
        if variables.shape[1] != 3:
            return inputs * self.colors[0]
        return torch.einsum("dc,nchw->ndhw", self._matrix(variables), inputs)

    def _matrix(self, like: Tensor) -> Tensor:
        axes = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], dtype=like.dtype, device=like.device)
        axes = axes / axes.norm(dim=1, keepdim=True)
        matrix: Tensor = axes.T @ torch.diag(axes.new_tensor(self.colors)) @ axes
        return matrix


@dataclass(frozen=True)
class InRange:
    """Inputs whose pixels stay within their range, by a smooth bound: `m + h tanh((x - m) / h)`.

    A network that normalizes its features tells little of a picture's contrast and brightness, and a search without
    bounds ends far outside the range of pixels. `m` and `h` are the middle and half the width of each channel's range,
    in normalized space.

    Args:
        inner: what is bounded.
    """

    inner: Parametrization = Spectral()

    def __call__(self, variables: Tensor) -> Tensor:
        """Refused: the range is the network's; see `bound`."""
        raise ConfigError("InRange bounds pictures for a network: use InRange().bound(network)")

    def bound(self, network: Network) -> "Bounded":
        """The same for this network's inputs."""
        low, high = (network.normalize(end.expand(network.image_shape)[None]) for end in (network.low, network.high))
        return Bounded(self.inner, (low + high) / 2, (high - low) / 2)


@dataclass(frozen=True, eq=False)
class Bounded:
    """Inputs that are bounded smoothly.

    Args:
        inner: what is bounded.
        middle: of the range, `[1, c, h, w]`, in normalized space.
        half: half its width, likewise.
    """

    inner: Parametrization
    middle: Tensor = field(repr=False)
    half: Tensor = field(repr=False)

    def __call__(self, variables: Tensor) -> Tensor:
        """From `[n, c, h, w]` to network inputs of the same shape."""
        return self.middle + self.half * torch.tanh((self.inner(variables) - self.middle) / self.half)


@dataclass(frozen=True)
class SpansRange:
    """Inputs whose pixels span a range, and whose channels have one mean over the batch, in normalized space.

    A first convolution followed by BatchNorm in train mode gives the same outputs, and the same gradient, for inputs of
    any contrast, and but for its padding of any brightness of a channel: both are free. Pictures of a batch use most of
    their range, so its darkest and brightest pixels, but for half a per cent of each, are put there. A start of zeros
    has no contrast; use another.

    Args:
        inner: what is spread out.
        low: where the dark end is put, as a share of the range.
        high: where the bright end is put. Both are the means of batches of four CIFAR-10 pictures.
    """

    inner: Parametrization = Spectral()
    low: float = 0.02
    high: float = 0.95

    def __call__(self, variables: Tensor) -> Tensor:
        """Refused: the range is the network's; see `bound`."""
        raise ConfigError("SpansRange spreads pictures for a network: use SpansRange().bound(network)")

    def bound(self, network: Network) -> "Spread":
        """The same for this network's inputs."""
        shares = torch.tensor([self.low, self.high], dtype=network.dtype, device=network.device).view(2, 1, 1, 1)
        ends = network.normalize(network.low + shares * (network.high - network.low)).mean(dim=(1, 2, 3))
        return Spread(self.inner, float(ends[0]), float(ends[1]))


@dataclass(frozen=True)
class Spread:
    """Inputs whose darkest and brightest pixels are at two given numbers, in normalized space.

    Args:
        inner: what is spread out.
        low: where the dark end is put.
        high: where the bright end is put.
    """

    inner: Parametrization
    low: float
    high: float

    def __call__(self, variables: Tensor) -> Tensor:
        """From `[n, c, h, w]` to network inputs of the same shape."""
        inputs = self.inner(variables)
        inputs = inputs - inputs.mean(dim=(0, 2, 3), keepdim=True)
        dark, bright = torch.quantile(inputs.flatten(), inputs.new_tensor([_TAIL, 1 - _TAIL]))
        spread = (bright - dark).clamp(min=torch.finfo(inputs.dtype).tiny)
        spanning: Tensor = (inputs - dark) * ((self.high - self.low) / spread) + self.low
        return spanning
