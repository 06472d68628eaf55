"""A job on a machine without the files: what is sent, what is refused, and what comes back."""

import json
import os
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from inversefed.attacks import recipes
from inversefed.cli.options import Executing
from inversefed.cli.sweep import executor_of
from inversefed.errors import ConfigError, InputError
from inversefed.experiments import ray_cluster, ray_start, remote
from inversefed.experiments.frontier_jobs import Loaded, measured, needs_of
from inversefed.experiments.local import LocalProcesses
from inversefed.experiments.plan_file import parse_plan
from inversefed.experiments.ray_cluster import RayCluster, _keys, _room, _Shelf
from inversefed.experiments.remote import Done, Refused, Said, audited, measured_there, private_of
from inversefed.pipeline import audit
from inversefed.report.png import png
from inversefed.scenario import Scenario
from inversefed.specs.sources import Sources


@pytest.fixture
def scenario(tmp_path: Path, photos: torch.Tensor) -> Scenario:
    file = tmp_path / "private.png"
    file.write_bytes(png(photos[0]))
    attack = recipes.geiping(max_iterations=5, restarts=2)
    return Scenario(Sources(network="LeNetZhu", images=(file,), labels=(3,)), attack=attack, nulls=0).loaded()


def test_a_job_needs_no_file_where_its_tensors_are_sent(scenario: Scenario, tmp_path: Path) -> None:
    here = audit(scenario)
    (tmp_path / "private.png").unlink()
    assert scenario.held is not None
    sent = audited(json.dumps(scenario.to_dict()), scenario.held.network.module, private_of(scenario.held), 1)
    assert isinstance(sent, Done)
    assert load(sent.files["reconstruction.safetensors"])["images"].equal(here.reconstruction.images)
    record = json.loads(sent.files["report.json"])["scenario"]
    assert record["hash"] == scenario.hash() and sent.outcome.verdict == "not judged"
    assert {"report.html", "report.md", "target_00.png", "reconstruction_00.png"} <= sent.files.keys()


def test_other_weights_or_pictures_than_those_recorded_are_refused(scenario: Scenario) -> None:
    assert scenario.held is not None
    record, private = json.dumps(scenario.to_dict()), private_of(scenario.held)
    other = replace(scenario, seed=1, held=None, sha256=replace(scenario.sha256, network=None)).loaded()
    assert other.held is not None and private is not None
    refused = audited(record, other.held.network.module, private, 1)
    assert isinstance(refused, Refused) and "the network of this audit: SHA-256" in refused.error
    changed = replace(private, images=private.images * 0.5)
    refused = audited(record, scenario.held.network.module, changed, 1)
    assert isinstance(refused, Refused) and "the pictures of this audit: SHA-256" in refused.error


def test_without_tensors_a_job_is_loaded_by_its_names(scenario: Scenario, tmp_path: Path) -> None:
    record = json.dumps(scenario.to_dict())
    assert isinstance(audited(record, None, None, 1), Done)
    (tmp_path / "private.png").unlink()
    refused = audited(record, None, None, 1)
    assert isinstance(refused, Refused) and "private.png" in refused.error


