"""Targets out of outputs and the derivative of the loss: by the loss's own link, or by calling it."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from inversefed.errors import ThreatModelError
from inversefed.fl.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    FocalLoss,
    Huber,
    Linked,
    MeanSquaredError,
    NegativeLogLikelihood,
    PoissonNLL,
)
from inversefed.fl.network import Network, freeze
from inversefed.fl.recovered_targets import recovered_targets
from inversefed.fl.targets import loss_slope

OUTPUTS = torch.randn(3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
CLASSES, NUMBERS = torch.tensor([3, 0, 2]), OUTPUTS.flip(0) * 1.7
SHARES, ANSWERS = NUMBERS.softmax(dim=1), (NUMBERS > 0).double()


def network(loss: Any, outputs: int = 4) -> Network:
    torch.manual_seed(0)
    return freeze(nn.Sequential(nn.Flatten(), nn.Linear(12, outputs)), (3, 2, 2), loss=loss).to(torch.float64)


CASES = [
    (CrossEntropy(), CLASSES),
    (CrossEntropy(label_smoothing=0.2), CLASSES),
    (CrossEntropy("sum", 0.2), SHARES),
    (BinaryCrossEntropy(), ANSWERS),
    (BinaryCrossEntropy("sum"), SHARES),
    (MeanSquaredError(), NUMBERS),
    (MeanSquaredError("sum"), NUMBERS),
    (PoissonNLL(), ANSWERS * 5),
    (PoissonNLL("sum"), ANSWERS * 5),
    (Huber(9.0), NUMBERS),
    (Huber(9.0, "sum"), NUMBERS),
    (NegativeLogLikelihood(), CLASSES),
    (NegativeLogLikelihood("sum"), CLASSES),
    (FocalLoss(), CLASSES),
    (FocalLoss(0.5, "sum"), CLASSES),
]
STRANGERS = [
    (lambda outputs, labels: F.mse_loss(outputs, labels), NUMBERS),
    (nn.BCEWithLogitsLoss(pos_weight=torch.tensor([1.0, 2.0, 3.0, 4.0])), ANSWERS),
    (lambda outputs, labels: F.poisson_nll_loss(outputs, labels), ANSWERS * 5),
    (nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0, 4.0]), reduction="sum"), CLASSES),
]


@pytest.mark.parametrize(("loss", "targets"), CASES, ids=[repr(loss) for loss, _ in CASES])
def test_a_loss_with_a_link_undoes_its_own_derivative(loss: Any, targets: torch.Tensor) -> None:
    assert isinstance(loss, Linked)
    outputs = OUTPUTS.log_softmax(dim=1) if isinstance(loss, NegativeLogLikelihood) else OUTPUTS
    found = recovered_targets(network(loss), outputs, loss_slope(network(loss), outputs, targets))
    torch.testing.assert_close(found, targets, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("loss", [BinaryCrossEntropy(), CrossEntropy(), PoissonNLL(), MeanSquaredError()])
def test_at_its_prediction_a_loss_has_no_derivative(loss: Any) -> None:
    assert float(loss_slope(network(loss), OUTPUTS, loss.predict(OUTPUTS)).abs().max()) < 1e-12


@pytest.mark.parametrize(("loss", "targets"), STRANGERS, ids=["regression", "weighted answers", "counts", "weighted"])
def test_a_loss_without_a_link_is_called(loss: Any, targets: torch.Tensor) -> None:
    assert not isinstance(loss, Linked)
    found = recovered_targets(network(loss), OUTPUTS, loss_slope(network(loss), OUTPUTS, targets))
    torch.testing.assert_close(found, targets, rtol=1e-6, atol=1e-6)


def test_of_one_output_numbers_come_one_an_example() -> None:
    for loss, numbers in ((MeanSquaredError(), NUMBERS[:, 0]), (BinaryCrossEntropy(), ANSWERS[:, 0])):
        single = network(loss, 1)
        slopes = loss_slope(single, OUTPUTS[:, :1], numbers)
        torch.testing.assert_close(recovered_targets(single, OUTPUTS[:, :1], slopes), numbers)


def test_a_saturated_loss_tells_no_target() -> None:
    saturated = NUMBERS.clone()
    saturated[1, 2] += 100
    for loss, message in ((Huber(9.0), "leaves 1 of 12 targets open"), (nn.L1Loss(), "does not tell the labels")):
        with pytest.raises(ThreatModelError, match=f"{message}.*hand (the labels|them) over"):
            recovered_targets(network(loss), OUTPUTS, loss_slope(network(loss), OUTPUTS, saturated))


def test_answers_near_0_and_1_are_those_and_numbers_stay() -> None:
    noise = 1e-5 * torch.ones_like(OUTPUTS)
    for loss, rounds in ((BinaryCrossEntropy(), True), (MeanSquaredError(), False)):
        slopes = loss_slope(network(loss), OUTPUTS, ANSWERS)
        found = recovered_targets(network(loss), OUTPUTS, slopes + noise)
        assert torch.equal(found, ANSWERS) == rounds
