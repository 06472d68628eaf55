"""npz: numpy's archive of arrays. Each is a short header of text, and its bytes.

    NAME.npy = magic | version | length | {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), } | data

The header is held to exactly the form that numpy writes; arrays of objects, which are pickles, have another. Names
`arr_0`, `arr_1`, which numpy gives to arrays without a name, are positions. Arrays without sides whose names are those
of metadata, such as `learning_rate`, are metadata.
"""

import re
import struct

import torch

from inversefed.errors import shown
from inversefed.updates.files.layout import Entry, Layout, check_entries, check_shape, tensor_of
from inversefed.updates.files.opening import Source
from inversefed.updates.files.zipped import Archive, archive

__all__ = ["DTYPES", "layout"]

DTYPES = {
    "<f8": torch.float64,
    "<f4": torch.float32,
    "<f2": torch.float16,
    "<i8": torch.int64,
    "<i4": torch.int32,
    "<i2": torch.int16,
    "|i1": torch.int8,
    "|u1": torch.uint8,
    "|b1": torch.bool,
}
_MOST_TEXT = 256
_MOST_HEADER = 4096
_HEADER = re.compile(
    rb"\{'descr': '([<|][a-zA-Z]\d{1,4})', 'fortran_order': (True|False), 'shape': \(([\d, ]{0,400})\), \}\s*"
)


def layout(source: Source, notes: frozenset[str]) -> Layout:
    """Read and check the directory and every array's header.

    Args:
        source: the open file.
        notes: the names of metadata.

    Raises:
        UnsafeFileError: an archive that grows or lies, or an array that is no plain numbers.
        InputError: the file is damaged or no npz file.
    """
    packed = archive(source)
    described = [_entry(source, packed, member) for member in packed.members]
    lone = [(entry, text) for entry, text in described if entry.name in notes and entry.shape == ()]
    told = {entry.name: _note(packed, entry, text) for entry, text in lone}
    rest = [(entry, text) for entry, text in described if entry.name not in told]
    entries = tuple(entry for entry, text in rest if not _is_text(source, entry, text))
    check_entries(source, entries)
    positional = {entry.name for entry in entries} == {f"arr_{index}" for index in range(len(entries))}
    if positional:
        entries = tuple(sorted(entries, key=lambda entry: int(entry.name[4:])))
    return Layout(
        entries,
        lambda entry: tensor_of(packed.read(entry.member, entry.start, entry.nbytes), entry),
        told,
        positional,
    )


def _entry(source: Source, packed: Archive, member: str) -> tuple[Entry, int]:
    """The entry, and the number of characters where the array is text instead of numbers."""
    if not member.endswith(".npy"):
        raise source.damaged(f"its part {shown(member)} is no array of numpy's")
    name, size = member.removesuffix(".npy"), packed.size(member)
    head = bytes(packed.read(member, 0, min(size, 12)))
    if len(head) < 12 or head[:6] != b"\x93NUMPY" or head[6] not in (1, 2, 3):
        raise source.damaged(f"its part {shown(member)} is no array of numpy's")
    length, start = struct.unpack("<H2x" if head[6] == 1 else "<L", head[8:])[0], 10 if head[6] == 1 else 12
    if length > _MOST_HEADER:
        raise source.unsafe(f"array {shown(name)} has a header of {length} bytes")
    text = bytes(packed.read(member, start, min(length, size - start)))
    read = _HEADER.fullmatch(text)
    if read is None:
        raise source.unsafe(f"array {shown(name)} is no plain array of numbers; objects and records are not read")
    descr, columns, sides = (part.decode("ascii") for part in read.groups())
    shape = check_shape(source, name, [int(side) for side in sides.replace(" ", "").split(",") if side])
    characters = int(descr[2:]) if descr.startswith("<U") else 0
    if descr not in DTYPES and not characters:
        raise source.damaged(f"array {shown(name)} has the number format {descr}; save little-endian float32")
    dtype = torch.int32 if characters else DTYPES[descr]  # numpy's text has four bytes a character
    order = tuple(reversed(range(len(shape)))) if columns == "True" else ()
    entry = Entry(name, dtype, shape, start + length, member, order)
    if start + length + entry.nbytes * max(1, characters) != size:
        raise source.unsafe(f"array {shown(name)} of shape {shape} does not fill its {size} bytes")
    return entry, characters


def _is_text(source: Source, entry: Entry, characters: int) -> bool:
    """Text that is no metadata of ours: ignored where it is a single one, as in other files, else refused."""
    if characters and entry.shape != ():
        raise source.unsafe(f"array {shown(entry.name)} holds text, not numbers")
    return bool(characters)


def _note(packed: Archive, entry: Entry, characters: int) -> str | int | float | bool:
    """One entry of metadata."""
    if not characters:
        return tensor_of(packed.read(entry.member, entry.start, entry.nbytes), entry).item()
    raw = packed.read(entry.member, entry.start, 4 * min(characters, _MOST_TEXT))
    return raw.decode("utf-32-le", errors="replace").rstrip("\0")
