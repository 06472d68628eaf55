"""The wall: nothing of a batch is reachable from an observation, whoever keeps what it sees; and attacks only read."""

import copy
from collections import deque
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType

import pytest
import torch
from torch import Tensor, nn

import inversefed
from inversefed import Batch, FedSGD, Observation, ThreatModel
from inversefed.attacks import recipes
from inversefed.errors import InversefedError
from inversefed.fl import clients, defenses
from inversefed.fl.simulate import observed
from inversefed.pipeline import audit_observation

SHAPE = (3, 8, 8)
CLIENTS = {
    "DPSGD": clients.DPSGD(0.1, 1.0),
    "FedAvg": clients.FedAvg(2, 0.1, batch_size=1),
    "FedSGD": FedSGD(),
    "Shares": clients.Shares(clients.FedAvg(2, 0.1), ("*",)),
    "SumOfClients": clients.SumOfClients(),
}
DEFENSES = {
    "ATS": defenses.ATS(("flip",)),
    "PRECODE": defenses.PRECODE(),
    "Clip": defenses.Clip(1.0),
    "Dropout": defenses.Dropout(),
    "ExcludeVars": defenses.ExcludeVars("bias"),
    "GaussianNoise": defenses.GaussianNoise(0.1),
    "LaplaceNoise": defenses.LaplaceNoise(0.1),
    "Mixup": defenses.Mixup(),
    "PercentilePrivacy": defenses.PercentilePrivacy(50.0, 1.0),
    "RandomPruning": defenses.RandomPruning(0.5),
    "SVTPrivacy": defenses.SVTPrivacy(0.5, 10.0, 10.0, gamma=1.0),
    "SignQuantization": defenses.SignQuantization(),
    "Soteria": defenses.Soteria(),
    "StochasticQuantization": defenses.StochasticQuantization(4),
    "TopK": defenses.TopK(0.5),
    "UniformQuantization": defenses.UniformQuantization(4),
}


