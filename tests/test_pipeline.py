"""`audit()`: the whole line, and what it leaves untouched."""

import copy

import pytest
import torch
from torch import nn

import inversefed
from inversefed import FedAvg, FedSGD, ThreatModel, defenses, recipes
from inversefed.errors import ConfigError, InputError, UnsupportedNetworkError
from inversefed.specs import registry

SHAPE = (3, 8, 8)
QUICK = recipes.geiping(max_iterations=3)


def images(n: int = 1, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.rand((n, *SHAPE), generator=torch.Generator().manual_seed(0), dtype=dtype)


def test_a_smooth_network_gives_its_picture_away(tiny: nn.Module) -> None:
    report = inversefed.audit(
        tiny, images(), torch.tensor([2]), mean=0.5, std=0.25, attack=recipes.idlg(max_iterations=60), nulls=0
    )
    assert float(report.scores["peak_signal_noise_ratio"]) > 28
    assert float(report.scores["label_accuracy"]) == 1
    assert float(report.scores["peak_signal_noise_ratio"]) > float(
        report.baselines["constant"]["peak_signal_noise_ratio"]
    )


def test_the_report_holds_the_same_names_as_its_json(tiny: nn.Module) -> None:
    report = inversefed.audit(tiny, images(2), torch.tensor([2, 2]), attack=QUICK, seed=3, nulls=1)
    written = report.to_dict()
    assert {"scores", "attack", "seconds", "findings", "config", "scenario", "baselines", "status"} <= set(written)
    for name, values in report.scores.items():
        assert values.shape == (2,) and written["scores"][name] == pytest.approx(values.tolist())
    assert written["scenario"]["client"] == "FedSGD()" and written["scenario"]["threat_model"]["labels"] == "unknown"
    assert {"repeated-labels", "labels-hidden"} <= {finding["code"] for finding in written["findings"]}


def test_nothing_of_the_caller_changes(tiny: nn.Module) -> None:
    module = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.2), *tiny).train()
    before, modes = copy.deepcopy(module.state_dict()), [part.training for part in module.modules()]
    x, y = images(2), torch.tensor([0, 1])
    x_before, state = x.clone(), torch.get_rng_state()

    report = inversefed.audit(module, x, y, attack=QUICK, client=FedAvg(2, lr=0.1), nulls=1)

    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, x_before) and not x.requires_grad
    assert [part.training for part in module.modules()] == modes
    assert all(weight.grad is None for weight in module.parameters())
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert {"batchnorm-train-mode", "dropout-train-mode"} <= {finding.code for finding in report.findings}


def test_a_result_depends_on_its_seed_and_on_nothing_that_ran_before(tiny: nn.Module) -> None:
    first = inversefed.audit(tiny, images(), torch.tensor([1]), attack=QUICK, seed=5, nulls=0)
    torch.rand(7)
    second = inversefed.audit(tiny, images(), torch.tensor([1]), attack=QUICK, seed=5, nulls=0)
    other = inversefed.audit(tiny, images(), torch.tensor([1]), attack=QUICK, seed=6, nulls=0)
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, other.images)


def test_computation_runs_in_the_module_s_dtype(tiny: nn.Module) -> None:
    attack = recipes.idlg(max_iterations=100)
    report = inversefed.audit(tiny.double(), images(), torch.tensor([1]), attack=attack, nulls=0)
    assert report.images.dtype == torch.float64
    assert float(report.scores["peak_signal_noise_ratio"]) > 40


def test_the_attack_never_sees_labels_or_images(tiny: nn.Module) -> None:
    seen = []

    def spy(observation: object, generator: object, budget: object) -> object:
        seen.append(observation)
        return QUICK(observation, generator, budget)

    x = images()
    inversefed.audit(tiny, x, torch.tensor([1]), attack=spy, nulls=0)
    assert seen[0].labels is None
    tensors = [value for value in vars(seen[0]).values() if isinstance(value, torch.Tensor)]
    assert tensors == []
    inversefed.audit(tiny, x, torch.tensor([1]), attack=spy, threat=ThreatModel(labels="known"), nulls=0)
    assert seen[1].labels.tolist() == [1]


