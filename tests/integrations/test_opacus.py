"""An update of Opacus' own training is audited with the client that made it, epsilon and bound beside what leaked."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from opacus import GradSampleModule, PrivacyEngine
from opacus.optimizers import DPOptimizer
from scipy.stats import chi2, kstest, norm
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from inversefed import DPSGD, Batch, LocalAdam, LocalSGD, Scenario, ThreatModel, defenses, freeze, recipes
from inversefed.errors import ConfigError, InputError
from inversefed.fl.network import Network
from inversefed.integrations.opacus import noised_gradient, plain_module, read_training, without_prefix
from inversefed.pipeline import audit_observation
from inversefed.specs.sources import Sources
from inversefed.updates.metadata import Metadata
from inversefed.updates.update import Update, write_update
from inversefed.zoo import networks, pictures

pytestmark = [
    pytest.mark.filterwarnings("ignore:Full backward hook is firing"),
    pytest.mark.filterwarnings("ignore:Secure RNG turned off"),
    pytest.mark.filterwarnings("ignore:Optimal order is the"),
    pytest.mark.filterwarnings("ignore:GDP accounting is experimental"),
]
NAMES = ("astronaut", "chelsea", "coffee", "rocket", "astronaut", "chelsea", "coffee")
SGD, ADAM = torch.optim.SGD, torch.optim.Adam


@pytest.fixture(scope="module")
def private() -> Batch:
    images = torch.stack([pictures.photo(name, (3, 16, 16)) for name in NAMES])
    images[4:] = images[4:].flip(-1)
    return Batch(images, torch.tensor([3, 1, 0, 2, 2, 1, 3]))


def grouped() -> nn.Module:
    torch.manual_seed(3)
    head = nn.Linear(6 * 64, 4)
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.GroupNorm(3, 6), nn.ReLU(), nn.Flatten(), head)


def frozen(module: nn.Module) -> Network:
    return freeze(module, (3, 16, 16), mean=0.5, std=0.25)


class Training:
    """Opacus' own: engine, wrapped module, optimizer and loader of three batches, and steps on what is drawn."""

    def __init__(
        self,
        private: Batch,
        noise: float = 0.0,
        inner: Callable = SGD,
        engine: PrivacyEngine | None = None,
        make: Callable[[], nn.Module] = grouped,
        poisson_sampling: bool = True,
        **settings: object,
    ) -> None:
        module = make()
        self.engine = engine or PrivacyEngine()
        loader = DataLoader(
            TensorDataset(private.images, private.labels), batch_size=3, generator=torch.Generator().manual_seed(4)
        )
        self.module, self.optimizer, self.loader = self.engine.make_private(
            module=module,
            optimizer=inner(module.parameters(), **({"lr": 0.2} | settings)),
            data_loader=loader,
            noise_multiplier=noise,
            max_grad_norm=0.7,
            poisson_sampling=poisson_sampling,
            noise_generator=torch.Generator().manual_seed(8),
        )

    def step(self, images: Tensor, labels: Tensor) -> None:
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.module((images - 0.5) / 0.25), labels).backward()
        self.optimizer.step()


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-6) -> None:
    assert list(found) == list(expected)
    for name, part in expected.items():
        assert float((found[name] - part).detach().abs().max()) <= atol, name


def test_a_step_of_a_privacy_engine_is_audited_with_epsilon_bound_and_leakage_in_one_report(private: Batch) -> None:
    training = Training(private, noise=0.8)
    drawn = next(batch for batch in training.loader if len(batch[0]))
    before = plain_module(training.module)
    training.step(*drawn)
    told = read_training(training.module, training.optimizer, training.engine, num_examples=len(drawn[0]))
    seen = told.observed(frozen(before), noised_gradient(training.module))
    report = audit_observation(
        seen,
        truth=Batch(*drawn),
        client=told.client,
        findings=told.findings,
        max_iterations=3,
        nulls=1,
        time_budget=8.0,
    )
    assert told.client == DPSGD(0.8, 0.7, expected_batch_size=2, lr=0.2, accounting=told.client.accounting)
    assert seen.client == DPSGD(0.0, 0.7, expected_batch_size=2, lr=0.2, accounting=told.client.accounting)
    epsilon = training.engine.get_epsilon(1e-5)
    assert told.spent is not None and told.spent.accountant == "prv"
    assert told.spent.epsilon == pytest.approx(epsilon, rel=1e-9)
    privacy = report.scenario["privacy"]
    assert privacy["cumulative"]["epsilon"] == pytest.approx(epsilon, rel=1e-9)
    assert epsilon < privacy["per_release"]["epsilon"]
    assert report.bounds is not None and report.bounds.per_release.mechanism is not None
    assert report.bounds.per_release.mechanism.mu == pytest.approx(1 / 0.8)
    text = " ".join(report.summary().split())
    assert f"Opacus' PrivacyEngine, all steps so far: epsilon {epsilon:.3g} at delta 1e-05 (PRV accountant" in text
    assert f"Epsilon of this update: {privacy['per_release']['epsilon']:.3g} at delta 1e-05, by the PRV" in text
    assert "A chance of 0.01: at most" in text and "Best picture measured" in text


