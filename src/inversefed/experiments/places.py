"""Where the files of a ledger's jobs are.

jobs/ab/ab12..   a job's report and pictures
live/ab12..      of a running job: the state of its search, and the picture so far
weights          networks that were trained for plans
"""

import contextlib
import os
import re
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from inversefed.errors import StorageError

__all__ = ["Places", "is_hash", "is_live", "make_private", "remove_abandoned"]

PREVIEW, CHECKPOINT = "so_far.png", "search.checkpoint"
_LEFT = 60.0
"""Seconds after which a folder that nobody writes to may be a killed process's: a search writes every 20."""


@dataclass(frozen=True)
class Places:
    """Where the files of jobs are.

    Args:
        folder: the ledger's.
    """

    folder: Path

    def job(self, hash: str) -> Path:
        """The folder of a job's report and pictures."""
        return self.folder / "jobs" / hash[:2] / hash

    def live(self, hash: str) -> Path:
        """The folder of what a running job has: its checkpoint, and the picture so far."""
        return self.folder / "live" / hash

    def all_live(self) -> tuple[str, ...]:
        """The hashes of jobs that have such a folder."""
        with contextlib.suppress(OSError):
            return tuple(each.name for each in (self.folder / "live").iterdir() if is_hash(each.name))
        return ()

    def preview(self, hash: str) -> Path:
        """The picture so far."""
        return self.live(hash) / PREVIEW

    def checkpoint(self, hash: str) -> Path:
        """The state of its search."""
        return self.live(hash) / CHECKPOINT

    def weights(self) -> Path:
        """The folder of networks that were trained for plans."""
        return self.folder / "weights"


def make_private(folder: Path) -> None:
    """Make a folder, and those above it that are missing, for their owner only.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        for each in (*reversed(folder.parents), folder):
            if not each.exists():
                each.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror or error}") from error


def is_hash(text: str) -> bool:
    """Whether a text is the hash of a scenario: 64 hexadecimal digits.

    >>> is_hash("0" * 64), is_hash("0" * 63 + "G"), is_hash("../" + "0" * 61)
    (True, False, False)
    """
    return re.fullmatch(r"[0-9a-f]{64}", text) is not None


def is_live(path: Path) -> bool:
    """Whether a file is what a job has while it runs, whole or cut short, by its name and its folder's.

    >>> is_live(Places(Path("runs")).preview("0" * 64)), is_live(Path("so_far.png"))
    (True, False)
    """
    whole = path.name.removesuffix(".part").removesuffix(".partial")
    return whole in (PREVIEW, CHECKPOINT) and is_hash(path.parent.name)


def remove_abandoned(folder: Path, prefix: str) -> None:
    """Remove folders that processes of this machine which are gone had for themselves, `PREFIX<process>.<anything>`.

    Those that were written to in the last minute stay: what a process began may end a little after it.
    """
    for left in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError, ValueError):
            process = int(left.name.removeprefix(prefix).split(".")[0])
            if time.time() - left.stat().st_mtime > _LEFT and not _is_alive(process):
                shutil.rmtree(left, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's
        return True
    return True
