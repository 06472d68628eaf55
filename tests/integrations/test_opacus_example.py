"""The example runs as its page says, on real pictures, and opens its report at the end."""

import json
import runpy
import sys
import webbrowser
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "opacus_audit" / "train_and_audit.py"


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
@pytest.mark.filterwarnings("ignore:Secure RNG turned off")
@pytest.mark.slow
def test_the_example_of_opacus_ends_in_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--time-budget", "4", "--output", str(tmp_path / "out")])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["scenario"]["privacy"]["per_release"]["epsilon"] == pytest.approx(4.39, abs=0.02)
    assert report["bounds"]["per_release"]["success"][1] == pytest.approx(0.0924, abs=1e-4)
    assert opened == [(tmp_path / "out" / "report.html").as_uri()]
    assert "all steps so far: epsilon" in " ".join(capsys.readouterr().out.split())
    page = (SCRIPT.parent / "README.md").read_text()
    assert f"python examples/opacus_audit/{SCRIPT.name}" in page
