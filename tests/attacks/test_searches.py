"""The searches of later papers reconstruct, each where it should."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from inversefed import Budget, GradientInversion, Observation, ThreatModel, defenses, objectives, priors, recipes
from inversefed.attacks.pieces import (
    batchnorm_prior,
    deep_prior,
    denoisers,
    group_consistency,
    likelihoods,
    optimizers,
    projections,
    schedules,
    starts,
    tensor_weights,
)
from inversefed.errors import ConfigError, ThreatModelError, UnsupportedNetworkError
from inversefed.evaluation.align import align
from inversefed.evaluation.metrics import peak_signal_noise_ratio
from inversefed.fl.simulate import observed

SHAPE = (3, 8, 8)
SENT = ThreatModel(labels="known", buffers="sent")


def images(n: int) -> Tensor:
    """Smooth colored pictures."""
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 8), torch.linspace(0, 3, 8), indexing="ij")
    colors = [((rows + k).sin(), (columns * (k + 1)).cos(), (rows - columns).sin()) for k in range(n)]
    return torch.stack([0.5 + 0.4 * torch.stack(each) for each in colors])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def seen(module: nn.Module, n: int = 1, threat: ThreatModel = ThreatModel(labels="known"), **kw: object) -> Observation:
    return observed(module, images(n), torch.arange(n) % 4, mean=0.5, std=0.25, threat=threat, **kw)[0]


def decibels(found: Tensor, n: int = 1) -> float:
    truth = images(n)
    return float(peak_signal_noise_ratio(found[align(found, truth)].clamp(0, 1), truth).mean())


def constant(n: int = 1) -> float:
    """The best that one color a picture can do."""
    return decibels(images(n).mean(dim=(2, 3), keepdim=True).expand(n, *SHAPE).contiguous(), n)


@pytest.mark.parametrize(
    ("attack", "gain"),
    [
        (recipes.gradinversion(restarts=2, max_iterations=200), 4),
        (recipes.modern(max_iterations=300), 3),
        (recipes.tag(max_iterations=300), 5),
        (recipes.deep_prior(max_iterations=300), 20),
    ],
    ids=["gradinversion", "modern", "tag", "deep_prior"],
)
def test_a_recipe_reconstructs_a_picture_far_above_its_best_color(
    tiny: nn.Module, attack: GradientInversion, gain: float
) -> None:
    assert decibels(attack(seen(tiny), seeded()).images) > constant() + gain


# GradInversion's parts


def averaging(padding: str = "circular", norm: bool = False) -> nn.Sequential:
    """A network that averages over places; with circular padding it does not see where a thing is at all."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (3, 16):
        layers += [nn.Conv2d(channels, 16, 3, 1, 1, padding_mode=padding), nn.ReLU()]
        layers[-1:-1] = [nn.BatchNorm2d(16)] * norm
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)).eval()


def anywhere(found: Tensor) -> float:
    """Against the picture wherever it was rolled to: its place is in no update of a circular network."""
    truths = torch.cat([images(1).roll((down, across), (2, 3)) for down in range(8) for across in range(8)])
    return float(peak_signal_noise_ratio(found.clamp(0, 1).expand_as(truths).contiguous(), truths).max())


@pytest.mark.slow
def test_restarts_that_hold_each_other_end_better_only_if_they_are_registered() -> None:
    observation = seen(averaging())
    group = group_consistency.GroupConsistency(weight=0.003, start=0.3, every=20, reach=0.5, circular=True, gain=0.02)
    attack = replace(recipes.geiping(6, 200, 1e-3), width=6)
    chosen, means = [], []
    for each in (None, replace(group, reach=0.0), group):
        found = replace(attack, consistency=each)(observation, seeded())
        chosen.append(anywhere(found.images))
        means.append(sum(anywhere(one.images) for one in found.candidates) / 6)
    alone, plain, registered = chosen
    assert registered > alone + 1 and registered > plain + 1 and registered > 20
    assert means[2] > means[0] + 0.5 and means[2] > means[1] + 0.5


