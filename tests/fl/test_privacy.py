"""Epsilon is what Opacus' accountants say, agrees with the exact Gaussian mechanism, and never hangs."""

import math
import sys
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq
from scipy.special import log_ndtr
from torch import nn

import inversefed
from inversefed import DPSGD, Accounting, FedSGD, SumOfClients, defenses, recipes
from inversefed.errors import ConfigError
from inversefed.fl import privacy
from inversefed.fl.clients.partial import Shares
from inversefed.fl.privacy import dp_client, epsilon_spent, privacy_of
from inversefed.frontier.points import Point, measure
from inversefed.report.frontier import Row
from inversefed.specs import registry


def exact(sigma: float, delta: float) -> float:
    """Epsilon of one Gaussian mechanism of sensitivity 1 (Balle and Wang 2018, Theorem 8)."""

    def excess(epsilon: float) -> float:
        upper = log_ndtr(0.5 / sigma - epsilon * sigma)
        lower = epsilon + log_ndtr(-0.5 / sigma - epsilon * sigma)
        return upper + math.log(max(-math.expm1(lower - upper), 1e-300)) - math.log(delta)

    return float(brentq(excess, 1e-9, 1e5))


@pytest.mark.parametrize("steps", [1, 16])
@pytest.mark.parametrize("sigma", [0.5, 2.0, 8.0])
def test_without_sampling_prv_is_the_exact_gaussian_mechanism_and_rdp_a_bound(sigma: float, steps: int) -> None:
    epsilon = exact(sigma / math.sqrt(steps), 1e-5)
    tight = epsilon_spent(sigma, steps)
    assert tight.accountant == "prv" and epsilon <= tight.epsilon <= epsilon + 0.03
    loose = epsilon_spent(sigma, steps, accountant="rdp")
    assert loose.accountant == "rdp" and epsilon <= loose.epsilon <= 1.3 * epsilon + 0.3


@pytest.mark.parametrize(("accountant", "own"), [("prv", PRVAccountant), ("rdp", RDPAccountant)])
def test_with_sampling_it_is_opacus_own_figure(accountant: str, own: type) -> None:
    opacus = own()
    for _ in range(200):
        opacus.step(noise_multiplier=1.1, sample_rate=0.02)
    spent = epsilon_spent(1.1, 200, 0.02, 1e-6, accountant)
    assert spent.epsilon == pytest.approx(opacus.get_epsilon(delta=1e-6)) and spent.accountant == accountant


@pytest.mark.parametrize("sigma", [1e-2, 1e-3, 1e-9])
def test_a_large_epsilon_comes_from_rdp_and_says_so(sigma: float) -> None:
    spent = epsilon_spent(sigma)
    assert spent.accountant == "rdp" and "PRV would need a grid" in spent.note
    assert spent.epsilon >= 0.5 / sigma**2


def test_where_prv_fails_rdp_stands_in_and_says_so() -> None:
    spent = epsilon_spent(0.02)
    assert spent.accountant == "rdp" and "PRV failed" in spent.note and spent.epsilon >= exact(0.02, 1e-5)


def test_without_noise_epsilon_is_infinite() -> None:
    assert epsilon_spent(0.0).epsilon == math.inf and "infinite" in str(epsilon_spent(0.0))
    assert epsilon_spent(1e-200, accountant="rdp").epsilon == math.inf


def test_one_release_has_no_credit_for_sampling_and_all_rounds_have_it() -> None:
    asked = Accounting(rounds=100, sample_rate=0.01)
    one, every = privacy_of(DPSGD(1.0, 1.0, expected_batch_size=8, accounting=asked), 8)
    assert (one.steps, one.sample_rate, every.steps, every.sample_rate) == (1, 1.0, 100, 0.01)
    assert every.epsilon < one.epsilon  # a server that does not know who took part learns less
    again = privacy_of(DPSGD(1.0, 5.0, expected_batch_size=3), 8)
    assert again.per_release.epsilon == one.epsilon == again.cumulative.epsilon


def test_sampling_is_credited_only_where_the_divisor_is_fixed() -> None:
    asked = Accounting(rounds=100, sample_rate=0.01, accountant="rdp")
    one, every = privacy_of(DPSGD(1.0, 1.0, accounting=asked), 8)
    assert every.sample_rate == 1.0 and "expected_batch_size" in every.note and not one.note
    assert every.epsilon > one.epsilon and one.neighbors == every.neighbors == "zeroed"
    for fixed in ({"expected_batch_size": 8}, {"loss_reduction": "sum"}):
        one, every = privacy_of(DPSGD(1.0, 1.0, **fixed, accounting=asked), 8)
        assert every.sample_rate == 0.01 and not every.note and one.neighbors == every.neighbors == "added or removed"


def audited(client: DPSGD, *chain: object) -> inversefed.Report:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Sigmoid(), nn.Linear(8, 4))
    return inversefed.audit(
        module, torch.rand(2, 3, 4, 4), torch.tensor([1, 2]), client=client, defenses=chain, attack=recipes.dlg(),
        max_iterations=1, nulls=0,
    )  # fmt: skip


@dataclass(frozen=True)
class Blurred:
    """A data defense of somebody who did not say what it does."""

    acts_on: ClassVar[str] = "data"

    def __call__(self, images: torch.Tensor, labels: torch.Tensor, generator: torch.Generator) -> tuple:
        return images.mean(dim=0, keepdim=True).expand_as(images).contiguous(), labels


