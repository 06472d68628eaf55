"""The paper's table at a smaller size, and what a ledger costs."""

from pathlib import Path

import pytest
import torch

from benchmarks import ledger, paper
from inversefed.report.png import png


def test_the_table_has_the_published_figures_beside_ours_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for part in ("train", "test"):
        (tmp_path / "data" / part).mkdir(parents=True)
        for number in range(8):
            (tmp_path / "data" / part / f"{number}_{number % 2}.png").write_bytes(png(torch.rand(3, 32, 32)))
    command = ["--data-path", str(tmp_path / "data"), "--folder", str(tmp_path / "paper"), "--epochs", "1"]
    command += ["--limit", "1", "--max-iterations", "2", "--workers", "1"]
    assert paper.main(command) == 0
    text = (tmp_path / "paper" / "table1.md").read_text()
    assert text in capsys.readouterr().out
    rows = [line for line in text.splitlines() if line.startswith("| LeNetZhu")]
    assert len(rows) == 4 and all("| 1 | 0 |" in line for line in rows)
    assert "| LeNetZhu | untrained | geiping | 18.00 ± 3.33 |" in text
    assert "not CIFAR-10's own pictures" in text and "1 pictures instead of 100" in text and "2 iterations" in text
    assert paper.main(command) == 0
    assert capsys.readouterr().err.count("audits\n") == 1, "nothing is done again"


def test_what_a_ledger_costs_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert ledger.overhead(str(tmp_path / "a.db"), tmp_path, jobs=3, seconds=0.01) > 0
    assert all(0 < each < 5 for each in ledger.looking(str(tmp_path / "b.db"), tmp_path, done=50))
    assert ledger.main(["--jobs", "1", "--seconds", "0.01"]) == 0
    assert "more time with the ledger" in capsys.readouterr().out
