"""Heads and losses beside softmax cross entropy of classes: audited, labels found where the algebra allows."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import inversefed
from inversefed import FedAvg, FedSGD, recipes
from inversefed.attacks.head.gradient import pulls
from inversefed.attacks.head.output_activation import behind_head
from inversefed.attacks.labels import RecoveredLabels, SignRule, SoftTargets, SolvedTarget
from inversefed.errors import InversefedError, ThreatModelError
from inversefed.evaluation.metrics import label_accuracy
from inversefed.fl.losses import (
    BinaryCrossEntropy,
    CrossEntropy,
    FocalLoss,
    Huber,
    MeanSquaredError,
    NegativeLogLikelihood,
    PoissonNLL,
)
from inversefed.fl.network import freeze
from inversefed.fl.threat import Observation, ThreatModel

WEIGHT = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
ANSWERS = torch.tensor([[1.0, 0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0, 0.0], [0.0] * 5])
NUMBERS = torch.tensor([[0.35, -2.0, 7.0, 0.0, 1.0], [3.0, 1.0, -1.0, 0.5, 0.1], [0.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]])


def smooth(outputs: int, *last: nn.Module, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, 2, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(128, outputs, bias=bias)
    return nn.Sequential(*layers, *last).eval()


def dense(outputs: int, *last: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, outputs), *last).eval()


def pictures(count: int) -> torch.Tensor:
    return torch.rand((count, 3, 8, 8), generator=torch.Generator().manual_seed(5))


def squeezed(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(outputs.squeeze(1), labels.float())


def logged(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.nll_loss(outputs.log(), labels)


def seen(module: nn.Module, loss: Any, labels: torch.Tensor, client: Any = FedSGD()) -> Observation:
    network = freeze(module, (3, 8, 8), loss=loss)
    return Observation(network, client, client(network, pictures(len(labels)), labels), len(labels))


YES, CLASS = torch.tensor([1, 0, 1, 0]), torch.tensor([3, 0, 1, 4])
CASES: dict[str, tuple[int, tuple[nn.Module, ...], Any, torch.Tensor]] = {
    "one output": (1, (), squeezed, YES),
    "one output, rows": (1, (), nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0])), YES.float()[:, None]),
    "one output, sigmoid": (1, (nn.Sigmoid(),), nn.BCELoss(), YES),
    "several answers": (5, (), nn.BCEWithLogitsLoss(), ANSWERS),
    "several answers, sigmoid": (5, (nn.Sigmoid(),), nn.BCELoss(), ANSWERS),
    "several answers, summed": (5, (), BinaryCrossEntropy("sum"), ANSWERS),
    "regression": (1, (), nn.MSELoss(), torch.tensor([63.5, -1.0, 0.2, 7.0])),
    "regression of five": (5, (), MeanSquaredError(), NUMBERS),
    "log-softmax": (5, (nn.LogSoftmax(1),), nn.NLLLoss(), CLASS),
    "softmax, then logarithm": (5, (nn.Softmax(1),), logged, CLASS),
    "focal": (5, (), FocalLoss(), CLASS),
    "weighted": (5, (), nn.CrossEntropyLoss(weight=WEIGHT), CLASS),
    "softmax and cross entropy": (5, (nn.Softmax(1),), nn.CrossEntropyLoss(), CLASS),
}


@pytest.mark.parametrize("case", CASES)
def test_one_example_is_exact_and_its_label_found(case: str) -> None:
    outputs, last, loss, labels = CASES[case]
    for index in range(2):
        report = inversefed.audit(
            smooth(outputs, *last), pictures(1), labels[index : index + 1], loss=loss, nulls=0, max_iterations=2
        )
        assert report.truth is not None and bool((report.scores["peak_signal_noise_ratio"] > 100).all())
        torch.testing.assert_close(report.labels.double(), report.truth.labels.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_several_examples_are_audited_or_their_labels_asked_for(case: str, tmp_path: Path) -> None:
    outputs, last, loss, labels = CASES[case]
    for client in (FedSGD(), FedAvg(2, lr=0.01)):
        for known in ("known", "unknown"):
            threat = ThreatModel(labels=known)  # type: ignore[arg-type]
            try:
                report = inversefed.audit(
                    smooth(outputs, *last), pictures(4), labels, loss=loss, client=client, threat=threat, nulls=0,
                    max_iterations=2,
                )  # fmt: skip
            except InversefedError as error:
                assert known == "unknown" and "hand the labels over" in str(error)
                continue
            report.save(tmp_path, overwrite=True)
            assert report.summary() and len(report.labels) == 4


@pytest.mark.parametrize("case", ["one output, rows", "several answers", "regression of five", "log-softmax", "focal"])
def test_a_batch_that_a_first_linear_layer_sees_is_exact_with_its_labels(case: str) -> None:
    outputs, last, loss, labels = CASES[case]
    report = inversefed.audit(dense(outputs, *last), pictures(4), labels, loss=loss, nulls=0, max_iterations=2)
    assert report.truth is not None and bool((report.scores["peak_signal_noise_ratio"] > 80).all())
    # Rounding of float32 that costs the pictures 97 dB shows in the targets as 2e-4.
    torch.testing.assert_close(report.labels.double(), report.truth.labels.double(), rtol=1e-3, atol=1e-3)


SHARES = torch.tensor([[0.6, 0.3, 0.1, 0.0, 0.0], [0.2] * 5, [0.0, 0.0, 1.0, 0.0, 0.0], [0.1, 0.0, 0.0, 0.0, 0.9]])
COUNTS = torch.tensor([[3.0, 0.0, 1.0, 0.0, 7.0], [0.0, 2.0, 0.0, 1.0, 0.0], [4.0, 0.0, 0.0, 0.0, 1.0], [1.0] * 5])
RECOVERED: dict[str, tuple[int, Any, torch.Tensor]] = {
    "regression": (1, MeanSquaredError(), NUMBERS[:, :1]),
    "regression of five": (5, MeanSquaredError(), NUMBERS),
    "regression of a stranger's loss": (5, lambda outputs, labels: (outputs - labels).square().mean(), NUMBERS),
    "one answer": (1, BinaryCrossEntropy(), ANSWERS[:, :1]),
    "several answers": (5, BinaryCrossEntropy(), ANSWERS),
    "shares of answers": (5, BinaryCrossEntropy(), SHARES),
    "mixtures of classes": (5, CrossEntropy(label_smoothing=0.1), SHARES),
    "counts": (5, PoissonNLL(), COUNTS),
    "Huber": (5, Huber(9.0), NUMBERS),
}


@pytest.mark.parametrize("case", RECOVERED)
def test_targets_come_out_of_an_update_with_the_pictures(case: str) -> None:
    outputs, loss, labels = RECOVERED[case]
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 256), nn.ReLU(), nn.Linear(256, outputs)).eval()
    for count, attack in ((1, recipes.linear()), (4, recipes.sparse())):
        report = inversefed.audit(
            module, pictures(count), labels[:count], loss=loss, attack=attack, nulls=0, mean=0.5, std=0.29
        )
        assert report.truth is not None and report.reconstruction.proven
        found, truth = report.labels.double().flatten(), report.truth.labels.double().flatten()
        assert float((found - truth).abs().max()) <= 1e-5


def test_the_target_is_followed_through_local_steps() -> None:
    target = torch.tensor([[0.35]])
    for client, error in ((FedSGD(), 1e-5), (FedAvg(2, lr=0.01), 3e-3)):
        found = SolvedTarget()(seen(smooth(1), nn.MSELoss(), target, client))
        assert abs(float(found) - 0.35) < error
    answers = SolvedTarget()(seen(smooth(5), nn.BCEWithLogitsLoss(), ANSWERS[:1], FedAvg(3, lr=0.05)))
    assert torch.equal(answers, ANSWERS[:1])


def test_answers_of_a_batch_are_counted_as_two_classes() -> None:
    labels = torch.tensor([1, 0, 1, 1, 0, 1, 1, 0])
    found = RecoveredLabels()(seen(dense(1), squeezed, labels))
    assert found.tolist() == sorted(labels.tolist())


def test_probabilities_of_one_example_are_read_where_no_class_explains_the_gradient() -> None:
    mixture = torch.tensor([[0.6, 0.3, 0.1, 0.0, 0.0]])
    for loss in (None, nn.CrossEntropyLoss(label_smoothing=0.1)):
        mixed = seen(smooth(5), loss, mixture)
        assert isinstance(RecoveredLabels().rule(mixed), SoftTargets)
        torch.testing.assert_close(RecoveredLabels()(mixed), mixture, rtol=1e-4, atol=1e-4)
    assert isinstance(RecoveredLabels().rule(seen(smooth(5), None, torch.tensor([2]))), SignRule)


def test_what_stands_behind_the_head_is_part_of_the_loss() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = smooth(5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return F.log_softmax(self.body(x), dim=1)

    for module in (Functional(), smooth(5, nn.LogSoftmax(1))):
        assert pulls(freeze(module, (3, 8, 8), loss=NegativeLogLikelihood())) is not None
    assert behind_head(freeze(smooth(5, nn.ReLU()), (3, 8, 8))) is None
    assert pulls(freeze(smooth(5), (3, 8, 8), loss=NegativeLogLikelihood())) is None


def test_a_head_of_one_output_without_bias_shows_its_label_by_signs() -> None:
    for label in (0, 1):
        observation = seen(smooth(1, bias=False), squeezed, torch.tensor([label]))
        assert RecoveredLabels()(observation).tolist() == [label]


@pytest.mark.parametrize("loss", [nn.L1Loss(), nn.HuberLoss()])
def test_a_loss_that_does_not_tell_its_target_asks_for_it(loss: nn.Module) -> None:
    with pytest.raises(ThreatModelError, match=r"(L1Loss|Huber).*hand the labels? over"):
        inversefed.audit(smooth(5), pictures(1), NUMBERS[:1], loss=loss, nulls=0)


def test_numbers_have_no_accuracy_and_answers_do() -> None:
    def scores(loss: nn.Module, labels: torch.Tensor) -> Any:
        return inversefed.audit(smooth(5), pictures(1), labels, loss=loss, nulls=0, max_iterations=2).scores

    assert "label_accuracy" not in scores(nn.MSELoss(), NUMBERS[:1])
    assert scores(nn.BCEWithLogitsLoss(), ANSWERS[:1])["label_accuracy"].tolist() == [1.0]


@pytest.mark.parametrize("factor", [1.0, 0.03, 1e-4])
def test_a_clipped_gradient_of_one_class_is_no_mixture(factor: float) -> None:
    observation = seen(smooth(5), None, torch.tensor([2]))
    clipped = replace(observation, update={name: factor * part for name, part in observation.update.items()})
    assert isinstance(RecoveredLabels().rule(clipped), SignRule)
    assert RecoveredLabels()(clipped).tolist() == [2]


def test_probabilities_count_by_the_greatest_where_the_truth_is_one_class() -> None:
    found = label_accuracy(torch.tensor([[0.1, 0.7, 0.2], [0.6, 0.3, 0.1]]), torch.tensor([1, 1]))
    assert found.tolist() == [1.0, 0.0]


SETS = torch.tensor([[1, 3, -1, 0, 0], [0, -1, 0, 0, 0], [2, 1, -1, 0, 4], [4, 3, 2, 1, 0]])
MARGINS: dict[str, tuple[Any, torch.Tensor]] = {
    "classes": (nn.MultiMarginLoss(), CLASS),
    "squared": (nn.MultiMarginLoss(p=2, margin=0.5, reduction="sum"), CLASS),
    "weighted": (nn.MultiMarginLoss(weight=WEIGHT), CLASS),
    "sets of classes": (nn.MultiLabelMarginLoss(), SETS),
}


@pytest.mark.parametrize("case", MARGINS)
def test_a_margin_loss_has_a_second_derivative_in_an_equal_form(case: str) -> None:
    loss, labels = MARGINS[case]
    network, outputs = freeze(smooth(5), (3, 8, 8), loss=loss), torch.randn(4, 5, requires_grad=True)
    (ours,), (theirs,) = (torch.autograd.grad(each(outputs, labels), outputs) for each in (network.loss, loss))
    torch.testing.assert_close(network.loss(outputs, labels), loss(outputs, labels))
    torch.testing.assert_close(ours, theirs)
    assert repr(network.loss) == repr(loss)
    for count in (1, 3):
        threat = ThreatModel(labels="known")
        report = inversefed.audit(
            smooth(5), pictures(count), labels[:count], loss=loss, threat=threat, nulls=0, max_iterations=2
        )
        assert len(report.labels) == count


@pytest.mark.parametrize(
    ("outputs", "loss", "target"),
    [
        (1, nn.HingeEmbeddingLoss(), torch.tensor([[-1.0]])),
        (1, nn.SoftMarginLoss(), torch.tensor([[1.0]])),
        (1, nn.SmoothL1Loss(), torch.tensor([[0.35]])),
        (3, nn.HuberLoss(), torch.tensor([[0.3, -0.2, 0.1]])),
        (3, nn.HuberLoss(), torch.tensor([[3.0, -5.0, 4.0]])),
        (1, nn.L1Loss(), torch.tensor([[63.5]])),
        (3, nn.L1Loss(), torch.tensor([[3.0, -0.2, -7.0]])),
    ],
)
def test_a_picture_that_needs_no_label_is_read_whatever_the_loss(outputs: int, loss: Any, target: torch.Tensor) -> None:
    network = freeze(dense(outputs), (3, 8, 8), loss=loss)
    update = FedSGD()(network, pictures(1), target)
    found = recipes.linear()(Observation(network, FedSGD(), update, 1), torch.Generator())
    torch.testing.assert_close(found.images, pictures(1), rtol=1e-4, atol=1e-5)
    assert "exact" in {finding.code for finding in found.findings} and found.loss < 1e-8
