"""The type checks of the test run: shapes by jaxtyping, all other types by beartype, at every call.

The import hook of jaxtyping puts its decorator on each function and dataclass of the package. Its own decorator binds
the arguments by `inspect`, checks them before the call and once more after it, and makes two checkers of a function
whenever that is defined: more work than most functions do. This one takes its place, with the same checks:

    arguments, the call, what it returns: in one memory of sizes, so that `n` is the same number in all three

The checkers of a signature are made once and not before its first call; functions that are defined within others have
the same ones each time.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

import jaxtyping
from beartype import beartype
from beartype.roar import BeartypeCallHintViolation

Function = Callable[..., Any]
Checkers = tuple[Function, Function | None]

_sizes = jaxtyping.jaxtyped("context")
_made: dict[object, Checkers] = {}


def jaxtyped(given: Any = None, *, typechecker: object) -> Any:
    """The decorator that the import hook looks up by this name; beartype checks, whatever the type checker is."""
    if given is None:
        return functools.partial(jaxtyped, typechecker=typechecker)
    if isinstance(given, (classmethod, staticmethod)):
        return type(given)(_checked(given.__func__))
    if isinstance(given, property):
        return property(*(each and _checked(each) for each in (given.fget, given.fset, given.fdel)))
    if not inspect.isclass(given):
        return _checked(given)
    if is_dataclass(given) and given.__init__.__globals__["__name__"] != __name__:  # not one that is checked already
        given.__init__ = _checked(given.__init__)
    return given


def _checked(function: Function) -> Function:
    takes: Function | None = None
    gives: Function | None = None

    @functools.wraps(function)
    def call(*args: object, **kwargs: object) -> object:
        nonlocal takes, gives
        __tracebackhide__ = True
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        if takes is None:
            takes, gives = _checkers(function)
        with _sizes:
            _held(takes, *args, **kwargs)
            found = function(*args, **kwargs)
            if gives is not None:
                _held(gives, found)
            return found

    return call


def _held(checker: Function, *args: object, **kwargs: object) -> None:
    __tracebackhide__ = True
    try:
        checker(*args, **kwargs)
    except BeartypeCallHintViolation as error:
        raise jaxtyping.TypeCheckError(str(error)) from error


def _checkers(function: Function) -> Checkers:
    """What takes the arguments of a function and what takes its result, both of which do nothing but check them."""
    try:
        key = function.__module__, function.__qualname__, function.__code__, tuple(function.__annotations__.items())
        found = _made.get(key)
    except TypeError:  # an annotation without a hash
        return _made_of(function)
    if found is None:
        found = _made[key] = _made_of(function)
    return found


def _made_of(function: Function) -> Checkers:
    hints = {name: _resolved(hint, function.__globals__) for name, hint in function.__annotations__.items()}
    result = {"return": hints.pop("return")} if "return" in hints else {}
    signature = inspect.signature(function)
    bare = [
        each.replace(annotation=each.empty, default=each.default if each.default is each.empty else None)
        for each in signature.parameters.values()
    ]
    text = str(signature.replace(parameters=bare, return_annotation=signature.empty))
    names: dict[str, Any] = {}
    exec(f"def takes{text}: pass\ndef gives(found): return found", names)
    takes, gives = names["takes"], names["gives"]
    takes.__defaults__, takes.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    for each, held in ((takes, hints), (gives, result)):
        each.__annotations__, each.__module__, each.__qualname__ = held, function.__module__, function.__qualname__
    return beartype(takes), beartype(gives) if result else None


def _resolved(hint: object, names: Mapping[str, object]) -> object:
    """An annotation with the types in the place of their names; of names that nobody has, anything."""

    def holder() -> None: ...

    holder.__annotations__ = {"it": hint}
    try:
        return typing.get_type_hints(holder, dict(names), include_extras=True)["it"]
    except Exception:  # as jaxtyping does
        return Any


jaxtyping.jaxtyped = jaxtyped
