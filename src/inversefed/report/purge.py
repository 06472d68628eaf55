"""Find what audits left on the disk, and remove that and nothing else.

Recovered pictures are personal data, and who may see them may also have to delete them. A run is a folder with a
`report.json` that says by itself that it is one; of its files only those go that a report writes. No link is followed,
and of a run that holds foreign files the folder stays, with them in it. The report goes last, so that a removal that
was cut short can be taken up. Files are unlinked, not overwritten: that promises nothing on today's disks.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from inversefed.errors import InputError
from inversefed.report.folder import STAGING, is_ours
from inversefed.report.read import read_report

__all__ = ["Leftover", "find", "remove"]


@dataclass(frozen=True)
class Leftover:
    """One thing that can go.

    Args:
        folder: where it is.
        names: the files in it that go, in order.
        written: when the last of them was written, in seconds since 1970.
        whole: whether the folder goes with them if nothing else is in it.
    """

    folder: Path
    names: tuple[str, ...]
    written: float
    whole: bool = True

    @property
    def path(self) -> Path:
        """What a user knows it by: the run's folder, or the file."""
        return self.folder if self.whole else self.folder / self.names[0]


def find(paths: Iterable[Path], is_checkpoint: Callable[[Path], bool] | None = None) -> tuple[Leftover, ...]:
    """List what audits left in folders and below them.

    Args:
        paths: folders, or single files that are checkpoints.
        is_checkpoint: tells a file that holds the state of a search from any other; without it there are none.

    Raises:
        InputError: a path that is not there, is a link, or is a file that no audit wrote.

    >>> find([Path(__file__)])
    Traceback (most recent call last):
    inversefed.errors.InputError: .../purge.py was not written by an audit; ...
    """
    found: dict[Path, Leftover] = {}
    for path in paths:
        for leftover in _inside(path, is_checkpoint or _never):
            found.setdefault(leftover.path.absolute(), leftover)
    return tuple(found.values())


def remove(leftover: Leftover) -> None:
    """Remove its files, and its folder if nothing else is in it.

    Raises:
        InputError: something that may not be removed.
    """
    try:
        folder = os.open(leftover.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            for name in leftover.names:
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=folder)
        finally:
            os.close(folder)
        if leftover.whole and not any(leftover.folder.iterdir()):
            leftover.folder.rmdir()
    except OSError as error:
        raise InputError(f"cannot remove {leftover.path}: {error.strerror or error}") from error


def _never(path: Path) -> bool:  # noqa: ARG001
    return False


def _inside(path: Path, is_checkpoint: Callable[[Path], bool]) -> Iterator[Leftover]:
    if path.is_symlink() or not path.exists():
        what = "is a link, which is not followed" if path.is_symlink() else "does not exist"
        raise InputError(f"{path} {what}; name a folder of runs, a run, or a checkpoint")
    if path.is_file():
        if not is_checkpoint(path):
            raise InputError(f"{path} was not written by an audit; name a folder of runs, a run, or a checkpoint")
        yield _file(path)
        return
    for name, _, files in os.walk(path):  # follows no links
        folder = Path(name)
        run = _run(folder, files)
        if run is not None:
            yield run
        taken = () if run is None else run.names
        yield from (_file(folder / file) for file in files if file not in taken and is_checkpoint(folder / file))


def _run(folder: Path, files: list[str]) -> Leftover | None:
    """The run in a folder, or what is left of one whose writing was cut short."""
    ours = [name for name in sorted(files) if is_ours(name)]
    half_written = folder.name.startswith(STAGING) and len(ours) == len(files)
    if not half_written and not _is_report(folder / "report.json", files):
        return None
    names = sorted(ours, key=lambda name: name == "report.json")
    times = [(folder / name).lstat().st_mtime for name in names] or [folder.stat().st_mtime]
    return Leftover(folder, tuple(names), max(times))


def _is_report(file: Path, files: list[str]) -> bool:
    if file.name not in files or file.is_symlink():
        return False
    try:
        read_report(file)
    except InputError:
        return False
    return True


def _file(path: Path) -> Leftover:
    return Leftover(path.parent, (path.name,), path.stat().st_mtime, whole=False)
