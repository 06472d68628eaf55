"""What rehearsals came to, kept in a folder by what decides it, so that equal settings pay once.

    FOLDER/FINGERPRINT.json        fingerprint = SHA-256 of setting, attacks, stand-ins, seed, budget and versions

A file holds names and numbers: no picture, no weight, nothing of a private update, which no rehearsal sees. One that is
damaged, or of something else, is left alone and said so in a finding; it is never a reason to fail.
"""

import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inversefed.evaluation.choice import Choice, Rung
from inversefed.evaluation.power import Rehearsed
from inversefed.findings import Code, Finding

__all__ = ["RehearsalCache"]

_FORMAT = "inversefed rehearsals 1"
_Kept = Choice | Rehearsed


@dataclass(eq=False)
class RehearsalCache:
    """A folder of earlier rehearsals.

    Args:
        folder: made, for its owner only, if it is not there; `None` keeps nothing.

    Attributes:
        findings: what could not be read or written.
    """

    folder: Path | None
    findings: list[Finding] = field(default_factory=list, init=False)

    def choice(self, key: str, attacks: tuple[str, ...]) -> Choice | None:
        """The choice among these attacks that is kept under a fingerprint; `None` where there is none.

        Args:
            key: its fingerprint.
            attacks: the members, as text.
        """
        content = self._read(key)
        try:
            if content is None:
                return None
            rungs = tuple(
                Rung(float(each["share"]), {int(number): float(score) for number, score in each["scores"].items()})
                for each in content["rungs"]
            )
            found = Choice(
                attacks, int(content["number"]), rungs, int(content["stand_ins"]), str(content["why"]),
                float(content["seconds"]), cached=True,
            )  # fmt: skip
            known = range(len(attacks))
            if found.number not in known or any(number not in known for rung in rungs for number in rung.scores):
                raise ValueError("a member that there is not")
            return found
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self._ignored(key, error)
            return None

    def rehearsed(self, key: str) -> Rehearsed | None:
        """The rehearsals that are kept under a fingerprint; `None` where there are none."""
        content = self._read(key)
        try:
            if content is None:
                return None
            why, note = str(content["why"]), str(content["note"])
            scores = tuple(float(score) for score in content["scores"])
            return Rehearsed(scores, int(content["planned"]), why, note, float(content["seconds"]), cached=True)
        except (KeyError, TypeError, ValueError) as error:
            self._ignored(key, error)
            return None

    def keep(self, key: str, found: _Kept) -> None:
        """Write what was found, all of it or nothing."""
        if self.folder is None:
            return
        content: dict[str, Any] = {**vars(found), "format": _FORMAT, "fingerprint": key}
        if isinstance(found, Choice):
            content["rungs"] = [
                {"share": each.share, "scores": {str(number): _number(score) for number, score in each.scores.items()}}
                for each in found.rungs
            ]
        else:
            content["scores"] = [_number(score) for score in found.scores]
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            file, name = tempfile.mkstemp(dir=self.folder, prefix=".", suffix=".json")  # readable by its owner only
            try:
                with os.fdopen(file, "w", encoding="utf-8") as stream:
                    json.dump(content, stream, indent=1, allow_nan=False)
                Path(name).replace(self._path(key))
            except BaseException:
                with suppress(OSError):
                    Path(name).unlink()
                raise
        except OSError as error:
            self._tell(f"Rehearsals could not be kept in {self.folder}: {error}; the next audit makes them again.")

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}.json"

    def _read(self, key: str) -> Mapping[str, Any] | None:
        if self.folder is None:
            return None
        try:
            content = json.loads(self._path(key).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            self._ignored(key, error)
            return None
        if not isinstance(content, dict) or (content.get("format"), content.get("fingerprint")) != (_FORMAT, key):
            self._ignored(key, "it is of something else")
            return None
        return content

    def _ignored(self, key: str, why: object) -> None:
        self._tell(f"The rehearsals in {self._path(key)} cannot be used ({why}); they were made again.")

    def _tell(self, message: str) -> None:
        self.findings.append(Finding(Code.REHEARSAL_CACHE, "warning", message, {"folder": str(self.folder)}))


def _number(score: float) -> float | str:
    """A score as JSON can hold it: infinities as text, which `float` reads."""
    return score if abs(score) < float("inf") else str(score)
