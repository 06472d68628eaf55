"""Tensors into a file, in the three formats that are read; whole, or not at all."""

import io
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from inversefed.errors import InputError
from inversefed.types import Params
from inversefed.updates.files.layout import Notes

__all__ = ["write_tensors"]


def write_tensors(path: str | os.PathLike[str], tensors: Params, notes: Notes) -> Path:
    """Write a file in the format that its suffix names.

    Args:
        path: ends in `.safetensors`, `.npz`, `.pt` or `.pth`. numpy has no bfloat16: an npz holds float32 instead.
        tensors: by name.
        notes: what to write beside them.

    Returns:
        The file.

    Raises:
        InputError: another suffix, or a folder that cannot be written to.
    """
    target = Path(path).expanduser()
    write = {".safetensors": _safetensors, ".npz": _npz, ".pt": _torch, ".pth": _torch}.get(target.suffix.lower())
    if write is None:
        raise InputError(f"tensors are written as .safetensors, .npz, .pt or .pth; {target.name} is none of them")
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    partial = target.with_name(f"{target.name}.partial")  # an interrupted run leaves no half file
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write(partial, plain, notes)
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise InputError(f"cannot write {target}: {error.strerror or error}") from error
    return target


def _safetensors(file: Path, tensors: Mapping[str, Tensor], notes: Notes) -> None:
    safetensors.torch.save_file(dict(tensors), file, {name: _text(value) for name, value in notes.items()} or None)


def _npz(file: Path, tensors: Mapping[str, Tensor], notes: Notes) -> None:
    """By hand: `numpy.savez` cannot name an array `file`."""
    arrays = {name: (t.float() if t.dtype == torch.bfloat16 else t).numpy() for name, t in tensors.items()}
    arrays |= {name: np.array(value) for name, value in notes.items()}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
        for name, array in arrays.items():
            data = io.BytesIO()
            np.lib.format.write_array(data, array, allow_pickle=False)
            packed.writestr(f"{name}.npy", data.getbuffer())


def _torch(file: Path, tensors: Mapping[str, Tensor], notes: Notes) -> None:
    torch.save({"state_dict": dict(tensors), **notes} if notes else dict(tensors), file)


def _text(value: object) -> str:
    return value if isinstance(value, str) else repr(value)
