"""What DP-SGD promises: (epsilon, delta) of one update, and of all of a training's, from Opacus' accountants.

    P[M(D) in S] <= e^epsilon P[M(D') in S] + delta     for data D and D' that differ by one example

One release is counted without any credit for sampling, since a server knows who took part. The cumulative figure is for
all rounds and takes that credit where each step is a Poisson sample of its own, and what divides its sum is fixed: a
sum divided by the size of the sample would tell who was in it. Then D and D' differ by one example added or removed.
Where the sum is divided by the number of examples, that number counts as public, and in D' one example adds nothing to
the sum instead (zero-out; Kairouz et al. 2021, arXiv:2103.00039). Where one is replaced by another, the noise counts
half.

All this takes that an example changes one clipped gradient alone, and that nothing looks at it again. A defense that
mixes examples breaks the first, one that looks at them after the noise the second: then there is no epsilon. RDP:
Mironov (2017, arXiv:1702.07476); PRV: Gopi et al. (2021, arXiv:2106.02848), whose grid grows with epsilon until it
fails or fills the memory: above a stated size, or where it fails, RDP's looser bound stands in, and the figure says so.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from inversefed.errors import ConfigError
from inversefed.fl.clients import Client
from inversefed.fl.clients.dpsgd import DPSGD
from inversefed.fl.clients.partial import Shares
from inversefed.fl.clients.secure_sum import SumOfClients
from inversefed.fl.defenses.clipping import Clip
from inversefed.fl.defenses.noise import GaussianNoise, LaplaceNoise
from inversefed.fl.defenses.protocols import (
    Defense,
    data_defenses,
    mixes_examples,
    reads_examples,
    update_defenses,
)
from inversefed.fl.defenses.selective_sharing import SVTPrivacy

__all__ = [
    "NoisySteps",
    "Privacy",
    "PrivacySpent",
    "Released",
    "broken_by",
    "clipped_noise",
    "dp_client",
    "epsilon_of_history",
    "epsilon_spent",
    "noisy_steps",
    "privacy_of",
]

_MOST_POINTS = 2**21
"""Of the PRV accountant's grid: about 100 MB and seconds."""

_EPSILON_ERROR = 0.01
"""Opacus' default, which the mesh of that grid follows."""


@dataclass(frozen=True)
class PrivacySpent:
    """One figure of an accountant.

    Args:
        epsilon: infinite where there is no noise.
        delta: at which it holds.
        accountant: which one gave it, `"prv"` or `"rdp"`.
        noise_multiplier: of each step.
        steps: how many steps are added up.
        sample_rate: the probability with which an example is in a step.
        note: why it is not the accountant that was asked for, or what is not credited.
        neighbors: what it hides: whether an example is there, or whether it adds anything, with the number of examples
            public.
    """

    epsilon: float
    delta: float
    accountant: Literal["prv", "rdp"]
    noise_multiplier: float
    steps: int
    sample_rate: float
    note: str = ""
    neighbors: Literal["added or removed", "zeroed"] = "added or removed"

    def __str__(self) -> str:
        about = f"{self.steps} step{'s' * (self.steps > 1)}, sample rate {self.sample_rate:.3g}"
        size = f"{self.epsilon:.3g}" if math.isfinite(self.epsilon) else "infinite"
        return f"epsilon {size} at delta {self.delta:g} ({self.accountant.upper()} accountant, {about})"


class Privacy(NamedTuple):
    """What a client promises.

    Args:
        per_release: of one update.
        cumulative: of all rounds.
    """

    per_release: PrivacySpent
    cumulative: PrivacySpent


def dp_client(client: Client) -> DPSGD | None:
    """The DP-SGD client in a client, if there is one: of several whose sum is sent, each is one."""
    inner = client
    while isinstance(inner, Shares | SumOfClients):
        inner = inner.client
    return inner if isinstance(inner, DPSGD) else None


def privacy_of(client: DPSGD, num_examples: int) -> Privacy:
    """What a DP-SGD client promises to each of its examples.

    Args:
        client: with its accounting.
        num_examples: how many examples it has.

    Raises:
        ConfigError: Opacus is not installed.
    """
    asked, fixed = client.accounting, bool(client.expected_batch_size) or client.loss_reduction == "sum"
    whole = client.poisson_sampling or client.batch_size in (0, num_examples)
    released = noisy_steps(client, num_examples)
    note = _uncredited(client.local_steps == 1 and whole, fixed) if asked.sample_rate < 1 else ""
    one, every = client.once(released.per_release), client.once(released.cumulative)
    hidden: Literal["added or removed", "zeroed"] = "added or removed" if fixed and whole else "zeroed"
    return Privacy(replace(one, neighbors=hidden), replace(_noted(every, note), neighbors=hidden))


