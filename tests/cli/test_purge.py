"""`inversefed purge` and `--no-images`: what is on the disk, and what is not any more."""

import json
import os
import re
import stat
import sys
from pathlib import Path

import pytest
import torch

from inversefed.attacks.search import checkpoint
from inversefed.cli import main

SEARCH = ["audit", "--attack", "geiping", "--max-iterations", "2", "--nulls", "0", "--quiet"]


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def everything() -> set[str]:
    return {str(path) for path in Path().rglob("*")}


def test_runs_and_checkpoints_go_and_weights_stay(capsys: pytest.CaptureFixture) -> None:
    assert main(SEARCH) == 0
    checkpoint.write(Path("state"), {"images": torch.zeros(1, 3, 32, 32)}, "mark")
    assert stat.S_IMODE(Path("state").stat().st_mode) == 0o600
    torch.save({"weight": torch.zeros(3), "format": 1}, "weights.pt")
    Path("cut.partial").write_bytes(Path("state").read_bytes()[:3000])
    assert main(["purge", "--dry-run", "."]) == 0
    assert (listed := capsys.readouterr().out).count("checkpoint") == 2 and "nothing was removed" in listed
    assert main(["purge", "--older-than", "1d", "--yes", "."]) == 0
    assert "report.json" in {path.name for path in Path("runs").rglob("*")}
    assert main(["purge", "--yes"]) == 0
    assert everything() == {"runs", "state", "cut.partial", "weights.pt"}
    assert main(["purge", "--yes", "--quiet", "state", "."]) == 0
    assert everything() == {"runs", "weights.pt"}
    assert main(["purge", "--yes"]) == 0 and main(["purge", "--yes", "runs"]) == 0


def test_it_asks_first(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    assert main([*SEARCH, "--output", "runs/one"]) == 0
    assert main(["purge"]) == 2
    captured = capsys.readouterr()
    assert "runs/one" in captured.out and "--yes" in captured.err
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    for answer, left in (("", True), ("n", True), ("y", False)):
        monkeypatch.setattr("builtins.input", lambda question, answer=answer: answer)
        assert main(["purge"]) == 0
        assert Path("runs/one").exists() == left


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mine.txt"], "not written by an audit"),
        (["nowhere"], "does not exist"),
        (["--older-than", "soon"], "an age such as"),
    ],
)
def test_wrong_input_removes_nothing(arguments: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    Path("mine.txt").write_text("mine")
    assert main([*SEARCH, "--output", "runs/one"]) == 0
    before = everything()
    assert main(["purge", "--yes", "runs", *arguments]) == 2
    assert message in capsys.readouterr().err and everything() == before


def test_without_images_no_pixel_is_written(capsys: pytest.CaptureFixture) -> None:
    before = os.umask(0)
    try:
        assert main([*SEARCH, "--no-images", "--output", "out", "--num-images", "2"]) == 0
    finally:
        os.umask(before)
    assert everything() == {"out", "out/report.html", "out/report.json", "out/report.md"}
    assert stat.S_IMODE(Path("out").stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in Path("out").iterdir()} == {0o600}
    text = "".join(path.read_text() for path in Path("out").iterdir())
    assert "data:image" not in text and "<img" not in text
    report = json.loads(Path("out/report.json").read_text())
    assert max(len(each) for each in re.findall(r"\[[^\[\]]*\]", json.dumps(report))) < 3 * 32 * 32
    assert report["config"]["no_images"] is True
    assert main(["audit", "--config", "out/report.json", "--output", "again", "--quiet"]) == 0
    assert not list(Path("again").glob("*.png"))


def test_without_images_a_checkpoint_is_refused_before_the_work(capsys: pytest.CaptureFixture) -> None:
    assert main([*SEARCH, "--no-images", "--checkpoint", "state", "--output", "out"]) == 2
    assert "--checkpoint" in capsys.readouterr().err and everything() == set()


def test_pictures_of_an_earlier_report_go_when_it_is_replaced_without_images() -> None:
    assert main([*SEARCH, "--output", "out"]) == 0 and list(Path("out").glob("*.png"))
    assert main([*SEARCH, "--output", "out", "--overwrite", "--no-images"]) == 0
    assert not list(Path("out").glob("*.png"))