def test_defenses_are_applied_in_order_and_named(tiny: nn.Module) -> None:
    seen = []

    def spy(observation: object, generator: object, budget: object) -> object:
        seen.append(observation.update)
        return QUICK(observation, generator, budget)

    chain = (defenses.GaussianNoise(5.0), defenses.Clip(0.5))
    report = inversefed.audit(
        tiny,
        images(),
        torch.tensor([1]),
        attack=spy,
        defenses=chain,
        threat=ThreatModel(labels="known"),
        nulls=0,
    )
    norm = torch.cat([part.flatten() for part in seen[0].values()]).norm()
    assert float(norm) == pytest.approx(0.5, rel=1e-5)
    assert "defense-unknown-to-attack" in {finding.code for finding in report.findings}
    assert report.scenario["defenses"] == ["GaussianNoise(std=5.0)", "Clip(max_norm=0.5)"]


def test_pictures_are_paired_with_their_truths(tiny: nn.Module) -> None:
    x, y = images(3), torch.tensor([0, 1, 2])

    def shuffled(observation: object, generator: object, budget: object) -> object:
        order = torch.tensor([2, 0, 1])
        return inversefed.Reconstruction(x[order], y[order], 0.0, inversefed.Status.FINISHED)

    report = inversefed.audit(tiny, x, y, attack=shuffled)
    assert torch.equal(report.images, x) and report.labels.tolist() == [0, 1, 2]
    assert report.scores["peak_signal_noise_ratio"].tolist() == [200.0] * 3


def test_budget_and_callback_reach_the_attack(tiny: nn.Module) -> None:
    steps = []
    report = inversefed.audit(
        tiny, images(), torch.tensor([1]), attack=recipes.geiping(), max_iterations=4, nulls=0,
        on_step=lambda step: steps.append(step.iteration),
    )  # fmt: skip
    assert steps == [1, 2, 3, 4] and report.reconstruction.candidates[0].iterations == 4
    stopped = inversefed.audit(tiny, images(), torch.tensor([1]), attack=recipes.geiping(), time_budget=0.05, nulls=0)
    assert stopped.status == "stopped"


def test_a_loss_of_the_caller_s_own_is_what_the_client_minimizes(tiny: nn.Module) -> None:
    def squared(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (logits - nn.functional.one_hot(labels, 4)).square().mean()

    seen = []

    def spy(observation: object, generator: object, budget: object) -> object:
        seen.append(observation.update)
        return QUICK(observation, generator, budget)

    threat = ThreatModel(labels="known")
    inversefed.audit(tiny, images(), torch.tensor([1]), attack=spy, loss=squared, threat=threat, nulls=0)
    expected = torch.autograd.grad(squared(tiny(images()), torch.tensor([1])), list(tiny.parameters()))
    for ours, theirs in zip(seen[0].values(), expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"images": torch.rand(3, 8, 8)}, InputError, r"\[n, c, h, w\]"),
        ({"images": torch.rand(1, 12)}, InputError, "images are"),
        ({"images": torch.zeros(1, 3, 8, 8, dtype=torch.uint8)}, InputError, "floating-point"),
        ({"images": [[1.0]]}, InputError, "got list"),
        ({"images": torch.randn(1, 3, 8, 8) * 3}, InputError, r"\[0, 1\]"),
        ({"images": torch.full((1, 3, 8, 8), float("nan"))}, InputError, r"\[0, 1\]"),
        ({"images": torch.rand(0, 3, 8, 8), "labels": torch.zeros(0).long()}, InputError, "at least one example"),
        ({"images": torch.rand(1, 3, 9, 9)}, UnsupportedNetworkError, "cannot run on images"),
        ({"labels": torch.tensor([4])}, InputError, r"0\.\.3"),
        ({"labels": torch.tensor([-1])}, InputError, r"0\.\.3"),
        ({"labels": torch.tensor([0, 1])}, InputError, "as many labels"),
        ({"labels": torch.tensor([0.5])}, InputError, "class indices"),
        ({"max_iterations": 0}, ConfigError, "at least one iteration"),
        ({"time_budget": 0.0}, ConfigError, "some time"),
        ({"mean": [0.1, 0.2]}, InputError, "one a channel"),
        ({"client": FedAvg(batch_size=2)}, ConfigError, "larger than the client's 1 examples"),
        ({"labels": 3}, InputError, "integer tensor"),
        ({"client": FedSGD}, ConfigError, "client must be a value"),
        ({"client": "FedSGD"}, ConfigError, "client must be a value"),
        ({"loss": nn.CrossEntropyLoss}, ConfigError, "loss must be a value"),
        (
            {"loss": nn.CrossEntropyLoss(reduction="none"), "images": images(2), "labels": torch.tensor([1, 2])},
            UnsupportedNetworkError,
            r"one real number for a batch.*gives \[2\]",
        ),
        ({"threat": "honest"}, ConfigError, "ThreatModel"),
        ({"seed": 2**63}, ConfigError, "seed"),
        ({"max_iterations": 1.5}, ConfigError, "at least one iteration"),
        ({"defenses": (defenses.Clip,)}, ConfigError, "defenses must be a value"),
        ({"mean": "a"}, InputError, "mean must be numbers"),
        ({"attack": "geiping"}, ConfigError, "recipes.geiping"),
        ({"attack": recipes.geiping}, ConfigError, "called"),
        ({"defenses": defenses.Clip(1.0)}, ConfigError, "tuple of values"),
        ({"attack": recipes.linear()}, UnsupportedNetworkError, "no linear layer"),
    ],
)
def test_bad_input_is_one_clear_error(
    tiny: nn.Module, unchecked: None, arguments: dict, error: type[Exception], message: str
) -> None:
    given = {"images": images(), "labels": torch.tensor([1]), "attack": QUICK} | arguments
    with pytest.raises(error, match=message):
        inversefed.audit(tiny, **given)


