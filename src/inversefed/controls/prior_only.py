"""An attack with its eyes shut: the search as it is, but for the update, which it never sees.

    x^ = argmin_x  0 * match(client(network, x, y^), update*) + sum prior(x)

What comes out is the prior's minimizer, as far as the steps go: a control. A reconstruction that is no better owes
nothing to the update.
"""

from dataclasses import dataclass, replace

from inversefed.attacks.search.inversion import GradientInversion
from inversefed.attacks.search.restart_pruning import KeepAll
from inversefed.types import Params, Scalar

__all__ = ["blind"]


@dataclass(frozen=True)
class Unseen:
    """No distance at all: zero for any two updates, with a gradient of zero."""

    def __call__(self, predicted: Params, observed: Params) -> Scalar:
        """Zero, which hangs on every tensor so that the search has something to derive."""
        return 0.0 * sum(part.square().sum() for part in predicted.values())  # type: ignore[return-value]


def blind(attack: GradientInversion, restarts: int = 4) -> GradientInversion:
    """The same search from several starts, without the update.

    Hand it a null observation too: label rules and priors look at the observation by themselves.

    Args:
        attack: the search whose priors, starts and steps are kept.
        restarts: how many starts; all of them run to the end.
    """
    return replace(
        attack, objective=Unseen(), features=0.0, restarts=restarts, pruning=KeepAll(), consistency=None, tolerance=None
    )
