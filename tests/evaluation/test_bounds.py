"""What no attack exceeds: against other computations, and against the best attacks on secrets behind real updates."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import Tensor, nn

from inversefed import DPSGD
from inversefed.errors import ConfigError
from inversefed.evaluation.bounds import Mechanism, fano_bound, gaussian_bound, information, success_bound
from inversefed.fl.losses import MeanSquaredError
from inversefed.fl.network import freeze
from inversefed.thresholds import GUESSES


def by_search(guess: float, mu: float) -> float:
    """The power of the best test of N(mu, 1) against N(0, 1) at this level: by bisection."""
    low, high = -40.0, 40.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if stats.norm.sf(middle) > guess else (low, middle)
    return float(stats.norm.sf(low - mu))


@pytest.mark.parametrize("guess", GUESSES)
@pytest.mark.parametrize("mu", [0.0, 0.3, 1.0, 4.0])
def test_the_gaussian_bound_is_the_power_of_the_best_test(guess: float, mu: float) -> None:
    assert gaussian_bound(guess, mu) == pytest.approx(by_search(guess, mu), rel=1e-6)


@pytest.mark.parametrize("guess", GUESSES)
def test_steps_add_up_as_their_squares(guess: float) -> None:
    assert success_bound([guess], Mechanism(2.0, steps=9)) == pytest.approx([gaussian_bound(guess, 1.5)])


@pytest.mark.parametrize("guess", GUESSES)
def test_two_sampled_steps_agree_with_a_count_over_the_plane(guess: float) -> None:
    """The accountant's curve against the best event of two noisy values, by the likelihood ratio on a fine grid."""
    pytest.importorskip("dp_accounting")
    noise, rate = 1.0, 0.3
    values = np.linspace(-8, 9, 1701)
    step = values[1] - values[0]
    out = stats.norm.pdf(values, scale=noise)
    inside = (1 - rate) * out + rate * stats.norm.pdf(values, loc=1.0, scale=noise)
    p, q = np.outer(inside, inside).ravel() * step**2, np.outer(out, out).ravel() * step**2
    order = np.argsort(-p / q)
    reached = float(np.interp(guess, np.cumsum(q[order]), np.cumsum(p[order])))
    (found,) = success_bound([guess], Mechanism(noise, steps=2, sample_rate=rate))
    assert reached - 1e-4 <= found <= reached + 0.03  # its curve holds for adding and for removing


def test_one_sampled_step_is_the_limit_of_the_accountant_s_curve() -> None:
    pytest.importorskip("dp_accounting")
    from dp_accounting.pld import privacy_loss_distribution

    curve = privacy_loss_distribution.from_gaussian_mechanism(
        0.8, sampling_prob=0.2, value_discretization_interval=1e-3
    )
    grid = np.linspace(-10, 20, 601)
    for guess in (0.01, 0.1):
        other = min(math.exp(e) * guess + curve.get_delta_for_epsilon(e) for e in grid)
        assert other - 0.03 < success_bound([guess], Mechanism(0.8, sample_rate=0.2))[0] < other + 1e-3


def test_sampling_helps_and_more_noise_helps_and_more_steps_do_not() -> None:
    pytest.importorskip("dp_accounting")
    (base,) = success_bound([0.1], Mechanism(1.0, 20, 0.1))
    assert 0.1 < base < success_bound([0.1], Mechanism(1.0, 20))[0]
    assert success_bound([0.1], Mechanism(2.0, 20, 0.1))[0] < base < success_bound([0.1], Mechanism(1.0, 40, 0.1))[0]


