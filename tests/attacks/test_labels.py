"""Labels come back from the head's gradient alone."""

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversefed import (
    Batch,
    FedAvg,
    FedSGD,
    LocalAdam,
    LocalSGD,
    Observation,
    ThreatModel,
    freeze,
    labels,
    observe,
    recipes,
)
from inversefed.attacks.search.problem import Problem
from inversefed.errors import ThreatModelError
from inversefed.fl.losses import CrossEntropy
from inversefed.zoo import networks, pictures

SHAPE = (3, 32, 32)


def observation(module: nn.Module, truth: torch.Tensor, client: object = FedSGD(), loss: object = None) -> Observation:
    network = freeze(module.eval(), SHAPE, loss=loss)
    images = torch.rand((len(truth), *SHAPE), generator=torch.Generator().manual_seed(3))
    return observe(network, client, client(network, images, truth), Batch(images, truth), ThreatModel())


@pytest.mark.parametrize("name", ["LeNetZhu", "ConvNet16", "ResNet20"])
@pytest.mark.parametrize("client", [FedSGD(), FedAvg(2, lr=0.01), FedAvg(2, lr=0.01, sends="weights")])
def test_the_sign_rule_finds_every_label(name: str, client: object) -> None:
    for label in (0, 4, 9):
        seen = observation(networks.build(name, seed=label), torch.tensor([label]), client)
        assert labels.SignRule()(seen).tolist() == [label]


def test_the_sign_rule_without_a_bias_uses_the_rows() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(900, 7, bias=False))
    assert labels.SignRule()(observation(module, torch.tensor([5]))).tolist() == [5]


@pytest.mark.parametrize("loss", [CrossEntropy(), CrossEntropy(reduction="sum")])
@pytest.mark.parametrize(
    "truth", [[1, 1, 1, 4], [0, 2, 5, 9], [3] * 8, [0, 0, 1, 1, 1, 7, 8, 8, 8, 8, 9, 9, 2, 2, 2, 5]]
)
def test_bias_counts_find_repeated_labels_of_untrained_networks(truth: list[int], loss: CrossEntropy) -> None:
    seen = observation(networks.build("ConvNet16", seed=0), torch.tensor(truth), loss=loss)
    assert labels.BiasCounts()(seen).tolist() == sorted(truth)


def test_counts_always_add_up() -> None:
    for seed in range(5):
        truth = torch.randint(10, (6,), generator=torch.Generator().manual_seed(seed))
        found = labels.BiasCounts()(observation(networks.build("ResNet20", seed=seed), truth))
        assert len(found) == 6


def test_a_label_whose_logit_is_cut_off_is_refused_not_guessed() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4), nn.ReLU())
    nn.init.constant_(module[1].bias, -100.0)
    module[1].bias.data[1] = 100.0
    with pytest.raises(ThreatModelError, match="no row is negative"):
        labels.SignRule()(observation(module, torch.tensor([2])))


def test_rules_say_why_they_do_not_apply() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(3072, 4, bias=False))
    with pytest.raises(ThreatModelError, match="one example"):
        labels.SignRule()(observation(module, torch.tensor([0, 1])))
    with pytest.raises(ThreatModelError, match="JointLabels"):
        labels.BiasCounts()(observation(module, torch.tensor([0, 1])))


def crops(number: int, seed: int = 0) -> Tensor:
    """Random crops of the bundled photographs, `[number, 3, 32, 32]`."""
    generator = torch.Generator().manual_seed(seed)
    photos = torch.stack([pictures.photo(name, (3, 96, 96)) for name in pictures.photo_names()])
    found = []
    for index in range(number):
        top, left = torch.randint(0, 32, (2,), generator=generator).tolist()
        found.append(F.interpolate(photos[index % len(photos), None, :, top : top + 64, left : left + 64], (32, 32))[0])
    return torch.stack(found)


def seen_of(module: nn.Module, images: Tensor, truth: Tensor, client: object = FedSGD(), loss: object = None):
    network = freeze(module.eval(), SHAPE, mean=0.5, std=0.25, loss=loss)
    return observe(network, client, client(network, images, truth), Batch(images, truth), ThreatModel())


def right(found: Tensor, truth: Tensor) -> float:
    return float(torch.minimum(found.bincount(minlength=10), truth.bincount(minlength=10)).sum()) / len(truth)