def test_batchnorm_in_train_mode_that_sees_one_value_is_named() -> None:
    module = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(192), nn.Linear(192, 4)).train()
    with pytest.raises(UnsupportedNetworkError, match="more than 1 value per channel"):
        inversefed.audit(module, images(), torch.tensor([1]), attack=QUICK)


def test_weights_that_are_not_finite_are_named(tiny: nn.Module) -> None:
    tiny[0].weight.data[0] = float("nan")
    with pytest.raises(InputError, match="NaN or infinite"):
        inversefed.audit(tiny, images(), torch.tensor([1]), attack=QUICK)


def test_labels_that_no_rule_finds_are_optimized_with_the_images() -> None:
    def squared(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (logits - (labels if labels.dim() == 2 else nn.functional.one_hot(labels, 4))).square().mean()

    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 4, bias=False))
    report = inversefed.audit(module, images(2), torch.tensor([1, 2]), attack=QUICK, loss=squared, nulls=0)
    finding = next(finding for finding in report.findings if finding.code == "labels-hidden")
    assert "optimized together" in finding.message


@pytest.mark.parametrize("client", [FedSGD(), FedAvg(local_steps=3, lr=0.01)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_server_does_not_hold_the_client_s_dropout_masks(client: object, seed: int) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.Tanh(), nn.Dropout(0.5), nn.Linear(64, 4)).train()
    x, y, seen = images(), torch.tensor([1]), []

    def spy(observation: object, generator: object, budget: object) -> object:
        seen.append(observation)
        return QUICK(observation, generator, budget)

    inversefed.audit(module, x, y, attack=spy, seed=seed, client=client, nulls=0)
    simulated = client(seen[0].network, x, y)
    assert all(not torch.equal(part, seen[0].update[name]) for name, part in simulated.items())


def test_randomness_that_does_not_care_for_the_mode_is_a_function_as_well() -> None:
    class Always(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(192, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(nn.functional.dropout(x.flatten(1), 0.5, training=True))

    module, state = Always().eval(), torch.get_rng_state()
    first, second = (inversefed.audit(module, images(), torch.tensor([1]), attack=QUICK, nulls=1) for _ in range(2))
    assert torch.equal(first.images, second.images) and torch.equal(torch.get_rng_state(), state)


def test_pictures_of_one_pixel_s_width_have_no_variation_across(tiny: nn.Module) -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(18, 4))
    report = inversefed.audit(module, torch.rand(1, 3, 6, 1), torch.tensor([1]), attack=QUICK, nulls=1)
    assert report.status == "finished"


def test_the_default_is_the_best_recipe(tiny: nn.Module) -> None:
    report = inversefed.audit(tiny, images(), torch.tensor([1]), max_iterations=1, client=FedSGD(), nulls=0)
    assert report.attack == "best()" and report.scenario["attack"] == repr(recipes.best())
    assert registry.build("attack", report.scenario["attack"]) == recipes.best()
