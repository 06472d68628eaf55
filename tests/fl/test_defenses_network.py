"""Defenses of the network, and Soteria, which needs the client's network: PRECODE and dropout before the head."""

import pytest
import torch
from torch import nn

from inversefed import Batch, FedSGD, defenses, freeze
from inversefed.errors import ConfigError, UnsupportedNetworkError
from inversefed.fl.defenses import Context
from inversefed.fl.defenses.soteria import sensitivity
from inversefed.fl.simulate import observed

IMAGES, LABELS = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(0)), torch.tensor([3, 1])


def test_precode_puts_a_bottleneck_before_the_head_and_leaves_the_network(tiny: nn.Module) -> None:
    network = freeze(tiny, (3, 8, 8), mean=0.5, std=0.25)
    names = list(network.params)
    defended = defenses.PRECODE(width=5)(network)
    assert list(network.params) == names and defended.head == "3.1"
    assert defended.params["3.0.encoder.weight"].shape == (10, 96)
    torch.testing.assert_close(defended.params["3.1.weight"], network.params["3.weight"])
    again = defenses.PRECODE(width=5)(network)
    assert all(torch.equal(weight, again.params[name]) for name, weight in defended.params.items())


def test_precode_s_draws_are_the_client_s_own(tiny: nn.Module) -> None:
    network = defenses.PRECODE(width=5)(freeze(tiny, (3, 8, 8)))
    first, second, other = (network.with_masks(seed).features(IMAGES) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.allclose(first, other)


def test_the_server_sees_the_defended_network_but_not_its_draws(tiny: nn.Module) -> None:
    seen, _ = observed(tiny, IMAGES, LABELS, defenses=(defenses.PRECODE(5),))
    assert set(seen.update) == set(seen.network.params) and "3.0.decoder.bias" in seen.update
    repeated = FedSGD()(seen.network, IMAGES, LABELS)
    assert not torch.allclose(repeated["0.weight"], seen.update["0.weight"])


def test_dropout_is_on_before_the_head_alone(tiny: nn.Module) -> None:
    network = defenses.Dropout(0.5)(freeze(tiny, (3, 8, 8)))
    assert [name for name, layer in network.module.named_modules() if layer.training] == ["3.0"]
    assert not torch.allclose(network.with_masks(1).features(IMAGES), network.with_masks(2).features(IMAGES))


@pytest.mark.parametrize("defense", [defenses.PRECODE(), defenses.Dropout()])
def test_a_network_without_a_linear_head_is_refused(defense: object) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten())
    with pytest.raises(UnsupportedNetworkError):
        defense(freeze(module, (3, 8, 8)))


def test_soteria_touches_only_the_columns_that_determine_the_picture_most(tiny: nn.Module) -> None:
    network, batch = freeze(tiny, (3, 8, 8)), Batch(IMAGES, LABELS)
    update = FedSGD()(network, IMAGES, LABELS)
    sent = defenses.Soteria(0.25)(update, Context(network, batch), torch.Generator())
    assert all(torch.equal(sent[name], update[name]) for name in update if name != "3.weight")
    gone = (sent["3.weight"] == 0).all(dim=0)
    assert int(gone.sum()) == 24
    assert torch.equal(sent["3.weight"][:, ~gone], update["3.weight"][:, ~gone])
    ranks = sensitivity(network, IMAGES)
    assert ranks[gone].max() <= ranks[~gone].min()


def test_soteria_of_a_head_that_sees_the_picture_itself() -> None:
    network = freeze(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), (3, 2, 2))
    batch = Batch(torch.rand(1, 3, 2, 2), torch.tensor([1]))
    update = FedSGD()(network, batch.images, batch.labels)
    sent = defenses.Soteria(0.25)(update, Context(network, batch), torch.Generator())
    assert int((sent["1.weight"] == 0).all(dim=0).sum()) == 3 and torch.equal(sent["1.bias"], update["1.bias"])


def test_soteria_s_measure_is_the_norm_of_the_representation_s_gradient_over_its_size(tiny: nn.Module) -> None:
    network = freeze(tiny, (3, 8, 8))
    body, image = network.without_head(), IMAGES[:1]
    jacobian = torch.func.jacrev(lambda x: body.apply(body.params, x))(image).reshape(96, -1)
    expected = jacobian.norm(dim=1) / (body.features(image)[0].abs() + 1e-6)
    torch.testing.assert_close(sensitivity(network, image), expected)


@pytest.mark.parametrize(
    "make",
    [
        lambda: defenses.Soteria(0.0),
        lambda: defenses.PRECODE(0),
        lambda: defenses.Dropout(1.0),
        lambda: defenses.Mixup(0.0),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: object) -> None:
    with pytest.raises(ConfigError):
        make()
