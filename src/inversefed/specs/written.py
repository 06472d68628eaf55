"""Values to text, and to SHA-256: how a record names a piece, and by what it is held to be the same.

A piece of this package is written as its `repr`, which `registry.build` reads. One from elsewhere is written
`pkg.mod:Name(...)`, which is built only where code is trusted. What no name leads to (a function within a function, a
loss that holds weights) is written with a hash of all that it holds: it can be compared, and not built.
"""

import dataclasses
import hashlib
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from functools import partial, singledispatch
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from inversefed.fl.foreign import foreign_code
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.types import Batch, Params

__all__ = ["hash_of_batch", "hash_of_network", "hash_of_observation", "hash_of_tensors", "written"]

UNNAMED = " sha256:"
"""Stands in the text of what can be compared and not built."""


def written(piece: object) -> str:
    """A piece as text.

    >>> from inversefed.fl.clients import FedAvg
    >>> written(FedAvg(2, lr=0.1)) == repr(FedAvg(2, lr=0.1))
    True
    >>> written(nn.functional.cross_entropy)
    'torch.nn.functional:cross_entropy'
    """
    text = _named(piece)
    return f"{_path(piece)}{UNNAMED}{_hash(_content(piece))}" if text is None else text


def _named(piece: object) -> str | None:
    """The text that builds it again, or nothing."""
    match piece:
        case None | bool() | int() | float() | str():
            return repr(piece)
        case tuple() | list():
            parts = [_named(each) for each in piece]
            return None if None in parts else "(" + ", ".join(map(str, parts)) + ("," if len(parts) == 1 else "") + ")"
    importable = "<" not in _path(piece) and _found(piece)
    if isinstance(piece, FunctionType):
        return _path(piece) if importable else None
    if not importable or not dataclasses.is_dataclass(piece):
        return None
    settings = [each for each in dataclasses.fields(piece) if each.init and (each.compare or each.repr)]
    told = {each.name: _named(getattr(piece, each.name)) for each in settings}
    if None in told.values():
        return None
    if type(piece).__module__.split(".")[0] == "inversefed":
        shown = {each.name for each in dataclasses.fields(piece) if each.repr}
        told = {name: text for name, text in told.items() if name in shown}
        name = type(piece).__qualname__
    else:
        name = _path(piece)
    return f"{name}({', '.join(f'{key}={text}' for key, text in told.items())})"


def _path(piece: object) -> str:
    named = piece if isinstance(piece, FunctionType | type) else type(piece)
    return f"{named.__module__}:{named.__qualname__}"


def _found(piece: object) -> bool:
    """Whether its name leads to it."""
    named: Any = piece if isinstance(piece, FunctionType | type) else type(piece)
    return getattr(sys.modules.get(named.__module__), named.__qualname__, None) is named


def _content(value: object, above: frozenset[int] = frozenset()) -> Any:
    """All that a value holds, as JSON: what differs in it differs here; what holds itself is not entered again."""
    return "itself" if id(value) in above else _parts(value, above | {id(value)})


@singledispatch
def _parts(value: object, above: frozenset[int]) -> Any:
    if dataclasses.is_dataclass(value):
        held = {each.name: _content(getattr(value, each.name), above) for each in dataclasses.fields(value)}
        return [_path(value), held]
    if " at 0x" not in repr(value):
        return [_path(value), repr(value)]
    own: dict[str, object] = getattr(value, "__dict__", {})
    return [_path(value), _content({key: each for key, each in own.items() if _is_plain(each)}, above)]


@_parts.register
def _(value: int | str | None, _above: frozenset[int]) -> Any:
    return value


@_parts.register
def _(value: Tensor, _above: frozenset[int]) -> Any:
    return hash_of_tensors({"": value})


@_parts.register
def _(value: tuple | list, above: frozenset[int]) -> Any:  # type: ignore[type-arg]
    return [_content(each, above) for each in value]


@_parts.register
def _(value: Mapping, above: frozenset[int]) -> Any:  # type: ignore[type-arg]
    return sorted(([str(key), _content(each, above)] for key, each in value.items()), key=lambda pair: pair[0])


@_parts.register
def _(value: CodeType, above: frozenset[int]) -> Any:
    return [value.co_code.hex(), list(value.co_names), [_content(each, above) for each in value.co_consts]]


@_parts.register
def _(value: FunctionType, above: frozenset[int]) -> Any:
    cells = []
    for cell in value.__closure__ or ():
        with suppress(ValueError):  # one that was never filled
            cells.append(_content(cell.cell_contents, above))
    return [_path(value), _content(value.__code__, above), _content(value.__defaults__, above), cells]


@_parts.register
def _(value: BuiltinFunctionType, _above: frozenset[int]) -> Any:
    return value.__qualname__


@_parts.register
def _(value: partial, above: frozenset[int]) -> Any:  # type: ignore[type-arg]
    return [_content(value.func, above), _content(value.args, above), _content(value.keywords, above)]


@_parts.register
def _(module: nn.Module, above: frozenset[int]) -> Any:
    """Layers with their classes, modes and plain settings; weights and buffers by their bytes.

    What a `forward` computes beside its layers is code, and told only by its class.
    """
    layers = []
    for name, layer in module.named_modules():
        plain = {key: value for key, value in vars(layer).items() if not key.startswith("_") and _is_plain(value)}
        layers.append([name, _path(layer), layer.extra_repr(), _content(plain, above)])
    trained = [name for name, weight in module.named_parameters() if weight.requires_grad]
    return [layers, trained, hash_of_tensors({**dict(module.named_parameters()), **dict(module.named_buffers())})]


def _is_plain(value: object) -> bool:
    """Whether it is a number, text, tensor or function, or some of them: a setting, and no layer or hook."""
    plain = bool, int, float, str, tuple, list, Tensor, FunctionType, BuiltinFunctionType, type(None)
    return isinstance(value, plain)


def hash_of_tensors(tensors: Params) -> str:
    """SHA-256 of names, formats, shapes and bytes, in the order of the names.

    >>> ones = hash_of_tensors({"a": torch.ones(2)})
    >>> ones == hash_of_tensors({"a": torch.ones(2)}), ones == hash_of_tensors({"a": torch.ones(2, 1)})
    (True, False)
    """
    found = hashlib.sha256()
    for name in sorted(tensors):
        part = tensors[name].detach().cpu().contiguous()
        found.update(f"{name}\0{part.dtype}\0{tuple(part.shape)}\0".encode())
        if part.numel():
            found.update(part.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def hash_of_network(network: Network) -> str:
    """SHA-256 of a network: layers, modes, weights, buffers, and the pictures that it takes.

    Its loss and its input normalization are not among them: a record names them.
    """
    bounds = {"low": network.low, "high": network.high}
    with foreign_code("reading the network's settings for its SHA-256"):  # a layer's own repr may raise
        return _hash([_content(network.module), list(network.image_shape), hash_of_tensors(bounds)])


def hash_of_batch(batch: Batch) -> tuple[str, str]:
    """SHA-256 of pictures, and of their labels."""
    return hash_of_tensors({"images": batch.images}), hash_of_tensors({"labels": batch.labels})


def hash_of_observation(observation: Observation) -> str:
    """SHA-256 of what came from outside: update, client, number of examples, and labels and buffers if told."""
    labels = None if observation.labels is None else hash_of_tensors({"": observation.labels})
    buffers = None if observation.buffers is None else hash_of_tensors(observation.buffers)
    told = [observation.num_examples, labels, buffers, [written(each) for each in observation.defenses]]
    return _hash([hash_of_tensors(observation.update), written(observation.client), *told])


def _hash(content: Any) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()
