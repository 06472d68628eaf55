"""What is published: a wheel that is made from the source archive holds the package and nothing else, and runs."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

import inversefed

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
BESIDE = {
    "inversefed/py.typed",
    "inversefed/report/schema/report.schema.json",
    "inversefed/report/templates/report.html.j2",
    "inversefed/experiments/migrations/env.py",
    "inversefed/experiments/plans/paper-table1.yaml",
    "inversefed/experiments/serve/static/live.js",
}
"""Files that are easily forgotten, one of each kind."""


def run(*words: object, **settings: object) -> str:
    """What a command writes; its failure is the test's."""
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def environment_with(wheel: Path, folder: Path) -> Path:
    """A new environment with the wheel alone in it; what the wheel needs is that of these tests, beneath it."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-index", "--no-deps", wheel)
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    beneath = sysconfig.get_path("purelib")
    (site / "beneath.pth").write_text(f"import site; site.addsitedir({beneath!r})\n")
    return python


@pytest.mark.slow
def test_the_wheel_made_from_the_source_archive_audits_a_picture_away_from_the_checkout(tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", tmp_path, cwd=ROOT)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as held:
        sources = {name.partition("/")[2] for name in held.getnames()}
    assert {"tests/test_distribution.py", "docs/conf.py", "benchmarks/paper.py", "Makefile", "LICENSE"} <= sources

    options = ("--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    run(sys.executable, "-m", "pip", "wheel", *options, archive)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as held:
        names = {name for name in held.namelist() if ".dist-info/" not in name}
    package = ROOT / "src"
    files = {path.relative_to(package) for path in package.rglob("*") if path.is_file()}
    assert names == {path.as_posix() for path in files if "__pycache__" not in path.parts}
    assert names >= BESIDE

    python = environment_with(wheel, tmp_path / "environment")
    outside = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    away = {"cwd": tmp_path, "env": outside, "timeout": 240}
    where = "import inversefed; print(inversefed.__file__, inversefed.__version__)"
    home, version = run(python, "-c", where, **away).split()
    assert Path(home).is_relative_to(tmp_path / "environment") and version == PROJECT["version"]

    command = python.parent / "inversefed"
    assert PROJECT["version"] in run(command, "--version", **away)
    run(command, "audit", "--network", "LeNetZhu", "--nulls", "0", "--output", "runs/one", **away)
    report = json.loads((tmp_path / "runs" / "one" / "report.json").read_text(encoding="utf-8"))
    assert report["version"] == PROJECT["version"]
    assert report["scores"]["peak_signal_noise_ratio"][0] > 60
    assert (tmp_path / "runs" / "one" / "report.html").stat().st_size > 10_000


def test_every_file_that_names_the_version_names_the_same() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert PROJECT["version"] == inversefed.__version__
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [PROJECT["version"]]
    released = re.findall(r"^## \[(\d\S*)\] - (\d{4}-\d\d-\d\d)$", changes, re.MULTILINE)
    assert released[0][0] == PROJECT["version"]
    assert re.findall(r"^date-released: (\S+)$", citation, re.MULTILINE) == [released[0][1]]
