"""Names, networks, services and metrics of 2020."""

import argparse
import csv
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import inversefed
from inversefed.errors import ConfigError, InputError, UpdateMismatchError


def test_every_name_of_2020_is_reached():
    assert callable(inversefed.GradientReconstructor) and callable(inversefed.FedAvgReconstructor)
    for name in ("DEFAULT_CONFIG", "loss_steps", "reconstruction_costs"):
        assert hasattr(inversefed.reconstruction_algorithms, name)
    for name in ("psnr", "total_variation", "activation_errors", "InceptionScore"):
        assert callable(getattr(inversefed.metrics, name))
    for name in ("system_startup", "save_to_table", "set_random_seed", "set_deterministic"):
        assert callable(getattr(inversefed.utils, name))
    assert inversefed.nn.construct_model is inversefed.construct_model and callable(inversefed.nn.MetaMonkey)
    assert callable(inversefed.training.training_routine.validate) and inversefed.training.train is inversefed.train
    assert callable(inversefed.construct_dataloaders) and callable(inversefed.training_strategy)


def test_constants_are_those_of_2020():
    consts = inversefed.consts
    assert list(consts.cifar10_mean) == [0.4914672374725342, 0.4822617471218109, 0.4467701315879822]
    assert list(consts.cifar10_std) == [0.24703224003314972, 0.24348513782024384, 0.26158785820007324]
    assert list(consts.cifar100_mean) == [0.5071598291397095, 0.4866936206817627, 0.44120192527770996]
    assert list(consts.cifar100_std) == [0.2673342823982239, 0.2564384639263153, 0.2761504650115967]
    assert list(consts.mnist_mean) == [0.13066373765468597] and list(consts.mnist_std) == [0.30810782313346863]
    assert list(consts.imagenet_mean) == [0.485, 0.456, 0.406] and list(consts.imagenet_std) == [0.229, 0.224, 0.225]
    assert consts.BENCHMARK in (True, False)


def test_a_network_comes_with_its_seed_and_in_train_mode():
    state = torch.get_rng_state()
    model, seed = inversefed.construct_model("ConvNet8", num_classes=7, seed=4, num_channels=1)
    assert seed == 4 and model.training and model(torch.zeros(2, 1, 32, 32)).shape == (2, 7)
    again, key = inversefed.construct_model("ConvNet8", 7, seed=9, num_channels=1, modelkey=4)
    assert key == 4 and torch.equal(again.conv0.weight, model.conv0.weight)
    drawn = [inversefed.construct_model("LeNetZhu")[1] for _ in range(2)]
    assert drawn[0] != drawn[1] and torch.equal(torch.get_rng_state(), state)
    rebuilt = inversefed.construct_model("LeNetZhu", seed=drawn[0])[0]
    assert torch.equal(rebuilt.conv0.weight, inversefed.construct_model("LeNetZhu", seed=drawn[0])[0].conv0.weight)
    with pytest.raises(ConfigError, match="did you mean ResNet20"):
        inversefed.construct_model("Resnet_20")


def test_meta_monkey_wants_every_parameter_by_name(lenet):
    patched = inversefed.nn.MetaMonkey(lenet)
    some = dict(list(patched.parameters.items())[1:])
    with pytest.raises(UpdateMismatchError, match=r"8 parameters by name, got 7.*conv0\.weight"):
        patched(torch.zeros(1, 3, 32, 32), some)


def test_startup_says_where_it_runs(capsys):
    setup = inversefed.utils.system_startup(argparse.Namespace(model="X"), {"lr": 3})
    assert setup == {"device": torch.device("cuda:0" if torch.cuda.is_available() else "cpu"), "dtype": torch.float}
    said = capsys.readouterr().out
    assert "model='X'" in said and "'lr': 3" in said and "CPUs: 1" in said
    assert torch.zeros(1, **setup).dtype == torch.float


def test_rows_are_appended_under_one_header(tmp_path, capsys):
    for psnr in (1.5, 2.5):
        inversefed.utils.save_to_table(tmp_path / "new", "exp", dryrun=False, model="a b", psnr=psnr)
    text = (tmp_path / "new" / "table_exp.csv").read_text()
    assert text.splitlines() == ["model\tpsnr", "a b\t1.5", "a b\t2.5"]
    inversefed.utils.save_to_table(tmp_path / "dry", "exp", dryrun=True, model="a")
    assert not (tmp_path / "dry").exists() and "Would save" in capsys.readouterr().out