@pytest.fixture(scope="module", params=[0.5, 2.0])
def released(request: pytest.FixtureRequest) -> tuple[float, Tensor]:
    """A noise multiplier, and what DP-SGD makes of one example many times: its part of the update, in clipping norms.

    The client's noise is that of each entry of an update without a signal; the part itself is clipped to length 1.
    """
    module = nn.Sequential(nn.Flatten(), nn.Linear(4000, 1, bias=False))
    nn.init.zeros_(module[1].weight)
    network = freeze(module, (1, 40, 100), loss=MeanSquaredError())
    client, image = DPSGD(noise_multiplier=request.param, max_grad_norm=0.1), torch.ones(1, 1, 40, 100)
    for label, length in ((1.0, -1.0), (-1.0, 1.0)):
        (part,) = replace(client, noise_multiplier=0.0)(network, image, torch.tensor([[label]])).values()
        assert float(part.sum()) / 4000**0.5 / 0.1 == pytest.approx(length, rel=1e-4)
    (noise,) = client(network, image, torch.tensor([[0.0]])).values()
    return request.param, noise.flatten() / 0.1


def test_the_best_attack_on_one_step_comes_near_the_bound_and_never_above(released: tuple[float, Tensor]) -> None:
    """Two labels, equally likely, whose clipped gradients are opposite: the sign of the update is the best guess."""
    multiplier, noise = released
    secrets = torch.where(torch.arange(len(noise)) % 2 == 0, 1.0, -1.0)
    right = int(((secrets + noise).sign() == secrets).sum())
    bound = gaussian_bound(0.5, 1 / multiplier)
    assert stats.binomtest(right, len(noise), bound, alternative="greater").pvalue > 1e-3
    assert right / len(noise) > bound - 0.03


@pytest.mark.parametrize("guess", [0.01, 0.1])
def test_membership_behind_dp_sgd_stays_below_the_bound_and_comes_near(
    guess: float, released: tuple[float, Tensor]
) -> None:
    multiplier, noise = released
    threshold = float(multiplier * stats.norm.isf(guess))
    called = int((1 + noise > threshold).sum())
    (bound,) = success_bound([guess], Mechanism(multiplier))
    assert abs(float((noise > threshold).double().mean()) - guess) < 0.02
    assert stats.binomtest(called, len(noise), bound, alternative="greater").pvalue > 1e-3
    assert called / len(noise) > bound - 0.03


@pytest.mark.parametrize("values", [4, 32])
def test_one_of_many_secrets_is_guessed_less_often_than_both_bounds_say(
    values: int, generator: torch.Generator
) -> None:
    """Secrets at right angles, the likeliest is guessed."""
    noise, runs = 0.6, 4000
    seen = noise * torch.randn(runs, values, generator=generator)
    seen[:, 0] += 1
    right = float((seen.argmax(dim=1) == 0).double().mean())
    mechanism = Mechanism(noise)
    (bound,) = success_bound([1 / values], mechanism)
    assert right < bound <= fano_bound(1 / values, information(mechanism)) + 1e-9


def test_the_information_of_sampled_steps_is_the_integral_of_the_definition() -> None:
    rate, noise = 0.2, 0.9

    def density(x: float) -> float:
        return (1 - rate) * stats.norm.pdf(x, scale=noise) + rate * stats.norm.pdf(x, loc=1, scale=noise)

    expected, _ = integrate.quad(lambda x: density(x) * math.log(density(x) / stats.norm.pdf(x, scale=noise)), -9, 10)
    assert information(Mechanism(noise, 3, rate)) == pytest.approx(3 * expected, rel=1e-5)
    assert information(Mechanism(noise, 3)) == pytest.approx(1.5 / noise**2)


def test_fano_s_inequality_holds_with_equality() -> None:
    share = fano_bound(0.25, 0.3)
    divergence = share * math.log(share / 0.25) + (1 - share) * math.log((1 - share) / 0.75)
    assert divergence == pytest.approx(0.3) and 0.25 < share < 1
    assert fano_bound(0.25, 5.0) == 1.0 and fano_bound(1.0, 0.1) == 1.0


@pytest.mark.parametrize("values", [(0.0, 1, 1.0), (1.0, 0, 1.0), (1.0, 1, 0.0), (1.0, 1, 1.5)])
def test_what_is_no_mechanism_is_refused(values: tuple[float, int, float]) -> None:
    with pytest.raises(ConfigError, match="noise_multiplier"):
        Mechanism(*values)


def test_what_is_no_chance_is_refused() -> None:
    with pytest.raises(ConfigError, match="between 0 and 1"):
        gaussian_bound(1.5, 1.0)
