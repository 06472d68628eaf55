"""Local steps in the 2020 dialect: as plain SGD makes them, as change or as weights, attacked as such."""

import copy

import pytest
import torch
from torch.nn import functional as F

import inversefed

ALGORITHMS = inversefed.reconstruction_algorithms
QUICK = {"max_iterations": 3, "total_variation": 0.0}


def plain_sgd(module, x, y, lr, steps, size):
    """The same local training with torch.optim, as a client runs it."""
    local = copy.deepcopy(module)
    optimizer = torch.optim.SGD(local.parameters(), lr=lr)
    slices = [slice(low, low + size) for low in range(0, len(x), size)]
    for step in range(steps):
        part = slices[step % len(slices)]
        optimizer.zero_grad()
        F.cross_entropy(local(x[part]), y[part]).backward()
        optimizer.step()
    return [weight.detach() for weight in local.parameters()]


@pytest.mark.parametrize(("steps", "size"), [(1, 4), (3, 4), (5, 2)])
def test_local_steps_are_plain_sgd(steps, size, lenet, batch):
    x, y = batch(4)
    new = plain_sgd(lenet, x, y, 0.1, steps, size)
    given = {"lr": 0.1, "local_steps": steps, "batch_size": 0 if size == 4 else size}
    weights = ALGORITHMS.loss_steps(lenet, x, y, use_updates=False, **given)
    change = ALGORITHMS.loss_steps(lenet, x, y, **given)
    for mine, theirs, delta, old in zip(weights, new, change, lenet.parameters(), strict=True):
        assert torch.allclose(mine, theirs, atol=1e-6)
        assert torch.allclose(delta, theirs - old.detach(), atol=1e-6)
    assert all(weight.grad is None for weight in lenet.parameters())


def test_any_loss_will_do(lenet, batch):
    x, y = batch(2)
    separate = torch.nn.CrossEntropyLoss(reduction="none")
    summed = ALGORITHMS.loss_steps(lenet, x, y, loss_fn=separate, lr=0.1, local_steps=1)
    mean = ALGORITHMS.loss_steps(lenet, x, y, lr=0.2, local_steps=1)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(summed, mean, strict=True))


@pytest.mark.parametrize("use_updates", [True, False])
@pytest.mark.parametrize("labels", [torch.tensor([0]), None])
def test_both_kinds_of_input_are_attacked(use_updates, labels, lenet, batch, dm, ds):
    x, y = batch()
    sent = ALGORITHMS.loss_steps(lenet, x, y, lr=0.1, local_steps=2, use_updates=use_updates)
    machine = inversefed.FedAvgReconstructor(lenet, (dm, ds), 2, 0.1, QUICK, use_updates=use_updates)
    output, stats = machine.reconstruct(sent, labels)
    assert output.shape == x.shape and stats["labels"].tolist() == [0]
    there = ALGORITHMS.loss_steps(lenet, output, y, lr=0.1, local_steps=2, use_updates=use_updates)
    assert stats["opt"] == pytest.approx(
        float(ALGORITHMS.reconstruction_costs([there], sent, "sim")), rel=1e-3, abs=1e-6
    )


def test_one_step_is_a_gradient(lenet, batch, gradient, dm, ds):
    sent = ALGORITHMS.loss_steps(lenet, *batch(), lr=0.1, local_steps=1)
    torch.manual_seed(0)
    averaged, _ = inversefed.FedAvgReconstructor(lenet, (dm, ds), 1, 0.1, QUICK).reconstruct(sent, None)
    torch.manual_seed(0)
    direct, _ = inversefed.GradientReconstructor(lenet, (dm, ds), QUICK).reconstruct(gradient(), None)
    assert torch.allclose(averaged, direct, atol=1e-2)


def test_costs_are_zero_at_the_truth_and_averaged(gradient):
    truth, other = gradient(), [part + 1 for part in gradient()]
    for cost_fn in ("sim", "l2", "l1", "max", "simlocal"):
        assert float(ALGORITHMS.reconstruction_costs([truth], truth, cost_fn)) == pytest.approx(0, abs=1e-5)
    alone = ALGORITHMS.reconstruction_costs([other], truth)
    assert torch.allclose(ALGORITHMS.reconstruction_costs([truth, other], truth), alone / 2)
    assert alone == sum(part.numel() for part in truth)
