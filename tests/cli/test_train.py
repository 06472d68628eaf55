"""`inversefed train`: a checkpoint that an audit can use."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inversefed.cli import main


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two classes that a network can tell apart: dark and bright pictures."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for label, level in (("dark", 20), ("light", 200)):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for number in range(12):
                pixels = (level + rng.integers(0, 40, (32, 32, 3))).astype(np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / split / label / f"{number:02d}.png")
    return tmp_path / "data"


def arguments(folder: Path, *more: str) -> list[str]:
    base = [
        "train",
        "--network",
        "LeNetZhu",
        "--dataset",
        "folder",
        "--data-path",
        str(folder),
        "--output",
        "w.safetensors",
    ]
    return [*base, "--epochs", "2", "--batch-size", "8", "--lr", "0.001", *more]


def test_training_writes_weights_and_settings_that_an_audit_uses(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments(folder)) == 0
    captured = capsys.readouterr()
    assert "test accuracy" in captured.out and "epochs" in captured.err
    settings = json.loads(Path("w.json").read_text())
    assert settings["network"] == "LeNetZhu" and settings["epochs"] == 2 and 0 <= settings["accuracy"] <= 1
    audit = ["audit", "--weights", "w.safetensors", "--dataset", "folder", "--data-path", str(folder)]
    assert main([*audit, "--max-iterations", "2", "--output", "out", "--quiet"]) == 0


def test_an_existing_file_is_kept(folder: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(arguments(folder, "--quiet", "--epochs", "1")) == 0
    before = Path("w.safetensors").read_bytes()
    assert main(arguments(folder, "--quiet", "--epochs", "1", "--seed", "1")) == 2
    assert "--overwrite" in capsys.readouterr().err and Path("w.safetensors").read_bytes() == before
    assert main(arguments(folder, "--quiet", "--epochs", "1", "--seed", "1", "--overwrite")) == 0
    assert Path("w.safetensors").read_bytes() != before


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--epochs", "0"], "at least 1"),
        (["--network", "ConvNt"], "did you mean ConvNet"),
        (["--dataset", "CIFAR10"], "data"),
        (["--output", "w.pt"], ".safetensors"),
        (["--lr", "1e30"], "diverged"),
        (["--output", "data/train/dark/00.png/w.safetensors"], "cannot write"),
    ],
)
def test_bad_input_is_one_clear_message(
    folder: Path, capsys: pytest.CaptureFixture, more: list[str], message: str
) -> None:
    assert main(arguments(folder, "--quiet", *more)) == 2
    assert message in capsys.readouterr().err
    assert not Path("w.safetensors").exists()
