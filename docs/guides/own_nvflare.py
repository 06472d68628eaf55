"""Keeps what an NVFlare client receives and sends, for an audit."""

from pathlib import Path
from typing import Any

import numpy

FOLDER = Path("audited")
KINDS = {"FULL": "new_weights", "DIFF": "weight_delta"}


def keep_update(received: Any, sent: Any, num_examples: int) -> None:
    """Write two files from two `FLModel`, before `flare.send(sent)`."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    numpy.savez(FOLDER / "before.npz", **numbers(received.params))
    kind = KINDS[sent.params_type or "FULL"]
    numpy.savez(FOLDER / "update.npz", **numbers(sent.params), kind=kind, num_examples=num_examples)


def numbers(params: dict[str, Any]) -> dict[str, numpy.ndarray]:
    """Parameters by name, which a client may hold as arrays or as tensors."""
    return {name: numpy.asarray(value) for name, value in params.items()}
