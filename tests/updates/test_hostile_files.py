"""No file can run code, take memory beyond a bound, or take long to be refused.

One process reads the whole corpus, watched by Python's audit events, and reports what happened (`hostile_files`).
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import fuzz_updates
from tests.updates import hostile_files
from tests.updates.hostile_files import CORPUS

ROOT = Path(__file__).parents[2]
REFUSALS = {"InputError", "MetadataError", "UnsafeFileError", "UpdateMismatchError"}
MOST_SECONDS, MOST_BYTES = 2.0, 100e6
NOT_TENSORS = [
    "system.pt",
    "system_of_protocol_5.pt",
    "evaluation.pt",
    "loader_of_torch.pt",
    "bare_pickle.pt",
    "plain_pickle.pkl",
    "exported_program.pt2",
    "whole_module.pt",
    "objects.npz",
    "bomb.npz",
    "compressed.pt",
    "strides_of_zero.pt",
    "sparse.pt",
    "overlap.safetensors",
    "name_twice.safetensors",
]


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    folder = tmp_path_factory.mktemp("hostile")
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    done = subprocess.run(
        [sys.executable, "-m", "tests.updates.hostile_files", str(folder), str(folder / "ran")],
        env=os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not (folder / "ran").exists(), "a file ran code"
    return {outcome["name"]: outcome for outcome in json.loads(done.stdout)}


def test_the_corpus_is_large_and_good_files_are_still_read(outcomes: dict[str, dict]) -> None:
    assert len(CORPUS) >= 100 and CORPUS.keys() <= outcomes.keys()
    for suffix in (".safetensors", ".npz", ".pt"):
        assert outcomes[f"good{suffix}"]["error"] == "NoneType", outcomes[f"good{suffix}"]["message"]


@pytest.mark.parametrize("name", CORPUS)
def test_a_hostile_file_is_refused(outcomes: dict[str, dict], name: str) -> None:
    found = outcomes[name]
    assert found["error"] in REFUSALS, found["message"]
    assert found["events"] == [], "reading ran, imported or wrote something"
    assert found["seconds"] < MOST_SECONDS
    assert found["bytes"] < MOST_BYTES
    assert found["message"].isascii() and found["message"].isprintable() and len(found["message"]) < 600
    assert "<" not in found["message"]


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_a_large_update_is_in_memory_once(outcomes: dict[str, dict], suffix: str) -> None:
    found = outcomes[f"large{suffix}"]
    assert found["sum"] == 1e7 and found["ratio"] < 1.5


@pytest.mark.parametrize("name", NOT_TENSORS)
def test_what_no_tensor_needs_is_called_unsafe(outcomes: dict[str, dict], name: str) -> None:
    assert outcomes[name]["error"] == "UnsafeFileError"


def test_the_payload_would_run_where_pickles_are_loaded(tmp_path: Path) -> None:
    """The control: without it a canary that is absent says nothing."""
    hostile_files.CANARY = tmp_path / "ran"
    CORPUS["bare_pickle.pt"](tmp_path / "bare.pt")
    load = f"import pickle; pickle.load(open({str(tmp_path / 'bare.pt')!r}, 'rb'))"
    subprocess.run([sys.executable, "-c", load], check=True)
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("target", fuzz_updates.TARGETS, ids=lambda target: target.__name__)
def test_files_mutated_at_random_are_refused_or_fit(target: Callable) -> None:
    """A taste of `make fuzz`, the same on every run."""
    assert fuzz_updates.run(target, seconds=60, most=60, same=True) == 60
