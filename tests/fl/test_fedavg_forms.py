"""The forms of federated averaging: each equals a plain training loop, and what is private stays private."""

import copy
from dataclasses import fields

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from inversefed import Batch, FedAvg, FedSGD, LocalAdam, LocalSGD, Observation, ThreatModel, freeze, observe
from inversefed.errors import ConfigError, ThreatModelError, UpdateMismatchError
from inversefed.fl.clients.partial import Shares
from inversefed.fl.clients.views import new_weights
from inversefed.fl.settings import setting_findings

SHAPE = (3, 8, 8)


def batch(n: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(n, *SHAPE, generator=generator, dtype=torch.float64), torch.arange(n) % 4


def trained(module: nn.Module, optimizer: type, options: dict, steps: list[list[int]], mu: float = 0.0) -> dict:
    """A client as anyone would write it."""
    images, labels = batch(5)
    sent, local = copy.deepcopy(module), copy.deepcopy(module)
    stepper = optimizer(local.parameters(), **options)
    for chosen in steps:
        stepper.zero_grad()
        loss = F.cross_entropy(local(images[chosen]), labels[chosen])
        for mine, theirs in zip(local.parameters(), sent.parameters(), strict=True):
            loss = loss + mu / 2 * (mine - theirs.detach()).square().sum()
        loss.backward()
        stepper.step()
    new, old = dict(local.named_parameters()), dict(sent.named_parameters())
    return {name: (new[name] - old[name]).detach() for name in new}


def same(update: dict, expected: dict) -> None:
    assert list(update) == list(expected)
    for name in expected:
        torch.testing.assert_close(update[name], expected[name], rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(
    ("local", "reference", "options"),
    [
        (LocalSGD(), torch.optim.SGD, {}),
        (LocalSGD(0.9, 0.01, True), torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01, "nesterov": True}),
        (LocalAdam(weight_decay=0.1), torch.optim.Adam, {"weight_decay": 0.1}),
    ],
)
@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_a_proximal_client_that_shuffles_equals_a_plain_loop(
    tiny: nn.Module, local: object, reference: type, options: dict, mu: float
) -> None:
    module = tiny.double()
    client = FedAvg(epochs=3, lr=0.05, batch_size=2, optimizer=local, proximal=mu, shuffle=True)
    network = freeze(module, SHAPE).with_masks(11)
    orders = [list(order) for order in client.steps(5).orders(11)]
    assert all(sorted(order) == list(range(5)) for order in orders) and orders[0] != orders[1]
    steps = [order[first : first + 2] for order in orders for first in (0, 2, 4)]

    expected = trained(module, reference, {"lr": 0.05, **options}, steps, mu)

    same(client(network, *batch(5)), expected)
    same(client.believed(ThreatModel(order="known"), 5, 11)(network.with_masks(0), *batch(5)), expected)


def test_the_proximal_pull_and_the_order_can_be_differentiated_and_run_again(tiny: nn.Module) -> None:
    network, (images, labels) = freeze(tiny.double(), SHAPE).with_masks(3), batch(5)

    def slope(keep: int) -> torch.Tensor:
        x = images.clone().requires_grad_()
        client = FedAvg(epochs=2, lr=0.1, batch_size=2, proximal=0.5, shuffle=True, keep_graphs=keep)
        return torch.autograd.grad(sum(part.square().sum() for part in client(network, x, labels).values()), x)[0]

    assert float(slope(6).abs().max()) > 0 and torch.equal(slope(6), slope(1))


def test_an_order_may_hold_other_examples_in_each_pass(tiny: nn.Module) -> None:
    network, (images, labels) = freeze(tiny.double(), SHAPE), batch(4)
    apart = FedAvg(epochs=2, lr=0.1, batch_size=2, order=((0, 1), (3, 2)))
    two_steps = FedAvg(local_steps=2, lr=0.1, batch_size=2)
    swapped = [0, 1, 3, 2]
    same(apart(network, images, labels), two_steps(network, images[swapped], labels[swapped]))


@pytest.mark.parametrize("order", [((0, 1),), ((0, 1), (1,)), ((0, 1), (1, 4))])
def test_an_order_that_does_not_fit_is_refused(tiny: nn.Module, order: tuple) -> None:
    with pytest.raises(ConfigError, match="order of the same length for each of 2 passes"):
        FedAvg(epochs=2, order=order)(freeze(tiny.double(), SHAPE), *batch(4))


@pytest.mark.parametrize("bad", [{"proximal": -1.0}, {"shuffle": True, "order": ((0, 1),)}])
def test_forms_that_make_no_sense_are_refused(bad: dict) -> None:
    with pytest.raises(ConfigError):
        FedAvg(**bad)


def seen(module: nn.Module, sender: object, **threat: str) -> Observation:
    network, (images, labels) = freeze(module.double(), SHAPE).with_masks(77), batch(5)
    return observe(network, sender, sender(network, images, labels), Batch(images, labels), ThreatModel(**threat))


def test_the_order_and_its_seed_do_not_pass_unless_the_threat_model_says_so(tiny: nn.Module) -> None:
    client = FedAvg(epochs=3, lr=0.05, batch_size=2, shuffle=True)
    hidden, granted = seen(tiny, client), seen(tiny, client, order="known")
    assert hidden.client == client and hidden.network.mask_seed == 0, "neither the orders nor what draws them"
    assert "77" not in repr(hidden) and hidden.client.steps(5).orders(hidden.network.mask_seed) != client.steps(
        5
    ).orders(77)
    assert granted.client.order == client.steps(5).orders(77) and not granted.client.shuffle
    same(granted.client(granted.network, *batch(5)), dict(granted.update))


@pytest.mark.parametrize(
    ("client", "scale"),
    [
        (FedAvg(local_steps=3, lr=0.123, batch_size=2, proximal=0.4), 3 * 0.123),
        (FedAvg(local_steps=3, lr=0.123, batch_size=2, sends="weights"), 3 * 0.123),
        (Shares(FedAvg(local_steps=3, lr=0.123), ("3.*",)), 3 * 0.123),
        (FedSGD(), 1.0),
    ],
)
def test_an_unknown_client_keeps_its_sign_and_nothing_else(tiny: nn.Module, client: object, scale: float) -> None:
    known, hidden = seen(tiny, client), seen(tiny, client, client="unknown")
    text = repr(hidden.client)
    assert not any(word in text for word in ("lr", "steps", "epochs", "batch_size", "proximal", "order", "0.123"))
    for name, part in known.gradient.items():
        torch.testing.assert_close(hidden.gradient[name], part * scale)
    with pytest.raises(ThreatModelError, match="hides the client's settings"):
        hidden.client(hidden.network, *batch(5))


@pytest.mark.parametrize("sends", ["delta", "weights"])
def test_new_weights_are_those_that_were_sent(tiny: nn.Module, sends: str) -> None:
    client = FedAvg(local_steps=2, lr=0.1, sends=sends)
    whole, part = seen(tiny, client, client="unknown"), seen(tiny, Shares(client, ("3.*",)))
    weights = FedAvg(local_steps=2, lr=0.1, sends="weights")(whole.network, *batch(5))
    same(dict(new_weights(whole.client, whole.network, whole.update)), weights)
    partial = new_weights(part.client, part.network, part.update)
    torch.testing.assert_close(partial["3.bias"], weights["3.bias"])
    assert torch.equal(partial["0.weight"], part.network.params["0.weight"])
    assert new_weights(FedSGD(), whole.network, whole.update) is None


def test_part_of_an_update_is_taken_where_that_is_declared_and_only_there(tiny: nn.Module) -> None:
    client = Shares(FedAvg(local_steps=2, lr=0.1), ("0.*", "3.*", "!*.bias"))
    observation = seen(tiny, client)
    assert list(observation.update) == ["0.weight", "3.weight"]
    inner = client.client(observation.network, *batch(5))
    assert all(torch.equal(observation.update[name], inner[name]) for name in observation.update)
    values = {each.name: getattr(observation, each.name) for each in fields(observation)}
    with pytest.raises(UpdateMismatchError, match=r"0\.bias is missing"):
        Observation(**{**values, "client": client.client})
    with pytest.raises(UpdateMismatchError, match=r"3\.weight is not a trainable"):
        Observation(**{**values, "client": Shares(client.client, ("0.weight",))})
    with pytest.raises(ConfigError, match="no tensor of the network fits"):
        Shares(FedSGD(), ("head.*",)).sent_names(observation.network)


def test_the_report_says_what_the_server_did_not_know_or_get(tiny: nn.Module) -> None:
    network, (images, labels) = freeze(tiny.double(), SHAPE), batch(3)
    truth, shuffled = Batch(images, labels), FedAvg(shuffle=True)

    def codes(sender: object, **threat: str) -> set[str]:
        return {finding.code for finding in setting_findings(network, (), truth, sender, ThreatModel(**threat))}

    assert codes(shuffled) == {"order-unknown"} and codes(shuffled, order="known") == set()
    assert codes(shuffled, client="unknown") == {"client-unknown"}
    assert codes(Shares(FedAvg(), ("3.*",))) == {"partial-update"} and codes(FedAvg()) == set()


@pytest.mark.parametrize(("client", "names"), [(FedSGD, ("0.*",)), (FedSGD(), ()), (FedSGD(), "0.*")])
def test_shares_that_cannot_be_are_refused(client: object, names: object, unchecked: None) -> None:
    with pytest.raises(ConfigError, match="Shares needs"):
        Shares(client, names)
