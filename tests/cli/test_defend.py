"""`inversefed defend`: points, resuming, and what is written."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inversefed import FedAvg, FedSGD, defenses
from inversefed.cli import main
from inversefed.cli.defend import SWEEP, read_point
from inversefed.errors import ConfigError
from inversefed.experiments.ledger import Ledger, NewJob, new_owner
from inversefed.experiments.work import work
from inversefed.zoo import datasets

QUICK = ["--max-iterations", "2", "--attack", "geiping", "--quiet"]


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(folder: str) -> dict:
    return json.loads((Path(folder) / "defend.json").read_text())


def test_a_point_is_a_client_its_defenses_and_its_number_of_examples() -> None:
    point = read_point("num_images=4 + FedAvg(local_steps=2) + Clip(1.0) + GaussianNoise(0.1)")
    assert point.client == FedAvg(local_steps=2) and point.num_images == 4
    assert point.defenses == (defenses.Clip(1.0), defenses.GaussianNoise(0.1))
    assert read_point("none").client == FedSGD() and read_point("none").defenses == ()


@pytest.mark.parametrize("text", ["Nonsense(1)", "FedSGD() + FedAvg()", "num_images=x"])
def test_a_point_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        read_point(text)


def test_every_point_of_the_sweep_can_be_read() -> None:
    points = [read_point(text) for text in SWEEP]
    assert points[0].defenses == () and len({point.name for point in points}) == len(SWEEP) >= 20


def test_a_frontier_is_written_and_gone_on_from(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["defend", "--no-utility", "--output", "out", *QUICK]
    assert main([*command, "--points", "GaussianNoise(0.1)"]) == 0
    first = written("out")["rows"]
    assert [row["point"] for row in first] == ["none", "GaussianNoise(0.1)"]
    for row in first:
        assert row["leakage"] == pytest.approx(max(row["plain"], row["adaptive"]) - row["control"])
        assert row["accuracy"] is None and "--no-utility" in row["note"]
    assert main([*command, "--points", "GaussianNoise(0.1)", "TopK(0.1)"]) == 0
    second = written("out")["rows"]
    assert second[:2] == first and second[2]["point"] == "TopK(0.1)"  # seconds and all: they were not measured again
    assert (tmp_path / "out/frontier.svg").read_text().startswith("<svg") and "TopK" in (
        tmp_path / "out/defend.md"
    ).read_text()
    (tmp_path / "out/defend.json").unlink()
    assert main([*command, "--points", "TopK(0.1)"]) == 0
    assert written("out")["rows"] == second, "the ledger has them, whatever becomes of the files made of it"
    assert main([*command, "--points", "TopK(0.1)", "--seed", "1"]) == 2
    assert "other options" in capsys.readouterr().err and written("out")["rows"] == second


def test_a_point_that_cannot_run_is_a_row_that_says_why_and_the_others_are_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "mixed.py").write_text(
        "from torch import nn\n\ndef make():\n"
        "    return nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(3072, 4)).train()\n"
    )
    command = ["defend", "--network", "mixed:make", "--no-utility", "--output", "out", "--max-iterations", "2"]
    command += ["--attack", "geiping", "--train-mode"]
    assert main([*command, "--points", "DPSGD(1.0, 1.0)", "TopK(0.1)"]) == 1
    text = capsys.readouterr()
    assert "DPSGD(1.0, 1.0): not measured: DP-SGD clips" in text.out and "1 of 3 points not measured" in text.err
    rows = written("out")["rows"]
    assert [row["point"] for row in rows] == ["none", "DPSGD(1.0, 1.0)", "TopK(0.1)"]
    assert rows[1]["plain"] is rows[1]["leakage"] is rows[1]["control"] is None and rows[2]["control"] > 0
    table = (tmp_path / "out/defend.md").read_text()
    assert table.count("n/a") == 4 and "- DPSGD(1.0, 1.0): not measured" in table
    assert "DPSGD" not in (tmp_path / "out/frontier.svg").read_text().split("Not drawn")[0]
    assert main([*command, "--quiet", "--points", "TopK(0.1)"]) == 0  # it is not asked for any more
    assert main([*command, "--quiet", "--points", "DPSGD(1.0, 1.0)"]) == 1  # and is tried again


def test_a_point_is_measured_by_any_process_that_takes_it(tmp_path: Path) -> None:
    command = ["defend", "--no-utility", "--output", "out", *QUICK, "--points", "TopK(0.1)"]
    assert main(command) == 0
    rows = written("out")["rows"]
    ledger = Ledger("out/ledger.db")
    run, second = ledger.run("defend"), Ledger("again/ledger.db")
    again = second.add_run("defend", run.plan)
    second.plan_jobs(
        again, [NewJob(**{each.name: getattr(job, each.name) for each in fields(NewJob)}) for job in ledger.jobs(run)]
    )
    assert work(second.url, second.folder, again, new_owner()) == 2
    found = [content for _, content in second.rows(again)]
    assert [{**row, "seconds": 0} for row in found] == [{**row, "seconds": 0} for row in rows]
    ledger.close()
    second.close()


def test_without_anything_to_compare_it_says_so(capsys: pytest.CaptureFixture) -> None:
    assert main(["defend", *QUICK]) == 2
    assert "--sweep" in capsys.readouterr().err


def test_utility_is_measured_on_a_folder_of_pictures_by_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, load = [], datasets.load  # what the system may hold comes after a folder that was named
    monkeypatch.setattr(datasets, "load", lambda name, *rest, **more: asked.append(name) or load(name, *rest, **more))
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, level in enumerate((40, 200)):
            folder = tmp_path / "data" / split / f"class{label}"
            folder.mkdir(parents=True)
            for number in range(4):
                pixels = (level + rng.integers(-30, 30, (32, 32, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{number}.png")
    command = ["defend", "--points", "Clip(1.0)", "--data-path", "data", "--output", "out", "--rounds", "10", *QUICK]
    assert main(command) == 0
    assert asked == ["photos", "FashionMNIST", "folder", "folder"]  # data/ has no idx files, and then its own two parts
    rows = written("out")["rows"]
    assert all(row["accuracy"] == 1.0 and row["note"] == "" for row in rows), rows  # bright or dark: easy to learn
