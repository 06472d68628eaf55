"""How often an answer is wrong, in miniature: outcomes are kept as they come, counted, and drawn."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import calibration, calibration_plot
from benchmarks.calibration import Outcome, Setting
from inversefed import recipes

QUICK = "perceptron b=1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "pictures"
    path.mkdir()
    pixels = torch.randint(256, (20, 32, 32, 3), generator=torch.Generator().manual_seed(0)).byte()
    for index, each in enumerate(pixels):
        Image.fromarray(each.numpy()).save(path / f"p{index:02d}_{index % 10}.png")
    return path


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = Setting(lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), recipes.geiping(max_iterations=1))
    monkeypatch.setattr(calibration, "SETTINGS", {QUICK: tiny})
    monkeypatch.setattr(calibration, "LEVELS", (0.0, 1.0))
    monkeypatch.setattr(calibration, "LONGER", 2)


def test_outcomes_are_kept_and_the_same_command_goes_on(folder: Path, tmp_path: Path, capsys) -> None:
    out, drawn = tmp_path / "c.json", tmp_path / "c.svg"
    command = ["--images", str(folder), "--json", str(out), "--settings", QUICK, "--power-seeds", "1"]
    assert calibration.main([*command, "--seeds", "1"]) == 0
    first = json.loads(out.read_text())["outcomes"]
    assert [(each["kind"], each["noise"]) for each in first] == [
        ("random", 0.0), ("another", 0.0), ("noise", 0.0), ("noise", 1.0),
    ]  # fmt: skip
    assert len(first[2]["limit"]) == len(first[2]["reached"]) == 1 and first[0]["reached"] == []
    assert calibration.main([*command, "--seeds", "2", "--picture", str(drawn)]) == 0
    both = json.loads(out.read_text())
    assert both["outcomes"][:4] == first and len(both["outcomes"]) == 6
    assert both["settings"][QUICK]["false_alarms"]["recovered"]["another"]["of"] == 2
    assert f"| {QUICK} |" in capsys.readouterr().out and "<svg" in drawn.read_text()
    out.write_text("{}")
    assert calibration.main([*command, "--seeds", "1"]) == 2


def test_what_is_a_false_alarm_depends_on_the_answer() -> None:
    null = Outcome("a", 0, "another", 0.0, "recovered", 0.05, 7.0, (20.0,))
    noisy = Outcome("a", 0, "noise", 1.0, "not in the update", 0.5, 2.0, (14.0, None), (16.0, 3.0), 5.0)
    found = [null, replace(null, kind="random", answer="in the update, not recovered"), noisy, replace(noisy, over=1.0)]
    told = calibration.summary(found)
    alarms = told["false_alarms"]
    assert [alarms["recovered"][kind]["hits"] for kind in ("random", "another")] == [0, 1]
    assert alarms["in the update, not recovered"]["random"]["hits"] == 1
    assert (alarms["not in the update"]["clearly recovered"]["hits"], told["pictures_above_limit_by_1_dB"]["of"]) == (
        1,
        2,
    )
    assert told["power"]["1"] == {"hits": 0, "of": 2, "low": 0.0, "high": pytest.approx(0.8419, abs=1e-4)}
    assert len(calibration_plot.draw(found).axes) == 2
