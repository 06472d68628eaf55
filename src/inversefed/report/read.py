"""Read a `report.json` as plain data, with no trust in where it comes from.

A report may be handed on, so a file is held to be foreign: it is an ordinary file of bounded size, it is JSON as
RFC 8259 has it, without NaN, and it says by itself that it is a report. Nothing in it is run or opened.
"""

import json
import math
import stat
from pathlib import Path
from typing import Any, NoReturn

from inversefed.errors import InputError

__all__ = ["FORMAT", "is_report", "read_json", "read_report"]

FORMAT = "inversefed-report"
"""What the entry `format` of every report says."""

MOST_BYTES = 64 * 2**20
"""A report holds numbers and names, no pixels; the largest of our tests is under 1 MiB."""

_MOST_DIGITS = 300
"""More than that no double holds."""

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
    inversefed.errors.InputError: .../read.py is not a report: it is not JSON ...
    """
    file = Path(path) / "report.json" if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise InputError(
            f"cannot read a report from {file}: no such file; name the folder that `inversefed audit --output` wrote"
        )
    content = read_json(file, "a report")
    if not is_report(content):
        raise InputError(f"{file} is no report of inversefed; name a report.json, or the folder that an audit wrote")
    found: dict[str, Any] = content
    return found


def read_json(file: Path, what: str) -> Any:
    """Read JSON from an ordinary file of bounded size.

    Args:
        file: where it is.
        what: what it is meant to be, such as `"a report"`.

    Raises:
        InputError: no such file, one that is too large, or no JSON.
    """
    try:
        return json.loads(_bytes(file), parse_constant=_refuse, parse_float=_finite, parse_int=_whole)
    except OSError as error:
        raise InputError(f"cannot read {what} from {file}: {error.strerror or error}") from error
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is not {what}: it is not JSON ({error}); name the file that was written") from error


def _bytes(file: Path) -> bytes:
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise InputError(f"{file} is not an ordinary file; name the file that was written")
    with file.open("rb") as handle:
        content = handle.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise InputError(f"{file} is larger than {MOST_BYTES} bytes, which nothing that is read here is")
    return content


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse(text)


def _whole(text: str) -> int:
    return int(text) if len(text) < _MOST_DIGITS else _refuse(f"{text[:20]}..")


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number that a report holds")
