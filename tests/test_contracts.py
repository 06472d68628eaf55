"""Contracts over every piece that a user can choose, taken from the modules' `__all__`: a new one is tested unasked."""

import dataclasses
import math
import pickle
from importlib import import_module
from types import ModuleType

import pytest
import torch
from torch import nn

from inversefed import Batch, FedSGD, Observation, ThreatModel, freeze, observe
from inversefed.attacks import recipes, rules
from inversefed.attacks.pieces import (
    likelihoods,
    objectives,
    priors,
    projections,
    quantized,
    starts,
)
from inversefed.attacks.search import inversion
from inversefed.cli import list as listing
from inversefed.evaluation import controls, metrics
from inversefed.evaluation.score import score
from inversefed.fl import clients, defenses
from inversefed.inputs import Category, Columns, Images, Number, Tokens
from inversefed.specs import registry
from inversefed.zoo.networks.language import Gpt

SHAPE = (3, 8, 8)
ARGUMENTS = {
    "Adaptive": (recipes.geiping(),),
    "Clip": (1.0,),
    "DPSGD": (0.0, 1e3),
    "ExcludeVars": ("bias",),
    "GaussianNoise": (0.1,),
    "Images": ((3, 8, 8),),
    "LaplaceNoise": (0.1,),
    "GaussianLikelihood": (0.1,),
    "LaplaceLikelihood": (0.1,),
    "RandomPruning": (0.5,),
    "Series": (1, 8),
    "StochasticQuantization": (4,),
    "TopK": (0.5,),
    "UniformQuantization": (4,),
    "First": (2,),
    "Last": (2,),
    "Largest": (2,),
    "At": ((0, 1),),
    "SeparatedFeatures": (recipes.geiping(),),
    "Shares": (FedSGD(), ("*",)),
    "Augmented": (defenses.ATS(("flip",)),),
    "Clipped": (1.0,),
    "Leaving": (("0.weight",),),
    "Masked": (objectives.SquaredError(),),
    "RoundingLikelihood": (4,),
    "TextRoles": ("wte.weight", "wpe.weight", ("h.0.weight",), ("h.1.weight",)),
    "Tokens": (12, 100),
    "Applies": (recipes.peel(),),
    "AtMost": (1e8,),
    "Rule": ((rules.Smooth(),), recipes.geiping(), "it is smooth"),
    "Polish": ((recipes.geiping(),),),
    "Number": ("age", 0.0, 100.0),
    "Category": ("sex", ("female", "male")),
    "Columns": ((Number("age", 0.0, 100.0),),),
    "AutoAttack": ((), (rules.Rule((), recipes.geiping(), "always"),), recipes.geiping(), recipes.geiping()),
}

OF_SENTENCES = {"embedding_rows", "token_span"}
"""Recipes for token ids."""
NEED_RELU = {"spear", "sparse"}
"""Recipes for a ReLU behind the first layer."""


