"""DP-SGD is Opacus' to the last digit but six, its noise is as loud as it says, and an attacker can simulate it."""

import math
from dataclasses import replace

import pytest
import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

import inversefed
from inversefed import DPSGD, Batch, FedAvg, FedSGD, LocalSGD, ThreatModel, freeze, observe, recipes
from inversefed.errors import ConfigError, UnsupportedNetworkError
from inversefed.fl.batchnorm import sent_buffers
from inversefed.fl.clients.per_example import _one_by_one, clipped_sum, example_gradients
from inversefed.fl.clients.views import new_weights
from inversefed.fl.network import Network

IMAGES = torch.rand((6, 3, 8, 8), generator=torch.Generator().manual_seed(5))
LABELS = torch.tensor([0, 3, 1, 1, 2, 0])
SEED = 2**40 + 7
pytestmark = pytest.mark.filterwarnings("ignore:Full backward hook is firing")  # of Opacus' hooks


def grouped() -> nn.Module:
    torch.manual_seed(1)
    head = nn.Linear(96, 4)
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.GroupNorm(2, 6), nn.ReLU(), nn.Flatten(), head)


def plain() -> nn.Module:
    torch.manual_seed(2)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 12, bias=False), nn.LayerNorm(12), nn.Tanh(), nn.Linear(12, 4))


