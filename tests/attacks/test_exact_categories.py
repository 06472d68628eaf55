"""Rows of a table from their categories: exact with labels, whatever the activation and the loss, or a refusal."""

import dataclasses
import json
import time
from pathlib import Path

import pytest
import torch
from torch import Generator, Tensor, nn

import inversefed
from inversefed import Batch, FedSGD, Observation, ThreatModel, freeze, observe, recipes
from inversefed.attacks.exact import open_numbers
from inversefed.attacks.exact.open_numbers import Spans
from inversefed.attacks.exact.watch import Watch
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.batchnorm import sent_buffers
from inversefed.fl.defenses import Context, GaussianNoise
from inversefed.fl.losses import BinaryCrossEntropy, MeanSquaredError
from inversefed.inputs import Category, Columns, Number
from inversefed.types import Budget, Reconstruction


def table(values: tuple[int, ...], numbers: int = 2) -> Columns:
    """Categories with so many values each, whole numbers as ages are, and one that is not whole."""
    categories = [Category(f"c{place}", tuple(map(str, range(count)))) for place, count in enumerate(values)]
    whole = [Number(f"n{place}", 0, 60 + place, whole=True, mean=30.0, std=15.0) for place in range(numbers)]
    return Columns((*categories, *whole, Number("score", -3.0, 3.0)))


CREDIT = table((4, 5, 10, 5, 5, 4, 3, 4, 3, 3, 4, 2, 2))
"""As many categories with as many values as German credit has."""
FEW = table((6, 5, 4))


def perceptron(space: Columns, width: int = 120, outputs: int = 2, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    torch.manual_seed(0)
    (inputs,) = space.shape
    hidden = [nn.Linear(inputs, width), activation(), nn.Linear(width, width), activation()]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def seen(
    module: nn.Module, space: Columns, rows: Tensor, labels: Tensor, loss: object = None, told: str = "unknown"
) -> Observation:
    network = freeze(module, space, loss=loss)
    update = FedSGD()(network, rows, labels)
    return observe(network, FedSGD(), update, Batch(rows, labels), ThreatModel(labels=told))


def solved(observation: Observation) -> Reconstruction:
    return recipes.categories()(observation, Generator().manual_seed(0))


def order(found: Tensor, rows: Tensor) -> Tensor:
    """Where each row is among those found, each somewhere else."""
    nearest = torch.cdist(rows.double(), found.double()).argmin(dim=1)
    assert sorted(nearest.tolist()) == list(range(len(rows)))
    return nearest


def drawn(space: Columns, count: int, seed: int = 0) -> Tensor:
    return space.stand_ins(count, Generator().manual_seed(seed))


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh])
@pytest.mark.parametrize("count", [2, 8, 32])
def test_all_rows_come_out_exactly_with_their_labels(count: int, activation: type[nn.Module]) -> None:
    rows, labels = drawn(CREDIT, count), torch.arange(count) % 3 % 2
    found = solved(seen(perceptron(CREDIT, activation=activation), CREDIT, rows, labels))
    places = order(found.images, rows)
    assert found.proven and found.findings[0].code == "exact" and found.matching_error < 1e-10
    assert CREDIT.measures(found.images[places], rows)["exact_row"].all()
    assert found.labels[places].tolist() == labels.tolist()


def test_the_targets_of_a_regression_come_out_with_the_rows() -> None:
    rows, targets = drawn(CREDIT, 8), torch.randn(8, generator=Generator().manual_seed(1))
    found = solved(seen(perceptron(CREDIT, outputs=1), CREDIT, rows, targets, MeanSquaredError()))
    places = order(found.images, rows)
    assert found.proven and float((found.labels.flatten()[places] - targets).abs().max()) < 1e-4


def test_answers_of_yes_and_no_come_out_of_one_logit_or_several() -> None:
    rows, random = drawn(CREDIT, 8), Generator().manual_seed(1)
    for outputs in (1, 4):
        targets = torch.randint(2, (8, outputs), generator=random).float()
        found = solved(seen(perceptron(CREDIT, outputs=outputs), CREDIT, rows, targets, BinaryCrossEntropy()))
        assert found.proven and torch.equal(found.labels.reshape(8, -1)[order(found.images, rows)], targets)


def test_granted_labels_stand_as_they_were_granted() -> None:
    rows, labels = drawn(CREDIT, 6), torch.tensor([1, 0, 0, 1, 1, 0])
    found = solved(seen(perceptron(CREDIT), CREDIT, rows, labels, told="known"))
    assert found.proven and found.labels.tolist() == labels.tolist()


def test_rows_with_the_same_categories_are_told_by_whole_numbers_and_by_the_layers_behind() -> None:
    rows = drawn(FEW, 8)
    rows[1, :15], rows[2, :15], rows[4, :15] = rows[0, :15], rows[0, :15], rows[3, :15]
    labels = torch.tensor([0, 1, 1, 0, 1, 0, 1, 1])
    observation = seen(perceptron(FEW), FEW, rows, labels)
    found = solved(observation)
    assert found.proven and FEW.measures(found.images[order(found.images, rows)], rows)["exact_row"].all()
    assert found.findings[0].evidence["rank_of_categories"] < 8 or found.findings[0].evidence["equations"] < 4


