"""Write a report's files into a folder, all or nothing, readable by their owner only.

Recovered pictures are personal data: the folder is made with mode 0700 and every file with 0600. The
files are written to a hidden folder on the same file system and moved in when all of them are there.
Files that are not ours are never touched, nor is the mode of a folder that holds some.
"""

import logging
import re
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path

from inversefed.errors import InputError

__all__ = ["PICTURE", "STAGING", "TENSORS", "TEXTS", "check_folder", "check_writable", "is_ours", "write_files"]

PICTURE = re.compile(r"(target|reconstruction)_\d{2,}\.png")
"""What a picture's file is called."""

TEXTS = ("report.html", "report.json", "report.md")
"""What is written of every report."""

TENSORS = "reconstruction.safetensors"
"""What was recovered, to the last bit, where that was asked for."""

STAGING = ".report."
"""How the hidden folder begins in which the files wait until all of them are there."""


def is_ours(name: str) -> bool:
    """Whether a report's files have such a name.

    >>> is_ours("target_00.png"), is_ours("report.md"), is_ours("notes.md")
    (True, True, False)
    """
    return name in TEXTS or name == TENSORS or PICTURE.fullmatch(name) is not None


def check_folder(folder: str | Path, overwrite: bool = False) -> Path:
    """Refuse a folder that cannot take a report, before the work that fills it.

    Args:
        folder: where the files go; it need not be there yet.
        overwrite: whether files of an earlier report may be replaced.

    Returns:
        The folder's path.

    Raises:
        InputError: it is a file, it cannot be read, or it holds something and `overwrite` is false.

    >>> check_folder(__file__)
    Traceback (most recent call last):
    inversefed.errors.InputError: the output folder .../folder.py is a file; name another folder
    """
    path = Path(folder)
    try:
        if path.exists() and not path.is_dir():
            raise InputError(f"the output folder {path} is a file; name another folder")
        if path.is_dir() and any(path.iterdir()) and not overwrite:
            raise InputError(
                f"the output folder {path} is not empty; name another one, or ask to overwrite (--overwrite)"
            )
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def check_writable(folder: str | Path) -> None:
    """Refuse a folder that cannot be made or written to, before the work whose result it is for.

    Args:
        folder: where files will go; neither it nor a parent is made.

    Raises:
        InputError: it cannot be written to.
    """
    path = Path(folder).absolute()
    nearest = next(each for each in (path, *path.parents) if each.exists())
    try:
        with tempfile.TemporaryDirectory(prefix=".probe.", dir=nearest):
            pass  # what can be made here can be written here
    except OSError as error:
        raise _unwritable(Path(folder), error) from error


def write_files(folder: str | Path, files: Mapping[str, bytes], overwrite: bool = False) -> Path:
    """Write files into a folder, and remove pictures and tensors that another report left there before.

    Args:
        folder: where the files go; made, with its parents, if it is not there.
        files: contents by file name.
        overwrite: whether files of an earlier report may be replaced.

    Returns:
        The folder's path.

    Raises:
        InputError: the folder is refused by `check_folder`, or cannot be written to.
    """
    path = check_folder(folder, overwrite)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Inside a folder that is there already, because it may be a mount point.
        with tempfile.TemporaryDirectory(prefix=STAGING, dir=path if path.exists() else path.parent) as staging:
            _write(Path(staging), files)
            path.mkdir(mode=0o700, exist_ok=True)
            _make_private(path)
            for name in files:
                (Path(staging) / name).replace(path / name)
        _remove_stale(path, files)
    except OSError as error:
        raise _unwritable(path, error) from error
    return path


def _write(staging: Path, files: Mapping[str, bytes]) -> None:
    for name, content in files.items():
        (staging / name).touch(mode=0o600)
        (staging / name).chmod(0o600)  # a umask may have taken the owner's own right
        (staging / name).write_bytes(content)


def _make_private(folder: Path) -> None:
    """Close the folder to others, but not one with foreign files in it, nor one that is everybody's, such as /tmp."""
    foreign = any(not is_ours(entry.name) and not entry.name.startswith(STAGING) for entry in folder.iterdir())
    if foreign or folder.stat().st_mode & stat.S_ISVTX:
        return
    try:
        folder.chmod(0o700)
    except PermissionError:
        logging.getLogger(__name__).warning("the folder %s is another user's, and stays as open as it is", folder)


def _remove_stale(folder: Path, files: Mapping[str, bytes]) -> None:
    for entry in folder.iterdir():
        stale = PICTURE.fullmatch(entry.name) or entry.name == TENSORS
        if stale and entry.name not in files and not entry.is_dir():
            entry.unlink()


def _unwritable(folder: Path, error: OSError) -> InputError:
    return InputError(f"cannot write to the output folder {folder}: {error.strerror or error}; choose another one")
