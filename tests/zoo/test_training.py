"""Training learns, repeats itself with the same generator, and leaves the caller's things alone."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from inversefed.errors import ConfigError, InputError
from inversefed.zoo import networks, training
from inversefed.zoo.augment import random_crop, random_flip
from inversefed.zoo.datasets import Arrays, Dataset
from inversefed.zoo.training import Recipe

QUICK = Recipe(lr=0.05, batch_size=16, epochs=3, milestones=(0.9,))


def tiny(n=48, seed=0, side=32):
    """Three classes that differ in their color channel, under noise."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    pixels = torch.randint(0, 100, (n, 3, side, side), generator=generator, dtype=torch.uint8)
    pixels[torch.arange(n), labels] += 120
    return Dataset("tiny", ("r", "g", "b"), (0.35,) * 3, (0.25,) * 3, (3, side, side), Arrays(pixels, labels))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("recipe", [QUICK, replace(QUICK, optimizer="adamw", lr=5e-3, warmup=2 / 3)])
def test_a_small_network_learns_a_separable_set(recipe):
    network = networks.build("ConvNet8", num_classes=3, seed=0)
    trained = training.train(network, tiny(240), tiny(30, seed=1), recipe, generator=generator())
    assert trained.accuracy == trained.history[-1].test_accuracy > 0.9
    assert trained.history[-1].train_loss < trained.history[0].train_loss
    assert training.evaluate(trained.module, tiny(30, seed=1)) == trained.accuracy


def test_the_callers_network_and_the_global_random_state_are_untouched():
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 8 * 8, 3)).train()
    weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = torch.get_rng_state()
    trained = training.train(network, tiny(side=8), tiny(side=8), QUICK, generator=generator())
    training.evaluate(network, tiny(side=8))
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(tensor, weights[name]) for name, tensor in network.state_dict().items())
    assert network.training and all(parameter.grad is None for parameter in network.parameters())
    assert not torch.equal(trained.module[2].weight, network[2].weight)


@pytest.mark.parametrize("augment", [True, False])
def test_the_generator_decides_everything_dropout_included(augment):
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(3 * 8 * 8, 3))

    def result(seed):
        torch.manual_seed(torch.seed() % 1000)  # the global state must not matter
        run = training.train(network, tiny(side=8), tiny(side=8), QUICK, generator=generator(seed), augment=augment)
        return run.module[2].weight

    assert torch.equal(result(1), result(1))
    assert not torch.equal(result(1), result(2))


def test_progress_is_told_by_callbacks():
    epochs, batches = [], []
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    data = tiny(40, side=8)
    run = training.train(
        network, data, data, QUICK, generator=generator(), on_epoch=epochs.append, on_batch=batches.append
    )
    assert tuple(epochs) == run.history
    assert [stats.epoch for stats in epochs] == [1, 2, 3]
    assert [stats.lr for stats in epochs] == pytest.approx([0.05, 0.05, 0.005])
    assert [(stats.epoch, stats.batch, stats.batches) for stats in batches[:3]] == [(1, 1, 2), (1, 2, 2), (2, 1, 2)]


def test_a_set_smaller_than_a_batch_is_one_batch():
    data = tiny(5, side=8)
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    run = training.train(network, data, data, QUICK, generator=generator())
    assert len(run.history) == 3


def test_divergence_says_to_lower_the_rate():
    network = nn.Sequential(nn.Flatten(), nn.Linear(192, 64), nn.Linear(64, 64), nn.Linear(64, 3))
    with pytest.raises(ConfigError, match=r"training diverged. Lower lr \(it was 1e\+20\)"):
        training.train(network, tiny(side=8), tiny(side=8), Recipe(lr=1e20, batch_size=8), generator=generator())