@pytest.mark.parametrize(
    ("defense", "why"),
    [
        (defenses.Mixup(1.0), "Mixup(alpha=1.0) mixes examples"),
        (defenses.Soteria(0.5), "Soteria(share=0.5) looks at the private examples after the noise"),
        (Blurred(), "Blurred() is not known to keep examples apart"),
    ],
)
def test_no_epsilon_is_stated_beside_a_defense_that_breaks_it(defense: object, why: str) -> None:
    report = audited(DPSGD(1.0, 1.0), defense)
    (finding,) = [each for each in report.findings if each.code == "differential-privacy"]
    assert finding.level == "warning" and why in finding.message and "delta" not in finding.message
    assert "privacy" not in report.scenario
    row = measure_point(Point("p", DPSGD(1.0, 1.0), (defense,), num_images=2))
    assert row.epsilon is None and f"no epsilon: {why}" in row.note


def test_epsilon_is_stated_beside_defenses_that_leave_it() -> None:
    chain = (defenses.ATS(("flip",)), defenses.TopK(0.5), defenses.GaussianNoise(0.1))
    report = audited(DPSGD(1.0, 1.0, expected_batch_size=2), *chain)
    (finding,) = [each for each in report.findings if each.code == "differential-privacy"]
    assert finding.level == "info" and report.scenario["privacy"]["per_release"]["neighbors"] == "added or removed"
    assert "one example added or removed; what divides the sum is fixed" in finding.message
    report = audited(DPSGD(1.0, 1.0), *chain)
    (finding,) = [each for each in report.findings if each.code == "differential-privacy"]
    assert "their number public, of which one adds nothing to the sum." in finding.message
    assert measure_point(Point("p", DPSGD(1.0, 1.0), chain)).epsilon == pytest.approx(4.387, abs=0.01)


def measure_point(point: Point) -> Row:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 8), nn.Sigmoid(), nn.Linear(8, 4))
    images, labels = torch.rand(2, 3, 4, 4), torch.tensor([1, 2])
    return measure(module, images, labels, point, attack=recipes.geiping(max_iterations=1))


def test_local_steps_are_added_up_as_often_as_one_example_is_in_them() -> None:
    asked = Accounting(rounds=10, sample_rate=0.5, accountant="rdp")
    client = DPSGD(2.0, 1.0, local_steps=5, batch_size=2, sends="delta", accounting=asked)
    one, every = privacy_of(client, 4)  # two slices: the first is taken three times
    assert (one.steps, every.steps, every.sample_rate) == (3, 30, 1.0) and "not credited" in every.note
    drawn = DPSGD(
        2.0, 1.0, local_steps=5, expected_batch_size=1, poisson_sampling=True, sends="delta",
        accounting=Accounting(rounds=10, accountant="rdp"),
    )  # fmt: skip
    one, every = privacy_of(drawn, 4)
    assert (one.steps, one.sample_rate, every.steps, every.sample_rate) == (5, 1.0, 50, 0.25) and not every.note


def test_the_report_prints_epsilon_the_accountant_and_the_steps() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    images, labels = torch.rand(2, 3, 4, 4), torch.tensor([1, 2])
    client = DPSGD(1.0, 0.5, expected_batch_size=2, accounting=Accounting(rounds=7, sample_rate=0.1))
    report = inversefed.audit(module, images, labels, client=client, attack=recipes.dlg(), max_iterations=1, nulls=0)
    promised = report.scenario["privacy"]
    assert promised["per_release"]["epsilon"] == pytest.approx(4.387, abs=0.01)
    assert promised["cumulative"]["steps"] == 7 and promised["cumulative"]["accountant"] == "prv"
    (finding,) = [each for each in report.findings if each.code == "differential-privacy"]
    assert "epsilon 4.39 at delta 1e-05 (PRV accountant, 1 step, sample rate 1)" in finding.message
    assert "All 7 rounds: epsilon" in finding.message and finding.level == "info"
    quiet = inversefed.audit(
        module, images, labels, client=DPSGD(0.0, 1.0), attack=recipes.dlg(), max_iterations=1, nulls=0
    )
    (finding,) = [each for each in quiet.findings if each.code == "differential-privacy"]
    assert finding.level == "warning" and "infinite" in finding.message and "Infinity" not in quiet.to_json()


def test_without_opacus_the_audit_runs_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(ConfigError, match=r"inversefed\[dp\]"):
        privacy_of(DPSGD(1.0, 1.0), 2)
    module = nn.Sequential(nn.Flatten(), nn.Linear(48, 4))
    report = inversefed.audit(
        module,
        torch.rand(1, 3, 4, 4),
        torch.tensor([1]),
        client=DPSGD(1.0, 1.0),
        attack=recipes.dlg(),
        max_iterations=1,
        nulls=0,
    )
    (finding,) = [each for each in report.findings if each.code == "differential-privacy"]
    assert "inversefed[dp]" in finding.message and "privacy" not in report.scenario


def test_a_dp_client_is_found_inside_others() -> None:
    private = DPSGD(1.0, 1.0)
    assert dp_client(Shares(SumOfClients(private), ("*",))) is private
    assert dp_client(SumOfClients(FedSGD())) is None
    assert privacy.privacy_of(private, 3).per_release.steps == 1


@pytest.mark.parametrize("settings", [{"target_delta": 0.0}, {"rounds": 0}, {"sample_rate": 1.5}])
def test_accounting_that_makes_no_sense_is_refused(settings: dict) -> None:
    with pytest.raises(ConfigError, match="Accounting"):
        Accounting(**settings)


def test_an_unknown_accountant_is_refused() -> None:
    with pytest.raises(ConfigError, match="accountant"):
        registry.build("client", "DPSGD(1.0, 1.0, accounting=Accounting(accountant='gdp'))")
