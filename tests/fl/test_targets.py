"""What a loss takes as labels, and that labels are brought into it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from inversefed.errors import InputError, UnsupportedNetworkError
from inversefed.fl.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    FocalLoss,
    Huber,
    MeanSquaredError,
    NegativeLogLikelihood,
    PoissonNLL,
    as_loss,
    reduction_of,
)
from inversefed.fl.network import Network, freeze
from inversefed.fl.targets import as_rows, as_targets, check_labels, classes_of, forms, kinds, made_up_targets

WEIGHT = torch.tensor([1.0, 2.0, 3.0])


def network(outputs: int, loss: object, *last: nn.Module) -> Network:
    torch.manual_seed(0)
    return freeze(nn.Sequential(nn.Flatten(), nn.Linear(12, outputs), *last), (3, 2, 2), loss=loss)


def squeezed(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(outputs.squeeze(1), labels.float())


@pytest.mark.parametrize(
    ("outputs", "loss", "last", "taken"),
    [
        (3, CrossEntropy(), (), ("classes", "rows")),
        (3, nn.CrossEntropyLoss(), (), ("classes", "rows")),
        (3, nn.CrossEntropyLoss(weight=WEIGHT), (), ("classes", "rows")),
        (3, nn.NLLLoss(), (nn.LogSoftmax(1),), ("classes",)),
        (3, FocalLoss(), (), ("classes",)),
        (3, nn.MSELoss(), (), ("rows",)),
        (3, nn.BCELoss(), (nn.Sigmoid(),), ("rows",)),
        (1, nn.BCEWithLogitsLoss(), (), ("rows",)),
        (1, nn.MSELoss(), (), ("rows",)),
        (1, squeezed, (), ("classes", "values")),
        (1, BinaryCrossEntropy(), (), ("classes", "values", "rows")),
        (3, nn.CrossEntropyLoss(reduction="none"), (), ()),
        (3, lambda outputs, labels: outputs.sum() * float("nan"), (), ()),
    ],
)
def test_forms_are_found_by_calling(outputs: int, loss: object, last: tuple, taken: tuple) -> None:
    assert forms(network(outputs, loss, *last)) == taken


@pytest.mark.parametrize("labels", [torch.tensor([1, 0]), torch.tensor([1.0, 0.0]), torch.tensor([[1.0], [0.0]])])
def test_answers_of_one_output_come_in_any_shape(labels: torch.Tensor) -> None:
    rows = as_targets(network(1, nn.BCEWithLogitsLoss()), labels)
    assert rows.tolist() == [[1.0], [0.0]] and rows.dtype == torch.float32
    assert as_targets(network(1, squeezed), labels).tolist() == [1, 0]


def test_rows_of_integers_become_floats_and_classes_rows() -> None:
    several = network(3, nn.BCEWithLogitsLoss())
    assert as_targets(several, torch.tensor([[1, 0, 1]])).tolist() == [[1.0, 0.0, 1.0]]
    assert as_rows(several, torch.tensor([2])).tolist() == [[0.0, 0.0, 1.0]]
    assert as_rows(network(1, squeezed), torch.tensor([1, 0])).tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(reduction="none"), r"one real number for a batch.*gives \[2\]"),
        (lambda outputs, labels: outputs.sum() * 1j, "complex"),
        (lambda outputs, labels: outputs.sum() / 0 * 0, "finite"),
        (lambda outputs, labels: torch.tensor(1.0), "differentiable"),
        (lambda outputs, labels: 1 / 0, "division by zero"),
        (lambda outputs, labels: "much", "gives str"),
        (nn.MSELoss(), r"takes floats \[n, 3\].*labels \[2\] of torch.int64"),
    ],
)
def test_a_loss_that_is_none_is_named_with_what_it_did(loss: object, message: str) -> None:
    with pytest.raises(UnsupportedNetworkError, match=message):
        as_targets(network(3, loss), torch.tensor([1, 2]))


def test_even_the_loss_of_one_example_must_be_reduced() -> None:
    with pytest.raises(UnsupportedNetworkError, match="one real number for a batch"):
        as_targets(network(3, nn.CrossEntropyLoss(reduction="none")), torch.tensor([1]))


def test_labels_are_checked_by_their_loss() -> None:
    check_labels(torch.tensor([1, 0]), 2, network(1, squeezed))
    check_labels(torch.tensor([63.5, 20.0]), 2, network(1, MeanSquaredError()))
    check_labels(torch.rand(2, 3), 2, network(3, CrossEntropy()))
    wrong = [
        (torch.tensor([2]), network(1, squeezed), r"0\.\.1.*as floats"),
        (torch.tensor([0]), network(1, CrossEntropy()), "always 0"),
        (torch.tensor([0.5]), network(3, CrossEntropy()), "class indices"),
        (torch.tensor([float("nan")]), network(1, MeanSquaredError()), "finite"),
        (torch.tensor([1.0, 2.0]), network(1, MeanSquaredError()), "as many labels"),
    ]
    for labels, seen, message in wrong:
        with pytest.raises(InputError, match=message):
            check_labels(labels, 1, seen)


def test_kinds_and_classes_of_labels() -> None:
    assert kinds(torch.tensor([[0.5, 1.0], [0.0, 1.0], [0.5, 1.0]])).tolist() == [1, 0, 1]
    answers = classes_of(torch.tensor([[1.0], [0.0]]), 1)
    assert answers is not None and answers.tolist() == [1, 0]
    assert classes_of(torch.tensor([0.3]), 1) is None and classes_of(torch.rand(2, 3), 3) is None
    for loss, outputs in ((nn.MSELoss(), 3), (squeezed, 1), (FocalLoss(), 3)):
        made = made_up_targets(network(outputs, loss), 4)
        assert len(made) == 4 and made.is_floating_point() == (
            loss not in (squeezed,) and outputs == 3 and made.ndim == 2
        )


def test_a_loss_with_numbers_of_its_own_runs_in_other_precision() -> None:
    for loss in (nn.CrossEntropyLoss(weight=WEIGHT), lambda z, y: F.cross_entropy(z, y, weight=WEIGHT)):
        double = network(3, loss).to(torch.float64)
        outputs, labels = torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 2])
        expected = F.cross_entropy(outputs, labels, weight=WEIGHT.double())
        torch.testing.assert_close(double.loss(outputs, labels), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        (None, CrossEntropy()),
        (nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1), CrossEntropy("sum", 0.1)),
        (nn.NLLLoss(), NegativeLogLikelihood()),
        (nn.HuberLoss(reduction="sum", delta=2.0), Huber(2.0, "sum")),
        (nn.PoissonNLLLoss(), PoissonNLL()),
    ],
)
def test_a_loss_of_torch_that_is_one_of_ours_becomes_it_where_it_comes_in(theirs: object, ours: object) -> None:
    assert network(3, theirs).loss == ours
    outputs, labels = torch.randn(2, 3), torch.tensor([0, 2])
    labels = torch.randn(2, 3) if isinstance(ours, Huber | PoissonNLL) else labels
    assert theirs is None or torch.equal(as_loss(theirs)(outputs, labels), theirs(outputs, labels))


def test_a_loss_of_torch_that_holds_more_than_ours_stays_and_says_how_it_reduces() -> None:
    kept = (
        nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum"), nn.CrossEntropyLoss(ignore_index=1),
        nn.CrossEntropyLoss(reduction="none"), nn.MSELoss(reduction="sum"), F.cross_entropy,
        nn.PoissonNLLLoss(log_input=False), nn.PoissonNLLLoss(full=True), nn.HuberLoss(reduction="none"),
    )  # fmt: skip
    assert all(as_loss(loss) is loss for loss in kept)
    assert [reduction_of(loss) for loss in kept] == ["sum", "mean", "none", "sum", "mean", "mean", "mean", "none"]
    in_other_forms = network(3, nn.MultiMarginLoss(reduction="sum")).loss, network(3, kept[0]).to(torch.float64).loss
    assert [reduction_of(loss) for loss in in_other_forms] == ["sum", "sum"]
