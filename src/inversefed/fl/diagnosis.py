"""The earlier home of `inversefed.updates.diagnosis`, which notebooks and audit scripts in use import from."""

from inversefed.updates import diagnose

__all__ = ["diagnose"]
