"""A Flower mod that keeps what a client was sent and what it sends back, for an audit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy

FOLDER = Path("audited")


def keep_update(message: Any, context: Any, call_next: Callable[[Any, Any], Any]) -> Any:
    """Write the two files of each training round; the last round stays."""
    reply = call_next(message, context)
    if message.metadata.message_type.startswith("train") and not reply.has_error():
        FOLDER.mkdir(mode=0o700, exist_ok=True)
        numpy.savez(FOLDER / "before.npz", *arrays(message))
        numpy.savez(FOLDER / "after.npz", *arrays(reply), kind="new_weights", **examples(reply))
    return reply


def arrays(message: Any) -> list[numpy.ndarray]:
    """The arrays of a message in their order, which is that of the client's state dict."""
    (record,) = message.content.array_records.values()
    return record.to_numpy_ndarrays()


def examples(reply: Any) -> dict[str, int]:
    """How many examples the client says that it trained on."""
    said = {key: value for metrics in reply.content.metric_records.values() for key, value in metrics.items()}
    count = said.get("num-examples", said.get("num_examples"))
    return {} if count is None else {"num_examples": int(count)}
