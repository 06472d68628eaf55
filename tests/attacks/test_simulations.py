"""What the attacker does not know of the client, and what each simulation makes of it."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from inversefed import Batch, FedAvg, FedSGD, Observation, ThreatModel, freeze, labels, observe, recipes
from inversefed.attacks.pieces.objectives import RelativeSquaredError
from inversefed.attacks.simulations import (
    AveragedMasks,
    KnownClient,
    OptimizedMasks,
    PerEpoch,
    RelaxedOrder,
    Surrogate,
)
from inversefed.errors import ConfigError, ThreatModelError
from inversefed.evaluation.align import align
from inversefed.evaluation.metrics import peak_signal_noise_ratio
from inversefed.fl.clients.local_optimizers import LocalSGD
from inversefed.zoo import pictures

SHAPE = (3, 8, 8)
KNOWN = ThreatModel(labels="known")
SHUFFLED = FedAvg(epochs=2, lr=0.3, batch_size=2, shuffle=True)


def photos(n: int) -> torch.Tensor:
    return torch.stack([pictures.photo(name, SHAPE) for name in pictures.photo_names()[:n]])


def network(activation: type[nn.Module], classes: int = 4, wide: int = 16) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, wide, 3, 2, 1), activation(), nn.Flatten(), nn.Linear(16 * wide, classes)]
    return nn.Sequential(*layers).eval()


def seen(module: nn.Module, client: object, n: int, threat: ThreatModel = KNOWN) -> tuple[Observation, torch.Tensor]:
    private = freeze(module, SHAPE, mean=0.5, std=0.25).with_masks(7)
    batch = Batch(photos(n), torch.arange(n) % private.num_classes)
    return observe(private, client, client(private, batch.images, batch.labels), batch, threat), batch.images


def decibels(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float(peak_signal_noise_ratio(found[align(found, truth)], truth).mean())


def reached(attack: object, observation: Observation, truth: torch.Tensor) -> float:
    return decibels(attack(observation, torch.Generator().manual_seed(0)).images, truth)


def gray(truth: torch.Tensor) -> float:
    return decibels(torch.full_like(truth, 0.5), truth)


def test_the_surrogate_needs_neither_learning_rate_nor_steps() -> None:
    client = FedAvg(local_steps=50, lr=0.01, batch_size=2)
    observation, truth = seen(network(nn.Tanh, 10), client, 4, ThreatModel(labels="known", client="unknown"))
    attack = recipes.surrogate(max_iterations=100)
    as_gradient = replace(observation, client=FedSGD(), update=observation.gradient)
    found, simple = reached(attack, observation, truth), reached(attack, as_gradient, truth)
    assert found > gray(truth) + 12
    assert found > simple + 4


def test_an_unknown_client_is_refused_by_what_must_run_it() -> None:
    observation, _ = seen(network(nn.Tanh), SHUFFLED, 2, ThreatModel(labels="known", client="unknown"))
    for attack in (recipes.geiping(), recipes.relaxed_order(), recipes.per_epoch()):
        with pytest.raises(ThreatModelError, match=r"settings|Surrogate"):
            attack(observation, torch.Generator().manual_seed(0))


def test_an_order_that_is_not_known_is_searched_or_kept_apart_by_epochs() -> None:
    observation, truth = seen(network(nn.Sigmoid), SHUFFLED, 4)
    # The order as given puts the same examples together in the first epoch, so half of it is right by chance.
    given = replace(observation, client=replace(SHUFFLED, shuffle=False))
    guessed = max(reached(recipes.smoothed(60), each, truth) for each in (observation, given))
    assert reached(recipes.per_epoch(60), observation, truth) > max(guessed + 1, gray(truth) + 4)
    assert reached(recipes.relaxed_order(60), observation, truth) > max(guessed + 2, gray(truth) + 6)


def test_epochs_that_hold_the_same_pictures_cost_nothing_and_are_matched() -> None:
    images, truth = photos(4), torch.tensor([0, 1, 0, 1])
    orders = [torch.tensor(order) for order in ([0, 1, 2, 3], [2, 1, 0, 3], [0, 3, 2, 1])]
    epochs = torch.stack([images[order] for order in orders])
    for pool in ("mean", "max"):
        prior = PerEpoch(1.0, pool)
        assert float(prior.penalty(epochs)) == pytest.approx(0.0, abs=1e-10)
        changed = epochs.clone()
        changed[1, 0] = 0.5
        assert float(prior.penalty(changed)) > 1e-4
    torch.testing.assert_close(PerEpoch().result(epochs.flatten(0, 1), truth), images)
    swapped = torch.cat([images, images[[1, 0, 2, 3]]])
    assert not torch.equal(PerEpoch().result(swapped, truth)[0], images[0]), "another label is no partner"


@pytest.mark.parametrize("sends", ["delta", "weights"])
def test_at_the_truth_every_simulation_of_an_order_agrees_with_the_update(sends: str) -> None:
    client = replace(SHUFFLED, sends=sends, batch_size=2)
    private = freeze(network(nn.Sigmoid).double(), SHAPE).with_masks(7)
    images, truth = photos(5).double(), torch.tensor([3, 1, 0, 1, 2])
    observation = observe(private, client, client(private, images, truth), Batch(images, truth), KNOWN)
    orders = torch.tensor(client.steps(5).orders(7))

    order = torch.full((2, 3, 5), -20.0, dtype=torch.float64)
    for epoch in range(2):
        for place, example in enumerate(orders[epoch].tolist()):
            order[epoch, place // 2, example] = 20.0
    relaxed = RelaxedOrder(rate=1.0, rounds=3)(observation, {"order": order}, images, truth)
    assert float(RelativeSquaredError()(relaxed.predicted, relaxed.observed)) < 1e-12
    alike = RelaxedOrder(noise=0.0).shares(torch.zeros(2, 3, 5), torch.tensor([2.0, 2.0, 1.0]))
    torch.testing.assert_close(alike[0], torch.tensor([[0.4], [0.4], [0.2]]).expand(3, 5))

    # Equal labels make the labels' order the same in all epochs, so the epochs' pictures say it all.
    same = torch.full((5,), 2)
    observation = observe(private, client, client(private, images, same), Batch(images, same), KNOWN)
    apart = PerEpoch()(observation, {}, torch.cat([images[row] for row in orders]), same)
    assert float(RelativeSquaredError()(apart.predicted, apart.observed)) < 1e-12
    assert float(apart.penalty) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("simulation", [AveragedMasks(3), OptimizedMasks(), PerEpoch(), RelaxedOrder(), Surrogate()])
@pytest.mark.parametrize("client", [FedSGD(), FedAvg(local_steps=2, lr=0.1, batch_size=1)])
def test_where_nothing_is_unknown_the_client_is_run_as_it_is(simulation: object, client: object) -> None:
    observation, truth = seen(network(nn.Sigmoid), client, 2)
    if isinstance(simulation, Surrogate) and isinstance(client, FedAvg):
        pytest.skip("the surrogate never runs a FedAvg client")
    variables = simulation.start(observation, torch.Generator().manual_seed(0))
    assert not variables and simulation.copies(observation) == 1
    targets = torch.arange(2)
    found = simulation(observation, variables, truth, targets)
    plain = KnownClient()(observation, {}, truth, targets)
    for name, part in plain.predicted.items():
        torch.testing.assert_close(found.predicted[name], part)
    assert float(found.penalty) == 0 and torch.equal(simulation.result(truth, targets), truth)


def test_labels_of_a_client_that_shuffles_are_counted_and_dealt() -> None:
    client = FedAvg(epochs=2, lr=0.01, batch_size=2, shuffle=True)
    private = freeze(network(nn.Tanh, 10, 24), SHAPE, mean=0.5, std=0.25).with_masks(7)
    images, truth = photos(4), torch.tensor([2, 0, 2, 1])
    observation = observe(private, client, client(private, images, truth), Batch(images, truth), ThreatModel())
    found = recipes.smoothed(60)(observation, torch.Generator().manual_seed(0))
    assert found.labels.tolist() == [0, 1, 2, 2]
    assert decibels(found.images, images) > gray(images) + 3


def test_counts_without_a_scale_where_the_client_is_unknown() -> None:
    client = FedAvg(local_steps=8, lr=0.05, batch_size=2)
    hidden = ThreatModel(client="unknown")
    observation, _ = seen(network(nn.Sigmoid, 10), client, 4, hidden)
    assert labels.RecoveredLabels()(observation).tolist() == [0, 1, 2, 3]
    for rule in (labels.MeanFeatureCounts(), labels.BiasCounts(), labels.InstanceCounts()):
        with pytest.raises(ThreatModelError, match="scale of the gradient"):
            rule(observation)


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Surrogate(0.0),
        lambda: PerEpoch(-1.0),
        lambda: PerEpoch(filters=0),
        lambda: PerEpoch(pool="sum"),
        lambda: RelaxedOrder(rounds=0),
        lambda: AveragedMasks(0),
        lambda: OptimizedMasks(rate=0.0),
    ],
)
def test_settings_that_make_no_sense_are_refused(bad: object, unchecked: None) -> None:
    with pytest.raises(ConfigError):
        bad()


def test_labels_that_are_only_counted_leave_the_order_as_open_as_shuffling_does() -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(), nn.Flatten()
    private = freeze(nn.Sequential(*layers, nn.Linear(2048, 10)).eval(), (3, 16, 16), mean=0.5, std=0.25)
    images = torch.stack([pictures.photo(name, (3, 16, 16)) for name in pictures.photo_names()[:4]])
    batch = Batch(images, torch.tensor([3, 0, 2, 0]))
    momentum = FedAvg(local_steps=4, lr=0.01, batch_size=1, optimizer=LocalSGD(momentum=0.9))
    update = momentum(private, batch.images, batch.labels)
    observation = observe(private, momentum, update, batch, ThreatModel())
    assert (
        reached(recipes.relaxed_order(60), observation, images) > reached(recipes.spectral(60), observation, images) + 3
    )

    granted = observe(private, momentum, update, batch, KNOWN)
    assert RelaxedOrder().start(granted, torch.Generator()) == {}
    chosen = recipes.best()
    plan, kinked = chosen.plan(observation), chosen.searches[-1].attack
    assert plan.search == recipes.relaxed_order() and "which local step saw which label" in plan.why
    assert chosen.search(granted) == kinked
    for settled in (replace(momentum, optimizer=LocalSGD(momentum=0.1)), replace(momentum, batch_size=4)):
        update = settled(private, batch.images, batch.labels)
        one = replace(observation, client=settled, update=update)
        assert chosen.search(one) == kinked, "the order hardly matters"