def test_rows_that_differ_in_broken_numbers_alone_are_told_by_the_layers_behind() -> None:
    rows = drawn(FEW, 6)
    rows[1, :-1] = rows[0, :-1]
    found = solved(seen(perceptron(FEW), FEW, rows, torch.tensor([0, 1, 1, 0, 1, 0])))
    assert found.proven and float((found.images[order(found.images, rows)] - rows).abs().max()) < 1e-5


def test_one_hidden_layer_is_enough() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(CREDIT.shape[0], 100), nn.ReLU(), nn.Linear(100, 2))
    rows, labels = drawn(CREDIT, 12), torch.arange(12) % 2
    found = solved(seen(module, CREDIT, rows, labels))
    assert found.proven and found.labels[order(found.images, rows)].tolist() == labels.tolist()


def test_a_layer_between_does_not_matter() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(CREDIT.shape[0], 100), nn.BatchNorm1d(100), nn.ReLU(), nn.Linear(100, 3)).eval()
    rows, labels = drawn(CREDIT, 12), torch.arange(12) % 3
    found = solved(seen(module, CREDIT, rows, labels))
    assert found.proven and found.labels[order(found.images, rows)].tolist() == labels.tolist()


def test_categories_that_are_normalized_too_are_read_all_the_same() -> None:
    rows, labels = drawn(CREDIT, 8), torch.arange(8) % 2
    network = freeze(perceptron(CREDIT), CREDIT, mean=0.5, std=0.25)
    update = FedSGD()(network, rows, labels)
    found = solved(observe(network, FedSGD(), update, Batch(rows, labels), ThreatModel()))
    assert found.proven and torch.allclose(found.images[order(found.images, rows)], rows, atol=1e-5)


def test_what_is_missing_is_named() -> None:
    bare = table((6, 5, 4), numbers=0)
    rows, labels = drawn(bare, 13, seed=4), torch.arange(13) % 2
    with pytest.raises(ThreatModelError, match=r"C, the cells of 3 columns, has rank 1\d and leaves 0 equations"):
        solved(seen(perceptron(bare), bare, rows, labels))
    rows = drawn(FEW, 4)
    again = rows[[0, 0, 1, 2]]
    with pytest.raises(ThreatModelError, match="has rank 3, and an honest one of 4 different rows has 4"):
        solved(seen(perceptron(FEW), FEW, again, labels[[0, 0, 1, 0]]))
    batch = Batch(drawn(CREDIT, 4), labels[:4])
    observation = seen(perceptron(CREDIT), CREDIT, batch.images, batch.labels)
    context = Context(observation.network, batch)
    noisy = GaussianNoise(1e-3)(observation.update, context, Generator().manual_seed(0))
    with pytest.raises(ThreatModelError, match="rank"):
        solved(dataclasses.replace(observation, update=noisy))


def test_what_is_no_table_is_refused() -> None:
    torch.manual_seed(0)
    network = freeze(nn.Sequential(nn.Flatten(), nn.Linear(48, 30), nn.ReLU(), nn.Linear(30, 4)), (3, 4, 4))
    images = torch.rand(2, 3, 4, 4)
    batch = Batch(images, torch.tensor([0, 1]))
    pictures = observe(network, FedSGD(), FedSGD()(network, images, batch.labels), batch, ThreatModel())
    with pytest.raises(UnsupportedNetworkError, match="columns of a table"):
        recipes.categories().check(pictures)


def normalized(
    rows: Tensor, labels: Tensor, loss: object = None, outputs: int = 2, told: str = "unknown", width: int = 120
) -> Observation:
    """BatchNorm in train mode behind the first layer, its running statistics sent."""
    torch.manual_seed(0)
    (inputs,) = CREDIT.shape
    norm, activation = nn.BatchNorm1d(width), nn.GELU() if outputs == 1 else nn.ReLU()
    hidden = [nn.Linear(inputs, width), norm, activation, nn.Linear(width, 60), nn.ReLU(), nn.Linear(60, outputs)]
    network = freeze(nn.Sequential(*hidden), CREDIT, loss=loss)
    buffers = sent_buffers(FedSGD(), network, rows, labels)
    threat = ThreatModel(labels=told, buffers="sent")
    return observe(network, FedSGD(), FedSGD()(network, rows, labels), Batch(rows, labels), threat, buffers)


@pytest.mark.parametrize("count", [4, 8, 16])
def test_behind_batchnorm_in_train_mode_the_statistics_that_are_sent_give_the_mean_back(count: int) -> None:
    rows, labels = drawn(CREDIT, count), torch.arange(count) % 3 % 2
    found = solved(normalized(rows, labels))
    places = order(found.images, rows)
    assert found.proven and CREDIT.measures(found.images[places], rows)["exact_row"].all()
    assert found.labels[places].tolist() == labels.tolist()


