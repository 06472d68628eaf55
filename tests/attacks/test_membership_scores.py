"""Records that were in an update are told from others: batches of 64, trained or not, gradients and local steps."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

import inversefed
from inversefed import DPSGD, FedAvg, FedSGD, ThreatModel, defenses
from inversefed.attacks.membership_scores import likelihood_ratios, membership_scores
from inversefed.errors import InputError, ThreatModelError
from inversefed.evaluation.membership import Membership
from inversefed.fl.clients import Client
from inversefed.fl.defenses import Defense
from inversefed.fl.losses import MeanSquaredError
from inversefed.fl.simulate import observed
from inversefed.types import Batch

IN, OUT = slice(0, 64), slice(64, 128)


def pictures(seed: int = 0) -> Batch:
    """Noisy pictures of four patterns, 1x12x12: as alike within a class as records of one data set are."""
    random = torch.Generator().manual_seed(seed)
    patterns = torch.rand(4, 1, 12, 12, generator=random)
    labels = torch.arange(192) % 4
    noise = torch.rand(192, 1, 12, 12, generator=random)
    return Batch(0.25 * patterns[labels] + 0.75 * noise, labels)


@pytest.fixture(scope="module")
def data() -> Batch:
    return pictures()


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(72, 4)
    ).eval()


@pytest.fixture(scope="module")
def trained(data: Batch) -> nn.Module:
    """Trained until it knows nearly all of its pictures, those of the update among them."""
    net = network()
    steps = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(60):
        steps.zero_grad()
        loss = nn.functional.cross_entropy(net((data.images - 0.5) / 0.25), data.labels)
        loss.backward()
        steps.step()
    assert float(loss.detach()) < 0.5
    return net


def asked(net: nn.Module, data: Batch, client: Client, done: tuple[Defense, ...] = (), seed: int = 0) -> Membership:
    seen, _ = observed(
        net, data.images[IN], data.labels[IN], mean=0.5, std=0.25, client=client, defenses=done, seed=seed
    )
    inside, out = (Batch(data.images[part], data.labels[part]) for part in (IN, OUT))
    return inversefed.membership(seen, inside, out=out)


CLIENTS = {
    "gradient": (FedSGD(), 0.99),
    "four steps": (FedAvg(local_steps=4, lr=0.01), 0.97),
    "minibatches in an unknown order": (FedAvg(epochs=2, lr=0.02, batch_size=16, shuffle=True), 0.9),
    "new weights": (FedAvg(local_steps=4, lr=0.01, sends="weights"), 0.97),
    "clipped and noised": (DPSGD(0.002, 0.1), 0.9),
}


@pytest.mark.parametrize("name", CLIENTS)
def test_64_of_a_batch_of_64_are_told_from_64_others(name: str, data: Batch, trained: nn.Module) -> None:
    client, least = CLIENTS[name]
    for net in (network(), trained):
        found = asked(net, data, client)
        assert found.auc is not None and found.auc.mean >= least
        assert found.p_value < 1e-3


def test_one_record_among_63_that_nobody_knows_is_more_often_than_not_above_the_others(data: Batch) -> None:
    seen, _ = observed(network(), data.images[IN], data.labels[IN], mean=0.5, std=0.25)
    out = Batch(data.images[64:], data.labels[64:])
    p_values = [
        float(inversefed.membership(seen, data.images[i : i + 1], out=out, labels=data.labels[i : i + 1]).p_values[0])
        for i in range(0, 32, 2)
    ]
    assert sum(p_values) / len(p_values) < 0.3  # 0.5 if it said nothing


@pytest.mark.parametrize("client", [FedSGD(), FedAvg(local_steps=4, lr=0.01)])
def test_records_that_are_out_are_called_no_more_often_than_said(client: Client, trained: nn.Module) -> None:
    """The null update: made of pictures that nobody asks for."""
    called, together = 0.0, 0
    for seed in range(6):
        other = pictures(seed)
        seen, _ = observed(
            trained, other.images[128:], other.labels[128:], mean=0.5, std=0.25, client=client, seed=seed
        )
        inside, out = (Batch(other.images[part], other.labels[part]) for part in (IN, OUT))
        found = inversefed.membership(seen, inside, out=out)
        called, together = called + float(found.called.double().mean()) / 6, together + found.found
    assert called < 0.1 and together <= 2


def test_it_makes_no_difference_in_which_order_records_are_asked_for(data: Batch) -> None:
    seen, _ = observed(network(), data.images[IN], data.labels[IN], client=FedAvg(local_steps=2, lr=0.01))
    order = torch.randperm(128, generator=torch.Generator().manual_seed(1))
    images, labels = data.images[:128], data.labels[:128]
    one, other = (membership_scores(seen, Batch(images[i], labels[i])) for i in (torch.arange(128), order))
    torch.testing.assert_close(one[order], other, rtol=1e-3, atol=1e-4)


def test_the_score_is_the_likelihood_ratio_of_the_definition() -> None:
    """Against the covariance of the other records, inverted as it stands, at the r of the greatest likelihood."""
    random = torch.Generator().manual_seed(0)
    gradients = torch.randn(6, 9, generator=random, dtype=torch.float64)
    update = 2 * gradients[:3].mean(dim=0) + 0.05 * torch.randn(9, generator=random, dtype=torch.float64)
    square = float(update.square().sum())
    found = likelihood_ratios(gradients @ gradients.T, gradients @ update, square, 9, 3, 6)
    eye, scale = torch.eye(9).double(), float(gradients.square().sum(dim=1).mean())

    def likelihood(ridge: float) -> float:
        covariance = gradients.T @ gradients + ridge * eye
        variance = float(update @ torch.linalg.solve(covariance, update)) / 9
        normal = torch.distributions.MultivariateNormal(torch.zeros(9).double(), variance * covariance)
        return float(normal.log_prob(update))

    ridge = max((scale * 10.0**each for each in range(-13, 2)), key=likelihood)
    whole = gradients @ gradients.T + ridge * torch.eye(6).double()
    weight = float(torch.linalg.solve(whole, gradients @ update).sum()) / 3
    for record in range(6):
        rest = gradients[[each for each in range(6) if each != record]]
        inverse = torch.linalg.inv(rest.T @ rest + ridge * eye)
        own = gradients[record]
        expected = weight * own @ inverse @ update - weight**2 * own @ inverse @ own / 2
        assert float(found.scores[record]) == pytest.approx(float(expected), rel=1e-6)


def test_labels_that_nobody_knows_are_tried(data: Batch, trained: nn.Module) -> None:
    seen, _ = observed(trained, data.images[IN], data.labels[IN], mean=0.5, std=0.25)
    found = inversefed.membership(seen, data.images[IN], out=data.images[OUT])
    assert found.auc is not None and found.auc.mean > 0.9
    half = inversefed.membership(seen, data.images[IN], out=Batch(data.images[OUT], data.labels[OUT]))
    assert torch.equal(found.scores, half.scores)  # the labels of the others alone would tell the sides apart
    both = inversefed.membership(seen, data.images[IN], out=data.images[OUT], labels=data.labels[:128])
    assert both.auc is not None and both.auc.mean > 0.99


def test_records_that_are_out_and_have_no_labels_lower_no_p_value(data: Batch, trained: nn.Module) -> None:
    seen, _ = observed(trained, data.images[IN], data.labels[IN], mean=0.5, std=0.25)
    told = inversefed.membership(seen, data.images[IN], out=data.images[OUT], labels=data.labels[IN])
    assert told.auc is not None and told.auc.mean > 0.9
    called = 0.0
    for seed in range(6):
        other = pictures(seed)
        seen, _ = observed(trained, other.images[128:], other.labels[128:], mean=0.5, std=0.25, seed=seed)
        null = inversefed.membership(seen, other.images[IN], out=other.images[OUT], labels=other.labels[IN])
        called += float(null.called.double().mean()) / 6
    assert called < 0.1


def test_a_layer_that_normalizes_by_the_batch_is_asked_with_all_records(data: Batch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    before = {name: each.clone() for name, each in net.state_dict().items()}
    found = asked(net.train(), data, FedSGD())
    assert found.auc is not None and found.auc.mean > 0.9
    assert net.training and all(torch.equal(each, before[name]) for name, each in net.state_dict().items())


@pytest.mark.parametrize("done", [(defenses.TopK(0.5),), (defenses.Clip(0.01),), (defenses.SignQuantization(),)])
def test_an_update_that_was_defended_is_read_as_far_as_it_goes(done: tuple[Defense, ...], data: Batch) -> None:
    found = asked(network(), data, FedSGD(), done)
    assert found.auc is not None and found.auc.mean > 0.75


def test_the_observation_and_its_network_stay_as_they_are(data: Batch) -> None:
    seen, _ = observed(network(), data.images[IN], data.labels[IN], client=FedAvg(local_steps=2, lr=0.01))
    before = {name: part.clone() for name, part in (*seen.update.items(), *seen.network.params.items())}
    membership_scores(seen, Batch(data.images[:96], data.labels[:96]))
    for name, part in (*seen.update.items(), *seen.network.params.items()):
        assert torch.equal(part, before[name]) or name in seen.update


def test_a_loss_without_classes_needs_the_labels(data: Batch) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(144, 1))
    ages = data.labels[:128].float()[:, None]
    seen, _ = observed(net, data.images[:16], ages[:16], loss=MeanSquaredError())
    records = Batch(data.images[:128], ages)
    assert len(membership_scores(seen, records)) == 128
    with pytest.raises(ThreatModelError, match="labels"):
        membership_scores(seen, replace(records, labels=torch.full((128,), -1)))


def wrong(data: Batch) -> dict[str, dict[str, Tensor | Batch]]:
    return {
        "shape": {"candidates": data.images[:2, :, :6], "out": data.images[2:4]},
        "labels": {"candidates": data.images[:2], "out": data.images[2:4], "labels": torch.zeros(3).long()},
        "members": {"candidates": data.images[:2], "out": data.images[2:4], "members": torch.ones(3).bool()},
    }


@pytest.mark.parametrize("name", ["shape", "labels", "members"])
def test_records_that_do_not_fit_are_refused(name: str, data: Batch) -> None:
    seen, _ = observed(network(), data.images[:4], data.labels[:4], threat=ThreatModel())
    with pytest.raises(InputError, match=r"must be"):
        inversefed.membership(seen, **wrong(data)[name])