def opacus_steps(
    module: nn.Module,
    client: DPSGD,
    parts: list[Tensor | slice],
    generator: torch.Generator | None = None,
    **sgd: float,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The last gradient, and the weights' change, of Opacus' own optimizer."""
    wrapped = GradSampleModule(module.train(), loss_reduction="mean")
    before = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    optimizer = DPOptimizer(
        torch.optim.SGD(wrapped.parameters(), lr=client.lr, **sgd),
        noise_multiplier=client.noise_multiplier,
        max_grad_norm=client.max_grad_norm,
        expected_batch_size=client.expected_batch_size or len(IMAGES[parts[0]]),
        loss_reduction=client.loss_reduction,
        generator=generator,
    )
    for part in parts:
        optimizer.zero_grad()
        logits = wrapped((IMAGES[part] - 0.5) / 0.25)
        nn.functional.cross_entropy(logits, LABELS[part]).backward()
        optimizer.step()
    gradient = {name: weight.grad.clone() for name, weight in module.named_parameters()}
    return gradient, {name: weight.detach() - before[name] for name, weight in module.named_parameters()}


def frozen(module: nn.Module) -> Network:
    return freeze(module, (3, 8, 8), mean=0.5, std=0.25).with_masks(SEED)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-6) -> None:
    assert list(found) == list(expected)
    for name, part in expected.items():
        assert float((found[name] - part).detach().abs().max()) <= atol, name


@pytest.mark.parametrize("make", [grouped, plain])
@pytest.mark.parametrize("norm", [0.05, 7.2, 1e3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_gradient_without_noise_is_opacus_own(make: type, norm: float, reduction: str) -> None:
    client = DPSGD(0.0, norm, expected_batch_size=4, loss_reduction=reduction)
    network = frozen(make())
    norms = example_norms(network)
    assert norm in (0.05, 1e3) or bool((norms > norm).any() and (norms < norm).any())  # some are clipped, some are not
    assert_equal(client(network, IMAGES, LABELS), opacus_steps(make(), client, [slice(0, 6)])[0])


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_local_steps_without_noise_are_opacus_own(momentum: float) -> None:
    client = DPSGD(0.0, 0.5, local_steps=4, batch_size=3, lr=0.2, optimizer=LocalSGD(momentum=momentum), sends="delta")
    parts = [slice(0, 3), slice(3, 6)] * 2
    _, change = opacus_steps(grouped(), client, parts, momentum=momentum)
    assert_equal(client(frozen(grouped()), IMAGES, LABELS), change)
    weights = replace(client, sends="weights")(frozen(grouped()), IMAGES, LABELS)
    assert_equal(weights, {name: start.detach() + change[name] for name, start in frozen(grouped()).params.items()})


def test_with_noise_from_the_same_generator_it_is_opacus_own_too() -> None:
    client, network = DPSGD(1.3, 0.5, local_steps=2, lr=0.2, sends="delta"), frozen(grouped())
    _, change = opacus_steps(grouped(), client, [slice(0, 6)] * 2, client._generator(network))
    assert_equal(client(network, IMAGES, LABELS), change)


def test_poisson_samples_are_opacus_own_where_the_draws_are() -> None:
    client = DPSGD(0.0, 0.5, expected_batch_size=2, poisson_sampling=True, local_steps=5, lr=0.2, sends="delta")
    network = frozen(grouped())
    parts = list(client._parts(6, client._generator(network)))
    assert all(isinstance(part, Tensor) and len(part) for part in parts) and len({len(part) for part in parts}) > 1
    assert_equal(client(network, IMAGES, LABELS), opacus_steps(grouped(), client, parts)[1])


def test_poisson_samples_have_the_expected_size_and_an_empty_one_is_noise_alone() -> None:
    client = DPSGD(1.0, 0.5, expected_batch_size=3, poisson_sampling=True, local_steps=3000, sends="delta")
    sizes = torch.tensor([float(len(part)) for part in client._parts(6, torch.Generator().manual_seed(1))])
    assert float(sizes.mean()) == pytest.approx(3.0, abs=5 * math.sqrt(6 / 4 / 3000))
    network = frozen(grouped())
    update = client._gradient(network, network.params, IMAGES[:0], LABELS[:0], torch.Generator().manual_seed(1))
    entries = torch.cat([part.flatten() for part in update.values()])
    assert float(entries.std()) == pytest.approx(0.5 / 3, rel=0.2)


@pytest.mark.parametrize(("multiplier", "norm", "expected"), [(1.0, 0.5, 0), (0.3, 2.0, 12)])
def test_the_noise_has_the_deviation_of_the_mechanism_within_the_chi_square_band(
    multiplier: float, norm: float, expected: int
) -> None:
    noisy, network = DPSGD(multiplier, norm, expected_batch_size=expected), frozen(plain())
    quiet = noisy.believed(ThreatModel(), 6, SEED)(network, IMAGES, LABELS)
    draws = [noisy(network.with_masks(SEED + seed), IMAGES, LABELS) for seed in range(20)]
    noise = torch.cat([(draw[name] - quiet[name]).flatten() for draw in draws for name in quiet]).double()
    std, n = noisy.noise_std(6), noise.numel()
    assert std == pytest.approx(multiplier * norm / (expected or 6))
    low, high = chi_square_band(n)
    assert low < float(noise.square().sum()) / std**2 < high
    assert abs(float(noise.mean())) < 4 * std / math.sqrt(n)
    assert not torch.equal(draws[0]["1.weight"], draws[1]["1.weight"])
    assert_equal(noisy(network, IMAGES, LABELS), draws[0], atol=0)  # the same private seed, the same noise


def test_no_example_moves_the_sum_by_more_than_the_clipping_norm() -> None:
    client, network = DPSGD(0.0, 0.3, loss_reduction="sum"), frozen(grouped())
    whole = client(network, IMAGES, LABELS)
    for left in range(6):
        rest = [i for i in range(6) if i != left]
        without = client(network, IMAGES[rest], LABELS[rest])
        assert total_norm({name: whole[name] - without[name] for name in whole}) <= 0.3 + 1e-5


def test_the_clipping_factor_has_opacus_small_number_in_it() -> None:
    summed = clipped_sum({"w": torch.tensor([[3e-6, 0.0]]), "b": torch.tensor([[4e-6]])}, 1e-6)
    factor = 1e-6 / (5e-6 + 1e-6)
    torch.testing.assert_close(summed, {"w": torch.tensor([3e-6 * factor, 0]), "b": torch.tensor([4e-6 * factor])})


def test_with_nothing_clipped_it_is_the_plain_client() -> None:
    network = frozen(grouped())
    assert_equal(DPSGD(0.0, 1e6)(network, IMAGES, LABELS), FedSGD()(network, IMAGES, LABELS))
    private = DPSGD(0.0, 1e6, local_steps=3, batch_size=2, lr=0.1, sends="delta")
    assert_equal(private(network, IMAGES, LABELS), FedAvg(3, lr=0.1, batch_size=2)(network, IMAGES, LABELS))


@pytest.mark.parametrize("sends", ["delta", "weights"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_an_update_read_as_a_gradient_is_the_mean_of_the_clipped_gradients(sends: str, reduction: str) -> None:
    network = frozen(grouped())
    client = DPSGD(0.0, 0.3, expected_batch_size=9, loss_reduction=reduction, sends=sends, lr=0.5)
    mean = DPSGD(0.0, 0.3)(network, IMAGES, LABELS)
    update = client(network, IMAGES, LABELS)
    assert_equal(client.as_gradient(network, update, 6), mean)
    gradient = replace(client, sends="gradient")
    assert_equal(gradient.as_gradient(network, gradient(network, IMAGES, LABELS), 6), mean)
    weights = new_weights(client, network, update)
    assert weights is not None and torch.allclose(weights["0.bias"], network.params["0.bias"] - 0.5 * (
        mean["0.bias"] * (6 if reduction == "sum" else 6 / 9)
    ), atol=1e-6)  # fmt: skip


def test_examples_one_by_one_have_the_gradients_that_vmap_gives_them() -> None:
    network = frozen(grouped())
    together = example_gradients(network, network.params, IMAGES, LABELS)
    assert_equal(together, dict(_one_by_one(network, network.params, IMAGES, LABELS)))
    for i in range(6):
        alone = FedSGD()(network, IMAGES[i : i + 1], LABELS[i : i + 1])
        assert_equal({name: part[i] for name, part in together.items()}, dict(alone))


class Branches(nn.Module):
    """What vmap refuses: it looks at a value."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        return self.head(x if float(x.detach().sum()) > 0 else -x)


def test_a_network_that_vmap_cannot_run_is_taken_example_by_example() -> None:
    torch.manual_seed(0)
    network = frozen(Branches())
    update = DPSGD(0.0, 1e6)(network, IMAGES, LABELS)
    parts = [FedSGD()(network, IMAGES[i : i + 1], LABELS[i : i + 1]) for i in range(6)]
    assert_equal(update, {name: torch.stack([part[name] for part in parts]).mean(0) for name in update})
    images = IMAGES.clone().requires_grad_()
    value = sum(part.square().sum() for part in DPSGD(0.0, 0.1)(network, images, LABELS).values())
    (slope,) = torch.autograd.grad(value, images)
    assert float(slope.abs().sum()) > 0


@pytest.mark.parametrize("client", [DPSGD(0.0, 0.4), DPSGD(0.0, 0.4, local_steps=2, batch_size=1, sends="delta")])
def test_it_can_be_differentiated_with_respect_to_the_pictures(client: DPSGD) -> None:
    torch.manual_seed(0)
    network = freeze(nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.Tanh(), nn.Linear(5, 3)).double(), (3, 2, 2))
    images = torch.rand((2, 3, 2, 2), dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    labels = torch.tensor([2, 0])
    assert torch.autograd.gradcheck(lambda x: tuple(client(network, x, labels).values()), images)
    assert not any(part.requires_grad for part in client(network, images.detach(), labels).values())


def test_dropout_draws_for_each_example_and_as_the_private_seed_says() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 40), nn.Dropout(0.5), nn.Linear(40, 4)).train()
    network = frozen(module)
    same = IMAGES[:1].expand(2, -1, -1, -1)
    first, second = example_gradients(network, network.params, same, LABELS[:1].expand(2))["3.weight"]
    assert not torch.equal(first == 0, second == 0)
    one, two = (DPSGD(0.0, 1.0)(network, IMAGES, LABELS) for _ in range(2))
    assert_equal(one, dict(two), atol=0)


