"""What went into the head, example by example, and pictures from it."""

import re
from dataclasses import replace

import pytest
import torch
from torch import Generator, Tensor, nn

import inversefed
from inversefed import Batch, Budget, FedAvg, FedSGD, Observation, ThreatModel, freeze, observe, recipes
from inversefed.attacks.head.head_inputs import recover_head_inputs
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.defenses import Context, GaussianNoise
from inversefed.zoo import networks


def wide(activation: nn.Module) -> nn.Module:
    """A head that sees more numbers than a picture has."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), activation, nn.Flatten(), nn.Linear(8192, 10)
    return nn.Sequential(*layers).eval()


def observed(module: nn.Module, images: Tensor, labels: list[int], threat: ThreatModel = ThreatModel()) -> Observation:
    network = freeze(module, images.shape[1:], mean=0.5, std=0.25)
    batch = Batch(images, torch.tensor(labels))
    return observe(network, FedSGD(), FedSGD()(network, images, batch.labels), batch, threat)


def crops(photos: Tensor, number: int) -> Tensor:
    """Pictures that differ: the photographs, turned and mirrored."""
    turned = [photos.rot90(turns, (2, 3)) for turns in range(4)]
    return torch.cat([*turned, *[each.flip(3) for each in turned]])[:number]


def errors(found: Tensor, truth: Tensor) -> Tensor:
    """Relative distance of each truth from the nearest that was found."""
    return torch.cdist(truth.double(), found).min(dim=1).values / truth.double().norm(dim=1)


@pytest.mark.parametrize("name", ["LeNetZhu", "AllConv", "ResNet20"])
@pytest.mark.parametrize("labels", [[3, 1, 4, 5], [7, 7, 2, 2], [6, 6, 6, 6]])
def test_features_and_labels_of_each_example_come_out_of_the_mean(photos, name, labels) -> None:
    observation = observed(networks.build(name, seed=1).eval(), crops(photos, 4), labels)
    found = recover_head_inputs(observation)
    assert sorted(found.labels.tolist()) == sorted(labels)
    truth = observation.network.without_head().features(crops(photos, 4))
    mean = truth.mean(dim=0, keepdim=True).double()
    assert float(errors(found.features, truth).max()) < 1e-3 < float(errors(mean, truth).min())


@pytest.mark.parametrize("labels", [[4, 6, 1, 5], [8, 0, 9, 0]])
def test_local_steps_tell_their_examples_apart_and_in_order(photos, labels) -> None:
    """Features as they were at the weights of each step, and labels in the order of the steps."""
    images, client = crops(photos, 4), FedAvg(local_steps=4, lr=1e-2, batch_size=1)
    network = freeze(networks.build("AllConv", seed=0).eval(), (3, 32, 32), mean=0.5, std=0.25)
    batch = Batch(images, torch.tensor(labels))
    found = recover_head_inputs(observe(network, client, client(network, images, batch.labels), batch, ThreatModel()))
    assert found.labels.tolist() == labels
    trunk, path = network.without_head(), (network.params, *client.steps(4).walk(network, images, batch.labels))
    truth = [trunk.apply({name: w[name] for name in trunk.params}, x[None]) for w, x in zip(path, images, strict=False)]
    seen = torch.cat(truth).detach()
    error = (found.features - seen).norm(dim=1) / seen.norm(dim=1)
    before = (found.features - trunk.features(images)).norm(dim=1) / trunk.features(images).norm(dim=1)
    assert float(error.max()) < 1e-3 < float(before[1:].min())


def test_granted_labels_are_the_order_of_the_features(photos) -> None:
    labels = [5, 1, 8, 0]
    observation = observed(networks.build("AllConv", seed=0).eval(), crops(photos, 4), labels, ThreatModel("known"))
    found, truth = recover_head_inputs(observation), observation.network.without_head().features(crops(photos, 4))
    assert found.labels.tolist() == labels
    assert float((found.features - truth).norm() / truth.norm()) < 1e-4


def test_what_does_not_separate_is_refused(photos) -> None:
    module = networks.build("AllConv", seed=0).eval()
    with pytest.raises(ThreatModelError, match="fewer examples than classes"):
        recover_head_inputs(observed(module, crops(photos, 8).repeat(2, 1, 1, 1), [0] * 16))
    network, client = freeze(module, (3, 32, 32)), FedAvg(local_steps=2, lr=0.1)
    batch = Batch(crops(photos, 4), torch.arange(4))
    update = client(network, batch.images, batch.labels)
    with pytest.raises(ThreatModelError, match="local steps of plain SGD"):
        recover_head_inputs(observe(network, client, update, batch, ThreatModel()))
    noisy = GaussianNoise(1e-3)(
        FedSGD()(network, batch.images, batch.labels), Context(network, batch), Generator().manual_seed(0)
    )
    with pytest.raises(ThreatModelError, match="not that of 4 examples"):
        recover_head_inputs(observe(network, FedSGD(), noisy, batch, ThreatModel("known")))


@pytest.mark.slow
@pytest.mark.parametrize(("activation", "decibels"), [(nn.Sigmoid(), 75), (nn.ReLU(), 35)])
@pytest.mark.parametrize("labels", [[3, 1, 4], [2, 2, 2]])
def test_pictures_behind_a_wide_head_come_back_one_by_one(photos, labels, activation, decibels) -> None:
    """To float precision where nothing is cut off; a ReLU in the only layer hides half of what there is.

    How far float precision leads depends on the processor: 79.7 dB on one, above 80 on another.
    """
    module, images = wide(activation), crops(photos, 3)
    attack = recipes.separated()
    report = inversefed.audit(module, images, torch.tensor(labels), mean=0.5, std=0.25, attack=attack, nulls=0)
    assert float(report.scores["peak_signal_noise_ratio"].min()) > decibels
    assert sorted(report.reconstruction.labels.tolist()) == sorted(labels)
    exact = [finding.code for finding in report.reconstruction.findings].count("exact")
    assert exact == isinstance(activation, nn.Sigmoid)


def test_pictures_of_a_narrow_head_or_behind_pooling_are_refused(photos) -> None:
    for name, said in (("LeNetZhu", "768 numbers"), ("McMahan", "MaxPool2d")):
        with pytest.raises(UnsupportedNetworkError, match=said):
            recipes.separated()(observed(networks.build(name).eval(), crops(photos, 2), [1, 2]), Generator())


def test_the_search_for_several_is_helped_by_their_features(photos) -> None:
    """Two examples of one class are one to the gradient's eye, but for what went into the head."""
    module, images, labels = networks.build("AllConv", seed=0).eval(), crops(photos, 2), torch.tensor([3, 3])
    search = recipes.spectral(60)
    with_features, without = (
        inversefed.audit(module, images, labels, mean=0.5, std=0.25, attack=replace(search, features=w), nulls=0)
        for w in (0.3, 0.0)
    )
    score = [float(report.scores["peak_signal_noise_ratio"].mean()) for report in (with_features, without)]
    assert score[0] > score[1] + 10


