"""Defenses do what their names say."""

import pytest
import torch

from inversefed import Batch, defenses, freeze
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


@pytest.mark.parametrize(
    "make", [lambda: defenses.Clip(0.0), lambda: defenses.GaussianNoise(-1.0), lambda: defenses.TopK(0.0)]
)
def test_settings_that_make_no_sense_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()
