"""The protocol of clients: strangers who implement it are audited like the clients that come with the package."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

import inversefed
from inversefed import Batch, FedAvg, FedSGD, LocalSGD, Observation, ThreatModel, freeze, observe
from inversefed.attacks import recipes
from inversefed.attacks.identifiability.identify import identify
from inversefed.attacks.labels import RecoveredLabels
from inversefed.errors import ConfigError
from inversefed.fl import clients, defenses
from inversefed.fl.clients import Client, LocalSteps, Shares, SumOfClients
from inversefed.fl.clients.client import as_sent, check_client
from inversefed.fl.clients.local_steps import loss_gradient
from inversefed.fl.clients.views import new_weights, unknown
from inversefed.fl.simulate import observed
from inversefed.updates.diagnosis import diagnose
from inversefed.updates.metadata import Metadata
from inversefed.updates.update import Update, as_observation

SHAPE = (3, 8, 8)


@dataclass(frozen=True)
class Halved:
    """Written against the protocol alone, without deriving from it: sends half of the gradient, but for one tensor."""

    sends: str = "gradient"

    def __call__(self, network: object, images: Tensor, labels: Tensor) -> dict:
        gradient = loss_gradient(network.at_step(0), network.params, images, labels)
        return {name: gradient[name] / 2 for name in self.sent_names(network)}

    def as_gradient(self, network: object, update: dict, num_examples: int) -> dict:
        return {name: 2 * part for name, part in update.items()}

    def steps(self, num_examples: int) -> None:
        return None

    def believed(self, threat: ThreatModel, num_examples: int, seed: int) -> "Halved":
        return self

    def sent_names(self, network: object) -> tuple[str, ...]:
        return tuple(network.params)[1:]


@dataclass(frozen=True)
class Signs(Client):
    """Compressed to signs, as signSGD sends it; the least that a client can say of itself."""

    sends = "gradient"

    def __call__(self, network: object, images: Tensor, labels: Tensor) -> dict:
        gradient = loss_gradient(network.at_step(0), network.params, images, labels)
        return {name: torch.tanh(1e3 * part) for name, part in gradient.items()}


@dataclass(frozen=True)
class TwoSteps(Client):
    """Two local steps of its own, said to be so."""

    lr: float = 0.05
    sends: str = "delta"

    def steps(self, num_examples: int) -> LocalSteps:
        return LocalSteps(num_examples, (slice(0, num_examples),), count=2, lr=self.lr)

    def __call__(self, network: object, images: Tensor, labels: Tensor) -> dict:
        params = network.params
        for step in range(2):
            gradient = loss_gradient(network.at_step(step), params, images, labels)
            params = {name: torch.add(weight, gradient[name], alpha=-self.lr) for name, weight in params.items()}
        return {name: new - network.params[name].detach() for name, new in params.items()}


STRANGERS = [Halved(), Signs(), TwoSteps()]


def batch(count: int = 1) -> Batch:
    images = torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(2))
    return Batch(images, torch.arange(count) % 4)


@pytest.mark.parametrize("client", STRANGERS, ids=repr)
@pytest.mark.parametrize("attack", [None, recipes.geiping()], ids=["best", "geiping"])
def test_a_stranger_is_audited_from_end_to_end(client: Client, attack: object, tiny: nn.Module) -> None:
    private = batch()
    report = inversefed.audit(
        tiny,
        private.images,
        private.labels,
        client=client,
        defenses=(defenses.Clip(10.0),),
        attack=attack,
        nulls=1,
        max_iterations=4,
    )
    assert report.scenario["client"] == f"{__name__}:{client!r}", "a piece of one's own is written with its home"
    assert report.verdict is not None and type(client).__name__ in report.to_json()
    assert "<html" in report.to_html() and str(report)


@pytest.mark.parametrize("client", STRANGERS, ids=repr)
@pytest.mark.parametrize("count", [1, 2])
def test_a_stranger_is_read_by_label_rules_identification_and_diagnosis(
    client: Client, count: int, tiny: nn.Module
) -> None:
    private = batch(count)
    seen, _ = observed(tiny, private.images, private.labels, client=client)
    if not isinstance(client, Signs):
        assert sorted(RecoveredLabels()(seen).tolist()) == private.labels.tolist()
    assert identify(seen) is not None
    stated = Metadata(kind={"gradient": "gradient", "delta": "weight_delta"}[client.sends], num_examples=count)
    assert isinstance(diagnose(seen.network, dict(seen.update), stated, client=client), tuple)
    hidden, _ = observed(tiny, private.images, private.labels, client=client, threat=ThreatModel(client="unknown"))
    assert not hidden.client_known and type(client).__name__ not in repr(hidden)
    assert hidden.client.sends == client.sends and list(hidden.update) == list(seen.update)


def test_steps_that_a_stranger_declares_are_followed_like_those_of_fedavg(tiny: nn.Module) -> None:
    """The same training under another name: every attack comes to the same bits."""
    private = batch(2)
    for attack in (recipes.best(), recipes.relaxed_order(), recipes.geiping()):
        own, theirs = (
            inversefed.audit(
                tiny, private.images, private.labels, client=client, attack=attack, nulls=0, max_iterations=4
            ).reconstruction
            for client in (FedAvg(2, 0.05), TwoSteps())
        )
        assert torch.equal(own.images, theirs.images) and torch.equal(own.labels, theirs.labels)


def test_a_scale_that_a_stranger_declares_is_taken_off(tiny: nn.Module) -> None:
    private = batch()
    halved, whole = (
        observed(tiny, private.images, private.labels, client=client)[0].gradient for client in (Halved(), FedSGD())
    )
    assert all(torch.equal(part, whole[name]) for name, part in halved.items())


def lacking(part: str) -> object:
    """A client that has all but one part of the protocol."""
    parts = {name: value for name, value in vars(Halved).items() if not name.startswith("__") or name == "__call__"}
    return type("Lacking", (), {name: value for name, value in parts.items() if name != part})()


@pytest.mark.parametrize("part", ["sends", "__call__", "as_gradient", "steps", "believed", "sent_names"])
def test_a_client_that_lacks_a_part_is_refused_with_its_name_at_every_door(
    part: str, tiny: nn.Module, unchecked: None
) -> None:
    client, private, network = lacking(part), batch(), freeze(tiny, SHAPE)
    update = dict(FedSGD()(network, private.images, private.labels))
    doors: list[Callable[[], object]] = [
        lambda: Observation(network, client, update, 1),
        lambda: Shares(client, ("*",)),
        lambda: SumOfClients(client),
        lambda: as_observation(network, Update(update, Metadata(kind="gradient", num_examples=1)), client=client),
    ]
    if part != "__call__":  # what cannot be called is no piece at all
        doors.append(lambda: inversefed.audit(tiny, private.images, private.labels, client=client))
    for door in doors:
        with pytest.raises(ConfigError, match=rf"lacks {part}: "):
            door()


def test_a_client_of_no_kind_a_class_and_steps_that_are_none_are_refused(tiny: nn.Module, unchecked: None) -> None:
    with pytest.raises(ConfigError, match=r"sends 'gradient', 'delta' or 'weights'; .* sends 'logits'"):
        check_client(Halved("logits"))
    with pytest.raises(ConfigError, match="called; got the class FedAvg"):
        check_client(FedAvg)
    wrong = type("Wrong", (Signs,), {"steps": lambda self, num_examples: 2})()
    with pytest.raises(ConfigError, match=r"must be LocalSteps or None; got 2"):
        assert observed(tiny, batch().images, batch().labels, client=wrong)[0].steps


EXAMPLES = {
    "DPSGD": (clients.DPSGD(0.0, 1e3), clients.DPSGD(0.5, 1.0, local_steps=2, sends="weights")),
    "FedAvg": (
        FedAvg(3, 0.1, batch_size=2),
        FedAvg(epochs=2, lr=0.1, batch_size=3, optimizer=LocalSGD(0.9), sends="weights", proximal=0.1),
        FedAvg(epochs=2, lr=0.1, batch_size=2, shuffle=True),
    ),
    "FedSGD": (FedSGD(),),
    "Shares": (Shares(FedAvg(2, 0.1), ("0.*",)), Shares(FedSGD(), ("!0.bias",))),
    "SumOfClients": (SumOfClients(), SumOfClients(FedAvg(2, 0.1), sizes=(1, 3)), SumOfClients(rounding=True)),
}


def test_every_client_has_examples() -> None:
    assert EXAMPLES.keys() == set(clients.__all__)


@pytest.mark.parametrize("client", [each for examples in EXAMPLES.values() for each in examples], ids=repr)
def test_a_client_keeps_its_promises(client: Client, tiny: nn.Module) -> None:
    check_client(client)
    network, private = freeze(tiny, SHAPE).with_masks(5), batch(4)
    update = client(network, private.images, private.labels)
    assert tuple(update) == client.sent_names(network) == tuple(client.as_gradient(network, update, 4))
    assert (new_weights(client, network, update) is None) == (client.sends == "gradient")

    steps = client.steps(4)
    assert steps is not None and max(part.stop for part in steps.slices) <= steps.examples <= 4
    if steps.alone:
        last = [*steps.walk(network, private.images, private.labels)][-1]
        taken = as_sent(network, last, client.sends)
        if client.sends == "gradient":
            taken = loss_gradient(network.at_step(0), network.params, private.images, private.labels)
        assert all(torch.equal(part, taken[name]) for name, part in update.items())

    seen = observe(network, client, update, private, ThreatModel(order="known"))
    check_client(seen.client)
    assert seen.client.sends == client.sends and seen.client.sent_names(network) == client.sent_names(network)
    first, second = (seen.client(network.with_masks(seed), private.images, private.labels) for seed in (0, 1))
    assert all(torch.equal(part, second[name]) for name, part in first.items()), "its draws are left out"

    left = unknown(client, network)
    assert left.sends == client.sends and left.sent_names(network) == client.sent_names(network)
    assert left.steps(4) is None and not Observation(network, left, dict(update), 4).client_known