def test_batchnorm_in_train_mode_is_refused_and_in_eval_mode_is_not() -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 4))
    with pytest.raises(UnsupportedNetworkError, match=r"1, BatchNorm in train mode.*GroupNorm"):
        DPSGD(0.0, 1.0)(frozen(module.train()), IMAGES, LABELS)
    network = frozen(module.eval())
    assert DPSGD(0.0, 1.0)(network, IMAGES, LABELS)["1.weight"].shape == (4,)
    buffers = sent_buffers(DPSGD(0.0, 1.0), network, IMAGES, LABELS)
    assert torch.equal(buffers["1.running_mean"], module[1].running_mean)
    statistics = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.Flatten())
    with pytest.raises(UnsupportedNetworkError, match="GroupNorm"):
        DPSGD(0.0, 1.0)(frozen(nn.Sequential(*statistics, nn.Linear(144, 4)).eval()), IMAGES, LABELS)


def test_the_server_believes_in_the_client_without_its_draws() -> None:
    network, batch = frozen(grouped()), Batch(IMAGES, LABELS)
    for client in (
        DPSGD(1.0, 0.5),
        DPSGD(1.0, 0.5, expected_batch_size=2, poisson_sampling=True, local_steps=2, sends="delta"),
    ):
        seen = observe(network, client, client(network, IMAGES, LABELS), batch, ThreatModel())
        assert isinstance(seen.client, DPSGD) and seen.client.noise_multiplier == 0 and seen.network.mask_seed == 0
        assert not seen.client.poisson_sampling and seen.client.max_grad_norm == 0.5
        other = observe(network.with_masks(3), client, seen.update, batch, ThreatModel())
        assert_equal(
            seen.client(seen.network, IMAGES, LABELS), dict(other.client(other.network, IMAGES, LABELS)), atol=0
        )
    hidden = observe(network, DPSGD(1.0, 0.5), network.params, batch, ThreatModel(client="unknown"))
    assert repr(hidden.client) == "UnknownClient(sends='gradient')"


