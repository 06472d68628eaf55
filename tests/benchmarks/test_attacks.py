"""The table of attacks: its rows, its reasons, its file; with few iterations, for the figures are not tested here."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import attacks
from benchmarks.pictures import bundled
from benchmarks.settings import SETTINGS
from inversefed.zoo import checkpoints, networks

KEYS = {
    "attack", "case", "psnr", "ssim", "label_accuracy", "seconds", "gray_psnr", "constant_psnr", "updates",
    "per_update", "reason",
}  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, setting in SETTINGS.items():
        monkeypatch.setitem(SETTINGS, name, replace(setting, iterations=3))


def rows(path: Path) -> list[dict]:
    return json.loads(path.read_text())["rows"]


def test_every_attack_has_a_row_in_every_case_and_what_does_not_apply_says_why(tmp_path, quick, capsys) -> None:
    out = tmp_path / "deep" / "table.json"
    wanted = ["--attacks", "peel,geiping", "--cases", "lenet-single,lenet-batch4-duplicate,trained-single"]
    assert attacks.main([*wanted, "--limit", "2", "--json", str(out)]) == 0
    found = rows(out)
    assert [(row["case"], row["attack"]) for row in found] == [
        (case, name) for case in wanted[3].split(",") for name in ("peel", "geiping")
    ]
    assert all(set(row) == KEYS for row in found)
    single, paper, refused, several, *trained = found
    assert single["psnr"] > 80 > paper["psnr"] and single["updates"] == 2 == len(single["per_update"])
    assert refused["psnr"] is None and "peeling ends at" in refused["reason"] and several["reason"] is None
    assert all(row["reason"].startswith("skipped") and row["psnr"] is None for row in trained)
    assert capsys.readouterr().out.count("| lenet-single |") == 2


def test_trained_weights_name_their_network(tmp_path, quick) -> None:
    module = networks.build("LeNetZhu", num_classes=10, seed=5)
    weights = checkpoints.save_checkpoint(tmp_path / "w.safetensors", module, {"network": "LeNetZhu"})
    out = tmp_path / "table.json"
    options = ["--attacks", "peel", "--cases", "trained-single", "--trained-weights", str(weights), "--json", str(out)]
    assert attacks.main(options) == 0
    assert rows(out)[0]["psnr"] > 80


def test_labels_are_distinct_or_in_pairs_and_pictures_wrap() -> None:
    examples = bundled()
    for number in range(3):
        assert len(set(SETTINGS["lenet-batch8-distinct"].batch(examples, number).labels.tolist())) == 8
        pairs = SETTINGS["lenet-batch4-duplicate"].batch(examples, number).labels.view(2, 2)
        assert bool((pairs[:, 0] == pairs[:, 1]).all())
    first = SETTINGS["lenet-single"].batch(examples, len(examples)).images[0]
    assert torch.equal(first, examples[0].image)


@pytest.mark.parametrize("wrong", [["--attacks", "gaiping"], ["--cases", "lenet"], ["--limit", "0"]])
def test_wrong_usage_ends_with_a_reason(wrong, capsys) -> None:
    assert attacks.main(wrong) == 2
    assert "error: " in capsys.readouterr().err
