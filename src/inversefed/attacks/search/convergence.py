"""Convergence, when a restart is done before its last iteration: (history of losses) -> bool."""

from collections.abc import Sequence
from dataclasses import dataclass

from inversefed.errors import ConfigError

__all__ = ["Never", "Stalled"]


@dataclass(frozen=True)
class Never:
    """Run all iterations, as the papers do."""

    def __call__(self, history: Sequence[float]) -> bool:
        """`False`."""
        return False


@dataclass(frozen=True)
class Stalled:
    """Converged where the last `patience` iterations lowered the lowest loss by less than a share `gain` of itself.

    Args:
        patience: iterations that are looked back.
        gain: least relative decrease over them that counts as progress.

    Raises:
        ConfigError: no iteration to look back, or a gain outside [0, 1).

    >>> Stalled(patience=2, gain=0.01)([1.0, 0.5, 0.499, 0.498])
    True
    """

    patience: int = 50
    gain: float = 1e-3

    def __post_init__(self) -> None:
        if self.patience < 1 or not 0 <= self.gain < 1:
            raise ConfigError(f"Stalled needs patience >= 1 and 0 <= gain < 1; got {self.patience} and {self.gain}")

    def __call__(self, history: Sequence[float]) -> bool:
        """Whether the search stands still."""
        if len(history) <= self.patience:
            return False
        before, lately = min(history[: -self.patience]), min(history[-self.patience :])
        return lately > before * (1 - self.gain)
