"""Training settings as 2020 wrote them, and their translation into a recipe of the zoo."""

from dataclasses import dataclass

from inversefed.errors import ConfigError, unknown_name
from inversefed.zoo.training import Recipe

__all__ = ["TrainingStrategy", "recipe_of", "training_strategy"]

_OPTIMIZERS = {"SGD": "sgd", "AdamW": "adamw"}


@dataclass
class TrainingStrategy:
    """How to train; scripts change the fields as they like.

    Args:
        epochs: passes over the training set.
        batch_size: examples a step.
        optimizer: `"SGD"` (Nesterov momentum 0.9) or `"AdamW"`.
        lr: learning rate at its highest.
        scheduler: `"linear"`, x0.1 after 3/8, 5/8 and 7/8 of the epochs, or `"none"`.
        warmup: let `lr` rise over the first twelfth.
        weight_decay: of either optimizer.
        dropout: of no effect, as in 2020: it belongs to the network.
        augmentations: shift and mirror the training pictures at random.
        dryrun: one batch of one epoch only.
        validate: epochs between two validations.
    """

    epochs: int = 120
    batch_size: int = 128
    optimizer: str = "SGD"
    lr: float = 0.1
    scheduler: str = "linear"
    warmup: bool = False
    weight_decay: float = 5e-4
    dropout: float = 0.0
    augmentations: bool = True
    dryrun: bool = False
    validate: int = 10


def training_strategy(
    strategy: str, lr: float | int | None = None, epochs: int | None = None, dryrun: bool = False
) -> TrainingStrategy:
    """Return a preset.

    Args:
        strategy: `"conservative"` or `"adam"`.
        lr: instead of the preset's.
        epochs: instead of the preset's 120.
        dryrun: one batch only.

    Raises:
        ConfigError: an unknown name.

    >>> training_strategy("conservative", lr=0.05, epochs=3).epochs
    3
    """
    presets = {
        "conservative": TrainingStrategy(),
        "adam": TrainingStrategy(optimizer="AdamW", lr=1e-4, batch_size=32, warmup=True),
    }
    if strategy not in presets:
        raise unknown_name("training strategy", strategy, presets)
    defs = presets[strategy]
    defs.lr = defs.lr if lr is None else float(lr)
    defs.epochs = defs.epochs if epochs is None else epochs
    defs.dryrun = dryrun
    return defs


def recipe_of(defs: TrainingStrategy) -> Recipe:
    """Translate into what the zoo trains with.

    Raises:
        ConfigError: an unknown optimizer or scheduler, or a number out of range.
    """
    if defs.optimizer not in _OPTIMIZERS:
        raise unknown_name("optimizer", defs.optimizer, _OPTIMIZERS)
    if defs.scheduler not in ("linear", "none"):
        raise unknown_name("scheduler", defs.scheduler, ("linear", "none"))
    if defs.validate < 1:
        raise ConfigError(f"validate is a number of epochs, 1 or more, not {defs.validate}")
    return Recipe(
        optimizer=_OPTIMIZERS[defs.optimizer],
        lr=float(defs.lr),
        weight_decay=defs.weight_decay,
        batch_size=defs.batch_size,
        epochs=defs.epochs,
        milestones=(3 / 8, 5 / 8, 7 / 8) if defs.scheduler == "linear" else (),
        warmup=1 / 12 if defs.warmup else 0.0,
    )