def test_a_group_taken_up_again_ends_with_the_same_bits_and_one_by_one_with_the_same_pictures(
    tiny: nn.Module, tmp_path: Path
) -> None:
    observation, file = seen(tiny), tmp_path / "state.pt"
    group = group_consistency.GroupConsistency(weight=0.01, start=0.2, every=10)
    attack = replace(recipes.geiping(3, 40), consistency=group, langevin=0.1)
    whole = attack(observation, seeded())
    cut = attack(observation, seeded(), Budget(on_step=lambda step: step.iteration == 25, checkpoint=file))
    assert all(candidate.iterations == 25 for candidate in cut.candidates)
    resumed = attack(observation, seeded(), Budget(resume=file))
    for one, other in zip(whole.candidates, resumed.candidates, strict=True):
        assert torch.equal(one.images, other.images) and one.history == other.history
    together = replace(attack, width=2)(observation, seeded())
    torch.testing.assert_close(together.images, whole.images, rtol=0, atol=1e-3)
    assert not torch.equal(whole.images, replace(attack, consistency=None)(observation, seeded()).images)


def test_the_pull_moves_restarts_but_does_not_count_so_the_best_is_kept(tiny: nn.Module) -> None:
    observation = seen(tiny)
    attack = replace(
        recipes.geiping(2, 60),
        consistency=group_consistency.GroupConsistency(weight=100.0, start=0.0, every=5, reach=0.0),
    )
    found = attack(observation, seeded())
    for candidate in found.candidates:
        value = candidate.loss + priors.TotalVariation(1e-2)(candidate.images, observation).item()
        assert value <= min(candidate.history) + 1e-5
    first, second = (each.images for each in replace(attack, keep="last")(observation, seeded()).candidates)
    apart = replace(attack, keep="last", consistency=None)(observation, seeded())
    assert float((first - second).abs().mean()) < 0.5 * float(
        (apart.candidates[0].images - apart.candidates[1].images).abs().mean()
    )


def test_a_group_refuses_a_line_search() -> None:
    with pytest.raises(ConfigError, match="line search"):
        replace(recipes.curvature(), consistency=group_consistency.GroupConsistency())
    with pytest.raises(ConfigError, match="at least 1 iteration apart"):
        group_consistency.GroupConsistency(every=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("attack", "relative", "gain"),
    [
        (replace(recipes.smoothed(150), features=0.0), True, 1),
        (replace(recipes.geiping(1, 200, 1e-3), optimizer=optimizers.Adam(0.1, False), projections=()), False, 3),
    ],
)
def test_the_batch_s_own_statistics_improve_a_reconstruction_of_two_pictures(
    attack: GradientInversion, relative: bool, gain: float
) -> None:
    observation = seen(averaging("zeros", norm=True).train(), 2, SENT)
    prior = batchnorm_prior.BatchNormStatistics(0.1, "batch", relative)
    plain = decibels(attack(observation, seeded()).images, 2)
    guided = decibels(replace(attack, priors=(*attack.priors, prior))(observation, seeded()).images, 2)
    assert guided > plain + gain and guided > constant(2)


def test_statistics_of_each_source_are_nearest_at_the_truth_if_they_are_the_batch_s_own(
    tiny: nn.Module, unchecked: None
) -> None:
    observation = seen(averaging("zeros", norm=True).train(), 2, SENT)
    truth, other = images(2), 1 - images(2)
    own = batchnorm_prior.BatchNormStatistics(1.0, "batch")
    assert own(truth, observation).item() < 1e-4 < 0.1 < own(other, observation).item()
    for source in ("network", "sent"):
        assert batchnorm_prior.BatchNormStatistics(1.0, source)(truth, observation).item() > 0.1
    with pytest.raises(ThreatModelError, match="buffers='sent'"):
        own(truth, replace(observation, buffers=None))
    with pytest.raises(UnsupportedNetworkError, match="no BatchNorm layer"):
        own(truth, seen(tiny, 2, SENT))
    assert batchnorm_prior.BatchNormStatistics()(truth, seen(tiny, 2)).item() == 0
    with pytest.raises(ConfigError, match="one of network, sent, batch"):
        batchnorm_prior.BatchNormStatistics(1.0, "truth")


