"""Attacks as people read them: the recipe that makes one, with what was changed, and nothing of what it comes to.

    shown(attack) = shortest text among its `repr` and `recipe(..)`, `recipe(..).with_settings(..)` that make it

A record holds the attack whole; `repr(recipes.best())` alone has 18,000 characters.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeAlias

from inversefed.attacks import Attack, SearchAttack, recipes
from inversefed.attacks.adaptive import Adaptive
from inversefed.attacks.auto import AutoAttack
from inversefed.attacks.portfolio import settings_of
from inversefed.attacks.search.inversion import GradientInversion
from inversefed.attacks.simulations import KnownClient
from inversefed.errors import ConfigError

__all__ = ["shown"]

Settings: TypeAlias = Mapping[str, Any]

_LIKELY = ("restarts", "precision", "compilation")
"""Settings that others follow from, such as what is pruned among restarts."""


def shown(attack: Attack) -> str:
    """The shortest text that says the whole attack: its recipe, with what was changed, or its `repr`.

    >>> from dataclasses import replace
    >>> shown(recipes.best().with_settings(restarts=4)), shown(replace(recipes.geiping(), max_iterations=100))
    ('best().with_settings(restarts=4)', 'geiping(max_iterations=100)')
    """
    if isinstance(attack, Adaptive):
        return f"Adaptive(attack={shown(attack.attack)}, defenses={attack.defenses!r}, beside={attack.beside!r})"
    whole = repr(attack)
    made = [text for name in recipes.__all__ for text in _made_by(name, getattr(recipes, name), attack, whole)]
    return min([*made, *_with_search(attack, whole), whole], key=len)


def _with_search(attack: Attack, whole: str) -> Iterator[str]:
    """The text by which the default, with one search for all rules, makes this attack."""
    if isinstance(attack, AutoAttack):
        changed, search = settings_of(attack), replace(attack.searches[0].attack, simulation=KnownClient())
        usual = recipes.best().with_settings(**changed) if changed else recipes.best()
        if repr(usual.with_search(search)) == whole:
            yield f"{shown(usual)}.with_search({shown(search)})"


def _made_by(name: str, recipe: Callable[..., Attack], attack: Attack, whole: str) -> Iterator[str]:
    """The texts by which a recipe makes this attack."""
    usual = recipe()
    if type(usual) is not type(attack):
        return
    for given, settings in _ways(dict(_changes(usual, attack)), attack, inspect.signature(recipe).parameters):
        with suppress(ConfigError):  # settings of one search of several, which do not go with another
            made = recipe(**given)
            if settings and isinstance(made, SearchAttack):
                made = made.with_settings(**settings)
            if repr(made) == whole:
                yield f"{name}({_arguments(given)})" + (f".with_settings({_arguments(settings)})" if settings else "")


def _ways(changes: Settings, attack: Attack, parameters: Collection[str]) -> Iterator[tuple[Settings, Settings]]:
    """Which changes a recipe may have been given, and which were made to what it came to."""
    yield {}, {name: changes[name] for name in _LIKELY if name in changes}
    given = {name: changes[name] for name in parameters if name in changes}
    rest = {name: value for name, value in changes.items() if name not in parameters}
    yield given, rest
    if "restarts" in rest and isinstance(attack, GradientInversion):
        yield given, {**rest, "pruning": attack.pruning}  # which would follow from their number


def _changes(usual: object, other: object) -> Iterator[tuple[str, Any]]:
    """The settings in which the searches within two attacks differ, with those of the other one."""
    if isinstance(usual, tuple) and isinstance(other, tuple):
        for one, two in zip(usual, other, strict=False):
            yield from _changes(one, two)
    elif is_dataclass(usual) and type(usual) is type(other):
        for name in (each.name for each in fields(usual)):
            one, two = getattr(usual, name), getattr(other, name)
            if not isinstance(usual, GradientInversion):
                yield from _changes(one, two)
            elif repr(one) != repr(two):
                yield name, two


def _arguments(settings: Settings) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())
