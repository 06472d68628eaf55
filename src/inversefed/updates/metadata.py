"""What stands beside an update: kind, learning rate, steps, examples. All of it optional, all of it checked.

Without kind, learning rate and number of steps an attack inverts the wrong thing, and nothing says so. The names are
the same in a file, as options of the command line and here. In safetensors every value is text.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from inversefed.errors import ConfigError, MetadataError, shown

__all__ = ["Autocast", "BatchNormMode", "InputKind", "Kind", "Metadata", "OptimizerName", "Reduction", "read_metadata"]

Kind = Literal["gradient", "weight_delta", "new_weights"]
Reduction = Literal["mean", "sum"]
BatchNormMode = Literal["train", "eval"]
OptimizerName = Literal["sgd", "nesterov", "adam", "adamw"]
Autocast = Literal["bfloat16", "float16"]
InputKind = Literal["images", "columns", "series", "tokens"]

_WORDS: Mapping[str, tuple[str, ...]] = {
    "kind": get_args(Kind),
    "loss_reduction": get_args(Reduction),
    "bn_mode": get_args(BatchNormMode),
    "optimizer": get_args(OptimizerName),
    "autocast": get_args(Autocast),
    "inputs": get_args(InputKind),
}
_COUNTS: Mapping[str, int] = {
    "local_steps": 10_000,
    "num_examples": 1_000_000,
    "batch_size": 1_000_000,
    "epochs": 10_000,
    "micro_batch_size": 1_000_000,
}
"""Numbers from 1 up to what a client could have, and what an attack could simulate."""
_RANGES: Mapping[str, tuple[float, str]] = {
    "momentum": (1, "a number from 0 to below 1"),
    "beta1": (1, "a number from 0 to below 1"),
    "beta2": (1, "a number from 0 to below 1"),
    "weight_decay": (1e3, "a number from 0 to below 1000"),
    "eps": (1e3, "a number from 0 to below 1000"),
}
"""Numbers from 0 to below a bound."""
_NO_OPTION: Mapping[str, str] = {
    **dict.fromkeys(("beta1", "beta2", "eps", "autocast"), "give --client"),
    "inputs": "say what they are by --table or --inputs",
}
"""What only a file says, and what says it instead: another client, say, is written as a whole."""
_LONGEST = 64
"""Characters of a value."""


@dataclass(frozen=True)
class Metadata:
    """How an update came to be, as far as its owner says.

    Args:
        kind: `"gradient"`: of the loss, averaged over the examples unless `loss_reduction` says otherwise;
            `"weight_delta"`: new minus old weights; `"new_weights"`: the weights after training.
        learning_rate: of the local steps, from 1e-9 on.
        local_steps: how many optimizer steps the client took, at most 10,000.
        num_examples: how many examples it has.
        batch_size: how many of them a local step sees.
        momentum: of the local optimizer, from 0 to below 1.
        loss_reduction: whether the loss of a batch is the mean or the sum over its examples.
        bn_mode: whether BatchNorm normalized by the batch (`"train"`) or by its running statistics.
        optimizer: the local update rule: `"sgd"`, `"nesterov"` for SGD with Nesterov momentum, `"adam"` or `"adamw"`;
            `None` for SGD.
        weight_decay: of the local optimizer: an L2 penalty that is added to the gradient, and with `"adamw"` what is
            taken off the weights beside it.
        beta1: decay of Adam's first moment; `None` for 0.9.
        beta2: decay of its second; `None` for 0.999.
        eps: what is added to the root of its second moment; `None` for 1e-8.
        epochs: passes over the examples instead of `local_steps`; a last, smaller batch counts as well.
        micro_batch_size: how many examples of a step went through the network at once, where gradients of several such
            parts were averaged into one step (gradient accumulation).
        autocast: the number format that the network's operations ran in where PyTorch lowers it by `torch.autocast`.
        inputs: what the network was fed: pictures, rows of a table, windows of series, or token ids.

    Raises:
        ConfigError: a value out of range.

    >>> Metadata(kind="weight_delta", learning_rate=0.1).given()
    {'kind': 'weight_delta', 'learning_rate': 0.1}
    """

    kind: Kind | None = None
    learning_rate: float | None = None
    local_steps: int | None = None
    num_examples: int | None = None
    batch_size: int | None = None
    momentum: float | None = None
    loss_reduction: Reduction | None = None
    bn_mode: BatchNormMode | None = None
    optimizer: OptimizerName | None = None
    weight_decay: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    epochs: int | None = None
    micro_batch_size: int | None = None
    autocast: Autocast | None = None
    inputs: InputKind | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            expected = _refusal(name, value)
            if expected:
                raise ConfigError(f"{name} must be {expected}, got {shown(str(value))}")

    def given(self) -> dict[str, str | int | float]:
        """What is known, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    def overridden(self, other: "Metadata") -> "Metadata":
        """The same, with what another one says instead where it says something."""
        changes: Any = other.given()
        return replace(self, **changes)


def read_metadata(notes: Mapping[str, object], stated: Metadata = Metadata()) -> Metadata:
    """Metadata out of what a file says beside its tensors; names that are not known are passed over.

    Args:
        notes: by name.
        stated: what is known better: it wins, and what the file says in its place is not even looked at.

    Raises:
        MetadataError: a value that cannot be.

    >>> read_metadata({"learning_rate": "0.1", "local_steps": "4", "round": "17"}).given()
    {'learning_rate': 0.1, 'local_steps': 4}
    """
    known = {each.name for each in fields(Metadata)}
    known -= stated.given().keys()
    read: dict[str, Any] = {name: _read(name, value) for name, value in notes.items() if name in known}
    for name, value in read.items():
        expected = "" if value is None else _refusal(name, value)
        if expected:
            raise _unusable(name, expected, value)
    return Metadata(**read).overridden(stated)


def _read(name: str, value: object) -> str | int | float | None:
    """One value, which may be text."""
    if name in _WORDS:
        return value if isinstance(value, str) else str(type(value).__name__)
    kind: Callable[[Any], int | float] = _whole if name in _COUNTS else float
    text = value.strip() if isinstance(value, str) else value
    if text in ("", "None"):
        return None
    try:
        if isinstance(text, bool) or (isinstance(text, str) and len(text) > _LONGEST):
            raise ValueError
        return kind(text)
    except (TypeError, ValueError, OverflowError) as error:
        raise _unusable(name, _whole_number(name) if name in _COUNTS else "a number", value) from error


def _unusable(name: str, expected: str, value: object) -> MetadataError:
    cure = f"correct the file, or {_NO_OPTION[name]}" if name in _NO_OPTION else f"give --{name.replace('_', '-')}"
    message = f"the file says of itself that {name} is {shown(str(value))}, but it is {expected}; {cure}"
    return MetadataError(message, name)


def _whole(value: str | int | float) -> int:
    number = float(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _whole_number(name: str) -> str:
    return f"a whole number from 1 to {_COUNTS[name]:,}"


def _refusal(name: str, value: object) -> str:
    """What is expected instead; nothing where the value will do."""
    if name in _WORDS:
        return "" if value in _WORDS[name] else "one of " + ", ".join(_WORDS[name])
    if name in _COUNTS:
        fine = type(value) is int and 1 <= value <= _COUNTS[name]
        return "" if fine else _whole_number(name)
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if name in _RANGES:
        below, expected = _RANGES[name]
        return "" if 0 <= number < below else expected
    return "" if 1e-9 <= number < 1e9 else "a number above 0, from 1e-9 on"