def test_behind_batchnorm_in_train_mode_targets_and_granted_labels_are_right_too() -> None:
    rows, targets = drawn(CREDIT, 6), torch.randn(6, generator=Generator().manual_seed(1))
    found = solved(normalized(rows, targets, MeanSquaredError(), outputs=1))
    assert found.proven and float((found.labels.flatten()[order(found.images, rows)] - targets).abs().max()) < 1e-3
    labels = torch.tensor([1, 0, 0, 1, 1, 0])
    found = solved(normalized(rows, labels, told="known"))
    assert found.proven and found.labels.tolist() == labels.tolist()


def test_what_batchnorm_in_train_mode_lacks_is_named() -> None:
    rows, labels = drawn(CREDIT, 6), torch.arange(6) % 2
    observation = normalized(rows, labels)
    unsent = dataclasses.replace(observation, buffers=None)
    for call in (recipes.categories().check, solved):
        with pytest.raises(ThreatModelError, match=r"BatchNorm 1 in train mode takes the mean .* sent"):
            call(unsent)
    with pytest.raises(UnsupportedNetworkError, match="has to have as many outputs as inputs"):
        solved(normalized(rows, labels, width=40))
    assert observation.buffers is not None
    wrong = {name: part * 1.01 if part.is_floating_point() else part for name, part in observation.buffers.items()}
    try:
        assert not solved(dataclasses.replace(observation, buffers=wrong)).proven
    except ThreatModelError as error:
        assert "rows are told" in str(error) or "combinations" in str(error)


def alike(count: int) -> tuple[Tensor, Tensor]:
    """Rows of which three share all categories, so that every part of the method has work to do."""
    rows = drawn(FEW, count)
    rows[1, :15], rows[2, :15] = rows[0, :15], rows[0, :15]
    return rows, torch.arange(count) % 2


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that the network ran on between each two looks at the time."""
    since, forward, stop = [0], Spans._forward, Watch.stop

    def ran(spans: Spans, rows: Tensor, outside: dict[str, Tensor]) -> list[Tensor]:
        since[-1] += len(rows)
        return forward(spans, rows, outside)

    def looked(watch: Watch) -> bool:
        since.append(0)
        return stop(watch)

    monkeypatch.setattr(Spans, "_forward", ran)
    monkeypatch.setattr(Watch, "stop", looked)
    return since


def test_it_looks_at_the_time_before_each_piece_of_work(looks: list[int]) -> None:
    rows, labels = alike(8)
    assert solved(seen(perceptron(FEW), FEW, rows, labels)).proven
    assert len(looks) > 10 and sum(looks) > 4 * max(looks)
    assert max(looks) <= open_numbers.TOLERANCES.chunk


@pytest.mark.parametrize("last", [1, 2, 4, 8])
def test_it_ends_at_the_first_look_after_the_time_is_over(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, labels = alike(8)
    observation, seconds = seen(perceptron(FEW), FEW, rows, labels), iter(range(1000))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(seconds)))  # a second a look, one at the start
    with pytest.raises(ThreatModelError, match="the time was over before the 8 rows were told"):
        recipes.categories()(observation, Generator().manual_seed(0), Budget(seconds=last - 0.5))
    assert next(seconds) == last + 1


@pytest.mark.parametrize("seed", range(20))
def test_an_update_of_other_weights_is_never_called_exact(seed: int) -> None:
    """The server's weights are not those that the client had: what fits the equations does not make the update."""
    rows, labels = drawn(FEW, 4, seed), torch.arange(4) % 2
    observation = seen(perceptron(FEW), FEW, rows, labels)
    shuffled = {name: part[torch.randperm(len(part), generator=Generator().manual_seed(seed))]
                for name, part in observation.update.items()}  # fmt: skip
    try:
        found = solved(dataclasses.replace(observation, update=shuffled))
    except (ThreatModelError, UnsupportedNetworkError):
        return
    assert not found.proven and found.findings[0].code == "not-exact"


def test_an_audit_of_a_table_finds_rows_and_labels_and_says_so(tmp_path: Path) -> None:
    rows, labels = drawn(CREDIT, 8), torch.tensor([0, 1, 1, 0, 1, 0, 0, 1])
    report = inversefed.audit(perceptron(CREDIT), rows, labels, inputs=CREDIT, nulls=1, max_iterations=5)
    assert report.reconstruction.made_by == repr(recipes.categories())
    assert report.verdict.leaked and report.verdict.figures.pictures_exact == tuple(range(8))
    for name in ("cells_right", "exact_row", "tableak_accuracy", "label_accuracy"):
        assert report.scores[name].tolist() == [1] * 8
    assert float(report.scores["worst_number"].max()) < 1e-4
    assert float(report.baselines["typical_row"]["cells_right"].mean()) < 0.5
    folder = report.save(tmp_path / "report")
    saved = json.loads((folder / "report.json").read_text())
    assert saved["scores"]["exact_row"] == [1] * 8 and saved["verdict"]["figures"]["exact"] is True
    assert "c2" in (folder / "report.html").read_text()