def drawn(number: int, seed: int, classes: int = 10) -> Tensor:
    return torch.randint(classes, (number,), generator=torch.Generator().manual_seed(seed))


def twisted(bias: bool = True) -> nn.Module:
    """Features of both signs in front of the head."""
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 24), nn.Tanh(), nn.Linear(24, 10, bias=bias))


@dataclasses.dataclass(frozen=True)
class Halved:
    """The loss of the paper's own code, and what a user may bring."""

    def __call__(self, logits: Tensor, targets: Tensor) -> Tensor:
        return 0.5 * F.cross_entropy(logits, targets)


def squared(logits: Tensor, targets: Tensor) -> Tensor:
    return (logits - F.one_hot(targets, logits.shape[1])).square().mean()


def test_the_sign_rule_needs_no_bias_and_no_sign_of_features() -> None:
    for label in range(10):
        assert labels.SignRule()(seen_of(twisted(bias=False), crops(1, label), torch.tensor([label]))).tolist() == [
            label
        ]


def test_label_smoothing_does_not_hide_a_label() -> None:
    loss = CrossEntropy(label_smoothing=0.3)
    for label in (0, 6):
        seen = seen_of(networks.build("ConvNet16", seed=0), crops(1, label), torch.tensor([label]), loss=loss)
        assert labels.SignRule()(seen).tolist() == labels.RecoveredLabels()(seen).tolist() == [label]


def test_a_network_surer_than_the_smoothed_label_is_read_by_its_target_not_its_sign() -> None:
    module = twisted()
    module[3].bias.data[4] = 20.0
    seen = seen_of(module, crops(1), torch.tensor([4]), loss=CrossEntropy(label_smoothing=0.1))
    with pytest.raises(ThreatModelError, match="SoftTargets"):
        labels.SignRule()(seen)
    assert labels.RecoveredLabels()(seen).tolist() == [4]