def test_without_noise_the_same_step_gives_its_picture_away(private: Batch) -> None:
    def linear() -> nn.Module:
        torch.manual_seed(5)
        return nn.Sequential(nn.Flatten(), nn.Linear(768, 4))

    training, one = Training(private, make=linear), (private.images[:1], private.labels[:1])
    before = plain_module(training.module)
    training.step(*one)
    told = read_training(training.module, training.optimizer, num_examples=1)
    report = audit_observation(
        told.observed(frozen(before), noised_gradient(training.module)),
        truth=Batch(*one), client=told.client, attack=recipes.linear(), nulls=0,
    )  # fmt: skip
    assert float(report.scores["peak_signal_noise_ratio"]) > 80 and report.bounds is None
    assert any("epsilon is infinite" in finding.message for finding in report.findings)


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_gradient_is_ours_whatever_its_step_drew(private: Batch, size: int) -> None:
    training = Training(private)
    before, batch = plain_module(training.module), (private.images[:size], private.labels[:size])
    training.step(*batch)
    told = read_training(training.module, training.optimizer, training.engine, num_examples=size)
    assert told.client.expected_batch_size == 2
    assert_equal(told.client(frozen(before), *batch), noised_gradient(training.module))


INNER = {
    "sgd": (SGD, {}, LocalSGD()),
    "nesterov and decay": (
        SGD, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.01}, LocalSGD(0.8, 0.01, nesterov=True)
    ),
    "adam": (ADAM, {"lr": 0.01, "betas": (0.8, 0.95)}, LocalAdam(0.8, 0.95)),
}  # fmt: skip


@pytest.mark.parametrize("name", INNER)
def test_local_steps_of_poisson_samples_are_ours_where_the_draws_are(private: Batch, name: str) -> None:
    inner, settings, rule = INNER[name]
    # Adam divides by small moments, and float32's rounding with them: there it is compared in float64.
    dtype = torch.float64 if inner is ADAM else torch.float32
    private = Batch(private.images.to(dtype), private.labels)
    training = Training(private, inner=inner, make=lambda: grouped().to(dtype), **settings)
    before = plain_module(training.module)
    start = {key: weight.detach().clone() for key, weight in before.named_parameters()}
    network = frozen(before).with_masks(12345)
    client = read_training(
        training.module, training.optimizer, training.engine, num_examples=7, sends="delta", local_steps=6
    ).client
    assert client.poisson_sampling and client.optimizer == rule
    client = replace(client, sample_rate=1 / 3)  # the engine has taken no step yet, and says no rate
    parts = list(client._parts(7, client._generator(network)))
    sizes = [len(private.images[part]) for part in parts]
    assert len(set(sizes)) > 1 and any(size != client.expected_batch_size for size in sizes)
    for part in parts:
        training.step(private.images[part], private.labels[part])
    told = read_training(
        training.module, training.optimizer, training.engine, num_examples=7, sends="delta", local_steps=6
    )
    assert replace(told.client, accounting=client.accounting) == client
    after = without_prefix(dict(training.module.state_dict()))
    change = {key: after[key] - value for key, value in start.items()}
    assert_equal(told.client(network, private.images, private.labels), change)
    weights = read_training(
        training.module, training.optimizer, training.engine, num_examples=7, sends="weights", local_steps=6
    )
    seen = weights.observed(network, training.module.state_dict())
    assert list(seen.update) == list(start) and not seen.client.poisson_sampling
    assert_equal(dict(seen.update), after)


