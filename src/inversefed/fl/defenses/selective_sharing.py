"""Selective sharing: which entries or tensors of an update leave a client, by the filters of NVIDIA FLARE.

    percentile:  sent_i = clip(g_i, gamma) [|g_i| >= c_q],     c_q the q-th percentile of all |g|
    sparse vector technique:
                 S = { i : |clip(g_i, gamma)| + Lap(2 gamma c / eps_2) >= tau + Lap(gamma / eps_1) },  till |S| >= c
                 sent_i = clip(g_i, gamma) + Lap(2 gamma / v)    for c drawn from S, 0 elsewhere
    variables:   sent = { name: g_name  for names that are not excluded }

Sharing the largest entries is of Shokri and Shmatikov (2015), "Privacy-preserving deep learning", CCS, who add the
sparse vector technique (Dwork and Roth 2014, section 3.6) to choose them privately; Li et al. (2019, arXiv:1910.00962)
use both for medical images, and their code became FLARE's `PercentilePrivacy` and `SVTPrivacy`. Names, defaults and
each detail are those of FLARE 2.9. All numbers are of one local step: an update of several is divided by their number
first and multiplied by it again.
"""

import itertools
import math
import re
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from inversefed.errors import ConfigError
from inversefed.fl.defenses.noise import laplace_like
from inversefed.fl.defenses.protocols import Context
from inversefed.types import Params

__all__ = ["ExcludeVars", "PercentilePrivacy", "SVTPrivacy"]

_MOST_PASSES = 10_000
"""Over the entries; where noise is so small that none comes above the threshold, more would not help."""


@dataclass(frozen=True)
class PercentilePrivacy:
    """Set the smallest entries of an update to zero, a share of all tensors together, and cut the rest to a size.

    Args:
        percentile: of all magnitudes, in [0, 100]; entries below it are not sent. The default sends nine of ten.
        gamma: the greatest magnitude that is sent, of one step.
        steps: how many local steps the update is of.

    Raises:
        ConfigError: values out of range.

    >>> defense = PercentilePrivacy(50.0, gamma=2.0)
    >>> defense({"w": torch.tensor([0.1, -3.0, 1.0, 0.5])}, None, Generator())
    {'w': tensor([ 0., -2.,  1.,  0.])}
    """

    percentile: float = 10.0
    gamma: float = 0.01
    steps: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.percentile <= 100 or self.gamma <= 0 or self.steps < 1:
            raise ConfigError(f"PercentilePrivacy needs percentile in [0, 100], gamma > 0 and steps >= 1; got {self!r}")

    def __call__(self, update: Params, context: Context | None, generator: Generator) -> Params:
        """Leave out what is small; numbers that are no arrays are sent as they are."""
        each = {name: part / self.steps for name, part in update.items()}
        cutoff = percentile(torch.cat([part.flatten() for part in each.values()]).abs(), self.percentile)
        cut = {
            name: part.masked_fill((part > -cutoff) & (part < cutoff), 0.0).clamp(-self.gamma, self.gamma) * self.steps
            for name, part in each.items()
        }
        return {name: part if update[name].ndim else update[name] for name, part in cut.items()}


