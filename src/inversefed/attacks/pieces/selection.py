"""Selection, from several restarts to one result: (candidates, observation, match) -> candidate.

Only restarts that ran and stayed finite compete, by the attack's own measures and never by the truth.
`match` gives the matching cost of any images and labels.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from inversefed.attacks.pieces.priors import TotalVariation
from inversefed.attacks.pieces.registration import matched, registered_mean
from inversefed.fl.targets import kinds
from inversefed.fl.threat import Observation
from inversefed.types import Candidate, Inputs, Scalar, Status

__all__ = ["AgreedMean", "LowestLoss", "LowestPrior", "PixelMean", "PixelMedian", "RegisteredMean"]

Match = Callable[[Tensor, Tensor], float]


@dataclass(frozen=True)
class LowestLoss:
    """The restart whose images match the update best."""

    def __call__(self, candidates: Sequence[Candidate], observation: Observation, match: Match) -> Candidate:
        """The first of lowest matching cost."""
        return min(finite(candidates), key=lambda candidate: candidate.loss)


@dataclass(frozen=True)
class LowestPrior:
    """The restart that a prior likes best, whatever its matching cost."""

    prior: Callable[[Inputs, Observation], Scalar] = TotalVariation(weight=1.0)

    def __call__(self, candidates: Sequence[Candidate], observation: Observation, match: Match) -> Candidate:
        """The first of lowest prior."""
        return min(finite(candidates), key=lambda candidate: float(self.prior(candidate.images, observation)))


@dataclass(frozen=True)
class PixelMean:
    """The mean of all restarts, pixel by pixel; which picture is which, where labels leave that open, is matched.

    Restarts of an update that many pictures explain differ where it says nothing, and there their mean is nearer the
    truth than most of them.
    """

    def __call__(self, candidates: Sequence[Candidate], observation: Observation, match: Match) -> Candidate:
        """The mean, with its own matching cost."""
        return _combined(grown(candidates), lambda stack: stack.mean(dim=0), match)


@runtime_checkable
class Agreeing(Protocol):
    """A selection that keeps of several restarts what they agree on: it is worth little with one."""

    @property
    def fewest(self) -> int:
        """Restarts that are worth more than iterations are."""
        ...

    def __call__(self, candidates: list[Candidate], observation: Observation, match: Match) -> Candidate:
        """As every selection."""
        ...


@dataclass(frozen=True)
class AgreedMean:
    """The mean of all restarts, each frequency of it as far as they agree on it; never much farther off than one color.

    With X_kf the Fourier coefficients of restart k in a ring f of frequencies, those of the result are

        w_f mean_k X_kf,    w_f = max(0, K |mean_k X_kf|^2 - mean_k |X_kf|^2) / ((K - 1) |mean_k X_kf|^2),

    the share of the mean's power that is common to the restarts: Wiener's filter, noise being what they differ by. The
    color of each picture is that of the mean. One restart is left as it is. Own derivation.

    Args:
        fewest: restarts that are kept, with fewer iterations, where there is no time for all of them.
    """

    fewest: int = 2

    def __call__(self, candidates: Sequence[Candidate], observation: Observation, match: Match) -> Candidate:
        """The shrunk mean, with its own matching cost."""
        return _combined(grown(candidates), _agreed, match)


@dataclass(frozen=True)
class PixelMedian:
    """The median of all restarts, pixel by pixel."""

    def __call__(self, candidates: Sequence[Candidate], observation: Observation, match: Match) -> Candidate:
        """The median, with its own matching cost."""
        return _combined(grown(candidates), lambda stack: stack.median(dim=0).values, match)


@dataclass(frozen=True)
class RegisteredMean:
    """The mean of all restarts, each moved first to where it agrees best with the restart of lowest matching cost.

    For networks that average over places, whose restarts find the same thing at different ones.

    Args:
        reach: the longest shift, as a share of the picture's side.
        circular: pictures wrap around, as they do for a network with circular padding.
        gain: by how much the correlation must rise for a shift to be made.
    """

    reach: float = 0.25
    circular: bool = False
    gain: float = 0.05

    def __call__(self, candidates: Sequence[Candidate], observation: Observation, match: Match) -> Candidate:
        """The registered mean, with its own matching cost."""
        best = min(finite(candidates), key=lambda candidate: candidate.loss)
        reach = int(self.reach * min(best.images.shape[-2:]))

        def combine(stack: Tensor) -> Tensor:
            pairs = zip(stack.unbind(dim=1), best.images, strict=True)
            return torch.stack([registered_mean(each, mark, reach, self.circular, self.gain) for each, mark in pairs])

        ordered = [best, *(candidate for candidate in grown(candidates) if candidate is not best)]
        return _combined(ordered, combine, match)


def finite(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """The candidates that may be chosen: those of finite loss, or all where there is none."""
    return [candidate for candidate in candidates if math.isfinite(candidate.loss)] or candidates


def grown(candidates: Sequence[Candidate]) -> Sequence[Candidate]:
    """Those that may be mixed: a start that was cut short would only blur the rest. Where all were, the oldest."""
    usable = finite(candidates)
    ended = [candidate for candidate in usable if candidate.status in (Status.FINISHED, Status.CONVERGED)]
    oldest = max(candidate.iterations for candidate in usable)
    return ended or [candidate for candidate in usable if candidate.iterations == oldest]


def _combined(candidates: Sequence[Candidate], combine: Callable[[Tensor], Tensor], match: Match) -> Candidate:
    first = candidates[0]
    images = combine(torch.stack([_in_order_of(first, candidate) for candidate in candidates]))
    targets = first.labels if first.soft_labels is None else first.soft_labels
    return replace(first, images=images, loss=match(images, targets))


def _agreed(stack: Tensor) -> Tensor:
    """Of restarts `[k, n, c, h, w]` what they have in common, `[n, c, h, w]`."""
    if len(stack) == 1:
        return stack[0]
    height, width = stack.shape[-2:]
    parts = torch.fft.fft2(stack.double())
    mean = parts.mean(dim=0)
    axes = torch.fft.fftfreq(height, 1 / height), torch.fft.fftfreq(width, 1 / width)
    rings = torch.hypot(axes[0][:, None], axes[1]).round().long().to(stack.device)
    for ring in range(1, int(rings.max()) + 1):
        inside = mean[..., rings == ring]
        power = inside.abs().square().sum(dim=(1, 2))
        common = len(stack) * power - parts[..., rings == ring].abs().square().mean(dim=0).sum(dim=(1, 2))
        share = common.clamp(min=0) / ((len(stack) - 1) * power.clamp(min=torch.finfo(power.dtype).tiny))
        mean[..., rings == ring] = share[:, None, None] * inside
    found: Tensor = torch.fft.ifft2(mean).real.to(stack.dtype)
    return found


def _in_order_of(first: Candidate, other: Candidate) -> Inputs:
    """The pictures of another candidate, each in the place of the first one's that it stands for."""
    groups = kinds(first.labels)
    if not torch.equal(first.labels, other.labels):  # each found its own, in any order
        groups = torch.zeros_like(groups)
    return other.images[matched(other.images, first.images, groups)]
