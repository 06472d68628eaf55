"""The benchmark of tables: it resumes, and counts what is exact and right."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import inputs
from inversefed.errors import InputError


def credit(folder: Path) -> None:
    """A table in the form of German credit, drawn."""
    random = torch.Generator().manual_seed(0)

    def cell(place: int) -> str:
        values = (5, 72, 5, 10, 18000, 5, 5, 4, 5, 3, 4, 4, 60, 3, 3, 4, 4, 2, 2, 2, 2)[place]
        number = int(torch.randint(1, values + 1, (), generator=random))
        return str(number) if place in (1, 4, 7, 10, 12, 15, 17, 20) else f"A{place}{number}"

    (folder / "german.data").write_text("\n".join(" ".join(map(cell, range(21))) for _ in range(80)))


def test_batches_are_measured_once_and_counted(tmp_path: Path, capsys) -> None:
    credit(tmp_path)
    kept = tmp_path / "kept.json"
    table = ["--data", str(tmp_path), "--json", str(kept), "--only", "german 200-200 ReLU b=8", "--batches"]
    assert inputs.main([*table, "1"]) == 0
    first = json.loads(kept.read_text())["batches"]
    assert inputs.main([*table, "2"]) == 0
    both = json.loads(kept.read_text())["batches"]
    assert list(both) == ["german 200-200 ReLU b=8 0", "german 200-200 ReLU b=8 1"]
    assert both["german 200-200 ReLU b=8 0"] == first["german 200-200 ReLU b=8 0"]
    assert all(each["exact"] and each["right"] for each in both.values())
    assert "| 2/2 | 0 | 100.0 |" in capsys.readouterr().out


def test_an_update_that_no_rows_make_is_counted_only_if_it_is_called_exact(tmp_path: Path, capsys) -> None:
    credit(tmp_path)
    wrong = ["--data", str(tmp_path), "--wrong", "--only", "german 200-200 ReLU b=8", "--batches", "2"]
    assert inputs.main([*wrong, "--first", "40", "--last", "30", "--json", str(tmp_path / "wrong.json")]) == 0
    assert "| 0/2 | 0 |" in capsys.readouterr().out
    assert list(json.loads((tmp_path / "wrong.json").read_text())["batches"]) == [
        "german 200-200 ReLU b=8 40",
        "german 200-200 ReLU b=8 41",
    ]


def test_rows_behind_batchnorm_are_measured(tmp_path: Path) -> None:
    credit(tmp_path)
    table = inputs.loaded("german", tmp_path)
    for norm in ("eval", "train"):
        result = inputs.measured(inputs.Setting("german", 8, 200, norm=norm), table, 0, 60.0)
        assert result.exact and result.right


@pytest.mark.parametrize("name", inputs.SCIKIT)
def test_tables_of_numbers_are_exact_or_said_to_be_missing(name: str, tmp_path: Path) -> None:
    try:
        table = inputs.loaded(name, tmp_path)
    except InputError as error:
        pytest.skip(str(error))
    result = inputs.measured(inputs.Setting(name, 8, 200, attack="sparse"), table, 0, 60.0)
    assert result.exact and result.right


def test_a_folder_without_the_tables_is_refused(tmp_path: Path, capsys) -> None:
    assert inputs.main(["--data", str(tmp_path)]) == 2
    assert "there is no" in capsys.readouterr().err
