"""Clients equal training loops written in plain PyTorch."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from inversefed import FedAvg, FedSGD, LocalAdam, LocalAdamW, LocalSGD, freeze
from inversefed.attacks.search import memory
from inversefed.errors import ConfigError

SHAPE = (3, 8, 8)


def batch(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, *SHAPE, generator=generator, dtype=torch.float64), torch.arange(n) % 4


def train(module: nn.Module, optimizer: torch.optim.Optimizer, slices: list[slice], n: int) -> None:
    images, labels = batch(n)
    for part in slices:
        optimizer.zero_grad()
        F.cross_entropy(module(images[part]), labels[part]).backward()
        optimizer.step()


@pytest.mark.parametrize(
    ("local", "reference"),
    [
        (LocalSGD(), lambda p: torch.optim.SGD(p, lr=0.05)),
        (LocalSGD(momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9)),
        (
            LocalSGD(momentum=0.9, weight_decay=0.01, nesterov=True),
            lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=True),
        ),
        (LocalAdam(), lambda p: torch.optim.Adam(p, lr=0.05)),
        (LocalAdam(weight_decay=0.1), lambda p: torch.optim.Adam(p, lr=0.05, weight_decay=0.1)),
        (LocalAdamW(), lambda p: torch.optim.AdamW(p, lr=0.05)),
        (
            LocalAdamW(0.8, 0.99, 1e-6, 0.3),
            lambda p: torch.optim.AdamW(p, lr=0.05, betas=(0.8, 0.99), eps=1e-6, weight_decay=0.3),
        ),
    ],
)
@pytest.mark.parametrize("sends", ["delta", "weights"])
def test_fedavg_equals_torch_optim(tiny: nn.Module, local: object, reference: object, sends: str) -> None:
    module = tiny.double()
    trained = copy.deepcopy(module)
    client = FedAvg(local_steps=5, lr=0.05, batch_size=2, optimizer=local, sends=sends)
    slices = [slice(0, 2), slice(2, 4), slice(0, 2), slice(2, 4), slice(0, 2)]  # the fifth example is never seen
    assert client.slices(5) == slices
    train(trained, reference(trained.parameters()), slices, 5)

    update = client(freeze(module, SHAPE), *batch(5))

    for name, new in trained.named_parameters():
        expected = new - module.get_parameter(name) if sends == "delta" else new
        torch.testing.assert_close(update[name], expected.detach(), rtol=1e-9, atol=1e-12)
        assert not update[name].requires_grad


def test_epochs_see_the_last_smaller_slice_as_well() -> None:
    assert FedAvg(epochs=2, batch_size=2).slices(3) == [slice(0, 2), slice(2, 3)] * 2
    assert FedAvg(epochs=3).slices(4) == [slice(0, 4)] * 3


def test_one_plain_step_reads_as_the_gradient(tiny: nn.Module) -> None:
    network, (images, labels) = freeze(tiny.double(), SHAPE), batch(3)
    gradient = FedSGD()(network, images, labels)
    for sends in ("delta", "weights"):
        client = FedAvg(local_steps=1, lr=0.1, sends=sends)
        read = client.as_gradient(network, client(network, images, labels), 3)
        for name in gradient:
            torch.testing.assert_close(read[name], gradient[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("local", [LocalSGD(), LocalSGD(momentum=0.5), LocalAdam(), LocalAdamW()])
def test_several_steps_can_be_differentiated(tiny: nn.Module, local: object) -> None:
    network, (images, labels) = freeze(tiny.double(), SHAPE), batch(2)
    client = FedAvg(local_steps=3, lr=0.1, optimizer=local)

    def size(x: torch.Tensor) -> torch.Tensor:
        return sum(part.square().sum() for part in client(network, x, labels).values())

    guess = images.clone().requires_grad_()
    (slope,) = torch.autograd.grad(size(guess), guess)
    step = torch.zeros_like(images)
    step[1, 0, 4, 4] = 1e-5
    with torch.no_grad():
        measured = (size(images + step) - size(images - step)) / 2e-5
    assert float(measured) == pytest.approx(float(slope[1, 0, 4, 4]), rel=1e-3, abs=1e-10)


DROPPING = nn.Sequential(
    nn.Conv2d(3, 6, 3, 2, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.3), nn.Linear(96, 4)
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [{"local_steps": 7, "batch_size": 2}, {"epochs": 3, "batch_size": 2}, {}])
@pytest.mark.parametrize(
    "local",
    [
        LocalSGD(),
        LocalSGD(momentum=0.9, weight_decay=0.01, nesterov=True),
        LocalAdam(),
        LocalAdam(weight_decay=0.1),
        LocalAdamW(weight_decay=0.1),
    ],
)
def test_steps_that_run_again_change_no_bit(dtype: torch.dtype, steps: dict, local: object) -> None:
    network = freeze(copy.deepcopy(DROPPING).train().to(dtype), SHAPE, mean=0.5, std=0.25)

    def differentiated(keep: int) -> list[torch.Tensor]:
        images = batch(5)[0].to(dtype).requires_grad_()
        logits = torch.linspace(-1, 1, 20, dtype=dtype).reshape(5, 4).requires_grad_()
        client = FedAvg(**steps, lr=0.05, optimizer=local, keep_graphs=keep)
        update = client(network, images, logits.softmax(1))
        size = sum((part - 0.01).abs().sum() for part in update.values())
        return [*update.values(), *torch.autograd.grad(size, [images, logits])]

    plain = differentiated(100)
    assert plain[-2].abs().max() > 0 and plain[-1].abs().max() > 0
    for keep in (1, 3):
        assert all(torch.equal(a, b) for a, b in zip(plain, differentiated(keep), strict=True))


def test_steps_that_run_again_hold_their_weights_only(tiny: nn.Module) -> None:
    network, (images, labels) = freeze(tiny, SHAPE), batch(8)

    def bytes_of(steps: int, keep: int) -> int:
        client = FedAvg(local_steps=steps, lr=0.1, keep_graphs=keep)

        def loss(at: dict) -> torch.Tensor:
            return sum(part.square().sum() for part in client(network, at["images"], labels).values())

        return memory.measured_live_bytes(loss, {"images": images.float()})

    weights = sum(weight.nbytes for weight in network.params.values())
    assert (bytes_of(14, 1) - bytes_of(7, 1)) / 7 == pytest.approx(weights, rel=0.1)
    assert (bytes_of(14, 14) - bytes_of(7, 7)) / 7 > 2 * weights


def test_a_gradient_without_need_carries_no_graph(tiny: nn.Module) -> None:
    network, (images, labels) = freeze(tiny, SHAPE), batch(1)
    assert all(not part.requires_grad for part in FedSGD()(network, images.float(), labels).values())


@pytest.mark.parametrize(
    "bad", [{"local_steps": 0}, {"epochs": 0}, {"lr": 0.0}, {"batch_size": -1}, {"sends": "x"}, {"keep_graphs": 0}]
)
def test_settings_that_make_no_sense_are_refused(bad: dict, unchecked: None) -> None:
    with pytest.raises(ConfigError):
        FedAvg(**bad)


def test_a_slice_larger_than_the_batch_is_refused() -> None:
    with pytest.raises(ConfigError, match="larger than the client's 2 examples"):
        FedAvg(batch_size=3).slices(2)
