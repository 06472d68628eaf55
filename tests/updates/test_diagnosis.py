"""What is good is let through, and every usual mistake is named, over networks, kinds of update and batch sizes."""

import copy
import itertools
import re
from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from inversefed.errors import InputError, UpdateMismatchError
from inversefed.fl.batchnorm import sent_buffers
from inversefed.fl.clients import FedAvg, FedSGD
from inversefed.fl.clients.local_optimizers import LocalAdam, LocalSGD
from inversefed.fl.defenses import Clip, Context, GaussianNoise, LaplaceNoise, TopK
from inversefed.fl.losses import CrossEntropy
from inversefed.fl.network import Network, freeze
from inversefed.networks.natural_noise import natural_noise
from inversefed.specs import registry
from inversefed.types import Batch, Finding, Params
from inversefed.updates.diagnosis import CODES, check_example, diagnose, require_usable, self_test
from inversefed.updates.metadata import Metadata
from inversefed.updates.update import Update, as_observation

SHAPE, CLASSES = (3, 8, 8), 6


def smooth() -> nn.Module:
    layers = (nn.Conv2d(3, 12, 3, 1, 1), nn.Sigmoid(), nn.Conv2d(12, 12, 3, 2, 1), nn.Sigmoid())
    module = nn.Sequential(*layers, nn.Conv2d(12, 12, 3, 1, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(192, CLASSES))
    for weight in module.parameters():
        nn.init.uniform_(weight, -0.5, 0.5)
    return module


def rectified() -> nn.Module:
    layers = (nn.Conv2d(3, 10, 3, 1, 1), nn.ReLU(), nn.Conv2d(10, 10, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2))
    return nn.Sequential(*layers, nn.Conv2d(10, 10, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(160, CLASSES))


def normalized() -> nn.Module:
    first = (nn.Conv2d(3, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, 2, 1))
    module = nn.Sequential(*first, nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(192, CLASSES))
    # As a trained network has them: scales and offsets of their own.
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
    return module


def perceptron() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(192, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, CLASSES)
    )


def grouped() -> nn.Module:
    layers = (nn.Conv2d(3, 12, 3, 1, 1), nn.GroupNorm(3, 12), nn.ReLU(), nn.Conv2d(12, 10, 3, 2, 1), nn.ReLU())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(160, CLASSES))


@pytest.fixture(autouse=True)
def every_check_is_made(request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture):
    """A check that raises is passed over with a line in the log; only a network that raises may bring that about."""
    yield
    said = [record.getMessage() for record in caplog.records if record.name.startswith("inversefed.updates.diagnosis")]
    assert "foreign" in request.node.name or not said, said


BUILDERS = {each.__name__: each for each in (smooth, rectified, normalized, perceptron, grouped)}


def build(name: str, seed: int = 0, mode: str = "eval", mean: float = 0.5, std: float = 0.25) -> Network:
    torch.manual_seed(seed)
    return freeze(BUILDERS[name]().train(mode == "train"), SHAPE, mean=mean, std=std)


