"""Checkpoints of a search: tensors and plain values in a file, written whole or not at all.

The file holds pictures on their way to the private ones. It is readable by its owner only, and it is read with
`weights_only`, so that it cannot run code.
"""

import hashlib
import os
import pickle
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inversefed.errors import InputError

__all__ = ["fingerprint", "is_checkpoint", "read", "write"]

_FORMAT = 1
_BEGINNING = re.compile(rb"PK\x03\x04.{26}[^/]{1,255}/data\.pkl.*?format.{1,16}fingerprint", re.DOTALL)
"""An archive of torch's, stored as it is, whose first entry is the pickled dictionary that `write` saves."""


def fingerprint(settings: str, tensors: Iterable[Tensor]) -> str:
    """A digest of what a search depends on; a state is only taken up where it is the same.

    >>> fingerprint("a", [torch.zeros(2)]) == fingerprint("a", [torch.zeros(3)])
    False
    """
    digest = hashlib.sha256(settings.encode())
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def is_checkpoint(path: Path) -> bool:
    """Whether a file looks like the state of a search, also one whose writing was cut short; nothing in it is loaded.

    >>> is_checkpoint(Path(__file__))
    False
    """
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return _BEGINNING.match(file.read(4096)) is not None
    except OSError:
        return False


def write(path: Path, state: dict[str, Any], mark: str) -> None:
    """Replace the file at once; a reader never sees half of it.

    Raises:
        InputError: the file cannot be written.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            torch.save({"format": _FORMAT, "fingerprint": mark, "state": state}, file)
        partial.replace(path)
    except OSError as error:
        raise InputError(f"cannot write the checkpoint {path}: {error}") from error


def read(path: Path, mark: str) -> Any:
    """The state in a file.

    Args:
        path: the file.
        mark: fingerprint of the search that takes it up.

    Raises:
        InputError: no such file, no checkpoint, or that of another search.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read the checkpoint {path}: {error}") from error
    except (RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is no checkpoint of inversefed, or is damaged") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT or "state" not in content:
        raise InputError(f"{path} is no checkpoint of this version of inversefed")
    if content.get("fingerprint") != mark:
        raise InputError(
            f"{path} is the checkpoint of another search: attack, update, labels, seed and iterations must be the same"
        )
    return content["state"]
