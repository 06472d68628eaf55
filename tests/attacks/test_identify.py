"""Identifiability: counts that are facts of linear algebra, and the words of the exact methods themselves."""

import json

import pytest
import torch
from torch import nn

from inversefed import Batch, FedAvg, FedSGD, LocalAdam, Observation, ThreatModel, defenses, freeze, observe
from inversefed.attacks.exact.april import AttentionInput
from inversefed.attacks.exact.dense_batch.spear import SparseBatch
from inversefed.attacks.exact.linear import LinearInput
from inversefed.attacks.exact.peel.attack import Peel, head_of, known_exactly
from inversefed.attacks.exact.peel.conv_input import gradient_matrix
from inversefed.attacks.exact.peel.forecast import forecast
from inversefed.attacks.exact.peel.layers import descend
from inversefed.attacks.exact.peel.state import Setting as Peeling
from inversefed.attacks.exact.transformer.patch_embedding import EmbeddedPatches
from inversefed.attacks.identifiability.identify import Identifiability, identify
from inversefed.attacks.identifiability.layer_counts import LayerEquations, numerical_rank
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.networks.layer_chain import chain, flat
from inversefed.networks.layer_shapes import geometry
from inversefed.zoo import networks


def seen(module: nn.Module, images: torch.Tensor, client: object = FedSGD(), *changes: object) -> Observation:
    batch = Batch(images, torch.arange(len(images)))
    network = freeze(module, tuple(images.shape[1:]), mean=0.5, std=0.25)
    update = client(network, batch.images, batch.labels)
    for change in changes:
        update = change(update, defenses.Context(network, batch), torch.Generator().manual_seed(1))
    return observe(network, client, update, batch, ThreatModel())


def perceptron() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(48, 40), nn.ReLU(), nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 12))


def pictures(count: int, side: int = 4) -> torch.Tensor:
    return torch.rand((count, 3, side, side), generator=torch.Generator().manual_seed(2))


def layer(found: Identifiability, name: str) -> LayerEquations:
    return next(row for row in found.layers if row.name == name)


def codes(found: Identifiability) -> set[str]:
    return {finding.code for finding in found.limits}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 3, 7])
def test_the_rank_of_a_linear_gradient_is_the_number_of_examples(count: int, dtype: torch.dtype) -> None:
    found = identify(seen(perceptron().to(dtype), pictures(count).to(dtype)))
    assert [row.rank for row in found.layers] == [count] * 3
    assert found.least_examples == count and found.bound_by


def test_a_repeated_picture_lowers_the_rank_and_the_bound_stays_a_lower_bound() -> None:
    images, labels = pictures(2)[[0, 0, 1]], torch.tensor([4, 4, 4])
    network = freeze(perceptron(), (3, 4, 4))
    update = FedSGD()(network, images, labels)
    found = identify(Observation(network, FedSGD(), update, 3))
    assert found.least_examples == 2 < found.examples


def test_a_layer_that_runs_at_several_places_bounds_the_examples_by_its_rank_over_the_places() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Linear(12, 20), nn.Linear(20, 8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.embed(x.flatten(2).transpose(1, 2).reshape(-1, 4, 12)).tanh().mean(dim=1))

    torch.manual_seed(0)
    found = identify(seen(Tokens(), pictures(2)))
    row = layer(found, "embed")
    assert (row.rank, row.rank_bound, row.places) == (8, 8, 4)
    assert found.least_examples == 2


def test_two_local_steps_on_one_picture_may_have_rank_two_and_still_bound_one_example() -> None:
    found = identify(seen(perceptron().double(), pictures(1).double(), FedAvg(local_steps=2, lr=0.1)))
    assert layer(found, "5").rank == 2 == layer(found, "5").rank_bound
    assert found.least_examples == 1 and "local-steps" in codes(found)


def test_numbers_are_the_dimension_of_the_matrices_of_that_rank() -> None:
    """Count by the rank of the Jacobian of `(D, A) -> D^T [A 1]`, which is that dimension."""
    torch.manual_seed(0)
    delta, inputs = torch.randn(2, 5).double(), torch.randn(2, 6).double()
    jacobian = torch.autograd.functional.jacobian(
        lambda d, a: torch.cat([d.T @ a, d.sum(0)[:, None]], 1).flatten(), (delta, inputs)
    )
    stacked = torch.cat([part.reshape(35, -1) for part in jacobian], dim=1)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(6, 5))
    found = identify(seen(wide, torch.rand(2, 6, 1, 1)))
    assert int(torch.linalg.matrix_rank(stacked)) == found.numbers == 20
    mixed = next(finding for finding in found.limits if finding.code == "mixed-examples")
    assert mixed.evidence["free"] == 2 * (5 + 6) - 20