def batch(network: Network, count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    labels = torch.randint(CLASSES, (count,), generator=torch.Generator().manual_seed(seed))
    return natural_noise(network, count, seed=1000 + seed), labels


def gradient(network: Network, count: int, seed: int = 0) -> tuple[Params, Metadata]:
    return FedSGD()(network, *batch(network, count, seed)), Metadata(kind="gradient", num_examples=count)


def delta(network: Network, count: int, steps: int = 2, lr: float = 1e-3, momentum: float = 0.0, seed: int = 0):
    client = FedAvg(local_steps=steps, lr=lr, optimizer=LocalSGD(momentum=momentum))
    told = {"learning_rate": lr, "local_steps": steps, "num_examples": count, "momentum": momentum or None}
    return client(network, *batch(network, count, seed)), Metadata(kind="weight_delta", **told)


def alarms(findings: tuple[Finding, ...]) -> dict[str, str]:
    """Code to level, of all that is above an info."""
    assert all(finding.code in CODES and finding.message for finding in findings)
    return {finding.code: finding.level for finding in findings if finding.level != "info"}


def negated(update: Params) -> Params:
    return {name: -part for name, part in update.items()}


def exchanged(update: Params, first: str, second: str) -> Params:
    return {**update, first: update[second], second: update[first]}


# What is good


@pytest.mark.parametrize("count", [1, 8, 64])
@pytest.mark.parametrize("name", BUILDERS)
def test_a_good_update_of_any_kind_has_no_finding_above_info(name: str, count: int) -> None:
    network = build(name, seed=count)
    update, told = gradient(network, count)
    assert not alarms(diagnose(network, update, told))
    assert not alarms(diagnose(network, {n: part.bfloat16() for n, part in update.items()}, told))
    double = network.to(torch.float64)
    assert not alarms(diagnose(double, *gradient(double, count)))
    summed = freeze(network.module, SHAPE, mean=0.5, std=0.25, loss=CrossEntropy("sum"))
    told = replace(told, loss_reduction="sum")
    assert not alarms(diagnose(network, FedSGD()(summed, *batch(network, count)), told))
    for steps, lr, momentum in ((1, 1e-3, 0.0), (3, 1e-2, 0.9)):
        update, told = delta(network, count, steps, lr, momentum)
        assert not alarms(diagnose(network, update, told)), (steps, lr, momentum)
        new = {n: network.params[n].detach() + part for n, part in update.items()}
        assert not alarms(diagnose(network, new, replace(told, kind="new_weights"))), (steps, lr, momentum)


@pytest.mark.parametrize("count", [4, 16])
def test_a_good_update_in_train_mode_has_no_finding_above_info(count: int) -> None:
    network = build("normalized", mode="train")
    for update, told in (gradient(network, count), delta(network, count, 3, 1e-2)):
        found = diagnose(network, update, replace(told, bn_mode="train"))
        assert not alarms(found)
        assert "batchnorm-train-mode" in [finding.code for finding in found]
        # The network may stand in eval mode: what is stated counts.
        still = build("normalized", mode="eval")
        assert not alarms(diagnose(still, update, replace(told, bn_mode="train")))


@pytest.mark.slow
def test_no_false_alarm_over_more_than_a_hundred_good_updates() -> None:
    wrong = []
    for seed, (name, count) in enumerate(itertools.product(BUILDERS, (1, 2, 4, 6, 12, 20, 30))):
        for number in range(4):
            network = build(name, seed=100 * seed + number)
            made = delta(network, count, 1 + number, 3e-3, seed=number) if number else gradient(network, count, seed)
            found = alarms(diagnose(network, *made))
            wrong += [(name, count, number, found)] if found else []
    assert not wrong


# What is wrong


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("count", [1, 2])
def test_a_flipped_sign_is_an_error(name: str, count: int) -> None:
    network = build(name)
    update, told = gradient(network, count)
    found = diagnose(network, negated(update), told)
    assert alarms(found)["sign"] == "error"
    assert "--kind weight_delta" in found[0].message
    update, told = delta(network, count)
    assert alarms(diagnose(network, negated(update), told))["sign"] == "error"
    # Weights before and after in each other's place.
    after = build(name)
    after = freeze(after.module, SHAPE, mean=0.5, std=0.25)
    params = {n: (network.params[n] + update[n]).detach().requires_grad_() for n in update}
    swapped = replace(after, params=params)
    found = diagnose(swapped, {n: w.detach() for n, w in network.params.items()}, replace(told, kind="new_weights"))
    assert "sign" in alarms(found) and any("--after" in finding.message for finding in found)


@pytest.mark.parametrize("factor", [100, 10, 0.1, 0.01])
@pytest.mark.parametrize("name", BUILDERS)
def test_a_learning_rate_that_cannot_have_made_the_delta_is_named(name: str, factor: float) -> None:
    network = build(name)
    for count in (1, 3):
        update, told = delta(network, count)
        found = diagnose(network, update, replace(told, learning_rate=1e-3 * factor))
        assert "scale" in alarms(found), count
        assert "--learning-rate" in next(finding.message for finding in found if finding.code == "scale")


@pytest.mark.parametrize(("name", "count"), [("rectified", 8), ("rectified", 16), ("perceptron", 8)])
def test_sign_and_scale_of_many_examples_show_in_counts_that_are_whole(name: str, count: int) -> None:
    """With more examples than classes no entry of the head's bias need be negative, and no gradient is too small."""
    for seed in range(3):
        network = build(name, seed)
        update, told = delta(network, count, 1, seed=seed)
        assert not alarms(diagnose(network, update, told))
        assert alarms(diagnose(network, negated(update), told)).keys() & {"sign", "scale"}
        found = diagnose(network, update, replace(told, learning_rate=1e-2))
        assert alarms(found) == {"scale": "warning"}, seed
        assert "--learning-rate" in next(finding.message for finding in found if finding.code == "scale")
    # Nobody says so of labels that are no whole numbers by intention.
    softened = freeze(network.module, SHAPE, mean=0.5, std=0.25, loss=CrossEntropy(label_smoothing=0.2))
    images, labels = batch(network, count)
    update = FedSGD()(softened, images, labels)
    assert not alarms(diagnose(softened, update, Metadata(kind="gradient", num_examples=count)))


def test_an_unknown_learning_rate_is_named_with_an_estimate() -> None:
    update, told = delta(build("smooth"), 1)
    found = diagnose(build("smooth"), update, replace(told, learning_rate=None))
    (scale,) = [finding for finding in found if finding.level == "warning"]
    assert scale.code == "scale" and "--learning-rate" in scale.message
    assert scale.evidence["estimate"] == pytest.approx(2e-3, rel=0.1)


def test_a_summed_loss_is_named_by_its_option() -> None:
    network = build("rectified")
    summed = freeze(network.module, SHAPE, mean=0.5, std=0.25, loss=CrossEntropy("sum"))
    found = diagnose(network, FedSGD()(summed, *batch(network, 4)), Metadata(kind="gradient", num_examples=4))
    assert alarms(found) == {"scale": "error"} and "--loss-reduction sum" in found[0].message


def test_a_kind_that_the_tensors_contradict_is_an_error() -> None:
    network = build("rectified")
    update, told = delta(network, 2)
    new = {n: network.params[n].detach() + part for n, part in update.items()}
    found = diagnose(network, new, told)
    assert alarms(found) == {"scale": "error"} and "--after" in found[0].message
    found = diagnose(network, update, replace(told, kind="new_weights"))
    assert alarms(found) == {"scale": "error"} and "--kind weight_delta" in found[0].message


@pytest.mark.parametrize(
    ("name", "first", "second"),
    [
        ("smooth", "2.weight", "4.weight"),
        ("smooth", "2.bias", "4.bias"),
        ("smooth", "0.bias", "2.bias"),
        ("rectified", "2.weight", "5.weight"),
        ("rectified", "0.bias", "2.bias"),
        ("normalized", "1.weight", "1.bias"),
        ("normalized", "1.weight", "4.weight"),
        ("normalized", "0.bias", "3.bias"),
        ("perceptron", "1.bias", "3.bias"),
        ("grouped", "1.weight", "1.bias"),
        ("grouped", "0.bias", "1.weight"),
    ],
)
def test_two_tensors_in_each_others_place_are_named(name: str, first: str, second: str) -> None:
    network = build(name)
    for count in (1, 8):
        update, stated = gradient(network, count)
        found = diagnose(network, exchanged(update, first, second), stated)
        assert "names" in alarms(found), count
        places = next(finding for finding in found if finding.code == "names")
        told = [places.evidence.get("exchanged"), *places.evidence.get("or", [])]
        assert sorted([first, second]) in told, (count, places)


def test_an_update_of_other_weights_is_named() -> None:
    for name in ("rectified", "normalized", "perceptron"):
        update, told = gradient(build(name, seed=1), 2)
        found = diagnose(build(name, seed=2), update, told)
        assert "names" in alarms(found)
        assert any("--weights" in finding.message for finding in found)


def test_names_shapes_and_values_that_do_not_fit_are_errors() -> None:
    network = build("perceptron")
    update, told = gradient(network, 1)
    renamed = {f"module.{n}": part for n, part in update.items()}
    (found,) = diagnose(network, renamed, told)
    assert (
        found.code == "names" and found.level == "error" and found.evidence["renamed"]["1.weight"] == "module.1.weight"
    )
    (found,) = diagnose(network, {n: part for n, part in update.items() if n != "3.bias"}, told)
    assert found.code == "names" and found.evidence["missing"] == ["3.bias"]
    (found,) = diagnose(network, {**update, "<script>": torch.ones(2)}, told)
    assert found.code == "names" and found.evidence["extra"] == ["<script>"]
    (found,) = diagnose(network, {**update, "1.weight": update["1.weight"].T}, told)
    assert found.code == "shapes" and "transpose" in found.message
    (found,) = diagnose(network, {**update, "1.bias": update["1.bias"] / 0}, told)
    assert found.code == "non-finite" and found.level == "error"
    with pytest.raises(UpdateMismatchError, match="names do not fit"):
        require_usable(diagnose(network, renamed, told))
    with pytest.raises(InputError, match="sign"):
        require_usable(diagnose(network, negated(update), told))
    require_usable(diagnose(network, update, told))


@pytest.mark.parametrize(
    "part",
    [
        torch.zeros(40).to_sparse(),
        torch.zeros(40, dtype=torch.complex64),
        torch.zeros(40, device="meta"),
        torch.zeros(1).expand(10**12),
        torch.zeros(40, dtype=torch.bool),
        torch.zeros(()),
        torch.zeros(0),
        None,
        "text",
    ],
    ids=range(9),
)
def test_no_tensor_makes_the_diagnosis_raise(part: object, unchecked: None) -> None:
    network = build("perceptron")
    update, told = gradient(network, 1)
    assert diagnose(network, {**update, "1.bias": part}, told)[0].level == "error"
    assert diagnose(network, {}, told)[0].code == "names"


def test_one_prefix_before_all_names_is_named_as_such() -> None:
    network = build("perceptron")
    update, told = gradient(network, 1)
    (found,) = diagnose(network, {f"model.{name}": part for name, part in update.items()} | {"x": torch.ones(1)}, told)
    assert found.code == "names" and "under 'model.': take that off" in found.message
    outer = freeze(nn.Sequential(network.module), SHAPE)
    (found,) = diagnose(outer, update, told)
    assert found.code == "names" and "under '0.': put that before" in found.message


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64])
def test_whole_numbers_in_place_of_parameters_are_an_error(dtype: torch.dtype) -> None:
    network = build("normalized")
    update, told = gradient(network, 1)
    whole = {name: (part / part.abs().max() * 100).round().to(dtype) for name, part in update.items()}
    (found,) = diagnose(network, whole, told)
    assert (found.code, found.level) == ("quantized", "error") and "floats first" in found.message
    with pytest.raises(UpdateMismatchError, match="floating-point"):
        require_usable((found,))
    buffers = dict(network.module.named_buffers())
    assert not alarms(diagnose(network, {**update, **buffers}, told)), "a counter is made of whole numbers"