# Objectives that know the defense


@pytest.mark.slow
@pytest.mark.parametrize(
    ("defense", "objective", "variation", "gain"),
    [
        (defenses.GaussianNoise(0.03), likelihoods.GaussianLikelihood(0.03), 0.3, 0),
        (defenses.LaplaceNoise(0.03), likelihoods.LaplaceLikelihood(0.03), 0.3, 1),
        (defenses.TopK(0.1), likelihoods.PrunedError(), 1e-3, 8),
    ],
    ids=["gaussian", "laplace", "pruned"],
)
def test_an_objective_that_knows_the_defense_beats_the_cosine(
    tiny: nn.Module, defense: object, objective: object, variation: float, gain: float
) -> None:
    observation = seen(tiny, defenses=(defense,))
    knowing = replace(recipes.geiping(1, 200, variation), objective=objective)
    cosines = [recipes.geiping(1, 200, weight) for weight in (3e-3, 1e-2)]
    unaware = max(decibels(attack(observation, seeded()).images) for attack in cosines)
    found = decibels(knowing(observation, seeded()).images)
    assert found > unaware + gain and found > constant() + 6


def test_an_entry_that_was_pruned_only_counts_where_it_should_have_been_sent() -> None:
    observed = {"w": torch.tensor([4.0, 0.0, -2.0, 0.0])}
    guess = {"w": torch.tensor([4.0, 1.9, -2.0, 5.0], requires_grad=True)}
    for power in (1.0, 2.0):
        cost = likelihoods.PrunedError(power)(guess, observed)
        assert cost.item() == pytest.approx(3**power / (4**power + 2**power))
        (slope,) = torch.autograd.grad(cost, guess["w"])
        assert slope.tolist()[:3] == [0, 0, 0] and slope[3] > 0
    assert (
        float(
            likelihoods.PrunedError()(
                {"w": torch.ones(2), "v": torch.ones(2)}, {"w": torch.ones(2), "v": torch.zeros(2)}
            )
        )
        == 0
    )
    with pytest.raises(ConfigError, match="1 or 2"):
        likelihoods.PrunedError(3.0)
    with pytest.raises(ConfigError, match="above 0"):
        likelihoods.GaussianLikelihood(0.0)


def test_tag_s_cost_counts_the_first_tensors_most() -> None:
    observed = {"first": torch.zeros(1), "second": torch.zeros(1)}
    costs = [float(objectives.TagError(0.5)({**observed, name: torch.tensor([2.0])}, observed)) for name in observed]
    assert costs == [4 + 0.5 * 2, 4 + 0.5 * 0.5 * 2]


@pytest.mark.parametrize("select", [tensor_weights.First(2), tensor_weights.Last(2), tensor_weights.At((0, 2))])
def test_some_of_the_layers_are_enough_for_a_picture(tiny: nn.Module, select: object) -> None:
    attack = replace(recipes.geiping(1, 300, 1e-3), objective=objectives.Cosine(select))
    assert decibels(attack(seen(tiny), seeded()).images) > constant() + 10


# Denoisers and decoders


def test_a_denoiser_takes_noise_off_a_photograph_and_leaves_flat_pictures(photos: Tensor) -> None:
    noisy = photos + 0.1 * torch.randn(photos.shape, generator=seeded())
    clean = denoisers.BlockTransform(0.3)(noisy)
    gain = peak_signal_noise_ratio(clean, photos) - peak_signal_noise_ratio(noisy, photos)
    assert clean.shape == photos.shape and bool((gain > 3).all())
    flat = torch.full((1, 3, 9, 7), 0.3)
    torch.testing.assert_close(denoisers.BlockTransform()(flat), flat)


