"""The choice of an attack on public stand-ins: by successive halving, whatever the private update holds."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import inversefed
from inversefed import Scenario, recipes, rehearsed
from inversefed.attacks import Attack, constant_color
from inversefed.attacks import portfolio as members
from inversefed.attacks.auto import AutoAttack
from inversefed.attacks.portfolio import ONE_COLOR, SEARCHES, portfolio
from inversefed.attacks.search.precision import Double
from inversefed.attacks.shown import shown
from inversefed.cli import main
from inversefed.controls import rehearsal
from inversefed.errors import ConfigError
from inversefed.evaluation.choice import Choice, Rung, chosen
from inversefed.evaluation.power import Power, Rehearsed
from inversefed.rehearsal_cache import RehearsalCache
from inversefed.report.model import Report
from inversefed.types import Batch
from inversefed.zoo import pictures


@pytest.fixture(scope="module")
def small() -> Tensor:
    """All bundled photographs at 8x8."""
    return torch.stack([pictures.photo(name, (3, 8, 8)) for name in pictures.photo_names()])


@pytest.fixture(scope="module")
def public(small: Tensor) -> Tensor:
    """Twelve pictures beside the first four photographs: the others, mirrored too."""
    return torch.cat([small[4:], small[4:].flip(-1), small[4:].flip(-2)])


@pytest.fixture(autouse=True)
def briefly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attacks are compared on two batches, and the color beside each of them is a rough one: enough to see how."""
    monkeypatch.setattr(rehearsed, "_MOST", 2)
    monkeypatch.setattr(constant_color, "_EVALUATIONS", 4)


