"""Sweeps from the command line: carried out, killed, taken up, looked at, removed."""

import csv
import errno
import io
import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from inversefed.cli import main
from inversefed.errors import StorageError
from inversefed.experiments.ledger import Ledger, Outcome, new_owner
from inversefed.experiments.local import LocalProcesses
from inversefed.experiments.places import Places
from inversefed.experiments.plan import Plan, Targets
from inversefed.experiments.plan_file import parse_plan
from inversefed.experiments.planning import add_run, write_jobs
from inversefed.experiments.work import Memory, remove_stale, run_job, work
from inversefed.pipeline import audit
from inversefed.report import folder as report_folder
from inversefed.report.png import png
from inversefed.scenario import Scenario
from inversefed.zoo import training
from tests.experiments import chaos

PLAN = """
name: demo
targets: {limit: 2}
networks: [LeNetZhu]
attacks: [{geiping: {max_iterations: 30}}]
seeds: [0, 1]
nulls: 0
"""


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.yaml").write_text(PLAN)


def test_a_plan_is_carried_out_and_its_table_is_that_of_the_audits(capsys: pytest.CaptureFixture) -> None:
    text = PLAN.replace("limit: 2", "limit: 1")
    Path("plan.yaml").write_text(text)
    assert main(["sweep", "plan.yaml", "--workers", "1"]) == 0
    assert "2 of 2 audits done" in capsys.readouterr().out
    assert main(["sweep", "plan.yaml"]) == 2
    assert "already" in capsys.readouterr().err
    assert main(["sweep", "plan.yaml", "--run", "again"]) == 0, "the same audits by another name are done already"
    capsys.readouterr()

    assert main(["results", "demo", "--csv"]) == 0
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 2 and {row["state"] for row in rows} == {"done"} and {row["attempts"] for row in rows} == {"1"}
    ledger = Ledger("runs/ledger.db")
    for row, cell in zip(rows, parse_plan(text).loaded(), strict=True):
        report = audit(cell.scenario)
        assert row["scenario"] == cell.scenario.hash()
        assert float(row["peak_signal_noise_ratio"]) == float(report.scores["peak_signal_noise_ratio"].mean())
        kept = Places(ledger.folder).job(row["scenario"])
        assert load_file(kept / "reconstruction.safetensors")["images"].equal(report.reconstruction.images)
        assert {each.stat().st_mode & 0o777 for each in (kept, *kept.parents[:3])} == {0o700}
        assert Scenario.from_report(kept).loaded().hash() == row["scenario"]
    ledger.close()

    assert main(["results", "demo", "--summary", "--csv"]) == 0
    (line,) = csv.DictReader(io.StringIO(capsys.readouterr().out))
    mean = sum(float(row["peak_signal_noise_ratio"]) for row in rows) / 2
    assert line["n"] == "2" and float(line["peak_signal_noise_ratio"]) == pytest.approx(mean)
    assert main(["results", "demo"]) == 0 and "| LeNetZhu | FedSGD | none |" in capsys.readouterr().out
    assert main(["status", "demo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["done"] == 2
    assert main(["runs"]) == 0 and "2 of 2 audits done" in capsys.readouterr().out

    assert main(["runs", "--remove", "demo"]) == 2 and "--yes" in capsys.readouterr().err
    assert main(["runs", "--remove", "demo", "--yes"]) == 0
    assert len(list(Path("runs/jobs").rglob("report.json"))) == 2, "the other run still has them"
    assert main(["runs", "--remove", "again", "--yes"]) == 0
    assert not [
        path for path in Path("runs").rglob("*") if path.name not in ("ledger.db", "ledger.db-journal", "jobs", "live")
    ]


def test_a_killed_worker_costs_an_attempt_and_no_result(capsys: pytest.CaptureFixture) -> None:
    victims: list[int] = []

    def kill_one() -> None:
        while not victims:
            time.sleep(0.05)
            if Path("runs/live").is_dir() and any(Path("runs/live").glob("*/search.checkpoint")):
                victims.extend(chaos.children(os.getpid())[:1])
                for pid in victims:
                    os.kill(pid, signal.SIGKILL)

    Path("plan.yaml").write_text(
        PLAN.replace("max_iterations: 30", "max_iterations: 150").replace("limit: 2", "limit: 1")
        + "time_budget: 10s\n"  # a fifth of it for the limit
    )
    killer = threading.Thread(target=kill_one)
    killer.start()
    assert main(["sweep", "plan.yaml", "--quiet", "--workers", "1"]) == 0
    killer.join()
    main(["results", "demo", "--csv"])
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [row["state"] for row in rows] == ["done"] * 2
    assert sorted(row["attempts"] for row in rows) == ["1", "2"]
    assert not list(Path("runs/live").glob("*/*"))


def test_the_audit_that_cannot_be_done_keeps_its_error_and_stops_no_other(capsys: pytest.CaptureFixture) -> None:
    Path("plan.yaml").write_text(
        PLAN.replace("[{geiping: {max_iterations: 30}}]", "[{geiping: {max_iterations: 2}}, peel, spear]").replace(
            "limit: 2", "limit: 1"
        )
    )
    ledger, _ = planned(parse_plan(Path("plan.yaml").read_text()))
    work(ledger.url, ledger.folder, ledger.run("demo"), new_owner())
    failed = ledger.jobs(ledger.run("demo"), "failed")
    assert failed and all("Error: " in str(each.error) for each in failed) and failed[0].attempts == 1
    done = len(ledger.jobs(ledger.run("demo"), "done"))
    ledger.close()
    assert main(["resume", "demo", "--retry", "--workers", "1"]) == 1
    said = capsys.readouterr()
    assert f"{done} of 6 audits done, {6 - done} failed" in said.out and str(failed[0].error) in said.err
    ledger = Ledger("runs/ledger.db")
    assert len(ledger.jobs(ledger.run("demo"), "done")) == done
    assert {each.attempts for each in ledger.jobs(ledger.run("demo"), "failed")} == {2}
    ledger.close()


def planned(plan: Plan) -> tuple[Ledger, Places]:
    ledger = Ledger("runs/ledger.db")
    write_jobs(ledger, add_run(ledger, plan))
    return ledger, Places(ledger.folder)


def test_a_search_that_was_killed_goes_on_from_its_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, places = planned(parse_plan(PLAN))
    run = ledger.run("demo")
    first = ledger.claim(run, new_owner(), lease=0.0)
    assert first is not None

    class Killed(BaseException):
        pass

    steps: list[int] = []

    def die(self: object, step: object) -> bool:
        steps.append(step.iteration)  # type: ignore[attr-defined]
        if len(steps) == 11:
            raise Killed
        return False

    with monkeypatch.context() as patched:
        patched.setattr("inversefed.attacks.search.restarts._SECONDS_BETWEEN_CHECKPOINTS", 0.0)
        patched.setattr("inversefed.experiments.work.Pulse.step", die)
        with pytest.raises(Killed):
            run_job(ledger, first, Memory())
    assert places.checkpoint(first.hash).exists()
    again = ledger.claim(run, new_owner())
    assert again is not None
    seen: list[int] = []
    with monkeypatch.context() as patched:
        patched.setattr("inversefed.experiments.work.Pulse.step", lambda self, step: bool(seen.append(step.iteration)))
        assert run_job(ledger, ledger.job(first.hash), Memory())
    alone = audit(Scenario.from_dict(json.loads(first.scenario)))
    found = load_file(places.job(first.hash) / "reconstruction.safetensors")
    assert found["images"].equal(alone.reconstruction.images)
    assert not places.live(first.hash).exists()
    ledger.close()


def test_a_damaged_checkpoint_begins_again() -> None:
    ledger, places = planned(parse_plan(PLAN))
    taken = ledger.claim(ledger.run("demo"), new_owner())
    assert taken is not None
    places.live(taken.hash).mkdir(parents=True)
    places.checkpoint(taken.hash).write_bytes(b"PK torn")
    assert run_job(ledger, taken, Memory())
    assert ledger.job(taken.hash).state == "done"
    ledger.close()


def test_a_full_disk_ends_the_work_and_fails_no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, _ = planned(parse_plan(PLAN.replace("max_iterations: 30", "max_iterations: 2")))
    run = ledger.run("demo")

    def full(staging: Path, files: dict[str, bytes]) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    owner = new_owner()
    with monkeypatch.context() as patched:
        patched.setattr(report_folder, "_write", full)
        with pytest.raises(StorageError, match=r"No space left.*resume"):
            work(ledger.url, ledger.folder, run, owner)
    assert ledger.release(owner) == 1 and ledger.standing(run).counts["queued"] == 4
    assert work(ledger.url, ledger.folder, run, new_owner()) == 4
    assert ledger.standing(run).counts["done"] == 4 and ledger.check() is None
    assert len(list(ledger.folder.rglob("report.json"))) == 4
    ledger.close()


def test_what_ended_jobs_had_while_they_ran_is_removed_however_they_ended() -> None:
    ledger, places = planned(parse_plan(PLAN.replace("limit: 2", "limit: 1")))
    run = ledger.run("demo")
    given_up, late = ledger.claim(run, "one"), ledger.claim(run, "two")
    assert given_up is not None and late is not None
    ledger.release("one", died=True, most=0)
    assert ledger.finish(late, Outcome("not judged", None, None, 1.0, {}))
    other = "0" * 64  # of another ledger that keeps its files here
    for hash in (given_up.hash, late.hash, other):
        places.live(hash).mkdir(parents=True)
        places.checkpoint(hash).write_bytes(b"PK")
        places.preview(hash).with_suffix(".png.part").touch()
    LocalProcesses(workers=1)(ledger, run)  # which has nothing to do
    assert places.all_live() == (other,)
    assert main(["purge", "--yes", "--quiet", "runs"]) == 0 and places.all_live() == ()
    ledger.retry(run)
    running = ledger.claim(run, "three")
    assert running is not None
    places.live(running.hash).mkdir(parents=True)
    remove_stale(ledger)
    assert places.all_live() == (running.hash,)
    ledger.close()


def test_an_audit_that_does_not_fit_is_told_before_it_begins() -> None:
    ledger, _ = planned(parse_plan(PLAN))
    standing = LocalProcesses(workers=1, memory=1000)(ledger, ledger.run("demo"))
    assert standing.counts["failed"] == 4
    assert "predicted to take" in str(ledger.jobs(ledger.run("demo"))[0].error)
    ledger.close()


def test_jobs_that_share_pictures_and_weights_load_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    load = Scenario.loaded
    monkeypatch.setattr(Scenario, "loaded", lambda self: (loads.extend(["load"] * (self.held is None)), load(self))[1])
    plan = parse_plan(PLAN.replace("{geiping: {max_iterations: 30}}", "{geiping: {max_iterations: 2}}, linear"))
    ledger, _ = planned(plan)
    assert len(loads) == 4, "while it is planned: two targets, two seeds"
    loads.clear()
    work(ledger.url, ledger.folder, ledger.run("demo"), new_owner())
    assert len(loads) == 4
    ledger.close()


def test_networks_are_trained_once_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    for part in ("train", "test"):
        for name in ("dark", "light"):
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for number in range(4):
                picture = torch.rand(3, 32, 32, generator=draw) / 2 + (name == "light") / 2
                (tmp_path / "data" / part / name / f"{number}.png").write_bytes(png(picture))
    text = PLAN.replace("seeds: [0, 1]", "").replace("max_iterations: 30", "max_iterations: 2")
    text = text.replace("{limit: 2}", "{dataset: folder, data_path: data, limit: 1}")
    train = "{LeNetZhu: {train: {dataset: folder, data_path: data, epochs: [0, 2], batch_size: 4, recipe: adam}}}"
    plan = parse_plan(text.replace("LeNetZhu", train))
    trained: list[int] = []
    real = training.train
    monkeypatch.setattr(training, "train", lambda *given, **named: (trained.append(1), real(*given, **named))[1])
    ledger, places = planned(plan)
    write_jobs(ledger, add_run(ledger, plan, "again"))
    assert len(trained) == 1, "of 0 epochs nothing is to be trained, and the other run finds the file"
    files = sorted(places.weights().glob("*.safetensors"))
    assert len(files) == 2 and not all(map(torch.equal, *(load_file(each).values() for each in files)))
    assert [each.network for each in ledger.jobs(ledger.run("demo"))] == [
        "LeNetZhu, 0 epochs of folder", "LeNetZhu, 2 epochs of folder",
    ]  # fmt: skip
    assert work(ledger.url, ledger.folder, ledger.run("demo"), new_owner()) == 2
    ledger.close()


def test_a_dry_run_counts_and_writes_nothing(capsys: pytest.CaptureFixture) -> None:
    assert main(["sweep", "plan.yaml", "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "demo: 4 audits" in said and "4 x LeNetZhu, 1 picture, FedSGD, geiping(max_iterations=30)" in said
    assert not Path("runs").exists()


def test_the_demo_ships(capsys: pytest.CaptureFixture) -> None:
    assert main(["list", "plans"]) == 0 and main(["runs", "--check"]) == 0
    assert "demo  Bundled photographs" in capsys.readouterr().out
    assert main(["sweep", "nowhere.yaml"]) == 2
    assert main(["sweep", "demo", "--dry-run"]) == 0


def test_a_plan_of_python_values() -> None:
    from inversefed.attacks import recipes

    ledger, _ = planned(Plan("mine", targets=(Targets(limit=1),), attacks=(recipes.linear(),), nulls=0))
    assert work(ledger.url, ledger.folder, ledger.run("mine"), new_owner()) == 1
    ((job, content),) = ledger.rows(ledger.run("mine"))
    assert (job.attack == "linear" and content is not None) or job.error
    ledger.close()


@pytest.mark.slow  # a minute of processes that are started and killed
def test_random_kills_change_nothing(tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").unlink()
    plan = chaos.write_plan(tmp_path, jobs=12, iterations=100)
    assert main(["sweep", str(plan), "--ledger", "alone/ledger.db", "--quiet", "--workers", "2"]) == 0
    victims = list(chaos.disturb(tmp_path / "disturbed", plan, 6, random.Random(1), longest=1.0))
    assert "worker" in victims and "coordinator" in victims
    assert chaos.differences(tmp_path / "alone", tmp_path / "disturbed") == []
