"""The exceptions of inversefed, all below one root.

    InversefedError
    ├── ConfigError              an unknown name, option or value
    ├── InputError               pictures, labels or files that cannot be used
    │   ├── MetadataError        what an update says of itself cannot be
    │   ├── UpdateMismatchError  an update that does not fit the network
    │   ├── UnsafeFileError      a file that was refused before it was read
    │   └── StorageError         the disk or database that results go to cannot be written
    ├── ThreatModelError         the attack needs what the observation hides
    └── UnsupportedNetworkError  a module that cannot be audited, or not by this method

A message says what was expected, what came, and what to do. A restart that ends in NaN is a
`Status`, not an exception.
"""

import difflib
import re
from collections.abc import Iterable

__all__ = [
    "ConfigError",
    "InputError",
    "InversefedError",
    "MetadataError",
    "StorageError",
    "ThreatModelError",
    "UnsafeFileError",
    "UnsupportedNetworkError",
    "UpdateMismatchError",
    "shown",
    "unknown_name",
]


class InversefedError(Exception):
    """Root of all errors that inversefed raises on purpose."""


class ConfigError(InversefedError, ValueError):
    """An unknown name, option or value; the message lists what there is."""


class InputError(InversefedError, ValueError):
    """Pictures, labels or files that cannot be used."""


class MetadataError(InputError):
    """What an update's file says of itself that cannot be, such as a learning rate below 0.

    Args:
        message: what was expected, what came, and what to do.
        entry: the name of what cannot be, such as `"learning_rate"`.
    """

    def __init__(self, message: str, entry: str = "") -> None:
        super().__init__(message)
        self.entry = entry


class UpdateMismatchError(InputError):
    """An update whose names, shapes or numbers do not fit the network's parameters."""


class UnsafeFileError(InputError):
    """A file that was refused before anything in it was run or loaded."""


class StorageError(InputError):
    """The disk or database that results go to cannot be read or written; what was finished before is kept."""


class ThreatModelError(InversefedError):
    """An attack needs what the threat model hides from the server."""


class UnsupportedNetworkError(InversefedError):
    """A module that cannot be audited, or not by the method that was asked for."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> ConfigError:
    """Build the error for a name that is not in a registry.

    Args:
        kind: what the name was meant to be, such as `"prior"`.
        name: what came.
        known: the names there are.

    Returns:
        An error whose message gives the nearest names and the whole list.

    >>> raise unknown_name("prior", "TotalVariaton", ["TotalVariation"])
    Traceback (most recent call last):
    inversefed.errors.ConfigError: unknown prior 'TotalVariaton'; did you mean TotalVariation? Known: TotalVariation
    """
    names = sorted(known, key=lambda each: (each[:1].isupper(), each))  # recipes before classes
    lowered = {candidate.lower(): candidate for candidate in names}
    near = [lowered[key] for key in difflib.get_close_matches(name.lower(), lowered, n=3, cutoff=0.6)]
    hint = f"; did you mean {' or '.join(near)}?" if near else "."
    return ConfigError(f"unknown {kind} {name!r}{hint} Known: {', '.join(names)}")


def shown(name: object, width: int = 60) -> str:
    r"""A name that a stranger chose, as a message may show it: escaped, quoted and shortened where it is no plain name.

    Terminals read control characters, and pages read tags; here both are only text.

    >>> print(shown("conv1.weight"), shown("<script>" + "x" * 100, width=12))
    conv1.weight '\x3cscript\x3exxxx..'
    """
    text = name if isinstance(name, str) else type(name).__name__
    if len(text) <= width and re.fullmatch(r"[\w.-]+", text, re.ASCII):
        return text
    cut = text[:width] + ".." if len(text) > width else text
    return ascii(cut).replace("<", r"\x3c").replace(">", r"\x3e").replace("&", r"\x26")
