"""A loop that is recorded: its update is what the described client makes, and the loop is left as it was."""

import copy
import json
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import inversefed
from inversefed import FedAvg, FedSGD, LocalAdam, LocalAdamW, LocalSGD
from inversefed.cli import main
from inversefed.errors import ConfigError
from inversefed.fl.clients.views import UnknownClient
from inversefed.integrations.capture import Capture
from inversefed.updates.update import read_update
from inversefed.zoo import networks, pictures

MEAN, STD = 0.5, 0.25
SIZE = 16


@pytest.fixture(scope="module")
def photos() -> tuple[Tensor, Tensor]:
    """24 pictures, the bundled photographs and their mirror images, with labels."""
    first = torch.stack([pictures.photo(name, (3, SIZE, SIZE)) for name in pictures.photo_names()])
    images = torch.cat([first, first.flip(-1), first.flip(-2)])
    return images, torch.arange(len(images)) % 5


def plain() -> nn.Module:
    torch.manual_seed(3)
    layers = (nn.Conv2d(3, 6, 3, 2, 1), nn.Sigmoid(), nn.Conv2d(6, 6, 3, 2, 1), nn.Sigmoid())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 5)).eval()


def loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, photos: tuple[Tensor, Tensor], sizes: list[list[int]]
) -> Iterator[None]:
    """A usual loop: `sizes` are the micro-batches of each step."""
    images, labels = photos
    start = 0
    for parts in sizes:
        optimizer.zero_grad()
        for size in parts:
            these = slice(start, start + size)
            loss = F.cross_entropy(model((images[these] - MEAN) / STD), labels[these])
            (loss / len(parts)).backward()
            start += size
        optimizer.step()
        yield


def test_a_step_of_sgd_is_written_and_audited_from_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    module = networks.build("LeNetZhu", seed=7).eval()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    image = pictures.photo("chelsea", (3, 32, 32))[None]
    with inversefed.capture(module, optimizer, folder=tmp_path / "step") as update:
        loss = F.cross_entropy(module((image - MEAN) / STD), torch.tensor([3]))
        loss.backward()
        optimizer.step()
    assert capsys.readouterr() == ("", "")
    assert sorted(path.name for path in (tmp_path / "step").iterdir()) == ["before.safetensors", "update.safetensors"]
    told = read_update(tmp_path / "step" / "update.safetensors").metadata
    assert told == update.metadata and update.client == FedSGD()

    words = shlex.split(update.command("LeNetZhu", MEAN, STD))
    assert words[0] == "inversefed"
    truth = ["--truth", str(pictures.photo_path("chelsea")), "--labels", "3"]
    assert main([*words[1:], *truth, "--output", str(tmp_path / "out"), "--quiet"]) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["scores"]["peak_signal_noise_ratio"][0] > 40
    assert found["scores"]["label_accuracy"] == [1.0]


def cosine(update: Capture, photos: tuple[Tensor, Tensor], count: int) -> tuple[float, float]:
    """Of the described client's update with the captured one, and the ratio of their norms: the self-test."""
    found = update.check(photos[0][:count], photos[1][:count], mean=MEAN, std=STD)
    return float(found.evidence["cosine"]), float(found.evidence["scale"])


