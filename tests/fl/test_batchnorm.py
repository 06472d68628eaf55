"""Running buffers that a client sends along give its batch's statistics away, and nothing is written on the way."""

import pytest
import torch
from torch import nn

from inversefed import Batch, FedAvg, FedSGD, ThreatModel, freeze, observe
from inversefed.errors import InputError, ThreatModelError, UpdateMismatchError
from inversefed.fl import batchnorm
from inversefed.fl.simulate import observed

SHAPE = (3, 8, 8)
SENT = ThreatModel(labels="known", buffers="sent")


def normalized(momentum: float | None = 0.1) -> nn.Sequential:
    torch.manual_seed(0)
    first, second = nn.BatchNorm2d(6, momentum=momentum), nn.BatchNorm1d(5, momentum=momentum)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, 2, 1),
        first,
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(96, 5),
        second,
        nn.Tanh(),
        nn.Linear(5, 4),
    )


@pytest.mark.parametrize("momentum", [0.1, 0.7, None])
def test_the_batch_s_statistics_follow_from_the_buffers_to_the_precision_of_the_numbers(momentum: float | None) -> None:
    module = normalized(momentum).double()
    module(torch.rand(5, *SHAPE).double())  # buffers that are not those of a new network
    images = torch.rand((3, *SHAPE), generator=torch.Generator().manual_seed(1)).double()
    seen, _ = observed(module, images, torch.tensor([0, 1, 2]), mean=0.5, std=0.25, threat=SENT)
    truth = batchnorm.moments(seen.network, images)
    found = batchnorm.batch_moments(seen.network, seen.buffers, {name: each.numbers for name, each in truth.items()})
    assert list(found) == ["1", "5"] and truth["1"].numbers == 3 * 4 * 4 and truth["5"].numbers == 3
    for name, each in truth.items():
        torch.testing.assert_close(found[name].mean, each.mean, rtol=0, atol=1e-14)
        torch.testing.assert_close(found[name].variance, each.variance, rtol=0, atol=1e-14)


def test_buffers_are_those_that_torch_ends_with_and_no_one_s_module_moves() -> None:
    module, images, labels = normalized(), torch.rand(4, *SHAPE), torch.tensor([0, 1, 2, 3])
    client = FedAvg(local_steps=3, lr=0.05, batch_size=2)
    seen, _ = observed(module, images, labels, client=client, threat=SENT)
    for before, after in zip(module.buffers(), seen.network.module.buffers(), strict=True):
        assert torch.equal(before, after)
    optimizer = torch.optim.SGD(module.parameters(), 0.05)
    for part in (slice(0, 2), slice(2, 4), slice(0, 2)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(images[part]), labels[part]).backward()
        optimizer.step()
    for name, buffer in module.named_buffers():
        torch.testing.assert_close(seen.buffers[name], buffer)


def test_buffers_pass_the_wall_only_if_they_are_sent() -> None:
    network, batch = freeze(normalized(), SHAPE), Batch(torch.rand(2, *SHAPE), torch.tensor([1, 3]))
    update = FedSGD()(network, batch.images, batch.labels)
    buffers = batchnorm.sent_buffers(FedSGD(), network, batch.images, batch.labels)
    assert observe(network, FedSGD(), update, batch, ThreatModel(), buffers).buffers is None
    assert set(observe(network, FedSGD(), update, batch, SENT, buffers).buffers) == set(buffers)
    with pytest.raises(InputError, match="needs the client's buffers"):
        observe(network, FedSGD(), update, batch, SENT)
    with pytest.raises(UpdateMismatchError, match=r"1.running_mean is missing"):
        observe(network, FedSGD(), update, batch, SENT, {k: v for k, v in buffers.items() if k != "1.running_mean"})


@pytest.mark.parametrize(
    ("module", "client", "message"),
    [(normalized().eval(), FedSGD(), "no BatchNorm layer ran in train mode"), (normalized(), FedAvg(2), "counted 2")],
)
def test_statistics_that_do_not_follow_are_refused(module: nn.Module, client: object, message: str) -> None:
    images = torch.rand(4, *SHAPE)
    seen, _ = observed(module, images, torch.tensor([0, 1, 2, 3]), client=client, threat=SENT)
    with pytest.raises(ThreatModelError, match=message):
        batchnorm.batch_moments(seen.network, seen.buffers, {"1": 64, "5": 4})
