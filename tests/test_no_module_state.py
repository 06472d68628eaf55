"""No audit leaves anything in a module, and none computes twice what does not change."""

import inspect
import sys
from collections import Counter
from collections.abc import Callable, Iterator, MutableMapping, MutableSequence, MutableSet
from typing import Any
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

import pytest
import torch
from torch import nn

import inversefed
from inversefed import DPSGD, recipes
from inversefed.attacks.head import gradient, head_inputs, output_activation
from inversefed.fl import privacy, targets
from inversefed.fl.asked import Asked
from inversefed.fl.losses import FocalLoss


def named() -> Iterator[tuple[str, Any]]:
    """All that the modules of the package name."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "inversefed":
            yield from ((f"{name}.{each}", value) for each, value in vars(module).items() if not each.startswith("__"))


def held() -> dict[str, int]:
    """How much each container holds."""
    kinds = MutableMapping | MutableSequence | MutableSet
    return {name: len(value) for name, value in named() if isinstance(value, kinds)}


def audited(loss: Callable[[Any, Any], Any] | None = None, **settings: Any) -> inversefed.Report:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 6))
    images, labels = torch.rand(3, 3, 8, 8), torch.tensor([1, 4, 1])
    return inversefed.audit(module, images, labels, loss=loss, max_iterations=3, nulls=1, **settings)


def all_kinds(on_step: Callable[[Any], None] | None = None) -> None:
    audited(attack=recipes.spectral(), on_step=on_step)
    audited(FocalLoss(gamma=0.0), attack=recipes.best(), on_step=on_step)
    audited(client=DPSGD(1.0, 1.0), attack=recipes.geiping(), on_step=on_step)


def test_no_module_remembers_what_an_audit_works_on() -> None:
    all_kinds()  # what is read from files and imported late is there now
    before, steps = held(), 0

    def look(_: object) -> None:
        nonlocal steps
        steps += 1
        assert held() == before

    all_kinds(look)
    assert steps > 5 and len(before) > 20 and held() == before


def test_no_function_and_no_weak_container_of_a_module_remembers_what_it_was_given() -> None:
    kinds = WeakKeyDictionary | WeakValueDictionary | WeakSet
    assert not [name for name, value in named() if isinstance(value, kinds)]
    memories = [value for _, value in named() if callable(value) and hasattr(value, "cache_info")]
    assert not [each for each in memories if inspect.signature(each).parameters]


def test_what_does_not_change_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    worked: Counter[tuple[str, int]] = Counter()
    asked: Counter[str] = Counter()
    alive, once = list[object](), Asked.once

    def counted(place: Any, name: str) -> None:
        question = getattr(place, name)

        def work(value: Any, *beside: Any) -> Any:
            worked[name, id(value)] += 1
            alive.append(value)  # so that no other value gets its id
            return question(value, *beside)

        monkeypatch.setattr(place, name, work)

    def ask(value: Any, question: Any) -> Any:
        asked[getattr(question, "__qualname__", type(question).__qualname__)] += 1
        return once(value, question)

    questions = [(targets, "_taken"), (gradient, "_pulls"), (output_activation, "_found"), (head_inputs, "_separated")]
    for place, name in questions:
        counted(place, name)
    spent, epsilon = list[object](), privacy.epsilon_spent
    monkeypatch.setattr(privacy, "epsilon_spent", lambda *given: spent.append(given) or epsilon(*given))
    monkeypatch.setattr(Asked, "once", ask)
    all_kinds()
    assert {name for name, _ in worked} == {name for _, name in questions} and set(worked.values()) == {1}
    assert sum(asked.values()) > 2 * len(worked) and len(spent) == len(set(spent)) == 1 < asked["NoisySteps"]
