"""Files of jobs, read by name: only those that a report or a running search writes, and through no link."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from inversefed.experiments.places import Places, is_hash
from inversefed.report.folder import PICTURE

__all__ = ["Found", "pictures", "read", "so_far"]

_MOST = 256 * 2**20
"""Bytes of a file that is served; a report of hundreds of pictures has a tenth of them."""
_TEXTS = ("report.html", "report.json")


@dataclass(frozen=True)
class Found:
    """A file.

    Args:
        content: its bytes.
        changed: when it was written, in nanoseconds since 1970.
    """

    content: bytes
    changed: int


def read(folder: Path, hash: str, name: str) -> Found | None:
    """A file of a job's report; `None` where there is none of that name, or it is no plain file.

    Args:
        folder: the ledger's.
        hash: of the job.
        name: of the file.
    """
    if not is_hash(hash) or not (name in _TEXTS or PICTURE.fullmatch(name)):
        return None
    return _read(folder, (*_parts(folder, Places(folder).job(hash)), name))


def so_far(folder: Path, hash: str) -> Found | None:
    """The picture of a running search, as far as it has come."""
    return _read(folder, _parts(folder, Places(folder).preview(hash))) if is_hash(hash) else None


def pictures(folder: Path, hash: str) -> tuple[str, ...]:
    """The names of the pictures of a job's report, sorted."""
    if not is_hash(hash):
        return ()
    parts = _parts(folder, Places(folder).job(hash))
    with suppress(OSError), _opened(folder, parts, os.O_DIRECTORY) as number, os.scandir(number) as there:
        return tuple(sorted(each.name for each in there if PICTURE.fullmatch(each.name)))
    return ()


def _parts(folder: Path, path: Path) -> tuple[str, ...]:
    return path.relative_to(folder).parts


def _read(folder: Path, parts: Sequence[str]) -> Found | None:
    with suppress(OSError), _opened(folder, parts, os.O_NONBLOCK) as number:
        told = os.fstat(number)
        if stat.S_ISREG(told.st_mode) and told.st_size <= _MOST:
            with os.fdopen(os.dup(number), "rb") as file:
                return Found(file.read(_MOST), told.st_mtime_ns)
    return None


@contextmanager
def _opened(folder: Path, parts: Sequence[str], flags: int) -> Iterator[int]:
    """Open what is below a folder, one name after the other: a link anywhere on the way is an `OSError`."""
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for place, name in enumerate(parts):
            kind = flags if place == len(parts) - 1 else os.O_DIRECTORY
            inner = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=held)
            os.close(held)
            held = inner
        yield held
    finally:
        os.close(held)
