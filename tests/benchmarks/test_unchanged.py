"""Before and after: the same points are equal, what changed is found, and every public piece has a point."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from benchmarks import unchanged
from benchmarks.unchanged import Audit, Command, Equations, Facts, compare, measured
from inversefed import ThreatModel, defenses, labels, objectives, priors, recipes

LINEAR = Audit("small linear", recipes.linear())
SEARCH = Audit("small relu", recipes.geiping(1, 2))


def plain(points: dict) -> dict:
    return json.loads(json.dumps({name: asdict(measured(point)) for name, point in points.items()}, allow_nan=False))


@pytest.fixture(scope="module")
def before() -> dict:
    return plain({"exact": LINEAR, "search": SEARCH})


def test_the_same_points_are_equal(before: dict) -> None:
    assert list(compare(before, plain({"exact": LINEAR, "search": SEARCH}))) == []
    facts = before["search"]["facts"]
    assert len(facts["pictures"]) == 64 and facts["labels"] == {"recovered": [3], "true": [3]}
    assert facts["status"] == "finished" and before["exact"]["facts"]["leaked"] is True
    assert before["search"]["figures"]["loss"] > 0 and "headline" in before["search"]["texts"]


def test_another_step_is_found(before: dict) -> None:
    after = plain({"exact": LINEAR, "search": replace(SEARCH, attack=recipes.geiping(1, 3))})
    (found,) = (each for each in compare(before, after) if not each.texts)
    assert found.point == "search" and "pictures: other bits" in found.what and "at most by" in found.what


def changed(point: dict, kind: str, name: str, value: object) -> dict:
    return {**point, kind: {**point[kind], name: value}}


def test_each_kind_of_difference_is_named(before: dict) -> None:
    point = before["search"]
    loss = point["figures"]["loss"]
    without = {**point, "figures": {name: v for name, v in point["figures"].items() if name != "loss"}}
    cases = [
        (changed(point, "facts", "codes", ["new"]), "codes: [", False),
        (changed(point, "facts", "labels", None), "now null", False),
        (changed(point, "figures", "loss", loss + 0.25), "1 figures, at most by 0.25 (loss)", False),
        (changed(point, "figures", "loss", None), "null on one side: loss", False),
        (without, "no figure any more: loss", False),
        (changed(point, "texts", "headline", "other words"), "headline", True),
    ]
    for after, what, texts in cases:
        (found,) = compare({"search": point}, {"search": after})
        assert what in found.what and found.texts == texts
    more = changed(changed(point, "figures", "added", 1.0), "facts", "added", 1)
    assert list(compare({"search": point}, {"search": more, "new": point})) == []
    (found,) = compare(before, {"search": point})
    assert (found.point, found.what) == ("exact", "missing")


def test_a_refusal_is_a_result() -> None:
    one_label = replace(recipes.geiping(1, 1), labels=labels.SignRule())
    found = measured(Audit("small relu", one_label, count=4, threat=ThreatModel()))
    assert found.facts == {"error": "ThreatModelError"} and "one example" in found.texts["message"]
    assert found.figures == {}


def test_equations_and_commands_are_recorded() -> None:
    assert measured(Equations(LINEAR)).facts["verdict"] == "determined"
    found = measured(Command(("inspect --update sign.pt --kind gradient --weights w.pt --json --threads 1",)))
    assert found.facts["1.exit"] in (0, 2) and found.facts["1.codes"]


def test_every_public_piece_has_a_point() -> None:
    names = set(unchanged.points())
    for kind, room in (("recipe", recipes), ("defense", defenses), ("objective", objectives), ("prior", priors)):
        assert {f"{kind} {name}" for name in room.__all__} <= names
    assert all(any(name.startswith(f"labels {rule} ") for name in names) for rule in labels.__all__)


def test_the_command_writes_compares_and_tells(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(unchanged, "points", lambda: {"exact": LINEAR, "search": SEARCH})
    one, other = tmp_path / "a" / "one.json", tmp_path / "other.json"
    assert unchanged.main(["--json", str(one)]) == unchanged.main(["--json", str(other)]) == 0
    assert unchanged.main(["--compare", str(one), str(other)]) == 0
    assert "2 points before: 0 differ, and 0 in texts" in capsys.readouterr().out
    document = json.loads(other.read_text())
    document["points"]["search"]["figures"]["loss"] += 1
    document["points"]["exact"]["texts"]["headline"] = "other words"
    document["points"]["more"] = asdict(Facts())
    document["machine"]["torch"] = "0"
    other.write_text(json.dumps(document))
    assert unchanged.main(["--compare", str(one), str(other)]) == 1
    printed = capsys.readouterr().out
    assert "| search | 1 figures, at most by 1 (loss) |" in printed and "text of exact: headline" in printed
    assert "new: more" in printed and "note: torch was" in printed


@pytest.mark.parametrize("wrong", [["--only", "("], ["--only", "no such point"], ["--compare", "a", "b"]])
def test_wrong_usage_ends_with_a_reason(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert unchanged.main(wrong) == 2
    assert "error: " in capsys.readouterr().err