def test_the_mean_of_poisson_samples_is_what_the_server_simulates(private: Batch) -> None:
    client = DPSGD(0.0, 0.7, expected_batch_size=2, poisson_sampling=True, sample_rate=1 / 3, lr=0.5, sends="delta")
    network = frozen(grouped())
    believed = client.believed(ThreatModel(), 7, 0)
    assert (believed.expected_batch_size, believed.sample_rate, believed.poisson_sampling) == (6, 0.0, False)
    mean = believed(network, private.images, private.labels)
    draws = [client(network.with_masks(seed), private.images, private.labels) for seed in range(1, 400)]
    for name, part in mean.items():
        found = torch.stack([draw[name] for draw in draws])
        error = found.std(0) / math.sqrt(len(draws))
        assert float(((found.mean(0) - part).abs() / (error + 1e-9)).max()) < 5, name
    gradient = client.as_gradient(network, mean, 7)
    assert_equal(gradient, DPSGD(0.0, 0.7)(network, private.images, private.labels))


def test_the_noise_is_normal_and_as_loud_as_opacus_own(private: Batch) -> None:
    training = Training(private, noise=1.1)
    before, batch = plain_module(training.module), (private.images[:3], private.labels[:3])
    training.step(*batch)
    told = read_training(training.module, training.optimizer, training.engine, num_examples=3)
    network, quiet = frozen(before), told.observed(frozen(before), noised_gradient(training.module)).client
    clean = quiet(network, *batch)
    std = told.client.noise_std(3)
    assert std == pytest.approx(1.1 * 0.7 / 2)
    theirs = noised_gradient(training.module)
    for noisy in (theirs, told.client(network.with_masks(2**40 + 1), *batch)):
        noise = torch.cat([(noisy[name] - clean[name]).flatten() for name in clean]).double()
        low, high = chi2.ppf([0.0005, 0.9995], noise.numel())
        assert low < float(noise.square().sum()) / std**2 < high
        assert kstest(noise.numpy() / std, norm.cdf).pvalue > 0.01


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
def test_epsilon_is_the_engine_s_own_by_its_name(private: Batch, accountant: str) -> None:
    training = Training(private, noise=1.3, engine=PrivacyEngine(accountant=accountant))
    training.step(private.images[:3], private.labels[:3])
    training.step(private.images[3:], private.labels[3:])
    training.optimizer.noise_multiplier = 2.0  # as a scheduler does
    training.step(private.images[3:], private.labels[3:])
    told = read_training(training.module, training.optimizer, training.engine, num_examples=4, target_delta=1e-4)
    assert told.spent is not None and told.spent.steps == 3 and told.client.noise_multiplier == 2.0
    assert told.spent.accountant == accountant and "changed on the way" in told.spent.note
    assert told.spent.epsilon == pytest.approx(training.engine.get_epsilon(1e-4), rel=1e-9)
    several = read_training(
        training.module, training.optimizer, training.engine, num_examples=7, sends="delta", local_steps=2
    )
    assert several.client.noise_multiplier == 1.3  # the least of the steps in it


def test_for_an_accountant_that_may_say_too_little_another_stands_in(private: Batch) -> None:
    training = Training(private, noise=1.3, engine=PrivacyEngine(accountant="gdp"))
    training.step(private.images[:3], private.labels[:3])
    told = read_training(training.module, training.optimizer, training.engine, num_examples=3)
    assert told.spent is not None and told.spent.accountant == "rdp"
    assert told.spent.epsilon > training.engine.get_epsilon(1e-5)
    assert "GDP, is an approximation" in told.findings[0].message


def test_where_prv_would_not_end_rdp_stands_in_and_it_is_said(private: Batch) -> None:
    training = Training(private, noise=0.002)
    training.step(private.images[:3], private.labels[:3])
    told = read_training(training.module, training.optimizer, training.engine, num_examples=3)
    assert told.spent is not None and told.spent.accountant == "rdp" and "RDP is an upper bound" in told.spent.note
    assert "RDP is an upper bound" in told.findings[0].message


def test_without_poisson_sampling_no_sampling_is_credited(private: Batch) -> None:
    training = Training(private, noise=1.0, poisson_sampling=False)
    for images, labels in [*training.loader] * 2:
        training.step(images, labels)
    told = read_training(
        training.module, training.optimizer, training.engine, num_examples=7, sends="delta", local_steps=6, batch_size=3
    )
    assert not told.client.poisson_sampling and told.client.accounting.sample_rate == 1.0
    assert told.findings[0].level == "warning" and "no epsilon this low is proved" in told.findings[0].message


