"""A sum of clients is what each of them sends, added up, and no more."""

import pytest
import torch
from torch import Tensor, nn

import inversefed
from inversefed import DPSGD, Batch, FedAvg, FedSGD, SumOfClients, ThreatModel, freeze, identify, observe, recipes
from inversefed.attacks.simulations import OptimizedMasks
from inversefed.errors import ConfigError
from inversefed.fl.batchnorm import sent_buffers
from inversefed.fl.clients.partial import Shares
from inversefed.fl.clients.views import new_weights
from inversefed.fl.network import Network
from inversefed.fl.simulate import observed

IMAGES = torch.rand((6, 3, 8, 8), generator=torch.Generator().manual_seed(5))
LABELS = torch.tensor([0, 3, 1, 1, 2, 0])
STEP = 16 / 2**22


@pytest.fixture
def network(tiny: nn.Module) -> Network:
    return freeze(tiny, (3, 8, 8), mean=0.5, std=0.25).with_masks(2**40)


def close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-6) -> bool:
    return all(float((found[name] - part).detach().abs().max()) <= atol for name, part in expected.items())


@pytest.mark.parametrize("sizes", [(), (1, 3, 2)])
def test_the_mean_of_gradients_is_the_gradient_of_the_union(network: Network, sizes: tuple[int, ...]) -> None:
    update = SumOfClients(clients=3, sizes=sizes)(network, IMAGES, LABELS)
    assert close(update, dict(FedSGD()(network, IMAGES, LABELS)))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_deltas_are_added_with_the_weights_of_federated_averaging(network: Network, reduction: str) -> None:
    client = FedAvg(2, lr=0.3, sends="delta")
    update = SumOfClients(client, sizes=(4, 2), reduction=reduction)(network, IMAGES, LABELS)
    one, two = client(network, IMAGES[:4], LABELS[:4]), client(network, IMAGES[4:], LABELS[4:])
    share = (4 / 6, 2 / 6) if reduction == "mean" else (1.0, 1.0)
    assert close(update, {name: share[0] * one[name] + share[1] * two[name] for name in one})


@pytest.mark.parametrize("client", [FedSGD(), FedAvg(1, lr=0.3), FedAvg(1, lr=0.3, sends="weights")])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_sum_read_as_a_gradient_is_the_mean_gradient(network: Network, client: FedAvg, reduction: str) -> None:
    if reduction == "sum" and getattr(client, "sends", "") == "weights":
        with pytest.raises(ConfigError, match="by 'sum' where"):
            SumOfClients(client, reduction="sum")
        return
    together = SumOfClients(client, 2, reduction=reduction)
    update = together(network, IMAGES, LABELS)
    assert close(together.as_gradient(network, update, 6), dict(FedSGD()(network, IMAGES, LABELS)), 2e-6)
    assert (new_weights(together, network, update) is None) == isinstance(client, FedSGD)


def test_each_client_draws_for_itself(network: Network) -> None:
    client = SumOfClients(DPSGD(1.0, 0.1), 2)
    update = client(network, IMAGES[:1].repeat(2, 1, 1, 1), LABELS[:1].repeat(2))
    quiet = client.believed(ThreatModel(), 2, 0)(network, IMAGES[:1].repeat(2, 1, 1, 1), LABELS[:1].repeat(2))
    noise = torch.cat([(update[name] - quiet[name]).flatten() for name in update])
    assert float(noise.std()) == pytest.approx(0.1 / 2**0.5, rel=0.15)  # the mean of two independent ones


def test_rounding_stays_on_its_levels_is_small_and_right_on_average(network: Network) -> None:
    client = SumOfClients(clients=3, rounding=True)
    exact = client.believed(ThreatModel(), 6, 0)(network, IMAGES, LABELS)
    error = torch.cat([(client(network, IMAGES, LABELS)[name] - exact[name]).flatten() for name in exact]).double()
    assert 0 < float(error.abs().max()) <= 3 * STEP
    assert abs(float(error.mean())) < 5 * STEP * (3 / 4 / len(error)) ** 0.5
    single = SumOfClients(clients=1, rounding=True)(network, IMAGES, LABELS)["3.bias"].double()
    places = (single + 8) / STEP
    assert float((places - places.round()).abs().max()) < 1e-2


def test_rounding_clips_to_eight() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    network = freeze(module, (3, 8, 8), loss=lambda logits, labels: 1000 * nn.functional.cross_entropy(logits, labels))
    sent = SumOfClients(clients=1, rounding=True)(network, IMAGES[:1], LABELS[:1])
    assert float(FedSGD()(network, IMAGES[:1], LABELS[:1])["1.weight"].abs().max()) > 8
    assert float(sent["1.weight"].abs().max()) == 8


