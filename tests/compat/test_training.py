"""Data, losses, strategies and training in the manner of 2020."""

import copy
import gzip

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import inversefed
from inversefed.compat.strategy import recipe_of
from inversefed.errors import ConfigError, InputError
from inversefed.zoo import datasets, training


@pytest.fixture
def defs():
    strategy = inversefed.training_strategy("conservative", lr=0.01, epochs=2)
    strategy.batch_size = 5
    return strategy


def test_items_are_normalized_pictures_with_labels(cifar_root, defs, dm, ds):
    _, trainloader, validloader = inversefed.construct_dataloaders("CIFAR10", defs, data_path=cifar_root)
    pixels = datasets.load("CIFAR10", cifar_root)
    image, label = validloader.dataset[2]
    assert torch.allclose(image * ds + dm, pixels[2][0], atol=1e-6) and label == pixels[2][1] and isinstance(label, int)
    assert validloader.name == trainloader.name == "CIFAR10"
    assert validloader.dataset.classes[label] == pixels.classes[label] and len(trainloader.dataset) == 20
    batches = list(trainloader)
    assert [(x.shape, y.shape) for x, y in batches] == [((5, 3, 32, 32), (5,))] * 4
    assert sum(len(y) for _, y in validloader) == 6
    with pytest.raises(IndexError):
        validloader.dataset[6]


def test_normalization_augmentation_and_order_can_be_switched_off(cifar_root, defs):
    defs.augmentations = False
    _, plain, valid = inversefed.construct_dataloaders("CIFAR10", defs, cifar_root, shuffle=False, normalize=False)
    pixels = datasets.load("CIFAR10", cifar_root, "train")
    assert torch.equal(torch.cat([x for x, _ in plain]), pixels.batch(range(20))[0])
    assert valid.dataset[0][0].min() >= 0 and valid.dataset[0][0].max() <= 1
    defs.augmentations = True
    _, moved, _ = inversefed.construct_dataloaders("CIFAR10", defs, cifar_root, shuffle=False, normalize=False)
    assert not torch.equal(torch.cat([x for x, _ in moved]), pixels.batch(range(20))[0])


def test_loaders_leave_the_global_state_and_follow_it(cifar_root, defs):
    def draw():
        torch.manual_seed(5)
        before = torch.get_rng_state()
        _, loader, _ = inversefed.construct_dataloaders("CIFAR10", defs, cifar_root)
        drawn = torch.cat([x for x, _ in loader])
        assert torch.equal(torch.get_rng_state(), before)
        return drawn

    assert torch.equal(draw(), draw())


def test_other_data_sets(tmp_path, defs):
    draw = np.random.default_rng(0)
    for part in ("train", "t10k"):
        pixels = draw.integers(0, 256, (3, 28, 28), dtype=np.uint8)
        header = bytes([0, 0, 8, 3]) + b"".join(int(side).to_bytes(4, "big") for side in pixels.shape)
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + pixels.tobytes()))
        labels = bytes([0, 0, 8, 1]) + (3).to_bytes(4, "big") + bytes([1, 2, 3])
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    for name in ("MNIST", "MNIST_GRAY"):
        _, _, validloader = inversefed.construct_dataloaders(name, defs, tmp_path)
        assert next(iter(validloader))[0].shape == (3, 1, 28, 28)
    with pytest.raises(ConfigError, match="did you mean CIFAR10"):
        inversefed.construct_dataloaders("CIFAR", defs, tmp_path)
    with pytest.raises(InputError, match="data_batch_1"):
        inversefed.construct_dataloaders("CIFAR10", defs, tmp_path)