OPTIMIZERS: dict[str, tuple[Callable, object]] = {
    "momentum and decay": (
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4),
        LocalSGD(momentum=0.9, weight_decay=5e-4),
    ),
    "nesterov": (
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True),
        LocalSGD(momentum=0.9, nesterov=True),
    ),
    "adam": (lambda p: torch.optim.Adam(p, lr=1e-3, weight_decay=0.1), LocalAdam(weight_decay=0.1)),
    "adamw": (
        lambda p: torch.optim.AdamW(p, lr=1e-3, betas=(0.8, 0.99), eps=1e-6),
        LocalAdamW(beta1=0.8, beta2=0.99, eps=1e-6, weight_decay=0.01),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_several_steps_are_those_of_the_described_client(name: str, photos: tuple[Tensor, Tensor]) -> None:
    module, (build, local) = plain(), OPTIMIZERS[name]
    optimizer = build(module.parameters())
    before = copy.deepcopy(module.state_dict())
    with inversefed.capture(module, optimizer) as update:
        list(loop(module, optimizer, photos, [[8], [8], [8]]))
    lr = optimizer.param_groups[0]["lr"]
    assert update.client == FedAvg(local_steps=3, lr=lr, batch_size=8, optimizer=local)
    assert cosine(update, photos, 24) == pytest.approx((1, 1), abs=1e-6)
    assert all(torch.equal(update.before[each], value) for each, value in before.items())
    moved = {each: new - before[each] for each, new in module.state_dict().items()}
    assert update.tensors.keys() == moved.keys()
    assert all(torch.equal(update.tensors[each], change) for each, change in moved.items())
    assert update.findings == ()


@pytest.mark.parametrize("network", ["LeNetZhu", "ConvNet8"])
@pytest.mark.parametrize("name", ["adamw", "momentum and decay"])
def test_accumulation_and_autocast_are_reproduced(name: str, network: str, photos: tuple[Tensor, Tensor]) -> None:
    """ConvNet8 is in train mode, so that BatchNorm normalizes each micro-batch by itself."""
    images = F.interpolate(photos[0], size=32)
    module = networks.build(network, seed=0)
    optimizer = OPTIMIZERS[name][0](module.parameters())
    with inversefed.capture(module, optimizer) as update:
        for step in range(2):
            optimizer.zero_grad()
            for part in range(2):
                these = slice(8 * step + 4 * part, 8 * step + 4 * part + 4)
                with torch.autocast("cpu", torch.bfloat16):
                    loss = F.cross_entropy(module((images[these] - MEAN) / STD), photos[1][these])
                (loss / 2).backward()
            optimizer.step()
    told = update.metadata
    assert (told.autocast, told.micro_batch_size, told.batch_size, told.num_examples) == ("bfloat16", 4, 8, 16)
    assert told.bn_mode == ("train" if network == "ConvNet8" else None)
    assert cosine(update, (images, photos[1]), 16) == pytest.approx((1, 1), abs=1e-3)


def test_one_step_of_accumulated_gradients_is_a_gradient(photos: tuple[Tensor, Tensor]) -> None:
    module = plain()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)
    with inversefed.capture(module, optimizer) as update:
        list(loop(module, optimizer, photos, [[2, 2, 2]]))
    assert (update.metadata.kind, update.metadata.num_examples, update.client) == ("gradient", 6, FedSGD())
    assert cosine(update, photos, 6) == pytest.approx((1, 1), abs=1e-6)
    with inversefed.capture(module, optimizer) as later:  # a moment from before does not matter for a gradient
        list(loop(module, optimizer, photos, [[4]]))
    assert later.metadata.kind == "gradient" and cosine(later, photos, 4) == pytest.approx((1, 1), abs=1e-6)


@pytest.mark.parametrize("fused", [False, True], ids=["scaler takes it off", "optimizer takes it off"])
def test_a_scaled_loss_leaves_no_trace_and_a_skipped_step_counts_nothing(
    fused: bool, photos: tuple[Tensor, Tensor]
) -> None:
    module, (images, labels) = plain(), photos
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    with inversefed.capture(module, optimizer) as update:
        for attempt in range(2):
            optimizer.zero_grad()
            for these in (slice(0, 3), slice(3, 6)):
                loss = F.cross_entropy(module((images[these] - MEAN) / STD), labels[these]) / 2
                scaler.scale(loss * (float("inf") if attempt == 0 else 1)).backward()
            scaler.step(optimizer)
            scaler.update()
    assert update.learning_rates == (0.1,)
    assert (update.metadata.kind, update.metadata.num_examples, update.metadata.micro_batch_size) == ("gradient", 6, 3)
    assert cosine(update, photos, 6) == pytest.approx((1, 1), abs=1e-6)


