"""What is searched instead of pixels: (search variable) -> network inputs.

    x = C irfft2( rfft2(z) / max(s f, 1) )

Pictures have most of their power in low frequencies and in brightness. A search in Fourier coefficients that are
scaled by the inverse frequency, and in decorrelated colors, makes steps of equal length move a picture as pictures
differ (Olah, Mordvintsev and Schubert 2017, "Feature Visualization", use the same preconditioner).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Pixels", "Spectral", "Standardized"]


@dataclass(frozen=True)
class Pixels:
    """The network's normalized inputs themselves, as in the paper."""

    def __call__(self, variables: Tensor) -> Tensor:
        """Nothing changes."""
        return variables


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
        scale = (max(height, width) * (down.square() + across.square()).sqrt()).clamp(min=1.0).to(variables.dtype)
        inputs: Tensor = torch.fft.irfft2(torch.fft.rfft2(variables) / scale, s=(height, width))
        if variables.shape[1] != 3:
            return inputs * self.colors[0]
        return torch.einsum("dc,nchw->ndhw", self._matrix(variables), inputs)

    def _matrix(self, like: Tensor) -> Tensor:
        axes = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, -1.0], [1.0, -2.0, 1.0]], dtype=like.dtype, device=like.device)
        axes = axes / axes.norm(dim=1, keepdim=True)
        matrix: Tensor = axes.T @ torch.diag(axes.new_tensor(self.colors)) @ axes
        return matrix


@dataclass(frozen=True)
class Standardized:
    """Inputs whose channels have mean 0 over the batch, and whose values have standard deviation 1 together.

    A first convolution followed by BatchNorm in train mode gives the same outputs, and the same gradient, for inputs of
    any contrast, and but for its padding of any brightness of a channel: both are free, so they are put where the
    network's normalization constants say that pictures lie. A start of zeros has no contrast; use another.

    Args:
        inner: what is standardized.
    """

    inner: Callable[[Tensor], Tensor] = Spectral()

    def __call__(self, variables: Tensor) -> Tensor:
        """From `[n, c, h, w]` to network inputs of the same shape."""
        inputs = self.inner(variables)
        inputs = inputs - inputs.mean(dim=(0, 2, 3), keepdim=True)
        return inputs / inputs.square().mean().sqrt().clamp(min=torch.finfo(inputs.dtype).tiny)
