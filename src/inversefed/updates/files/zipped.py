"""Zip archives, which `.npz` and `.pt` are: the directory is checked before any member is read.

    members | directory | end record: where the directory is, and how long

An archive lies by members that grow a thousandfold, that lie over each other, that are there twice, or that two readers
see differently. So the end record has to be the last thing in the file, the directory short, every member its own, and
what is stored is read from the file as it is.
"""

import struct
import zipfile
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import PurePosixPath

from inversefed.errors import InputError, shown
from inversefed.updates.files.limits import MAX_HEADER, MAX_RATIO, MAX_TENSORS
from inversefed.updates.files.opening import Source

__all__ = ["Archive", "archive"]

_END, _END64, _LOCATOR = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
_END_SIZE, _END64_SIZE, _LOCATOR_SIZE, _LOCAL_SIZE = 22, 56, 20, 30
_ENCRYPTED = 0x1
_PAGE = 2**16
_SMALL = 2**16
"""Bytes that a member may unpack to whatever its ratio: the ones of a BatchNorm layer shrink to nothing."""


class Archive:
    """The members of a checked archive, by name.

    Args:
        source: the open file.
        members: their records in the directory.
    """

    def __init__(self, source: Source, members: dict[str, zipfile.ZipInfo]) -> None:
        self.source, self.members = source, members
        self.starts = dict(_starts(source, members))

    def size(self, name: str) -> int:
        """How many bytes a member has, unpacked."""
        return self.members[name].file_size

    def is_stored(self, name: str) -> bool:
        """Whether its bytes stand in the file as they are."""
        return self.members[name].compress_type == zipfile.ZIP_STORED

    def read(self, name: str, start: int, length: int) -> bytearray:
        """Some bytes of a member.

        Raises:
            InputError: it has fewer, or its checksum is wrong where the whole of it is read.
        """
        if start < 0 or length < 0 or start + length > self.size(name):
            raise self.source.damaged(f"its part {shown(name)} ends before what it describes")
        if self.is_stored(name):
            data = self.source.read(self.starts[name] + start, length)
            before = self.source.read(self.starts[name], start) if start <= _PAGE else None
        else:
            before, data = self._unpacked(name, start, length)
        whole = before is not None and start + length == self.size(name)
        if whole and zlib.crc32(data, zlib.crc32(before or b"")) != self.members[name].CRC:
            raise self.source.damaged(f"the checksum of its part {shown(name)} is wrong")
        return data

    def _unpacked(self, name: str, start: int, length: int) -> tuple[bytearray, bytearray]:
        """Unpack as far as is asked for, and never further; what stands before it, and it."""
        end, record = start + length, self.members[name]
        packed = self.source.read(self.starts[name], min(record.compress_size, 2 * end + _PAGE))
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = memoryview(unpacker.decompress(packed, end) if end else b"")
            more = end == record.file_size and unpacker.decompress(unpacker.unconsumed_tail, 1)
        except zlib.error as error:
            raise self.source.damaged(f"its part {shown(name)} cannot be unpacked") from error
        if len(data) < end:
            raise self.source.damaged(f"its part {shown(name)} ends before what it describes")
        if more:
            raise self.source.unsafe(f"its part {shown(name)} unpacks to more than it says")
        return bytearray(data[:start]), bytearray(data[start:])


def archive(source: Source) -> Archive:
    """Read and check the directory of a zip file.

    Raises:
        UnsafeFileError: too many members, one twice, one over another, one that unpacks to more than four times its
            size, or one whose name is a path to elsewhere.
        InputError: no sound zip file.
    """
    _check_end(source)
    try:
        # Nothing is unpacked here: the directory, whose length is checked, is all that this reads.
        with zipfile.ZipFile(source.file) as opened:
            records = opened.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, OSError, struct.error) as error:
        raise source.damaged(f"it is no sound zip archive ({error})") from error
    members: dict[str, zipfile.ZipInfo] = {}
    for record in records:
        name = _checked(source, record)
        if name in members:
            raise source.unsafe(f"it holds two parts of the name {shown(name)}")
        members[name] = record
    total = sum(record.file_size for record in records)
    if total > MAX_RATIO * source.size + 2**20:
        raise source.unsafe(f"it would unpack to {total} bytes; save without compression")
    return Archive(source, members)


def _check_end(source: Source) -> None:
    """The directory is described at the very end of the file, and it is short."""
    tail_size = min(source.size, _END_SIZE + _LOCATOR_SIZE + _END64_SIZE)
    tail = bytes(source.read(source.size - tail_size, tail_size))
    end = tail[-_END_SIZE:]
    if len(end) < _END_SIZE or end[:4] != _END or end[-2:] != b"\0\0":
        raise source.damaged("it is no zip archive, or something stands behind its end")
    count, length = struct.unpack("<8xHHLL2x", end)[1:3]
    if tail[-_END_SIZE - _LOCATOR_SIZE :][:4] == _LOCATOR:
        if tail[:4] != _END64 or len(tail) < _END_SIZE + _LOCATOR_SIZE + _END64_SIZE:
            raise source.damaged("its zip directory is not where it should be")
        count, length = struct.unpack("<24xQQQ8x", tail[:_END64_SIZE])[:2]
    if count > MAX_TENSORS + 10 or length > MAX_HEADER:
        raise source.unsafe(f"it has {count} parts, listed in {length} bytes; no more than {MAX_TENSORS} are read")


def _checked(source: Source, record: zipfile.ZipInfo) -> str:
    """The name of a member that may be read."""
    name, path = record.orig_filename, PurePosixPath(record.orig_filename)
    if path.is_absolute() or ".." in path.parts or any(each in name for each in ("\\", "\0", ":")):
        raise source.unsafe(f"its part {shown(name)} is named by a path to elsewhere")
    if record.flag_bits & _ENCRYPTED:
        raise source.unsafe("it is encrypted")
    if record.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise source.unsafe(f"its part {shown(name)} is packed in an unusual way; save without compression")
    stored = record.compress_type == zipfile.ZIP_STORED
    grows = record.file_size > record.compress_size * (1 if stored else MAX_RATIO)
    if grows and (stored or record.file_size > _SMALL):
        raise source.unsafe(
            f"its part {shown(name)} would unpack from {record.compress_size} to {record.file_size} bytes, and more "
            f"than {MAX_RATIO} times is refused; save without compression"
        )
    return name


def _starts(source: Source, members: dict[str, zipfile.ZipInfo]) -> Iterator[tuple[str, int]]:
    """Where the bytes of each member begin: behind its own header, which has to tell the same name."""
    spans = []
    for name, record in members.items():
        header = bytes(source.read(record.header_offset, _LOCAL_SIZE))
        if header[:4] != b"PK\x03\x04":
            raise source.damaged(f"its part {shown(name)} is not where its directory says")
        named, extra = struct.unpack("<26xHH", header)
        start = record.header_offset + _LOCAL_SIZE + named + extra
        if bytes(source.read(record.header_offset + _LOCAL_SIZE, named)) != name.encode():
            raise source.unsafe(f"its part {shown(name)} has another name in its own header")
        spans.append((record.header_offset, start + record.compress_size))
        yield name, start
    if any(end > start for (_, end), (start, _) in pairwise(sorted(spans))):
        raise source.unsafe("its parts lie over each other")
    if spans and max(end for _, end in spans) > source.size:
        raise InputError(f"{source.path} cannot be read: it ends before what it describes")