def test_buffers_are_averaged_over_the_clients() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4)).train()
    network = freeze(module, (3, 8, 8))
    sent = sent_buffers(SumOfClients(clients=2), network, IMAGES, LABELS)
    one, two = (sent_buffers(FedSGD(), network, IMAGES[part], LABELS[part]) for part in (slice(0, 3), slice(3, 6)))
    assert close(dict(sent), {name: (one[name].double() + two[name].double()) / 2 for name in one})
    assert sent["1.num_batches_tracked"] == 1


def test_the_server_simulates_the_clients_without_their_draws(network: Network) -> None:
    client = SumOfClients(DPSGD(1.0, 0.5), 3, rounding=True)
    seen = observe(network, client, client(network, IMAGES, LABELS), Batch(IMAGES, LABELS), ThreatModel())
    assert seen.client == SumOfClients(DPSGD(0.0, 0.5), 3)
    part = observe(
        network, Shares(client, ("3.*",)), {k: v for k, v in seen.update.items() if k.startswith("3")},
        Batch(IMAGES, LABELS), ThreatModel(client="unknown"),
    )  # fmt: skip
    assert "UnknownClient(sends='gradient')" in repr(part.client)


def test_an_attack_sees_the_examples_of_all_clients(tiny: nn.Module) -> None:
    images = IMAGES[:2] * 0.2 + torch.tensor([0.2, 0.6])[:, None, None, None]
    report = inversefed.audit(
        tiny,
        images,
        torch.tensor([0, 3]),
        client=SumOfClients(FedAvg(2, lr=0.1), 2, rounding=True),
        threat=ThreatModel(labels="known"),
        attack=recipes.geiping(),
        max_iterations=100,
        nulls=0,
    )
    assert bool((report.scores["peak_signal_noise_ratio"] > 18).all())
    assert "secure-aggregation" in [finding.code for finding in report.findings]


def test_a_sum_of_gradients_is_as_identifiable_as_the_gradient_of_the_union(tiny: nn.Module) -> None:
    def found(client: FedSGD | SumOfClients) -> tuple:
        seen, _ = observed(tiny, IMAGES[:4], LABELS[:4], client=client)
        identified = identify(seen)
        return identified.verdict, identified.numbers, identified.least_examples, identified.layers

    assert repr(found(SumOfClients())) == repr(found(FedSGD()))


@pytest.mark.parametrize(
    "make", [lambda: SumOfClients(clients=0), lambda: SumOfClients(sizes=(2, 0)), lambda: SumOfClients(FedSGD)]
)
def test_settings_that_make_no_sense_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()


def test_a_part_of_an_update_is_taken_of_the_sum() -> None:
    with pytest.raises(ConfigError, match=r"Shares\(SumOfClients"):
        SumOfClients(Shares(FedSGD(), ("*",)))


@pytest.mark.parametrize("client", [SumOfClients(clients=4), SumOfClients(sizes=(2, 3))])
def test_a_batch_that_cannot_be_dealt_out_is_refused(client: SumOfClients, network: Network) -> None:
    with pytest.raises(ConfigError, match="cannot deal 6 examples"):
        client(network, IMAGES, LABELS)


@pytest.mark.parametrize(
    "client",
    [
        DPSGD(0.0, 1.0, local_steps=3, batch_size=2, sends="delta"),
        SumOfClients(FedAvg(5, lr=0.1), 2),
        SumOfClients(DPSGD(0.0, 1.0, local_steps=2, sends="delta"), sizes=(1, 3)),
    ],
)
def test_masks_of_dropout_are_searched_for_each_local_step_of_these_clients(client: DPSGD | SumOfClients) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.Sigmoid(), nn.Dropout(0.5), nn.Linear(8, 4)).train()
    network = freeze(module, (3, 8, 8))
    update = client(network, IMAGES[:4], LABELS[:4])
    seen = observe(network, client, update, Batch(IMAGES[:4], LABELS[:4]), ThreatModel())
    search = OptimizedMasks()
    (masks,) = (start.requires_grad_() for start in search.start(seen, torch.Generator()).values())
    assert len(masks) == client.steps(4).count
    images = IMAGES[:4].clone().requires_grad_()
    compared = search(seen, {"mask:3": masks}, images, LABELS[:4])
    slopes = torch.autograd.grad(sum(part.square().sum() for part in compared.predicted.values()), (masks, images))
    assert all(float(step.abs().sum()) > 0 for step in slopes[0]) and float(slopes[1].abs().sum()) > 0
