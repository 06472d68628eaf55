"""A state dict's pickle, read as data: the few instructions that describe tensors, and no other.

A pickle is a program for a machine with a stack. `torch.save` uses some thirty instructions of it, and calls three
functions, none of which has to run to learn names, shapes and places. So this machine has these instructions only; a
call of anything else is refused before it is more than a name. Nothing is imported, built or run.

The format is described in Python's `pickletools`, whose `genops` takes the bytes apart.
"""

import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inversefed.errors import InputError, shown
from inversefed.updates.files.limits import MAX_OPCODES
from inversefed.updates.files.opening import Source

__all__ = ["Call", "Named", "Stored", "described"]


@dataclass(frozen=True, slots=True)
class Named:
    """A function or class that the pickle names; it stays a name."""

    path: str


@dataclass(frozen=True, eq=False, slots=True)
class Stored:
    """A storage that the pickle refers to: `("storage", type, key, device, numel)`."""

    reference: tuple[Any, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Call:
    """A call that the pickle asks for; it is not made."""

    path: str
    arguments: tuple[Any, ...]


_ORDERED = "collections.OrderedDict"
_ALLOWED = frozenset({_ORDERED, "torch.Size"}) | frozenset(
    f"torch._utils._rebuild_{what}" for what in ("tensor_v2", "parameter", "parameter_with_state")
)
_STORAGES = frozenset(
    f"torch.{kind}Storage"
    for kind in ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
)
_READ = _ALLOWED | _STORAGES
_KNOWN = {
    "_rebuild_sparse": "a sparse tensor (call .to_dense())",
    "_rebuild_qtensor": "a quantized tensor (call .dequantize())",
}


class _Machine:
    """The stack, the marks in it, and the memory of one run."""

    def __init__(self, source: Source) -> None:
        self.source, self.stack, self.outer, self.memory = source, list[Any](), list[list[Any]](), dict[int, Any]()

    def pop(self) -> Any:
        return self.stack.pop()

    def since_mark(self) -> list[Any]:
        found, self.stack = self.stack, self.outer.pop()
        return found

    def mark(self, _: Any) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def named(self, path: str) -> None:
        if path not in _READ:
            what = next((text for key, text in _KNOWN.items() if key in path), shown(path))
            raise self.source.unsafe(
                f"it asks for {what}, and only dense tensors by name are read; save `module.state_dict()`, or write "
                "safetensors"
            )
        self.stack.append(Named(path))

    def stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self.named(f"{module}.{name}" if isinstance(module, str) and isinstance(name, str) else "?")

    def reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Named) or not isinstance(arguments, tuple):
            raise self.source.unsafe("it calls what is no function")
        if function.path == _ORDERED and not arguments:
            self.stack.append({})
        elif function.path == "torch.Size" and len(arguments) == 1:
            self.stack.append(arguments[0])
        else:
            self.stack.append(Call(function.path, arguments))

    def refer(self, _: Any) -> None:
        reference = self.pop()
        if not isinstance(reference, tuple):
            raise self.source.unsafe("it refers to something that is no storage")
        self.stack.append(Stored(reference))

    def build(self, _: Any) -> None:
        """The attributes of a state dict, such as its `_metadata`; they are not needed."""
        self.pop()
        if not isinstance(self.stack[-1], dict):
            raise self.source.unsafe("it gives attributes to something that is no state dict")

    def put_all(self, pairs: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(pairs) % 2:
            raise self.source.unsafe("it fills something that is no dictionary")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            # Numbers are keys in the state of optimizers. Tuples could be nested until their hash takes forever.
            if type(key) not in (str, int):
                raise self.source.unsafe("it has a key that is neither text nor a number")
            if key in target:
                raise self.source.unsafe(f"it has the name {shown(str(key))} twice")
            target[key] = value

    def append_all(self, values: list[Any]) -> None:
        if not isinstance(self.stack[-1], list):
            raise self.source.unsafe("it fills something that is no list")
        self.stack[-1].extend(values)

    def last(self, count: int) -> list[Any]:
        if len(self.stack) < count:
            raise IndexError
        found = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return found

    def remember(self, place: int) -> None:
        self.memory[place] = self.stack[-1]

    def push(self, value: Any) -> None:
        self.stack.append(value)


_Act = Callable[[_Machine, Any], object]
_ACTS: dict[str, _Act] = {
    **dict.fromkeys(("PROTO", "FRAME"), lambda _, __: None),
    **dict.fromkeys(
        ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
        _Machine.push,
    ),
    "NONE": lambda machine, _: machine.push(None),
    "NEWTRUE": lambda machine, _: machine.push(True),
    "NEWFALSE": lambda machine, _: machine.push(False),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "EMPTY_LIST": lambda machine, _: machine.push([]),
    "EMPTY_TUPLE": lambda machine, _: machine.push(()),
    "MARK": _Machine.mark,
    "TUPLE": lambda machine, _: machine.push(tuple(machine.since_mark())),
    "TUPLE1": lambda machine, _: machine.push(tuple(machine.last(1))),
    "TUPLE2": lambda machine, _: machine.push(tuple(machine.last(2))),
    "TUPLE3": lambda machine, _: machine.push(tuple(machine.last(3))),
    "SETITEM": lambda machine, _: machine.put_all(machine.last(2)),
    "SETITEMS": lambda machine, _: machine.put_all(machine.since_mark()),
    "APPEND": lambda machine, _: machine.append_all(machine.last(1)),
    "APPENDS": lambda machine, _: machine.append_all(machine.since_mark()),
    "GLOBAL": lambda machine, path: machine.named(path.replace(" ", ".", 1)),
    "STACK_GLOBAL": _Machine.stack_global,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.build,
    "BINPERSID": _Machine.refer,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _Machine.remember),
    "MEMOIZE": lambda machine, _: machine.remember(len(machine.memory)),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), lambda machine, place: machine.push(machine.memory[place])),
}


def described(source: Source, data: bytes) -> Any:
    """What a pickle describes: dictionaries, lists, tuples, numbers and text, with `Call` and `Stored` in them.

    Raises:
        UnsafeFileError: an instruction, a function or a number of instructions that no state dict needs.
        InputError: the pickle is damaged.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "error", DeprecationWarning
            )  # an escape that is none, in the argument of an instruction
            return _run(source, data)
    except InputError:
        raise
    except (IndexError, KeyError) as error:
        raise source.damaged("its pickle takes what is not there") from error
    except (ValueError, DeprecationWarning) as error:
        raise source.damaged("its pickle is damaged") from error


def _run(source: Source, data: bytes) -> Any:
    machine = _Machine(source)
    for count, (code, value, _) in enumerate(pickletools.genops(data), start=1):
        if count > MAX_OPCODES:
            raise source.unsafe(f"its pickle has more than {MAX_OPCODES} instructions")
        if code.name == "STOP":
            return machine.pop()
        if code.name not in _ACTS:
            raise source.unsafe(f"its pickle has the instruction {code.name}, which no state dict needs")
        _ACTS[code.name](machine, value)
    raise source.damaged("its pickle has no end")
