"""A client or a defense as tables name it: what differs from the defaults, and nothing else.

    FedAvg(local_steps=2, lr=0.0001, batch_size=0, ..) -> FedAvg(local_steps=2)

The text builds an equal piece again wherever the defaults are the same; records hold the whole text (`written`).
Attacks are named by their recipes instead (`attacks.shown`).
"""

from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

from inversefed.specs.written import written

__all__ = ["short"]


def short(piece: object) -> str:
    """The name of a piece, with those of its settings that are not its defaults.

    >>> from inversefed.fl.clients import FedAvg, FedSGD
    >>> short(FedAvg(local_steps=2)), short(FedSGD())
    ('FedAvg(local_steps=2)', 'FedSGD')
    """
    if isinstance(piece, tuple):
        return f"({', '.join(map(short, piece))}{',' if len(piece) == 1 else ''})"
    if not is_dataclass(piece) or isinstance(piece, type):
        return written(piece)
    settings = ", ".join(f"{name}={short(value)}" for name, value in _changed(piece))
    return f"{type(piece).__name__}({settings})" if settings else type(piece).__name__


def _changed(piece: Any) -> Iterator[tuple[str, Any]]:
    """The settings that are not the class's own defaults."""
    for each in fields(piece):
        default = each.default if each.default_factory is MISSING else each.default_factory()
        if each.init and each.repr and getattr(piece, each.name) != default:
            yield each.name, getattr(piece, each.name)