def test_a_table_with_other_columns_is_left_alone(tmp_path):
    inversefed.utils.save_to_table(tmp_path, "exp", False, a=1, b=2)
    for row in ({"a": 1, "c": 2}, {"b": 1, "a": 2}, {"a": 1}):
        with pytest.raises(InputError, match="choose another name"):
            inversefed.utils.save_to_table(tmp_path, "exp", False, **row)
    with (tmp_path / "table_exp.csv").open(newline="") as stream:
        assert list(csv.DictReader(stream, delimiter="\t")) == [{"a": "1", "b": "2"}]


def test_seeds_have_their_offsets():
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        inversefed.utils.set_random_seed(10)
        drawn = torch.rand(1).item(), np.random.rand(), random.random()  # noqa: NPY002
        expected = torch.rand(1, generator=torch.Generator().manual_seed(11)).item()
        assert drawn == (expected, np.random.RandomState(14).rand(), random.Random(16).random())
        inversefed.utils.set_random_seed()
        assert torch.initial_seed() == 234
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


def test_deterministic_sets_cudnn(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    inversefed.utils.set_deterministic()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark


def test_options_have_the_defaults_of_2020():
    args = vars(inversefed.options().parse_args([]))
    wanted = {
        **{"model": "ConvNet", "dataset": "CIFAR10", "dtype": "float", "trained_model": False, "epochs": 120},
        **{"accumulation": 0, "num_images": 1, "target_id": None, "label_flip": False, "optim": "ours", "restarts": 1},
        **{"cost_fn": "sim", "indices": "def", "weights": "equal", "optimizer": "adam", "signed": True, "boxed": True},
        **{"scoring_choice": "loss", "init": "randn", "tv": 1e-4, "max_iterations": None, "save_image": False},
        **{"image_path": "images/", "model_path": "models/", "table_path": "tables/", "data_path": "~/data"},
        **{"name": "iv", "deterministic": False, "dryrun": False},
    }
    assert args == wanted


def test_a_script_of_2020_may_add_its_options_again():
    parser = inversefed.options()
    parser.add_argument("--max_iterations", default=4800, type=int)
    parser.add_argument("--unsigned", action="store_true")
    args = parser.parse_args(["--unsigned"])
    assert args.unsigned and args.max_iterations == 4800


def test_psnr_of_2020():
    found, true = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    found[0] += 0.1
    found[1] += 0.01
    assert inversefed.metrics.psnr(found, true) == pytest.approx(30)
    assert inversefed.metrics.psnr(found, true, batched=True) == pytest.approx(22.967, abs=1e-3)
    assert inversefed.metrics.psnr(found, true, factor=2.0) == pytest.approx(30 + 6.0206, abs=1e-3)
    assert inversefed.metrics.psnr(true, true) == float("inf")


def test_total_variation_is_a_mean_along_x_plus_a_mean_along_y():
    ramp = torch.arange(4.0).expand(1, 3, 5, 4)
    assert inversefed.metrics.total_variation(ramp) == 1 == inversefed.metrics.total_variation(ramp.mT)


def test_activation_errors_by_module(photos):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(3600, 4))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x, other = photos[:1], photos[1:]
    errors = inversefed.metrics.activation_errors(module, x, other)
    assert errors["mse"][""] == pytest.approx(float(F.mse_loss(x, other)), rel=1e-4)
    first, second = (module[0](part) for part in (x, other))
    assert errors["se"]["1"] == pytest.approx(float((first - second).detach().square().sum()), rel=1e-3)
    assert set(errors) == {"se", "mse", "sim"} and set(errors["sim"]) == {"", "0", "1", "2", "3", "4"}
    same = inversefed.metrics.activation_errors(module, x, x)
    assert max(same["se"].values()) == 0 and same["sim"]["4"] == pytest.approx(1)
    assert module.training and all(torch.equal(before[name], value) for name, value in module.state_dict().items())
