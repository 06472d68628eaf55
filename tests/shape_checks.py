"""The type checker of the test run: beartype, made once for a signature and not before its first call.

The import hook of jaxtyping makes two checkers of every function as it is defined, which takes some milliseconds: at
every import, and in every step of a search for the functions that it defines within others. Their signatures stay the
same, and so do their checkers; of a function that is never called none is made. Each call is checked as before.
"""

from collections.abc import Callable
from typing import Any

import beartype

Function = Callable[..., Any]

_checked_by_beartype: Callable[[Function], Function] = beartype.beartype
_made: dict[object, Function] = {}


def once(function: Function) -> Function:
    """A checker with the signature of `function`, which has none but an empty body: jaxtyping made it for this."""
    checker: Function | None = None

    def check(*args: object, **kwargs: object) -> object:
        nonlocal checker
        checker = checker or _made_once(function)
        return checker(*args, **kwargs)

    return check


def _made_once(function: Function) -> Function:
    defaults = len(function.__defaults__ or ()), tuple(function.__kwdefaults__ or ())
    signature = function.__module__, function.__qualname__, function.__code__, defaults
    try:
        key = signature, tuple(function.__annotations__.items())
        found = _made.get(key)
    except TypeError:  # an annotation without a hash
        return _checked_by_beartype(function)
    if found is None:
        found = _made[key] = _checked_by_beartype(function)
    return found


beartype.beartype = once  # jaxtyping looks its checker up by this name whenever it wraps a function
