"""What a benchmark writes: its figures as JSON, replaced as a whole, with the machine that they were measured on."""

import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from inversefed.errors import InputError
from inversefed.report import environment

__all__ = ["machine", "refusing", "write"]


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
