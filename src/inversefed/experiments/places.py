"""Where the files of a ledger's jobs are.

jobs/ab/ab12..   a job's report and pictures
live/ab12..      of a running job: the state of its search, and the picture so far
weights          networks that were trained for plans
"""

import re
from dataclasses import dataclass
from pathlib import Path

from inversefed.errors import StorageError

__all__ = ["Places", "is_hash", "is_preview", "make_private"]

PREVIEW = "so_far.png"


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

    def preview(self, hash: str) -> Path:
        """The picture so far."""
        return self.live(hash) / PREVIEW

    def checkpoint(self, hash: str) -> Path:
        """The state of its search."""
        return self.live(hash) / "search.checkpoint"

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


def is_preview(path: Path) -> bool:
    """Whether a file is the picture so far of a search that is running, or was killed.

    >>> is_preview(Places(Path("runs")).preview("0" * 64)), is_preview(Path("so_far.png"))
    (True, False)
    """
    return path.name in (PREVIEW, f"{PREVIEW}.part") and is_hash(path.parent.name)
