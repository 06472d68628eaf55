"""The portfolio: attacks among which rehearsals on public stand-ins choose.

    the attack as it is, then the same with each of these searches in place of those that its rules name:
    a strong prior (five weights), a weak one, smoothing, bounds, the paper's search in pixels, one color

The first is what the rules choose, and what is kept where no other does better. Exact methods are those of the attack
in all of them. The weight of a prior is what rules know least about: it depends on how much the update leaves open.
"""

from dataclasses import replace
from typing import Any

from inversefed.attacks import Attack
from inversefed.attacks.auto import AutoAttack
from inversefed.attacks.pieces.parametrizations import OneColor
from inversefed.attacks.recipes import curvature, geiping, in_range, smoothed, spectral, steady
from inversefed.attacks.search.inversion import GradientInversion
from inversefed.errors import ConfigError

__all__ = ["ONE_COLOR", "SEARCHES", "portfolio", "searching", "settings_of"]

ONE_COLOR = replace(curvature(4), parametrization=OneColor())
"""One color an example, by matching the update: what is left where an update tells no more of a picture."""

SEARCHES: tuple[GradientInversion, ...] = (
    *(steady(total_variation=weight) for weight in (0.3, 1.0, 3.0, 0.1, 0.03)),
    spectral(),
    smoothed(),
    in_range(),
    geiping(max_iterations=600),
    ONE_COLOR,
)
"""The searches beside those of the rules, in their order: of two that do equally well the earlier one is taken."""


def portfolio(attack: Attack) -> tuple[Attack, ...]:
    """The attacks that are compared, the given one first.

    Args:
        attack: such as `recipes.best()`; restarts, precision and compilation of all are its own, where they were set.

    Raises:
        ConfigError: it has no rules that name a search.

    >>> from inversefed.attacks import recipes
    >>> members = portfolio(recipes.best())
    >>> members[0] == recipes.best(), members[2] == recipes.best().with_search(steady(total_variation=1.0))
    (True, True)
    """
    if not isinstance(attack, AutoAttack):
        raise ConfigError(
            f"only the search of recipes.best() is chosen by rehearsals, and the attack is {attack!r}: leave out the "
            "attack, or the choice"
        )
    changes = settings_of(attack)
    return attack, *(attack.with_search(each.with_settings(**changes) if changes else each) for each in SEARCHES)


def settings_of(attack: AutoAttack) -> dict[str, Any]:
    """What `with_settings` changed in all searches of `best()`, by name."""
    usual = in_range()
    held = {"restarts": attack.in_range.restarts, "precision": attack.in_range.precision}
    held |= {"compilation": attack.in_range.compilation}
    asked = {"restarts": usual.restarts, "precision": usual.precision, "compilation": usual.compilation}
    return {name: value for name, value in held.items() if value != asked[name]}


def searching(attack: Attack) -> Attack:
    """The part of a member that differs from the others: its search, without the exact methods that all of them try."""
    return replace(attack, exact=()) if isinstance(attack, AutoAttack) else attack
