"""Clients that train in train mode: BatchNorm couples the batch, and dropout's masks are the client's own."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from inversefed import Batch, FedAvg, FedSGD, Observation, ThreatModel, freeze, observe, recipes
from inversefed.attacks.pieces.parametrizations import SpansRange, Spectral
from inversefed.attacks.simulations import AveragedMasks, OptimizedMasks
from inversefed.evaluation.align import align
from inversefed.evaluation.metrics import peak_signal_noise_ratio
from inversefed.fl.dropout import dropout_layers, mask_shapes
from inversefed.zoo import pictures

SHAPE = (3, 8, 8)


def photos(n: int) -> torch.Tensor:
    return torch.stack([pictures.photo(name, SHAPE) for name in pictures.photo_names()[:n]])


def dropping(p: float = 0.5) -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 16, 3, 2, 1), nn.Sigmoid(), nn.Flatten(), nn.Dropout(p), nn.Linear(256, 64), nn.Sigmoid()]
    return nn.Sequential(*body, nn.Dropout(p), nn.Linear(64, 4)).train()


def coupled() -> nn.Module:
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 24, 3, 2, 1), nn.BatchNorm2d(24), nn.Sigmoid(), nn.Flatten()]
    return nn.Sequential(*body, nn.Linear(384, 4)).train()


def seen(module: nn.Module, client: object, images: torch.Tensor) -> Observation:
    private = freeze(module, SHAPE, mean=0.5, std=0.25).with_masks(7)
    batch = Batch(images, torch.arange(len(images)) % 4)
    update = client(private, batch.images, batch.labels)
    return observe(private, client, update, batch, ThreatModel(labels="known"))


def decibels(found: torch.Tensor, truth: torch.Tensor) -> float:
    return float(peak_signal_noise_ratio(found[align(found, truth)], truth).mean())


def found(attack: object, observation: Observation) -> torch.Tensor:
    return attack(observation, torch.Generator().manual_seed(0)).images


def test_masks_that_are_searched_beat_masks_that_are_guessed() -> None:
    truth = photos(1)
    observation = seen(dropping(), FedSGD(), truth)
    gray = decibels(torch.full_like(truth, 0.5), truth)
    guessed = decibels(found(recipes.smoothed(100), observation), truth)
    searched = decibels(found(recipes.dropout_inversion(100), observation), truth)
    assert guessed < gray < 20 and searched > 26


def test_masks_of_each_local_step_are_searched() -> None:
    truth = photos(1)
    observation = seen(dropping(0.3), FedAvg(local_steps=2, lr=0.05), truth)
    variables = OptimizedMasks().start(observation, torch.Generator())
    assert {name: tuple(part.shape) for name, part in variables.items()} == {
        "mask:3": (2, 1, 256),
        "mask:6": (2, 1, 64),
    }
    guessed = decibels(found(recipes.smoothed(80), observation), truth)
    assert decibels(found(recipes.dropout_inversion(80), observation), truth) > guessed + 8


def test_given_masks_are_those_that_are_drawn() -> None:
    observation = seen(dropping(), FedSGD(), photos(2))
    network, images = observation.network, photos(2)
    drawn: dict[str, torch.Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, x, y, name=name: drawn.update({name: ((y != 0) | (x[0] == 0)).float()}))
        for name, layer in dropout_layers(network.module).items()
    ]
    expected = network.features(images)
    for hook in hooks:
        hook.remove()
    torch.testing.assert_close(replace(network, masks=drawn, mask_seed=5).features(images), expected)
    stacked = {name: mask[None] for name, mask in drawn.items()}
    assert torch.equal(replace(network, masks=stacked).at_step(0).masks["3"], drawn["3"])
    assert mask_shapes(network.module, lambda: network.features(images)) == {"3": (256,), "6": (64,)}
    assert not any(layer._forward_hooks for layer in network.module.modules()), "hooks are taken off again"


def test_an_average_over_masks_is_the_mean_of_single_draws() -> None:
    observation = seen(dropping(), FedSGD(), photos(2))
    images, labels, network = photos(2), torch.arange(2), observation.network
    mean = AveragedMasks(3)(observation, {}, images, labels).predicted
    single = [FedSGD()(network.with_masks(10_000 * draw), images, labels) for draw in range(3)]
    assert not torch.equal(single[0]["4.weight"], single[1]["4.weight"])
    torch.testing.assert_close(mean["4.weight"], sum(each["4.weight"] for each in single) / 3)


def test_a_batch_that_batchnorm_couples_is_reconstructed_up_to_contrast_and_brightness() -> None:
    truth = photos(4)
    observation = seen(coupled(), FedSGD(), truth)
    before = {name: buffer.clone() for name, buffer in observation.network.module.named_buffers()}
    images = found(recipes.train_mode(100), observation)

    gray = decibels(torch.full_like(truth, 0.5), truth)
    assert decibels(images, truth) > gray + 1.5

    def settled(x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(dim=(0, 2, 3), keepdim=True)
        return x / x.std() * truth.std() + truth.mean(dim=(0, 2, 3), keepdim=True)

    mean_color = decibels(truth.mean(dim=(0, 2, 3), keepdim=True).expand_as(truth), truth)
    assert decibels(settled(images), truth) > mean_color + 6
    for name, buffer in observation.network.module.named_buffers():
        assert torch.equal(buffer, before[name]), "the attack's copy never updates its statistics"


@pytest.mark.parametrize("contrast", [0.3, 2.0])
def test_a_first_convolution_before_batchnorm_in_train_mode_hides_contrast(contrast: float) -> None:
    module = coupled().double()
    module[0].bias.data.zero_()
    network = freeze(module, SHAPE, mean=0.5, std=0.25)
    images, labels = photos(4).double(), torch.arange(4)
    # The loss sees BatchNorm's eps, hence not to the last digit.
    changed = network.denormalize(contrast * network.normalize(images))
    one, other = (FedSGD()(network, each, labels) for each in (images, changed))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-3)


def test_inputs_span_the_range_of_pictures() -> None:
    network = freeze(coupled(), SHAPE, mean=(0.4, 0.5, 0.6), std=0.25)
    drawn = torch.randn((2, *SHAPE), generator=torch.Generator().manual_seed(0)) * 3 + 1
    inputs = SpansRange(Spectral()).bound(network)(drawn)
    channels = inputs.mean(dim=(0, 2, 3))
    assert float(channels.max() - channels.min()) < 1e-5
    ends = torch.quantile(inputs * 0.25 + 0.5, torch.tensor([0.005, 0.995]))
    torch.testing.assert_close(ends, torch.tensor([0.02, 0.95]), atol=1e-4, rtol=0)
