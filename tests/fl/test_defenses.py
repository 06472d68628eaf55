"""Defenses do what their names say."""

import math

import pytest
import torch

from inversefed import Batch, audit, defenses, freeze, recipes
from inversefed.errors import ConfigError
from inversefed.fl.defenses import Context


@pytest.fixture
def context(tiny: torch.nn.Module) -> Context:
    return Context(freeze(tiny, (3, 8, 8)), Batch(torch.rand(1, 3, 8, 8), torch.tensor([0])))


def test_clip_bounds_the_norm_over_all_tensors_and_keeps_the_direction(context: Context) -> None:
    update = {"a": torch.full((2, 2), 3.0), "b": torch.full((4,), 4.0)}  # norm 10
    clipped = defenses.Clip(2.0)(update, context, torch.Generator())
    assert torch.cat([part.flatten() for part in clipped.values()]).norm() == pytest.approx(2.0)
    torch.testing.assert_close(clipped["b"], update["b"] / 5)
    assert torch.equal(defenses.Clip(11.0)(update, context, torch.Generator())["a"], update["a"])


def test_noise_has_the_stated_deviation(context: Context, generator: torch.Generator) -> None:
    update = {"a": torch.ones(200, 100)}
    noise = defenses.GaussianNoise(0.3)(update, context, generator)["a"] - 1
    assert noise.std() == pytest.approx(0.3, rel=0.03) and abs(float(noise.mean())) < 0.01


def test_top_k_keeps_the_largest_share(context: Context) -> None:
    update = {"a": torch.randn(10, 10), "b": torch.randn(3)}
    pruned = defenses.TopK(0.1)(update, context, torch.Generator())
    assert (pruned["a"] != 0).sum() == 10 and (pruned["b"] != 0).sum() == 1
    kept = pruned["a"] != 0
    assert torch.equal(pruned["a"][kept], update["a"][kept])
    assert update["a"][kept].abs().min() >= update["a"][~kept].abs().max()


def test_random_pruning_keeps_a_share_that_does_not_depend_on_the_values(context: Context) -> None:
    update = {"a": torch.arange(1.0, 101.0).view(10, 10), "b": torch.ones(3)}
    pruned = defenses.RandomPruning(0.2)(update, context, torch.Generator().manual_seed(1))
    kept = pruned["a"] != 0
    assert kept.sum() == 20 and (pruned["b"] != 0).sum() == 1
    assert torch.equal(pruned["a"][kept], update["a"][kept])
    other = defenses.RandomPruning(0.2)({"a": -update["a"].flip(0)}, context, torch.Generator().manual_seed(1))
    assert torch.equal(other["a"] != 0, kept)
    again = defenses.RandomPruning(0.2)(update, context, torch.Generator().manual_seed(2))
    assert not torch.equal(again["a"] != 0, kept)


def test_rescaled_random_pruning_is_right_on_average(context: Context, generator: torch.Generator) -> None:
    update, draws = {"a": torch.tensor([1.0, -2.0, 3.0, 4.0])}, 4000
    prune = defenses.RandomPruning(0.25, rescale=True)
    mean = torch.stack([prune(update, context, generator)["a"] for _ in range(draws)]).mean(0)
    deviation = update["a"].abs() * (3 / draws) ** 0.5  # of 4 v times a coin of 1/4
    assert bool(((mean - update["a"]).abs() < 5 * deviation).all())


def test_signs_keep_the_mean_magnitude_of_each_tensor(context: Context, generator: torch.Generator) -> None:
    update = {"a": torch.randn(5, 4, generator=generator), "b": torch.zeros(2)}
    sent = defenses.SignQuantization()(update, context, generator)
    assert torch.equal(sent["a"].sign(), update["a"].sign()) and torch.equal(sent["b"], update["b"])
    assert sent["a"].abs().unique().numel() == 1
    assert float(sent["a"].abs().sum()) == pytest.approx(float(update["a"].abs().sum()))
    plain = defenses.SignQuantization(scaled=False)(update, context, generator)
    assert torch.equal(plain["a"], update["a"].sign())


