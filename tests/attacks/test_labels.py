"""Labels come back from the head's gradient alone."""

import pytest
import torch
from torch import nn

from inversefed import Batch, FedAvg, FedSGD, Observation, ThreatModel, freeze, labels, observe
from inversefed.errors import ThreatModelError
from inversefed.fl.losses import CrossEntropy
from inversefed.zoo import networks

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
