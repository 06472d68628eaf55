import time

import pytest
import torch
from torch import Tensor, nn

from inversefed.attacks.exact.peel.feature_inversion import invert_features, solve_features
from inversefed.attacks.exact.watch import Watch
from inversefed.types import Budget, Step


def faint_corner() -> tuple[nn.Module, Tensor, Tensor]:
    """A network that hardly sees a corner of its images, one of these, and a start near it."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 8, 3, padding=1)).double()
    sight = torch.ones(8, 8).double()
    sight[5:, 5:] = 0.05
    image = torch.rand(1, 3, 8, 8).double()
    return nn.Sequential(Times(sight), module), image, image + 1e-3 * torch.randn(1, 3, 8, 8)


class Times(nn.Module):
    def __init__(self, factor: Tensor) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def test_pixels_that_hardly_show_are_found() -> None:
    module, image, start = faint_corner()
    with torch.no_grad():
        features = module(image)
    found = solve_features(module, features, start, 0.0, Watch())
    torch.testing.assert_close(found, image, rtol=0, atol=1e-8)


def test_it_ends_at_the_features_rounding() -> None:
    module, image, start = faint_corner()
    with torch.no_grad():
        features = module(image)
    losses = list[float]()

    def look(step: Step) -> None:
        losses.append(step.loss)

    solve_features(module, features, start, 1e-4, Watch(Budget(on_step=look)))
    assert losses[-1] <= 1e-8 and all(loss > 1e-8 for loss in losses[:-1])


def test_a_step_that_leads_away_is_not_taken() -> None:
    start = torch.full((1, 1, 1, 1), 0.1).double()
    found = solve_features(lambda x: x.abs().sqrt(), -torch.ones(1, 1, 1, 1).double(), start, 0.0, Watch())
    torch.testing.assert_close(found, start)


def test_no_time_leaves_the_start() -> None:
    module, image, start = faint_corner()
    found = solve_features(module, module(image).detach(), start, 0.0, Watch(Budget(seconds=1e-9)))
    torch.testing.assert_close(found, start)


def test_layers_that_hold_channels_last_are_searched_through() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 16, 2, 2), nn.Conv2d(16, 16, 3), nn.Tanh()).double()
    module, image = module.to(memory_format=torch.channels_last), torch.rand(1, 3, 8, 8).double()
    with torch.no_grad():
        features = module(image)
    found = invert_features(module, features, image + 0.1 * torch.randn_like(image), 0.0, 50, Watch())
    with torch.no_grad():
        assert (module(found) - features).norm() < 1e-2 * features.norm()


def test_the_clock_is_asked_in_every_evaluation_and_the_best_so_far_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round of L-BFGS has ten evaluations, each of seconds where pictures are large."""
    module, image, start = faint_corner()
    features, now, errors = module(image).detach(), [0.0], list[float]()

    def slow(images: Tensor) -> Tensor:
        now[0] += 1.0
        found = module(images)
        errors.append(float((found.detach() - features).square().sum()))
        return found

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    found = invert_features(slow, features, start, 0.0, 100, Watch(Budget(seconds=4.5)))
    assert len(errors) == 5
    assert float((module(found).detach() - features).square().sum()) == pytest.approx(min(errors))
    assert min(errors) < errors[0]