@pytest.mark.parametrize("make", [defenses.UniformQuantization, defenses.StochasticQuantization])
@pytest.mark.parametrize("bits", [1, 3, 8])
def test_quantized_entries_stand_on_few_even_levels(make: type, bits: int, context: Context) -> None:
    update = {"a": torch.randn(40, 50), "flat": torch.full((4,), 0.3)}
    sent = make(bits)(update, context, torch.Generator().manual_seed(1))
    low, high = update["a"].min(), update["a"].max()
    step = (high - low) / (2**bits - 1)
    places = (sent["a"] - low) / step
    torch.testing.assert_close(places, places.round(), atol=1e-3, rtol=0)
    assert sent["a"].unique().numel() == 2**bits or bits == 8
    assert sent["a"].min() == low and sent["a"].max() == high and torch.equal(sent["flat"], update["flat"])
    error = (sent["a"] - update["a"]).abs().max() / step
    assert error <= (0.5 if make is defenses.UniformQuantization else 1.0) + 1e-4


def test_stochastic_rounding_is_unbiased_and_rounding_to_the_nearest_is_not(context: Context) -> None:
    update, generator, draws = {"a": torch.linspace(0, 1, 11)}, torch.Generator().manual_seed(3), 20000
    many = {"a": update["a"].repeat(draws, 1)}
    mean = defenses.StochasticQuantization(1)(many, context, generator)["a"].mean(0)
    deviation = (update["a"] * (1 - update["a"]) / draws).sqrt()
    assert bool(((mean - update["a"]).abs() <= 5 * deviation).all())
    nearest = defenses.UniformQuantization(1)(many, context, generator)["a"].mean(0)
    assert float((nearest - update["a"]).abs().max()) > 0.3


def test_local_dp_clips_and_adds_the_noise_of_the_classical_gaussian_mechanism(
    context: Context, generator: torch.Generator
) -> None:
    clip, noise = chain = defenses.local_dp(clipping_norm=0.5, sensitivity=2.0, epsilon=4.0, delta=1e-5)
    assert clip == defenses.Clip(0.5)
    assert noise.std == pytest.approx(2.0 * math.sqrt(2 * math.log(1.25e5)) / 4.0)
    update: dict = {"a": torch.ones(300, 100)}
    for defense in chain:
        update = defense(update, context, generator)
    clipped = 0.5 / math.sqrt(30000)
    assert float((update["a"] - clipped).std()) == pytest.approx(noise.std, rel=0.02)


def test_a_report_names_each_defense_and_what_it_does(tiny: torch.nn.Module) -> None:
    chain = (defenses.RandomPruning(0.5), defenses.StochasticQuantization(4))
    images = torch.rand(1, 3, 8, 8)
    report = audit(tiny, images, torch.tensor([1]), defenses=chain, attack=recipes.dlg(), max_iterations=1)
    (finding,) = [each for each in report.findings if each.code == "defense-unknown-to-attack"]
    assert "RandomPruning(keep=0.5, rescale=False) on the update" in finding.message
    assert "StochasticQuantization(bits=4) on the update" in finding.message
    assert finding.evidence["StochasticQuantization(bits=4)"].startswith("Round each entry to one of the two levels")


def test_what_a_defense_acts_on_is_told_by_the_defense() -> None:
    class Mixes:
        acts_on = "data"

        def __call__(self, images, labels, generator):
            return images.flip(0), labels.flip(0)

    class Grows:
        acts_on = "network"

        def __call__(self, network):
            return network

    mixes, grows, clip = Mixes(), Grows(), defenses.Clip(1.0)
    chain = (clip, mixes, grows)
    assert defenses.data_defenses(chain) == (mixes,) and defenses.network_defenses(chain) == (grows,)
    assert defenses.update_defenses(chain) == (clip,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: defenses.Clip(0.0),
        lambda: defenses.GaussianNoise(-1.0),
        lambda: defenses.TopK(0.0),
        lambda: defenses.RandomPruning(1.5),
        lambda: defenses.UniformQuantization(0),
        lambda: defenses.StochasticQuantization(25),
        lambda: defenses.UniformQuantization(True),
        lambda: defenses.local_dp(1.0, 1.0, 0.0, 1e-5),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()
