"""`inversefed purge`: list what audits left, ask, and remove it."""

import sys
import time
from contextlib import suppress
from pathlib import Path

from inversefed.attacks.search.checkpoint import is_checkpoint
from inversefed.cli.options import Purge
from inversefed.errors import ConfigError
from inversefed.experiments.places import is_hash, is_live
from inversefed.report.purge import Leftover, find, remove
from inversefed.specs.durations import seconds_in

__all__ = ["run_purge"]


def run_purge(options: Purge) -> int:
    """Remove runs and checkpoints.

    Returns:
        0, also where there was nothing to remove or the answer was no.

    Raises:
        ConfigError: nobody to ask, and no `--yes`.
        InputError: a path that no audit wrote, or something that cannot be removed.
    """
    age = 0.0 if options.older_than is None else seconds_in(options.older_than)
    if age is None:
        raise ConfigError(f"--older-than is an age such as 90m, 12h, 30d or 4w, not {options.older_than!r}")
    before = time.time() - age
    folders = options.runs or tuple(path for path in (Path("runs"),) if path.exists())
    leftovers = find(folders, lambda path: is_checkpoint(path) or is_live(path))
    found = [leftover for leftover in leftovers if leftover.written <= before]
    if not options.quiet:
        _list(found)
    if not found or options.dry_run or not _confirmed(options, len(found)):
        return _say(options, "nothing was removed")
    for leftover in found:
        remove(leftover)
    for folder in {leftover.folder for leftover in found if is_hash(leftover.folder.name)}:
        with suppress(OSError):  # there is more in it
            folder.rmdir()
    kept = [leftover.folder for leftover in found if leftover.whole and leftover.folder.exists()]
    for folder in [] if options.quiet else kept:
        print(f"{_shown(folder)} stays, with files in it that no audit wrote")
    return _say(options, f"{len(found)} removed")


def _list(found: list[Leftover]) -> None:
    for leftover in found:
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(leftover.written))
        count = len(leftover.names)
        what = f"{count} file{'s'[: count != 1]}" if leftover.whole else "checkpoint"
        print(f"{when}  {what:>10}  {_shown(leftover.path)}")


def _shown(path: Path) -> str:
    """A path without what a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in str(path))


def _confirmed(options: Purge, count: int) -> bool:
    if options.yes:
        return True
    if options.quiet or not sys.stdin.isatty():
        raise ConfigError("nobody to ask: give --yes to remove what is listed, or --dry-run to see it")
    return input(f"Remove {'it' if count == 1 else f'these {count}'} for good? [y/N] ").strip().lower() in ("y", "yes")


def _say(options: Purge, message: str) -> int:
    if not options.quiet:
        print(message)
    return 0
