"""Rows of numbers alone, without a category: exact by the zeros of a ReLU, with classes, answers and targets."""

import pytest
import torch
from torch import Generator, Tensor, nn

from inversefed import Batch, FedSGD, Observation, ThreatModel, freeze, observe, recipes
from inversefed.attacks.exact.dense_batch.rank_decomposition import Mixture
from inversefed.attacks.exact.dense_batch.sparse_directions import NullVectors, SparseDescent
from inversefed.attacks.exact.dense_batch.spear import SparseBatch, _Rows
from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.losses import BinaryCrossEntropy, CrossEntropy, MeanSquaredError
from inversefed.inputs import Columns, Number

NUMBERS = Columns(tuple(Number(f"n{place}", -4.0, 4.0) for place in range(10)))


def drawn(count: int, random: Generator) -> Tensor:
    """Rows whose columns go together, as measurements do: four numbers decide most of ten."""
    mix = torch.randn(4, 10, generator=random)
    rows = torch.randn(count, 4, generator=random) @ mix / 2 + 0.1 * torch.randn(count, 10, generator=random)
    return (rows / 8 + 0.5).clamp(0, 1)


def seen(rows: Tensor, targets: Tensor, outputs: int, loss: object, seed: int) -> Observation:
    torch.manual_seed(seed)
    hidden = [nn.Linear(10, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU()]
    network = freeze(nn.Sequential(*hidden, nn.Linear(100, outputs)), NUMBERS, loss=loss)
    return observe(network, FedSGD(), FedSGD()(network, rows, targets), Batch(rows, targets), ThreatModel())


def targets_of(loss: object, count: int, outputs: int, random: Generator) -> Tensor:
    if isinstance(loss, CrossEntropy):
        return torch.randint(outputs, (count,), generator=random)
    if isinstance(loss, BinaryCrossEntropy):
        return torch.randint(2, (count, outputs), generator=random).float()
    return torch.randn(count, generator=random)


@pytest.mark.parametrize(
    ("loss", "count", "outputs", "seed"),
    [
        (CrossEntropy(), 6, 3, 0),
        (BinaryCrossEntropy(), 4, 6, 0),
        (MeanSquaredError(), 8, 1, 7),
        (MeanSquaredError(), 8, 1, 6),  # two singular values far apart: units that are on look like zeros at first
        (MeanSquaredError(), 8, 1, 10),
    ],
    ids=str,
)
def test_rows_and_targets_are_exact(loss: object, count: int, outputs: int, seed: int) -> None:
    random = Generator().manual_seed(seed)
    rows, targets = drawn(count, random), targets_of(loss, count, outputs, random)
    observation = seen(rows, targets, outputs, loss, seed)
    found = SparseBatch(rounds=20)(observation, Generator().manual_seed(0))
    places = torch.cdist(rows.double(), found.images.double()).argmin(dim=1)
    assert found.proven and sorted(places.tolist()) == list(range(count))
    assert NUMBERS.measures(found.images[places], rows)["exact_row"].all()
    assert float((found.labels[places].reshape(targets.shape) - targets).abs().max()) < 1e-4


@pytest.mark.parametrize("activation", [nn.ReLU, nn.GELU, nn.Tanh])
@pytest.mark.parametrize("outputs", [1, 3])
def test_any_activation_tells_rows_by_what_the_layers_behind_are_fed(activation: type[nn.Module], outputs: int) -> None:
    random, loss = Generator().manual_seed(2), MeanSquaredError() if outputs == 1 else CrossEntropy()
    rows, targets = NUMBERS.stand_ins(6, random), targets_of(loss, 6, outputs, random)
    torch.manual_seed(2)
    hidden = [nn.Linear(10, 100), activation(), nn.Linear(100, 100), activation()]
    network = freeze(nn.Sequential(*hidden, nn.Linear(100, outputs)), NUMBERS, loss=loss)
    observation = observe(network, FedSGD(), FedSGD()(network, rows, targets), Batch(rows, targets), ThreatModel())
    assert "there are no categories" in recipes.categories().check(observation)
    found = recipes.categories()(observation, Generator().manual_seed(0))
    places = torch.cdist(rows.double(), found.images.double()).argmin(dim=1)
    assert found.proven and "lie in the spans" in found.findings[0].message
    assert NUMBERS.measures(found.images[places], rows)["exact_row"].all()
    assert float((found.labels[places].reshape(targets.shape) - targets).abs().max()) < 1e-4


def test_batchnorm_in_eval_mode_belongs_to_the_layer_in_front() -> None:
    """Scales of both signs, and means and variances that it learned."""
    rows, labels, random = drawn(4, Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0]), Generator().manual_seed(1)
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(100)
    with torch.no_grad():
        for part in (norm.weight, norm.bias, norm.running_mean):
            part.copy_(torch.randn(100, generator=random) / 2)
        norm.running_var.copy_(0.1 + torch.rand(100, generator=random))
    module = nn.Sequential(nn.Linear(10, 100), norm, nn.ReLU(), nn.Linear(100, 50), nn.ReLU(), nn.Linear(50, 3)).eval()
    network = freeze(module, NUMBERS)
    observation = observe(network, FedSGD(), FedSGD()(network, rows, labels), Batch(rows, labels), ThreatModel())
    found = SparseBatch(rounds=20)(observation, Generator().manual_seed(0))
    places = torch.cdist(rows.double(), found.images.double()).argmin(dim=1)
    assert found.proven and found.labels[places].tolist() == labels.tolist()
    assert NUMBERS.measures(found.images[places], rows)["exact_row"].all()


