"""An update made elsewhere, from the shell: the picture comes back, and what contradicts itself is refused."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from inversefed.cli import main
from inversefed.zoo import networks, pictures

SHAPE = ["--image-shape", "3", "32", "32", "--mean", "0.5", "--std", "0.25"]
BASE = ["audit", "--network", "LeNetZhu", "--weights", "before.safetensors", *SHAPE, "--overwrite", "--nulls", "0"]
QUICK = [*BASE, "--output", "out", "--quiet", "--max-iterations", "2", "--attack", "geiping"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client of its own: weights, a gradient and new weights, made in plain PyTorch."""
    monkeypatch.chdir(tmp_path)
    module = networks.build("LeNetZhu", seed=7).eval()
    save_file(module.state_dict(), "before.safetensors")
    image = pictures.read_picture(pictures.photo_path("chelsea"), (3, 32, 32))[None]
    loss = nn.functional.cross_entropy(module((image - 0.5) / 0.25), torch.tensor([3]))
    names, weights = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, weights)
    save_file(dict(zip(names, gradients, strict=True)), "update.safetensors", {"kind": "gradient", "client": "17"})
    moved = {name: (w - 0.1 * g).detach() for name, w, g in zip(names, weights, gradients, strict=True)}
    torch.save(moved, "after.pt")


def read(folder: str) -> dict:
    return json.loads(Path(folder, "report.json").read_text())


def test_a_gradient_made_elsewhere_gives_its_picture_back(capsys: pytest.CaptureFixture) -> None:
    truth = ["--truth", str(pictures.photo_path("chelsea"))]
    assert main([*BASE, "--update", "update.safetensors", *truth, "--labels", "3", "--output", "one"]) == 0
    found = read("one")
    assert found["scores"]["peak_signal_noise_ratio"][0] > 40
    assert found["scores"]["label_accuracy"] == [1.0]
    assert found["scenario"]["client"] == "FedSGD()" and found["scenario"]["num_examples"] == 1
    assert "target_00.png" in {path.name for path in Path("one").iterdir()}

    assert main([*BASE, "--after", "after.pt", "--learning-rate", "0.1", *truth, "--output", "two", "--quiet"]) == 0
    found = read("two")
    assert found["scores"]["peak_signal_noise_ratio"][0] > 40
    assert "label_accuracy" not in found["scores"], "nobody told the labels"
    assert found["scenario"]["client"].startswith("FedAvg(local_steps=1, lr=0.1")


def test_without_a_truth_there_is_a_picture_and_no_score(capsys: pytest.CaptureFixture) -> None:
    assert main([*QUICK, "--update", "update.safetensors"]) == 0
    found = read("out")
    assert found["scores"] == {} and found["labels"] == {"recovered": [3], "true": None}
    assert "reconstruction_00.png" in {path.name for path in Path("out").iterdir()}
    assert "num-examples-assumed" in [finding["code"] for finding in found["findings"]]


def test_weights_are_read_with_the_same_care(capsys: pytest.CaptureFixture) -> None:
    class Runs:
        def __reduce__(self) -> tuple:
            return os.system, ("touch ran",)

    torch.save({"conv0.weight": Runs()}, "weights.pt")
    np.savez_compressed("weights.npz", **{"conv0.weight": np.zeros(2**22, dtype=np.float32)})
    for name in ("weights.pt", "weights.npz"):
        assert main([*QUICK, "--update", "update.safetensors", "--weights", name]) == 2
        assert "was refused" in capsys.readouterr().err
    assert not Path("ran").exists() and not Path("out").exists()


def test_a_part_of_an_update_is_attacked_as_a_part() -> None:
    tensors = {name: part for name, part in load_file("update.safetensors").items() if name.startswith("linear")}
    save_file(tensors, "part.safetensors")
    assert main([*QUICK, "--update", "part.safetensors"]) == 2
    assert main([*QUICK, "--update", "part.safetensors", "--client", "Shares(FedSGD(), ('linear.*',))"]) == 0


def test_options_win_over_the_file() -> None:
    told = ["--kind", "weight_delta", "--learning-rate", "0.5", "--local-steps", "2", "--num-examples", "2"]
    assert main([*QUICK, "--update", "update.safetensors", *told, "--momentum", "0.9"]) == 0
    found = read("out")
    assert found["scenario"]["client"].startswith("FedAvg(local_steps=2, lr=0.5")
    assert "momentum=0.9" in found["scenario"]["client"] and found["scenario"]["num_examples"] == 2
    assert main(["audit", "--config", "out/report.json", "--output", "again", "--quiet"]) == 0
    assert read("again")["scenario"] == found["scenario"]


def test_the_option_that_a_refusal_of_a_part_names_audits_it(capsys: pytest.CaptureFixture) -> None:
    weights = {name: part.half() for name, part in torch.load("after.pt").items() if not name.startswith("conv1")}
    torch.save(weights, "part.pt")
    for rate in (["--learning-rate", "0.1"], []):
        told = [*QUICK, "--after", "part.pt", *rate]
        assert main(told) == 2
        said = capsys.readouterr().err
        written = re.search('--client "(.*?)"( --unknown-client)?', said)
        assert "leaves out 'conv1.weight' and 1 more" in said and (written[2] is None) == bool(rate)
        attack = ["--attack", "surrogate"] if written[2] else []
        assert main([*told, "--client", written[1], *(written[2] or "").split(), *attack]) == 0, capsys.readouterr().err
        found = [finding["code"] for finding in read("out")["findings"]]
        assert "kind-assumed" not in found and "local-steps-assumed" not in found


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--update", "none.safetensors"], "cannot open none.safetensors"),
        (["--update", "update.safetensors", "--after", "after.pt"], "give one of them"),
        (["--update", "update.safetensors", "--defenses", "Clip(1.0)"], "made here"),
        (["--after", "after.pt", "--kind", "gradient"], "--kind says gradient"),
        (["--learning-rate", "0.1"], "--learning-rate tells of an update made elsewhere"),
        (["--update", "update.safetensors", "--learning-rate", "-1"], "learning_rate must be a number above 0"),
        (["--update", "update.safetensors", "--known-labels"], "--labels"),
        (["--update", "update.safetensors", "--client", "FedAvg()"], "kind gradient"),
        (["--update", "update.safetensors", "--num-classes", "7"], "does not fit"),
        (["--update", "renamed.safetensors"], r"'\x3cscript\x3ealert(1)\x3c/script\x3e' is not in the network"),
    ],
)
def test_what_contradicts_itself_is_refused(options: list[str], message: str, capsys: pytest.CaptureFixture) -> None:
    tensors = load_file("update.safetensors")
    save_file({**tensors, "<script>alert(1)</script>": torch.zeros(1)}, "renamed.safetensors")
    assert main([*QUICK, *options]) == 2
    assert message in capsys.readouterr().err
    assert not Path("out").exists()
