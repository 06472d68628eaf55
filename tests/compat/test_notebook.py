"""The notebooks of 2020: the two calls of the README, and every value of every key of the config."""

import re

import pytest
import torch

import inversefed
from inversefed.compat.config import COSTS, FILTERS, INDICES, SELECTIONS, STARTS, WEIGHTS
from inversefed.errors import ConfigError, InputError, UpdateMismatchError

QUICK = {"max_iterations": 2, "restarts": 2, "total_variation": 1e-2}


def test_the_two_calls_of_the_readme_verbatim(batch, capsys):
    model, _ = inversefed.construct_model("LeNetZhu", num_classes=10, num_channels=3, seed=0)
    setup = {"device": torch.device("cpu"), "dtype": torch.float}
    dm = torch.as_tensor(inversefed.consts.cifar10_mean, **setup)[:, None, None]
    ds = torch.as_tensor(inversefed.consts.cifar10_std, **setup)[:, None, None]
    config = {
        **{"signed": True, "boxed": True, "cost_fn": "sim", "indices": "def", "weights": "equal", "lr": 0.1},
        **{"optim": "adam", "restarts": 1, "max_iterations": 150, "total_variation": 1e-6, "init": "randn"},
        **{"filter": "none", "lr_decay": True, "scoring_choice": "loss"},
    }
    ground_truth, labels = batch()
    loss = torch.nn.functional.cross_entropy(model(ground_truth), labels)
    input_gradient = torch.autograd.grad(loss, model.parameters())

    rec_machine = inversefed.GradientReconstructor(model, (dm, ds), config, num_images=1)
    output, stats = rec_machine.reconstruct(input_gradient, None, img_shape=(3, 32, 32))

    assert output.shape == ground_truth.shape and stats["labels"].tolist() == [0]
    first = float(re.search(r"It: 0. Rec. loss: (\d\.\d+)", capsys.readouterr().out)[1])
    assert stats["opt"] < first / 5
    test_mse = (output.detach() - ground_truth).pow(2).mean()
    test_psnr = inversefed.metrics.psnr(output, ground_truth, factor=1 / ds)
    apart = (output - ground_truth).square().mean() * ds**2
    assert test_mse > 0 and test_psnr == pytest.approx(float((-10 * apart.log10()).mean()), rel=1e-4)


def test_it_prints_how_far_it_is(lenet, gradient, capsys):
    inversefed.GradientReconstructor(lenet, config=QUICK).reconstruct(gradient(), None)
    assert capsys.readouterr().out.count("Rec. loss:") == 4


VALUES = [
    *(("signed", value) for value in (True, False)),
    *(("boxed", value) for value in (True, False)),
    *(("cost_fn", value) for value in COSTS),
    *(("indices", value) for value in [*INDICES, [0, 3], [-1], range(3), (2,)]),
    *(("weights", value) for value in WEIGHTS),
    *(("lr", value) for value in (1, 0.5)),
    *(("optim", value) for value in ("adam", "sgd", "LBFGS")),
    *(("restarts", value) for value in (1, 3)),
    *(("total_variation", value) for value in (0, 1e-1)),
    *(("init", value) for value in STARTS),
    *(("filter", value) for value in FILTERS),
    *(("lr_decay", value) for value in (True, False)),
    *(("scoring_choice", value) for value in SELECTIONS if value != "inception"),
]


@pytest.mark.parametrize(("key", "value"), VALUES)
def test_every_value_of_every_key_runs(key, value, lenet, gradient):
    machine = inversefed.GradientReconstructor(lenet, config={**QUICK, key: value})
    assert machine.config[key] == value
    if value in ("top10", "top50"):
        with pytest.raises(ConfigError, match="has 8 tensors"):
            machine.reconstruct(gradient(), None)
        return
    output, stats = machine.reconstruct(gradient(), None)
    assert output.shape == (1, 3, 32, 32) and output.isfinite().all() and not output.requires_grad
    assert stats["opt"] >= 0 and stats["status"] == "finished"


@pytest.mark.parametrize(
    ("key", "value", "near"),
    [
        ("cost_fn", "simm", "did you mean sim"),
        ("indices", "topk1", "did you mean topk-1"),
        ("weights", "liner", "did you mean linear"),
        ("optim", "adm", "did you mean adam"),
        ("init", "rnd", "did you mean rand"),
        ("filter", "medain", "did you mean median"),
        ("scoring_choice", "pixel_mean", "did you mean pixelmean"),
        ("cost", "sim", "did you mean cost_fn"),
        ("max_iterations", 0, "at least 1"),
        ("restarts", 0, "at least 1"),
        ("lr", "fast", "lr is a number"),
        ("total_variation", None, "total_variation is a number"),
    ],
)
def test_what_does_not_exist_is_refused_with_what_is_near(key, value, near, lenet):
    with pytest.raises(ConfigError, match=near):
        inversefed.GradientReconstructor(lenet, config={key: value})


