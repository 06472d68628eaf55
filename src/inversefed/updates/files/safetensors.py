"""safetensors: a JSON header that says where each tensor's bytes are, and the bytes.

    8 bytes, length n | n bytes of JSON {name: {dtype, shape, data_offsets}} | data

The format holds nothing to run. What is left to refuse is a header that lies: the stock reader accepts 200,000 empty
tensors, which takes seconds, so the header is read here, whole, before a byte of data is.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch

from inversefed.errors import InputError, shown
from inversefed.updates.files.layout import Entry, Layout, check_entries, check_shape, tensor_of
from inversefed.updates.files.limits import MAX_HEADER, MAX_TENSORS
from inversefed.updates.files.opening import Source

__all__ = ["DTYPES", "layout"]

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def layout(source: Source) -> Layout:
    """Read and check the header.

    Raises:
        UnsafeFileError: it is too long, names too many tensors or one twice, or its tensors overlap or leave gaps.
        InputError: the file is damaged or no safetensors file.
    """
    header, data = _header(source)
    notes = header.pop("__metadata__", {})
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise source.damaged("its metadata are not text by name")
    entries = tuple(_entry(source, name, value, data) for name, value in header.items())
    check_entries(source, entries)
    _check_places(source, entries, data)
    return Layout(entries, lambda entry: tensor_of(source.read(entry.start, entry.nbytes), entry), notes)


def _header(source: Source) -> tuple[dict[str, Any], int]:
    """The header as a dictionary, and where the data begin."""
    length = int.from_bytes(source.read(0, 8), "little") if source.size >= 8 else -1
    if length > MAX_HEADER:
        raise source.unsafe(f"its header claims {length} bytes, and no more than {MAX_HEADER} are read")
    if not 2 <= length <= source.size - 8:
        raise source.damaged("it is not a sound safetensors file: its header is longer than the file")
    raw = bytes(source.read(8, length))
    # One object and two lists a tensor: counted before they are built.
    if raw.count(b"[") + raw.count(b"{") > 3 * MAX_TENSORS + 1000:
        raise source.unsafe(f"its header describes more than {MAX_TENSORS} tensors")
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=lambda pairs: _once(source, pairs))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise source.damaged("it is not a sound safetensors file: its header is no JSON") from error
    if not isinstance(header, dict):
        raise source.damaged("it is not a sound safetensors file: its header is no JSON object")
    return header, 8 + length


def _once(source: Source, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys differ; a reader that takes the first of two and one that takes the last disagree."""
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise source.unsafe(f"its header has the name {shown(twice)} twice")
    return found


def _entry(source: Source, name: str, value: Any, data: int) -> Entry:
    if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "data_offsets"}:
        raise source.damaged(f"tensor {shown(name)} is not described by dtype, shape and data_offsets")
    dtype, place = value["dtype"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise source.damaged(f"tensor {shown(name)} has the number format {shown(dtype)}; save float32")
    if not isinstance(place, list) or len(place) != 2 or not all(type(each) is int and each >= 0 for each in place):
        raise source.unsafe(f"tensor {shown(name)} has no place in the file")
    entry = Entry(name, DTYPES[dtype], check_shape(source, name, value["shape"]), data + place[0])
    if entry.nbytes != place[1] - place[0]:
        raise source.unsafe(f"tensor {shown(name)} does not fill the {place[1] - place[0]} bytes that it is given")
    return entry


def _check_places(source: Source, entries: tuple[Entry, ...], data: int) -> None:
    """Tensors must cover the data one after another: no byte twice, none unused, none behind the end."""
    spans = sorted((entry.start, entry.start + entry.nbytes) for entry in entries)
    if any(end != start for (_, end), (start, _) in pairwise(spans)):
        raise source.unsafe("its tensors overlap, or leave gaps between them")
    if spans[0][0] != data or spans[-1][1] != source.size:
        raise source.unsafe("its tensors do not end where the file ends")