def test_an_optimizer_that_runs_the_closure_itself_is_seen_after_it(photos: tuple[Tensor, Tensor]) -> None:
    module, (images, labels) = plain(), photos
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(module((images[:4] - MEAN) / STD), labels[:4])
        loss.backward()
        return loss

    with inversefed.capture(module, optimizer) as update:
        optimizer.step(closure)
    assert cosine(update, photos, 4) == pytest.approx((1, 1), abs=1e-6)


def recorded(
    photos: tuple[Tensor, Tensor],
    sizes: list[list[int]],
    build: Callable = lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5),
    **settings: object,
) -> Capture:
    module = plain()
    optimizer = build(module.parameters())
    with inversefed.capture(module, optimizer, **settings) as update:
        list(loop(module, optimizer, photos, sizes))
    return update


def test_passes_over_the_examples_are_told_from_steps(photos: tuple[Tensor, Tensor]) -> None:
    half = LocalSGD(momentum=0.5)
    update = recorded(photos, [[8], [8], [4]])
    assert update.client == FedAvg(epochs=1, lr=0.1, batch_size=8, optimizer=half, local_steps=3)
    assert cosine(update, photos, 20) == pytest.approx((1, 1), abs=1e-6)

    again = (photos[0][:12].repeat(2, 1, 1, 1), photos[1][:12].repeat(2))
    update = recorded(again, [[6], [6], [6], [6]], num_examples=12)
    assert update.client == FedAvg(local_steps=4, lr=0.1, batch_size=6, optimizer=half)
    assert cosine(update, photos, 12) == pytest.approx((1, 1), abs=1e-6)

    update = recorded(photos, [[8], [4], [6]])
    assert update.client == UnknownClient("delta") and update.metadata.num_examples == 18
    assert "8, 4, 6 examples" in update.findings[0].message


@pytest.mark.parametrize("sends", ["gradient", "delta", "weights"])
def test_what_is_sent_can_be_chosen(sends: str, photos: tuple[Tensor, Tensor]) -> None:
    update = recorded(photos, [[4]], OPTIMIZERS["adamw"][0], sends=sends)
    assert update.client.sends == sends
    assert cosine(update, photos, 4) == pytest.approx((1, 1), abs=1e-6)


def test_no_steps_or_too_many_are_refused(photos: tuple[Tensor, Tensor], unchecked: None) -> None:
    module = plain()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(ConfigError, match="took no step"), inversefed.capture(module, optimizer):
        module(photos[0])
    with pytest.raises(ConfigError, match="2 optimizer steps have no one gradient"):
        recorded(photos, [[2], [2]], sends="gradient")
    with pytest.raises(ConfigError, match="holds no trained weight of the model"):
        inversefed.capture(plain(), optimizer)
    with pytest.raises(ConfigError, match="needs an optimizer"):
        inversefed.capture(module, "SGD")
    with pytest.raises(ConfigError, match="needs the model"):
        inversefed.capture(module.parameters(), optimizer)
    with pytest.raises(ConfigError, match="at least 1 step"):
        inversefed.capture(module, optimizer, steps=0)


UNLIKE: dict[str, tuple[Callable, str]] = {
    "another": (lambda p: torch.optim.RMSprop(p, lr=1e-3), "optimizer is RMSprop"),
    "dampened": (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, dampening=0.5), "SGD with dampening=0.5"),
    "amsgrad": (lambda p: torch.optim.Adam(p, lr=1e-3, amsgrad=True), "Adam with amsgrad=True"),
    "rates": (
        lambda p: torch.optim.SGD([{"params": (p := list(p))[:2]}, {"params": p[2:], "lr": 0.01}], lr=0.1),
        "learning rate differs between parameter groups",
    ),
    "moments": (
        lambda p: torch.optim.SGD([{"params": (p := list(p))[:2]}, {"params": p[2:], "momentum": 0.9}], lr=0.1),
        "differ in more than their weight decay",
    ),
}


