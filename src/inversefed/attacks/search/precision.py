"""Precision: the number format in which the steps of a search are computed.

Everything runs in the network's own format unless one of these says otherwise; on a GPU matrix products and
convolutions keep full float32 accuracy (no TF32) throughout an audit.
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch

from inversefed.errors import ConfigError
from inversefed.numerics import computes_bfloat16

__all__ = ["TF32", "Double", "EarlyBFloat16", "Native"]


_ENOUGH = 5e8
"""Operations of a forward pass from which bfloat16 shows: ConvNet takes 0.6 of the time, ConvNet16 1.04."""


@runtime_checkable
class Precision(Protocol):
    """What the loop asks of a precision."""

    double: ClassVar[bool]
    """Whether the search runs in float64."""
    tf32: ClassVar[bool]
    """Whether a GPU may round float32 products to TF32."""

    @property
    def tolerance(self) -> float:
        """Largest relative difference of the first lowered gradient."""
        ...

    def lowered(self, progress: float) -> bool:
        """Whether iterations at this share of the search, in [0, 1], run in bfloat16."""
        ...

    def suits(self, device: torch.device, operations: int) -> bool:
        """Whether to use it for a network of so many operations a forward pass; else its own format."""
        ...


class _Throughout:
    """One format from the first step to the last, on any machine."""

    double: ClassVar[bool] = False
    tf32: ClassVar[bool] = False
    tolerance: ClassVar[float] = 0.0

    def lowered(self, progress: float) -> bool:
        """`False`."""
        return False

    def suits(self, device: torch.device, operations: int) -> bool:
        """`True`."""
        return True


@dataclass(frozen=True)
class Native(_Throughout):
    """The network's own format, float32 as a rule."""


@dataclass(frozen=True)
class Double(_Throughout):
    """float64 for the whole search: for L-BFGS, which ends where the gradient's rounding begins.

    The update keeps the accuracy that it was sent with.
    """

    double: ClassVar[bool] = True


@dataclass(frozen=True)
class EarlyBFloat16:
    """bfloat16 autocast for the first iterations, the network's own format for the last ones.

    Its gradient differs by 10 to 20 per cent, which early steps forgive. It is proven before use: where the gradient
    at the start differs by more than `tolerance`, it is not used, and the report says so.

    Args:
        until: share of the iterations in bfloat16.
        tolerance: largest relative difference of the first gradient.
        worthwhile: only where the processor computes in bfloat16 and a forward pass has operations enough, 5e8, that
            it shows; else the network's own format throughout. Which it is depends on the machine, not on its load.

    Raises:
        ConfigError: a share outside [0, 1], or a tolerance that is not positive.
    """

    until: float = 0.6
    tolerance: float = 0.5
    worthwhile: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.until <= 1 or not self.tolerance > 0:
            raise ConfigError(
                f"EarlyBFloat16 needs 0 <= until <= 1 and tolerance > 0; got {self.until} and {self.tolerance}"
            )

    double: ClassVar[bool] = False
    tf32: ClassVar[bool] = False

    def lowered(self, progress: float) -> bool:
        """Whether this share of the iterations is still in bfloat16."""
        return progress < self.until

    def suits(self, device: torch.device, operations: int) -> bool:
        """Whether it is to be used at all."""
        return not self.worthwhile or (operations >= _ENOUGH and computes_bfloat16(device))


@dataclass(frozen=True)
class TF32(_Throughout):
    """The network's own format, and a GPU may round products to TF32: faster, and wrong from the fourth digit on."""

    tf32: ClassVar[bool] = True
