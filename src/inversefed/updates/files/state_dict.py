"""`.pt`: a state dict as `torch.save` writes it, a zip of one pickle and the bytes of each storage.

    ROOT/data.pkl | ROOT/byteorder | ROOT/data/0 | ROOT/data/1 ..

`torch.load(weights_only=True)` runs no stranger's code, but it believes sizes, strides and compression, and it has had
holes. So the pickle is read as data (`opcodes`), each tensor is checked against the storage that it claims, and the
bytes are read from the archive as they are. No code of torch's loader runs.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from inversefed.errors import shown
from inversefed.updates.files.layout import Entry, Layout, check_entries, check_shape, tensor_of
from inversefed.updates.files.limits import MAX_HEADER
from inversefed.updates.files.opcodes import Call, Named, Stored, described
from inversefed.updates.files.opening import Source
from inversefed.updates.files.zipped import Archive, archive

__all__ = ["DTYPES", "WRAPPERS", "layout"]

DTYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
WRAPPERS = ("update", "gradient", "state_dict", "model_state_dict", "model")
"""Names under which a checkpoint holds its tensors."""
_DEEPEST = 3
"""How far inside a checkpoint they are looked for."""


def layout(source: Source, notes: frozenset[str]) -> Layout:
    """Read and check the archive and its pickle.

    Args:
        source: the open file.
        notes: the names of metadata.

    Raises:
        UnsafeFileError: the file asks for code, is compressed, or its tensors are not dense.
        InputError: the file is damaged, an old-style pickle, or no state dict.
    """
    if bytes(source.read(0, min(4, source.size))) != b"PK\x03\x04":
        raise source.unsafe("it is a bare pickle or something else; save a state dict with torch.save of torch >= 1.6")
    packed = archive(source)
    root = _root(source, packed)
    tensors, told = _tensors(source, described(source, bytes(_pickle(source, packed, root))))
    entries = tuple(_entry(source, packed, root, name, value) for name, value in tensors.items())
    check_entries(source, entries)
    _check_overlaps(source, entries)
    kept: dict[tuple[Any, ...], Tensor] = {}

    def read(entry: Entry) -> Tensor:
        view = (entry.member, entry.start, entry.shape, entry.order)  # tied weights are one tensor of two names
        if view not in kept:
            kept[view] = tensor_of(packed.read(entry.member, entry.start, entry.nbytes), entry)
        return kept[view]

    simple = {name: value for name, value in told.items() if name in notes and type(value) in (str, int, float, bool)}
    return Layout(entries, read, simple, positional=_is_positional(tensors))


def _root(source: Source, packed: Archive) -> str:
    """The folder inside the archive that everything is in."""
    found = [name.removesuffix("data.pkl") for name in packed.members if name.endswith("/data.pkl")]
    if len(found) != 1 or found[0].count("/") != 1:
        raise source.damaged("it holds no state dict; save `module.state_dict()` with torch.save")
    if any(name.startswith((f"{found[0]}code/", f"{found[0]}constants.pkl")) for name in packed.members):
        raise source.unsafe("it is a TorchScript module, which holds code; save `module.state_dict()`")
    if any(not packed.is_stored(name) for name in packed.members):
        raise source.unsafe("it was compressed, which torch.save never does")
    return found[0]


def _pickle(source: Source, packed: Archive, root: str) -> bytearray:
    order = f"{root}byteorder"
    if order in packed.members and bytes(packed.read(order, 0, min(8, packed.size(order)))) != b"little":
        raise source.damaged("its numbers are big-endian")
    size = packed.size(f"{root}data.pkl")
    if size > MAX_HEADER:
        raise source.unsafe(f"its pickle has {size} bytes, and no more than {MAX_HEADER} are read")
    return packed.read(f"{root}data.pkl", 0, size)


def _tensors(source: Source, content: Any) -> tuple[dict[str, Call], dict[Any, Any]]:
    """The tensors by name, wherever the file keeps them, and what stands beside them."""
    beside: dict[Any, Any] = {}
    for _ in range(_DEEPEST):
        if isinstance(content, list | tuple) and content and all(_is_tensor(value) for value in content):
            return {f"arr_{index}": value for index, value in enumerate(content)}, beside
        if not isinstance(content, dict):
            break
        tensors = {name: value for name, value in content.items() if _is_tensor(value)}
        beside |= {name: value for name, value in content.items() if name not in tensors}
        if tensors and all(isinstance(name, str) for name in tensors):
            return tensors, beside
        content = next((content[name] for name in WRAPPERS if name in content), None)
    raise source.damaged("expected a state dict, tensors by name; save `module.state_dict()`")


def _is_tensor(value: object) -> bool:
    return isinstance(value, Call) and value.path.startswith("torch._utils._rebuild")


def _is_positional(tensors: Mapping[str, Call]) -> bool:
    return list(tensors) == [f"arr_{index}" for index in range(len(tensors))]


def _entry(source: Source, packed: Archive, root: str, name: str, value: Call) -> Entry:
    """A tensor as the pickle describes it, held to its storage."""
    while "_rebuild_parameter" in value.path:
        inner = value.arguments[0] if value.arguments else None
        if not isinstance(inner, Call):
            raise source.unsafe(f"parameter {shown(name)} is made of no tensor")
        value = inner
    if len(value.arguments) != 6 or not isinstance(value.arguments[0], Stored):
        raise source.unsafe(f"tensor {shown(name)} is not described as torch.save does")
    stored, offset, sides, strides = value.arguments[:4]
    member, dtype, numel = _storage(source, packed, root, name, stored.reference)
    shape = check_shape(source, name, sides)
    order = _order(shape, strides)
    if order is None:
        raise source.unsafe(f"tensor {shown(name)} is not dense; save tensor.contiguous().clone()")
    entry = Entry(name, dtype, shape, 0, member, order)
    if type(offset) is not int or offset < 0 or offset + entry.numel > numel:
        raise source.unsafe(
            f"tensor {shown(name)} claims {entry.numel} numbers from {shown(str(offset))} on, of a storage of {numel}"
        )
    return replace(entry, start=offset * dtype.itemsize)


def _storage(
    source: Source, packed: Archive, root: str, name: str, reference: tuple[Any, ...]
) -> tuple[str, torch.dtype, int]:
    """Member, number format and length of a storage that is there, as long as it claims."""
    if len(reference) != 5 or reference[0] != "storage" or not isinstance(reference[1], Named):
        raise source.unsafe(f"tensor {shown(name)} has no storage in the file")
    key, numel = reference[2], reference[4]
    if reference[1].path not in DTYPES or not isinstance(key, str) or type(numel) is not int:
        raise source.unsafe(f"tensor {shown(name)} has no storage in the file")
    member, dtype = f"{root}data/{key}", DTYPES[reference[1].path]
    if member not in packed.members or packed.size(member) != numel * dtype.itemsize:
        raise source.unsafe(f"tensor {shown(name)} claims a storage of {shown(str(numel))} numbers that is not there")
    return member, dtype, numel


def _order(shape: tuple[int, ...], strides: Any) -> tuple[int, ...] | None:
    """The sides from the slowest to the fastest, if no number is skipped or met twice; empty for their own order."""
    if not isinstance(strides, tuple) or len(strides) != len(shape):
        return None
    if any(type(stride) is not int or stride < 0 for stride in strides):
        return None
    if 0 in shape:
        return ()
    # The stride of a side of one says nothing.
    order = sorted(range(len(shape)), key=lambda side: -strides[side] if shape[side] > 1 else -math.inf)
    expected = 1
    for side in reversed(order):
        if shape[side] > 1 and strides[side] != expected:
            return None
        expected *= shape[side]
    long = [side for side in order if shape[side] > 1]
    return () if long == sorted(long) else tuple(order)


def _check_overlaps(source: Source, entries: Iterable[Entry]) -> None:
    """Two tensors of one storage are the same one under two names, or they are apart."""
    views = {(entry.member, entry.start, entry.start + entry.nbytes) for entry in entries if entry.nbytes}
    for (member, _, end), (other, start, _) in pairwise(sorted(views)):
        if member == other and end > start:
            raise source.unsafe("its tensors overlap")
