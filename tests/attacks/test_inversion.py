"""The optimization attack reconstructs, keeps the best, and ends well however it ends."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from inversefed import (
    Batch,
    Budget,
    FedAvg,
    FedSGD,
    GradientInversion,
    Observation,
    Status,
    ThreatModel,
    freeze,
    objectives,
    observe,
    priors,
    recipes,
)
from inversefed.attacks.pieces import (
    optimizers,
    parametrizations,
    projections,
    schedules,
    selection,
    starts,
    tensor_weights,
)
from inversefed.errors import ConfigError
from inversefed.evaluation.align import align
from inversefed.evaluation.metrics import peak_signal_noise_ratio
from inversefed.types import Candidate
from inversefed.zoo import constants, networks, pictures

SHAPE = (3, 8, 8)


def smooth_images(n: int) -> torch.Tensor:
    rows, columns = torch.meshgrid(torch.linspace(0, 3, 8), torch.linspace(0, 3, 8), indexing="ij")
    return torch.stack(
        [
            0.5 + 0.4 * torch.stack([(rows + k).sin(), (columns * (k + 1)).cos(), (rows - columns).sin()])
            for k in range(n)
        ]
    )


def seen(module: nn.Module, n: int = 1, client: object = FedSGD(), known: bool = False) -> tuple[Observation, Batch]:
    batch = Batch(smooth_images(n), torch.arange(n) % 4)
    network = freeze(module, SHAPE, mean=0.5, std=0.25)
    threat = ThreatModel(labels="known" if known else "unknown")
    return observe(network, client, client(network, batch.images, batch.labels), batch, threat), batch


def decibels(found: torch.Tensor, batch: Batch) -> float:
    return float(peak_signal_noise_ratio(found[align(found, batch.images)], batch.images).mean())


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("attack", "floor"),
    [
        (recipes.geiping(max_iterations=300, total_variation=1e-3), 22),
        (recipes.dlg(max_iterations=25), 40),
        (recipes.idlg(max_iterations=25), 40),
        (replace(recipes.geiping(max_iterations=300), objective=objectives.SquaredError(), priors=()), 20),
        (replace(recipes.geiping(max_iterations=300, total_variation=1e-3), optimizer=optimizers.Adam(0.1, False)), 22),
    ],
)
def test_published_recipes_reconstruct_one_image(tiny: nn.Module, attack: GradientInversion, floor: float) -> None:
    observation, batch = seen(tiny)
    found = attack(observation, seeded())
    assert found.labels.tolist() == batch.labels.tolist()
    assert decibels(found.images, batch) > floor


@pytest.mark.parametrize("client", [FedSGD(), FedAvg(4, lr=0.01, batch_size=1), FedAvg(2, lr=0.1, sends="weights")])
def test_two_images_from_one_update_with_labels_recovered(client: object) -> None:
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(384, 4)).eval()
    observation, batch = seen(wide, 2, client)
    attack = recipes.geiping(max_iterations=150, total_variation=1e-3)
    found = attack(observation, seeded())
    assert sorted(found.labels.tolist()) == [0, 1]
    gray = decibels(torch.full_like(batch.images, 0.5), batch)
    assert decibels(found.images, batch) > gray + 6


def test_the_same_generator_gives_the_same_result_and_the_observation_stays(tiny: nn.Module) -> None:
    observation, _ = seen(tiny)
    before = {name: part.clone() for name, part in observation.update.items()}
    attack = recipes.geiping(restarts=2, max_iterations=20)
    first, second = attack(observation, seeded()), attack(observation, seeded())
    assert torch.equal(first.images, second.images) and first.loss == second.loss
    assert all(torch.equal(part, before[name]) for name, part in observation.update.items())


@pytest.mark.parametrize("attack", [recipes.curvature(2), recipes.spectral(2), recipes.geiping(max_iterations=2)])
def test_a_gradient_in_another_order_of_axes_is_searched_all_the_same(attack: GradientInversion) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 4, 3), nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 4))
    observation, _ = seen(module.to(memory_format=torch.channels_last), known=True)
    assert attack(observation, torch.Generator().manual_seed(0)).images.shape == (1, *SHAPE)


def test_the_best_iterate_is_kept_and_the_last_on_demand(tiny: nn.Module) -> None:
    observation, _ = seen(tiny)
    wild = replace(recipes.geiping(max_iterations=60), schedule=lambda lr, i, _: lr if i < 50 else 50 * lr)
    best, last = (replace(wild, keep=keep, priors=())(observation, seeded()) for keep in ("best", "last"))
    assert best.loss <= min(best.candidates[0].history) * (1 + 1e-5)
    assert best.loss < last.loss


def test_the_winner_is_the_restart_of_lowest_matching_cost(tiny: nn.Module) -> None:
    observation, _ = seen(tiny)
    found = recipes.geiping(restarts=4, max_iterations=15)(observation, seeded())
    losses = [candidate.loss for candidate in found.candidates]
    assert len(losses) == 4 and found.loss == min(losses)
    assert torch.equal(found.images, found.candidates[losses.index(min(losses))].images)


def test_pixels_stay_in_the_box_and_out_of_it_without(tiny: nn.Module) -> None:
    observation, _ = seen(tiny)
    boxed = recipes.geiping(max_iterations=10)
    inside = boxed(observation, seeded()).images
    assert float(inside.min()) >= -1e-6 and float(inside.max()) <= 1 + 1e-6
    outside = replace(boxed, projections=())(observation, seeded()).images
    assert float(outside.max()) > 1


@pytest.mark.parametrize("stop", ["callback", "time", "interrupt"])
def test_an_early_end_leaves_the_best_so_far(tiny: nn.Module, stop: str) -> None:
    observation, _batch = seen(tiny)

    def look(step: object) -> bool:
        if stop == "interrupt" and step.iteration == 30:
            raise KeyboardInterrupt
        return stop == "callback" and step.iteration == 30

    budget = Budget(seconds=0.05 if stop == "time" else None, on_step=look)
    found = recipes.geiping(restarts=3, max_iterations=100_000)(observation, seeded(), budget)
    assert found.status is (Status.INTERRUPTED if stop == "interrupt" else Status.STOPPED)
    assert len(found.candidates) == 1 and bool(found.images.isfinite().all())
    assert found.candidates[0].iterations == 30 or stop == "time"


def test_the_watcher_sees_every_iteration_and_the_best_so_far(tiny: nn.Module) -> None:
    observation, _ = seen(tiny)
    steps = []
    found = recipes.geiping(restarts=2, max_iterations=7)(
        observation, seeded(), Budget(max_iterations=5, on_step=lambda step: steps.append((step, step.best())))
    )
    assert [(step.restart, step.iteration) for step, _ in steps] == [(r, i + 1) for r in range(2) for i in range(5)]
    assert [step.loss for step, _ in steps[:5]] == list(found.candidates[0].history)
    assert steps[-1][1].shape == (1, *SHAPE)


def test_a_restart_that_becomes_nan_is_a_status_and_never_wins(tiny: nn.Module) -> None:
    observation, _ = seen(tiny)
    calls = iter(range(10**6))

    def breaks(images: torch.Tensor, _: object) -> torch.Tensor:
        return images.sum() * (math.nan if next(calls) == 3 else 0.0)

    attack = replace(recipes.geiping(restarts=2, max_iterations=6), priors=(breaks,))
    found = attack(observation, seeded())
    assert [candidate.status for candidate in found.candidates] == [Status.NON_FINITE, Status.FINISHED]
    assert math.isfinite(found.loss) and found.status is Status.FINISHED
    lost = replace(attack, priors=(lambda images, _: images.sum() * math.nan,))(observation, seeded())
    assert lost.status is Status.NON_FINITE and bool(lost.images.isfinite().all())


def test_no_further_restart_once_the_tolerance_is_met(tiny: nn.Module) -> None:
    observation, _ = seen(tiny)
    found = replace(recipes.geiping(restarts=5, max_iterations=3), tolerance=2.0)(observation, seeded())
    assert len(found.candidates) == 1


def test_a_gradient_with_respect_to_weights_is_never_taken_in_the_second_pass(tiny: nn.Module) -> None:
    observation, _ = seen(tiny)
    recipes.geiping(max_iterations=2)(observation, seeded())
    assert all(weight.grad is None for weight in observation.network.params.values())


@pytest.mark.parametrize("bad", [{"max_iterations": 0}, {"restarts": 0}, {"keep": "middle"}])
def test_settings_that_make_no_sense_are_refused(bad: dict, unchecked: None) -> None:
    with pytest.raises(ConfigError):
        GradientInversion(**bad)


@pytest.mark.parametrize("empty", [{"max_iterations": 0}, {"seconds": 0.0}, {"seconds": float("nan")}])
def test_an_empty_budget_is_refused(empty: dict) -> None:
    with pytest.raises(ConfigError, match="budget"):
        Budget(**empty)


def test_the_paper_s_step_decay_is_that_of_multistep() -> None:
    for iterations in (1, 2, 3, 12, 100, 4800):
        weight = torch.zeros(1, requires_grad=True)
        reference = torch.optim.SGD([weight], lr=0.1)
        milestones = [iterations // 2.667, iterations // 1.6, iterations // 1.142]
        scheduler = torch.optim.lr_scheduler.MultiStepLR(reference, milestones=milestones, gamma=0.1)
        for iteration in range(iterations):
            ours = schedules.StepDecay()(0.1, iteration, iterations)
            assert ours == pytest.approx(reference.param_groups[0]["lr"], rel=1e-12)
            reference.step()
            scheduler.step()


def test_selections_combine_or_choose(tiny: nn.Module) -> None:
    observation, _ = seen(tiny)
    attack = recipes.geiping(restarts=3, max_iterations=4)
    stack = torch.stack([candidate.images for candidate in attack(observation, seeded()).candidates])
    mean = replace(attack, selection=selection.PixelMean())(observation, seeded())
    median = replace(attack, selection=selection.PixelMedian())(observation, seeded())
    torch.testing.assert_close(mean.images, stack.mean(dim=0))
    torch.testing.assert_close(median.images, stack.median(dim=0).values)
    assert mean.loss not in [candidate.loss for candidate in mean.candidates]
    smoothest = replace(attack, selection=selection.LowestPrior())(observation, seeded())
    variations = [float(priors.TotalVariation(1.0)(images, observation)) for images in stack]
    assert torch.equal(smoothest.images, stack[variations.index(min(variations))])


def test_what_restarts_agree_on_is_kept_and_the_rest_is_of_one_color(tiny: nn.Module) -> None:
    """A photograph and a picture of one color, and four restarts that add to both what the update does not settle."""
    truth = torch.stack([pictures.photo("coffee", (3, 32, 32)), torch.full((3, 32, 32), 0.7)])
    (observation, _), draw, labels = seen(tiny), seeded(), torch.tensor([0, 1])
    found = [Candidate(truth + 0.2 * torch.randn(truth.shape, generator=draw), labels, 0.0) for _ in range(4)]

    def error(select, candidates: list[Candidate]) -> Tensor:
        chosen = select(candidates, observation, lambda images, labels: 0.0)
        return (chosen.images - truth).square().mean(dim=(1, 2, 3))

    agreed, mean = error(selection.AgreedMean(), found), error(selection.PixelMean(), found)
    assert agreed[0] < 0.7 * mean[0] and agreed[1] < 0.2 * mean[1]
    alike = [Candidate(truth, labels, 0.0)] * 3
    assert float(error(selection.AgreedMean(), alike).max()) < 1e-10
    assert torch.equal(error(selection.AgreedMean(), found[:1]), error(selection.PixelMean(), found[:1]))


@pytest.mark.parametrize("labels", [[2, 2], [1, 2]])
def test_restarts_that_hold_the_same_pictures_in_another_order_are_not_blurred(
    tiny: nn.Module, labels: list[int]
) -> None:
    """Equal labels leave open which picture is which; labels that each restart finds by itself come in any order."""
    observation, _ = seen(tiny)
    photos = torch.stack([pictures.photo(name, (3, 8, 8)) for name in ("coffee", "rocket")])
    orders = torch.tensor([[0, 1], [1, 0]])
    candidates = [Candidate(photos[order], torch.tensor(labels)[order], 0.0) for order in orders]
    mean = selection.PixelMean()(candidates, observation, lambda images, labels: 0.0)
    torch.testing.assert_close(mean.images, photos)
    assert mean.labels.tolist() == labels


def test_starts_do_not_depend_on_how_many_are_drawn() -> None:
    for start in (starts.Normal(), starts.Uniform(), starts.Zeros()):
        one = start((1, 2, *SHAPE), seeded(), torch.float32)
        many = start((3, 2, *SHAPE), seeded(), torch.float32)
        assert torch.equal(one[0], many[0])


def test_a_median_filter_removes_single_pixels(unchecked: None) -> None:
    inputs = torch.zeros(1, 1, 5, 5)
    inputs[0, 0, 2, 2] = 1.0
    filtered = projections.MedianFilter(3, every=2)
    assert torch.equal(filtered(inputs, None, 1), inputs)
    assert float(filtered(inputs, None, 2).abs().max()) == 0


@pytest.mark.parametrize(
    ("select", "expected"),
    [
        (tensor_weights.AllTensors(), [0, 1, 2]),
        (tensor_weights.First(2), [0, 1]),
        (tensor_weights.Last(2), [1, 2]),
        (tensor_weights.Largest(1), [1]),
        (tensor_weights.Largest(1, of_predicted=True), [2]),
        (tensor_weights.At((2, -3)), [2, -3]),
    ],
)
def test_selectors_choose_by_place_or_norm(select: tensor_weights.Selector, expected: list[int]) -> None:
    observed = [torch.ones(2), torch.full((2,), 9.0), torch.zeros(2)]
    predicted = [torch.zeros(2), torch.zeros(2), torch.ones(2)]
    assert list(select(predicted, observed)) == expected


def test_weights_fall_as_stated() -> None:
    parts = [torch.ones(1)] * 4
    torch.testing.assert_close(tensor_weights.LinearWeights()(parts), torch.tensor([1.0, 0.75, 0.5, 0.25]))
    torch.testing.assert_close(tensor_weights.ExponentialWeights()(parts), torch.exp(-torch.arange(4.0)))


def on_photograph(name: str, photo: torch.Tensor, attack: GradientInversion) -> float:
    batch = Batch(photo, torch.tensor([3]))
    network = freeze(
        networks.build(name, seed=0).eval(), (3, 32, 32), mean=constants.cifar10_mean, std=constants.cifar10_std
    )
    observation = observe(network, FedSGD(), FedSGD()(network, batch.images, batch.labels), batch, ThreatModel())
    return decibels(attack(observation, seeded()).images, batch)


def test_on_a_relu_network_the_spectral_recipe_is_far_ahead_after_few_iterations(photos: torch.Tensor) -> None:
    ours = on_photograph("ConvNet16", photos[:1], recipes.spectral(20))
    paper = on_photograph("ConvNet16", photos[:1], recipes.geiping(max_iterations=20, total_variation=1e-4))
    assert ours > 20 and ours > paper + 5


def test_on_a_smooth_network_curvature_wants_the_mean_color_as_its_start(photos: torch.Tensor) -> None:
    recipe = recipes.curvature(12)
    ours = on_photograph("LeNetZhu", photos[:1], recipe)
    from_noise = on_photograph("LeNetZhu", photos[:1], replace(recipe, start=starts.Normal()))
    assert ours > 25 and ours > from_noise + 5


def test_spectral_coefficients_are_scaled_by_frequency_and_color() -> None:
    flat, stripes = torch.ones(1, 3, 8, 8), torch.ones(1, 3, 8, 8)
    stripes[..., 1::2] = -1
    spectral = parametrizations.Spectral()
    torch.testing.assert_close(spectral(flat), 1.6 * flat)
    torch.testing.assert_close(spectral(stripes), 1.6 / 4 * stripes)  # 4 cycles across the picture
    red_blue = torch.tensor([1.0, 0.0, -1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    torch.testing.assert_close(spectral(red_blue), 0.5 * red_blue)
    assert spectral(torch.ones(2, 1, 5, 7)).shape == (2, 1, 5, 7)
    for dtype in (torch.float16, torch.bfloat16):  # for which there is no Fourier transform
        halved = spectral(stripes.to(dtype))
        assert halved.dtype is dtype
        torch.testing.assert_close(halved.float(), 1.6 / 4 * stripes, rtol=1e-2, atol=1e-2)


def test_normalized_momentum_moves_by_its_step_length_whatever_the_scale() -> None:
    for scale in (1e-6, 1e6):
        variable = torch.zeros(1000, requires_grad=True)
        stepper = optimizers.NormalizedMomentum(lr=0.5, momentum=0.9).build([variable])
        gradient = torch.randn(1000, generator=seeded())

        def closure(variable: torch.Tensor = variable, slope: torch.Tensor = scale * gradient) -> float:
            variable.grad = slope
            return 0.0

        stepper.step(closure)
        expected = -0.5 * (0.9 * 0.1 + 0.1) * gradient / gradient.square().mean().sqrt()
        torch.testing.assert_close(variable.detach(), expected)
