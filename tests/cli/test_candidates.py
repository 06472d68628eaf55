"""Records that are asked for from the shell: folders in, their place in the report out."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from inversefed.cli import main
from inversefed.errors import InputError
from inversefed.specs.record_folder import read_records


def write(folder: Path, count: int, seed: int) -> list[Path]:
    folder.mkdir(parents=True)
    pixels = torch.randint(256, (count, 32, 32, 3), generator=torch.Generator().manual_seed(seed)).byte()
    files = [folder / f"p{index:02d}_{index % 10}.png" for index in range(count)]
    for file, each in zip(files, pixels, strict=True):
        Image.fromarray(each.numpy()).save(file)
    return files


def test_records_of_the_update_are_called_in_the_report(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    asked, _ = write(tmp_path / "asked", 6, 0), write(tmp_path / "out", 24, 1)
    private = ["--images", *map(str, asked[:4]), "--labels", "0", "1", "2", "3"]
    short = ["--attack", "geiping", "--max-iterations", "2", "--nulls", "0", "--output", str(tmp_path / "run")]
    folders = ["--candidates", str(tmp_path / "asked"), "--candidates-out", str(tmp_path / "out")]
    assert main(["audit", *private, *folders, *short]) == 0
    assert "Records that were asked for" in capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "report.json").read_text())
    records = found["membership"]
    assert records["called"][:4] == [True] * 4 and records["members"] == [True] * 4 + [False] * 2
    assert found["config"]["candidates"] == str(tmp_path / "asked")


def test_records_that_are_out_need_records_that_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["audit", "--candidates-out", str(tmp_path), "--output", str(tmp_path / "run")]) != 0
    assert "--candidates" in capsys.readouterr().err


def test_classes_are_read_off_folders_and_names(tmp_path: Path) -> None:
    write(tmp_path / "numbered" / "3", 2, 0)
    write(tmp_path / "named" / "dog", 2, 0)
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "flat" / "dog.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "flat" / "cat_7.png")
    shape = (3, 32, 32)
    assert read_records(tmp_path / "numbered", shape, 10).labels.tolist() == [3, 3]
    assert read_records(tmp_path / "named", shape, 10).labels.tolist() == [-1, -1]
    assert read_records(tmp_path / "named", shape, 1).labels.tolist() == [0, 0]
    assert read_records(tmp_path / "flat", shape, 10).labels.tolist() == [7, -1]
    for folder, classes in (("flat", 5), ("nothing", 5)):
        with pytest.raises(InputError, match=r"class|not there"):
            read_records(tmp_path / folder, shape, classes)
