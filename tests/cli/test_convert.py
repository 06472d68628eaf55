"""An update in another format: the same numbers, and what it says of itself."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from inversefed.cli import main
from inversefed.updates.update import read_update

TENSORS = {"0.weight": torch.linspace(-1, 1, 12).view(3, 4), "0.bias": torch.tensor([1.0, 2.0, 3.0]).half()}


@pytest.fixture(autouse=True)
def update(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save_file(TENSORS, "u.safetensors", {"kind": "weight_delta", "learning_rate": "0.1", "client": "seventeen"})


def test_around_all_formats_and_back(capsys: pytest.CaptureFixture) -> None:
    for source, target in [("u.safetensors", "u.npz"), ("u.npz", "u.pt"), ("u.pt", "back.safetensors")]:
        assert main(["convert", source, target]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("2 tensors, kind=weight_delta, learning_rate=0.1")
    found = load_file("back.safetensors")
    assert all(torch.equal(found[name], TENSORS[name]) and found[name].dtype == TENSORS[name].dtype for name in TENSORS)
    assert read_update("back.safetensors").metadata.given() == {"kind": "weight_delta", "learning_rate": 0.1}


def test_other_programs_read_what_is_written(capsys: pytest.CaptureFixture) -> None:
    assert main(["convert", "u.safetensors", "u.npz", "--quiet"]) == 0
    with np.load("u.npz") as arrays:
        assert arrays["0.weight"].shape == (3, 4) and float(arrays["learning_rate"]) == 0.1
        assert str(arrays["kind"]) == "weight_delta"
    assert main(["convert", "u.safetensors", "u.pt", "--quiet"]) == 0
    loaded = torch.load("u.pt", weights_only=True)
    assert torch.equal(loaded["state_dict"]["0.bias"], TENSORS["0.bias"]) and loaded["kind"] == "weight_delta"
    assert capsys.readouterr().out == ""


def test_options_are_written_into_the_file() -> None:
    assert main(["convert", "u.safetensors", "new.safetensors", "--kind", "gradient", "--batch-size", "4", "-q"]) == 0
    expected = {"kind": "gradient", "learning_rate": 0.1, "batch_size": 4}
    assert read_update("new.safetensors").metadata.given() == expected


def test_nothing_is_replaced_unasked_and_nothing_hostile_is_passed_on(capsys: pytest.CaptureFixture) -> None:
    before = Path("u.safetensors").read_bytes()
    assert main(["convert", "u.safetensors", "u.safetensors"]) == 2
    assert "--overwrite" in capsys.readouterr().err and Path("u.safetensors").read_bytes() == before
    assert main(["convert", "u.safetensors", "u.onnx"]) == 2
    assert main(["convert", "u.safetensors", "u.safetensors", "--overwrite"]) == 0
    data = io.BytesIO()
    np.save(data, np.array([print], dtype=object), allow_pickle=True)
    with zipfile.ZipFile("o.npz", "w") as archive:
        archive.writestr("a.npy", data.getvalue())
    assert main(["convert", "o.npz", "o.pt"]) == 2
    assert "objects" in capsys.readouterr().err and not Path("o.pt").exists()
