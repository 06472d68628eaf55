"""The filters of FLARE as defenses: what is sent, and what an attacker who knows them does with the rest.

Beside FLARE's own classes they stand in `tests/integrations/test_nvflare.py`.
"""

import math

import numpy as np
import pytest
import torch

from inversefed import Batch, defenses, freeze, recipes
from inversefed.attacks.adaptive import Adaptive
from inversefed.attacks.pieces.likelihoods import LaplaceLikelihood, PrunedError
from inversefed.attacks.pieces.quantized import Masked
from inversefed.errors import ConfigError
from inversefed.fl.defenses import Context
from inversefed.fl.defenses.selective_sharing import percentile
from inversefed.fl.simulate import observed
from inversefed.fl.threat import ThreatModel


@pytest.fixture
def context(tiny: torch.nn.Module) -> Context:
    return Context(freeze(tiny, (3, 8, 8)), Batch(torch.rand(1, 3, 8, 8), torch.tensor([0])))


def update(generator: torch.Generator) -> dict[str, torch.Tensor]:
    return {"a": torch.randn(40, 5, generator=generator), "b": 0.1 * torch.randn(7, generator=generator)}


@pytest.mark.parametrize("q", [0.0, 10.0, 33.3, 50.0, 99.0, 100.0])
def test_a_percentile_is_numpy_s(q: float, generator: torch.Generator) -> None:
    values = torch.randn(97, generator=generator)
    assert float(percentile(values, q)) == pytest.approx(float(np.percentile(values.numpy(), q)), rel=1e-6)


@pytest.mark.parametrize("steps", [1, 4])
def test_the_smallest_of_all_tensors_together_are_not_sent(
    context: Context, generator: torch.Generator, steps: int
) -> None:
    sent = update(generator)
    found = defenses.PercentilePrivacy(60.0, gamma=0.8, steps=steps)(sent, context, generator)
    both, kept = (torch.cat([part.flatten() for part in each.values()]) for each in (sent, found))
    assert int((kept == 0).sum()) == 124  # 60 % of 207 entries
    assert float(both[kept != 0].abs().min()) > float(both[kept == 0].abs().max())
    torch.testing.assert_close(kept[kept != 0], both[kept != 0].clamp(-0.8 * steps, 0.8 * steps))
    assert int((found["b"] != 0).sum()) < 3  # not tensor by tensor


def test_numbers_that_are_no_arrays_are_sent_as_they_are(context: Context, generator: torch.Generator) -> None:
    sent = {"scale": torch.tensor(1e-3), "w": torch.randn(50, generator=generator)}
    for defense in (defenses.PercentilePrivacy(50.0, 0.1), defenses.SVTPrivacy(0.2, gamma=0.1)):
        assert torch.equal(defense(sent, context, generator)["scale"], sent["scale"])


def test_few_entries_are_chosen_and_noised(context: Context, generator: torch.Generator) -> None:
    sent = {"a": torch.linspace(-1, 1, 2001).view(3, 667)}
    quiet = defenses.SVTPrivacy(0.1, epsilon=1e7, noise_var=1e7, gamma=2.0, tau=0.85, replace=False)
    found = quiet(sent, context, generator)["a"]
    chosen = found != 0
    assert int(chosen.sum()) == 201 == quiet.drawn(2001)
    assert float(sent["a"][chosen].abs().min()) > 0.84  # all above the threshold
    torch.testing.assert_close(found[chosen], sent["a"][chosen], atol=1e-3, rtol=0)
    again = defenses.SVTPrivacy(0.1, 1e7, 1e7, gamma=2.0, tau=0.85)(sent, context, generator)["a"]
    assert 100 < int((again != 0).sum()) < 201  # the same entry may be drawn twice
    noisy = defenses.SVTPrivacy(0.5, epsilon=1e7, noise_var=4.0, gamma=2.0, tau=-1.0, replace=False, steps=3)
    noise = torch.cat([(noisy(sent, context, generator)["a"] - sent["a"]).flatten() for _ in range(20)])
    noise = noise[(noise + sent["a"].flatten().repeat(20)) != 0]
    assert noisy.noise_scale == 3.0
    assert float(noise.abs().mean()) == pytest.approx(3.0, rel=5 / math.sqrt(len(noise)))


