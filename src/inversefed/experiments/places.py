"""Where the files of a ledger's jobs are.

jobs/ab/ab12..   a job's report and pictures
live/ab12..      of a running job: the state of its search, and the picture so far
weights          networks that were trained for plans
"""

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Places", "is_preview"]

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


def is_preview(path: Path) -> bool:
    """Whether a file is the picture so far of a search that is running, or was killed.

    >>> is_preview(Places(Path("runs")).preview("0" * 64)), is_preview(Path("so_far.png"))
    (True, False)
    """
    return path.name in (PREVIEW, f"{PREVIEW}.part") and re.fullmatch(r"[0-9a-f]{64}", path.parent.name) is not None
