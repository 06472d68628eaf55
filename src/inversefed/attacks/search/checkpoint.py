"""Checkpoints of a search: tensors and plain values in a file, written whole or not at all.

The file holds pictures on their way to the private ones. It is readable by its owner only, and it is read with
`weights_only`, so that it cannot run code.
"""

import hashlib
import io
import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inversefed.errors import InputError

__all__ = ["Mark", "fingerprint", "is_checkpoint", "read", "write"]

_FORMAT = 2
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


@dataclass(frozen=True, eq=False)
class Mark:
    """What a search is, whose fingerprint is computed where it is first asked for.

    Args:
        settings: all of it that can be written down.
        tensors: all of it that are numbers.
    """

    settings: str
    tensors: Sequence[Tensor] = field(repr=False)

    @cached_property
    def digest(self) -> str:
        """The fingerprint."""
        return fingerprint(self.settings, self.tensors)


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
    """Replace the file at once: whoever ends the process or the machine, there is the older state or this one.

    Raises:
        InputError: the file cannot be written, or not wholly; an older one is as it was.
    """
    whole = io.BytesIO()  # torch hides what the system says of a file that it writes to itself
    torch.save({"format": _FORMAT, "fingerprint": mark, "state": state}, whole)
    partial = path.with_name(path.name + ".partial")
    try:
        _written(partial, whole.getbuffer())
        partial.replace(path)
        _synced(path.parent)
    except OSError as error:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise InputError(f"cannot write the checkpoint {path}: {error}") from error


def _written(path: Path, content: memoryview) -> None:
    """Write a file that its owner alone may read, down to the disk."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _synced(folder: Path) -> None:
    """Take a folder's names down to the disk, where the system can."""
    if os.name == "nt":  # no folder can be opened there, and names are kept in order
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(path: Path, mark: str) -> Any:
    """The state in a file.

    Args:
        path: the file.
        mark: fingerprint of the search that takes it up.

    Raises:
        InputError: no such file, no checkpoint, or that of another search.
    """
    try:
        content = torch.load(_checked(path), map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"cannot read the checkpoint {path}: {error}") from error
    except (RuntimeError, EOFError, ValueError, LookupError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no checkpoint of inversefed, or is damaged") from error
    if not isinstance(content, dict) or content.get("format") != _FORMAT or "state" not in content:
        raise InputError(f"{path} is no checkpoint of this version of inversefed")
    if content.get("fingerprint") != mark:
        raise InputError(
            f"{path} is the checkpoint of another search: attack, update, labels, seed and iterations must be the same"
        )
    return content["state"]


def _checked(path: Path) -> io.BytesIO:
    """A file's content, once its checksums were compared, which torch does not do.

    Raises:
        OSError: it cannot be read.
        zipfile.BadZipFile: it is no archive, or is damaged.
    """
    content = io.BytesIO(path.read_bytes())
    with zipfile.ZipFile(content) as archive:
        if (name := archive.testzip()) is not None:
            raise zipfile.BadZipFile(f"the checksum of {name} is another")
    content.seek(0)
    return content
