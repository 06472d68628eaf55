"""`inversefed defend`: points, resuming, and what is written."""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inversefed import FedAvg, FedSGD, defenses
from inversefed.cli import defend, main
from inversefed.cli.options import Defend
from inversefed.errors import ConfigError
from inversefed.experiments.executor import Executor
from inversefed.experiments.frontier_jobs import read_point, row_in
from inversefed.experiments.ledger import Ledger, NewJob, Run, Standing, new_owner
from inversefed.experiments.local import LocalProcesses
from inversefed.experiments.plan_file import parse_plan, read_plan, shipped
from inversefed.experiments.work import work
from inversefed.report.frontier import to_dict
from inversefed.zoo import datasets

QUICK = ["--max-iterations", "2", "--attack", "geiping", "--quiet"]


class Here(Executor):
    """Does all work in this process, which has torch already."""

    count = 1

    def __call__(self, ledger: Ledger, run: Run, on_look: Callable[[Standing], object] = lambda _: None) -> Standing:
        ledger.release_dead()
        work(ledger.url, ledger.folder, run, new_owner(), trust_code=True)
        on_look(ledger.standing(run))
        return ledger.standing(run)


@pytest.fixture(autouse=True)
def somewhere_else(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if "processes" not in request.node.name:
        monkeypatch.setattr(defend, "_executor", lambda _: Here())


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
    points = read_plan(shipped()["defenses"]).points
    assert points[0].defenses == () and len({point.name for point in points}) == len(points) >= 20
    assert defend.plan_of(Defend(sweep=True)).points == points


def test_a_frontier_is_written_and_gone_on_from(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    command = ["defend", "--no-utility", "--output", "out", *QUICK]
    assert main([*command, "--points", "GaussianNoise(0.1)"]) == 0
    first = written("out")["rows"]
    assert [row["point"] for row in first] == ["none", "GaussianNoise(0.1)"]
    for row in first:
        assert row["leakage"] == pytest.approx(max(row["plain"], row["adaptive"]) - row["control"])
        assert row["accuracy"] is None and "none was asked for" in row["note"]
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
    assert (
        "DPSGD(1.0, 1.0): not measured: UnsupportedNetworkError: DP-SGD clips" in text.out
        and "1 of 3 points not measured" in text.err
    )
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
    assert [{**to_dict(row_in(row)), "seconds": 0} for row in found] == [{**row, "seconds": 0} for row in rows]
    ledger.close()
    second.close()


def test_the_command_and_a_plan_of_the_same_points_have_the_same_jobs() -> None:
    points = ("TopK(0.1)", "num_images=2 + Mixup(1.0)", "FedAvg(local_steps=4)")
    options = Defend(
        points=points, network="ConvNet16", targets=2, max_iterations=5, rounds=7, known_labels=True, seed=3
    )
    text = f"""
    name: mine
    targets: {{limit: 2}}
    networks: [ConvNet16]
    points: {["none", *points]}
    attacks: [best]
    seeds: [3]
    max_iterations: 5
    threat: {{labels: known}}
    utility: {{data: [FashionMNIST, {{dataset: FashionMNIST, data_path: {defend._DEBIAN}}}], rounds: 7}}
    """
    asked, planned = defend.plan_of(options), parse_plan(text)
    assert [spec.job().hash for spec, _ in asked.specs()] == [spec.job().hash for spec, _ in planned.specs()]
    assert parse_plan(json.dumps(asked.to_dict())).to_dict() == asked.to_dict() and len(asked) == 4


def test_processes_measure_the_points_and_those_of_a_network_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inversefed.experiments.local.available_bytes", lambda device: 8 * 10**9)  # whatever else runs
    assert defend._executor(Defend(workers=2, threads=2)) == LocalProcesses(2, 2, trust_code=True)
    (tmp_path / "own.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(3072, 4))\n"
    )
    command = ["defend", "--network", "own:make", "--no-utility", "--output", "out", *QUICK, "--workers", "1"]
    assert main([*command, "--points", "TopK(0.5)"]) == 0, written("out")["rows"]
    assert [row["point"] for row in written("out")["rows"]] == ["none", "TopK(0.5)"]
    assert not list((tmp_path / "out").glob("live/*"))
    ledger = Ledger("out/ledger.db")
    run = ledger.run("defend")
    again = ledger.add_run("again", run.plan)
    spec = next(iter(parse_plan(run.plan.replace("own:make", "LeNetZhu")).specs()))[0]
    own = replace(spec, sources=replace(spec.sources, network="own:make"), seed=1).job()
    ledger.plan_jobs(again, [own])
    work(ledger.url, ledger.folder, again, new_owner())
    (failed,) = ledger.jobs(again)
    ledger.close()
    assert failed.error is not None and "names code to run as its network" in failed.error, "nobody said so here"


@pytest.mark.parametrize("wrong", [["--device", "cuda"], ["--gpus", "1"], ["--update", "u.npz"]])
def test_processes_refuse_what_they_cannot_do(wrong: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(["defend", "--points", "TopK(0.1)", "--no-utility", *QUICK, *wrong]) == 2
    assert wrong[0].replace("--device", "on the CPU, not on cuda") in capsys.readouterr().err


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
    assert asked[-4:] == [
        "photos",
        "FashionMNIST",
        "folder",
        "folder",
    ]  # data/ has no idx files, and then its own two parts
    rows = written("out")["rows"]
    assert all(row["accuracy"] == 1.0 and row["note"] == "" for row in rows), rows  # bright or dark: easy to learn
