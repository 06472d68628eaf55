"""From a file's name to its tensors: which reader, what fits, and only then the numbers."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from inversefed.errors import InputError, UnsafeFileError
from inversefed.types import Params
from inversefed.updates.files import npz, safetensors, state_dict
from inversefed.updates.files.fitting import fitted
from inversefed.updates.files.layout import Layout, Notes
from inversefed.updates.files.opening import Source, opened

__all__ = ["Content", "read_tensors"]

_CODE = {
    ".pt2": "an exported program",
    ".pkl": "a pickle",
    ".pickle": "a pickle",
    ".joblib": "a pickle",
    ".npy": "a single array without a name",
    ".onnx": "a program",
    ".h5": "HDF5",
    ".fobs": "FOBS",
}


@dataclass(frozen=True, eq=False)
class Content:
    """What a file holds.

    Args:
        tensors: by name.
        notes: what stands beside them, by name; not interpreted.
    """

    tensors: Params = field(repr=False)
    notes: Notes = field(default_factory=dict)


def read_tensors(
    path: str | os.PathLike[str],
    expected: Mapping[str, Tensor] | None = None,
    *,
    notes: frozenset[str] = frozenset(),
    strict: bool = True,
) -> Content:
    """Read a `.safetensors`, `.npz`, `.pt`, `.pth` or `.ckpt` file.

    Args:
        path: the file.
        expected: the network's tensors by name: their sizes bound what is read. `None`: the size of the file does.
        notes: names that are metadata, where the format does not tell them from tensors.
        strict: refuse tensors that the network does not have. Without it they are read, if they are not too large.

    Raises:
        InputError: no such file, a damaged one, or one of another kind.
        UnsafeFileError: a file that could run code, or that asks for more than it should.
        UpdateMismatchError: with the first three names or shapes that are not the network's.
    """
    _check_kind(Path(path))
    with opened(path) as source:
        layout = _layout(source, notes)
        if expected is not None:
            layout = fitted(source, layout, expected, strict)
        return Content({entry.name: layout.read(entry) for entry in layout.entries}, layout.notes)


def _check_kind(path: Path) -> None:
    suffix = path.suffix.lower()
    if suffix in _CODE:
        raise UnsafeFileError(f"{path} is {_CODE[suffix]}, which is not read; save safetensors, npz or a state dict")
    if suffix not in (".safetensors", ".npz", ".pt", ".pth", ".ckpt"):
        raise InputError(f"tensors come as .safetensors, .npz, .pt, .pth or .ckpt; {path.name} is none of them")


def _layout(source: Source, notes: frozenset[str]) -> Layout:
    match source.path.suffix.lower():
        case ".safetensors":
            return safetensors.layout(source)
        case ".npz":
            return npz.layout(source, notes)
    return state_dict.layout(source, notes)
