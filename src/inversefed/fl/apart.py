"""A copy that shares no state with the original, for the world to run while the attack holds the original.

What a module, loss, client or defense keeps of the private batch (an attribute, a cache, what a hook's function closes
over) stays with the copy. `copy.deepcopy` alone shares functions, with all that their closures hold, and refuses a
module that kept a tensor with a graph.
"""

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

from torch import Tensor

from inversefed.errors import UnsupportedNetworkError

__all__ = ["apart"]

T = TypeVar("T")


def apart(value: T) -> T:
    """Copy a value, together with the closures and defaults of the functions that it holds.

    Functions' globals and attributes of classes are the program's own, and stay shared.

    Raises:
        UnsupportedNetworkError: something that it holds cannot be copied.

    >>> seen = []
    >>> def keep(value):
    ...     seen.append(value)
    >>> keeps = (lambda list_: lambda value: list_.append(value))(seen)
    >>> apart({"hook": keeps})["hook"]("private")
    >>> seen
    []
    """
    memo: dict[int, Any] = {}
    try:
        _enter(value, memo)
        return copy.deepcopy(value, memo)
    except Exception as error:  # whoever brings a piece may define how it is copied
        raise UnsupportedNetworkError(
            f"the network, loss, client or a defense holds something that cannot be copied ({error}), so that the "
            "attack would share it with the private run; remove the hook or attribute that holds it"
        ) from error


def _enter(value: object, memo: dict[int, Any]) -> None:
    """Enter copies of what `copy.deepcopy` shares or refuses into its memo: functions, and tensors with a graph."""
    for each in _special(value, set()):
        if id(each) in memo:
            continue
        if isinstance(each, Tensor):
            memo[id(each)] = each.detach().clone()
        else:
            _enter_function(each, memo)


def _enter_function(function: FunctionType, memo: dict[int, Any]) -> None:
    cells = function.__closure__ or ()
    own = tuple(memo.setdefault(id(cell), CellType()) for cell in cells)
    made = FunctionType(function.__code__, function.__globals__, function.__name__, closure=own or None)
    memo[id(function)] = made
    made.__dict__.update(function.__dict__)
    made.__qualname__, made.__doc__ = function.__qualname__, function.__doc__
    for part in (function.__defaults__, function.__kwdefaults__):
        _enter(part, memo)
    made.__defaults__ = copy.deepcopy(function.__defaults__, memo)
    made.__kwdefaults__ = copy.deepcopy(function.__kwdefaults__, memo)
    for cell, new in zip(cells, own, strict=True):
        with suppress(ValueError):  # one that was never filled stays so
            content = cell.cell_contents
            _enter(content, memo)
            new.cell_contents = content if isinstance(content, ModuleType) else copy.deepcopy(content, memo)


def _special(value: object, seen: set[int]) -> Iterator[FunctionType | Tensor]:
    """The functions that a value holds, with state of their own (a closure, or defaults), and tensors with a graph."""
    stack = [value]
    while stack:
        each = stack.pop()
        if id(each) in seen or isinstance(each, type | ModuleType):
            continue
        seen.add(id(each))
        if isinstance(each, Tensor):
            if not each.is_leaf:
                yield each
        elif isinstance(each, FunctionType) and (each.__closure__ or each.__defaults__ or each.__kwdefaults__):
            yield each
        stack += [*_held(each), *getattr(each, "__dict__", {}).values()]


def _held(value: object) -> Iterable[object]:
    if isinstance(value, MethodType):
        return [value.__self__]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, Mapping):
        return value.values()
    return value if isinstance(value, list | tuple | set | frozenset | deque) else ()
