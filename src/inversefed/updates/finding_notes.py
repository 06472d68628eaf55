"""What whoever kept an update knows of how it was made, as findings in a file beside it.

    update.safetensors    update.findings.json = [{"code": .., "level": .., "message": .., "evidence": {..}}, ..]

A framework's server knows which of its wrappers clip or mask; the update's own numbers do not tell. Every report on the
file shows these findings; nothing is decided by them.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from inversefed.errors import InputError, shown
from inversefed.types import Finding

__all__ = ["read_notes", "write_notes"]

_LEVELS = ("info", "warning")
_MOST = 100_000
"""Bytes of such a file."""


def write_notes(update: Path, findings: Sequence[Finding]) -> Path:
    """Write findings beside an update's file, for their owner only.

    Returns:
        The file.
    """
    file = update.with_suffix(".findings.json")
    text = json.dumps([each.to_dict() for each in findings], indent=1)
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
        out.write(text)
    return file


def read_notes(update: Path) -> tuple[Finding, ...]:
    """The findings beside an update's file; none where there is no such file.

    Raises:
        InputError: the file is damaged.

    >>> read_notes(Path("no_such_update.npz"))
    ()
    """
    file = update.with_suffix(".findings.json")
    if not file.is_file():
        return ()
    try:
        if file.stat().st_size > _MOST:
            raise ValueError(f"more than {_MOST} bytes")
        return tuple(_finding(each) for each in json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise InputError(f"{file} holds no findings: {shown(str(error))}; remove it, or write it again") from error


def _finding(content: dict[str, object]) -> Finding:
    code, level, message, evidence = (content[name] for name in ("code", "level", "message", "evidence"))
    if not (isinstance(code, str) and isinstance(message, str) and isinstance(evidence, dict)):
        raise ValueError("a finding is a code, a level, a message and evidence")
    if level == "info" or level == "warning":
        return Finding(code, level, message, evidence)
    raise ValueError(f"the level of a finding here is one of {', '.join(_LEVELS)}")
