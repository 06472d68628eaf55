"""Which records were in the update? Their scores against those of records that are known to be out.

    p_j = (1 + #{ i out : s_i >= s_j }) / (m + 1)

If record j is out too, and of the same kind as the m that are known to be, its score is as likely as not above any of
theirs: the m + 1 scores are exchangeable, and p_j is at most a with chance at most a, whatever network, client or score
(Barnard 1963; as conformal p-values, Bates et al. 2023, arXiv:2104.08279). That is the false-alarm control: of records
that are out, at most a share a is called on average. All records together are judged by a permutation test of the
same kind, with ranks that weigh the highest most (Savage 1956).

What an attacker can do is the share of records called at a low rate of false alarms (Carlini et al. 2022,
arXiv:2112.03570), and the area under the curve of both,

    AUC = P(score of one that is in > score of one that is out)

with Newcombe's interval (2006, method 5), which keeps a width where no pair is out of order. With m records out, rates
of false alarms below 1 / m cannot be measured, and are said to be so.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from inversefed.errors import InputError
from inversefed.evaluation.intervals import Interval
from inversefed.thresholds import MEMBER_LEVEL

__all__ = ["Called", "Membership", "judge_members"]

_RATES = (0.01, 0.001)
"""Rates of false alarms at which the share of records called is stated."""

_ORDERS = 9_990
"""Random orders that all records are judged by: p-values from 1e-4."""


@dataclass(frozen=True)
class Called:
    """The share of records that are called where few that are out are.

    Args:
        rate: of false alarms that was asked for, in (0, 1).
        share: of the records that are called, in [0, 1].
        false_alarms: how many records that are out are allowed to be above the threshold.
        out: of how many.
        resolved: whether there are enough of them to tell such a rate from a greater one, 1 / rate; else the threshold
            is the highest of them, and the share is one at a rate that is only known to be less than about 3 / out.
    """

    rate: float
    share: float
    false_alarms: int
    out: int
    resolved: bool


@dataclass(frozen=True, eq=False)
class Membership:
    """What an update says of whether records were in it.

    Args:
        scores: of the records that were asked for, `[k]`, higher is likelier in.
        out_scores: of those known to be out, `[m]`.
        p_values: of each record that was asked for, `[k]`, in (0, 1].
        p_value: of all of them together, that none was in, in (0, 1].
        auc: how often one that was in is above one that was out; of all that were asked for, where nobody knows.
        called_at: the share of records called at low rates of false alarms.
        members: which were in, `[k]`, where that is known.
        level: of a p-value up to which a record is called, in (0, 1).
    """

    scores: Tensor
    out_scores: Tensor
    p_values: Tensor
    p_value: float
    auc: Interval | None
    called_at: tuple[Called, ...]
    members: Tensor | None = None
    level: float = MEMBER_LEVEL

    @property
    def called(self) -> Tensor:
        """Which records are called in the update, `[k]`; none where too few are known to be out."""
        return self.p_values <= self.level

    @property
    def found(self) -> bool:
        """Whether all records together show that some were in the update."""
        return self.p_value <= self.level

    @property
    def sentence(self) -> str:
        """Whether the update shows that some were in it, in one sentence.

        >>> judge_members(torch.tensor([1.0]), torch.arange(19.0)).sentence
        'Nothing shows that the record was in the update (p = 0.95); that is no proof that it was not.'
        """
        count, sure = len(self.scores), f"p = {self.p_value:.2g}"
        if self.found:
            asked = "the record that was" if count == 1 else f"some of the {count} records that were"
            return f"The update shows that {asked} asked for {'was' if count == 1 else 'were'} in it ({sure})."
        which = "the record" if count == 1 else f"any of the {count} records"
        return f"Nothing shows that {which} was in the update ({sure}); that is no proof that it was not."


def judge_members(scores: Tensor, out_scores: Tensor, members: Tensor | None = None) -> Membership:
    """Judge the scores of records by those of records that are out.

    Args:
        scores: of the records that are asked for, `[k]`.
        out_scores: of those known to be out, `[m]`, scored together with the others and in the same way.
        members: which of the first were in, `[k]`, where that is known.

    Raises:
        InputError: nothing is asked for, no record is known to be out, or a score is no number.

    >>> found = judge_members(torch.arange(20.0, 40.0), torch.arange(19.0))
    >>> found.auc.mean, found.called_at[0].share, found.p_values[:2].tolist(), found.called.all().item()
    (1.0, 1.0, [0.05, 0.05], True)
    """
    asked, out = (each.detach().cpu().double() for each in (scores, out_scores))
    if not len(asked) or not len(out) or not bool(torch.cat([asked, out]).isfinite().all()):
        raise InputError(
            f"membership needs finite scores of records, and of records that are known to be out; got {len(asked)} and "
            f"{len(out)}"
        )
    above = (out[None] >= asked[:, None]).sum(dim=1)
    known = torch.ones(len(asked), dtype=torch.bool) if members is None else members.detach().cpu().bool()
    inside, outside = asked[known], torch.cat([out, asked[~known]])
    return Membership(
        asked,
        out,
        (1 + above).double() / (len(out) + 1),
        _together(asked, out),
        _auc(inside, outside) if len(inside) else None,
        tuple(_called(inside, outside, rate) for rate in _RATES) if len(inside) else (),
        None if members is None else known,
    )


def _together(asked: Tensor, out: Tensor) -> float:
    """The chance of scores as high as those asked for, had none been in: by random choices of as many of all records.

    The k-th highest of n counts `1/k + .. + 1/n` (Savage 1956), so that a few that are in are seen among many that are
    not. Ties count their mean.
    """
    both = torch.cat([asked, out])
    count = len(both)
    by_rank = (1 / torch.arange(1, count + 1, dtype=torch.float64)).flip(0).cumsum(0).flip(0)  # highest first
    values, places = torch.unique(both, return_inverse=True)
    order = both.argsort(descending=True)
    sums = torch.zeros(len(values), dtype=torch.float64).index_add_(0, places[order], by_rank)
    weights = (sums / places.bincount())[places]
    random, reached = torch.Generator().manual_seed(0), float(weights[: len(asked)].sum()) - 1e-9
    as_high = 0
    for _ in range(_ORDERS // 999):
        chosen = torch.rand(999, count, generator=random).argsort(dim=1)[:, : len(asked)]
        as_high += int((weights[chosen].sum(dim=1) >= reached).sum())
    return (1 + as_high) / (_ORDERS + 1)


def _called(inside: Tensor, outside: Tensor, rate: float) -> Called:
    allowed = int(rate * len(outside) + 1e-9)
    threshold = outside.sort(descending=True).values[allowed]
    share = float((inside > threshold).double().mean())
    return Called(rate, share, allowed, len(outside), len(outside) * rate >= 1)


def _auc(inside: Tensor, outside: Tensor, level: float = 0.95) -> Interval:
    """The area under the curve, ties counted half, and where it is with its variance there as wide as it is off."""
    from scipy import optimize, stats

    pairs = inside[:, None] - outside[None]
    mean = float((pairs > 0).double().mean() + (pairs == 0).double().mean() / 2)
    size, half = len(inside) * len(outside), (len(inside) + len(outside)) / 2 - 1
    reach = float(stats.norm.ppf((1 + level) / 2))

    def off(area: float) -> float:
        variance = area * (1 - area) * (1 + half * ((1 - area) / (2 - area) + area / (1 + area))) / size
        return (mean - area) ** 2 - reach**2 * variance

    # Beside the mean itself the variance outweighs the distance; at 0 and 1, where there is none, the distance does.
    low = optimize.brentq(off, 0.0, mean - 1e-9) if mean > 1e-9 else 0.0
    high = optimize.brentq(off, mean + 1e-9, 1.0) if mean < 1 - 1e-9 else 1.0
    return Interval(mean, float(low), float(high), level)
