"""How a client trained, from what frameworks send along: configuration by name, and numbers of examples."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from inversefed.updates.metadata import Metadata

__all__ = ["client_text", "metadata_of"]

_NAMES = {
    "learning_rate": ("lr", "learning-rate"),
    "batch_size": ("batch-size",),
    "epochs": ("local-epochs", "epochs", "num-epochs"),
    "local_steps": ("local-steps",),
    "momentum": ("momentum",),
    "proximal": ("proximal-mu",),
}
"""What settings are called in configurations, dashes and underscores alike."""


def _found(config: Mapping[str, Any], name: str) -> float | None:
    plain = {key.lower().replace("_", "-"): value for key, value in config.items()}
    values = (plain[each] for each in _NAMES[name] if each in plain)
    numbers = (float(each) for each in values if isinstance(each, int | float) and not isinstance(each, bool))
    return next((each for each in numbers if math.isfinite(each) and each > 0), None)


def metadata_of(config: Mapping[str, Any], num_examples: int | None, stated: Metadata = Metadata()) -> Metadata:
    """What stands beside an update, by its client's configuration.

    A learning rate is of use only with the number of steps: where that is not known, neither is said.

    Args:
        config: settings by name, such as `lr`, `batch-size` and `local-epochs`; others are passed over.
        num_examples: how many examples the client says it has; `None` where it does not.
        stated: what is known better.

    >>> metadata_of({"lr": 0.1, "batch-size": 32, "local-epochs": 1}, 80).given()
    {'learning_rate': 0.1, 'local_steps': 3, 'num_examples': 80, 'batch_size': 32}
    >>> metadata_of({"lr": 0.1}, 1).given()
    {'learning_rate': 0.1, 'local_steps': 1, 'num_examples': 1}
    >>> metadata_of({"lr": 0.1}, 80).given()
    {'num_examples': 80}
    """
    count = stated.num_examples or num_examples
    size, epochs, steps = (_found(config, name) for name in ("batch_size", "epochs", "local_steps"))
    size = None if size is None or count is None else min(int(size), count)
    if count == 1 and epochs is None and steps is None:
        epochs = 1.0
    if steps is None and epochs is not None and count is not None and (size is not None or count == 1):
        steps = epochs * math.ceil(count / (size or 1))
    known = Metadata(num_examples=count, batch_size=size, momentum=_momentum(config))
    if steps is not None:
        known = replace(known, local_steps=int(steps), learning_rate=_found(config, "learning_rate"))
    return known.overridden(stated)


def client_text(config: Mapping[str, Any], metadata: Metadata) -> str | None:
    """The client as text, where metadata have no words for it: epochs with a last, smaller batch, in an order that
    changes, or the pull of FedProx.

    >>> config = {"lr": 0.1, "batch-size": 32, "local-epochs": 2}
    >>> client_text(config, metadata_of(config, 80))
    'FedAvg(epochs=2, lr=0.1, batch_size=32, shuffle=True)'
    >>> client_text({"lr": 0.1}, metadata_of({"lr": 0.1}, 1)) is None
    True
    """
    epochs, proximal = _found(config, "epochs"), _found(config, "proximal")
    count, size, lr = metadata.num_examples, metadata.batch_size, metadata.learning_rate
    if lr is None or count is None or size is None or epochs is None:
        return None
    if not proximal and epochs == 1 and count % size == 0:
        return None
    parts = [f"epochs={int(epochs)}, lr={lr!r}, batch_size={size}"]
    parts += [f"optimizer=LocalSGD(momentum={metadata.momentum!r})"] if metadata.momentum else []
    parts += [f"proximal={proximal!r}"] if proximal else []
    parts += ["shuffle=True"] if epochs > 1 and size < count else []  # one pass in any order is one pass
    return f"FedAvg({', '.join(parts)})"


def _momentum(config: Mapping[str, Any]) -> float | None:
    found = _found(config, "momentum")
    return found if found is not None and found < 1 else None
