"""Opening a file once, by descriptor, so that what was checked is what is read."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from inversefed.errors import InputError, UnsafeFileError
from inversefed.updates.files.limits import MAX_FILE

__all__ = ["Source", "opened"]


class Source:
    """An open file of known length.

    Args:
        path: what messages call it.
        file: open for reading.
        size: bytes in it.
    """

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size

    def read(self, start: int, length: int) -> bytearray:
        """Exactly the bytes from `start` on.

        Raises:
            InputError: the file ends before.
        """
        if start < 0 or length < 0 or start + length > self.size:
            raise self.damaged("it ends before what it describes")
        data = bytearray(length)
        self.file.seek(start)
        view, done = memoryview(data), 0
        while done < length:
            count = self.file.readinto(view[done:])  # type: ignore[attr-defined]
            if not count:
                raise self.damaged("it ends before what it describes")
            done += count
        return data

    def unsafe(self, why: str) -> UnsafeFileError:
        """The error for a file that asks for too much, or for what no tensor needs."""
        return UnsafeFileError(f"{self.path} was refused: {why}")

    def damaged(self, why: str) -> InputError:
        """The error for a file that is broken, or of another kind than its name says."""
        return InputError(f"{self.path} cannot be read: {why}")


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Source]:
    """Open a regular file of a size that is believable.

    Raises:
        InputError: there is no such file, or it cannot be opened.
        UnsafeFileError: it is no regular file, such as a pipe that never ends, or larger than 4 GiB.
    """
    where = Path(path).expanduser()
    try:
        # Without O_NONBLOCK the mere opening of a pipe would wait for a writer.
        descriptor = os.open(where, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0))
    except OSError as error:
        raise InputError(f"cannot open {where}: {error.strerror}; name a .safetensors, .npz or .pt file") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise UnsafeFileError(f"{where} was refused: it is no regular file")
        if status.st_size > MAX_FILE:
            raise UnsafeFileError(f"{where} was refused: it has more than {MAX_FILE} bytes")
        with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
            yield Source(where, file, status.st_size)
    finally:
        os.close(descriptor)
