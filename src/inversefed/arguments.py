"""Refuse arguments of an audit that cannot be used, before any work."""

from pathlib import Path

from inversefed.attacks import Attack, recipes
from inversefed.errors import ConfigError, InputError
from inversefed.evaluation.identification import unlike
from inversefed.fl.checks import check_images, check_pieces
from inversefed.fl.threat import Observation
from inversefed.types import Batch

__all__ = ["check_attack", "check_nulls", "check_taken_up", "checked_others"]


def check_attack(attack: Attack) -> None:
    """Refuse a recipe that was not called, and what is no attack at all.

    Raises:
        ConfigError: it cannot be used as it is.
    """
    check_pieces(attack=attack)
    if getattr(recipes, getattr(attack, "__name__", ""), None) is attack:
        raise ConfigError(f"attack must be a value such as recipes.geiping() or FedSGD(), called; got {attack!r}")


def check_taken_up(resume: str | Path | None) -> None:
    """Refuse a checkpoint that is not there, before any work.

    Raises:
        InputError: there is no such file.
    """
    if resume is not None and not Path(resume).is_file():
        raise InputError(f"cannot read the checkpoint {resume}: there is no such file")


def check_nulls(nulls: object) -> None:
    """Refuse what is no number of null runs.

    Raises:
        ConfigError: it is none.
    """
    if nulls is not None and (type(nulls) is not int or nulls < 0):
        raise ConfigError(
            f"nulls is a number of null runs from 0 (19 bound false alarms by 5 %), or None; got {nulls!r}"
        )


def checked_others(observation: Observation, others: Batch | None, truth: Batch | None) -> Batch | None:
    """Other pictures without those that are private ones: a control that knows the truth would hide any leak.

    Raises:
        InputError: none, another shape, or none but truths.
    """
    if others is None:
        return None
    if check_images(others.images) != tuple(observation.network.image_shape):
        expected, found = tuple(observation.network.image_shape), tuple(others.images.shape)
        raise InputError(f"others must be pictures of the network's shape {expected}; got {found}")
    if truth is None:
        return others
    public = unlike(others.images, truth.images)
    return Batch(others.images[public], others.labels[public.to(others.labels.device)])
