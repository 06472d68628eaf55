"""`inversefed doctor`: it says what is there, recovers a picture, and tells nothing of who runs it."""

import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from inversefed.cli import doctor, main
from inversefed.cli.commands import COMMANDS
from inversefed.cli.doctor import GIVES, Package, SelfTest, packages

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FINE = SelfTest(True, 111.8, 19.6, 1.0, "cpu")


def test_every_extra_is_told_with_what_it_gives() -> None:
    assert GIVES.keys() == PROJECT["optional-dependencies"].keys()
    told = {(each.extra, each.name) for each in packages()}
    names = {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}
    assert told == {(extra, re.match(r"[\w-]+", each)[0]) for extra, listed in names.items() for each in listed}
    assert all(each.needs.startswith(">=") for each in packages())
    page = (ROOT / COMMANDS["doctor"].page).read_text()
    rows = re.findall(r"^\| `([\w-]+)` \| (.+) \|$", page, re.MULTILINE)
    assert {extra: re.sub(r"\[([^]]+)\]\([^)]+\)", r"\1", words).replace("`", "") for extra, words in rows} == GIVES


def test_the_self_test_recovers_the_bundled_picture_and_names_nobody(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SOME_TOKEN", "only-for-its-owner")
    assert main(["doctor", "--json"]) == 0
    text = capsys.readouterr().out
    told = json.loads(text)
    assert told["self_test"]["passed"] and not told["self_test"]["error"]
    assert told["self_test"]["peak_signal_noise_ratio"] > told["self_test"]["best_constant_color"] + 3
    assert told["extras"].keys() == GIVES.keys() and told["machine"]["device"]
    assert told["python"] and told["inversefed"] == PROJECT["version"]
    assert not re.search(r"(?<![\w.])/\w|[A-Z]:\\", text), "a path"
    assert "only-for-its-owner" not in text and os.uname().nodename not in text
    assert not list(tmp_path.iterdir())


def test_its_text_has_the_decibels_beside_the_best_constant_color(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "self_test", lambda: FINE)
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "passed" in out and "111.8 dB, where the best constant color scores 19.6 dB" in out
    assert re.search(r"^  (yes|no ) flower ", out, re.MULTILINE) and "accelerators: " in out and "torch" in out


@pytest.mark.parametrize("tested", [SelfTest(False, 17.2, 19.6, 1.0, "cpu"), SelfTest(error="RuntimeError")])
def test_a_picture_that_is_not_recovered_is_a_failure(
    tested: SelfTest, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "self_test", lambda: tested)
    assert main(["doctor"]) == 1
    assert "self-test failed: " in capsys.readouterr().out


def test_a_package_that_is_needed_and_missing_is_a_failure_and_one_of_an_extra_is_not(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "self_test", lambda: FINE)
    for extra, status in (("", 1), ("ray", 0)):
        monkeypatch.setattr(doctor, "packages", lambda extra=extra: (Package("gone", ">=2", extra),))
        assert main(["doctor"]) == status
        assert "gone>=2 missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("needs", "installed", "enough"),
    [
        (">=2.10", "2.9.1", False),
        (">=2.10", "2.10.0+cpu", True),
        (">=3.1.6", "3.1.5", False),
        (">=3", "2024.8.6", True),
        (">=2.0.0", "2.0", True),
        (">=2", None, False),
    ],
)
def test_a_version_is_compared_with_the_one_that_is_needed(needs: str, installed: str | None, enough: bool) -> None:
    assert Package("torch", needs, "", installed).enough == enough


def test_a_package_that_is_too_old_is_a_failure_with_the_line_that_mends_it(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "self_test", lambda: FINE)
    monkeypatch.setattr(
        doctor, "packages", lambda: (Package("old", ">=2.10", "", "2.9"), Package("x", ">=2", "ray", "1"))
    )
    assert main(["doctor"]) == 1
    out = capsys.readouterr().out
    assert "needs other versions than these: old 2.9 (needs >=2.10)\n  pip install --upgrade 'old>=2.10'\n" in out
    assert re.search(r"^  no  ray .*x 1 \(needs >=2\)", out, re.MULTILINE)
    assert main(["doctor", "--json"]) == 1
    assert not json.loads(capsys.readouterr().out)["packages"][0]["enough"]


def test_a_torch_that_cannot_be_imported_is_told_without_its_message(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise OSError('/home/somebody/libtorch.so: cannot open')\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "inversefed", "doctor"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 1 and "self-test failed: OSError" in done.stdout
    assert "numpy" in done.stdout and "somebody" not in done.stdout + done.stderr
