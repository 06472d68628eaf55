"""Image registration: the translation under which two images agree best, and the mean of registered images.

    shift* = argmax_s  corr over the overlap of ( fixed(p), moving(p - s) )

A network that averages over places hardly sees where a thing is, so restarts find the same thing at different places,
and their plain mean is a blur. Yin et al. (2021), arXiv:2104.07586, register restarts to it before they average.

The correlation is computed for all whole-pixel shifts at once by FFT, of pictures padded to twice their size, and is
normalized by what lies in each overlap (Padfield 2012, doi:10.1109/TIP.2011.2181402). So a picture that moved out of
its frame is found exactly, as is one that was rolled around. Phase correlation, its relative that divides by the
spectrum's size, wraps around and lets the highest frequencies, where restarts differ by noise, vote as loud as any.
"""

from collections.abc import Sequence

import scipy
import torch
from torch import Tensor

from inversefed.types import Images

__all__ = ["correlations", "matched", "medoid", "moved_mean", "registered_mean", "shifted", "translation"]

_TIE = 1e-9
"""Of two shifts that agree equally well the shorter one is taken."""


def correlations(moving: Tensor, fixed: Tensor, reach: int, circular: bool = False) -> Tensor:
    """How well a picture agrees with another at each shift, in [-1, 1].

    Args:
        moving: `[c, h, w]`.
        fixed: `[c, h, w]`.
        reach: the longest shift along each side, in pixels.
        circular: what leaves at one border comes back at the other, so that all of the picture counts.

    Returns:
        `[2 reach + 1, 2 reach + 1]`, by shift down and across, both from `-reach`; 0 where either is flat.
    """
    height, width = fixed.shape[-2:]
    size = (height, width) if circular else (2 * height, 2 * width)
    shifts = torch.arange(-reach, reach + 1, device=fixed.device)
    rows, columns = shifts[:, None] % size[0], shifts[None, :] % size[1]

    def spectrum(picture: Tensor) -> Tensor:
        found: Tensor = torch.fft.rfft2(picture, s=size)
        return found

    def correlate(a: Tensor, b: Tensor) -> Tensor:
        found: Tensor = torch.fft.irfft2(a * b.conj(), s=size)
        return found[..., rows, columns]

    # A common offset changes no correlation, and little is left to cancel.
    fixed, moving = fixed.double() - fixed.double().mean(), moving.double() - moving.double().mean()
    ones = torch.ones_like(fixed[:1])
    whole, f, m = spectrum(ones), spectrum(fixed), spectrum(moving)
    count = correlate(whole, whole).clamp(min=1.0)
    sum_f, sum_m = correlate(f, whole), correlate(whole, m)
    product = (correlate(f, m) - sum_f * sum_m / count).sum(dim=0)
    power_f = (correlate(spectrum(fixed.square()), whole) - sum_f.square() / count).sum(dim=0)
    power_m = (correlate(whole, spectrum(moving.square())) - sum_m.square() / count).sum(dim=0)
    floor = 1e-9 * (fixed.square().sum() * moving.square().sum()).sqrt() + torch.finfo(torch.float64).tiny
    power = (power_f.clamp(min=0) * power_m.clamp(min=0)).sqrt()
    return torch.where(power > floor, product / power.clamp(min=floor), torch.zeros_like(product))


def translation(
    moving: Tensor, fixed: Tensor, reach: int, circular: bool = False, gain: float = 0.0
) -> tuple[int, int]:
    """The shift, down and across in pixels, that takes a picture to where it agrees best with another.

    Args:
        moving: `[c, h, w]`.
        fixed: `[c, h, w]`.
        reach: the longest shift along each side.
        circular: as for `correlations`.
        gain: by how much the correlation must rise above that without a shift for one to be made.

    >>> picture = torch.arange(36.0).view(1, 6, 6).sin()
    >>> translation(shifted(picture, (1, -2), circular=True), picture, reach=2)
    (-1, 2)
    """
    found = correlations(moving, fixed, reach, circular)
    steps = torch.arange(-reach, reach + 1, device=found.device).double()
    length = (steps[:, None].square() + steps[None, :].square()).sqrt()
    best = int((found - _TIE * length).argmax())
    down, across = best // found.shape[1], best % found.shape[1]
    if found[down, across] < found[reach, reach] + gain:
        return 0, 0
    return down - reach, across - reach


def shifted(picture: Tensor, shift: tuple[int, int], circular: bool = False) -> Tensor:
    """Move a picture `[.., h, w]` down and across; zeros come in at the border, or what left at the other one."""
    moved = picture.roll(shift, dims=(-2, -1))
    if circular:
        return moved
    inside = torch.ones(picture.shape[-2:], dtype=torch.bool, device=picture.device)
    for dim, (step, size) in enumerate(zip(shift, inside.shape, strict=True)):
        new = inside.narrow(dim, 0 if step >= 0 else max(0, size + step), min(abs(step), size))
        new.fill_(False)
    return torch.where(inside, moved, torch.zeros_like(moved))


def medoid(pictures: Images, reach: int, circular: bool = False) -> int:
    """Which of several pictures agrees best with all others, each moved to where it agrees best with it.

    It is what the others are moved onto. Their plain mean would not do: a picture is a part of it, and so agrees with
    it best where it lies.
    """
    count = len(pictures)
    agreement = torch.zeros(count, dtype=torch.float64)
    for a in range(count):
        for b in range(a):
            best = float(correlations(pictures[a], pictures[b], reach, circular).max())
            agreement[a] += best
            agreement[b] += best
    return int(agreement.argmax())


def registered_mean(pictures: Images, fixed: Tensor, reach: int, circular: bool = False, gain: float = 0.0) -> Tensor:
    """Move each picture onto a fixed one and average; where pictures moved away, over those that are still there.

    Args:
        pictures: `[n, c, h, w]`.
        fixed: `[c, h, w]`; it stands in where no picture is left.
        reach: the longest shift along each side.
        circular: as for `correlations`.
        gain: as for `translation`.
    """
    shifts = [translation(each, fixed, reach, circular, gain) for each in pictures]
    return moved_mean(pictures, shifts, fixed, circular)


def moved_mean(pictures: Images, shifts: Sequence[tuple[int, int]], instead: Tensor, circular: bool = False) -> Tensor:
    """Move each picture by its shift and average, over those that are still there; where none is, `instead`."""
    ones = torch.ones_like(instead[:1])
    total, count = torch.zeros_like(instead), torch.zeros_like(ones)
    for each, shift in zip(pictures, shifts, strict=True):
        total = total + shifted(each, shift, circular)
        count = count + shifted(ones, shift, circular)
    return torch.where(count > 0, total / count.clamp(min=1), instead)


def matched(pictures: Tensor, reference: Tensor, labels: Tensor) -> Tensor:
    """Which of the pictures `[n, c, h, w]` stands for which of the reference: least total squared error by label."""
    order = torch.arange(len(pictures), device=pictures.device)
    for label in torch.unique(labels):
        same = (labels == label).nonzero()[:, 0]
        if len(same) > 1:
            costs = torch.cdist(reference[same].flatten(start_dim=1), pictures[same].flatten(start_dim=1))
            rows, columns = map(torch.as_tensor, scipy.optimize.linear_sum_assignment(costs.detach().cpu().numpy()))
            order[same[rows]] = same[columns]
    return order