def test_clipping_alone_hides_nothing_of_one_example_and_noise_does(photos: Tensor) -> None:
    torch.manual_seed(0)
    module, label = nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)), torch.tensor([3])

    def attacked(sigma: float) -> inversefed.Report:
        return inversefed.audit(module, photos[:1], label, client=DPSGD(sigma, 0.1), attack=recipes.linear())

    assert float(attacked(0.0).scores["peak_signal_noise_ratio"]) > 80
    with pytest.raises(UnsupportedNetworkError, match="noise"):
        attacked(1.0)


def test_a_search_simulates_the_clipping_of_each_example(tiny: nn.Module) -> None:
    images = IMAGES[:2] * 0.2 + torch.tensor([0.2, 0.6])[:, None, None, None]
    scores = inversefed.audit(
        tiny,
        images,
        torch.tensor([0, 3]),
        client=DPSGD(0.0, 0.05),
        threat=ThreatModel(labels="known"),
        attack=recipes.geiping(),
        max_iterations=100,
        seed=1,
        nulls=0,
    ).scores
    assert bool((scores["peak_signal_noise_ratio"] > 20).all())


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"noise_multiplier": -1.0}, "noise_multiplier >= 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm > 0"),
        ({"local_steps": 2}, "no one gradient"),
        ({"poisson_sampling": True}, "needs expected_batch_size"),
        ({"poisson_sampling": True, "expected_batch_size": 2, "batch_size": 2}, "no batch_size"),
        ({"local_steps": 0}, "local_steps >= 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        DPSGD(**{"noise_multiplier": 1.0, "max_grad_norm": 1.0} | settings)


def test_more_than_all_examples_cannot_be_drawn() -> None:
    client = DPSGD(1.0, 1.0, poisson_sampling=True, expected_batch_size=7)
    with pytest.raises(ConfigError, match="7 of 6 examples"):
        client(frozen(grouped()), IMAGES, LABELS)


def example_norms(network: Network) -> Tensor:
    parts = example_gradients(network, network.params, IMAGES, LABELS)
    return torch.stack([part.detach().flatten(1).norm(dim=1) for part in parts.values()]).norm(dim=0)


def total_norm(update: dict[str, Tensor]) -> float:
    return float(torch.stack([part.norm() for part in update.values()]).norm())


def chi_square_band(n: int) -> tuple[float, float]:
    from scipy.stats import chi2

    low, high = chi2.ppf([0.0005, 0.9995], n)
    return float(low), float(high)
