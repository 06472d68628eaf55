"""The wall: what an attack sees, and what is refused at it."""

from dataclasses import fields

import pytest
import torch
from torch import nn

from inversefed import Batch, FedSGD, Observation, ThreatModel, freeze, observe
from inversefed.errors import ConfigError, InputError, UpdateMismatchError

SHAPE = (3, 8, 8)


@pytest.fixture
def world(tiny: nn.Module) -> tuple:
    network = freeze(tiny, SHAPE).with_masks(77)
    batch = Batch(torch.rand(2, *SHAPE), torch.tensor([1, 3]))
    return network, batch, FedSGD()(network, batch.images, batch.labels)


def test_an_observation_holds_nothing_of_the_batch_but_its_size(world: tuple) -> None:
    network, batch, update = world
    seen = observe(network, FedSGD(), update, batch, ThreatModel())
    assert {each.name for each in fields(seen)} == {
        *("network", "client", "update", "num_examples", "labels", "buffers", "defenses")
    }
    assert seen.labels is None and seen.num_examples == 2 and seen.batch_shape == (2, 3, 8, 8)
    assert seen.network.mask_seed != 77, "the client's dropout draws must not pass"


def test_labels_pass_only_if_the_threat_model_says_so(world: tuple) -> None:
    network, batch, update = world
    seen = observe(network, FedSGD(), update, batch, ThreatModel(labels="known"))
    assert seen.labels is not None and seen.labels.tolist() == [1, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda u: {k: v for k, v in u.items() if k != "3.bias"}, "3.bias is missing"),
        (lambda u: {**u, "extra": torch.zeros(1)}, "extra is not a trainable parameter"),
        (lambda u: {**u, "3.bias": torch.zeros(5)}, r"3.bias has shape \(5,\), expected \(4,\)"),
        (lambda u: {k.upper(): v for k, v in u.items()}, "and 5 more"),
    ],
)
def test_an_update_that_does_not_fit_is_refused_by_name(world: tuple, change: object, message: str) -> None:
    network, _, update = world
    with pytest.raises(UpdateMismatchError, match=message):
        Observation(network, FedSGD(), change(update), 2)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_update_that_is_not_finite_is_refused(world: tuple, value: float) -> None:
    network, _, update = world
    with pytest.raises(InputError, match=r"NaN or infinite values in 0\.weight"):
        Observation(network, FedSGD(), {**update, "0.weight": torch.full_like(update["0.weight"], value)}, 2)


@pytest.mark.parametrize(
    ("labels", "message"),
    [(torch.tensor([0, 4]), "0..3"), (torch.tensor([-1, 0]), "0..3"), (torch.tensor([0]), "2 images need as many")],
)
def test_labels_that_do_not_fit_are_refused(world: tuple, labels: torch.Tensor, message: str) -> None:
    network, _, update = world
    with pytest.raises(InputError, match=message):
        Observation(network, FedSGD(), update, 2, labels)


def test_no_example_is_refused(world: tuple) -> None:
    network, _, update = world
    with pytest.raises(InputError, match="at least one example"):
        Observation(network, FedSGD(), update, 0)


@pytest.mark.parametrize(
    "bad",
    [{"labels": "some"}, {"counts": "known"}, {"server": "malicious"}, {"buffers": "batch"}],
)
def test_what_is_not_built_is_refused(bad: dict, unchecked: None) -> None:
    with pytest.raises(ConfigError, match="is not built"):
        ThreatModel(**bad)
