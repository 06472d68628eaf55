"""Names to values: `"FedAvg(local_steps=4)"` is read as the piece of that name, and nothing else is run.

The grammar is that of the pieces' own `repr`: a name, or a name with arguments that are numbers, text,
tuples or further pieces. So what a report says of an attack is what builds it again. Names come from the
modules' `__all__`; case, dashes and underscores do not count.
"""

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from inversefed.errors import ConfigError, InversefedError, unknown_name

__all__ = ["KINDS", "MODULES", "build", "choices", "import_object"]

KINDS: Mapping[str, tuple[str, ...]] = {
    "client": ("fl.clients",),
    "defense": ("fl.defenses",),
    "loss": ("fl.losses",),
    "attack": (
        "attacks.recipes",
        "attacks.adaptive",
        "attacks.search.inversion",
        "attacks.auto",
        "attacks.exact.april",
        "attacks.exact.dense_batch.cocktail_party",
        "attacks.exact.linear",
        "attacks.exact.text.embedding_rows",
        "attacks.exact.text.span_sentences",
        "attacks.exact.transformer.patch_embedding",
        "attacks.exact.peel.attack",
        "attacks.exact.head_inversion",
        "attacks.exact.dense_batch.spear",
        "attacks.exact.categories",
    ),
    "prior": ("attacks.pieces.priors", "attacks.pieces.batchnorm_prior"),
    "objective": ("attacks.pieces.objectives", "attacks.pieces.likelihoods", "attacks.pieces.quantized"),
    "precision": ("attacks.search.precision",),
    "inputs": ("inputs.columns", "inputs.images", "inputs.series", "inputs.tokens"),
}
"""What a user can choose, and the modules whose `__all__` is the choice."""

_PARTS = (
    "attacks.rules",
    "attacks.pieces.group_consistency",
    "attacks.search.convergence",
    "attacks.exact.dense_batch.sparse_directions",
    "attacks.exact.text.roles",
    "attacks.pieces.deep_prior",
    "attacks.pieces.denoisers",
    "attacks.labels",
    "attacks.pieces.tensor_weights",
    "attacks.pieces.optimizers",
    "attacks.pieces.parametrizations",
    "attacks.pieces.projections",
    "attacks.search.restart_pruning",
    "attacks.pieces.schedules",
    "attacks.pieces.selection",
    "attacks.simulations",
    "attacks.pieces.starts",
    "fl.accounting",
    "fl.clients.local_optimizers",
)
"""Pieces that only occur inside others."""

_CODE = re.compile(r"'[^']*'|\"[^\"]*\"|([A-Za-z_][\w.]*):([A-Za-z_]\w*)")
"""Text in quotation marks, or `pkg.mod:Name`."""
_FOREIGN = "__foreign__"
"""How a name from elsewhere begins for the parser."""

MODULES = (*(module for group in KINDS.values() for module in group), *_PARTS)
"""Every module whose `__all__` is a choice."""


def choices(kind: str) -> dict[str, Callable[..., Any]]:
    """The pieces of a kind, by name.

    >>> sorted(choices("client"))
    ['DPSGD', 'FedAvg', 'FedSGD', 'Shares', 'SumOfClients']
    """
    return _public(KINDS[kind])


