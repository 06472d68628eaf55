"""LPIPS against torchmetrics, which has random trunks without a download, and its files against hostile ones."""

import hashlib
import importlib.util
import json
import os
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchmetrics.functional.image.lpips import _LPIPS

from inversefed.cli import main
from inversefed.errors import InputError
from inversefed.evaluation.lpips import METRIC, read_perceptual
from inversefed.evaluation.lpips_networks import TRUNKS
from inversefed.report.perceptual import judged

NETS = ("alex", "squeeze", "vgg")
ST_LPIPS = "b356b382f96010f77d085ee8343ecd9fd322d0a56e8de2b2d0549fafcad8b9ee"


def pair(side: int = 48, channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    target = torch.rand(2, channels, side, side, generator=random)
    return (target + 0.2 * torch.randn(target.shape, generator=random)).clamp(0, 1), target


def trunk_of(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The convolutions under torchvision's names."""
    found = {name: value for name, value in module.state_dict().items() if name.startswith("net.slice")}
    return {"features." + re.sub(r"net\.slices?\.?\d\.", "", name): value for name, value in found.items()}


def st_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(2)
    shapes = {"1.0": (64, 3, 11, 11), "2.5": (192, 64, 5, 5), "3.9": (384, 192, 3, 3), "4.11": (256, 384, 3, 3)}
    shapes["5.13"] = (256, 256, 3, 3)
    found = {f"net.slice{name}.weight": 0.05 * torch.randn(shape) for name, shape in shapes.items()}
    found |= {f"net.slice{name}.bias": torch.randn(shape[0]) for name, shape in shapes.items()}
    lins = {f"lin{i}.model.1.weight": torch.rand(1, s[0], 1, 1) for i, s in enumerate(shapes.values())}
    return found | lins


@pytest.fixture(scope="module")
def alex() -> torch.nn.Module:
    torch.manual_seed(1)
    return _LPIPS(pretrained=True, net="alex", pnet_rand=True, eval_mode=True)


@pytest.mark.parametrize("net", NETS)
def test_each_network_gives_what_torchmetrics_gives(net, tmp_path):
    torch.manual_seed(1)
    reference = _LPIPS(pretrained=True, net=net, pnet_rand=True, eval_mode=True)
    torch.save(trunk_of(reference), tmp_path / "trunk.pth")
    torch.save(reference.state_dict(), tmp_path / "whole.pth")
    found, target = pair()
    with torch.no_grad():
        expected = reference(2 * found - 1, 2 * target - 1).flatten()
    lpips = {
        re.sub(r"slices\.(\d)", lambda m: f"slice{int(m[1]) + 1}", k): v for k, v in reference.state_dict().items()
    }
    torch.save(lpips, tmp_path / "lpips.pth")
    for file in ("trunk.pth", "whole.pth", "lpips.pth"):
        perceptual = read_perceptual([tmp_path / file])
        assert perceptual.name == f"LPIPS ({net})"
        torch.testing.assert_close(perceptual(found, target), expected, rtol=1e-4, atol=1e-6)
        assert perceptual(target, target).tolist() == [0.0, 0.0] and (expected > 1e-4).all()


def test_the_hash_is_that_of_the_file_and_both_formats_say_the_same(alex, tmp_path):
    torch.save(trunk_of(alex), tmp_path / "a.pth")
    save_file({name: value.clone() for name, value in trunk_of(alex).items()}, tmp_path / "a.safetensors")
    one, two = (read_perceptual([tmp_path / name]) for name in ("a.pth", "a.safetensors"))
    assert one.sha256 == (hashlib.sha256((tmp_path / "a.pth").read_bytes()).hexdigest(),)
    torch.testing.assert_close(one(*pair()), two(*pair()))


def test_own_channel_weights_beside_the_network(alex, tmp_path):
    torch.save(trunk_of(alex), tmp_path / "trunk.pth")
    heads = {
        f"lin{depth}.model.1.weight": torch.ones(1, n, 1, 1) for depth, n in enumerate(TRUNKS["LPIPS (alex)"].channels)
    }
    torch.save(heads, tmp_path / "heads.pth")
    both = read_perceptual([tmp_path / "trunk.pth", tmp_path / "heads.pth"])
    assert len(both.sha256) == 2 and (both(*pair()) > read_perceptual([tmp_path / "trunk.pth"])(*pair())).all()


def test_the_shift_tolerant_one_is_told_apart_and_named_so(tmp_path):
    torch.save(st_weights(), tmp_path / "st.pth")
    perceptual = read_perceptual([tmp_path / "st.pth"])
    found, target = pair(32)
    assert perceptual.name == "ST-LPIPS (alex)" and (perceptual(found, target) > 0).all()
    assert perceptual(target, target).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("name", TRUNKS)
def test_the_smallest_side_is_the_smallest_that_works(name):
    trunk = TRUNKS[name]
    shapes = {"LPIPS (vgg)": 3, "LPIPS (squeeze)": 3}
    weights = random_weights(name, shapes.get(name, 11))
    features = trunk.features(weights, torch.rand(1, 3, trunk.least, trunk.least))
    assert [layer.shape[1] for layer in features] == list(trunk.channels)
    if name != "ST-LPIPS (alex)":  # whose authors ask for 32
        with pytest.raises(RuntimeError):
            trunk.features(weights, torch.rand(1, 3, trunk.least - 1, trunk.least - 1))


def random_weights(name: str, kernel: int) -> dict[str, torch.Tensor]:
    if name == "ST-LPIPS (alex)":
        return TRUNKS[name].convolutions(st_weights())
    torch.manual_seed(0)
    net = name.split("(")[1][:-1]
    return TRUNKS[name].convolutions(_LPIPS(pretrained=False, net=net, pnet_rand=True).state_dict())


def test_gray_is_taken_as_color_and_other_pictures_are_refused(alex, tmp_path):
    torch.save(trunk_of(alex), tmp_path / "a.pth")
    perceptual = read_perceptual([tmp_path / "a.pth"])
    found, target = pair(channels=1)
    expanded = perceptual(found.expand(-1, 3, -1, -1), target.expand(-1, 3, -1, -1))
    torch.testing.assert_close(perceptual(found, target), expanded)
    for images, message in ((pair(16)[0], "smaller than 31"), (pair(channels=2)[0], "2 channels")):
        with pytest.raises(InputError, match=message):
            perceptual(images, images)


def test_a_report_has_it_with_the_controls_beside_it_or_says_why_not(report, alex, tmp_path):
    bare = report(1)
    assert "Learned perceptual distance: not computed (no weights)." in bare.to_html()
    assert "not computed (no weights)" in bare.to_markdown()
    torch.save(trunk_of(alex), tmp_path / "a.pth")
    perceptual = read_perceptual([tmp_path / "a.pth"])
    small = judged(bare, perceptual)
    assert METRIC not in small.scores and "smaller than 31" in small.to_dict()["not_computed"][METRIC]
    large = torch.nn.functional.interpolate(bare.truth.images, scale_factor=2)
    truth = replace(bare.truth, images=large)
    found = judged(replace(bare, truth=truth, reconstruction=replace(bare.reconstruction, images=large)), perceptual)
    assert found.scores[METRIC].tolist() == [0.0] and found.baselines["gray"][METRIC].item() > 0
    assert perceptual.sha256[0] in found.to_html() and "not computed" not in found.to_html()
    assert METRIC not in bare.scores and found.to_dict()["not_computed"] == {}
    no_truth = judged(report(1, truth=None, permutation=None, scores={}, baselines={}), perceptual)
    assert no_truth.not_computed[METRIC] == "no truth"


def test_from_the_shell(alex, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.save(trunk_of(alex), "a.pth")
    audit = ["audit", "--attack", "geiping", "--max-iterations", "2", "--quiet"]
    assert main([*audit, "--lpips-weights", "a.pth", "--output", "one"]) == 0
    content = json.loads(Path("one/report.json").read_text())
    assert content["scores"][METRIC][0] > 0 and METRIC in content["baselines"]["gray"]
    assert hashlib.sha256(Path("a.pth").read_bytes()).hexdigest() in content["environment"]["perceptual"]
    assert main([*audit, "--lpips-weights", "none.pth", "--output", "two"]) == 2
    assert "cannot read the weights none.pth" in capsys.readouterr().err and not Path("two").exists()


class Payload:
    def __reduce__(self):
        return os.system, ("touch ran",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (pickle.dumps(Payload()), "without running code"),
        (b"", "without running code"),
        ({"features.0.weight": 3}, "not tensors by name"),
        ({"x": torch.zeros(2)}, "no network that LPIPS knows .* begin with x"),
        ({}, "begin with nothing"),
    ],
)
def test_other_files_are_refused_and_run_nothing(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    if isinstance(content, bytes):
        Path("w.pth").write_bytes(content)
    else:
        torch.save(content, "w.pth")
    with pytest.raises(InputError, match=message):
        read_perceptual(["w.pth"])
    assert not Path("ran").exists()


def test_channel_weights_of_another_network_are_refused(alex, tmp_path):
    torch.save(trunk_of(alex) | {"lin0.model.1.weight": torch.ones(1, 3, 1, 1)}, tmp_path / "a.pth")
    with pytest.raises(InputError, match="no channel weights lin0"):
        read_perceptual([tmp_path / "a.pth"])
    with pytest.raises(InputError, match="nothing is downloaded"):
        read_perceptual([])


@pytest.mark.skipif(importlib.util.find_spec("stlpips_pytorch") is None, reason="stlpips-pytorch is not installed")
def test_the_published_shift_tolerant_weights_order_noise():
    (folder,) = importlib.util.find_spec("stlpips_pytorch").submodule_search_locations
    perceptual = read_perceptual([Path(folder) / "weights" / "vST0.0" / "alex_shift_tolerant.pth"])
    assert perceptual.sha256 == (ST_LPIPS,)
    _, target = pair(64)
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(3))
    distances = [perceptual(target + strength * noise, target).mean().item() for strength in (0.0, 0.05, 0.1, 0.3)]
    assert distances[0] == 0 and distances == sorted(distances)
