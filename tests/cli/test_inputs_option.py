"""Any input space from the shell: said by --inputs, its examples in a file of tensors."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from inversefed.cli import main
from inversefed.fl.clients import FedSGD
from inversefed.fl.network import freeze
from inversefed.inputs import Tokens
from inversefed.updates.metadata import Metadata
from inversefed.updates.update import Update, write_update
from inversefed.zoo.networks.language import Bert

SENTENCES = Tokens(length=8, vocabulary=40)
IDS, LABELS = SENTENCES.ids([[7, 21, 7, 30]]), torch.tensor([2])


def bert() -> nn.Module:
    """What --network names."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Bert(vocabulary=40, length=8, num_classes=3).eval()


def windows() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))


NETWORK, INPUTS = ["--network", f"{__name__}:bert"], ["--inputs", repr(SENTENCES)]


@pytest.fixture
def batch(tmp_path: Path) -> Path:
    save_file({"inputs": IDS, "labels": LABELS}, tmp_path / "batch.safetensors")
    return tmp_path / "batch.safetensors"


def test_a_sentence_is_audited_and_again_from_the_report(tmp_path: Path, batch: Path) -> None:
    shell = ["audit", *NETWORK, *INPUTS, "--batch", str(batch), "--nulls", "0", "--quiet"]
    assert main([*shell, "--output", str(tmp_path / "run")]) == 0
    report = tmp_path / "run" / "report.json"
    assert main(["audit", "--config", str(report), "--trust-code", "--quiet", "--output", str(tmp_path / "on")]) == 0
    first, again = (json.loads((tmp_path / each / "report.json").read_text()) for each in ("run", "on"))
    for found in (first, again):
        assert found["scores"]["exact_sentences"] == [1] and found["labels"]["recovered"] == [2]
    assert first["scenario"]["hash"] == again["scenario"]["hash"]


def test_an_update_of_a_sentence_says_what_it_was_fed(
    tmp_path: Path, batch: Path, capsys: pytest.CaptureFixture
) -> None:
    update = FedSGD()(freeze(bert(), SENTENCES), IDS, LABELS)
    for inputs in ("tokens", "columns"):
        told = Metadata(kind="gradient", num_examples=1, inputs=inputs)
        write_update(tmp_path / f"{inputs}.safetensors", Update(update, told))
    shell = ["audit", *NETWORK, *INPUTS, "--truth", str(batch), "--nulls", "0", "--quiet"]
    tokens, columns = (["--update", str(tmp_path / f"{each}.safetensors")] for each in ("tokens", "columns"))
    assert main([*shell, *tokens, "--output", str(tmp_path / "run")]) == 0
    assert json.loads((tmp_path / "run" / "report.json").read_text())["scores"]["exact_sentences"] == [1]
    assert main([*shell, *columns, "--output", str(tmp_path / "no")]) == 2
    assert "fed columns, and the audit takes tokens" in capsys.readouterr().err
    assert main(["inspect", *NETWORK, *INPUTS, *tokens]) == 0
    assert "embedding_rows applies" in capsys.readouterr().out


def test_a_window_of_a_series_is_audited(tmp_path: Path) -> None:
    random = torch.Generator().manual_seed(0)
    save_file(
        {"inputs": torch.rand(1, 1, 64, generator=random), "labels": torch.tensor([3])}, tmp_path / "s.safetensors"
    )
    shell = ["audit", "--network", f"{__name__}:windows", "--inputs", "Series(channels=1, length=64)", "--nulls", "0"]
    given = ["--batch", str(tmp_path / "s.safetensors"), "--quiet", "--output", str(tmp_path / "run")]
    assert main([*shell, *given]) == 0
    assert json.loads((tmp_path / "run" / "report.json").read_text())["verdict"]["answer"] == "recovered"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--batch", "{batch}"], "say by --inputs what they are"),
        (["--inputs", "Tokens(length=8, vocabulary=40)"], "--batch, of tensors"),
        (["--inputs", "Tokens(length=8, vocabulary=20)", "--batch", "{batch}"], "from 0 to 19"),
        (["--inputs", "Tokens(8)", "--batch", "{batch}"], "vocabulary"),
        (["--inputs", "Sentences(8)", "--batch", "{batch}"], "Tokens"),
        (["--inputs", "Tokens(length=8, vocabulary=40)", "--batch", "{other}"], "holds pictures"),
        (["--inputs", "Tokens(length=8, vocabulary=40)", "--batch", "nowhere.safetensors"], "nowhere"),
    ],
)
def test_what_cannot_be_is_told(
    tmp_path: Path, batch: Path, capsys: pytest.CaptureFixture, given: list[str], message: str
) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"pictures": torch.zeros(2)}, other)
    words = [each.format(batch=batch, other=other) for each in given]
    assert main(["audit", *NETWORK, *words, "--output", str(tmp_path / "run")]) != 0
    assert message in capsys.readouterr().err
