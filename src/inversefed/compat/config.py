"""The 2020 config dictionary, checked and read as an attack."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inversefed.attacks.labels import JointLabels, LabelRule
from inversefed.attacks.pieces import objectives, optimizers, selection, starts, tensor_weights
from inversefed.attacks.pieces.priors import TotalVariation
from inversefed.attacks.pieces.projections import Box, MedianFilter
from inversefed.attacks.pieces.schedules import Constant, StepDecay
from inversefed.attacks.search.inversion import GradientInversion, Projection, Selection, Start
from inversefed.attacks.search.problem import Objective
from inversefed.compat.metrics import InceptionScore
from inversefed.errors import ConfigError, unknown_name
from inversefed.fl.threat import Observation

DEFAULT_CONFIG: dict[str, Any] = {
    "signed": False,
    "boxed": True,
    "cost_fn": "sim",
    "indices": "def",
    "weights": "equal",
    "lr": 0.1,
    "optim": "adam",
    "restarts": 1,
    "max_iterations": 4800,
    "total_variation": 1e-1,
    "init": "randn",
    "filter": "none",
    "lr_decay": True,
    "scoring_choice": "loss",
}
"""The defaults of 2020 (not the paper's settings: those are `inversefed.recipes.geiping()`)."""


@dataclass(frozen=True)
class RandomTensors:
    """`indices="batch"`: eight tensors drawn anew at every evaluation, from the global random state as in 2020."""

    count: int = 8

    def __call__(self, predicted: Sequence[Tensor], observed: Sequence[Tensor]) -> Sequence[int]:
        """Random positions."""
        chosen: list[int] = torch.randperm(len(observed))[: self.count].tolist()
        return chosen


@dataclass(frozen=True)
class LowestInception:
    """`scoring_choice="inception"`: a prior that needs torchvision's trained Inception network."""

    def __call__(self, images: Tensor, observation: Observation) -> Tensor:
        """Inception score of the batch."""
        network = observation.network
        score: Tensor = InceptionScore(batch_size=1, setup={"device": network.device, "dtype": network.dtype})(images)
        return score


COSTS: dict[str, Callable[..., Objective]] = {
    "sim": objectives.Cosine,
    "l2": objectives.SquaredError,
    "l1": objectives.AbsoluteError,
    "max": objectives.MaxError,
    "simlocal": objectives.LayerwiseCosine,
}
INDICES: dict[str, tensor_weights.Selector] = {
    "def": tensor_weights.AllTensors(),
    "batch": RandomTensors(),
    "topk-1": tensor_weights.Largest(4),
    "topk-2": tensor_weights.Largest(4, of_predicted=True),
    **{f"top{count}": tensor_weights.Largest(count) for count in (10, 50)},
    "first": tensor_weights.First(4),
    **{f"first{count}": tensor_weights.First(count) for count in (4, 5, 10, 50)},
    **{f"last{count}": tensor_weights.Last(count) for count in (5, 10, 50)},
}
WEIGHTS: dict[str, tensor_weights.Weighting] = {
    "equal": tensor_weights.EqualWeights(),
    "linear": tensor_weights.LinearWeights(),
    "exp": tensor_weights.ExponentialWeights(),
}
STARTS: dict[str, Start] = {"randn": starts.Normal(), "rand": starts.Uniform(), "zeros": starts.Zeros()}
SELECTIONS: dict[str, Selection] = {
    "loss": selection.LowestLoss(),
    "tv": selection.LowestPrior(TotalVariation(1.0)),
    "inception": selection.LowestPrior(LowestInception()),
    "pixelmean": selection.PixelMean(),
    "pixelmedian": selection.PixelMedian(),
}
FILTERS: dict[str, tuple[Projection, ...]] = {"none": (), "median": (MedianFilter(3, 500),)}


def validated(config: Mapping[str, Any]) -> dict[str, Any]:
    """A full config: the given one over the defaults, in a new dictionary.

    Raises:
        ConfigError: a key or a value that the dialect does not have.
    """
    for key in config:
        if key not in DEFAULT_CONFIG:
            raise unknown_name("config key", key, DEFAULT_CONFIG)
    full = {**DEFAULT_CONFIG, **config}
    pick("cost_fn", full["cost_fn"], COSTS)
    pick("weights", full["weights"], WEIGHTS)
    pick("init", full["init"], STARTS)
    pick("scoring_choice", full["scoring_choice"], SELECTIONS)
    pick("filter", full["filter"], FILTERS)
    selector(full["indices"])
    _number(full, "total_variation")
    _optimizer(full)
    return full


def attack_of(config: Mapping[str, Any], labels: LabelRule | JointLabels, tolerance: float | None) -> GradientInversion:
    """The attack that a validated config describes."""
    boxes: tuple[Projection, ...] = (Box(),) if config["boxed"] else ()
    variation = _number(config, "total_variation")
    return GradientInversion(
        objective=objective(config["cost_fn"], config["indices"], config["weights"]),
        priors=(TotalVariation(variation),) if variation > 0 else (),
        start=STARTS[config["init"]],
        optimizer=_optimizer(config),
        schedule=StepDecay() if config["lr_decay"] else Constant(),
        projections=boxes + FILTERS[config["filter"]],
        labels=labels,
        max_iterations=config["max_iterations"],
        restarts=config["restarts"],
        selection=SELECTIONS[config["scoring_choice"]],
        keep="last",
        tolerance=tolerance,
    )


def objective(cost_fn: str, indices: str | Sequence[int], weights: str) -> Objective:
    """The cost of three names of the dialect."""
    cost: Objective = pick("cost_fn", cost_fn, COSTS)(selector(indices), pick("weights", weights, WEIGHTS))
    return cost


def selector(indices: str | Sequence[int]) -> tensor_weights.Selector:
    """Which tensors a value of `indices` means: a name, or positions."""
    if isinstance(indices, str):
        named: tensor_weights.Selector = pick("indices", indices, INDICES)
        return named
    positions: tuple[Any, ...] = tuple(indices) if isinstance(indices, Sequence) else ()
    if not positions or not all(type(position) is int for position in positions):
        raise ConfigError(f"indices is a name ({', '.join(INDICES)}) or a list of positions, not {indices!r}")
    return tensor_weights.At(positions)


def pick(key: str, name: str, choices: Mapping[str, Any]) -> Any:
    """Look a name up, or list those there are."""
    if not isinstance(name, str) or name not in choices:
        raise unknown_name(key, str(name), choices)
    return choices[name]


def _optimizer(config: Mapping[str, Any]) -> optimizers.Optimizer:
    """2020 fixed the steps of sgd (0.01) and L-BFGS (1), whatever `lr` said."""
    signed = bool(config["signed"])
    choices: dict[str, optimizers.Optimizer] = {
        "adam": optimizers.Adam(lr=_number(config, "lr"), signed=signed),
        "sgd": optimizers.SGD(signed=signed),
        "LBFGS": optimizers.LBFGS(signed=signed),
    }
    optimizer: optimizers.Optimizer = pick("optim", config["optim"], choices)
    for key in ("max_iterations", "restarts"):
        if type(config[key]) is not int or config[key] < 1:
            raise ConfigError(f"{key} is a whole number of at least 1, not {config[key]!r}")
    return optimizer


def _number(config: Mapping[str, Any], key: str) -> float:
    """A number of the config, which may be written 1 for 1.0."""
    try:
        return float(config[key])
    except (TypeError, ValueError):
        raise ConfigError(f"{key} is a number, not {config[key]!r}") from None
