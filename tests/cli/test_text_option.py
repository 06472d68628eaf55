"""Sentences from the shell: a text file, a sentence a line, by a tokenizer.json that is trained here."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from inversefed.cli import main
from inversefed.fl.clients import FedSGD
from inversefed.fl.losses import NextToken
from inversefed.fl.network import freeze
from inversefed.inputs import Tokens
from inversefed.specs.written import written
from inversefed.updates.metadata import Metadata
from inversefed.updates.update import Update, write_update
from inversefed.zoo import networks

tokenizers = pytest.importorskip("tokenizers", reason="tokenizers is in the test group")

LINES = ("the quick brown fox jumps over the lazy dog", "my account number is four seven one")
SPACE = Tokens(length=12, vocabulary=24)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of whole words, as BERT's files have it: [CLS] and [SEP] around, [PAD] behind."""
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    made.train_from_iterator(LINES, tokenizers.trainers.WordLevelTrainer(special_tokens=special))
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_padding(length=40)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    made.save(str(path))
    return path


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "private.txt").write_text("\n".join(LINES) + "\n", encoding="utf-8")
    return tmp_path / "private.txt"


def report_of(folder: Path) -> dict:
    return json.loads((folder / "report.json").read_text())


def test_sentences_of_a_file_are_audited_and_again_from_the_report(tmp_path: Path, text: Path, tokenizer: Path) -> None:
    shell = ["audit", "--network", "Bert:64", "--text", str(text), "--tokenizer", str(tokenizer), "--nulls", "0", "-q"]
    assert main([*shell, "--labels", "2", "0", "--output", str(tmp_path / "run")]) == 0
    report = tmp_path / "run" / "report.json"
    assert main(["audit", "--config", str(report), "--quiet", "--output", str(tmp_path / "on")]) == 0
    first, again = (report_of(tmp_path / each) for each in ("run", "on"))
    for found in (first, again):
        assert found["scores"]["exact_sentences"] == [1, 1] and sorted(found["labels"]["recovered"]) == [0, 2]
        assert found["scenario"]["inputs"] == "Tokens(length=11, vocabulary=19, pad=0)"
    assert first["scenario"]["hash"] == again["scenario"]["hash"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(f">{word}<" in page for line in LINES for word in line.split()) and ">[CLS]<" in page


@pytest.mark.parametrize("given", [[], ["--inputs", "Tokens(length=12, vocabulary=24)"]])
def test_sentences_of_a_language_model_need_no_labels(
    tmp_path: Path, text: Path, tokenizer: Path, given: list[str]
) -> None:
    shell = ["audit", "--network", "Gpt", "--loss", "NextToken", "--text", str(text), "--tokenizer", str(tokenizer)]
    assert main([*shell, *given, "--nulls", "0", "-q", "--output", str(tmp_path / "run")]) == 0
    found = report_of(tmp_path / "run")
    assert found["scores"]["exact_sentences"] == [1, 1] and found["scores"]["label_accuracy"] == [1, 1]
    page = (tmp_path / "run" / "report.html").read_text()
    assert ">Sentence 0</th>" in page and ">fox<" in page


def test_sentences_behind_an_update_are_read_and_longer_ones_keep_their_end(tmp_path: Path, tokenizer: Path) -> None:
    module, space = networks.transformer("Gpt", 24, 6, 0, None, seed=0).eval(), Tokens(length=6, vocabulary=24)
    made = tokenizers.Tokenizer.from_file(str(tokenizer))
    made.no_padding()
    made.enable_truncation(6)
    ids = space.ids([made.encode(LINES[0]).ids])
    assert ids[0, 0] == 2 and ids[0, -1] == 3
    update = FedSGD()(freeze(module, space, loss=NextToken()), ids, ids)
    write_update(tmp_path / "u.safetensors", Update(update, Metadata(kind="gradient", num_examples=1, inputs="tokens")))
    save_file(module.state_dict(), tmp_path / "w.safetensors")
    (tmp_path / "truth.txt").write_text(LINES[0])
    network = ["--network", "Gpt", "--weights", str(tmp_path / "w.safetensors"), "--loss", "NextToken"]
    shell = [
        *network,
        "--tokenizer",
        str(tokenizer),
        "--inputs",
        repr(space),
        "--update",
        str(tmp_path / "u.safetensors"),
    ]
    truth = ["--truth", str(tmp_path / "truth.txt"), "--nulls", "0", "-q", "--output", str(tmp_path / "run")]
    assert main(["audit", *shell, *truth]) == 0
    found = report_of(tmp_path / "run")
    assert found["scores"]["exact_sentences"] == [1]
    page = (tmp_path / "run" / "report.html").read_text()
    assert all(f">{word}<" in page for word in ("[CLS]", *LINES[0].split()[:4], "[SEP]")) and ">jumps<" not in page


def test_inspect_and_gate_take_sentences(
    tmp_path: Path, text: Path, tokenizer: Path, capsys: pytest.CaptureFixture
) -> None:
    shell = ["--network", "Gpt", "--text", str(text), "--tokenizer", str(tokenizer), "--labels", "1", "0"]
    assert main(["inspect", *shell]) == 0
    assert "token_span applies" in capsys.readouterr().out
    assert main(["gate", *shell, "--nulls", "0", "--output", str(tmp_path / "run")]) == 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--text", "{text}"], "--tokenizer FILE, a tokenizer.json"),
        (["--tokenizer", "{tokenizer}"], "how long sentences are"),
        (["--tokenizer", "{tokenizer}", "--inputs", "Tokens(8, 19)"], "--text, of sentences, for an update that"),
        (["--text", "{text}", "--tokenizer", "{text}"], "is no tokenizer.json"),
        (["--text", "{text}", "--tokenizer", "nowhere.json"], "no such file"),
        (["--text", "{gap}", "--tokenizer", "{tokenizer}"], "line 2 of gap.txt is empty"),
        (["--text", "{text}", "--tokenizer", "{bare}"], "does not say which token fills sentences up"),
        (["--text", "{text}", "--tokenizer", "{tokenizer}", "--labels", "1"], "1 labels for 2 sentences"),
        (["--text", "{text}", "--tokenizer", "{tokenizer}", "--inputs", "Series(1, 8)"], "ids of sentences"),
        (["--text", "{text}", "--tokenizer", "{tokenizer}", "--inputs", "Tokens(8, 9)"], "has 19 tokens"),
        (["--text", "{text}", "--tokenizer", "{tokenizer}", "--network", "Bert:9"], "a multiple of 8"),
        (["--text", "{text}", "--tokenizer", "{tokenizer}", "--network", "LeNetZhu"], "--network Bert"),
        (["--text", "{text}", "--tokenizer", "{tokenizer}", "--loss", "NextToken"], "Gpt or Llama"),
        (["--images", "{text}"], "Bert takes sentences and no pictures"),
    ],
)
def test_what_cannot_be_is_told(
    tmp_path: Path, text: Path, tokenizer: Path, capsys: pytest.CaptureFixture, given: list[str], message: str
) -> None:
    (tmp_path / "gap.txt").write_text("one\n\ntwo")
    bare = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    bare.save(str(tmp_path / "bare.json"))
    paths = {"text": text, "tokenizer": tokenizer, "gap": tmp_path / "gap.txt", "bare": tmp_path / "bare.json"}
    words = [each.format(**paths) for each in given]
    network = [] if "--network" in given else ["--network", "Bert"]
    assert main(["audit", *network, *words, "--output", str(tmp_path / "run")]) == 2
    assert message in capsys.readouterr().err


def test_a_library_that_is_missing_is_named(
    text: Path, tokenizer: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    assert main(["audit", "--network", "Bert", "--text", str(text), "--tokenizer", str(tokenizer)]) == 2
    assert "pip install 'inversefed[text]'" in capsys.readouterr().err


def test_a_tokenizer_of_the_program_is_no_part_of_the_record() -> None:
    class Own:
        def encode(self, text: str) -> list[int]:
            return [len(each) for each in text.split()]

        def decode(self, token_ids: list[int]) -> str:
            return " ".join("x" * each for each in token_ids)

    assert written(Tokens(8, 40, tokenizer=Own())) == written(Tokens(8, 40)) == repr(Tokens(8, 40))
    assert torch.equal(Tokens(4, 40, tokenizer=Own()).encode(["to be or"]), torch.tensor([[2, 2, 2, 0]]))
