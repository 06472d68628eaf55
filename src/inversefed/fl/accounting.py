"""What an accountant of differential privacy must be told beside the client's own settings.

None of it changes an update: it says of how many rounds, of what share of the data, and for which delta the privacy
loss is to be added up. `privacy` does the sum.
"""

from dataclasses import dataclass
from typing import Literal

from inversefed.errors import ConfigError

__all__ = ["Accounting"]


@dataclass(frozen=True)
class Accounting:
    """How the privacy loss of a `DPSGD` client is counted; names as in Opacus.

    Args:
        target_delta: the delta at which epsilon is stated; well below one over the number of examples.
        rounds: how many updates such as this one the training releases in all.
        sample_rate: with which probability an example of the client's data was drawn into the batch of a round; 1 where
            the batch is all of its data. It lowers epsilon only where the client has a fixed `expected_batch_size`.
        accountant: `"prv"` (numerical, tight) or `"rdp"` (Renyi, an upper bound).

    Raises:
        ConfigError: a value out of its range.

    >>> Accounting(rounds=100, sample_rate=0.01).target_delta
    1e-05
    """

    target_delta: float = 1e-5
    rounds: int = 1
    sample_rate: float = 1.0
    accountant: Literal["prv", "rdp"] = "prv"

    def __post_init__(self) -> None:
        if not 0 < self.target_delta < 1 or not 0 < self.sample_rate <= 1 or self.rounds < 1:
            raise ConfigError(
                "Accounting needs 0 < target_delta < 1, 0 < sample_rate <= 1 and rounds >= 1; got "
                f"{self.target_delta}, {self.sample_rate} and {self.rounds}"
            )
        if self.accountant not in ("prv", "rdp"):
            raise ConfigError(f"Accounting knows the accountants 'prv' and 'rdp', not {self.accountant!r}")