def test_no_scale_and_no_statement_makes_the_diagnosis_raise() -> None:
    network = build("perceptron")
    update, told = gradient(network, 1)
    for scale in (1e-300, 1e300, 1e-40, 1e29, 0.0):
        assert diagnose(network, {n: part.double() * scale for n, part in update.items()}, told), scale
    told = Metadata(kind="weight_delta", learning_rate=1e-9, local_steps=1000, momentum=0.999, num_examples=1000)
    assert diagnose(network, update, told)


def test_another_mode_of_batchnorm_is_named() -> None:
    train, still = build("normalized", mode="train"), build("normalized")
    for count in (2, 16):
        for made in (gradient, delta)[: 1 + (count == 2)]:
            update, told = made(train, count)
            found = diagnose(still, update, told)
            assert alarms(found)["batchnorm-train-mode"] == "warning"
            assert any("--bn-mode train" in finding.message for finding in found)
            update, told = made(still, count)
            assert "batchnorm-train-mode" in alarms(diagnose(still, update, replace(told, bn_mode="train")))


def test_running_buffers_that_moved_tell_of_train_mode() -> None:
    network = build("normalized")
    update, told = gradient(network, 4)
    buffers = {name: buffer.clone() for name, buffer in network.module.named_buffers()}
    assert not alarms(diagnose(network, {**update, **buffers}, told))
    moved = {**buffers, "1.running_mean": buffers["1.running_mean"] + 0.3}
    assert "batchnorm-train-mode" in alarms(diagnose(network, {**update, **moved}, told))