def test_soft_targets_come_back_to_float_precision() -> None:
    target = torch.tensor([[0.1, 0.0, 0.65, 0.0, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    network = freeze(twisted().double(), SHAPE)
    images = crops(1).double()
    update = FedSGD()(network, images, target)
    seen = observe(network, FedSGD(), update, Batch(images, torch.tensor([2])), ThreatModel())
    torch.testing.assert_close(labels.SoftTargets().probabilities(seen), target, atol=1e-12, rtol=0)
    assert labels.SoftTargets()(seen).tolist() == [2]


@pytest.mark.parametrize("name", ["LeNetZhu", "ConvNet16", "ResNet20"])
def test_the_column_minimum_finds_distinct_labels(name: str) -> None:
    truth = torch.tensor([0, 3, 4, 8])
    assert labels.ColumnMinimum()(seen_of(networks.build(name, seed=0), crops(4), truth)).tolist() == truth.tolist()


@pytest.mark.parametrize("truth", [[1, 1, 1, 4], [3] * 8, [2, 2, 2, 2, 7, 7, 7, 7]])
def test_impacts_count_repeated_labels_where_features_are_alike(truth: list[int]) -> None:
    seen = seen_of(networks.build("ConvNet16", seed=0), crops(len(truth)), torch.tensor(truth))
    assert labels.ImpactCounts()(seen).tolist() == truth


@pytest.mark.parametrize("rule", [labels.InstanceCounts(), labels.MeanFeatureCounts()])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_solved_counts_are_exact_where_all_features_are_alike(rule: object, smoothing: float) -> None:
    """The same picture under many labels: the equations hold without error, for any weights and signs of features."""
    images, truth = crops(1).expand(64, -1, -1, -1), drawn(64, 5)
    loss = CrossEntropy(label_smoothing=smoothing)
    assert rule(seen_of(twisted(), images, truth, loss=loss)).tolist() == truth.sort().values.tolist()


@pytest.mark.parametrize("loss", [CrossEntropy(reduction="sum"), CrossEntropy(label_smoothing=0.2), Halved()])
def test_the_loss_may_be_summed_smoothed_or_scaled(loss: object) -> None:
    truth = drawn(16, 2)
    seen = seen_of(networks.build("ConvNet16", seed=0), crops(16), truth, loss=loss)
    for rule in (labels.BiasCounts(), labels.InstanceCounts(), labels.RecoveredLabels()):
        assert rule(seen).tolist() == truth.sort().values.tolist()


@pytest.mark.parametrize(("name", "seeds"), [("LeNetZhu", 4), ("ConvNet16", 1), ("ResNet20", 1)])
def test_counts_of_untrained_networks_are_at_least_95_percent_right(name: str, seeds: int) -> None:
    """Batches of 4, 16 and 64; the mean, for the wide weights of LeNetZhu cost it one label in thirty."""
    scores = []
    for seed in range(seeds):
        for size in (4, 16, 64):
            truth = drawn(size, 10 * seed + size)
            seen = seen_of(networks.build(name, seed=seed), crops(size, seed), truth)
            scores.append(right(labels.RecoveredLabels()(seen), truth))
    assert sum(scores) / len(scores) >= 0.95


@pytest.mark.parametrize(
    "client",
    [
        FedAvg(local_steps=4, lr=0.01, batch_size=4),
        FedAvg(epochs=2, lr=0.01, batch_size=8, sends="weights"),
        FedAvg(local_steps=4, lr=0.01, optimizer=LocalSGD(momentum=0.9)),
        FedAvg(local_steps=4, lr=0.01, optimizer=LocalSGD(weight_decay=0.1)),
    ],
)
def test_labels_are_counted_in_a_fedavg_update(client: FedAvg) -> None:
    truth = drawn(16, 4)
    seen = seen_of(networks.build("ConvNet16", seed=0), crops(16), truth, client)
    assert labels.RecoveredLabels()(seen).tolist() == truth.sort().values.tolist()


@pytest.mark.parametrize("client", [FedSGD(), FedAvg(local_steps=4, lr=1e-2, batch_size=1)])
@pytest.mark.parametrize("truth", [[1, 3, 5, 7], [0, 2, 4, 9]])
def test_labels_that_only_they_can_explain_are_found_where_a_sure_network_hides_the_counts(
    truth: list[int], client: object
) -> None:
    module = networks.build("AllConv", seed=0).eval()
    head = next(layer for layer in module.modules() if isinstance(layer, nn.Linear))
    with torch.no_grad():
        head.weight.mul_(100)
    images = torch.stack([pictures.photo(name, (3, 32, 32)) for name in pictures.photo_names()[:4]])
    seen = seen_of(module, images, torch.tensor(truth), client)
    assert labels.MeanFeatureCounts()(seen).tolist() == truth


def test_a_head_without_bias_is_counted_from_its_rows() -> None:
    module = networks.build("ConvNet16", seed=0)
    module.linear.bias = None
    truth = drawn(16, 4)
    seen = seen_of(module, crops(16), truth)
    assert labels.RecoveredLabels()(seen).tolist() == truth.sort().values.tolist()
    for rule in (labels.BiasCounts(), labels.InstanceCounts()):
        with pytest.raises(ThreatModelError, match="head with a bias"):
            rule(seen)


def test_counts_refuse_what_they_cannot_read() -> None:
    module, truth = networks.build("LeNetZhu", seed=0), torch.tensor([1, 1, 5, 6])
    adam = FedAvg(2, lr=0.01, optimizer=LocalAdam())
    with pytest.raises(ThreatModelError, match="linear in the gradient"):
        labels.RecoveredLabels()(seen_of(module, crops(4), truth, adam))
    with pytest.raises(ThreatModelError, match="do not see all 4"):
        labels.RecoveredLabels()(seen_of(module, crops(4), truth, FedAvg(1, lr=0.01, batch_size=2)))
    with pytest.raises(ThreatModelError, match="softmax cross entropy"):
        labels.RecoveredLabels()(seen_of(module, crops(4), truth, loss=squared))
    with pytest.raises(ThreatModelError, match="cannot be distinct"):
        labels.ColumnMinimum()(seen_of(module, crops(12), drawn(12, 0)))
    for rule in (labels.ColumnMinimum(), labels.ImpactCounts()):
        with pytest.raises(ThreatModelError, match="not negative"):
            rule(seen_of(twisted(), crops(4), truth))
    with pytest.raises(ThreatModelError, match="one example"):
        labels.SoftTargets()(seen_of(module, crops(4), truth))


def test_recovered_counts_drive_the_attack() -> None:
    truth = torch.tensor([7, 2, 7, 1])
    seen, attack = seen_of(networks.build("ResNet20", seed=0), crops(4), truth), recipes.geiping()
    problem = Problem.of(seen, attack.objective, attack.priors, attack.parametrization, attack.labels)
    assert problem.labels is not None and problem.labels.tolist() == [1, 2, 7, 7]