class Released(NamedTuple):
    """In which noisy steps an example takes part, in one update and in those of all rounds."""

    per_release: "NoisySteps"
    cumulative: "NoisySteps"


def noisy_steps(client: DPSGD, num_examples: int) -> Released:
    """The steps in which an example takes part, at most: what an accountant adds up.

    Args:
        client: with its accounting.
        num_examples: how many examples it has.
    """
    asked, fixed = client.accounting, bool(client.expected_batch_size) or client.loss_reduction == "sum"
    often = client.local_steps if client.poisson_sampling else _often(client, num_examples)
    whole = client.poisson_sampling or client.batch_size in (0, num_examples)
    one_draw = client.local_steps == 1 and whole
    rate = client.sampled(num_examples) * (asked.sample_rate if one_draw and fixed else 1.0)
    return Released(NoisySteps(often, 1.0), NoisySteps(often * asked.rounds, rate))


def clipped_noise(defenses: Sequence[Defense]) -> tuple[float, str]:
    """Noise on a finished update over the length that it was clipped to; 0, and why, where nothing is bounded.

    What follows the noise does not undo it, unless it looks at the private examples; what stands between a clip and
    the noise may lengthen the update again.

    >>> from inversefed import defenses
    >>> clipped_noise((defenses.Clip(2.0), defenses.GaussianNoise(0.5), defenses.TopK(0.1)))
    (0.25, '')
    >>> clipped_noise((defenses.GaussianNoise(0.5),))
    (0.0, 'GaussianNoise(std=0.5) is added to an update of any length: clip it before')
    """
    length, why = 0.0, ""
    for at, each in enumerate(update_defenses(defenses)):
        if isinstance(each, Clip):
            length = min(length or each.max_norm, each.max_norm)
        elif isinstance(each, GaussianNoise) and each.std:
            after = [other for other in update_defenses(defenses)[at + 1 :] if reads_examples(other)]
            if length and not after:
                return each.std / length, ""
            read = f"{after[0]!r} looks at the private examples after the noise" if after else ""
            return 0.0, read or f"{each!r} is added to an update of any length: clip it before"
        else:
            length = 0.0
            why = why or (
                f"{each!r} adds noise that is not Gaussian" if isinstance(each, LaplaceNoise | SVTPrivacy) else ""
            )
    return 0.0, why


@dataclass(frozen=True)
class NoisySteps:
    """What a client's noise comes to over some steps: a question to it, whose answer takes up to seconds.

    Args:
        steps: how many.
        sample_rate: of each.
    """

    steps: int
    sample_rate: float

    def __call__(self, client: DPSGD) -> PrivacySpent:
        """What the client's accountant says of them."""
        asked = client.accounting
        return epsilon_spent(
            client.noise_multiplier, self.steps, self.sample_rate, asked.target_delta, asked.accountant
        )


def broken_by(defenses: Sequence[Defense]) -> str:
    """Why what DP-SGD promises does not hold beside these defenses; empty where it does.

    Args:
        defenses: those that the client runs; the network's draw for each example by itself.

    >>> from inversefed import defenses
    >>> broken_by((defenses.TopK(0.1),)), broken_by((defenses.Mixup(1.0),))
    ('', 'Mixup(alpha=1.0) mixes examples, so that one of them changes more than one clipped gradient')
    """
    found = []
    for each in data_defenses(defenses):
        mixes = mixes_examples(each)
        if mixes is not False:
            does = "mixes examples" if mixes else "is not known to keep examples apart"
            found.append(f"{each!r} {does}, so that one of them changes more than one clipped gradient")
    for other in update_defenses(defenses):
        if reads_examples(other):
            found.append(f"{other!r} looks at the private examples after the noise")
    return "; ".join(found)


def _uncredited(one_draw: bool, fixed: bool) -> str:
    if not one_draw:
        return "the rounds' sample rate is not credited: the local steps share one draw"
    if not fixed:
        return "the rounds' sample rate is not credited: that takes a fixed divisor, expected_batch_size"
    return ""


def epsilon_spent(
    noise_multiplier: float,
    steps: int = 1,
    sample_rate: float = 1.0,
    delta: float = 1e-5,
    accountant: Literal["prv", "rdp"] = "prv",
) -> PrivacySpent:
    """Epsilon of so many steps of the Poisson-subsampled Gaussian mechanism, for examples added or removed.

    Args:
        noise_multiplier: standard deviation over sensitivity.
        steps: how many.
        sample_rate: of each, in (0, 1].
        delta: at which epsilon is stated.
        accountant: the one to ask; PRV gives way to RDP where its grid would be larger than 2^21 points or it fails.

    Raises:
        ConfigError: Opacus is not installed.
    """
    return epsilon_of_history([(noise_multiplier, sample_rate, steps)], delta, accountant)


