"""The error boundary around foreign code: the user's module and loss, and torch where they call it.

Whatever such code raises becomes an `InversefedError` that says what was being done, what came, and what to do.
Ctrl-C and a lack of memory keep their meaning, and so does what the caller's own callback raises.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, ParamSpec, TypeVar

import torch

from inversefed.errors import InversefedError, UnsupportedNetworkError

__all__ = ["Callback", "foreign_code"]

_ADVICE = (
    ("use_reentrant", "build the network with checkpoint(..., use_reentrant=False), or without checkpointing"),
    ("aot_autograd does not currently support double backward",
     "give the module as it was before torch.compile, compiled._orig_mod"),
    ("DataParallel", "give the module inside it, its .module"),
    ("more than 1 value per channel", "a normalization is left with one value: BatchNorm in train mode needs at least "
     "two pictures a step, or .eval(); GroupNorm needs larger pictures or fewer groups"),
    ("more than 1 spatial element", "InstanceNorm needs more than one place a channel: audit larger pictures, or call "
     ".eval() where it keeps running statistics"),
    ("derivative for", "torch has no second derivative of that operation, which every search needs: build the network "
     "with an equal one made of simpler operations"),
    ("uninitialized parameter", "call the network once on a batch first, so that its lazy layers are built"),
    ("same device", "put the module, its buffers and the pictures on one device"),
    ("element 0 of tensors does not require grad", "the loss does not depend on any trainable weight: call "
     "requires_grad_(True) on those the client trains, and do not detach or run forward under no_grad"),
)  # fmt: skip
"""What torch says, in part, and what to do about it."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


class Callback(Generic[_P, _R]):
    """The caller's own function, whose errors pass every boundary as they are.

    Args:
        function: what is called.
    """

    def __init__(self, function: Callable[_P, _R]) -> None:
        self.function = function
        self.raised: Exception | None = None

    def __call__(self, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        """Call it, and remember what it raises."""
        try:
            return self.function(*args, **kwargs)
        except Exception as error:
            self.raised = error
            raise


@contextmanager
def foreign_code(doing: str, *callbacks: Callback[..., object] | None) -> Iterator[None]:
    """Turn what foreign code raises into an `UnsupportedNetworkError`.

    Args:
        doing: what is being done, as the beginning of a sentence: "the network's forward pass".
        callbacks: the caller's own functions that may be called within; what they raise is left alone.

    Raises:
        UnsupportedNetworkError: with what was raised, and what to do about it.
        MemoryError: torch could not allocate memory on the processor; on a GPU torch's own error is left alone.

    >>> with foreign_code("the loss"):
    ...     raise ValueError("not enough values")
    Traceback (most recent call last):
    inversefed.errors.UnsupportedNetworkError: the loss failed with ValueError: not enough values
    """
    try:
        yield
    except (InversefedError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if any(callback is not None and callback.raised is error for callback in callbacks):
            raise
        if "can't allocate memory" in str(error):
            raise MemoryError(f"{doing} ran out of memory: {_first_line(error)}") from error
        advice = next((f"; {what}" for told, what in _ADVICE if told in str(error)), "")
        message = f"{doing} failed with {type(error).__name__}: {_first_line(error)}{advice}"
        raise UnsupportedNetworkError(message) from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:300] if lines else "no message"
