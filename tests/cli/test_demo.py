"""`inversefed demo`: the audit that there is anyway, told step by step, and a browser only where there is one."""

import json
import shlex
import sys
import webbrowser
from pathlib import Path

import pytest

from inversefed.cli import main
from inversefed.cli.demo import PICTURE, REPORT, ROWS, opened
from inversefed.cli.options import parse


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_demo_recovers_the_picture_and_says_where_the_report_is(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    assert main(["demo", "--open", "off"]) == 0
    told = " ".join(capsys.readouterr().out.split())
    report = json.loads((tmp_path / "runs/demo_2/report.json").read_text())  # what was there before is left alone
    assert report["verdict"]["answer"] == "recovered" and report["scenario"]["threat_model"]["labels"] == "unknown"
    assert report["headline"] in told and report["verdict"]["sentence"] in told
    assert "runs/demo_2/report.html" in told and (tmp_path / "runs/demo_2/report.html").is_file()
    assert told.index("Who knows what") < told.index(report["headline"]) < told.index("What to try next")
    assert "inversefed gate runs/demo_2 --max-leakage 3" in told and REPORT not in told
    assert main(["demo", "--output", "runs/demo_2"]) == 2
    assert "overwrite" in capsys.readouterr().err


def test_the_demo_of_a_table_recovers_its_rows(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    pytest.importorskip("sklearn")
    assert main(["demo", "--table", "--output", "rows", "--open", "off"]) == 0
    report = json.loads((tmp_path / "rows/report.json").read_text())
    assert report["scores"]["exact_row"] == [1] * 8 and report["headline"].split()[0] in capsys.readouterr().out


@pytest.mark.parametrize("command", [line for scene in (PICTURE, ROWS) for line, _ in scene.then])
def test_what_to_try_next_is_understood(command: str) -> None:
    program, *rest = shlex.split(command)
    assert program == "inversefed" and parse(rest)


def test_a_browser_is_opened_where_it_is_wished_or_there_is_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    pages: list[str] = []
    monkeypatch.setattr(webbrowser, "open", lambda page: bool(pages.append(page)) or True)
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    page = Path("a b/report.html")
    assert not opened(page, "auto") and not opened(page, "off") and not pages
    assert opened(page, "on")
    monkeypatch.setenv("DISPLAY", ":0")
    assert opened(page, "auto") and not opened(page, "off")
    assert pages == [page.absolute().as_uri()] * 2 and "a%20b" in pages[0]
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert not opened(page, "auto")


@pytest.mark.parametrize("error", [webbrowser.Error("no browser"), OSError("no such program")])
def test_a_browser_that_cannot_be_had_is_no_failure(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(page: str) -> bool:
        raise error

    monkeypatch.setattr(webbrowser, "open", fails)
    assert not opened(Path("report.html"), "on")