def test_numbers_bound_the_rank_of_the_update_s_jacobian_and_settled_means_full_rank() -> None:
    """The truth by brute force: how the update of one example moves with its picture."""
    torch.manual_seed(0)
    for module, full in (
        (nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(96, 4)), True),
        (nn.Sequential(nn.Conv2d(3, 2, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(18, 4)), False),
    ):
        observation = seen(module.double(), pictures(1, 8).double())
        network, found = observation.network, identify(observation)

        def update(image: torch.Tensor) -> torch.Tensor:
            parts = FedSGD()(network, image, torch.tensor([0]))  # noqa: B023
            return torch.cat([part.flatten() for part in parts.values()])

        jacobian = torch.autograd.functional.jacobian(update, pictures(1, 8).double()).reshape(-1, 192)
        rank = int(torch.linalg.matrix_rank(jacobian))
        assert rank <= found.numbers and (rank == 192) is full
        assert found.verdict == ("determined" if full else "underdetermined")


@pytest.mark.parametrize("geometry_of", [(3, 1, 1), (3, 2, 1), (5, 2, 2), (5, 3, 0), (2, 2, 0), (1, 2, 0)])
def test_the_equations_of_a_convolution_are_the_generic_rank_of_its_matrix(geometry_of: tuple[int, int, int]) -> None:
    kernel, stride, padding = geometry_of
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, kernel, stride, padding).double()
    outputs = conv(torch.zeros(1, 3, 9, 9).double())[0]
    module = nn.Sequential(conv, nn.Tanh(), nn.Flatten(), nn.Linear(outputs.numel(), 4).double())
    row = layer(identify(seen(module, pictures(1, 9).double())), "0")
    matrix = gradient_matrix(conv, (3, 9, 9), torch.randn_like(outputs)[None])
    assert row.measured and row.own == 3 * int(torch.linalg.matrix_rank(matrix))
    batch = layer(identify(seen(module, pictures(2, 9).double())), "0")
    assert not batch.measured and batch.own >= row.own and batch.unknowns == 2 * row.unknowns


def test_the_all_convolutional_network_is_determined_and_peeling_says_where_it_stops(photos: torch.Tensor) -> None:
    found = identify(seen(networks.build("AllConv", seed=0).eval(), photos[:1]))
    assert found.verdict == "determined" and "conv2" in found.reason
    rows = {row.name: row for row in found.layers}
    assert rows["linear"].settled and rows["conv2"].settled and not rows["conv1"].settled
    assert rows["conv2"].measured and rows["conv2"].suffices and not rows["conv1"].suffices
    assert found.methods[1].applies and "16384 features" in found.methods[1].reason
    assert not found.methods[0].applies


def test_a_perceptron_is_read_off_its_first_layer(photos: torch.Tensor) -> None:
    found = identify(seen(networks.build("MLP", seed=0), photos[:1]))
    assert found.verdict == "determined" and all(row.settled for row in found.layers)
    assert [method.applies for method in found.methods] == [True, True, True, False, False]
    assert "linear0" in found.methods[0].reason


def test_average_pooling_leaves_too_few_equations_whatever_the_method() -> None:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)]
    found = identify(seen(nn.Sequential(*layers), pictures(1, 16)))
    assert found.verdict == "underdetermined" and found.numbers < found.unknowns == 768
    assert {"too-few-equations", "average-pooling"} <= codes(found)
    assert "an average over 16x16 places hides" in found.methods[1].reason and not found.methods[1].applies


def test_max_pooling_is_no_linear_way_and_its_losers_are_named(photos: torch.Tensor) -> None:
    found = identify(seen(networks.build("McMahan", seed=0), photos[:1]))
    assert found.verdict == "open" and "max-pooling" in codes(found)
    assert layer(found, "linear0").settled and not layer(found, "conv1").settled
    assert "may not settle" in found.methods[1].reason


def test_a_zero_update_says_nothing() -> None:
    observation = seen(perceptron(), pictures(1))
    zero = {name: torch.zeros_like(part) for name, part in observation.update.items()}
    found = identify(Observation(observation.network, FedSGD(), zero, 1))
    assert found.verdict == "nothing" and found.numbers == 0 and codes(found) == {"zero-update"}
    assert not any(method.applies for method in found.methods) and found.least_examples == 0


def test_dead_rows_are_counted_where_a_relu_is_off() -> None:
    module = perceptron()
    with torch.no_grad():
        module[1].bias[:7] = -100
    found = identify(seen(module, pictures(2)))
    off = next(finding for finding in found.limits if finding.code == "zero-rows")
    gradient = seen(module, pictures(2)).update["1.weight"]
    assert off.evidence["rows"]["1"] == int((gradient == 0).all(dim=1).sum()) >= 7


@pytest.mark.parametrize("change", [defenses.GaussianNoise(1e-3), defenses.TopK(0.3)])
def test_an_altered_update_has_a_rank_that_its_examples_do_not_allow(change: object) -> None:
    found = identify(seen(perceptron(), pictures(1), FedSGD(), change))
    assert "rank-exceeds-examples" in codes(found) and found.verdict == "open"
    assert not found.methods[0].applies and "rank one" in found.methods[0].reason
    assert "roughly" in found.methods[1].reason


