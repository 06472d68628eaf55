"""What no attack can exceed, where noise was added to something of bounded length.

An adversary who, before the update, guesses a secret within a target with probability k guesses it after the update
with probability at most

    B(k) = max { P(E) : Q(E) <= k } = min_e [ k exp(e) + delta(e) ],    e any real number

where P is what is sent with the secret in it, Q the same with nothing in its place, and delta(e) their privacy profile
(Balle, Cherubin and Hayes 2022, arXiv:2201.04845; Hayes, Mahloujifar and Balle 2023, arXiv:2302.07225; the trade-off
function of Dong, Roth and Su 2019, arXiv:1905.02383, is 1 - B). For Gaussian noise, of one release or of many, it is

    B(k) = Phi( Phi^-1(k) + mu ),        mu = sqrt(steps) / noise multiplier

and for Poisson-subsampled steps that are composed it comes from the privacy loss distribution that `dp-accounting` adds
up. The same curve bounds membership: of records that are in, at most B(a) are called at a rate a of false alarms.

A secret of few values, such as a label, also obeys Fano's inequality (Guo et al. 2022, arXiv:2210.13662):

    t log(t / k) + (1 - t) log((1 - t) / (1 - k)) <= I,        I <= steps KL(P1, Q1) = mu^2 / 2 without sampling

for the share t that is guessed right. It is looser than B with the same P and Q, and needs no curve.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from inversefed.errors import ConfigError
from inversefed.thresholds import GUESSES

__all__ = ["Bound", "Bounds", "Mechanism", "fano_bound", "gaussian_bound", "information", "success_bound"]

_MESH = 1e-3
"""Of the privacy losses that are added up; the estimate rounds them up, so the bound holds at any mesh."""

_PROFILE = tuple(each / 10 for each in range(-300, 401))
"""Values of e that the minimum is taken over; any set of them gives a bound."""

_LARGEST = 30.0
"""mu from which nothing is bounded: whoever guesses with probability 1e-100 before is certain after."""


@dataclass(frozen=True)
class Mechanism:
    """Gaussian noise on what a secret changes by a bounded length.

    Args:
        noise_multiplier: standard deviation over the length that a secret's part is clipped to, above 0.
        steps: how many such releases, from 1.
        sample_rate: the probability with which the secret is in one, drawn anew for each, in (0, 1].
        secret: what the bound is about: one example of the batch, or all of an update.

    Raises:
        ConfigError: a value out of its range.
    """

    noise_multiplier: float
    steps: int = 1
    sample_rate: float = 1.0
    secret: str = "an example"

    def __post_init__(self) -> None:
        if not self.noise_multiplier > 0 or self.steps < 1 or not 0 < self.sample_rate <= 1:
            raise ConfigError(
                "a mechanism needs noise_multiplier > 0, steps >= 1 and 0 < sample_rate <= 1; got "
                f"{self.noise_multiplier}, {self.steps} and {self.sample_rate}"
            )

    @property
    def mu(self) -> float:
        """Signal over noise of all steps, without credit for sampling."""
        return math.sqrt(self.steps) / self.noise_multiplier


@dataclass(frozen=True)
class Bound:
    """What no attack can exceed, for stated chances of a guess.

    Args:
        mechanism: what it holds for; `None` where there is no bound.
        guesses: chances of a guess before the update, in (0, 1).
        success: the most after it, one each, in [guess, 1]; empty where there is no bound.
        labels: chance to guess a label before the update, and Fano's bound after it; `None` without either.
        note: why there is no bound, or what it does not cover.
    """

    mechanism: Mechanism | None
    guesses: tuple[float, ...] = GUESSES
    success: tuple[float, ...] = ()
    labels: tuple[float, float] | None = None
    note: str = ""


@dataclass(frozen=True)
class Bounds:
    """What no attack exceeds.

    Args:
        per_release: on one update.
        cumulative: on those of all rounds; `None` where there is one round, or no bound.
    """

    per_release: Bound
    cumulative: Bound | None = None


def gaussian_bound(guess: float, mu: float) -> float:
    """The most that a guess of this chance becomes behind Gaussian noise: `Phi(Phi^-1(guess) + mu)`.

    Args:
        guess: the chance before, in [0, 1].
        mu: signal over noise, from 0.

    >>> round(gaussian_bound(0.5, 0.0), 3), round(gaussian_bound(0.01, 1.0), 3)
    (0.5, 0.092)
    """
    from scipy import special

    return float(special.ndtr(special.ndtri(_chance(guess)) + mu))


def success_bound(guesses: Sequence[float], mechanism: Mechanism) -> tuple[float, ...]:
    """The most that guesses of these chances become.

    Args:
        guesses: chances before, each in [0, 1].
        mechanism: what an update is under.

    Raises:
        ConfigError: a chance out of its range; or sampled steps, and `dp-accounting` is not installed.

    >>> [round(each, 3) for each in success_bound([0.01, 0.5], Mechanism(noise_multiplier=2.0, steps=4))]
    [0.092, 0.841]
    """
    if mechanism.sample_rate == 1 or mechanism.mu > _LARGEST:
        return tuple(gaussian_bound(guess, mechanism.mu) for guess in guesses)
    if mechanism.steps == 1:  # the likelihood ratio rises with the noisy value, so that the best event is a half-line
        rate, mu = mechanism.sample_rate, mechanism.mu
        return tuple((1 - rate) * _chance(guess) + rate * gaussian_bound(guess, mu) for guess in guesses)
    try:
        from dp_accounting.pld import privacy_loss_distribution
    except ImportError as error:
        raise ConfigError(
            "the bound of sampled steps comes from dp-accounting; install it: pip install 'inversefed[dp]'"
        ) from error
    one = privacy_loss_distribution.from_gaussian_mechanism(
        mechanism.noise_multiplier, sampling_prob=mechanism.sample_rate, value_discretization_interval=_MESH
    )
    profile = one.self_compose(mechanism.steps).get_delta_for_epsilon(list(_PROFILE))
    pairs = [(math.exp(epsilon), float(delta)) for epsilon, delta in zip(_PROFILE, profile, strict=True)]
    return tuple(
        max(guess, min(1.0, *(_chance(guess) * factor + delta for factor, delta in pairs))) for guess in guesses
    )


def information(mechanism: Mechanism) -> float:
    """How much an update says of a secret at most, in nats: the divergence of each step, added up.

    Without sampling `mu^2 / 2`; with it, of `(1 - q) N(0, s^2) + q N(1, s^2)` from `N(0, s^2)`, by quadrature.
    """
    from scipy import integrate, special

    rate, noise = mechanism.sample_rate, mechanism.noise_multiplier
    if rate == 1:
        return mechanism.mu**2 / 2

    def integrand(value: float) -> float:  # of noise of standard deviation 1
        shift = value / noise - 1 / (2 * noise**2)
        log_ratio = float(special.logsumexp([math.log1p(-rate), math.log(rate) + shift]))
        return math.exp(-(value**2) / 2 + log_ratio) * log_ratio / math.sqrt(2 * math.pi)

    one, _ = integrate.quad(integrand, -12, 12 + 1 / noise, points=[0, 1 / noise], limit=500)
    return mechanism.steps * max(0.0, float(one))


def fano_bound(guess: float, nats: float) -> float:
    """The greatest share of secrets that is guessed right after so much information, in [guess, 1].

    Args:
        guess: the share that the best guess has right before, in (0, 1].
        nats: of information about the secret.

    >>> round(fano_bound(0.1, 0.0), 3), round(fano_bound(0.1, 0.5), 3), fano_bound(0.1, 10.0)
    (0.1, 0.495, 1.0)
    """
    from scipy import optimize

    if not 0 < guess < 1:
        return _chance(guess)
    if nats >= -math.log(guess):
        return 1.0

    def spare(share: float) -> float:
        right = share * math.log(share / guess) if share > 0 else 0.0
        wrong = (1 - share) * math.log((1 - share) / (1 - guess)) if share < 1 else 0.0
        return right + wrong - nats

    return float(optimize.brentq(spare, guess, 1.0)) if nats > 0 else guess


def _chance(guess: float) -> float:
    """The chance itself.

    Raises:
        ConfigError: it is none.
    """
    if not 0 <= guess <= 1:
        raise ConfigError(f"the chance of a guess is between 0 and 1, got {guess!r}")
    return guess
