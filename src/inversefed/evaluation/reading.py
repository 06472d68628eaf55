"""Read a `report.json` as plain data, with no trust in where it comes from.

A report may be handed on, so a file is held to be foreign: it is an ordinary file of bounded size, it is JSON as
RFC 8259 has it, without NaN, and it says by itself that it is a report. Nothing in it is run or opened.
"""

import json
import stat
from pathlib import Path
from typing import Any, NoReturn

from inversefed.errors import InputError

__all__ = ["FORMAT", "is_report", "read_report"]

FORMAT = "inversefed-report"
"""What the entry `format` of every report says."""

MOST_BYTES = 64 * 2**20
"""A report holds numbers and names, no pixels; the largest of our tests is under 1 MiB."""

_EVERY = {"version", "headline", "attack", "status", "scores", "baselines", "candidates", "scenario", "environment"}


def is_report(content: object) -> bool:
    """Whether parsed JSON is a report of this program; those from before `format` are known by their entries.

    >>> is_report({"format": "inversefed-report"}), is_report({"scores": {}}), is_report([])
    (True, False, False)
    """
    return isinstance(content, dict) and (content.get("format") == FORMAT or content.keys() >= _EVERY)


def read_report(path: str | Path) -> dict[str, Any]:
    """Read a report from its file, or from the folder that an audit wrote.

    Args:
        path: a `report.json`, or the folder that holds one.

    Raises:
        InputError: no such file, one that is too large, no JSON, or no report.

    >>> read_report(__file__)
    Traceback (most recent call last):
    inversefed.errors.InputError: .../reading.py is no report: it is not JSON ...
    """
    file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
    try:
        content = json.loads(_bytes(file), parse_constant=_refuse)
    except OSError as error:
        raise InputError(f"cannot read the report {file}: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file} is no report: it is not JSON ({error}); name a report.json or its folder") from error
    if not is_report(content):
        raise InputError(f"{file} is no report of inversefed; name a report.json, or the folder that an audit wrote")
    found: dict[str, Any] = content
    return found


def _bytes(file: Path) -> bytes:
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{file} is not an ordinary file; name a report.json or its folder")
    with file.open("rb") as handle:
        content = handle.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InputError(f"{file} is larger than {MOST_BYTES} bytes, which no report is")
    return content


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number in JSON")