@dataclass(frozen=True)
class SVTPrivacy:
    """Send few entries, chosen and noised at random by the sparse vector technique.

    Args:
        fraction: of all entries, in (0, 1]: as many are drawn.
        epsilon: what their choice may spend.
        noise_var: what the value of each may spend; the noise's scale is `2 gamma / noise_var`.
        gamma: the greatest magnitude before the noise, of one step.
        tau: the threshold that an entry must come above, before its noise.
        replace: whether the same entry may be drawn twice, so that fewer are sent.
        steps: how many local steps the update is of.

    Raises:
        ConfigError: values out of range; when called, a threshold that no entry comes above.

    >>> sent = SVTPrivacy(0.5, epsilon=1e6, noise_var=1e6, gamma=1.0, tau=0.4, replace=False)(
    ...     {"w": torch.tensor([0.1, -3.0, 1.0, 0.2])}, None, Generator().manual_seed(0))
    >>> sent["w"].round(decimals=3)
    tensor([ 0., -1.,  1.,  0.])
    """

    fraction: float = 0.1
    epsilon: float = 0.1
    noise_var: float = 0.1
    gamma: float = 1e-5
    tau: float = 1e-6
    replace: bool = True
    steps: int = 1

    def __post_init__(self) -> None:
        positive = (self.epsilon, self.noise_var, self.gamma, self.steps)
        if not 0 < self.fraction <= 1 or not all(each > 0 for each in positive):
            raise ConfigError(
                f"SVTPrivacy needs fraction in (0, 1], and epsilon, noise_var, gamma and steps above 0; got {self!r}"
            )

    @property
    def noise_scale(self) -> float:
        """Mean magnitude of the noise on each entry that is sent."""
        return 2 * self.gamma / self.noise_var * self.steps

    def drawn(self, entries: int) -> int:
        """How many entries of so many are drawn."""
        return min(math.ceil(entries * self.fraction), entries)

    def spent(self, entries: int) -> float:
        """Epsilon of one update of so many entries, as FLARE's accountant adds it up: choice and values.

        It is for updates that differ by at most `gamma` in each entry as they are clipped; the values of `c` entries
        spend `c * noise_var`, which with the defaults is far more than `epsilon`.

        >>> round(SVTPrivacy().spent(10_000), 6)
        100.1
        """
        return self.epsilon + self.drawn(entries) * self.noise_var

    def __call__(self, update: Params, context: Context | None, generator: Generator) -> Params:
        """Choose entries by noisy comparisons, draw among them, and noise their values."""
        flat = torch.cat([part.flatten() for part in update.values()]) / self.steps
        cut = flat.clamp(-self.gamma, self.gamma)
        count = self.drawn(flat.numel())
        chosen = self._chosen(cut.abs(), count, generator)
        sent = torch.zeros_like(flat)
        noise = self.noise_scale / self.steps * laplace_like(flat[chosen], generator)
        sent[chosen] = (cut[chosen] + noise) * self.steps
        starts = itertools.accumulate((part.numel() for part in update.values()), initial=0)
        return {
            name: sent[start : start + part.numel()].view_as(part) if part.ndim else part
            for (name, part), start in zip(update.items(), starts, strict=False)
        }

    def _chosen(self, sizes: Tensor, count: int, generator: Generator) -> Tensor:
        """Indices of the entries that are sent: drawn among those that came above the threshold in some pass."""
        ratio = (2.0 * count) ** (2 / 3)  # the split that spends least on comparisons that are not monotonic
        first = self.epsilon / (1 + ratio)
        threshold = self.tau + self.gamma / first * float(laplace_like(sizes.new_zeros(1), generator))
        scale = 2 * self.gamma * count / (self.epsilon - first)
        accepted = torch.zeros_like(sizes, dtype=torch.bool)
        for _ in range(_MOST_PASSES):
            accepted |= sizes + scale * laplace_like(sizes, generator) >= threshold
            among = accepted.nonzero().flatten()
            if len(among) >= count:
                return among[self._draw(len(among), count, generator).to(among.device)]
        raise ConfigError(
            f"SVTPrivacy: only {int(accepted.sum())} of {count} entries came above the threshold {threshold:.3g} in "
            f"{_MOST_PASSES} passes; lower tau, or raise gamma or the noise"
        )

    def _draw(self, among: int, count: int, generator: Generator) -> Tensor:
        if self.replace:
            draws = torch.randint(among, (count,), generator=generator, device=generator.device)
            return torch.zeros(among, device=generator.device).index_fill(0, draws, 1.0).nonzero().flatten()
        return torch.randperm(among, generator=generator, device=generator.device)[:count]


@dataclass(frozen=True)
class ExcludeVars:
    """Leave whole tensors out of an update; here they stand in it as zeros, which say nothing.

    For a gradient or a change of weights. A client that sends new weights and keeps some to itself is `Shares`.

    Args:
        exclude_vars: names of tensors, or one regular expression that is searched for in each name.

    Raises:
        ConfigError: neither; when called, one that fits no tensor, or all.

    >>> ExcludeVars("bias$").left_out(("0.weight", "0.bias"))
    ('0.bias',)
    """

    exclude_vars: tuple[str, ...] | str

    def __post_init__(self) -> None:
        text = isinstance(self.exclude_vars, str)
        if not self.exclude_vars or not (text or all(isinstance(each, str) for each in self.exclude_vars)):
            raise ConfigError(
                "ExcludeVars needs names such as ('0.weight',), or a regular expression such as 'bias$'; got "
                f"{self.exclude_vars!r}"
            )
        try:
            re.compile(self.exclude_vars if isinstance(self.exclude_vars, str) else "")
        except re.error as error:
            raise ConfigError(f"ExcludeVars: {self.exclude_vars!r} is no regular expression: {error}") from error

    def left_out(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """Those of some names that are not sent."""
        if isinstance(self.exclude_vars, str):
            return tuple(name for name in names if re.search(self.exclude_vars, name))
        return tuple(name for name in names if name in self.exclude_vars)

    def __call__(self, update: Params, context: Context | None, generator: Generator) -> Params:
        """Send the rest."""
        out = self.left_out(tuple(update))
        if not out or len(out) == len(update):
            raise ConfigError(
                f"{self!r} leaves out {'all' if out else 'none'} of the update's tensors, {', '.join(list(update)[:3])}"
            )
        return {name: torch.zeros_like(part) if name in out else part for name, part in update.items()}


def percentile(values: Tensor, q: float) -> Tensor:
    """The q-th percentile of numbers, between two of them by a straight line, as `numpy.percentile` has it.

    >>> percentile(torch.tensor([4.0, 1.0, 2.0]), 75.0)
    tensor(3.)
    """
    place = (values.numel() - 1) * (q / 100)
    ordered, below = values.flatten().sort().values, math.floor(place)
    low, high = ordered[below], ordered[min(below + 1, values.numel() - 1)]
    return low + (high - low) * (place - below)