def test_the_defaults_are_those_of_2020(lenet):
    config = inversefed.GradientReconstructor(lenet).config
    assert config == inversefed.reconstruction_algorithms.DEFAULT_CONFIG
    wanted = {"signed": False, "boxed": True, "cost_fn": "sim", "max_iterations": 4800, "total_variation": 1e-1}
    assert {key: config[key] for key in wanted} == wanted


def test_normalization_comes_as_floats_lists_or_tensors(lenet, gradient, dm, ds):
    mean, std = inversefed.consts.cifar10_mean, inversefed.consts.cifar10_std
    for mean_std in ((dm, ds), (list(mean), list(std)), (0.5, 0.25), (torch.tensor(0.5), 0.25)):
        output, _ = inversefed.GradientReconstructor(lenet, mean_std, QUICK).reconstruct(gradient(), None)
        low, high = ((edge - torch.as_tensor(mean_std[0])) / torch.as_tensor(mean_std[1]) for edge in (0.0, 1.0))
        low, high = (edge.reshape(-1, 1, 1) for edge in (low, high))
        assert (output >= low - 1e-5).all() and (output <= high + 1e-5).all()


def test_dryrun_is_one_iteration_of_one_restart(lenet, gradient, capsys):
    config = {**QUICK, "max_iterations": 5000}
    output, _ = inversefed.GradientReconstructor(lenet, config=config).reconstruct(gradient(), None, dryrun=True)
    assert output.shape == (1, 3, 32, 32) and capsys.readouterr().out.count("It: ") == 1


def test_tol_ends_the_restarts(lenet, gradient, capsys):
    config = {**QUICK, "restarts": 5}
    inversefed.GradientReconstructor(lenet, config=config).reconstruct(gradient(), None, tol=2.0)
    assert capsys.readouterr().out.count("It: 0.") == 1


def test_labels_are_optimized_where_the_sign_rule_is_off(lenet, gradient):
    machine = inversefed.GradientReconstructor(lenet, config={**QUICK, "restarts": 1})
    machine.iDLG = False
    torch.manual_seed(0)
    open_labels = machine.reconstruct(gradient(), None)
    assert open_labels[1]["labels"].shape == (1,)
    torch.manual_seed(0)
    assert not torch.equal(open_labels[0], machine.reconstruct(gradient(), torch.tensor([0]))[0])


def test_several_pictures_with_and_without_labels(lenet, gradient):
    machine = inversefed.GradientReconstructor(lenet, config=QUICK, num_images=2)
    for labels in (torch.tensor([0, 1]), None):
        output, stats = machine.reconstruct(gradient(2), labels)
        assert output.shape == (2, 3, 32, 32) and stats["labels"].shape == (2,)
    with pytest.raises(InputError, match="2 images need as many labels"):
        machine.reconstruct(gradient(2), torch.tensor([0]))


def test_eval_says_in_which_mode_the_model_runs(photos):
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten(), torch.nn.Linear(3600, 4)
    )
    x = photos[:1]
    in_eval, in_train = (
        torch.autograd.grad(module.train(mode)(x)[0, 1], list(module.parameters())) for mode in (False, True)
    )
    machine = inversefed.GradientReconstructor(module.train(), config={**QUICK, "max_iterations": 1})
    torch.manual_seed(0)
    first, _ = machine.reconstruct(in_eval, torch.tensor([1]), eval=True)
    torch.manual_seed(0)
    second, _ = machine.reconstruct(in_train, torch.tensor([1]), eval=False)
    assert module.training and not torch.equal(first, second)


def test_an_update_that_does_not_fit_is_refused(lenet, gradient):
    machine = inversefed.GradientReconstructor(lenet, config=QUICK)
    with pytest.raises(UpdateMismatchError, match="8 trainable parameters, but the input holds 7"):
        machine.reconstruct(gradient()[1:], None)
    wrong = [part.flatten() for part in gradient()]
    with pytest.raises(InputError):
        machine.reconstruct(wrong, None)
    broken = [part * float("nan") for part in gradient()]
    with pytest.raises(InputError):
        machine.reconstruct(broken, None)


def test_scoring_by_inception_says_at_once_that_it_lacks_its_network(lenet, gradient, monkeypatch, capsys):
    def offline(*_, **__):
        raise InputError("could not be fetched")

    monkeypatch.setattr("inversefed.zoo.networks.build", offline)
    machine = inversefed.GradientReconstructor(lenet, config={**QUICK, "scoring_choice": "inception"})
    with pytest.raises(InputError, match="needs torchvision's trained Inception network: could not be fetched"):
        machine.reconstruct(gradient(), None)
    assert "It: " not in capsys.readouterr().out


def test_scoring_by_inception(lenet, gradient, monkeypatch):
    build = inversefed.zoo.networks.build
    monkeypatch.setattr("inversefed.zoo.networks.build", lambda *_, **__: build("ResNet20", num_classes=10, seed=0))
    machine = inversefed.GradientReconstructor(lenet, config={**QUICK, "scoring_choice": "inception"})
    output, stats = machine.reconstruct(gradient(), None)
    assert output.shape == (1, 3, 32, 32) and stats["opt"] >= 0
