"""Series: windows `[n, c, l]` of a signal, in [0, 1] of a stated range; sound, sensors, prices, loads.

in flight  x = (v - low) / (high - low)        fed  v = low + (high - low) x,  unless mean and std say else
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from inversefed.errors import InputError
from inversefed.inputs.real import check_real, mean_of, own_level
from inversefed.inputs.space import Measure

__all__ = ["Series"]

_MEMORY, _SPREAD = 0.95, 0.2
"""Of stand-ins: what a value keeps of its distance from the mean, and the deviation in shares of the range."""

_CELLS = 32
"""Most values of a window that a report shows."""

MEASURES: Mapping[str, Measure] = {
    "root_mean_square_error": Measure(
        "Root mean square error", "", False, ".4g", "How far values are from the true ones, in units of the series."
    ),
    "symmetric_mean_absolute_percentage_error": Measure(
        "Symmetric percentage error (sMAPE)",
        "%",
        False,
        ".3g",
        "Mean of 200 |x - x*| / (|x| + |x*|), in units of the series. 0 is the same window, 200 the worst; it depends "
        "on where the unit has its zero.",
    ),
}


@dataclass(frozen=True)
class Series:
    """Windows of a series, all channels in one range.

    A network is fed units of the series, `low + (high - low) x`, unless `mean` and `std` are given, which then apply to
    numbers in [0, 1].

    Args:
        channels: at least 1.
        length: places of a window, at least 1.
        low: the least value that there may be, in units of the series.
        high: the greatest.
        step: what values are rounded to where they are stored, in the same units; 0 for not at all. Sound of sixteen
            bits in [-1, 1] has 1 / 32768.

    Raises:
        InputError: a side below 1, or a range that is none.

    >>> space = Series(1, 4, low=-10.0, high=40.0, step=0.5)
    >>> windows = space.encode(torch.tensor([[[-10.0, 0.0, 20.4, 40.0]]]))
    >>> windows.tolist()[0][0][1], space.decode(space.snap(windows)).tolist()
    (0.20000000298023224, [[[-10.0, 0.0, 20.5, 40.0]]])
    """

    channels: int
    length: int
    low: float = 0.0
    high: float = 1.0
    step: float = 0.0

    def __post_init__(self) -> None:
        if self.channels < 1 or self.length < 1:
            raise InputError(f"a series has at least 1 channel and 1 place, got {self.channels} and {self.length}")
        span = self.high - self.low
        if not 0 < span < float("inf") or not 0 <= self.step <= span:
            raise InputError(
                f"the range of a series goes from low up to high, with a step from 0 to their difference; got "
                f"low={self.low}, high={self.high}, step={self.step}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """`(channels, length)`."""
        return self.channels, self.length

    @property
    def noun(self) -> str:
        """What one of them is called."""
        return "window"

    def check(self, inputs: Tensor) -> None:
        """Refuse anything but a batch of such windows.

        Raises:
            InputError: wrong shape or type, no window, NaN, or values outside [0, 1].
        """
        check_real(inputs, self.shape, "windows", f"shares of the range {self.low:g} to {self.high:g}: encode(values)")

    def encode(self, values: Tensor) -> Tensor:
        """From units of the series to shares of its range, in which windows travel.

        Args:
            values: `[n, c, l]`.
        """
        return (values - self.low) / (self.high - self.low)

    def decode(self, inputs: Tensor) -> Tensor:
        """The inverse of `encode`."""
        return self.low + (self.high - self.low) * inputs

    def normalization(self) -> tuple[float, float]:
        """That which feeds units of the series."""
        span = self.high - self.low
        return -self.low / span, 1 / span

    def middle(self, count: int) -> Tensor:
        """The middle of the range, everywhere."""
        return torch.full((count, *self.shape), 0.5)

    def snap(self, inputs: Tensor) -> Tensor:
        """Within the range, and to whole steps above its low end where there is a step."""
        if not self.step:
            return inputs.clamp(0, 1)
        share = self.step / (self.high - self.low)
        return ((inputs / share).round() * share).clamp(0, 1)

    def stand_ins(self, count: int, random: Generator) -> Tensor:
        """Autoregressive noise of order one around the middle of the range: each value near the one before."""
        noise = torch.randn((count, *self.shape), generator=random)
        value, values = noise[..., 0], [noise[..., 0]]
        for place in range(1, self.length):
            value = _MEMORY * value + (1 - _MEMORY**2) ** 0.5 * noise[..., place]
            values.append(value)
        return (0.5 + _SPREAD * torch.stack(values, dim=-1)).clamp(0, 1)

    def controls(self, truth: Tensor, others: Tensor | None) -> Mapping[str, Tensor]:
        """Each window's own mean level, channel by channel; the middle of the range; the mean curve of others.

        The level is taken from the truth, so no constant that an attack could guess has a lesser squared error.
        """
        plain = {"level": own_level(truth), "middle": torch.full_like(truth, 0.5)}
        return plain if others is None else plain | {"mean": mean_of(others, truth)}

    def cells(self, example: Tensor) -> Sequence[tuple[str, str]]:
        """Values of each channel at places that are evenly apart, first and last included."""
        each = max(1, _CELLS // self.channels)
        places = torch.linspace(0, self.length - 1, min(each, self.length)).round().long().tolist()
        name = "{1}" if self.channels == 1 else "{0}: {1}"
        values = self.decode(example.detach().cpu().double())
        return [(name.format(c, t), f"{float(values[c, t]):.4g}") for c in range(self.channels) for t in places]

    def measures(self, found: Tensor, truth: Tensor) -> Mapping[str, Tensor]:
        """The root mean square error and sMAPE in units of the series, `[n]` each."""
        one, other = (self.decode(each.detach().double().clamp(0, 1)).flatten(1) for each in (found, truth))
        sizes = one.abs() + other.abs()
        shares = torch.where(sizes > 0, (one - other).abs() / sizes, 0.0)
        return {
            "root_mean_square_error": (one - other).square().mean(dim=1).sqrt().float(),
            "symmetric_mean_absolute_percentage_error": (200 * shares.mean(dim=1)).float(),
        }
