"""Series as an input space: ranges, storage, controls and figures."""

import pytest
import torch

from inversefed import freeze
from inversefed.errors import InputError
from inversefed.inputs import MEASURES, InputSpace, Series

SPACE = Series(2, 8, low=-10.0, high=40.0, step=0.5)
VALUES = torch.linspace(-10, 40, 32).view(2, 2, 8)


def test_windows_travel_in_shares_of_the_range_and_are_fed_in_their_units() -> None:
    assert isinstance(SPACE, InputSpace) and eval(repr(SPACE)) == SPACE
    windows = SPACE.encode(VALUES)
    assert (float(windows.min()), float(windows.max())) == (0.0, 1.0)
    torch.testing.assert_close(SPACE.decode(windows), VALUES)
    fed = freeze(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)), SPACE).normalize(windows)
    torch.testing.assert_close(fed, VALUES)


def test_what_can_be_stored_is_in_whole_steps_within_the_range() -> None:
    stored = SPACE.decode(SPACE.snap(SPACE.encode(torch.tensor([[[-30.0, -9.8, 0.26, 39.9, 77.0]]]))))
    torch.testing.assert_close(stored, torch.tensor([[[-10.0, -10.0, 0.5, 40.0, 40.0]]]))
    snapped = SPACE.snap(SPACE.encode(VALUES))
    assert torch.equal(SPACE.snap(snapped), snapped)
    assert torch.equal(Series(1, 1).snap(torch.tensor([[[0.123456]]])), torch.tensor([[[0.123456]]]))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (torch.zeros(1, 2, 7), r"windows are a floating-point tensor \[n, 2, 8\]"),
        (torch.zeros(1, 2, 8, dtype=torch.long), "floating-point"),
        (torch.zeros(0, 2, 8), "at least one example"),
        (VALUES, r"\[0, 1\] \(shares of the range -10 to 40: encode\(values\)\); got -10 to 40"),
        (torch.full((1, 2, 8), float("nan")), "must lie in"),
    ],
)
def test_what_is_no_window_is_refused(wrong: torch.Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        SPACE.check(wrong)


@pytest.mark.parametrize(
    "given", [(0, 4), (1, 0), (1, 4, 1.0, 1.0), (1, 4, 0.0, float("inf")), (1, 4, 0.0, 1.0, 2.0), (1, 4, float("nan"))]
)
def test_what_is_no_range_is_refused(given: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match=r"a series has|range of a series"):
        Series(*given)  # type: ignore[arg-type]


def test_stand_ins_hang_together_and_are_drawn_from_their_generator() -> None:
    space = Series(1, 200)
    drawn = space.stand_ins(50, torch.Generator().manual_seed(0))
    space.check(drawn)
    assert torch.equal(drawn, space.stand_ins(50, torch.Generator().manual_seed(0)))
    centered = drawn - drawn.mean()
    kept = (centered[..., 1:] * centered[..., :-1]).mean() / centered.square().mean()
    assert 0.9 < float(kept) < 0.99


def test_controls_are_the_own_level_the_middle_and_the_mean_curve_of_others() -> None:
    truth, others = SPACE.encode(VALUES), torch.rand(5, 2, 8, generator=torch.Generator().manual_seed(0))
    found = SPACE.controls(truth, others)
    assert list(found) == ["level", "middle", "mean"] and list(SPACE.controls(truth, None)) == ["level", "middle"]
    assert all(each.shape == truth.shape for each in found.values())
    assert torch.equal(found["mean"][0], others.mean(dim=0))
    error = {name: (each - truth).square().mean(dim=-1) for name, each in found.items()}
    assert bool((error["level"] <= error["middle"] + 1e-6).all())


def test_figures_are_in_units_of_the_series() -> None:
    truth = torch.tensor([[[10.0, 20.0]], [[0.0, 30.0]]])
    space = Series(1, 2, -10.0, 40.0)
    found = space.measures(space.encode(truth + torch.tensor([3.0, -4.0])), space.encode(truth))
    assert found.keys() == MEASURES.keys() & found.keys() and len(found) == 2
    expected = torch.tensor([12.5, 12.5]).sqrt()
    torch.testing.assert_close(found["root_mean_square_error"], expected)
    by_hand = torch.tensor([(200 * 3 / 23 + 200 * 4 / 36) / 2, (200 * 3 / 3 + 200 * 4 / 56) / 2])
    torch.testing.assert_close(found["symmetric_mean_absolute_percentage_error"], by_hand)
    zero = Series(1, 2).measures(torch.zeros(1, 1, 2), torch.zeros(1, 1, 2))
    assert all(float(each) == 0 for each in zero.values())


def test_a_report_shows_some_places_of_a_long_window() -> None:
    cells = Series(2, 4000).cells(torch.rand(2, 4000))
    assert len(cells) == 32 and cells[0][0] == "0: 0" and cells[-1][0] == "1: 3999"
    assert SPACE.cells(SPACE.encode(VALUES)[0])[0] == ("0: 0", "-10")