@pytest.mark.parametrize("name", UNLIKE)
def test_an_optimizer_that_no_local_step_is_like_is_said_not_guessed(name: str, photos: tuple[Tensor, Tensor]) -> None:
    build, why = UNLIKE[name]
    update = recorded(photos, [[4], [4]], build)
    assert update.client == UnknownClient("delta") and update.metadata.learning_rate is None
    assert [finding.code for finding in update.findings] == ["client-unknown"] and why in update.findings[0].message
    one = recorded(photos, [[4]], build)
    assert one.client == FedSGD() and cosine(one, photos, 4) == pytest.approx((1, 1), abs=1e-6)


def test_moments_from_before_and_changes_of_the_rate_are_said(photos: tuple[Tensor, Tensor]) -> None:
    module = plain()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
    list(loop(module, optimizer, photos, [[4]]))
    with inversefed.capture(module, optimizer) as update:
        list(loop(module, optimizer, photos, [[4], [4]]))
    assert update.client == UnknownClient("delta") and "had taken steps before" in update.findings[0].message

    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    with inversefed.capture(module, optimizer) as update:
        for _ in loop(module, optimizer, photos, [[4], [4], [4]]):
            schedule.step()
    assert update.learning_rates == pytest.approx((0.1, 0.05, 0.025))
    assert update.metadata.learning_rate == pytest.approx(0.175 / 3)
    assert [finding.code for finding in update.findings] == ["local-steps"]
    assert update.findings[0].evidence["learning_rates"] == list(update.learning_rates)


