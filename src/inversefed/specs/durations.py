"""A length of time as options and plans write it: 30s, 5m, 1.5h, 30d."""

import re

__all__ = ["seconds_in"]

_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}


def seconds_in(text: str) -> float | None:
    """The seconds of a length of time above 0; a bare number is seconds. `None` where the text is none.

    >>> seconds_in("1.5m"), seconds_in("2d"), seconds_in("soon")
    (90.0, 172800.0, None)
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _UNITS:
        return None
    return float(match[1]) * _UNITS[match[2]] or None
