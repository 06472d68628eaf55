import pytest
import torch

from inversefed.evaluation import controls, metrics
from inversefed.inputs import Columns, Number
from inversefed.types import Batch


@pytest.fixture
def truth(generator):
    return Batch(torch.rand(3, 3, 6, 5, generator=generator, dtype=torch.float64), torch.arange(3))


@pytest.mark.parametrize("name", controls.__all__)
def test_every_control_gives_a_picture_of_the_truths_shape_and_leaves_the_truth_alone(name, truth):
    before = truth.images.clone()
    guess = getattr(controls, name)(truth)
    assert guess.shape == truth.images.shape and guess.dtype == truth.images.dtype
    assert guess.min() >= 0 and guess.max() <= 1
    guess.zero_()
    assert torch.equal(truth.images, before)


def test_guesses_is_the_registry(truth):
    assert list(controls.guesses(truth)) == controls.__all__ == sorted(controls.__all__)


def test_gray_is_the_middle(truth):
    assert controls.gray(truth).unique().tolist() == [0.5]


def test_no_constant_color_has_a_smaller_error_than_constant(truth, generator):
    best = metrics.mean_squared_error(controls.constant(truth), truth.images)
    assert torch.allclose(best, truth.images.var(dim=(2, 3), correction=0).mean(dim=1))
    for _ in range(50):
        color = torch.rand(3, 3, 1, 1, generator=generator, dtype=torch.float64).expand_as(truth.images)
        assert (metrics.mean_squared_error(color, truth.images) > best).all()


def test_every_control_that_is_scored_has_its_words():
    truth = Batch(torch.rand(1, 3, 4, 4), torch.tensor([0]))
    table = Columns((Number("age", 0.0, 100.0),))
    rows = Batch(torch.rand(2, 1), torch.tensor([0, 0]))
    of_rows = controls.guesses(rows, rows.images, table).keys()
    scored = {*controls.guesses(truth, truth.images), *of_rows, "prior", "other", "null"}
    assert scored == controls.DESCRIBED.keys()
    assert len({each.title for each in controls.DESCRIBED.values()}) == len(scored)
