"""`inversefed inspect --update`: what is wrong is said, as JSON too, and by the exit status; audit refuses it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from inversefed.cli import main
from inversefed.updates.metadata import read_metadata
from inversefed.updates.update import read_update
from inversefed.zoo import networks, pictures

SETTING = [
    "--network",
    "LeNetZhu",
    "--weights",
    "before.safetensors",
    "--image-shape",
    "3",
    "32",
    "32",
    "--mean",
    "0.5",
]
BASE = ["inspect", *SETTING, "--std", "0.25"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.Tensor]:
    """A client of its own: weights and a gradient of one photograph, made in plain PyTorch."""
    monkeypatch.chdir(tmp_path)
    module = networks.build("LeNetZhu", seed=7).eval()
    save_file(module.state_dict(), "before.safetensors")
    image = pictures.read_picture(pictures.photo_path("chelsea"), (3, 32, 32))[None]
    loss = nn.functional.cross_entropy(module((image - 0.5) / 0.25), torch.tensor([3]))
    names, weights = zip(*module.named_parameters(), strict=True)
    gradients = dict(zip(names, torch.autograd.grad(loss, weights), strict=True))
    save({name: w.detach() - 0.1 * gradients[name] for name, w in zip(names, weights, strict=True)}, "after")
    return gradients


def save(update: dict[str, torch.Tensor], name: str = "update", **stated: str) -> None:
    save_file({n: part.contiguous() for n, part in update.items()}, f"{name}.safetensors", stated or None)


def inspected(capsys: pytest.CaptureFixture, *options: str) -> tuple[int, dict]:
    status = main([*BASE, *options, "--json"])
    return status, json.loads(capsys.readouterr().out)


def test_a_good_update_is_diagnosed_and_counted(elsewhere: dict, capsys: pytest.CaptureFixture) -> None:
    save(elsewhere, kind="gradient", num_examples="1")
    status, told = inspected(capsys, "--update", "update.safetensors")
    assert status == 0 and {finding["level"] for finding in told["findings"]} == {"info"}
    assert set(told["findings"][0]) == {"code", "level", "message", "evidence"}
    assert told["identifiability"]["verdict"] == "determined"
    assert main([*BASE, "--update", "update.safetensors"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("findings") and "Self-test passed" in out and "determined" in out

    after = ["--after", "after.safetensors", "--learning-rate", "0.1", "--local-steps", "1", "--num-examples", "1"]
    status, told = inspected(capsys, *after)
    assert status == 0 and {finding["level"] for finding in told["findings"]} == {"info"}
    status, told = inspected(capsys, *after[:2], "--learning-rate", "0.001", *after[4:])
    assert status == 2 and told["findings"][0]["code"] == "scale"


def test_an_error_is_the_exit_status_and_audit_refuses_it(elsewhere: dict, capsys: pytest.CaptureFixture) -> None:
    save({name: -part for name, part in elsewhere.items()}, kind="gradient", num_examples="1")
    status, told = inspected(capsys, "--update", "update.safetensors")
    assert status == 2 and told["identifiability"] is None
    assert (told["findings"][0]["code"], told["findings"][0]["level"]) == ("sign", "error")
    audit = ["audit", *SETTING, "--std", "0.25", "--update", "update.safetensors", "--max-iterations", "2"]
    assert main([*audit, "--output", "out"]) == 2
    assert "sign is wrong" in capsys.readouterr().err and not Path("out", "report.json").exists()


@pytest.mark.parametrize("broken", ["renamed", "junk", "missing", "pickle"])
def test_the_json_is_valid_whatever_the_file_is(elsewhere: dict, broken: str, capsys: pytest.CaptureFixture) -> None:
    file = "update.pt" if broken == "pickle" else "update.safetensors"
    if broken == "renamed":
        save({f"module.{name}x": part for name, part in elsewhere.items()}, kind="gradient")
    elif broken != "missing":
        Path(file).write_bytes(b"\x80\x02cos\nsystem\n(S'true'\ntR." if broken == "pickle" else b"\xff" * 99)
    status, told = inspected(capsys, "--update", file)
    assert status == 2 and told["identifiability"] is None
    assert [(finding["code"], finding["level"]) for finding in told["findings"]] == [("names", "error")]


def test_an_example_of_the_owners_is_compared(elsewhere: dict, capsys: pytest.CaptureFixture) -> None:
    save(elsewhere, kind="gradient", num_examples="1")
    chelsea = ["--example", str(pictures.photo_path("chelsea")), "--example-label", "3"]
    status, told = inspected(capsys, "--update", "update.safetensors", *chelsea)
    assert status == 0 and any("of the example" in finding["message"] for finding in told["findings"])
    wrong = [*BASE[:-2], "--std", "1", "--update", "update.safetensors", "--json"]
    assert main([*wrong, *chelsea]) == 2
    found = json.loads(capsys.readouterr().out)["findings"][0]
    assert found["code"] == "normalization" and "--mean 0.5 --std 0.25" in found["message"]
    assert main([*BASE, "--update", "update.safetensors", *chelsea[:2]]) == 2
    assert "--example-label" in capsys.readouterr().err
    assert main([*BASE[:1], "--network", "LeNetZhu", *chelsea]) == 2


def test_an_update_that_is_made_here_is_counted_as_before(capsys: pytest.CaptureFixture) -> None:
    assert main(["inspect", "--network", "LeNetZhu", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["findings"] == [] and told["identifiability"]["verdict"] == "determined"


@pytest.mark.parametrize(
    ("entry", "value", "better", "code", "says"),
    [
        ("num_examples", "0", "1", "scale", "a whole number from 1"),
        ("num_examples", "1.5", "1", "scale", "a whole number from 1"),
        ("num_examples", "1000000", "1", "scale", "repeat the number as --num-examples"),
        ("learning_rate", "nan", "0.1", "scale", "give --learning-rate"),
        ("kind", "deltas", "gradient", "scale", "gradient, weight_delta, new_weights"),
        ("bn_mode", "on", "eval", "batchnorm-train-mode", "give --bn-mode"),
    ],
)
def test_an_option_mends_what_the_file_says_wrongly_of_itself(
    elsewhere: dict, entry: str, value: str, better: str, code: str, says: str, capsys: pytest.CaptureFixture
) -> None:
    wrong = {"kind": "gradient", "num_examples": "1", entry: value}
    save(elsewhere, **wrong)
    option = [f"--{entry.replace('_', '-')}", better]
    status, told = inspected(capsys, "--update", "update.safetensors")
    first = told["findings"][0]
    assert status == 2 and (first["code"], first["level"]) == (code, "error") and says in first["message"]
    status, told = inspected(capsys, "--update", "update.safetensors", *option)
    assert status == 0 and {finding["level"] for finding in told["findings"]} == {"info"}
    assert main(["convert", "update.safetensors", "mended.safetensors", "--quiet", *option]) == 0
    assert read_update("mended.safetensors").metadata == read_metadata(wrong | {entry: better})


def test_as_many_examples_as_its_user_says_are_looked_for(elsewhere: dict, capsys: pytest.CaptureFixture) -> None:
    save(elsewhere, kind="gradient")
    status, told = inspected(capsys, "--update", "update.safetensors", "--num-examples", "6000")
    assert told["identifiability"]["examples"] == 6000 and status == 0
    assert told["identifiability"]["verdict"] == "underdetermined"


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        (["--std", "0"], "normalization", "std must be positive"),
        (["--std", "1", "1"], "normalization", "one a channel"),
        (["--image-shape", "3", "0", "32"], "shapes", "--image-shape"),
        (["--image-shape", "3", "16", "16"], "shapes", "built for 32x32 pictures"),
        (["--weights", "none.safetensors"], "names", "none.safetensors"),
        (["--network", "factories:fails"], "shapes", "factories:fails raised KeyError"),
        (["--network", "factories:needs"], "shapes", "called without arguments"),
        (["--network", "broken:make"], "names", "cannot import"),
        (["--learning-rate", "-1"], "scale", "learning_rate must be"),
        (["--after", "after.safetensors"], "names", "give one of them"),
        (["--client", "FedAvg()"], "scale", "--kind or --client"),
    ],
)
def test_options_that_cannot_be_are_a_finding_in_json_and_an_error_in_words(
    elsewhere: dict, options: list[str], code: str, says: str, capsys: pytest.CaptureFixture
) -> None:
    save(elsewhere, kind="gradient", num_examples="1")
    Path("factories.py").write_text("def fails():\n    raise KeyError('width')\ndef needs(width):\n    return width\n")
    Path("broken.py").write_text("raise RuntimeError('not here')\n")
    status, told = inspected(capsys, "--update", "update.safetensors", *options)
    first = told["findings"][0]
    assert status == 2 and (first["code"], first["level"]) == (code, "error") and says in first["message"]
    assert "cannot be read" not in first["message"]
    assert main([*BASE, "--update", "update.safetensors", *options]) == 2
    said = capsys.readouterr()
    assert says in " ".join((said.out + said.err).split())


def test_what_was_found_is_said_even_where_the_network_cannot_be_counted(
    elsewhere: dict, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(observation: object) -> None:
        raise ValueError("my forward is broken")

    monkeypatch.setattr("inversefed.cli.inspect.identify", fails)
    save(elsewhere, kind="gradient", num_examples="1")
    status, told = inspected(capsys, "--update", "update.safetensors")
    assert status == 0 and told["findings"] and told["identifiability"] is None
    assert main([*BASE, "--update", "update.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "Self-test passed" in out and "Not counted" in out and "my forward is broken" in out
