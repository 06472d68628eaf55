"""A piece as tables name it: what differs from the defaults, and nothing else.

    FedAvg(local_steps=2, lr=0.0001, batch_size=0, ..) -> FedAvg(local_steps=2)
    GradientInversion(objective=Cosine(..), ..)        -> geiping(max_iterations=60)

The text builds an equal piece again wherever the defaults are the same; records hold the whole text (`written`).
"""

import functools
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from inversefed.attacks import recipes
from inversefed.specs.written import written

__all__ = ["short"]


def short(piece: object) -> str:
    """The name of a piece, with those of its settings that are not its defaults.

    >>> from inversefed.fl.clients import FedAvg
    >>> short(FedAvg(local_steps=2)), short(recipes.geiping(max_iterations=60)), short(recipes.best())
    ('FedAvg(local_steps=2)', 'geiping(max_iterations=60)', 'best')
    """
    if isinstance(piece, tuple):
        return f"({', '.join(map(short, piece))}{',' if len(piece) == 1 else ''})"
    if not is_dataclass(piece) or isinstance(piece, type):
        return written(piece)
    named = [(name, _differs(piece, base)) for name, base in _recipes().items() if type(base) is type(piece)]
    name, changed = min([*named, (type(piece).__name__, _changed(piece))], key=lambda each: len(each[1]))
    settings = ", ".join(f"{key}={short(value)}" for key, value in changed.items())
    return f"{name}({settings})" if settings else name


def _changed(piece: Any) -> Mapping[str, Any]:
    """The settings that are not the class's own defaults."""
    found = {}
    for each in fields(piece):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if each.init and each.repr and getattr(piece, each.name) != default:
            found[each.name] = getattr(piece, each.name)
    return found


def _differs(piece: Any, base: Any) -> Mapping[str, Any]:
    """The settings that are not those of a recipe."""
    both = {each.name: (getattr(piece, each.name), getattr(base, each.name)) for each in fields(piece) if each.init}
    return {name: value for name, (value, usual) in both.items() if value != usual}


@functools.cache
def _recipes() -> Mapping[str, Any]:
    """What each recipe makes without arguments."""
    return {name: getattr(recipes, name)() for name in recipes.__all__}