def test_rows_have_no_neighbors_and_are_told_apart_without() -> None:
    """The first round finds nothing here; the statistics of pictures, which follow it, are left out for rows."""
    rows, labels = drawn(4, Generator().manual_seed(0)), torch.tensor([0, 1, 2, 0])
    observation = seen(rows, labels, 3, None, 0)
    found = SparseBatch(searches=(NullVectors(1), SparseDescent()))(observation, Generator().manual_seed(0))
    assert found.proven and found.candidates[0].iterations > 1
    with pytest.raises(UnsupportedNetworkError, match="the numbers of a row are no neighbors"):
        recipes.cocktail_party().check(observation)
    with pytest.raises(UnsupportedNetworkError, match="the numbers of a row are no neighbors"):
        recipes.cocktail_party()(observation, Generator().manual_seed(0))


def test_combinations_of_two_like_examples_do_not_crowd_out_the_others() -> None:
    """Two examples leave the same 40 units off: each combination of them that fits one unit more has 41 zeros."""
    random = Generator().manual_seed(0)
    on = torch.rand(100, 6, generator=random) < 0.5
    on[:, 5] = torch.rand(100, generator=random) < 0.7
    on[:40, :2], on[40:, :2] = False, torch.rand(60, 2, generator=random) < 0.9
    deltas = torch.randn(100, 6, generator=random).double() * on
    unmixed = torch.linalg.inv(torch.randn(6, 6, generator=random).double())
    eye = torch.eye(6).double()
    sizes = torch.ones(6).double()
    mixed = Mixture("0", deltas @ torch.linalg.inv(unmixed), eye, eye, sizes, sizes, sizes, (6, 1, 1), 1e-7)
    rows = _Rows.of(mixed)
    both = (on[:, 0] & on[:, 1]).nonzero()[:, 0]
    alike = unmixed[:, [0]] * deltas[both, 1] - unmixed[:, [1]] * deltas[both, 0]
    truth = rows.directions(unmixed)
    kept = rows.sparsest(torch.cat([rows.directions(alike), truth], dim=1), 24)
    assert len(both) > 24 and int(rows.zeros(truth).sum(dim=0).min()) < 41
    assert bool(((truth.T @ kept).abs().amax(dim=1) > 1 - 1e-6).all())


@pytest.mark.parametrize("seed", range(10))
def test_an_update_of_other_weights_is_never_called_exact(seed: int) -> None:
    rows = drawn(4, Generator().manual_seed(seed))
    observation = seen(rows, torch.tensor([0, 1, 2, 0]), 3, None, seed)
    other = seen(rows, torch.tensor([0, 1, 2, 0]), 3, None, seed + 100)
    wrong = Observation(observation.network, observation.client, other.update, 4)
    found = SparseBatch(rounds=4)(wrong, Generator().manual_seed(0))
    assert not found.proven and found.findings[0].code == "not-exact"