def test_a_weight_decay_of_some_weights_is_that_of_most(photos: tuple[Tensor, Tensor]) -> None:
    def build(weights: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
        every = list(weights)
        groups = [{"params": [w for w in every if w.ndim > 1]}, {"params": [w for w in every if w.ndim == 1]}]
        return torch.optim.AdamW([groups[0], {**groups[1], "weight_decay": 0.0}], lr=1e-3, weight_decay=0.01)

    update = recorded(photos, [[4], [4]], build)
    assert update.client.optimizer == LocalAdamW(weight_decay=0.01)
    assert "weight decay differs" in update.findings[0].message
    assert cosine(update, photos, 8)[0] > 0.9999


class Tied(nn.Module):
    """The head is the first layer's weight, and a scale is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3 * SIZE * SIZE, 5)
        self.last = nn.Linear(5, 5)
        self.again = nn.Linear(5, 5)
        self.again.weight = self.last.weight
        self.scale = nn.Parameter(torch.ones(1), requires_grad=False)
        self.norm = nn.BatchNorm1d(5)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.norm(self.first(inputs.flatten(1))).tanh()
        return self.scale * self.again(self.last(hidden).tanh())


def test_tied_and_frozen_weights_and_running_buffers(tmp_path: Path, photos: tuple[Tensor, Tensor]) -> None:
    torch.manual_seed(0)
    module = Tied()
    trained = [weight for name, weight in module.named_parameters() if name != "first.bias"]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    with inversefed.capture(module, optimizer, folder=tmp_path) as update:
        list(loop(module, optimizer, photos, [[6], [6]]))
    buffers = {name for name, _ in module.named_buffers()}
    assert {"last.weight", "again.weight"} <= update.before.keys()
    assert update.tensors.keys() >= buffers | {"first.weight", "last.weight"}
    assert not {"scale", "first.bias"} & update.tensors.keys()
    assert update.metadata.bn_mode == "train"
    assert [finding.code for finding in update.findings] == ["frozen"]
    assert cosine(update, photos, 12) == pytest.approx((1, 1), abs=1e-6)
    observation = update.observation(mean=MEAN, std=STD)
    assert int(observation.buffers["norm.num_batches_tracked"]) == 2
    assert "--train-mode" in update.command()


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, lambda module: torch.compile(module, backend="eager")],
    ids=["DataParallel", "compile"],
)
def test_wrapped_models_are_captured_by_their_own_names(wrap: Callable, photos: tuple[Tensor, Tensor]) -> None:
    module = plain()
    model = wrap(module)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with inversefed.capture(model, optimizer) as update:
        list(loop(model, optimizer, photos, [[2, 2], [2, 2]]))
    assert update.tensors.keys() == dict(module.named_parameters()).keys()
    assert update.metadata.micro_batch_size == 2 and update.metadata.num_examples == 8
    assert cosine(update, photos, 8)[0] > 0.9999


def test_an_error_of_the_loop_passes_and_nothing_is_written(tmp_path: Path, photos: tuple[Tensor, Tensor]) -> None:
    module = plain()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    failure = RuntimeError("the loader is empty")
    with pytest.raises(RuntimeError) as caught, inversefed.capture(module, optimizer, folder=tmp_path / "x") as update:
        for _ in loop(module, optimizer, photos, [[4], [4]]):
            raise failure
    assert caught.value is failure and not (tmp_path / "x").exists()
    for asked in (lambda: update.tensors, lambda: update.write(tmp_path), lambda: update.before, update.network):
        with pytest.raises(ConfigError, match="once the `with"):
            asked()
    parts = [*module.modules()]
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in parts)
    assert not optimizer._optimizer_step_post_hooks


def test_captures_within_each_other_and_of_the_first_steps_alone(photos: tuple[Tensor, Tensor]) -> None:
    module = plain()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    steps = loop(module, optimizer, photos, [[4], [4], [4]])
    with inversefed.capture(module, optimizer) as outer, inversefed.capture(module, optimizer, steps=2) as first:
        next(steps)
        with inversefed.capture(module, optimizer) as inner:
            next(steps)
        assert first.complete and not outer.complete
        next(steps)
    assert [each.metadata.num_examples for each in (outer, first, inner)] == [12, 8, 4]
    assert cosine(outer, photos, 12) == pytest.approx((1, 1), abs=1e-6)
    assert cosine(first, photos, 8) == pytest.approx((1, 1), abs=1e-6)
    middle = (photos[0][4:], photos[1][4:])
    assert cosine(inner, middle, 4) == pytest.approx((1, 1), abs=1e-6)


def test_the_loop_goes_as_it_would_alone(photos: tuple[Tensor, Tensor]) -> None:
    ends = []
    for captured in (False, True):
        torch.manual_seed(1)
        module = nn.Sequential(plain(), nn.Dropout(0.5)).train()
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3)
        steps = loop(module, optimizer, photos, [[4, 4], [4, 4]])
        if captured:
            with inversefed.capture(module, optimizer) as update:
                for _ in steps:
                    with torch.no_grad():
                        module(photos[0])  # a validation, which counts nothing
            assert update.metadata.num_examples == 16
            assert "dropout-train-mode" in [finding.code for finding in update.findings]
        else:
            for _ in steps:
                module(photos[0])
        ends.append([*module.state_dict().values(), torch.rand(1)])
    assert all(torch.equal(one, other) for one, other in zip(*ends, strict=True))


def test_examples_can_be_told_where_parts_of_a_model_are_called(photos: tuple[Tensor, Tensor]) -> None:
    class Parts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = plain()

    module, (images, labels) = Parts(), photos
    for told in (False, True):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        with inversefed.capture(module, optimizer) as update:
            if told:
                update.examples(4)
            F.cross_entropy(module.body((images[:4] - MEAN) / STD), labels[:4]).backward()
            optimizer.step()
        assert update.metadata.num_examples == (4 if told else None)
        assert [finding.code for finding in update.findings] == ([] if told else ["num-examples-assumed"])


def test_an_observation_is_audited_in_python() -> None:
    module = networks.build("LeNetZhu", seed=7).eval()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    image = pictures.photo("astronaut", (3, 32, 32))[None]
    with inversefed.capture(module, optimizer, sends="delta") as update:
        F.cross_entropy(module((image - MEAN) / STD), torch.tensor([3])).backward()
        optimizer.step()
    observation = update.observation(mean=MEAN, std=STD)
    assert observation.client == FedAvg(local_steps=1, lr=0.1)
    truth = inversefed.Batch(image, torch.tensor([3]))
    report = inversefed.audit_observation(
        observation, truth=truth, attack=inversefed.recipes.peel(), nulls=0, findings=update.findings
    )
    assert float(report.scores["peak_signal_noise_ratio"]) > 40