def epsilon_of_history(
    history: Sequence[tuple[float, float, int]], delta: float = 1e-5, accountant: Literal["prv", "rdp"] = "prv"
) -> PrivacySpent:
    """Epsilon of steps whose noise or sample rate changed on the way, as an accountant of Opacus keeps them.

    Args:
        history: noise multiplier, sample rate and number of steps, in turn.
        delta: at which epsilon is stated.
        accountant: the one to ask, as for `epsilon_spent`.

    Returns:
        The figure, with the least noise and the largest rate of all steps.

    Raises:
        ConfigError: Opacus is not installed, or there is no step.

    >>> print(epsilon_of_history([(1.0, 0.1, 20), (2.0, 0.1, 20)], 1e-5, "rdp"))
    epsilon 4.35 at delta 1e-05 (RDP accountant, 40 steps, sample rate 0.1)
    """
    if not history:
        raise ConfigError("an accountant that has seen no step has nothing to add up; take a step first")
    least, rate = min(noise for noise, _, _ in history), max(each for _, each, _ in history)
    steps = sum(number for _, _, number in history)
    changed = "noise or sample rate changed on the way: the least and the largest are shown" if len(history) > 1 else ""

    def spent(epsilon: float, by: Literal["prv", "rdp"], note: str = "") -> PrivacySpent:
        return _noted(PrivacySpent(epsilon, delta, by, least, steps, rate, note), changed)

    if least == 0:
        return spent(math.inf, accountant, "there is no noise")
    if accountant == "rdp":
        return spent(_rdp(history, delta), "rdp")
    points = _prv_points(history, delta)
    why = f"PRV would need a grid of {points:.2g} points"
    if points <= _MOST_POINTS:
        try:
            return spent(_prv(history, delta), "prv")
        except (ArithmeticError, RuntimeError, ValueError) as error:
            why = f"PRV failed: {error}"
    return spent(_rdp(history, delta), "rdp", f"{why}; RDP is an upper bound")


def _often(client: DPSGD, num_examples: int) -> int:
    """In how many local steps an example takes part, at most."""
    taken = [0] * num_examples
    for part in client.steps(num_examples).slices:
        for index in range(*part.indices(num_examples)):
            taken[index] += 1
    return max(taken)


def _rdp(history: Sequence[tuple[float, float, int]], delta: float) -> float:
    accountants = _opacus()
    accountant = accountants.RDPAccountant()
    accountant.history = list(history)
    try:
        return _quietly(lambda: float(accountant.get_epsilon(delta)))
    except ZeroDivisionError:  # the square of the noise is 0
        return math.inf


def _prv(history: Sequence[tuple[float, float, int]], delta: float) -> float:
    accountant = _opacus().PRVAccountant()
    accountant.history = list(history)
    epsilon = _quietly(lambda: float(accountant.get_epsilon(delta, eps_error=_EPSILON_ERROR)))
    if not 0 <= epsilon < math.inf:
        raise ArithmeticError(f"it gave {epsilon}")
    return epsilon


def _prv_points(history: Sequence[tuple[float, float, int]], delta: float) -> float:
    """How large PRV's grid will be: from minus to plus an epsilon at a far smaller delta, at a mesh that composes.

    Gopi et al., remark 5.6, with Opacus' share of delta for errors, 1/1000.
    """
    error, steps = delta / 1000, sum(number for _, _, number in history)
    alone = [_rdp([(noise, rate, 1)], error / (8 * steps)) for noise, rate, _ in history]
    widest = max(_rdp(history, error / 4), *alone)
    mesh = _EPSILON_ERROR / math.sqrt(steps * math.log(12 / error) / 2)
    return 2 * (widest + 3) / mesh


def _quietly(compute: Callable[[], float]) -> float:
    """Without the accountants' remarks on orders and logarithms of zero, which change no figure here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return compute()


def _opacus() -> Any:
    try:
        from opacus import accountants
    except ImportError as error:
        raise ConfigError(
            "epsilon comes from Opacus' accountants; install them: pip install 'inversefed[dp]'"
        ) from error
    return accountants


def _noted(spent: PrivacySpent, note: str) -> PrivacySpent:
    return replace(spent, note="; ".join(each for each in (spent.note, note) if each))
