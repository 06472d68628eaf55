"""The list of 2020's defects, in its order: each test fails with the behaviour of then."""

import copy
import csv
import math
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import inversefed
from inversefed.compat import experiment, scripts, trained
from inversefed.compat.options import options, rec_mult_options
from inversefed.errors import ConfigError, UnsupportedNetworkError

QUICK = {"max_iterations": 2, "total_variation": 0.0}


@pytest.fixture
def tiny_gradient(tiny, photos):
    x = F.interpolate(photos[:1], 8)
    return [
        part.detach() for part in torch.autograd.grad(F.cross_entropy(tiny(x), torch.tensor([2])), tiny.parameters())
    ]


def attack(module, update, config=None, labels=None, **options):
    machine = inversefed.GradientReconstructor(module, config={**QUICK, **(config or {})})
    return machine.reconstruct(update, labels, img_shape=(3, 8, 8), **options)


def parsed(*words):
    parser = options()
    parser.set_defaults(unsigned=False, lr=None)
    return experiment.attack_config(parser.parse_args(words), {"ours": 24_000, "zhu": 300})


def test_1_a_trained_model_is_trained_saved_and_loaded(cifar_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["--model", "ConvNet8", "--trained_model", "--epochs", "1", "--target_id", "0", "--max_iterations", "1"]
    command += ["--data_path", str(cifar_root)]
    assert scripts.reconstruct_image_main(command) == 0
    assert "Training the model" in capsys.readouterr().out
    weights = torch.load(tmp_path / "models" / "ConvNet8_CIFAR10_1.pth", weights_only=True)
    monkeypatch.setattr(trained, "train", lambda *_: pytest.fail("trained again"))
    assert scripts.reconstruct_image_main(command) == 0
    assert "Model loaded from file" in capsys.readouterr().out
    assert torch.equal(weights["conv0.weight"], loaded_by(command)["conv0.weight"])


def loaded_by(command):
    args = options().parse_args(command)
    facts = inversefed.compat.scene.facts_of(args.dataset)
    return trained.network_of(args, facts, {"device": torch.device("cpu"), "dtype": torch.float})[0].state_dict()


def test_1_without_weights_and_data_it_says_what_is_missing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert scripts.reconstruct_image_main(["--trained_model", "--target_id", "-1", "--data_path", "nowhere"]) == 2
    message = capsys.readouterr().err
    assert "ConvNet_CIFAR10_120.pth" in message and "nowhere" in message and "data_batch_1" in message
    assert not (tmp_path / "models").exists()


def test_2_the_options_count_when_a_gradient_is_attacked():
    config = parsed("--indices", "top10", "--weights", "exp", "--init", "zeros", "--scoring_choice", "tv")
    assert [config[key] for key in ("indices", "weights", "init", "scoring_choice")] == ["top10", "exp", "zeros", "tv"]


def test_3_switches_are_on_and_can_be_turned_off():
    assert parsed()["signed"] and parsed()["boxed"]
    assert parsed("--signed", "--boxed")["signed"] and parsed("--signed", "--boxed")["boxed"]
    assert not parsed("--no-signed")["signed"] and not parsed("--no-boxed")["boxed"]


def test_4_a_restart_that_never_ran_does_not_win(tiny, tiny_gradient):
    torch.manual_seed(0)
    first = attack(tiny, tiny_gradient)[0]
    torch.manual_seed(0)
    output, stats = attack(tiny, tiny_gradient, {"restarts": 4}, tol=math.inf)
    assert stats["opt"] > 0
    assert not torch.equal(output, torch.zeros_like(output)) and output.min() >= 0 and output.max() <= 1
    assert output.shape == first.shape


def test_4_a_nan_restart_does_not_shift_the_choice(tiny, tiny_gradient, monkeypatch):
    starts = torch.rand(3, 1, 3, 8, 8)
    starts[0] = math.nan
    monkeypatch.setitem(inversefed.compat.config.STARTS, "rand", lambda shape, generator, dtype: starts[: shape[0]])
    alone = [attack(tiny, tiny_gradient, {"init": "rand", "restarts": 3, "boxed": False})]
    monkeypatch.setitem(inversefed.compat.config.STARTS, "rand", lambda shape, generator, dtype: starts[1:][: shape[0]])
    alone.append(attack(tiny, tiny_gradient, {"init": "rand", "restarts": 2, "boxed": False}))
    assert torch.equal(alone[0][0], alone[1][0]) and alone[0][1]["opt"] == alone[1][1]["opt"]


def test_5_fedavg_is_scored_with_its_batch_size(tiny, photos):
    x, y = F.interpolate(photos, 8), torch.tensor([0, 3])
    federated = {"local_steps": 2, "local_lr": 0.5, "batch_size": 1}
    update = inversefed.reconstruction_algorithms.loss_steps(tiny, x, y, lr=0.5, local_steps=2, batch_size=1)
    for choice in ("loss", "pixelmean", "pixelmedian"):
        config = {**QUICK, "restarts": 2, "scoring_choice": choice}
        machine = inversefed.FedAvgReconstructor(tiny, config=config, num_images=2, **federated)
        output, stats = machine.reconstruct(update, y, img_shape=(3, 8, 8))
        guess = inversefed.reconstruction_algorithms.loss_steps(tiny, output, y, lr=0.5, local_steps=2, batch_size=1)
        cost = inversefed.reconstruction_algorithms.reconstruction_costs([guess], update, "sim")
        assert stats["opt"] == pytest.approx(float(cost), rel=1e-4)


@pytest.mark.parametrize("dataset", ["CIFAR10", "CIFAR100", "MNIST", "ImageNet"])
def test_6_every_data_set_has_its_own_constants(dataset):
    facts = inversefed.compat.scene.facts_of(dataset)
    consts = inversefed.consts
    mean, std = (getattr(consts, f"{dataset.lower()}_{what}") for what in ("mean", "std"))
    assert facts.mean == tuple(mean) and facts.std == tuple(std)


def test_6_in_double_precision_too(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = []
    real = experiment.GradientReconstructor
    monkeypatch.setattr(experiment, "GradientReconstructor", lambda *given: (seen.append(given), real(*given))[1])
    command = ["--dataset", "CIFAR100", "--dtype", "double", "--model", "ConvNet8", "--target_id", "-1", "--dryrun"]
    assert scripts.reconstruct_image_main(command) == 0
    (module, (mean, _), _, _) = seen[0]
    assert next(module.parameters()).dtype == torch.double
    assert mean.flatten().tolist() == pytest.approx(inversefed.consts.cifar100_mean)


def test_7_the_name_is_the_width():
    widths = [inversefed.construct_model(f"ConvNet{w}", seed=0)[0].conv0.out_channels for w in (8, 16, 32, 64)]
    assert widths == [8, 16, 32, 64]


def test_8_the_training_strategy_listens():
    defs = inversefed.training_strategy("conservative", lr=0.02, epochs=3, dryrun=True)
    assert (defs.lr, defs.epochs, defs.dryrun) == (0.02, 3, True)


def test_8_unknown_costs_are_refused_and_topk_2_is_reached(tiny, tiny_gradient):
    with pytest.raises(ConfigError, match="did you mean sim"):
        inversefed.GradientReconstructor(tiny, config={"cost_fn": "simm"})
    with pytest.raises(ConfigError, match="unknown cost_fn"):
        inversefed.reconstruction_algorithms.reconstruction_costs([tiny_gradient], tiny_gradient, "cosine")
    few = [4 * part for part in tiny_gradient[:2]] + tiny_gradient[2:]
    costs = inversefed.reconstruction_algorithms.reconstruction_costs
    assert torch.isfinite(costs([few], tiny_gradient, "l2", indices="topk-2"))


def test_8_the_default_normalization_works(tiny, tiny_gradient):
    output, _ = inversefed.GradientReconstructor(tiny).reconstruct(tiny_gradient, None, (3, 8, 8), dryrun=True)
    assert output.shape == (1, 3, 8, 8) and output.min() >= 0 and output.max() <= 1


def test_9_a_call_leaves_no_trace(photos, unchecked):  # the shape checks of the test run draw random numbers
    torch.manual_seed(3)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 4))
    x = F.interpolate(photos[:1], 8)
    loss = F.cross_entropy(module.eval()(x), torch.tensor([1]))
    update = torch.autograd.grad(loss, list(module.parameters()))
    module.train()[1].eval()
    config = dict(QUICK)
    before = [copy.deepcopy(module.state_dict()), config.copy(), torch.get_rng_state(), random.getstate()]
    numpy_before = np.random.get_state()[1].copy()  # noqa: NPY002
    for evaluate in (True, False):
        inversefed.GradientReconstructor(module, config=config).reconstruct(update, None, (3, 8, 8), eval=evaluate)
    after = [module.state_dict(), config, torch.get_rng_state(), random.getstate()]
    assert all(torch.equal(before[0][name], value) for name, value in after[0].items())
    assert after[1] == before[1] and torch.equal(after[2], before[2]) and after[3] == before[3]
    assert (np.random.get_state()[1] == numpy_before).all()  # noqa: NPY002
    assert [part.training for part in module] == [True, False, True, True, True]
    assert all(weight.grad is None for weight in module.parameters())
    assert all(weight.requires_grad for weight in module.parameters())


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(3, 4, 3, bias=False), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(144, 4, bias=False)],
        [nn.Flatten(), nn.LayerNorm(192), nn.Linear(192, 4)],
        [nn.ConvTranspose2d(3, 2, 3), nn.PReLU(), nn.Flatten(), nn.Linear(200, 4)],
    ],
)
def test_10_meta_monkey_takes_any_layer(layers, photos):
    module, x = nn.Sequential(*layers), F.interpolate(photos[:1], 8)
    patched = inversefed.nn.MetaMonkey(module)
    doubled = {name: 2 * weight for name, weight in patched.parameters.items()}
    other = copy.deepcopy(module)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(2)
    assert torch.equal(patched(x, patched.parameters), module(x)) and torch.equal(patched(x), module(x))
    assert torch.allclose(patched(x, doubled), other(x), atol=1e-6)
    slopes = torch.autograd.grad(patched(x, doubled).sum(), list(patched.parameters.values()))
    assert all(slope.abs().sum() > 0 for slope in slopes)


