import math
import time
from collections.abc import Callable

import pytest
import torch
from torch import Generator, Tensor, nn

from inversefed.attacks.exact.peel.feature_inversion import invert_features, search_features, solve_features
from inversefed.attacks.exact.watch import Watch
from inversefed.attacks.pieces.optimizers import NormalizedMomentum
from inversefed.attacks.pieces.parametrizations import Spectral
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


def test_what_a_hundred_products_do_not_solve_a_factor_of_the_jacobian_does() -> None:
    torch.manual_seed(0)
    steep = torch.linalg.qr(torch.randn(300, 300).double())[0] * torch.logspace(0, -5, 300).double()
    spread = torch.linalg.qr(torch.randn(900, 300).double())[0] @ steep.T
    image, start = torch.rand(1, 3, 10, 10).double(), torch.full((1, 3, 10, 10), 0.5).double()

    def features(dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        return lambda x: x.flatten(1) @ spread.to(dtype).T

    known = features(torch.float64)(image)
    alone = solve_features(features(torch.float64), known, start, 1e-14, Watch())
    helped = solve_features(features(torch.float64), known, start, 1e-14, Watch(), single=features(torch.float32))
    assert (helped - image).abs().max() < 1e-6 < 1e-3 < (alone - image).abs().max()


def test_it_ends_at_the_features_rounding() -> None:
    module, image, start = faint_corner()
    with torch.no_grad():
        features = module(image)
    losses = list[float]()

    def look(step: Step) -> None:
        losses.append(step.loss)

    solve_features(module, features, start, 1e-4, Watch(Budget(on_step=look)))
    assert losses[-1] <= 1e-8 and all(loss > 1e-8 for loss in losses[:-1])


def test_of_a_step_that_leads_away_only_a_part_that_does_not_is_taken() -> None:
    start, features = torch.full((1, 1, 1, 1), 0.1).double(), -torch.ones(1, 1, 1, 1).double()
    torch.testing.assert_close(  # a step from the least point leads away however short it is
        solve_features(lambda x: x.abs() + x / 2, features, torch.full_like(start, -1e-9), 0.0, Watch()),
        torch.full_like(start, -1e-9), rtol=0, atol=1e-8,
    )  # fmt: skip
    found = solve_features(lambda x: x.abs().sqrt(), features, start, 0.0, Watch())
    assert float(found.abs()) < float(start)


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


def pooled() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    with torch.no_grad():
        return module, module(torch.rand(1, 3, 8, 8))


@pytest.mark.parametrize(("grain", "seed"), [(0.0, 0), (0.3, 2)])
def test_the_search_behind_kinks_is_its_formula_to_the_bit(grain: float, seed: int) -> None:
    module, features = pooled()
    errors, rounds = list[float](), 30

    def look(step: Step) -> None:
        errors.append(step.loss)

    found, error = search_features(module, features, (3, 8, 8), rounds, Watch(Budget(on_step=look)), grain, seed)

    spectral, random = Spectral(), Generator().manual_seed(seed)
    variables = (grain * torch.randn((1, 3, 8, 8), generator=random)).requires_grad_()
    stepper, told = NormalizedMomentum(1.5).build([variables]), list[float]()
    for number in range(rounds):
        share = number / rounds

        def closure(share: float = share) -> float:
            image = spectral(variables)
            noisy = image + 0.15 * max(0.0, 1 - share / 0.5) * torch.randn(image.shape, generator=random)
            loss = (module(noisy) - features).abs().sum() / features.abs().sum()
            variation = image.diff(dim=-2).abs().mean() + image.diff(dim=-1).abs().mean()
            total = loss + 1e-2 * max(0.0, 1 - share / 0.7) * variation
            (variables.grad,) = torch.autograd.grad(total, variables)
            return loss.item()

        stepper.param_groups[0]["lr"] = 1.5 * (1 + math.cos(math.pi * share)) / 2
        told.append(stepper.step(closure))
    assert torch.equal(found, spectral(variables).detach()[0]) and (errors, error) == (told, told[-1])
    assert error < 0.5 * told[0]


def test_a_search_behind_kinks_that_loses_its_numbers_ends_and_has_no_error() -> None:
    module, features = pooled()
    calls = 0

    def breaks(images: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return module(images) * (float("nan") if calls > 5 else 1.0)

    found, error = search_features(breaks, features, (3, 8, 8), 30, Watch())
    assert calls == 6 and error == math.inf and bool(found.isfinite().all())


def test_a_search_behind_kinks_runs_by_the_clock_where_there_is_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    module, features = pooled()
    now, seen = [0.0], list[int]()

    def slow(images: Tensor) -> Tensor:
        now[0] += 1.0
        return module(images)

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    watch = Watch(Budget(seconds=12.5, on_step=lambda step: seen.append(step.iteration)), began=0.0)
    _, error = search_features(slow, features, (3, 8, 8), 1000, watch)
    assert len(seen) == 13 and error < 0.7
