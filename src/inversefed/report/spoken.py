"""Sentences about pictures, said of what else an audit is of: rows of a table, sentences, windows of a series.

Sentences are written for pictures. Of another input space its own noun stands in their place; what a user named (cells,
files, attacks) is never touched.
"""

import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from typing import Any, TypeVar

from inversefed.inputs import InputSpace, pictured

__all__ = ["noun", "spoken", "spoken_of"]

_PICTURES = re.compile(r"(?<![-\w.])(picture|Picture|image|Image)(s?)\b")

Value = TypeVar("Value")


def noun(space: InputSpace | None) -> str:
    """What one example is called.

    >>> noun(None)
    'picture'
    """
    return "picture" if space is None or pictured(space) else space.noun


def spoken(text: str, space: InputSpace | None) -> str:
    """A sentence with the noun of the space in the place of "picture" and "image"; as it is for pictures."""
    word = noun(space)
    if word == "picture":
        return text

    def other(match: re.Match[str]) -> str:
        return (word.capitalize() if match[1][0].isupper() else word) + match[2]

    return _PICTURES.sub(other, text)


def spoken_of(value: Value, space: InputSpace | None, names: tuple[str, ...] = ()) -> Value:
    """A value whose texts are sentences, all of them or those of its fields of these names, said of the space."""
    return value if noun(space) == "picture" else _said(value, space, names)


def _said(value: Any, space: InputSpace | None, names: tuple[str, ...] = ()) -> Any:
    if isinstance(value, Enum):
        return value
    if isinstance(value, str):
        return spoken(value, space)
    if isinstance(value, tuple):
        return tuple(_said(each, space) for each in value)
    if isinstance(value, Mapping) or not is_dataclass(value) or isinstance(value, type):
        return value
    own = {each.name: getattr(value, each.name) for each in fields(value) if each.init}
    told = {name: _said(each, space) for name, each in own.items() if not names or name in names}
    return replace(value, **told)