def test_11_networks_that_could_not_be_built():
    assert inversefed.construct_model("MobileNet", seed=0)[0].eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    for name in ("SRNet3", "SRNet1"):
        with pytest.raises(UnsupportedNetworkError, match="never defined"):
            inversefed.construct_model(name)


def test_11_rec_mult_takes_deterministic_and_label_flip(cifar_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    flags = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    words = ["--deterministic", "--label_flip", "--num_exp", "1", "--max_iterations", "1", "--model", "ConvNet8"]
    try:
        assert scripts.rec_mult_main([*words, "--data_path", str(cifar_root)]) == 0
        assert torch.backends.cudnn.deterministic
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags


def test_12_labels_come_back_and_the_next_call_may_give_them(tiny, tiny_gradient):
    machine = inversefed.GradientReconstructor(tiny, config=QUICK)
    assert machine.reconstruct(tiny_gradient, None, (3, 8, 8))[1]["labels"].tolist() == [2]
    assert machine.reconstruct(tiny_gradient, torch.tensor([1]), (3, 8, 8))[1]["labels"].tolist() == [1]


def test_13_the_command_line_prints_the_one_psnr(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    command = ["--model", "LeNetZhu", "--target_id", "-1", "--max_iterations", "2", "--no-boxed", "--save_image"]
    assert scripts.reconstruct_image_main(command) == 0
    printed = float(capsys.readouterr().out.split("PSNR: ")[1].split()[0])
    read = inversefed.zoo.pictures.read_picture
    found = read(tmp_path / "images" / "demo_LeNetZhu_sim--1.png")
    true = read(tmp_path / "images" / "demo_ground_truth--1.png")
    assert printed == pytest.approx(float(-10 * (found - true).square().mean().log10()), abs=0.05)
    with (tmp_path / "tables" / "table_exp_iv.csv").open(newline="") as stream:
        (row,) = csv.DictReader(stream, delimiter="\t")
    assert float(row["psnr"]) == pytest.approx(printed, abs=0.01)
    assert rec_mult_options().parse_args([]).num_exp == 10