class Attends(nn.Module):
    """A network for what reads transformers: four patches, their positions, one attention without norm or skip."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.positions = nn.Conv2d(3, 64, 4, 4), nn.Parameter(torch.randn(1, 4, 64))
        self.attention, self.head = nn.MultiheadAttention(64, 4, batch_first=True), nn.Linear(256, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = self.embed(images).flatten(2).mT + self.positions
        return self.head(self.attention(x, x, x)[0].flatten(1))


def pieces(module: ModuleType) -> list:
    return [pytest.param(getattr(module, name)(*ARGUMENTS.get(name, ())), id=name) for name in module.__all__]


@pytest.fixture
def world(tiny: nn.Module) -> tuple[Observation, Batch]:
    batch = Batch(torch.rand((2, *SHAPE), generator=torch.Generator().manual_seed(4)), torch.tensor([3, 1]))
    network = freeze(tiny, SHAPE, mean=0.5, std=0.25)
    update = FedSGD()(network, batch.images, batch.labels)
    return observe(network, FedSGD(), update, batch, ThreatModel()), batch


CHOOSABLE = [import_module(f"inversefed.{name}") for name in registry.MODULES if name != "attacks.recipes"]


@pytest.mark.parametrize("piece", [piece for module in CHOOSABLE for piece in pieces(module)])
def test_a_piece_is_a_frozen_value_that_prints_pickles_and_documents_itself(piece: object) -> None:
    assert dataclasses.is_dataclass(piece) and type(piece).__dataclass_params__.frozen
    assert pickle.loads(pickle.dumps(piece)) == piece and hash(piece) == hash(piece)
    assert type(piece).__doc__ and type(piece).__name__ in repr(piece)
    if dataclasses.fields(piece):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(piece, dataclasses.fields(piece)[0].name, None)


@pytest.mark.parametrize("kind", list(registry.KINDS))
def test_what_a_piece_prints_builds_it_again(kind: str) -> None:
    for name, make in registry.choices(kind).items():
        piece = make(*ARGUMENTS.get(name, ()))
        assert registry.build(kind, repr(piece)) == piece


@pytest.mark.parametrize("objective", pieces(objectives) + pieces(likelihoods) + pieces(quantized))
def test_an_objective_is_zero_on_equal_updates_positive_on_others_and_differentiable(
    objective: object, world: tuple[Observation, Batch], generator: torch.Generator
) -> None:
    update = world[0].update
    assert float(objective(update, update)) == pytest.approx(0.0, abs=1e-6)
    other = {k: (v + torch.randn(v.shape, generator=generator)).requires_grad_() for k, v in update.items()}
    value = objective(other, update)
    assert value.shape == () and value.item() > 1e-3
    assert any(
        float(part.abs().sum()) > 0
        for part in torch.autograd.grad(value, list(other.values()), allow_unused=True)
        if part is not None
    )


@pytest.mark.parametrize("prior", pieces(priors))
def test_a_prior_is_a_scalar_that_prefers_flat_pictures_and_scales_with_its_weight(
    prior: object, world: tuple[Observation, Batch]
) -> None:
    observation, batch = world
    flat, images = torch.full_like(batch.images, 0.5), batch.images.clone().requires_grad_()
    value = prior(images, observation)
    assert value.shape == () and value.item() > prior(flat, observation).item() >= 0
    (slope,) = torch.autograd.grad(value, images)
    assert bool(slope.isfinite().all()) and float(slope.abs().sum()) > 0
    doubled = dataclasses.replace(prior, weight=2 * prior.weight)
    assert doubled(images, observation).item() == pytest.approx(2 * value.item(), rel=1e-5)


@pytest.mark.parametrize(
    "defense", [piece for piece in pieces(defenses) if defenses.acts_on(*piece.values) == "update"]
)
def test_a_defense_keeps_names_and_shapes_leaves_its_input_and_follows_its_generator(
    defense: object, world: tuple[Observation, Batch]
) -> None:
    update, context = world[0].update, defenses.Context(world[0].network, world[1])
    before = {name: part.clone() for name, part in update.items()}
    first, second = (defense(update, context, torch.Generator().manual_seed(1)) for _ in range(2))
    assert list(first) == list(update)
    for name, part in first.items():
        assert part.shape == update[name].shape and torch.equal(part, second[name])
        assert torch.equal(update[name], before[name]) and bool(part.isfinite().all())
    assert any(not torch.equal(part, update[name]) for name, part in first.items())


@pytest.mark.parametrize("defense", [piece for piece in pieces(defenses) if defenses.acts_on(*piece.values) == "data"])
def test_a_defense_of_the_data_keeps_shapes_leaves_its_input_and_follows_its_generator(
    defense: object, world: tuple[Observation, Batch]
) -> None:
    images, labels = world[1].images, torch.eye(4)[world[1].labels]
    before = images.clone()
    (first, targets), (second, _) = (defense(images, labels, torch.Generator().manual_seed(1)) for _ in range(2))
    assert first.shape == images.shape and targets.shape == labels.shape and torch.equal(first, second)
    assert torch.equal(images, before) and not torch.equal(first, images)


@pytest.mark.parametrize(
    "defense", [piece for piece in pieces(defenses) if defenses.acts_on(*piece.values) == "network"]
)
def test_a_defense_of_the_network_gives_another_network_of_the_same_pictures_and_classes(
    defense: object, world: tuple[Observation, Batch]
) -> None:
    network = world[0].network
    before = {name: weight.clone() for name, weight in network.params.items()}
    defended = defense(network)
    assert (defended.image_shape, defended.num_classes) == (network.image_shape, network.num_classes)
    assert all(torch.equal(weight, before[name]) for name, weight in network.params.items())
    assert not torch.allclose(defended.features(world[1].images), network.features(world[1].images))


@pytest.mark.parametrize("client", pieces(clients))
def test_a_client_s_update_read_as_a_gradient_points_uphill(client: object, world: tuple[Observation, Batch]) -> None:
    (observation, batch) = world
    network = observation.network
    read = client.as_gradient(network, client(network, batch.images, batch.labels), 2)
    product = sum(float((read[name] * part).sum()) for name, part in observation.update.items())
    size = sum(float(part.square().sum()) for part in observation.update.values())
    assert product == pytest.approx(size, rel=0.05)


@pytest.mark.parametrize("start", pieces(starts))
def test_a_start_has_the_shape_and_dtype_asked_for_and_follows_its_generator(start: object) -> None:
    first, second = (start((2, 1, *SHAPE), torch.Generator().manual_seed(1), torch.float64) for _ in range(2))
    assert first.shape == (2, 1, *SHAPE) and first.dtype == torch.float64 and torch.equal(first, second)


@pytest.mark.parametrize("projection", pieces(projections))
def test_a_projection_keeps_the_shape_and_its_input(projection: object, world: tuple[Observation, Batch]) -> None:
    inputs = torch.randn(2, *SHAPE) * 5
    before = inputs.clone()
    assert projection(inputs, world[0].network, 500).shape == inputs.shape
    assert torch.equal(inputs, before)


@pytest.mark.parametrize("name", sorted(OF_SENTENCES))
def test_a_recipe_of_sentences_is_a_documented_attack_that_finds_one(name: str) -> None:
    torch.manual_seed(0)
    space, label = Tokens(8, 60), torch.tensor([2])
    ids, module = space.stand_ins(1, torch.Generator().manual_seed(1)), Gpt(60, 8, num_classes=4).eval()
    network = freeze(module, space)
    observation = observe(network, FedSGD(), FedSGD()(network, ids, label), Batch(ids, label), ThreatModel())
    assert getattr(recipes, name).__doc__
    found = getattr(recipes, name)()(observation, torch.Generator().manual_seed(0))
    assert found.labels.tolist() == [2] and torch.equal(found.images, ids) and found.proven


@pytest.mark.parametrize("name", [name for name in recipes.__all__ if name not in OF_SENTENCES])
def test_a_recipe_is_a_documented_attack_that_beats_its_start(name: str, world: tuple[Observation, Batch]) -> None:
    torch.manual_seed(0)
    between, width = nn.ReLU() if name in NEED_RELU else nn.Sigmoid(), 256 if name == "separated" else 32
    table = Columns(tuple(Category(str(place), ("a", "b", "c")) for place in range(5)))
    space = table if name == "categories" else Images(SHAPE)
    inputs = math.prod(space.shape)
    module: nn.Module = nn.Sequential(nn.Flatten(), nn.Linear(inputs, width), between, nn.Linear(width, 4))
    module = Attends() if name in ("april", "patch_embedding") else module
    images, truth = space.stand_ins(1, torch.Generator().manual_seed(1)), torch.tensor([2])
    network = freeze(module, space, mean=0.5, std=0.25)
    observation = observe(network, FedSGD(), FedSGD()(network, images, truth), Batch(images, truth), ThreatModel())
    make = getattr(recipes, name)
    assert make.__doc__
    attack = make()
    if isinstance(attack, inversion.GradientInversion):
        attack = dataclasses.replace(attack, max_iterations=30)
    found = attack(observation, torch.Generator().manual_seed(0))
    assert found.labels.tolist() == [2] and found.images.shape == images.shape
    guess = torch.rand_like(images)
    error = float((found.images.clamp(0, 1) - images).square().mean())
    assert error < 0.5 * float((guess - images).square().mean())


@pytest.mark.parametrize("name", recipes.__all__)
def test_a_recipe_tells_its_paper_its_needs_and_its_cost(name: str) -> None:
    assert [line.split(":")[0] for line in listing.facts(getattr(recipes, name))] == ["Paper", "Needs", "Cost"]


def test_every_metric_is_one_number_an_image_and_best_at_the_truth(world: tuple[Observation, Batch]) -> None:
    observation, batch = world

    def perceptual(images: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return (images - target).abs().mean(dim=(1, 2, 3))

    right = score(batch, batch, observation.network.features, perceptual)
    wrong = score(Batch(1 - batch.images, batch.labels.flip(0)), batch, observation.network.features, perceptual)
    assert list(right) == list(metrics.__all__) == sorted(metrics.__all__)
    for name, values in right.items():
        assert values.shape == (2,)
        sign = 1 if metrics.FACTS[name].higher_is_better else -1
        assert bool((sign * values > sign * wrong[name]).all()), name


def test_every_control_is_a_picture_for_each_truth(world: tuple[Observation, Batch]) -> None:
    for name, guess in controls.guesses(world[1]).items():
        assert guess.shape == world[1].images.shape, name