def few() -> nn.Module:
    """A network whose updates hold few numbers of its pictures."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 4)).eval()


def audited(private: Tensor, others: Tensor, max_iterations: int = 2, **changes: object) -> Report:
    labels = torch.arange(len(private)) % 4
    public = Batch(others, torch.arange(len(others)) % 4)
    return inversefed.audit(
        few(), private, labels, others=public, choose=True, max_iterations=max_iterations, **changes
    )


def test_halving_keeps_the_better_half_and_of_equals_the_earlier() -> None:
    asked: list[tuple[int, float]] = []

    def score(member: int, place: int, share: float) -> float:
        asked.append((member, share))
        return (2.0, 5.0, 5.0, -math.inf, 1.0)[member] + place

    found = chosen("abcde", 2, score)
    assert (found.attack, found.number, found.stand_ins, found.why) == ("b", 1, 2, "")
    assert [sorted(rung.scores) for rung in found.rungs] == [[0, 1, 2, 3, 4], [0, 1, 2], [1, 2]]
    assert [rung.share for rung in found.rungs] == [0.25, 0.5, 1.0] and len(asked) == 2 * (5 + 3 + 2)
    assert found.rungs[0].scores == {0: 2.5, 1: 5.5, 2: 5.5, 3: -math.inf, 4: 1.5}


def test_what_there_is_no_time_for_leaves_the_choice_with_what_was_compared() -> None:
    left = iter([1.0, 2.0, 3.0])
    none = chosen("abc", 1, lambda *_: None, "no time")
    first = chosen("abc", 1, lambda *_: next(left, None), "no time")
    assert (none.attack, none.rungs, first.attack, len(first.rungs)) == ("a", (), "c", 1)
    assert str(none) == "a was kept: no time." and str(first).endswith("It ended early: no time.")


def test_the_portfolio_begins_with_the_attack_itself_and_keeps_its_settings() -> None:
    found = portfolio(recipes.best())
    assert found[0] == recipes.best() and len(found) == len(SEARCHES) + 1 == len(set(map(repr, found)))
    assert [shown(each) for each in found[1:]] == [f"best().with_search({shown(each)})" for each in SEARCHES]
    changed = recipes.best().with_settings(restarts=3, precision=Double())
    for each in portfolio(changed):
        assert isinstance(each, AutoAttack) and each.exact == changed.exact
        assert all(rule.attack.restarts == 3 and rule.attack.precision == Double() for rule in each.searches)
        assert shown(each).startswith("best().with_settings(restarts=3, precision=Double())")
    kept = [rule.attack.simulation for rule in recipes.best().searches]
    assert [rule.attack.simulation for rule in found[1].searches] == kept
    with pytest.raises(ConfigError, match="only the search of"):
        portfolio(recipes.geiping())


def test_the_choice_is_the_same_whatever_the_private_update_holds(small: Tensor, public: Tensor, monkeypatch) -> None:
    monkeypatch.setattr(members, "SEARCHES", (SEARCHES[1], recipes.spectral()))
    reports = [audited(private, public[:6], rehearsals=2, nulls=1, seed=1) for private in (small[:2], small[2:4])]
    first, second = (report.choice for report in reports)
    assert isinstance(first, Choice) and second is not None
    assert first.rungs == second.rungs and first.attack == second.attack and len(first.rungs) == 2
    powers = [report.verdict and report.verdict.figures.power for report in reports]
    assert all(power is not None and power.rehearsals == 1 and not power.note for power in powers)  # the third
    assert not torch.equal(reports[0].images, reports[1].images)
    again = audited(small[:2], public[:4], rehearsals=2, nulls=1)
    power = again.verdict and again.verdict.figures.power
    assert power is not None and power.rehearsals == 2 and "chosen on these very stand-ins" in str(power)


def test_what_does_best_on_stand_ins_attacks_the_private_update(small: Tensor, generator, monkeypatch) -> None:
    monkeypatch.setattr(members, "SEARCHES", (ONE_COLOR,))
    flat = 0.3 + 0.4 * torch.rand(8, 3, 1, 1, generator=generator) + 0.1 * torch.rand(8, 3, 8, 8, generator=generator)
    report = audited(small[:2], flat, max_iterations=8, nulls=1)
    assert report.choice is not None and report.choice.number == 1
    assert report.attack == report.choice.attack == f"best().with_search({shown(ONE_COLOR)})"
    assert float(report.images.flatten(2).std(2).max()) < 1e-5
    codes = [str(finding.code) for finding in report.findings]
    assert "chosen-by-rehearsal" in codes
    for text in (report.summary(), report.to_markdown(), report.to_html()):
        assert "chosen on public stand-ins" in text and "OneColor" in text
    content = json.loads(report.to_json())["choice"]
    assert content["chosen"] == report.attack and content["rungs"][0]["share"] == 1.0 and content["stand_ins"] == 2
    assert content["rungs"][0]["scores"][report.attack] == report.choice.rungs[0].scores[1]


def test_an_exact_method_that_recovers_a_stand_in_needs_no_choice(small: Tensor) -> None:
    dense = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    public = Batch(small[1:], torch.arange(len(small) - 1))
    report = inversefed.audit(dense, small[:1], torch.tensor([1]), choose=True, others=public, nulls=1)
    assert report.choice is not None and report.choice.number == 0 and not report.choice.rungs
    assert "exact method" in str(report.choice) and report.attack == "best()" and report.verdict.leaked


def test_without_public_pictures_or_time_the_attack_is_kept_and_it_is_said_so(
    small: Tensor, public: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(members, "SEARCHES", SEARCHES[:1])
    report = inversefed.audit(few(), small[:1], torch.tensor([1]), choose=True, max_iterations=2, nulls=1)
    assert report.choice is not None and "no public pictures" in report.choice.why
    late = audited(small[:2], public, rehearsal_time=1e-9, nulls=1)
    assert late.choice is not None and late.choice.number == 0 and "no time" in late.choice.why


def test_whoever_watches_ends_the_choice(small: Tensor, public: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "SEARCHES", SEARCHES[:2])
    seen: list[tuple[int, int]] = []

    def watch(done: int, total: int) -> bool:
        seen.append((done, total))
        return done == 3

    report = audited(small[:2], public, on_control=watch, nulls=0)
    assert report.choice is not None and report.choice.number == 0 and "ended" in report.choice.why
    assert seen == [(1, 10), (2, 10), (3, 10)]


def test_scenario_and_command_know_the_choice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(members, "SEARCHES", SEARCHES[:1])
    named = f"audit --choose --network LeNetZhu --max-iterations 1 --nulls 0 --quiet --output {tmp_path / 'run'}"
    assert main(named.split()) == 0
    scenario = Scenario.from_report(tmp_path / "run")
    assert scenario.choose and scenario.attack == recipes.best()
    plain = replace(scenario, choose=False)
    assert scenario.hash() != plain.hash() and "choose" not in plain.to_dict()  # as records had it before
    assert main(["audit", "--choose", "--attack", "geiping", "--quiet", "--output", str(tmp_path / "no")]) == 2


def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each run of an attack on a stand-in, as it comes."""
    runs, real = [], rehearsal.attempt

    def attempt(attack: Attack, *arguments: object) -> object:
        runs.append(type(attack).__name__)
        return real(attack, *arguments)

    monkeypatch.setattr(rehearsal, "attempt", attempt)
    monkeypatch.setattr(rehearsed, "attempt", attempt)
    return runs