def test_an_observation_is_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    network = freeze(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2))
    images = torch.rand((3, 3, 2, 2), generator=torch.Generator().manual_seed(0))
    update = FedSGD()(network, images, torch.tensor([2, 0, 2]))
    noise = {name: torch.rand_like(part) for name, part in update.items()}
    good, noisy = Observation(network, FedSGD(), update, 3), Observation(network, FedSGD(), noise, 3)
    first = recover_head_inputs(good)
    with pytest.raises(ThreatModelError) as refused:
        recover_head_inputs(noisy)
    monkeypatch.setattr("inversefed.attacks.head.head_inputs.read_head", lambda _: pytest.fail("solved again"))
    assert recover_head_inputs(good) is first
    with pytest.raises(ThreatModelError, match=re.escape(str(refused.value))):
        recover_head_inputs(noisy)


def test_solving_ends_with_the_time_and_the_search_goes_on_without_it(photos) -> None:
    """Numbers that no labels explain would have hundreds of sets of labels tried, each in several hundred steps."""
    clean = observed(wide(nn.Sigmoid()), crops(photos, 6), [1, 2, 3, 4, 5, 6])
    bias = f"{clean.network.head}.bias"
    observation = replace(clean, update={**clean.update, bias: clean.update[bias] * torch.linspace(0.9, 1.1, 10)})
    asked = 0

    def stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > 30

    with pytest.raises(ThreatModelError, match="in the time there was"):
        recover_head_inputs(observation, stop)
    assert asked < 60
    with pytest.raises(ThreatModelError, match="in the time there was"):
        recover_head_inputs(observation)  # who asks first says for how long
    found = recipes.spectral(5)(observation, Generator().manual_seed(0), Budget(seconds=60.0))
    assert found.images.shape == (6, *observation.network.image_shape)
    sure = recover_head_inputs(clean, lambda: False)
    assert sure.residual < 1e-4


@pytest.mark.parametrize(
    ("norm", "refused"),
    [
        (nn.InstanceNorm2d(8), True),
        (nn.GroupNorm(8, 8), True),
        (nn.BatchNorm2d(8, track_running_stats=False), True),
        (nn.GroupNorm(2, 8), False),
        (nn.BatchNorm2d(8), False),
    ],
)
def test_features_that_do_not_hold_the_contrast_of_a_channel_are_not_inverted(norm: nn.Module, refused: bool) -> None:
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 8, 3, padding=1), norm, nn.ReLU(), nn.Flatten(), nn.Linear(512, 10)
    observation = observed(nn.Sequential(*layers).eval(), torch.rand(1, 3, 8, 8), [3])
    if not refused:
        assert "512 numbers" in recipes.separated().check(observation)
        return
    with pytest.raises(UnsupportedNetworkError, match="contrast"):
        recipes.separated().check(observation)
