"""Where the jobs of a run are carried out: what `local` and `ray_cluster` have in common.

Whoever writes another executor derives from this, or has the same two parts: the ledger decides who has a job and which
result is kept, so that an executor need only see to it that jobs are taken, and given back when their process dies.
"""

import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

from inversefed.experiments.ledger import Ledger, Run, Standing
from inversefed.experiments.work import remove_stale

__all__ = ["LOOK", "PROCESS", "Executor", "until_done"]

LOOK = 0.2
"""Seconds between two looks at what runs."""
PROCESS = 400_000_000
"""Bytes that a worker has before it does anything: Python, torch, and what both load."""


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


def until_done(
    ledger: Ledger, run: Run, look: Callable[[Standing], object], on_look: Callable[[Standing], object]
) -> Standing:
    """Look after a run until every job is done or failed; what ended jobs had while they ran is removed.

    Args:
        ledger: where the jobs are.
        run: whose jobs.
        look: sees to what runs, and takes at least `LOOK` seconds for it.
        on_look: told before each look how far the run is.

    Returns:
        How far it came.
    """
    while True:
        began = time.monotonic()
        standing = ledger.standing(run)
        on_look(standing)
        counting = time.monotonic() - began
        if not standing.open:
            remove_stale(ledger)
            return standing
        look(standing)
        time.sleep(max(0.0, 4 * counting - LOOK))  # to count very many jobs takes a while
