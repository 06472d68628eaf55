"""A loop that is recorded: its update is what the described client makes, and the loop is left as it was."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import inversefed
from inversefed import FedSGD
from inversefed.cli import main
from inversefed.updates.update import read_update
from inversefed.zoo import networks, pictures

MEAN, STD = 0.5, 0.25
SIZE = 16


@pytest.fixture(scope="module")
def photos() -> tuple[Tensor, Tensor]:
    """24 pictures, the bundled photographs and their mirror images, with labels."""
    first = torch.stack([pictures.photo(name, (3, SIZE, SIZE)) for name in pictures.photo_names()])
    images = torch.cat([first, first.flip(-1), first.flip(-2)])
    return images, torch.arange(len(images)) % 5


def plain() -> nn.Module:
    torch.manual_seed(3)
    layers = (nn.Conv2d(3, 6, 3, 2, 1), nn.Sigmoid(), nn.Conv2d(6, 6, 3, 2, 1), nn.Sigmoid())
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(96, 5)).eval()


def loop(
    model: nn.Module, optimizer: torch.optim.Optimizer, photos: tuple[Tensor, Tensor], sizes: list[list[int]]
) -> Iterator[None]:
    """A usual loop: `sizes` are the micro-batches of each step."""
    images, labels = photos
    start = 0
    for parts in sizes:
        optimizer.zero_grad()
        for size in parts:
            these = slice(start, start + size)
            loss = F.cross_entropy(model((images[these] - MEAN) / STD), labels[these])
            (loss / len(parts)).backward()
            start += size
        optimizer.step()
        yield


def test_a_step_of_sgd_is_written_and_audited_from_the_shell(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    module = networks.build("LeNetZhu", seed=7).eval()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    image = pictures.photo("chelsea", (3, 32, 32))[None]
    with inversefed.capture(module, optimizer, folder=tmp_path / "step") as update:
        loss = F.cross_entropy(module((image - MEAN) / STD), torch.tensor([3]))
        loss.backward()
        optimizer.step()
    assert capsys.readouterr() == ("", "")
    assert sorted(path.name for path in (tmp_path / "step").iterdir()) == ["before.safetensors", "update.safetensors"]
    told = read_update(tmp_path / "step" / "update.safetensors").metadata
    assert told == update.metadata and update.client == FedSGD()

    words = shlex.split(update.command("LeNetZhu", MEAN, STD))
    assert words[0] == "inversefed"
    truth = ["--truth", str(pictures.photo_path("chelsea")), "--labels", "3"]
    assert main([*words[1:], *truth, "--output", str(tmp_path / "out"), "--quiet"]) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["scores"]["peak_signal_noise_ratio"][0] > 40
    assert found["scores"]["label_accuracy"] == [1.0]
