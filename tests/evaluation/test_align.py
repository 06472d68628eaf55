import itertools

import pytest
import torch

from inversefed.errors import InputError
from inversefed.evaluation.align import align


def test_finds_the_order_of_shuffled_noisy_pictures(generator):
    targets = torch.rand(12, 3, 8, 8, generator=generator)
    shuffle = torch.randperm(12, generator=generator)
    found = (targets + 0.1 * torch.randn(targets.shape, generator=generator))[shuffle]
    assert torch.equal(shuffle[align(found, targets)], torch.arange(12))


def test_total_of_the_decibels_is_the_greatest_of_all_permutations(generator):
    found, targets = torch.rand(2, 5, 1, 3, 3, generator=generator)
    cost = (found[:, None] - targets[None]).square().mean(dim=(2, 3, 4))
    decibels = -10 * cost.log10()
    every = [sum(decibels[p[i], i] for i in range(5)) for p in itertools.permutations(range(5))]
    chosen = align(found, targets)
    assert sum(decibels[chosen[i], i] for i in range(5)) == pytest.approx(max(every))


def test_a_copy_goes_to_its_truth_though_the_squared_error_would_take_it_away(generator):
    """Noise of little contrast is far from a picture of much contrast, and the copy of one of little is not."""
    targets = torch.tensor([[0.4, 0.6], [0.0, 1.0]]).view(2, 1, 1, 2)
    found = torch.stack([targets[0], torch.tensor([0.6, 0.4]).view(1, 1, 2)])
    cost = (found[:, None] - targets[None]).square().mean(dim=(2, 3, 4))
    assert cost[0, 0] + cost[1, 1] > cost[1, 0] + cost[0, 1]
    assert align(found, targets).tolist() == [0, 1]


def test_copies_within_labels_are_not_worth_a_wrong_label():
    targets = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    paired = align(
        targets.flip(0), targets, reconstruction_labels=torch.tensor([3, 7]), target_labels=torch.tensor([3, 7])
    )
    assert paired.tolist() == [0, 1]


def test_greedy_pairing_would_fail_here():
    targets = torch.tensor([0.5, 0.6]).view(2, 1, 1, 1)
    found = torch.tensor([0.58, 0.63]).view(2, 1, 1, 1)  # the first is nearest to both
    assert align(found, targets).tolist() == [0, 1]


def test_pixels_outside_the_range_are_clamped():
    targets = torch.tensor([[0.7, 0.7], [0.5, 0.5]]).view(2, 1, 1, 2)
    found = torch.tensor([[5.0, 0.0], [1.0, 1.0]]).view(2, 1, 1, 2)  # unclamped, the first would go to the first
    assert align(found, targets).tolist() == [1, 0]


def test_a_picture_with_nan_goes_to_what_is_left():
    targets = torch.tensor([0.1, 0.5, 0.9]).view(3, 1, 1, 1)
    found = torch.tensor([0.9, float("nan"), 0.1]).view(3, 1, 1, 1)
    assert align(found, targets).tolist() == [2, 1, 0]


def test_known_labels_outweigh_pixels_and_pixels_decide_among_equal_labels():
    targets = torch.tensor([0.0, 1.0, 0.4]).view(3, 1, 1, 1)
    found = torch.tensor([0.5, 0.1, 0.9]).view(3, 1, 1, 1)
    labels, found_labels = torch.tensor([7, 7, 3]), torch.tensor([7, 3, 7])
    assert align(found, targets).tolist() == [1, 2, 0]
    paired = align(found, targets, reconstruction_labels=found_labels, target_labels=labels)
    assert paired.tolist() == [0, 2, 1]


def test_inputs_are_untouched_and_may_carry_gradients():
    found = torch.full((2, 1, 2, 2), 2.0, requires_grad=True)
    align(found, torch.zeros(2, 1, 2, 2, dtype=torch.float64))
    assert found.min() == 2.0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("shape", [(3, 1, 4, 4), (2, 3, 4, 4), (2, 1, 4, 5)])
def test_unequal_numbers_or_shapes_are_refused(shape):
    with pytest.raises(InputError, match=r"\(2, 1, 4, 4\)"):
        align(torch.zeros(shape), torch.zeros(2, 1, 4, 4))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("left", "right"), [([1, 2], None), (None, [1, 2]), ([1, 2], [1])])
def test_labels_of_one_side_are_refused(left, right):
    images = torch.zeros(2, 1, 4, 4)
    left, right = (None if labels is None else torch.tensor(labels) for labels in (left, right))
    with pytest.raises(InputError, match="labels of both sides"):
        align(images, images, reconstruction_labels=left, target_labels=right)
