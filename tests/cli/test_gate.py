"""`inversefed gate`: the exit status is the contract."""

import json
import shutil
from pathlib import Path

import pytest

from inversefed.cli import main

LEAK = ["--attack", "peel", "--nulls", "1"]
AUDIT = ["--attack", "geiping", "--max-iterations", "2", "--nulls", "1"]


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two reports, made once: `leak` of an exact recovery, and `none` of two iterations."""
    made = tmp_path_factory.mktemp("reports")
    assert main(["audit", "--output", str(made / "leak"), "--quiet", *LEAK]) == 0
    assert main(["audit", "--output", str(made / "none"), "--quiet", *AUDIT]) == 0
    return made


@pytest.fixture
def leak(reports: Path, somewhere_else: None) -> Path:
    return Path(shutil.copytree(reports / "leak", "leak"))


@pytest.fixture
def none(reports: Path, somewhere_else: None) -> Path:
    return Path(shutil.copytree(reports / "none", "none"))


def test_a_known_leak_is_above_and_two_iterations_are_below(
    leak: Path, none: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in (leak, leak / "report.json"):
        assert main(["gate", str(name), "--max-leakage", "3"]) == 3
    assert "above: picture 0 is " in (said := capsys.readouterr().out) and "limit 3 dB" in said
    assert main(["gate", str(leak)]) == 3 and main(["gate", str(leak), "--max-leakage", "150"]) == 3
    assert "exact recovery" in capsys.readouterr().out
    assert main(["gate", str(none), "--max-leakage", "3"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("gate: below: picture 0 is ") and " dB below the best control (" in said
    assert main(["gate", str(none), "--max-leakage", "-100"]) == 3
    assert main(["gate", str(none), "--quiet", "--max-leakage", "3"]) == 0


def test_a_foreign_name_cannot_command_the_terminal(none: Path, capsys: pytest.CaptureFixture) -> None:
    content = json.loads((none / "report.json").read_text())
    content["baselines"] = {"\x1b[2Jgray\u202e": content["baselines"]["gray"]}
    (none / "report.json").write_text(json.dumps(content))
    assert main(["gate", str(none), "--max-leakage", "3"]) == 0
    assert "?[2Jgray?" in (said := capsys.readouterr().out) and not set(said) & {"\x1b", "\u202e"}


def test_json_is_all_that_standard_output_holds(leak: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["gate", str(leak), "--json", "--max-leakage", "3"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert found["outcome"] == "above" and found["limit"] == 3 and found["decibels"] > 50 and found["exact"] is True


def test_without_a_report_it_audits(capsys: pytest.CaptureFixture) -> None:
    assert main(["gate", "--max-leakage", "3", "--output", "leak", *LEAK]) == 3
    assert "gate: above" in capsys.readouterr().out and Path("leak/report.html").is_file()
    assert main(["gate", "--max-leakage", "3", "--output", "none", "--json", *AUDIT]) == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "below"
    config = json.loads(Path("none/report.json").read_text())["config"]
    assert not config.keys() & {"report", "max_leakage"}
    assert main(["gate", "--config", "none/report.json", "--max-leakage", "3", "--quiet"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nowhere"],
            "cannot read a report from nowhere: no such file; name the folder that `inversefed audit --output",
        ),
        (["no.json"], "no report of inversefed"),
        (["none", "--seed", "3"], "leave out --seed"),
        (["--max-leakage", "nan"], "number of decibels"),
        (["cut"], "the attack ended interrupted"),
        (["bare"], "neither a truth to measure with nor a verdict"),
    ],
)
def test_wrong_input_is_neither_side(
    none: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture
) -> None:
    Path("no.json").write_text("{}")
    content = json.loads((none / "report.json").read_text())
    without = {"scores": {}, "baselines": {}, "verdict": None}
    for name, entries in (("cut", {"status": "interrupted", "verdict": None}), ("bare", without)):
        Path(name).mkdir()
        (Path(name) / "report.json").write_text(json.dumps(content | entries))
    assert main(["gate", *arguments]) == 2
    assert message in capsys.readouterr().err
