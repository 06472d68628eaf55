"""Attacks: from an `Observation` to a `Reconstruction`.

    x^ = argmin_x  match(client(network, x, y^), update*) + sum prior(x)

An attack is a value; it is called with an observation and a random generator, and returns a `Reconstruction`. Nothing
here can see the truth. Three protocols say what an audit may do with an attack beside calling it: an exact method is
asked before it is run, the search of a search attack can be repeated where there is nothing to find, and whatever is
neither is called as it is. Nobody asks an attack for its class.
"""

from typing import Any, Protocol, runtime_checkable

from torch import Generator

from inversefed.fl.threat import Observation
from inversefed.types import Budget, Reconstruction

__all__ = ["Attack", "ExactMethod", "Search", "SearchAttack"]


@runtime_checkable
class Attack(Protocol):
    """Anything that turns an observation into a reconstruction."""

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = ...) -> Reconstruction:
        """Attack within the budget."""
        ...


@runtime_checkable
class ExactMethod(Attack, Protocol):
    """An attack that solves for the data instead of searching for it.

    It comes to the same from the same observation, so an audit repeats it only to see what it makes of a random update.
    """

    def check(self, observation: Observation) -> str:
        """Say what it would do, without solving anything.

        Raises:
            ThreatModelError: the observation lacks what it needs.
            UnsupportedNetworkError: it does not take such a network.
        """
        ...


@runtime_checkable
class SearchAttack(Attack, Protocol):
    """An attack that tries guesses, or that chooses or adapts one that does.

    An audit repeats its search on random updates, which tells leakage from luck.
    """

    def search(self, observation: Observation) -> "Search":
        """The search that it comes to for this observation; itself, where it is one."""
        ...

    def with_settings(self, **changes: Any) -> "SearchAttack":
        """The same attack, its searches with other restarts, precision or compilation.

        Raises:
            ConfigError: a setting that it does not have.
        """
        ...


@runtime_checkable
class Search(SearchAttack, Protocol):
    """One search: what the control runs repeat. `Budget.max_iterations` says how long a repeat goes."""

    @property
    def max_iterations(self) -> int:
        """Iterations of a restart."""
        ...

    @property
    def planned_steps(self) -> int:
        """Iterations of all its restarts together, where none ends early."""
        ...

    @property
    def first_picture(self) -> int:
        """Iterations with which it shows a first picture; a repeat has as many at least."""
        ...

    @property
    def has_prior(self) -> bool:
        """Whether it would move its starts without an update, by what it believes of pictures."""
        ...

    def one_start(self, apart: bool = False) -> "Search":
        """The same search from one start.

        Args:
            apart: from one that differs clearly, whose result would not agree with the first's by itself.
        """
        ...

    def prior_alone(self, restarts: int) -> "Search":
        """The same search from several starts, which never looks at the update.

        Args:
            restarts: how many starts; all of them run to the end.
        """
        ...