def test_moments_from_before_the_update_are_told(private: Batch) -> None:
    training = Training(private, inner=ADAM, lr=0.01)
    for _ in range(3):
        training.step(private.images, private.labels)
    told = read_training(
        training.module, training.optimizer, training.engine, num_examples=7, sends="delta", local_steps=2
    )
    assert any(finding.code == "optimizer" and "1 steps before" in finding.message for finding in told.findings)


def test_what_is_not_opacus_or_not_flat_is_refused_by_its_name(private: Batch) -> None:
    training = Training(private)
    with pytest.raises(ConfigError, match="GradSampleModule; got Sequential"):
        read_training(grouped(), training.optimizer, num_examples=1)
    with pytest.raises(ConfigError, match="PrivacyEngine; got str"):
        read_training(training.module, training.optimizer, "engine", num_examples=1)
    with pytest.raises(ConfigError, match="GradSampleModule of Opacus; got Sequential"):
        plain_module(grouped())
    for settings in ({"clipping": "per_layer", "max_grad_norm": [0.1] * 6}, {"grad_sample_mode": "ghost"}):
        module = grouped()
        made = PrivacyEngine().make_private(
            module=module,
            optimizer=SGD(module.parameters(), lr=0.1),
            data_loader=training.loader,
            noise_multiplier=1.0,
            **({"max_grad_norm": 1.0} | settings),
        )
        with pytest.raises(ConfigError, match=f"clipping='flat'.*got {type(made[1]).__name__}"):
            read_training(made[0], made[1], num_examples=1)
    groups = GradSampleModule(grouped())
    for inner in (
        torch.optim.RMSprop(groups.parameters()),
        ADAM(groups.parameters(), amsgrad=True),
        SGD([{"params": [weight], "lr": 1.0 + at // 5} for at, weight in enumerate(groups.parameters())]),
    ):
        optimizer = DPOptimizer(inner, noise_multiplier=1.0, max_grad_norm=1.0, expected_batch_size=2)
        with pytest.raises(ConfigError, match=f"got {type(inner).__name__}"):
            read_training(groups, optimizer, num_examples=2)


def test_a_gradient_that_is_gone_is_refused(private: Batch) -> None:
    training = Training(private)
    with pytest.raises(InputError, match=r"after optimizer\.step"):
        noised_gradient(training.module)


def test_a_copy_has_neither_opacus_hooks_nor_its_traces(private: Batch) -> None:
    training = Training(private)
    training.step(private.images, private.labels)
    copied = plain_module(training.module)
    assert list(copied.state_dict()) == list(grouped().state_dict())
    for layer in copied.modules():
        assert not layer._forward_hooks and not layer._backward_hooks
    assert not any("grad_sample" in vars(weight) for weight in copied.parameters())
    training.step(private.images, private.labels)  # and the training goes on


def test_a_file_with_opacus_names_is_attacked_without_the_client_s_draws(tmp_path: Path) -> None:
    module = networks.build("LeNetZhu", seed=0)
    network, client = freeze(module, (3, 32, 32), mean=0.5, std=0.25), DPSGD(0.8, 0.7, expected_batch_size=2)
    sent = client(network.with_masks(5), pictures.photo("coffee", (3, 32, 32))[None], torch.tensor([3]))
    file = tmp_path / "update.safetensors"
    named = {f"_module.{name}": part.contiguous() for name, part in sent.items()}
    write_update(file, Update(named, Metadata(kind="gradient", num_examples=1)))
    scenario = Scenario(Sources(network="LeNetZhu", update=file), client=client, threat=ThreatModel(defenses="known"))
    seen = scenario.loaded().observe()
    assert list(seen.update) == list(sent) and seen.client == replace(client, noise_multiplier=0.0)
    assert seen.defenses == (defenses.GaussianNoise(0.8 * 0.7 / 2),)
    hidden = replace(scenario, threat=ThreatModel()).loaded()
    facts, findings = hidden.described(hidden.observe())
    assert hidden.observe().defenses == () and facts["privacy"]["per_release"]["noise_multiplier"] == 0.8
    assert any("This release: epsilon" in finding.message for finding in findings)