def test_a_job_says_how_far_it_is(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("inversefed.experiments.remote._EVERY", 0.0)
    heard: list[Said] = []
    audited(json.dumps(scenario.to_dict()), None, None, 1, tell=heard.append)
    assert heard and heard[0].progress.keys() == {"iteration", "iterations", "loss", "remaining"}
    assert heard[0].picture[1:4] == b"PNG"


def test_a_search_that_was_cut_short_goes_on_elsewhere(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    record, heard = json.dumps(scenario.to_dict()), []
    whole = audited(record, None, None, 1)
    monkeypatch.setattr("inversefed.experiments.remote._EVERY", 0.0)
    audited(record, None, None, 1, tell=heard.append)
    (checkpoint,) = [said.checkpoint for said in heard if said.checkpoint is not None]
    again = audited(record, None, None, 1, checkpoint=checkpoint)
    assert isinstance(whole, Done) and isinstance(again, Done)
    name = "reconstruction.safetensors"
    assert again.files[name] == whole.files[name]
    assert isinstance(audited(record, None, None, 1, checkpoint=b"damaged"), Done), "begun anew"


def test_what_a_killed_process_left_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    dead, alive, fresh = (
        tmp_path / f"inversefed-task.{each}" for each in ("999999999.a", f"{os.getpid()}.b", "999999998.c")
    )
    for folder in (dead, alive, fresh):
        folder.mkdir()
        (folder / "search.checkpoint").touch()
    for folder in (dead, alive):
        os.utime(folder, (0, 0))
    with remote._workplace() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
    assert not dead.exists() and alive.exists() and fresh.exists() and not folder.exists()


def test_each_network_and_each_set_of_pictures_is_sent_once_and_while_it_is_needed() -> None:
    base = Scenario(Sources(network="LeNetZhu"), attack=recipes.linear(), nulls=0)
    scenarios = [
        replace(base, sources=Sources(network=network, index=index), seed=0, attack=attack).loaded()
        for network in ("LeNetZhu", "ConvNet")
        for index in (0, 1)
        for attack in (recipes.linear(), recipes.dlg())
    ]
    sent: list[object] = []

    def put(value: object) -> int:
        sent.append(value)
        return len(sent)

    shelf = _Shelf(put, ray_cluster.Counter(key for each in scenarios for key in _keys(each.sha256)))
    bare = [replace(each, held=None) for each in scenarios]
    found = [shelf.references(each) for each in bare]
    assert len(sent) == 4 and len(set(found)) == 4
    assert found == [shelf.references(each) for each in bare]
    for each in scenarios:
        shelf.give_back(_keys(each.sha256))
    assert not shelf.held


POINTS = """
name: frontier
networks: [LeNetZhu]
points: [none, TopK(0.1), num_images=2]
attacks: [{geiping: {max_iterations: 2}}]
utility: {data: [photos], rounds: 1}
"""


def test_a_point_elsewhere_comes_to_what_it_does_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[object] = []

    def put(value: object) -> bytes:
        sent.append(value)
        return pickle.dumps(value)

    specs = [spec for spec, _ in parse_plan(POINTS).specs()]
    shelf = _Shelf(put, ray_cluster.Counter(key for each in specs for key in needs_of(each.to_dict())))
    found = [tuple(map(pickle.loads, shelf.references_of_point(each))) for each in specs]
    assert len(sent) == 3, "two settings, of one picture and of two, and the training data once"
    record, (setting, data) = json.dumps(specs[1].to_dict()), found[1]
    monkeypatch.setattr("inversefed.experiments.remote._EVERY", 0.0)
    heard: list[Said] = []
    there = measured_there(record, setting, data, 1, tell=heard.append)
    here = measured(specs[1], *Loaded().of(specs[1]))
    again = measured_there(record, None, None, 1)
    assert isinstance(there, Done) and isinstance(again, Done) and not there.files
    assert heard[0].picture[1:4] == b"PNG" and heard[0].checkpoint is None
    contents = [{**each.content, "seconds": 0} for each in (there.outcome, again.outcome, here)]
    assert contents[0] == contents[1] == contents[2] and contents[0]["accuracy"] is not None
    for each in specs:
        shelf.give_back(needs_of(each.to_dict()))
    assert not shelf.held
    refused = measured_there(record.replace("LeNetZhu", "own:make"), setting, data, 1)
    assert isinstance(refused, Refused) and "names code" in refused.error


def test_what_cannot_be_sent_is_left_to_the_task() -> None:
    def put(value: object) -> int:
        raise TypeError("cannot pickle '_thread.lock' object")

    scenario = Scenario(Sources(network="LeNetZhu"), attack=recipes.linear(), nulls=0).loaded()
    shelf = _Shelf(put, ray_cluster.Counter())
    assert shelf.references(replace(scenario, held=None)) == (None, None)


def test_the_room_of_a_cluster() -> None:
    def node(alive: bool = True, **has: float) -> dict[str, object]:
        return {"Alive": alive, "Resources": has}

    nodes = [node(CPU=4.0, memory=8e9), node(CPU=3.0, GPU=1.0, memory=4e9), node(CPU=0.0), node(False, CPU=64.0)]
    assert _room(nodes, 1, 0.0).slots == 7 and _room(nodes, 2, 0.0).slots == 3
    assert _room(nodes, 1, 0.1).slots == 3, "cores bind before shares of a GPU do"
    assert _room(nodes, 1, 0.5).slots == 2 and _room(nodes, 1, 0.5).largest == 4e9
    assert _room(nodes, 8, 0.0) == ray_cluster._Room(0, 0, 0)


def test_settings_are_refused_where_they_cannot_be() -> None:
    for wrong in ({"workers": 0}, {"threads": 0}, {"retries": -1}, {"gpus": -0.5}):
        with pytest.raises(ConfigError, match="at least"):
            RayCluster(**wrong)
    assert RayCluster(workers=3).count == 3 and LocalProcesses(workers=3).count == 3


def test_options_build_the_executor_that_they_name() -> None:
    assert executor_of(Executing(workers=2)) == LocalProcesses(workers=2)
    asked = Executing(executor="ray", ray_address="auto", gpus=0.25, threads=2)
    assert executor_of(asked) == RayCluster("auto", threads=2, gpus=0.25)
    for wrong in (Executing(ray_address="auto"), Executing(gpus=1.0)):
        with pytest.raises(ConfigError, match="--executor ray"):
            executor_of(wrong)


def test_ray_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigError, match=r"inversefed\[ray\]"), ray_start.joined("auto"):
        pass


def test_an_error_of_a_file_reaches_the_ledger_as_one_of_ours(scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "private.png").unlink()
    shelf = _Shelf(lambda value: value, ray_cluster.Counter())
    with pytest.raises(InputError, match=r"private\.png"):
        shelf.references(replace(scenario, held=None))
