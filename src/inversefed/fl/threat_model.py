"""What the server knows beside the update: the assumptions under which an audit holds."""

from dataclasses import dataclass, fields
from typing import Literal

from inversefed.errors import ConfigError

__all__ = ["ThreatModel"]

_BUILT = {
    "labels": ("unknown", "known"),
    "counts": ("unknown",),
    "num_examples": ("known",),
    "client": ("known", "unknown"),
    "order": ("unknown", "known"),
    "buffers": ("network", "sent"),
    "defenses": ("unknown", "known"),
    "server": ("honest",),
}


@dataclass(frozen=True)
class ThreatModel:
    """What an honest but curious server is granted beside the update and the network it sent.

    Args:
        labels: whether it knows the labels, in order.
        counts: whether it knows how often each label occurs.
        num_examples: whether it knows how many examples the update was made from.
        client: whether it knows the client's settings (steps, learning rate, slices).
        order: whether it knows in which order a client that shuffles took its examples.
        buffers: which running BatchNorm statistics it has; `"network"`: those it sent out; `"sent"`: also those that
            the client sends back, which in train mode hold the statistics of its batch.
        defenses: whether it knows which defenses the client runs, and how strong (Kerckhoffs' principle); never what
            they drew.
        server: `"honest"` follows the protocol.

    Raises:
        ConfigError: a value that there is no attack for yet.

    >>> ThreatModel(labels="known").labels
    'known'
    """

    labels: Literal["unknown", "known"] = "unknown"
    counts: Literal["unknown"] = "unknown"
    num_examples: Literal["known"] = "known"
    client: Literal["known", "unknown"] = "known"
    order: Literal["unknown", "known"] = "unknown"
    buffers: Literal["network", "sent"] = "network"
    defenses: Literal["unknown", "known"] = "unknown"
    server: Literal["honest"] = "honest"

    def __post_init__(self) -> None:
        for each in fields(self):
            value, known = getattr(self, each.name), _BUILT[each.name]
            if value not in known:
                raise ConfigError(
                    f"ThreatModel({each.name}={value!r}) is not built; known: {', '.join(map(repr, known))}"
                )
