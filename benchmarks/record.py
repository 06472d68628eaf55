"""What benchmarks have in common: how a command runs and ends, and what it writes.

Figures are JSON, replaced as a whole, with the machine that they were measured on.
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import tyro

from inversefed.errors import InputError, InversefedError
from inversefed.report import environment

__all__ = ["command", "machine", "refusing", "write"]

OptionsT = TypeVar("OptionsT")


def command(
    name: str,
    options: type[OptionsT],
    run: Callable[[OptionsT, str], int],
    arguments: Sequence[str] | None = None,
    kept: str = "the rows above are what was finished",
) -> int:
    """Read the options of a benchmark and run it.

    Args:
        name: of its module.
        options: their type.
        run: takes them and the command line, for the record; returns the exit status.
        arguments: those of the command line; `None` for those that the process was called with.
        kept: what is left after Ctrl-C.

    Returns:
        What `run` returns, 2 for wrong usage or input, 130 if interrupted.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    program = f"python -m benchmarks.{name}"
    read = tyro.cli(options, args=given, prog=program)
    try:
        return run(read, f"{program} {shlex.join(given)}")
    except InversefedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {kept}", file=sys.stderr)
        return 130


def machine() -> dict[str, Any]:
    """What the figures were measured on; the seconds mean nothing elsewhere."""
    return {
        **environment.describe(),
        "processor": _processor(),
        "cores_allowed": len(os.sched_getaffinity(0)),
        "omp_num_threads": os.environ.get("OMP_NUM_THREADS", ""),
    }


def write(path: Path, document: Mapping[str, Any]) -> None:
    """Replace the file; finite numbers only.

    Raises:
        InputError: it cannot be written.
    """
    text = json.dumps(document, indent=1, allow_nan=False)
    part = path.with_name(path.name + ".part")
    with refusing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(path)


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Say which option names a file that cannot be written.

    Raises:
        InputError: whatever the system said.
    """
    try:
        yield
    except OSError as error:
        raise InputError(f"--json: {path} cannot be written ({error})") from error


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