@pytest.mark.parametrize("kind", ["weight_delta", "new_weights"])
def test_buffers_of_a_whole_state_dict_tell_of_train_mode_only_if_they_moved(kind: str) -> None:
    still, train = build("normalized"), build("normalized", mode="train")
    before = dict(still.module.named_buffers())
    for network, expected in ((still, set()), (train, {"batchnorm-train-mode"})):
        update, told = delta(network, 4)
        after = sent_buffers(FedAvg(local_steps=2, lr=1e-3), network, *batch(network, 4))
        if kind == "weight_delta":
            whole = {**update, **{name: after[name] - before[name] for name in before}}
        else:
            whole = {**{name: network.params[name].detach() + part for name, part in update.items()}, **after}
        assert alarms(diagnose(still, whole, replace(told, kind=kind))).keys() == expected
    update, told = gradient(still, 4)
    zeros = {name: torch.zeros_like(buffer) for name, buffer in before.items()}
    assert not alarms(diagnose(still, {**update, **zeros}, told)), "a gradient, filled up to a whole state dict"
    update, told = delta(still, 4)
    assert not alarms(diagnose(still, {**update, **before}, told)), "a delta beside the buffers that were sent out"


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize(
    ("defense", "code"),
    [(GaussianNoise(1e-3), "noised"), (LaplaceNoise(1e-2), "noised"), (TopK(0.1), "pruned"), (TopK(0.5), "pruned"),
     (Clip(0.01), "clipped")],
    ids=repr,
)  # fmt: skip
def test_what_was_done_to_an_update_is_named(name: str, defense: object, code: str) -> None:
    network = build(name)
    for count in (1, 8):
        update, told = gradient(network, count)
        context = Context(network, Batch(*batch(network, count)))
        found = diagnose(network, defense(update, context, torch.Generator().manual_seed(0)), told)
        assert code in alarms(found), count
        if code == "noised":
            expected = defense.std if isinstance(defense, GaussianNoise) else defense.scale * 2**0.5
            noise = next(finding for finding in found if finding.code == "noised")
            assert noise.evidence["std"] == pytest.approx(expected, rel=0.25)
        assert all(finding.level != "error" for finding in found)