@pytest.mark.parametrize(
    ("name", "small", "large", "noisy"),
    [
        ("BSDS-SR", (3, 85, 85), (3, 255, 255), False),
        ("BSDS-DN", (1, 255, 255), (1, 255, 255), True),
        ("BSDS-RGB", (3, 255, 255), (3, 255, 255), True),
    ],
)
def test_pictures_to_restore_come_in_pairs(name, small, large, noisy, tmp_path, defs):
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        pixels = np.random.default_rng(1).integers(0, 256, (300, 280, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / part / "a.png")
    loss_fn, trainloader, _ = inversefed.construct_dataloaders(name, defs, tmp_path)
    spoiled, target = trainloader.dataset[0]
    assert spoiled.shape == small and target.shape == large and len(trainloader.dataset) == 1
    if noisy:
        assert float((spoiled - target).std()) == pytest.approx(25 / 255, rel=0.05)
        assert float(loss_fn.metric(spoiled[None], target[None])[0]) == pytest.approx(20.17, abs=0.3)
    assert loss_fn() == ("MSE", ".6f") and loss_fn.metric() == ("avg PSNR", ".3f")
    assert float(loss_fn(target, target + 0.2)[0]) == pytest.approx(0.02)


def test_the_loss_says_its_name_and_format(cifar_root, defs):
    loss_fn, _, _ = inversefed.construct_dataloaders("CIFAR10", defs, cifar_root)
    x, y = torch.tensor([[2.0, 0.0], [3.0, 1.0]]), torch.tensor([0, 1])
    value, name, spec = loss_fn(x, y)
    assert (name, spec) == ("CrossEntropy", "1.5f") == loss_fn() and torch.equal(value, F.cross_entropy(x, y))
    value, name, spec = loss_fn.metric(x, y)
    assert (name, spec) == ("Accuracy", "6.2%") == loss_fn.metric() and value.item() == 0.5


def test_strategies_are_the_zoos_recipes():
    assert recipe_of(inversefed.training_strategy("conservative")) == training.conservative()
    adam = inversefed.training_strategy("adam")
    assert (adam.optimizer, adam.lr, adam.warmup, adam.batch_size) == ("AdamW", 1e-4, True, 32)
    assert recipe_of(adam).rate(0) < recipe_of(adam).rate(20) == pytest.approx(1e-4)
    with pytest.raises(ConfigError, match="did you mean conservative"):
        inversefed.training_strategy("conservativ")


@pytest.mark.parametrize(
    ("field", "value"), [("optimizer", "Adam"), ("scheduler", "cyclic"), ("lr", 0.0), ("epochs", 0)]
)
def test_settings_that_do_not_exist_are_refused(field, value):
    defs = inversefed.training_strategy("conservative")
    setattr(defs, field, value)
    with pytest.raises(ConfigError):
        recipe_of(defs)


def test_training_happens_in_place_and_is_told(cifar_root, defs, capsys):
    loss_fn, trainloader, validloader = inversefed.construct_dataloaders("CIFAR10", defs, cifar_root)
    model, _ = inversefed.construct_model("ConvNet8", seed=0)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    setup = {"device": torch.device("cpu"), "dtype": torch.float}
    stats = inversefed.train(model, loss_fn, trainloader, validloader, defs, setup=setup)
    assert not torch.equal(model.state_dict()["conv0.weight"], before["conv0.weight"])
    assert not model.training and all(weight.grad is None for weight in model.parameters())
    assert set(stats) == {"train_losses", "train_Accuracy", "valid_losses", "valid_Accuracy"}
    assert [len(values) for values in stats.values()] == [2, 2, 2, 2]
    assert capsys.readouterr().out.count("Epoch: ") == 2
    assert torch.equal(torch.get_rng_state(), state)


def test_validation_measures_without_changing(cifar_root, defs):
    loss_fn, _, validloader = inversefed.construct_dataloaders("CIFAR10", defs, cifar_root)
    model, _ = inversefed.construct_model("ConvNet8", seed=0)
    before, stats = copy.deepcopy(model.state_dict()), {}
    inversefed.training.training_routine.validate(model, loss_fn, validloader, defs, None, stats)
    assert model.training and all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    x, y = (torch.cat(parts) for parts in zip(*validloader, strict=True))
    with torch.no_grad():
        expected = F.cross_entropy(model.eval()(x), y)
    assert stats["valid_losses"] == [pytest.approx(float(expected), rel=1e-4)]


def test_a_dry_run_is_one_batch(cifar_root, defs):
    defs.dryrun, seen = True, []
    loss_fn, trainloader, validloader = inversefed.construct_dataloaders("CIFAR10", defs, cifar_root)
    model, _ = inversefed.construct_model("ConvNet8", seed=0)
    model.register_forward_hook(lambda *_: seen.append(None))
    inversefed.train(model, loss_fn, trainloader, validloader, defs)
    assert len(seen) == 2


def test_training_that_diverges_ends_early(cifar_root, defs, capsys):
    loss_fn, trainloader, validloader = inversefed.construct_dataloaders("CIFAR10", defs, cifar_root)
    model, _ = inversefed.construct_model("ConvNet8", seed=0)
    with torch.no_grad():
        model.linear.weight.fill_(float("nan"))
    stats = inversefed.train(model, loss_fn, trainloader, validloader, defs)
    assert len(stats["train_losses"]) == 1 and "terminating early" in capsys.readouterr().out


def test_no_batch_is_an_error(lenet, defs):
    loss_fn = inversefed.compat.losses.classification()
    with pytest.raises(InputError, match="no batch"):
        inversefed.training.training_routine.validate(lenet, loss_fn, [], defs, None, {})
