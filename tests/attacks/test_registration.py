"""Registration finds how a photograph moved, and restarts that are moved onto each other agree on more."""

import pytest
import torch
from torch import Tensor, nn

from inversefed import Candidate
from inversefed.attacks.pieces import selection
from inversefed.attacks.pieces.group_consistency import GroupConsistency, matched
from inversefed.attacks.pieces.registration import medoid, registered_mean, shifted, translation
from inversefed.evaluation.metrics import peak_signal_noise_ratio
from inversefed.fl.simulate import observed
from inversefed.zoo import pictures

SHIFTS = [(0, 0), (3, 2), (-2, 1), (1, -4), (-3, -3), (4, 0)]


@pytest.fixture(scope="module")
def photo() -> Tensor:
    return pictures.photo("chelsea", (3, 48, 48))


def view(photo: Tensor, shift: tuple[int, int] = (0, 0)) -> Tensor:
    """A window of 32x32 in which the scene lies `shift` further down and across."""
    down, across = 8 - shift[0], 8 - shift[1]
    return photo[:, down : down + 32, across : across + 32]


def noisy(photo: Tensor, std: float = 0.15) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    views = torch.stack([view(photo, shift) for shift in SHIFTS])
    return views + std * torch.randn(views.shape, generator=generator)


def decibels(found: Tensor, photo: Tensor) -> float:
    """Against the scene wherever it lies: a consensus may lie anywhere."""
    places = [(down, across) for down in range(-4, 5) for across in range(-4, 5)]
    truths = torch.stack([view(photo, place) for place in places])
    return float(peak_signal_noise_ratio(found.clamp(0, 1).expand_as(truths).contiguous(), truths).max())


@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-7, 5), (8, 8)])
def test_a_scene_that_moved_out_of_its_frame_or_around_it_is_found_exactly(
    photo: Tensor, shift: tuple[int, int]
) -> None:
    back = (-shift[0], -shift[1])
    fixed = view(photo)
    assert translation(view(photo, shift), fixed, 8) == back
    assert translation(fixed.roll(shift, (1, 2)), fixed, 8) == back
    assert translation(fixed.roll(shift, (1, 2)), fixed, 8, circular=True) == back


def test_identical_flat_and_unlike_pictures_are_not_moved(photo: Tensor) -> None:
    fixed = view(photo)
    noise = torch.randn(fixed.shape, generator=torch.Generator().manual_seed(1))
    assert translation(fixed, fixed, 8) == translation(torch.full_like(fixed, 0.3), fixed, 8) == (0, 0)
    assert translation(noise, fixed, 8, gain=0.1) == (0, 0)
    assert torch.equal(registered_mean(fixed.expand(2, -1, -1, -1), fixed, 8), fixed)


def test_what_moves_away_leaves_nothing_and_does_not_count() -> None:
    picture = torch.arange(1.0, 10.0).view(1, 3, 3)
    assert shifted(picture, (1, -1)).tolist() == [[[0, 0, 0], [2, 3, 0], [5, 6, 0]]]
    assert shifted(picture, (4, 0)).abs().sum() == 0


def test_the_registered_mean_of_moved_noisy_views_beats_the_plain_mean_and_every_view(photo: Tensor) -> None:
    views = noisy(photo)
    plain, registered = (
        decibels(GroupConsistency(reach=reach).consensus(views[:, None])[0, 0], photo) for reach in (0.0, 0.25)
    )
    assert registered > plain + 3 and registered > max(decibels(each, photo) for each in views)


def test_a_picture_is_part_of_the_plain_mean_so_others_are_moved_onto_one_of_them(photo: Tensor) -> None:
    views = noisy(photo)
    mark = views[medoid(views, 8)]
    found = [translation(each, mark, 8) for each in views]
    offset = (SHIFTS[0][0] + found[0][0], SHIFTS[0][1] + found[0][1])
    assert all((down + d, across + a) == offset for (down, across), (d, a) in zip(SHIFTS, found, strict=True))
    assert all(translation(each, views.mean(dim=0), 8) == (0, 0) for each in views)


def test_each_restart_is_handed_the_consensus_in_its_own_order(photos: Tensor) -> None:
    restarts = torch.stack([photos, photos.flip(0)])
    assert matched(restarts[1], restarts[0], torch.zeros(2, dtype=torch.long)).tolist() == [1, 0]
    torch.testing.assert_close(GroupConsistency().consensus(restarts, torch.tensor([2, 2])), restarts)
    torch.testing.assert_close(GroupConsistency().consensus(restarts, None), restarts)
    apart = GroupConsistency(reach=0.0).consensus(restarts, torch.tensor([0, 1]))
    torch.testing.assert_close(apart[0], photos.mean(dim=0).expand_as(photos))


def test_registered_mean_as_a_selection_beats_the_plain_one(photo: Tensor, tiny: nn.Module) -> None:
    labels, batch = torch.tensor([0]), torch.rand(1, 3, 8, 8)
    observation, _ = observed(tiny, batch, labels)
    candidates = [Candidate(each[None], labels, float(loss)) for loss, each in enumerate(noisy(photo), start=1)]
    plain, registered = (
        rule(candidates, observation, lambda images, labels: 0.5)
        for rule in (selection.PixelMean(), selection.RegisteredMean())
    )
    assert registered.loss == 0.5 and registered.images.shape == (1, 3, 32, 32)
    truth = view(photo)[None]
    ours, theirs = (float(peak_signal_noise_ratio(each.images.clamp(0, 1), truth)) for each in (registered, plain))
    assert ours > theirs + 2
