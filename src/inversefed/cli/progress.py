"""Progress on standard error: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["Tell", "progress"]

Tell = Callable[[int, int, str], None]
"""(done, of how many, what to say)."""

_SECONDS_BETWEEN_LINES = 10.0


@contextmanager
def progress(title: str, quiet: bool) -> Iterator[Tell]:
    """Show how far a long job is.

    Args:
        title: what the job is called.
        quiet: show nothing.
    """
    if quiet:
        yield lambda *_: None
    elif sys.stderr.isatty():
        with _bar(title) as tell:
            yield tell
    else:
        yield _lines(title)


@contextmanager
def _bar(title: str) -> Iterator[Tell]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} {task.fields[text]}"),
    )
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, text="")
        yield lambda done, total, text: bar.update(task, completed=done, total=total, text=text)


def _lines(title: str) -> Tell:
    last = time.monotonic()

    def tell(done: int, total: int, text: str) -> None:
        nonlocal last
        if done == total or time.monotonic() - last > _SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(f"{title}: {done}/{total} {text}", file=sys.stderr)

    return tell