@pytest.mark.parametrize("how", ["prior", "step"])
def test_a_denoiser_improves_on_total_variation(tiny: nn.Module, how: str) -> None:
    plain = recipes.geiping(1, 300, 1e-3)
    prior, step = priors.DenoiserPrior(weight=0.1), projections.DenoiserStep()
    changes = {"priors": (prior,)} if how == "prior" else {"priors": (), "projections": (projections.Box(), step)}
    observation = seen(tiny)
    denoised = decibels(replace(plain, **changes)(observation, seeded()).images)
    assert denoised > decibels(plain(observation, seeded()).images) + 2 > constant() + 10


def test_any_function_of_pictures_is_a_denoiser_and_nothing_else(tiny: nn.Module, unchecked: None) -> None:
    def learned(pictures: Tensor) -> Tensor:
        assert not torch.is_grad_enabled() and bool((pictures >= -0.01).all() and (pictures <= 1.01).all())
        return pictures * 0 + 0.5

    attack = replace(recipes.geiping(1, 3), projections=(projections.Box(), projections.DenoiserStep(learned, every=3)))
    found = replace(attack, keep="last")(seen(tiny), seeded())
    torch.testing.assert_close(found.images, torch.full_like(found.images, 0.5))
    for wrong in (None, denoisers.BlockTransform):
        with pytest.raises(ConfigError, match="a denoiser is a function"):
            projections.DenoiserStep(wrong)


def test_a_decoder_starts_near_gray_has_one_set_of_weights_a_picture_and_runs_together(tiny: nn.Module) -> None:
    observation = seen(tiny, 2)
    decoder = deep_prior.DeepImagePrior(8, 1).bound(observation.network)
    weights = decoder.start(images(2), seeded())
    made = decoder(weights)
    assert made.shape == (2, *SHAPE) and weights.shape[0] == 2
    changed = weights.clone()
    changed[1] += 0.1
    assert torch.equal(decoder(changed)[0], made[0]) and not torch.equal(decoder(changed)[1], made[1])
    attack = replace(recipes.deep_prior(2, 5), parametrization=deep_prior.DeepImagePrior(8, 1), width=2)
    alone = replace(attack, width=1)(observation, seeded())
    together = attack(observation, seeded())
    assert not [each for each in together.findings if each.code == "vectorized-fallback"]
    torch.testing.assert_close(together.images, alone.images, rtol=0, atol=1e-3)


def test_projections_are_refused_where_weights_are_searched() -> None:
    with pytest.raises(ConfigError, match="searches weights"):
        replace(recipes.geiping(), parametrization=deep_prior.DeepImagePrior())
    with pytest.raises(ConfigError, match="bound"):
        deep_prior.DeepImagePrior()(torch.zeros(1, 4))


# Pieces of "modern"


def test_a_patterned_start_repeats_its_tile_and_color_edges_cost_more_than_gray_ones(tiny: nn.Module) -> None:
    start = starts.Patterned(4)((2, 1, 3, 10, 8), seeded(), torch.float32)
    assert torch.equal(start[..., :4, :4], start[..., 4:8, 4:8]) and start.shape[-2:] == (10, 8)
    assert not torch.equal(start[0], start[1])
    gray, color = torch.zeros(2, 1, *SHAPE)
    gray[..., 4:] = 1.0
    color[:, 0, :, 4:] = 1.0
    cost, observation = priors.ColorTotalVariation(1.0), seen(tiny)
    assert float(cost(gray, observation)) == pytest.approx(float(cost(color, observation)), rel=1e-3)
    plain = priors.TotalVariation(1.0)
    assert float(plain(gray, observation)) == pytest.approx(3 * float(plain(color, observation)), rel=1e-3)


def test_soft_signs_are_bounded_at_first_and_the_gradient_itself_in_the_end(unchecked: None) -> None:
    from inversefed.attacks.search.minimize import _signed

    gradient = torch.tensor([-5.0, 0.1, 3.0])
    torch.testing.assert_close(_signed(gradient, "soft", 1.0), gradient.tanh())
    torch.testing.assert_close(_signed(gradient, "soft", 1e-3), gradient, rtol=1e-3, atol=1e-4)
    with pytest.raises(ConfigError, match="'soft'"):
        optimizers.Adam(signed="hard")
    with pytest.raises(ConfigError, match="at least 1 step"):
        schedules.WarmUp(steps=0)