def test_a_choice_that_sees_only_noise_does_not_depend_on_sizes(context: Context, generator: torch.Generator) -> None:
    sent = {"a": torch.linspace(0, 1, 400)}
    chosen = [defenses.SVTPrivacy(0.1, gamma=1e-3)(sent, context, generator)["a"] != 0 for _ in range(200)]
    share = torch.stack(chosen).double().mean(0)
    assert float((share[:200].mean() - share[200:].mean()).abs()) < 5 * math.sqrt(0.1 * 0.9 / (200 * 200) * 2)


def test_what_it_spends_is_the_choice_and_each_value() -> None:
    assert defenses.SVTPrivacy(0.1, epsilon=0.5, noise_var=2.0).spent(95) == pytest.approx(0.5 + 10 * 2.0)


def test_a_threshold_that_nothing_comes_above_is_told(context: Context, generator: torch.Generator) -> None:
    with pytest.raises(ConfigError, match="0 of 5 entries came above the threshold"):
        defenses.SVTPrivacy(0.5, 1e9, 1e9, gamma=0.1, tau=5.0)({"a": torch.ones(10)}, context, generator)


def test_excluded_tensors_say_nothing(context: Context, generator: torch.Generator) -> None:
    sent = {"0.weight": torch.ones(2, 2), "0.bias": torch.ones(2), "bias_net.weight": torch.ones(3)}
    for given, out in (("bias$", {"0.bias"}), ("bias", {"0.bias", "bias_net.weight"}), (("0.weight",), {"0.weight"})):
        found = defenses.ExcludeVars(given)(sent, context, generator)
        assert {name for name, part in found.items() if not part.any()} == out and list(found) == list(sent)
    for given in ("head", "."):
        with pytest.raises(ConfigError, match=r"leaves out (none|all)"):
            defenses.ExcludeVars(given)(sent, context, generator)


@pytest.mark.parametrize(
    "make",
    [
        lambda: defenses.PercentilePrivacy(101.0),
        lambda: defenses.PercentilePrivacy(10.0, 0.0),
        lambda: defenses.SVTPrivacy(0.0),
        lambda: defenses.SVTPrivacy(epsilon=0.0),
        lambda: defenses.ExcludeVars(()),
        lambda: defenses.ExcludeVars("("),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()


def test_an_entry_that_was_cut_is_wrong_only_where_a_guess_is_smaller() -> None:
    cost, seen = PrunedError(most=2.0), {"w": torch.tensor([2.0, -2.0, 1.0, 0.0])}
    assert float(cost({"w": torch.tensor([7.0, -2.5, 1.0, 0.9])}, seen)) == 0
    assert float(cost({"w": torch.tensor([1.0, 2.0, 1.0, 0.0])}, seen)) == pytest.approx((1 + 16) / 9)


def test_the_attack_that_knows_them_exchanges_its_objective(tiny: torch.nn.Module, generator: torch.Generator) -> None:
    images = torch.rand((1, 3, 8, 8), generator=generator)
    for defense, objective in (
        (defenses.PercentilePrivacy(50.0, 0.1, steps=2), PrunedError(most=0.2)),
        (defenses.SVTPrivacy(0.5, noise_var=4.0, gamma=0.1), Masked(LaplaceLikelihood(0.05), most=0.1)),
    ):
        seen, _ = observed(tiny, images, torch.tensor([1]), defenses=(defense,), threat=ThreatModel(defenses="known"))
        assert Adaptive(recipes.geiping()).search(seen).objective == objective
    seen, _ = observed(
        tiny, images, torch.tensor([1]), defenses=(defenses.ExcludeVars("bias$"),), threat=ThreatModel(defenses="known")
    )
    left = Adaptive(recipes.geiping()).search(seen).simulation
    assert left.names and all(name.endswith("bias") for name in left.names)
