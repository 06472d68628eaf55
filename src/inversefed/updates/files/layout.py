"""The layout of a file, names, number formats and shapes, before any number is read.

    file -> Layout (entries) -> fit (against the network) -> tensors

All readers end in a `Layout`, so that one place compares sizes with the network before anything is materialised.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor

from inversefed.errors import shown
from inversefed.updates.files.limits import MAX_DIMENSIONS, MAX_NAME, MAX_TENSORS
from inversefed.updates.files.opening import Source

__all__ = ["Entry", "Layout", "Notes", "check_entries", "check_shape", "tensor_of"]

Notes: TypeAlias = Mapping[str, str | int | float | bool]
"""What a file says beside its tensors, by name; not interpreted."""


@dataclass(frozen=True)
class Entry:
    """One tensor as its file describes it.

    Args:
        name: by which the network knows it.
        dtype: its number format.
        shape: its sides, slowest first.
        start: where its bytes begin, in the file or in the member.
        member: the part of an archive that holds it; empty where the file is none.
        order: its sides from the slowest to the fastest, where that is not their own order, as in Fortran.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int = 0
    member: str = ""
    order: tuple[int, ...] = ()

    @property
    def numel(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """How many bytes they take."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class Layout:
    """All that a file describes, and how to read a piece of it.

    Args:
        entries: its tensors, in the file's order.
        read: takes an entry to its tensor, while the file is open.
        notes: what stands beside the tensors.
        positional: whether the names are mere positions, `arr_0` and so on.
    """

    entries: tuple[Entry, ...]
    read: Callable[[Entry], Tensor] = field(repr=False)
    notes: Notes = field(default_factory=dict)
    positional: bool = False


def check_entries(source: Source, entries: Iterable[Entry]) -> None:
    """Refuse too many tensors, none, and names that no module can have.

    Raises:
        UnsafeFileError: the names or their number are beyond what networks have.
        InputError: there is no tensor.
    """
    names = [entry.name for entry in entries]
    if not names:
        raise source.damaged("it holds no tensor")
    if len(names) > MAX_TENSORS:
        raise source.unsafe(f"it holds {len(names)} tensors, and no more than {MAX_TENSORS} are read")
    if len(set(names)) < len(names):
        twice = next(name for index, name in enumerate(sorted(names)) if name == sorted(names)[index - 1])
        raise source.unsafe(f"it holds two tensors of the name {shown(twice)}")
    for name in names:
        if not name or len(name) > MAX_NAME or not _is_text(name):
            raise source.unsafe(f"{shown(name)} is no name of a tensor: 1 to {MAX_NAME} characters that are text")


def check_shape(source: Source, name: str, shape: Any) -> tuple[int, ...]:
    """Refuse what is no shape of a tensor.

    Raises:
        UnsafeFileError: anything but a few sides that are whole numbers from 0.
    """
    fine = isinstance(shape, list | tuple) and len(shape) <= MAX_DIMENSIONS
    if not fine or not all(type(side) is int and 0 <= side < 2**48 for side in shape):
        raise source.unsafe(f"tensor {shown(name)} has no believable shape; save plain dense tensors")
    return tuple(shape)


def tensor_of(data: bytearray, entry: Entry) -> Tensor:
    """Bytes as the tensor that an entry describes."""
    if not data:
        return torch.empty(entry.shape, dtype=entry.dtype)
    # A byte that is neither 0 nor 1 is no bool that torch can compute with.
    raw = torch.uint8 if entry.dtype is torch.bool else entry.dtype
    flat = torch.frombuffer(data, dtype=raw)
    flat = flat.ne(0) if entry.dtype is torch.bool else flat
    if not entry.order:
        return flat.reshape(entry.shape)
    back = sorted(range(len(entry.order)), key=lambda side: entry.order[side])
    return flat.reshape([entry.shape[side] for side in entry.order]).permute(back).contiguous()


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
