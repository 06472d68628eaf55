"""An attack that knows a defense beats the same attack that does not, on the same update, by a margin in decibels."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from inversefed import Batch, Budget, FedSGD, Observation, ThreatModel, defenses, recipes
from inversefed.assessment import paired
from inversefed.attacks.adaptive import Adaptive
from inversefed.attacks.pieces.objectives import SquaredError
from inversefed.attacks.pieces.quantized import RoundingLikelihood
from inversefed.attacks.simulations import Augmented, Clipped, Leaving, Noised, Unmixed
from inversefed.controls.runs import searched
from inversefed.evaluation import controls, metrics
from inversefed.fl.clients import FedAvg
from inversefed.fl.clients.dpsgd import DPSGD
from inversefed.fl.simulate import observed

SIDE = 8
SEARCH = replace(recipes.curvature(), max_iterations=25)
NOISE = 0.145
"""1.2 times the root mean square of an entry of the undefended update."""


@pytest.fixture
def module() -> nn.Module:
    """A small LeNet with the wide weights of Zhu et al. (2019)."""
    generator = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 12, 5, 2, 2),
        nn.Sigmoid(),
        nn.Conv2d(12, 12, 5, 1, 2),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(12 * SIDE * SIDE // 4, 10),
    )
    for weight in net.parameters():
        weight.data = torch.rand(weight.shape, generator=generator) - 0.5
    return net.eval()


@pytest.fixture
def pictures(photos: Tensor) -> Tensor:
    return nn.functional.avg_pool2d(photos.flip(0), 32 // SIDE)


def decibels(images: Tensor, truth: Batch) -> float:
    return float(metrics.peak_signal_noise_ratio(images.clamp(0, 1), truth.images).mean())


def seen(module: nn.Module, images: Tensor, chain: tuple, client: object = FedSGD()) -> tuple[Observation, Batch]:
    labels, known = torch.arange(len(images)) + 3, ThreatModel(defenses="known", labels="known")
    return observed(module, images, labels, mean=0.5, std=0.25, client=client, defenses=chain, threat=known)


def compared(world: tuple[Observation, Batch], search: object = SEARCH) -> tuple[float, float, float]:
    """What the plain attack recovers, what the adaptive one does, and the better control."""
    observation, truth = world
    found = []
    for attack, told in ((search, False), (Adaptive(search), True)):
        given = observation if told else replace(observation, defenses=())
        result = attack(given, torch.Generator().manual_seed(1), Budget())
        found.append(decibels(result.images[paired(result, truth, ThreatModel(labels="known"))], truth))
    control = max(decibels(guess, truth) for guess in controls.guesses(truth).values())
    return found[0], found[1], control


MARGINS = {
    "gaussian": ((defenses.GaussianNoise(NOISE),), 2.0),
    "laplace": ((defenses.LaplaceNoise(0.6 * NOISE),), 2.0),
    "clip": ((defenses.Clip(0.5),), 20.0),
    "clip and noise": ((defenses.Clip(1.0), defenses.GaussianNoise(0.002)), 5.0),
    "top-k": ((defenses.TopK(0.1),), 5.0),
    "random pruning": ((defenses.RandomPruning(0.2),), 5.0),
    "random pruning, rescaled": ((defenses.RandomPruning(0.2, rescale=True),), 5.0),
    "percentile": ((defenses.PercentilePrivacy(),), 20.0),
    "percentile, cut": ((defenses.PercentilePrivacy(90.0, gamma=0.1),), 5.0),
    "sparse vector": ((defenses.SVTPrivacy(0.1, 1e4, 100.0, gamma=0.5, tau=0.1, replace=False),), 5.0),
    "excluded": ((defenses.ExcludeVars("^5"),), 20.0),
    "signs": ((defenses.SignQuantization(),), 4.0),
    "signs alone": ((defenses.SignQuantization(scaled=False),), 4.0),
    "two bits": ((defenses.UniformQuantization(2),), 2.0),
    "two bits, at random": ((defenses.StochasticQuantization(2),), 1.5),
    "soteria": ((defenses.Soteria(0.5),), 20.0),
    "transforms": ((defenses.ATS(("translate_x", "contrast")),), 2.0),
    "precode": ((defenses.PRECODE(16),), 5.0),
}
"""Name -> (defenses, decibels by which knowing them must help)."""


@pytest.mark.slow
@pytest.mark.parametrize("case", MARGINS)
def test_knowing_the_defense_helps_and_beats_what_no_gradient_gives(
    case: str, module: nn.Module, pictures: Tensor
) -> None:
    chain, margin = MARGINS[case]
    plain, adaptive, control = compared(seen(module, pictures[:1], chain))
    assert adaptive > plain + margin and adaptive > control, (plain, adaptive, control)


def test_mixtures_of_two_pictures_are_taken_apart(module: nn.Module, pictures: Tensor) -> None:
    plain, adaptive, control = compared(seen(module, pictures, (defenses.Mixup(1.0),)))
    assert adaptive > plain + 20 and adaptive > control, (plain, adaptive, control)


def test_the_noise_of_dp_sgd_is_known_beside_its_clipping_which_every_attack_simulates(
    module: nn.Module, pictures: Tensor
) -> None:
    world = seen(module, pictures[:1], (), DPSGD(noise_multiplier=0.01, max_grad_norm=1.0))
    assert world[0].defenses == (defenses.GaussianNoise(0.01),)
    plain, adaptive, control = compared(world)
    assert adaptive > plain + 0.5 and adaptive > control, (plain, adaptive, control)


def test_without_a_known_defense_it_is_the_attack_itself(module: nn.Module, pictures: Tensor) -> None:
    observation, _ = seen(module, pictures[:1], ())
    short = replace(SEARCH, max_iterations=2)
    assert not Adaptive(short).told(observation)
    own, adaptive = (attack(observation, torch.Generator().manual_seed(1)) for attack in (short, Adaptive(short)))
    assert torch.equal(own.images, adaptive.images)


def test_the_default_attack_adapts_itself_to_known_defenses(module: nn.Module, pictures: Tensor) -> None:
    observation, truth = seen(module, pictures[:1], (defenses.Clip(0.5),))
    budget = Budget(max_iterations=60)
    told, untold = (
        recipes.best()(each, torch.Generator().manual_seed(1), budget)
        for each in (observation, replace(observation, defenses=()))
    )
    adapted = {finding.code: finding.message for finding in told.findings}
    assert "Clip(max_norm=0.5)" in adapted["attack-adapted"]
    assert "attack-adapted" not in {finding.code for finding in untold.findings}
    scores = [float(metrics.peak_signal_noise_ratio(found.images, truth.images)) for found in (told, untold)]
    assert scores[0] > scores[1] + 10, scores
    assert searched(recipes.best(), observation) == Adaptive(recipes.best()).search(observation)


def test_the_pieces_follow_from_the_defenses_in_order(module: nn.Module, pictures: Tensor) -> None:
    chain = (defenses.ATS(("flip",)), defenses.Clip(1.0), defenses.UniformQuantization(4))
    observation, _ = seen(module, pictures[:1], chain)
    search = Adaptive(SEARCH).search(observation)
    assert search.simulation == Clipped(1.0, Augmented(chain[0])) and search.objective == RoundingLikelihood(4)
    soteria = Adaptive(SEARCH, defenses=(defenses.Soteria(0.5),)).search(observation)
    assert soteria.simulation == Leaving(("5.weight",)) and soteria.objective == SEARCH.objective


def test_of_two_results_the_one_that_explains_the_update_is_kept(module: nn.Module, pictures: Tensor) -> None:
    observation, truth = seen(module, pictures[:1], (defenses.Clip(0.5),))
    attack = Adaptive(replace(SEARCH, max_iterations=2))
    poor = attack.informed(observation, torch.Generator().manual_seed(1))
    exact = replace(poor, images=truth.images, loss=0.0)
    assert attack.better(observation, poor, exact) is exact and attack.better(observation, exact, poor) is exact


def test_draws_of_noise_layers_reproduce_the_client(module: nn.Module, pictures: Tensor) -> None:
    observation, truth = seen(module, pictures[:1], (defenses.PRECODE(4),))
    start = Noised().start(observation, torch.Generator())
    assert {name: tuple(draw.shape) for name, draw in start.items()} == {"noise:5.0.noise": (1, 1, 4)}
    mean = Noised()(observation, start, truth.images, truth.labels)
    other = Noised()(observation, {"noise:5.0.noise": torch.ones(1, 1, 4)}, truth.images, truth.labels)
    assert not torch.allclose(mean.predicted["0.weight"], other.predicted["0.weight"])
    assert float(mean.penalty) == 0.0 and float(other.penalty) > 0


def test_unmixing_simulates_the_client_s_mixture(module: nn.Module, pictures: Tensor) -> None:
    observation, truth = seen(module, pictures, (defenses.Mixup(2.0),))
    shares = torch.linspace(-6, 6, 121)  # logits around the start: one of them is the client's share
    errors = []
    for shift in shares:
        found = Unmixed(share=0.5)(observation, {"share": shift}, truth.images, truth.labels)
        errors.append(float(SquaredError()(found.predicted, found.observed)))
    size = sum(float(part.square().sum()) for part in observation.update.values())
    assert min(errors) < 1e-3 * size


def test_local_steps_are_simulated_with_draws_of_their_own(module: nn.Module, pictures: Tensor) -> None:
    observation, truth = seen(module, pictures[:1], (defenses.PRECODE(4),), FedAvg(local_steps=2, lr=0.01))
    draws = Noised().start(observation, torch.Generator())
    assert draws["noise:5.0.noise"].shape == (2, 1, 4)
    found = Noised()(observation, draws, truth.images, truth.labels)
    assert set(found.predicted) == set(observation.update)