class Keeps(nn.Module):
    """Keeps all that it is shown: in attributes, a list, a queue, a buffer, and through hooks of every kind."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Sigmoid())
        self.head = nn.Linear(8, 4)
        self.register_buffer("last", torch.zeros(1))
        self.cache, self.queue, self.by_name = [], deque(maxlen=9), {}
        listed: list = []
        self.body.register_forward_hook(lambda module, inputs, output: listed.append(inputs[0]))
        self.body.register_forward_pre_hook(keeping())
        self.head.register_forward_hook(self.note)

    def note(self, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        self.by_name["features"] = inputs[0]

    def forward(self, images: Tensor) -> Tensor:
        self.seen, self.last = images, images.detach().clone()
        self.cache.append(images.detach())
        self.queue.append(images.detach().numpy())
        return self.head(self.body(images))


def keeping() -> Callable:
    def hook(module: nn.Module, inputs: tuple, kept: list = []) -> None:  # noqa: B006
        kept.append(inputs[0])

    return hook


def reachable(value: object) -> Iterator[object]:
    """All that can be reached by attributes, items, closures and defaults, but for types, modules and globals."""
    stack, seen, alive = [value], set(), []
    while stack:
        each = stack.pop()
        if id(each) in seen or isinstance(each, type | ModuleType):
            continue
        seen.add(id(each))
        alive.append(each)  # so that no id is given twice
        yield each
        if isinstance(each, FunctionType):
            stack += [cell.cell_contents for cell in each.__closure__ or ()]
            stack += [*(each.__defaults__ or ()), *(each.__kwdefaults__ or {}).values()]
        if isinstance(each, dict):
            stack += [*each.keys(), *each.values()]
        elif isinstance(each, list | tuple | set | frozenset | deque):
            stack += list(each)
        elif isinstance(each, Tensor):
            stack += [each.grad] if each.is_leaf else []
        stack += [getattr(each, "__self__", None), *getattr(each, "__dict__", {}).values()]


def leaks(observation: Observation, batch: Batch) -> list[str]:
    """Where a private picture, as it is or normalized, or its storage can be reached."""
    rows = [image.numpy().tobytes() for image in batch.images]
    storage = batch.images.untyped_storage().data_ptr()
    found = []
    for each in reachable(observation):
        if isinstance(each, Tensor):
            inside = any(row in each.detach().contiguous().numpy().tobytes() for row in rows)
            shared = each.untyped_storage().data_ptr() == storage
            found += [f"tensor {tuple(each.shape)}"] if inside or shared else []
        elif hasattr(each, "tobytes") and any(row in each.tobytes() for row in rows):
            found.append(type(each).__name__)
    return found


def batch() -> Batch:
    return Batch(torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(9)), torch.tensor([1, 3]))


def test_every_client_and_defense_is_in_the_tables() -> None:
    assert CLIENTS.keys() == set(clients.__all__) and DEFENSES.keys() == set(defenses.__all__)


def test_the_search_finds_what_a_module_keeps() -> None:
    module, private = Keeps(), batch()
    network = inversefed.freeze(module, SHAPE)
    update = FedSGD()(network, private.images, private.labels)
    found = leaks(Observation(network, FedSGD(), update, 2), private)
    assert len(found) >= 3 and "ndarray" in found, "what it was given, the list's own tensors, and the queue's arrays"


@pytest.mark.parametrize("knows", ["unknown", "known"])
@pytest.mark.parametrize("name", [*CLIENTS, *DEFENSES])
def test_no_picture_is_reachable_from_an_observation_whatever_the_module_keeps(name: str, knows: str) -> None:
    private, client = batch(), CLIENTS.get(name, FedSGD())
    chain = (DEFENSES[name],) if name in DEFENSES else ()
    threat = ThreatModel(defenses=knows, order=knows)
    module = Keeps()
    seen, _ = observed(module, private.images, private.labels, client=client, defenses=chain, threat=threat)
    assert leaks(seen, private) == []
    assert leaks(module, private) == [], "nor from the caller's own module"


@pytest.mark.filterwarnings("ignore")
def test_a_module_that_keeps_what_it_sees_is_audited_like_any_other() -> None:
    report = inversefed.audit(Keeps(), batch().images[:1], batch().labels[:1], nulls=0, max_iterations=5)
    assert report.scores["peak_signal_noise_ratio"] > 60, "a linear layer with a bias gives its input away"


class KeepsLabels:
    """A loss, a client and a defense in one that keep what they are given."""

    def __init__(self) -> None:
        self.kept: list = []


class KeepingLoss(KeepsLabels):
    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        self.kept.append((logits.detach(), labels))
        return nn.functional.cross_entropy(logits, labels)


class KeepingClient(KeepsLabels, clients.Client):
    sends = "gradient"

    def __call__(self, network: object, images: Tensor, labels: Tensor) -> dict:
        self.kept.append(images)
        return dict(FedSGD()(network, images, labels))


class KeepingDefense(KeepsLabels):
    acts_on = "update"

    def __call__(self, update: dict, context: object, generator: object) -> dict:
        self.kept.append(context)
        return update


def test_neither_a_loss_nor_a_client_nor_a_defense_carries_the_batch_to_the_attacker(tiny: nn.Module) -> None:
    private, loss, client, defense = batch(), KeepingLoss(), KeepingClient(), KeepingDefense()
    seen, _ = observed(
        tiny,
        private.images,
        private.labels,
        loss=loss,
        client=client,
        defenses=(defense,),
        threat=ThreatModel(defenses="known"),
    )
    assert leaks(seen, private) == [] and not client.kept and not defense.kept
    assert not any(torch.equal(labels, private.labels) for _, labels in loss.kept)


def bits(observation: Observation) -> list[object]:
    """All numbers of an observation, and its settings in words."""
    tensors = [each for each in reachable(observation) if isinstance(each, Tensor)]
    return [repr(observation), *(tensor.detach().clone() for tensor in tensors)]


RECIPES = [name for name in recipes.__all__ if callable(getattr(recipes, name))]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_only_reads_and_does_not_know_what_the_caller_holds(name: str, tiny: nn.Module) -> None:
    """The observation is bit-identical afterwards, and the reconstruction bit-equal whatever truth it is held to."""
    private = batch()
    seen, truth = observed(tiny, private.images[:1], private.labels[:1], seed=3)
    before = bits(seen)
    other = Batch(1 - truth.images, (truth.labels + 1) % 4)
    found = []
    for held in (truth, other, None):
        attack = getattr(recipes, name)()
        try:
            report = audit_observation(copy.copy(seen), truth=held, attack=attack, nulls=0, max_iterations=2, seed=3)
            found.append((report.reconstruction.images, report.reconstruction.labels))
        except InversefedError as error:
            found.append((str(error), type(error).__name__))
        after = bits(seen)
        assert len(after) == len(before) and after[0] == before[0]
        assert all(torch.equal(a, b) for a, b in zip(after[1:], before[1:], strict=True))
    for images, labels in found[1:]:
        if isinstance(images, str):
            assert (images, labels) == found[0]
        else:
            assert torch.equal(images, found[0][0]) and torch.equal(labels, found[0][1])