def build(kind: str, text: str, trust_code: bool = False) -> Any:
    """Build a piece from its name or its `repr`.

    Args:
        kind: what it is, one of `KINDS`.
        text: its name, with arguments or without; `pkg.mod:Name` names a piece from elsewhere.
        trust_code: whether `pkg.mod:Name` may be imported, which runs that module's code.

    Raises:
        ConfigError: an unknown name or argument, code that is not trusted, or anything that is not a name with plain
            arguments.

    >>> build("client", "FedAvg(local_steps=2, lr=1e-3)").lr
    0.001
    """
    if (code := named_code(text)) and not trust_code:
        raise ConfigError(
            f"{kind} {text!r} names code, {code[0]}, which is run when it is imported; if you trust it, say so: "
            "--trust-code, or trust_code=True"
        )
    if _FOREIGN in text:  # ours alone: whoever writes it wants code to be run that nobody trusted
        raise ConfigError(f"{kind} {text!r} is not a name with arguments; write, say, {_example(kind)}")
    try:
        tree = ast.parse(_CODE.sub(_placed, text.strip()), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise ConfigError(f"cannot read {kind} {text!r}; write a name such as {_example(kind)}") from error
    value = _value(tree, kind, text)
    if isinstance(value, type):
        value = _called(value, text)
    if isinstance(tree, ast.Name | ast.Call):
        return value
    raise ConfigError(f"{kind} {text!r} is not a name with arguments; write, say, {_example(kind)}")


def named_code(text: str) -> list[str]:
    """The `pkg.mod:Name` in a text, those within quotation marks left out.

    >>> named_code("GradientInversion(priors=(my.priors:Curvature(0.1),))"), named_code("Shares(names=('a:b',))")
    (['my.priors:Curvature'], [])
    """
    return [match[0] for match in _CODE.finditer(text) if match[1]]


def _placed(match: re.Match[str]) -> str:
    """A `pkg.mod:Name` as an identifier, for the parser of Python."""
    return match[0] if not match[1] else _FOREIGN + match[0].replace(".", "__dot__").replace(":", "__in__")


def _path_of(name: str) -> str:
    """The `pkg.mod:Name` behind an identifier that stands for one."""
    return name.removeprefix(_FOREIGN).replace("__dot__", ".").replace("__in__", ":")


def _called(piece: Callable[..., Any], path: str, positional: Sequence[Any] = (), named: Mapping[str, Any] = {}) -> Any:
    """A piece from elsewhere, called with these arguments, of which nothing is known."""
    try:
        return piece(*positional, **named)
    except InversefedError:
        raise
    except Exception as error:  # foreign code: whatever it raises means the same
        raise ConfigError(
            f"{path} raised {type(error).__name__}: {error}; it is called with the arguments that are written behind it"
        ) from error


def import_object(path: str) -> Any:
    """Import `pkg.mod:name`; this runs that module's code.

    Raises:
        ConfigError: no such module or name.
    """
    module, _, name = path.partition(":")
    if str(Path.cwd()) not in sys.path:  # as `python -m` has it
        sys.path.insert(0, str(Path.cwd()))
    try:
        return getattr(import_module(module), name)
    except Exception as error:  # foreign code: whatever it raises means the same
        raise ConfigError(
            f"cannot import {name!r} from {module!r}: {error}; write pkg.mod:name, importable from where you stand"
        ) from error


def _public(modules: tuple[str, ...]) -> dict[str, Callable[..., Any]]:
    loaded = [import_module(f"inversefed.{module}") for module in modules]
    return {name: getattr(module, name) for module in loaded for name in module.__all__}


def _example(kind: str) -> str:
    return " or ".join(list(choices(kind))[:2])


def _value(node: ast.expr, kind: str | None, text: str) -> Any:
    match node:
        case ast.Constant(value=int() | float() | str() | None as value):
            return value
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
            return -value
        case ast.Tuple(elts=elements) | ast.List(elts=elements):
            return tuple(_value(element, None, text) for element in elements)
        case ast.Name(id=name) if name.startswith(_FOREIGN):
            return _find(name, kind)
        case ast.Name(id=name):
            return _call(_find(name, kind), name, [], {})
        case ast.Call(func=ast.Name(id=name), args=args, keywords=keywords) if all(k.arg for k in keywords):
            positional = [_value(arg, None, text) for arg in args]
            named = {str(k.arg): _value(k.value, None, text) for k in keywords}
            return _call(_find(name, kind), name, positional, named)
    raise ConfigError(f"{text!r} may hold names, numbers, text and tuples, but not {ast.unparse(node)!r}")


def _find(name: str, kind: str | None) -> Callable[..., Any]:
    if name.startswith(_FOREIGN):
        found: Callable[..., Any] = import_object(_path_of(name))
        return found
    known = choices(kind) if kind else _public(MODULES)
    keys = {_key(each): piece for each, piece in known.items()}
    if _key(name) not in keys:
        raise unknown_name(kind or "piece", name, known)
    return keys[_key(name)]


def _key(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _call(piece: Callable[..., Any], name: str, positional: list[Any], named: dict[str, Any]) -> Any:
    if name.startswith(_FOREIGN):
        return _called(piece, _path_of(name), positional, named)
    parameters = inspect.signature(piece).parameters
    for each in named:
        if each not in parameters:
            raise unknown_name(f"argument of {name}", each, parameters)
    try:
        bound = inspect.signature(piece).bind(*positional, **named).arguments
    except TypeError as error:
        raise ConfigError(f"{name}: {error}; it takes {inspect.signature(piece)}") from error
    hints = get_type_hints(piece.__init__ if dataclasses.is_dataclass(piece) else piece)
    for each, value in bound.items():
        _check(f"{name}({each}=...)", value, hints.get(each, Any))
    return piece(**bound)


def _check(where: str, value: Any, hint: Any) -> None:
    """Hold plain values to the plain types that a piece declares; pieces check themselves."""
    if get_origin(hint) is Literal:
        allowed, fits = get_args(hint), value in get_args(hint)
    else:
        allowed = get_args(hint) if isinstance(hint, UnionType) else (hint,)
        if any(each not in (int, float, str, bool, NoneType) for each in allowed):
            return
        fits = type(value) in allowed or (float in allowed and type(value) is int)
    if not fits:
        expected = " or ".join(getattr(each, "__name__", repr(each)) for each in allowed)
        raise ConfigError(f"{where} must be {expected}, got {value!r}")
