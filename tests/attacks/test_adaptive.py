"""An attack that knows a defense beats the same attack that does not, on the same update, by a margin in decibels."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from inversefed import Batch, Budget, FedSGD, Observation, ThreatModel, defenses, recipes
from inversefed.attacks.adaptive import Adaptive
from inversefed.evaluation import controls, metrics
from inversefed.pipeline import observed, paired

SIDE = 8
SEARCH = replace(recipes.curvature(), max_iterations=25)
TYPICAL = 0.29
"""Root mean square of an entry of the undefended update, to which the strengths below relate."""


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
    "gaussian": ((defenses.GaussianNoise(0.5 * TYPICAL),), 2.0),
    "laplace": ((defenses.LaplaceNoise(0.3 * TYPICAL),), 2.0),
    "clip": ((defenses.Clip(0.5),), 20.0),
    "clip and noise": ((defenses.Clip(1.0), defenses.GaussianNoise(0.002)), 5.0),
    "top-k": ((defenses.TopK(0.1),), 5.0),
    "random pruning": ((defenses.RandomPruning(0.2),), 5.0),
    "random pruning, rescaled": ((defenses.RandomPruning(0.2, rescale=True),), 5.0),
    "signs": ((defenses.SignQuantization(),), 4.0),
    "signs alone": ((defenses.SignQuantization(scaled=False),), 4.0),
    "two bits": ((defenses.UniformQuantization(2),), 2.0),
    "two bits, at random": ((defenses.StochasticQuantization(2),), 1.5),
    "soteria": ((defenses.Soteria(0.5),), 20.0),
    "transforms": ((defenses.ATS(("translate_x", "contrast")),), 2.0),
    "precode": ((defenses.PRECODE(16),), 5.0),
}
"""Name -> (defenses, decibels by which knowing them must help)."""


@pytest.mark.parametrize("case", MARGINS)
def test_knowing_the_defense_helps_and_beats_what_no_gradient_gives(
    case: str, module: nn.Module, pictures: Tensor
) -> None:
    chain, margin = MARGINS[case]
    plain, adaptive, control = compared(seen(module, pictures[:1], chain))
    assert adaptive > plain + margin and adaptive > control, (plain, adaptive, control)
