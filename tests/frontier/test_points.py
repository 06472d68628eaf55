"""One point of the frontier, measured."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from inversefed import defenses, recipes
from inversefed.attacks.search.inversion import GradientInversion
from inversefed.frontier.points import Point, measure
from inversefed.report.frontier import table
from inversefed.types import Reconstruction


def test_an_attack_that_comes_to_no_number_leaves_none_and_a_note(
    tiny: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = GradientInversion.__call__

    def lost(attack: GradientInversion, *given: object) -> Reconstruction:
        found = search(attack, *given)
        return replace(found, images=found.images * float("nan"))

    monkeypatch.setattr(GradientInversion, "__call__", lost)
    images, labels = torch.rand(2, 3, 8, 8), torch.tensor([1, 2])
    row = measure(tiny, images, labels, Point("both", num_images=2), attack=recipes.geiping(max_iterations=1))
    assert row.plain is row.adaptive is row.leakage is None and row.control > 0 and row.measured
    assert "no number came of the plain and the adaptive attack" in row.note and table([row]).count("n/a") == 3


def test_the_bound_stands_beside_both_attacks_or_why_there_is_none() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    images, labels = torch.rand(1, 3, 8, 8), torch.tensor([1])
    points = {
        "plain": Point("none"),
        "noised": Point("GaussianNoise(0.1)", defenses=(defenses.GaussianNoise(0.1),)),
        "bounded": Point("..", defenses=(defenses.Clip(1.0), defenses.GaussianNoise(1.0))),
    }
    attack = recipes.geiping(max_iterations=1)
    rows = {name: measure(net, images, labels, point, attack=attack) for name, point in points.items()}
    assert rows["plain"].bound is None and "bound" not in rows["plain"].note
    assert rows["noised"].bound is None and "no bound" in rows["noised"].note
    assert rows["bounded"].bound == pytest.approx(0.0924, abs=1e-3)