def test_labels_beyond_the_network_and_empty_sets_are_refused():
    data = tiny(side=8)
    with pytest.raises(InputError, match=r"label 2, but the network knows 2 classes; build it with num_classes=3"):
        training.train(nn.Sequential(nn.Flatten(), nn.Linear(192, 2)), data, data, QUICK, generator=generator())
    empty = Dataset("none", ("a",), (0.5,) * 3, (0.2,) * 3, (3, 8, 8), Arrays(torch.zeros(0, 3, 8, 8), torch.zeros(0)))
    with pytest.raises(InputError, match="none has no examples to train on"):
        training.train(nn.Flatten(), empty, data, QUICK, generator=generator())
    with pytest.raises(InputError, match="none has no examples to measure on"):
        training.evaluate(nn.Flatten(), empty)


def test_presets_are_those_of_2020():
    conservative, adam = training.conservative(), training.adam()
    assert (conservative.optimizer, conservative.lr, conservative.momentum) == ("sgd", 0.1, 0.9)
    assert (conservative.nesterov, conservative.weight_decay, conservative.batch_size) == (True, 5e-4, 128)
    assert [conservative.rate(epoch) for epoch in (44, 45, 74, 75, 104, 105)] == pytest.approx(
        [0.1, 0.01, 0.01, 0.001, 0.001, 0.0001]
    )
    assert (adam.optimizer, adam.lr, adam.epochs) == ("adamw", 1e-4, 120)
    assert [adam.rate(epoch) for epoch in (0, 4, 9, 44)] == pytest.approx([1e-5, 5e-5, 1e-4, 1e-4])
    assert training.conservative(lr=0.3, epochs=7).epochs == 7


@pytest.mark.parametrize("wrong", [{"optimizer": "lbfgs"}, {"lr": 0.0}, {"epochs": 0}, {"batch_size": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ConfigError, match=str(next(iter(wrong.values())))):
        Recipe(**wrong)


def test_crops_are_shifted_windows_of_the_padded_picture():
    images = torch.arange(1.0, 1 + 16 * 3 * 5 * 6).reshape(16, 3, 5, 6)
    crops = random_crop(images, 2, generator())
    padded = nn.functional.pad(images, (2, 2, 2, 2))
    found = [
        [(top, left) for top in range(5) for left in range(5) if torch.equal(p[:, top : top + 5, left : left + 6], c)]
        for p, c in zip(padded, crops, strict=True)
    ]
    assert all(len(places) == 1 for places in found)
    assert len({places[0] for places in found}) > 5
    assert torch.equal(random_crop(images, 0, generator()), images)
    with pytest.raises(ConfigError, match="0 or more, not -1"):
        random_crop(images, -1, generator())


def test_about_half_of_the_pictures_are_mirrored():
    images = torch.rand(200, 1, 2, 3)
    flipped = random_flip(images, generator())
    mirrored = (flipped == images.flip(-1)).all(-1).all(-1).all(-1)
    kept = (flipped == images).all(-1).all(-1).all(-1)
    assert (mirrored ^ kept).all()
    assert 70 < mirrored.sum() < 130


@pytest.mark.parametrize("recipe", [QUICK, replace(QUICK, optimizer="adamw", lr=1e-2)])
def test_training_takes_the_steps_of_a_plain_loop(recipe):
    data, network = tiny(12, side=8), nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    run = training.train(network, data, data, replace(recipe, batch_size=12), generator=generator(), augment=False)
    x, y = data.batch(range(12))
    x = (x - 0.35) / 0.25
    weight, bias = (p.detach().clone().requires_grad_() for p in network.parameters())
    settings = {"lr": recipe.lr, "weight_decay": 5e-4}
    sgd = torch.optim.SGD([weight, bias], momentum=0.9, nesterov=True, **settings)
    optimizer = sgd if recipe.optimizer == "sgd" else torch.optim.AdamW([weight, bias], **settings)
    for factor in (1, 1, 0.1):  # the milestone at 0.9 of 3 epochs is before the third
        optimizer.param_groups[0]["lr"] = recipe.lr * factor
        optimizer.zero_grad()
        nn.functional.cross_entropy(x.flatten(1) @ weight.T + bias, y).backward()
        optimizer.step()
    assert torch.allclose(run.module[1].weight, weight, atol=1e-5)
    assert not torch.allclose(run.module[1].weight, network[1].weight, atol=1e-3)
