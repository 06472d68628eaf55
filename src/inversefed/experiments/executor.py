"""Where the jobs of a run are carried out: what `local` and `ray_cluster` have in common.

Whoever writes another executor derives from this, or has the same two parts: the ledger decides who has a job and which
result is kept, so that an executor need only see to it that jobs are taken, and given back when their process dies.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from inversefed.experiments.ledger import Ledger, Run, Standing

__all__ = ["Executor"]


@runtime_checkable
class Executor(Protocol):
    """Carries out the jobs of a ledger."""

    @property
    def count(self) -> int:
        """How many jobs it runs at once."""

    def __call__(self, ledger: Ledger, run: Run, on_look: Callable[[Standing], object] = lambda _: None) -> Standing:
        """Run until every job of a run is done or failed.

        Args:
            ledger: where the jobs are.
            run: whose jobs.
            on_look: told now and then how far the run is.

        Returns:
            How far it came.

        Raises:
            InputError: the machinery that runs the jobs is broken, or the ledger cannot be written to.
        """