@pytest.mark.parametrize("name", BUILDERS)
def test_quantized_numbers_are_named_and_coarse_formats_only_mentioned(name: str) -> None:
    network = build(name)
    update, told = gradient(network, 4)
    signs = {n: 0.01 * part.sign() for n, part in update.items()}
    eight = {n: (part / part.abs().max() * 127).round() * (part.abs().max() / 127) for n, part in update.items()}
    for quantized in (signs, eight):
        assert "quantized" in alarms(diagnose(network, quantized, told))
    halved = diagnose(network, {n: part.half() for n, part in update.items()}, told)
    assert not alarms(halved) and "quantized" in [finding.code for finding in halved]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", BUILDERS)
def test_new_weights_rounded_before_the_difference_are_no_noise(name: str, dtype: torch.dtype) -> None:
    network = build(name)
    for count in (1, 8):
        update, told = delta(network, count, 3, 0.1, seed=count)
        old = {n: weight.detach() for n, weight in network.params.items()}
        sent = {n: (old[n] + part).to(dtype).float() - old[n] for n, part in update.items()}
        found = diagnose(network, sent, told)
        assert not alarms(found).keys() & {"noised", "names", "pruned", "clipped", "optimizer"}, alarms(found)
        assert any("new weights behind the update were saved in" in finding.message for finding in found)


def test_random_pruning_is_named() -> None:
    network = build("smooth")
    update, told = gradient(network, 4)
    generator = torch.Generator().manual_seed(0)
    pruned = {n: part * (torch.rand(part.shape, generator=generator) < 0.5) for n, part in update.items()}
    assert "pruned" in alarms(diagnose(network, pruned, told))


def test_dead_units_are_not_taken_for_pruning_and_frozen_tensors_are_listed() -> None:
    network = build("perceptron")
    with torch.no_grad():
        network.params["1.bias"][:25] = -100.0
    update, told = gradient(network, 4)
    assert not alarms(diagnose(network, update, told))
    still = {**update, "1.weight": 0 * update["1.weight"], "1.bias": 0 * update["1.bias"]}
    found = [finding for finding in diagnose(network, still, told) if finding.code == "frozen"]
    assert found and found[0].evidence["parameters"] == ["1.weight", "1.bias"]
    (found,) = diagnose(network, {n: 0 * part for n, part in update.items()}, told)
    assert (found.code, found.level) == ("frozen", "error")


def trained(mean: float, std: float) -> nn.Module:
    """A network whose BatchNorm layers have seen pictures under that normalization."""
    network = build("normalized", mode="train", mean=mean, std=std)
    module = network.module
    with torch.no_grad():
        for seed in range(60):
            module(network.normalize(natural_noise(network, 32, seed=seed)))
    return module.eval()


def test_another_normalization_than_that_of_training_is_named() -> None:
    usual, plain = trained(0.5, 0.25), trained(0.0, 1.0)
    for module, mean, std, expected in ((usual, 0.5, 0.25, False), (plain, 0.0, 1.0, False), (usual, 0.0, 1.0, True),
                                        (plain, 0.5, 0.25, True)):  # fmt: skip
        network = freeze(module, SHAPE, mean=mean, std=std)
        found = diagnose(network, *gradient(network, 4))
        assert ("normalization" in alarms(found)) is expected, (mean, std)
        if expected and module is plain:
            assert any("--mean 0 --std 1" in finding.message for finding in found)


def test_a_first_linear_layer_holds_its_input_and_so_the_normalization() -> None:
    plain = build("perceptron", mean=0.0, std=1.0)
    usual = freeze(plain.module, SHAPE, mean=0.5, std=0.25)
    for made, believed in ((plain, usual), (usual, plain)):
        update, told = gradient(made, 1)
        assert "normalization" not in alarms(diagnose(made, update, told))
        assert alarms(diagnose(believed, update, told))["normalization"] == "warning"


