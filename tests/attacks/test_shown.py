"""What people read of an attack says all of it, in as few words as it can."""

from dataclasses import replace

import pytest

from inversefed import defenses, recipes
from inversefed.attacks import Attack
from inversefed.attacks.adaptive import Adaptive
from inversefed.attacks.pieces.optimizers import Adam
from inversefed.attacks.search.inversion import GradientInversion
from inversefed.attacks.search.precision import Double
from inversefed.attacks.shown import shown
from inversefed.specs import registry


@pytest.mark.parametrize("name", recipes.__all__)
def test_a_recipe_is_shown_by_its_name(name: str) -> None:
    assert shown(getattr(recipes, name)()) == min([f"{name}()", repr(getattr(recipes, name)())], key=len)


CHANGED: tuple[tuple[Attack, str], ...] = (
    (recipes.best().with_settings(restarts=4), "best().with_settings(restarts=4)"),
    (
        recipes.best().with_settings(precision=Double(), compilation="auto"),
        "best().with_settings(precision=Double(), compilation='auto')",
    ),
    (recipes.geiping(restarts=2, max_iterations=7), "geiping(restarts=2, max_iterations=7)"),
    (recipes.geiping().with_settings(restarts=4), "geiping().with_settings(restarts=4)"),
    (replace(recipes.geiping(), optimizer=Adam(0.02)), "geiping().with_settings(optimizer=Adam(lr=0.02, signed=True))"),
    (Adaptive(recipes.best()), "Adaptive(attack=best(), defenses=None, beside=True)"),
)


@pytest.mark.parametrize(("attack", "text"), CHANGED)
def test_what_was_changed_is_shown_beside_it(attack: Attack, text: str) -> None:
    assert shown(attack) == text


def test_what_no_recipe_makes_is_shown_whole() -> None:
    chosen = recipes.best()
    other = replace(chosen, searches=chosen.searches[:1], exact=())
    assert shown(other) == repr(other)
    first, *rest = chosen.searches
    noisy = replace(chosen, searches=(replace(first, attack=replace(first.attack, noise=0.1, keep="last")), *rest))
    assert shown(noisy) == repr(noisy)
    told = Adaptive(recipes.geiping(), (defenses.Clip(1.0),))
    assert registry.build("attack", shown(told)) == told


def test_two_attacks_are_never_shown_alike() -> None:
    searches = [rule.attack for rule in recipes.best().searches]
    apart = {repr(each): shown(each) for each in (*searches, GradientInversion(), *(each for each, _ in CHANGED))}
    assert len(set(apart.values())) == len(apart) and all(len(text) < 700 for text in apart.values())