def test_a_rule_that_mixes_entries_bounds_no_rank() -> None:
    found = identify(seen(perceptron(), pictures(1), FedAvg(2, 0.01, optimizer=LocalAdam())))
    assert found.least_examples == 0 and all(row.rank is None for row in found.layers)
    assert "client-rule" in codes(found)


def test_methods_keep_the_reasons_that_they_refuse_with(photos: torch.Tensor) -> None:
    for observation in (seen(networks.build("ResNet50", seed=0).eval(), photos[:1]), seen(perceptron(), pictures(2))):
        for method, attack in zip(
            identify(observation).methods,
            (LinearInput(), Peel(), SparseBatch(), EmbeddedPatches(), AttentionInput()),
            strict=True,
        ):
            if method.name in ("peel", "sparse") and observation.num_examples == 2:
                assert method.applies and "2 examples" in method.reason
                continue
            with pytest.raises((ThreatModelError, UnsupportedNetworkError)) as refused:
                attack(observation, torch.Generator())
            assert not method.applies and method.reason == str(refused.value)


def leaky() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 2, 1), nn.LeakyReLU(), nn.Conv2d(8, 16, 3, 1, 1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Flatten(), nn.Linear(1024, 10),
    )  # fmt: skip


@pytest.mark.parametrize("name", ["LeNetZhu", "AllConv", "leaky", "ResNet20-4"])
def test_peeling_stops_where_it_was_said_to(name: str, photos: torch.Tensor) -> None:
    torch.manual_seed(0)
    module = leaky().eval() if name == "leaky" else networks.build(name, seed=0).eval()
    images = photos[:1, :, ::2, ::2] if name == "leaky" else photos[:1]
    observation = seen(module, images)
    layers, network = chain(observation.network), observation.network
    gradient = {name: part.double() for name, part in observation.gradient.items()}
    bounds = (torch.zeros(()).double(), torch.ones(()).double())
    peeling = Peeling(layers, gradient, network.image_shape, bounds, torch.finfo(torch.float32).eps)
    front = descend(peeling, head_of(peeling, observation)[0])
    expected = forecast(layers, network.image_shape)
    assert len(flat(front.left)) == expected.depth and front.values.numel() == expected.values


def test_what_the_head_gives_away_is_what_went_through_the_network(photos: torch.Tensor) -> None:
    module = networks.build("AllConv", seed=0).eval().double()
    observation = seen(module, photos[:1].double())
    layers, front = known_exactly(observation)
    truth = (photos[:1].double() - 0.5) / 0.25
    for part in layers[: front.depth]:
        truth = part.module(truth)
    on = front.weight != 0
    torch.testing.assert_close(front.values[on], truth[on], rtol=1e-6, atol=1e-9)


def test_all_of_it_is_json() -> None:
    observation = seen(perceptron(), pictures(2))
    before = {name: part.clone() for name, part in observation.update.items()}
    found = identify(observation)
    content = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert content["verdict"] == found.verdict and len(content["layers"]) == 3
    assert content["layers"][0]["suffices"] is True and content["methods"][0]["name"] == "linear"
    assert all(torch.equal(part, before[name]) for name, part in observation.update.items())


def test_weights_that_no_layer_holds_are_counted_too() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift, self.head = nn.Parameter(torch.zeros(48)), nn.Linear(48, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(x.flatten(1) + self.shift)

    observation = seen(Shifted(), pictures(1))
    found = identify(observation)
    assert found.entries == sum(part.numel() for part in observation.update.values()) == 48 + 48 * 3 + 3
    assert {part.name for part in geometry(observation.network)} == {"", "head"}


def test_a_projection_keeps_the_rank() -> None:
    torch.manual_seed(0)
    matrix = torch.randn(300, 6) @ torch.randn(6, 500)
    assert numerical_rank(matrix, 1e-3, 14) == numerical_rank(matrix, 1e-3) == 6


class NoSinglePicture(nn.Module):
    """A network whose forward pass, in its own mode, is only for batches."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 5)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training and len(images) < 3:
            raise RuntimeError("a batch is expected")
        return self.head(images.flatten(1))


def test_batchnorm_in_train_mode_with_one_place_a_channel_is_counted() -> None:
    pooled = (nn.Conv2d(3, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8))
    module = nn.Sequential(*pooled, nn.Flatten(), nn.Linear(8, 5)).train()
    found = identify(seen(module, pictures(4)))
    linear = next(method for method in found.methods if method.name == "linear")
    assert not linear.applies and "4" in linear.reason
    mixed = seen(nn.Sequential(nn.Flatten(), nn.Linear(48, 9), nn.BatchNorm1d(9), nn.Linear(9, 5)).train(), pictures(3))
    assert identify(mixed).examples == 3


def test_a_method_that_the_network_cannot_run_does_not_apply() -> None:
    found = identify(seen(NoSinglePicture().train(), pictures(4)))
    asked = [method for method in found.methods if "a batch is expected" in method.reason]
    assert asked and not any(method.applies for method in asked)