def test_the_self_test_passes_and_fails_with_a_client_that_cannot_repeat_itself() -> None:
    for name, kind in itertools.product(BUILDERS, ("gradient", "weight_delta", "new_weights", None)):
        told = Metadata(kind=kind, learning_rate=1e-2, local_steps=3, num_examples=5, batch_size=2)
        (found,) = self_test(build(name), told)
        assert found.level == "info" and found.evidence["self_test"]["cosine"] > 0.999
    assert self_test(build("smooth"), Metadata(kind="weight_delta")) == ()

    class Restless(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.calls = nn.Linear(192, CLASSES), itertools.count()

        def forward(self, inputs: Tensor) -> Tensor:
            return self.head(inputs.flatten(1).roll(7 * next(self.calls), dims=1))

    (found,) = self_test(freeze(Restless(), SHAPE), Metadata(kind="gradient", num_examples=2))
    assert found.level == "error" and "Self-test failed" in found.message


@pytest.mark.parametrize("name", ["smooth", "normalized"])
def test_the_owners_example_shows_what_is_wrong(name: str) -> None:
    network = build(name)
    images, labels = batch(network, 1)

    def checked(update: Params, told: Metadata, believed: Network = network) -> Finding:
        (found,) = check_example(believed, update, told, images, labels)
        return found

    update, told = gradient(network, 1)
    assert checked(update, told).level == "info"
    moved, stated = delta(network, 1, 3, 1e-2)
    assert checked(moved, stated).level == "info"
    assert checked(negated(update), told).code == "sign"
    assert checked(moved, replace(stated, learning_rate=1e-3)).code == "scale"
    found = checked(update, told, freeze(network.module, SHAPE))
    assert (found.code, found.level) == ("normalization", "error") and "--mean 0.5 --std 0.25" in found.message
    if name == "normalized":
        update = FedSGD()(build(name, mode="train"), images, labels)
        found = checked(update, told)
        assert found.code == "batchnorm-train-mode" and "--bn-mode train" in found.message
    other, _ = gradient(build(name, seed=3), 1)
    assert checked(other, told).level == "error"


@pytest.mark.parametrize("count", [1, 4])
def test_batchnorm_in_train_mode_with_one_place_a_channel_does_not_make_it_raise(count: int) -> None:
    torch.manual_seed(0)
    first = nn.BatchNorm2d(8)
    first.running_mean += 0.3  # as of a trained network, so that its normalization is looked at
    pooled = (nn.Conv2d(3, 8, 3, 1, 1), first, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8))
    flat = (nn.Flatten(), nn.Linear(192, 9), nn.BatchNorm1d(9))
    for layers in ((*pooled, nn.Flatten(), nn.Linear(8, CLASSES)), flat):
        network = freeze(nn.Sequential(*layers).train(), SHAPE, mean=0.5, std=0.25)
        update = FedSGD()(network, *batch(network, 4))
        found = diagnose(network, update, Metadata(kind="gradient", num_examples=count))
        assert count == 1 or not any(finding.level == "error" for finding in found)


def pooled(mode: str = "eval") -> Network:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, 1, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten())
    return freeze(nn.Sequential(*layers, nn.Linear(8, CLASSES)).train(mode == "train"), SHAPE, mean=0.5, std=0.25)


def test_an_example_that_does_not_match_is_compared_where_train_mode_refuses_it() -> None:
    network = pooled()
    update, told = gradient(network, 1)
    (found,) = check_example(network, update, told, *batch(network, 1, seed=5))
    assert found.level == "error" and found.code == "normalization"
    refusing = pooled("train")
    (found,) = check_example(refusing, update, told, *batch(network, 1))
    assert (found.code, found.level) == ("batchnorm-train-mode", "error") and "--num-examples" in found.message
    for unsure in (told, Metadata(kind="gradient")):
        first = diagnose(refusing, update, unsure)[0]
        assert (first.code, first.level) == ("batchnorm-train-mode", "error")


def test_white_pixels_in_front_of_a_linear_layer_are_not_taken_for_clipping() -> None:
    torch.manual_seed(0)
    network = freeze(nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)), SHAPE)
    images, labels = batch(network, 1)
    images[0, :, :2] = 1.0
    update, told = FedSGD()(network, images, labels), Metadata(kind="gradient", num_examples=1)
    assert not alarms(diagnose(network, update, told))
    bound = 0.5 * max(float(part.abs().max()) for part in update.values())
    assert "clipped" in alarms(diagnose(network, {n: part.clamp(-bound, bound) for n, part in update.items()}, told))


def test_scales_that_all_began_at_one_are_not_taken_for_clipping() -> None:
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(768, CLASSES))
    network = freeze(nn.Sequential(*layers), SHAPE, mean=0.5, std=0.25)
    client = FedAvg(local_steps=1, lr=1e-3, optimizer=LocalAdam(), sends="weights")
    told = Metadata(kind="new_weights", learning_rate=1e-3, local_steps=1, num_examples=4)
    found = diagnose(network, client(network, *batch(network, 4)), told)
    assert not any("greatest magnitude" in finding.message for finding in found)