def test_a_later_audit_of_the_same_setting_rehearses_nothing(
    tmp_path: Path, small: Tensor, public: Tensor, monkeypatch
) -> None:
    monkeypatch.setattr(members, "SEARCHES", (recipes.spectral(),))
    runs, folder = counted(monkeypatch), tmp_path / "kept"

    def audit(private: Tensor, **changes: object) -> tuple[Choice, Power, list[str], int]:
        before = len(runs)
        report = audited(private, public[:6], rehearsals=1, nulls=1, rehearsal_cache=folder, **changes)
        assert report.choice is not None and report.verdict is not None and report.verdict.figures.power is not None
        codes = [str(each.code) for each in report.findings if each.code == "rehearsal-cache"]
        return report.choice, report.verdict.figures.power, codes, len(runs) - before

    first, then = audit(small[:2]), audit(small[2:4])  # another private picture, the same setting
    assert first[3] > 0 == then[3] and not first[0].cached and then[0].cached and not then[2]
    assert (then[0].rungs, then[0].attack) == (first[0].rungs, first[0].attack)
    assert len(list(folder.glob("*.json"))) == 2 and folder.stat().st_mode & 0o077 == 0
    assert "pixels" not in "".join(path.read_text() for path in folder.iterdir())
    for path, text in zip(folder.glob("*.json"), ("{", '{"format": 1}'), strict=True):
        path.write_text(text)
    again = audit(small[:2])
    assert again[3] == first[3] and again[2] == ["rehearsal-cache"] * 2 and again[0].rungs == first[0].rungs
    assert audit(small[:2], seed=5)[3] > 0  # another seed draws anew


@pytest.mark.parametrize(
    "changes",
    [{"number": 9}, {"rungs": 3}, {"rungs": [{"share": 1, "scores": {"7": 0}}]}, {"seconds": None}, {"format": "x"}],
)
def test_a_damaged_entry_is_ignored_and_said_so(tmp_path: Path, changes: dict) -> None:
    cache, found = RehearsalCache(tmp_path), Choice(("a", "b"), 1, (Rung(1.0, {0: -math.inf, 1: 2.0}),), 2)
    cache.keep("key", found)
    assert cache.choice("key", ("a", "b")) == replace(found, cached=True)
    content = json.loads((tmp_path / "key.json").read_text())
    (tmp_path / "key.json").write_text(json.dumps(content | changes))
    assert cache.choice("key", ("a", "b")) is None and [str(each.code) for each in cache.findings] == [
        "rehearsal-cache"
    ]
    assert cache.choice("other", ("a", "b")) is None and len(cache.findings) == 1


def test_rehearsals_are_kept_whole_and_a_folder_that_is_none_is_said_so(tmp_path: Path) -> None:
    found = Rehearsed((math.inf, -math.inf, 1.5), 4, "there were no more", "", 2.0)
    cache = RehearsalCache(tmp_path / "folder")
    cache.keep("key", found)
    assert cache.rehearsed("key") == replace(found, cached=True) and not cache.findings
    (tmp_path / "file").write_text("")
    none = RehearsalCache(tmp_path / "file")
    none.keep("key", found)
    assert none.rehearsed("key") is None and none.findings and RehearsalCache(None).rehearsed("key") is None
