"""Weights survive the disk, and a file that does not fit, or holds more than tensors, is refused."""

import json
import os

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from inversefed.errors import ConfigError, InputError, UnsafeFileError, UpdateMismatchError
from inversefed.zoo import networks
from inversefed.zoo.training import load_weights, save_checkpoint


def same(left, right):
    left, right = left.state_dict(), right.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def tied():
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    network[2].weight = network[0].weight
    return network


@pytest.mark.parametrize("target", ["run", "run/resnet.safetensors"])
def test_a_checkpoint_comes_back(tmp_path, target):
    network, other = networks.build("ResNet20", seed=1), networks.build("ResNet20", seed=2)
    network.bn1.running_mean += 1
    file = save_checkpoint(tmp_path / target, network, {"epochs": 3, "name": "ResNet20"})
    assert json.loads(file.with_suffix(".json").read_text()) == {"epochs": 3, "name": "ResNet20"}
    assert sorted(entry.suffix for entry in (tmp_path / "run").iterdir()) == [".json", ".safetensors"]
    loaded = load_weights(other, file)
    assert same(loaded, network)
    assert same(other, networks.build("ResNet20", seed=2))


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s}, lambda s: {f"module.{k}": v for k, v in s.items()}]
)
@pytest.mark.parametrize("ending", [".pt", ".pth"])
def test_state_dicts_of_torch_are_read(tmp_path, wrap, ending):
    network = networks.build("LeNetZhu", seed=1)
    torch.save(wrap(network.state_dict()), tmp_path / f"w{ending}")
    assert same(load_weights(networks.build("LeNetZhu", seed=2), tmp_path / f"w{ending}"), network)


def test_tied_weights_stay_tied(tmp_path):
    network = tied()
    loaded = load_weights(tied(), save_checkpoint(tmp_path, network, {}))
    assert same(loaded, network)
    assert loaded[0].weight is loaded[2].weight
    save_model(network, str(tmp_path / "once.safetensors"))  # writes a shared tensor under one of its names only
    assert same(load_weights(tied(), tmp_path / "once.safetensors"), network)


def test_differences_are_named_three_at_a_time(tmp_path):
    file = save_checkpoint(tmp_path, networks.build("LeNetZhu", num_classes=7, seed=0), {})
    with pytest.raises(UpdateMismatchError, match=r"linear.weight is \(7, 768\), the network's is \(10, 768\)"):
        load_weights(networks.build("LeNetZhu", seed=0), file)
    save_file({"conv0.weight": torch.zeros(12, 3, 5, 5), "extra": torch.zeros(1)}, tmp_path / "other.safetensors")
    expected = r"conv0.bias is missing; conv1.weight is missing; conv1.bias is missing; and 5 more"
    with pytest.raises(UpdateMismatchError, match=expected):
        load_weights(networks.build("LeNetZhu", seed=0), tmp_path / "other.safetensors")
    whole = networks.build("LeNetZhu", seed=0).state_dict()
    save_file({**whole, "extra": torch.zeros(1)}, tmp_path / "more.safetensors")
    with pytest.raises(UpdateMismatchError, match="extra is not in the network"):
        load_weights(networks.build("LeNetZhu", seed=0), tmp_path / "more.safetensors")


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_hostile_file_is_refused_and_nothing_runs(tmp_path):
    torch.save({"weight": Hostile(tmp_path / "ran")}, tmp_path / "w.pth")
    with pytest.raises(UnsafeFileError, match="holds more than tensors"):
        load_weights(nn.Linear(2, 2), tmp_path / "w.pth")
    assert not (tmp_path / "ran").exists()


def test_files_that_are_no_weights_are_refused(tmp_path):
    network = nn.Linear(2, 2)
    with pytest.raises(InputError, match="does not exist"):
        load_weights(network, tmp_path / "none.pth")
    (tmp_path / "w.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"w\.bin is none of them"):
        load_weights(network, tmp_path / "w.bin")
    (tmp_path / "w.safetensors").write_bytes(b"short")
    with pytest.raises(InputError, match="not a sound safetensors file"):
        load_weights(network, tmp_path / "w.safetensors")
    (tmp_path / "w.pt").write_bytes(b"")
    with pytest.raises(InputError, match=r"w\.pt"):
        load_weights(network, tmp_path / "w.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="expected a state dict"):
        load_weights(network, tmp_path / "list.pt")


def test_settings_that_json_cannot_hold_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match="must fit into JSON"):
        save_checkpoint(tmp_path / "run", nn.Linear(2, 2), {"device": torch.device("cpu")})
    assert not (tmp_path / "run").exists()