class OnlySometimes(nn.Module):
    """A network whose forward pass, in its own mode, raises."""

    def __init__(self) -> None:
        super().__init__()
        self.flat, self.head = nn.Flatten(), nn.Linear(192, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        if self.training:
            raise KeyError("masks")
        return self.head(self.flat(images))


def test_a_foreign_network_that_raises_stops_no_other_check(caplog: pytest.LogCaptureFixture) -> None:
    module = OnlySometimes().eval()
    update, told = gradient(freeze(module, SHAPE), 1)
    network = freeze(module.train(), SHAPE)
    found = diagnose(network, negated(update), told)
    assert alarms(found)["sign"] == "error" and "was not checked" in caplog.text
    found = diagnose(network, update, told)
    assert alarms(found) == {"scale": "error"} and "masks" in found[0].message
    (found,) = check_example(network, update, told, *batch(network, 1))
    assert found.level == "error" and "cannot run" in found.message


def test_stand_ins_are_pictures_and_the_same_for_the_same_seed() -> None:
    network = build("smooth")
    pictures = natural_noise(network, 64)
    assert pictures.shape == (64, *SHAPE) and 0 <= float(pictures.min()) < float(pictures.max()) <= 1
    assert torch.equal(pictures, natural_noise(network, 64)) and not torch.equal(
        pictures, natural_noise(network, 64, seed=1)
    )


def test_the_diagnosis_leaves_everything_as_it_was() -> None:
    network = build("normalized", mode="train")
    update, told = gradient(network, 4)
    before: Mapping[str, Tensor] = {n: t.clone() for n, t in network.module.state_dict().items()}
    kept = {name: part.clone() for name, part in update.items()}
    state = torch.get_rng_state()
    diagnose(network, update, told)
    assert all(torch.equal(before[n], t) for n, t in network.module.state_dict().items())
    assert all(torch.equal(kept[name], part) for name, part in update.items())
    assert torch.equal(state, torch.get_rng_state()) and network.module.training


# What the client's optimizer does


class Sign(torch.optim.Optimizer):
    """signSGD, in plain PyTorch."""

    def __init__(self, params, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step(self) -> None:
        for weight in (each for group in self.param_groups for each in group["params"]):
            weight.data -= self.defaults["lr"] * weight.grad.sign()


OPTIMIZERS = {
    "Adam": (torch.optim.Adam, {}),
    "AdamW": (torch.optim.AdamW, {"weight_decay": 0.1}),
    "Adam with L2": (torch.optim.Adam, {"weight_decay": 1e-4}),
    "RMSprop": (torch.optim.RMSprop, {}),
    "Adagrad": (torch.optim.Adagrad, {}),
    "signSGD": (Sign, {}),
}


def stepped(
    network: Network, count: int, kind: type, steps: int = 1, size: int = 0, **settings: float
) -> tuple[dict[str, Params], Metadata]:
    """A weight delta and new weights of torch's own optimizer, and what is stated of them."""
    images, labels = batch(network, count)
    module = copy.deepcopy(network.module)
    optimizer = kind(module.parameters(), lr=1e-3, **settings)
    for step in range(steps):
        part = slice((start := step * size % count), start + size) if size else slice(None)
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(network.normalize(images[part])), labels[part]).backward()
        optimizer.step()
    new = {name: weight.detach() for name, weight in module.named_parameters()}
    change = {name: weight - network.params[name].detach() for name, weight in new.items()}
    told = Metadata("weight_delta", 1e-3, steps, count, size or None)
    return {"weight_delta": change, "new_weights": new}, told


def advised(finding: Finding) -> FedAvg:
    return registry.build("client", re.search('--client "(.*?)"', finding.message)[1])


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_one_step_of_another_optimizer_is_told_with_the_client_that_makes_it_too(name: str, optimizer: str) -> None:
    network = build(name)
    kind, settings = OPTIMIZERS[optimizer]
    for count in (1, 4, 8):
        sent, told = stepped(network, count, kind, **settings)
        for what, update in sent.items():
            stated = replace(told, kind=what)
            found = [each for each in diagnose(network, update, stated) if each.level != "info"]
            assert [each.code for each in found] == ["optimizer"], (count, what, found)
            client = advised(found[0])
            assert isinstance(client.optimizer, LocalAdam) and "Adam" in found[0].message
            assert not alarms(diagnose(network, update, stated, client=client)), "the client is given"
            theirs = as_observation(network, Update(update, stated), client=client)
            ours = client.as_gradient(network, client(network, *batch(network, count)), count)
            flat = [torch.cat([part.detach().flatten() for part in each.values()]) for each in (theirs.gradient, ours)]
            assert torch.nn.functional.cosine_similarity(*flat, dim=0) > 0.98
            assert float(flat[0].norm() / flat[1].norm()) == pytest.approx(1, abs=0.02)
            assert ("RMSprop" in found[0].message) is (optimizer == "RMSprop"), found[0].message
            assert ("leaves unexplained: changes by -0.0001 times" in found[0].message) is (optimizer == "AdamW")
    unsure = diagnose(network, sent["weight_delta"], replace(told, learning_rate=None, local_steps=None))
    assert [each.code for each in unsure if each.level != "info"] == ["optimizer"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", BUILDERS)
def test_steps_of_equal_size_show_in_new_weights_of_16_bits(name: str, dtype: torch.dtype) -> None:
    """Rounding of a weight is larger than the step where the weight is large."""
    network = build(name)
    for kind, rate in ((torch.optim.Adam, 1e-3), (torch.optim.Adam, 3e-4), (Sign, 1e-3)):
        sent, told = stepped(network, 4, kind)
        new = {n: network.params[n].detach() + rate / 1e-3 * part for n, part in sent["weight_delta"].items()}
        rounded = {n: part.to(dtype) for n, part in new.items()}
        change = {n: part.float() - network.params[n].detach() for n, part in rounded.items()}
        for what, update in (("new_weights", rounded), ("weight_delta", change)):
            stated = replace(told, kind=what, learning_rate=rate)
            found = [each for each in diagnose(network, update, stated) if each.code == "optimizer"]
            assert found and found[0].evidence["size"] == pytest.approx(rate, rel=0.02), (kind, rate, what)
            assert advised(found[0]).lr == rate
    for rate in (1e-3, 1e-2, 0.1, 1.0):
        for count, momentum in ((1, 0.0), (4, 0.0), (4, 0.9)):
            sent, told = stepped(network, count, torch.optim.SGD, momentum=momentum)
            new = {n: network.params[n].detach() + rate / 1e-3 * part for n, part in sent["weight_delta"].items()}
            stated = replace(told, kind="new_weights", learning_rate=rate)
            found = diagnose(network, {n: part.to(dtype) for n, part in new.items()}, stated)
            assert "optimizer" not in {each.code for each in found}, (rate, count)


@pytest.mark.parametrize("name", BUILDERS)
def test_several_steps_of_adam_are_told_and_several_of_sgd_are_not(name: str) -> None:
    network = build(name)
    for count, steps, size in ((1, 2, 0), (4, 5, 0), (8, 8, 2)):
        sent, told = stepped(network, count, torch.optim.Adam, steps, size)
        found = [each for each in diagnose(network, sent["weight_delta"], told) if each.level != "info"]
        assert [each.code for each in found] == ["optimizer"], (count, steps, found)
        assert advised(found[0]) == FedAvg(steps, 1e-3, size, optimizer=LocalAdam())
        for momentum in (0.0, 0.9):
            sent, told = stepped(network, count, torch.optim.SGD, steps, size, momentum=momentum)
            for what, update in sent.items():
                stated = replace(told, kind=what, momentum=momentum or None)
                assert not alarms(diagnose(network, update, stated)), (count, steps, what)
                for untold in (replace(stated, momentum=None), replace(stated, local_steps=None)):
                    assert alarms(diagnose(network, update, untold)).keys() <= {"scale"}, (count, steps, untold)


def test_a_flipped_sign_shows_whatever_the_optimizer() -> None:
    network = build("rectified")
    sent, told = stepped(network, 1, torch.optim.Adam)
    found = alarms(diagnose(network, negated(sent["weight_delta"]), told))
    assert found == {"sign": "error", "optimizer": "warning"}


@pytest.mark.parametrize("name", BUILDERS)
def test_pruned_and_quantized_changes_are_not_taken_for_another_optimizers(name: str) -> None:
    network = build(name)
    generator = torch.Generator().manual_seed(0)
    for count in (1, 8):
        update, told = delta(network, count, 1, 0.1)
        context = Context(network, Batch(*batch(network, count)))
        for keep in (0.05, 0.3):
            pruned = TopK(keep)(update, context, generator)
            assert alarms(diagnose(network, pruned, told)).keys() & {"pruned", "optimizer"} == {"pruned"}
        signs = {n: part.abs().mean() * part.sign() for n, part in update.items()}
        found = alarms(diagnose(network, signs, told))
        assert "quantized" in found and not found.keys() & {"pruned", "clipped", "optimizer"}


@pytest.mark.parametrize("name", ["rectified", "perceptron", "smooth"])
def test_momentum_and_steps_are_considered_before_a_cure_is_named(name: str) -> None:
    network = build(name)

    def said(count: int, told: Metadata, **made: float) -> str:
        found = diagnose(network, delta(network, count, **made)[0], replace(told, num_examples=count))
        return next(each.message for each in found if each.code == "scale" and each.level != "info")

    told = Metadata("weight_delta", 1e-3, 4)
    assert "--momentum 0.9" in said(1, told, steps=4, momentum=0.9)
    assert "--local-steps 1" in said(1, told, steps=1)
    untold = replace(told, local_steps=None)
    assert "--local-steps 3 with --momentum 0.9" in said(1, untold, steps=3, momentum=0.9)
    assert "--local-steps 5 with --momentum 0.9" in said(4, untold, steps=5, momentum=0.9)
    message = said(4, untold, steps=4)
    assert "--local-steps 4" in message and "--loss-reduction sum" in message, "the two look the same"
    message = said(1, replace(told, local_steps=1), steps=1, lr=7e-3)
    assert "--learning-rate would be about 0.007" in message and "do not explain it" in message
