"""Peeling: the picture to float precision, from real photographs, or a refusal that says why."""

import pytest
import torch
from torch import nn

import inversefed
from inversefed import FedAvg, FedSGD, Status, recipes
from inversefed.attacks.exact.peel import conv_least_squares
from inversefed.attacks.exact.peel.conv_input import gradient_matrix, misfit, solve_convolution
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.types import Step
from inversefed.zoo import constants, networks


def all_convolutional() -> nn.Module:
    def block(inputs: int, outputs: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(*block(3, 32, 1), *block(32, 64, 2), *block(64, 128, 2), nn.Flatten(), nn.Linear(8192, 10))


def tanh() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 24, 3, 1, 1, bias=False)
            self.hidden, self.head = nn.Linear(24 * 256, 64), nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.tanh(self.second(self.first(x).sigmoid()))
            return self.head(torch.tanh(self.hidden(x.view(x.size(0), -1))))

    return Net()


def decibels(
    module: nn.Module, image: torch.Tensor, dtype: torch.dtype, client: object = FedSGD()
) -> tuple[float, object]:
    report = inversefed.audit(
        module.eval().to(dtype),
        image,
        torch.tensor([3]),
        mean=constants.cifar10_mean,
        std=constants.cifar10_std,
        attack=recipes.peel(),
        client=client,
        nulls=0,
    )
    return float(report.scores["peak_signal_noise_ratio"]), report


@pytest.mark.parametrize("number", [0, 1])
@pytest.mark.parametrize(("dtype", "floor"), [(torch.float32, 80), (torch.float64, 100)])
def test_lenet_gives_its_photograph_away_to_float_precision(
    photos: torch.Tensor, number: int, dtype: torch.dtype, floor: float
) -> None:
    score, report = decibels(networks.build("LeNetZhu", seed=number), photos[number : number + 1], dtype)
    assert score > floor
    assert report.labels.tolist() == [3] and report.reconstruction.loss < 1e-8
    assert "exact" in {finding.code for finding in report.findings}


@pytest.mark.parametrize(("make", "floor"), [(all_convolutional, 100), (tanh, 80)])
def test_relu_with_batchnorm_and_strides_and_hidden_layers_from_float32(
    photos: torch.Tensor, make: object, floor: float
) -> None:
    torch.manual_seed(0)
    score, _ = decibels(make(), photos[1:2], torch.float32)
    assert score > floor


def test_a_weight_change_of_one_step_is_peeled_as_well(photos: torch.Tensor) -> None:
    torch.manual_seed(0)
    score, _ = decibels(all_convolutional(), photos[:1], torch.float64, FedAvg(local_steps=1, lr=0.1))
    assert score > 100


def test_what_does_not_reproduce_the_update_is_not_called_exact(photos: torch.Tensor) -> None:
    module = networks.build("LeNetZhu", seed=0).eval()
    noisy = (inversefed.defenses.GaussianNoise(0.5),)
    report = inversefed.audit(module, photos[:1], torch.tensor([3]), attack=recipes.peel(), defenses=noisy, nulls=0)
    codes = {finding.code for finding in report.findings}
    assert "not-exact" in codes and "exact" not in codes


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("ResNet50", "a convolution with kernel 3 or more"),
        ("iRevNet", "branches|layer by layer|not read as a layer"),
        ("DenseNet40", "only known as a mean over places, and no convolution in front"),
    ],
)
def test_networks_that_cannot_be_peeled_are_refused_with_the_reason(
    photos: torch.Tensor, name: str, reason: str
) -> None:
    with pytest.raises(UnsupportedNetworkError, match=reason):
        decibels(networks.build(name, seed=0), photos[:1], torch.float32)


def test_average_pooling_is_refused_with_the_reason(photos: torch.Tensor) -> None:
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.Sigmoid(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2048, 10)]
    with pytest.raises(UnsupportedNetworkError, match="peeling stops at Sigmoid"):
        decibels(nn.Sequential(*layers), photos[:1], torch.float32)


def test_batches_that_mix_too_much_and_train_mode_are_refused(photos: torch.Tensor) -> None:
    with pytest.raises(UnsupportedNetworkError, match="768 features for 3072 pixels"):
        inversefed.audit(networks.build("LeNetZhu", seed=0), photos, torch.tensor([1, 2]), attack=recipes.peel())
    with pytest.raises(ThreatModelError, match="one gradient of all of them"):
        steps = FedAvg(local_steps=2, lr=0.1)
        inversefed.audit(all_convolutional(), photos, torch.tensor([1, 2]), attack=recipes.peel(), client=steps)
    with pytest.raises(UnsupportedNetworkError, match="train mode"):
        inversefed.audit(all_convolutional().train(), photos[:1], torch.tensor([1]), attack=recipes.peel())


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 2])
@pytest.mark.parametrize("number", [1, 3])
def test_the_equations_of_a_convolution_are_those_of_autograd(stride: int, padding: int, number: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(2, 6, 3, stride, padding).double()
    inputs = torch.rand(number, 2, 9, 7, dtype=torch.float64)
    outputs = layer(inputs)
    delta = torch.randn_like(outputs)
    (expected,) = torch.autograd.grad((outputs * delta).sum(), layer.weight)
    rows = gradient_matrix(layer, (2, 9, 7), delta) @ inputs.transpose(0, 1).flatten(1).T
    torch.testing.assert_close(rows.reshape(6, 3, 3, 2).permute(0, 3, 1, 2), expected)
    slope = torch.ones_like(outputs)
    found = solve_convolution(layer, (2, 9, 7), expected, delta, outputs.detach(), slope, 1e-15).values
    torch.testing.assert_close(layer(found), outputs, rtol=1e-8, atol=1e-10)


def test_the_factor_of_all_channels_and_that_of_one_lead_to_the_same_input(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Conv2d(3, 4, 3, padding=1).double(), torch.randn(2, 3, 10, 10).double()
    output, delta = layer(inputs).detach(), torch.randn(2, 4, 10, 10).double()
    rows = gradient_matrix(layer, (3, 10, 10), delta) @ inputs.transpose(0, 1).flatten(1).T
    gradient = rows.reshape(4, 3, 3, 3).permute(0, 3, 1, 2)
    slope = torch.rand(2, 4, 10, 10).double()
    for together in (4096, 0):
        monkeypatch.setattr(conv_least_squares, "TOLERANCES", conv_least_squares.Tolerances(together=together))
        found = solve_convolution(layer, (3, 10, 10), gradient, delta, output, slope, 1e-13).values
        torch.testing.assert_close(found, inputs, rtol=1e-8, atol=1e-8)


def test_progress_is_told_while_features_are_inverted_and_what_is_at_hand_survives_an_interrupt(
    photos: torch.Tensor,
) -> None:
    torch.manual_seed(0)
    module, shown = all_convolutional().eval(), []

    def look(step: Step) -> None:
        shown.append(float((step.best() - photos[:1]).square().mean()))
        if len(shown) == 6:
            raise KeyboardInterrupt

    report = inversefed.audit(module, photos[:1], torch.tensor([3]), mean=0.5, std=0.25, on_step=look)
    assert report.status is Status.INTERRUPTED and shown[-1] < 0.01 * shown[0]
    assert float(report.scores["mean_squared_error"]) == pytest.approx(shown[-1], rel=1e-3)


def test_channels_that_are_off_everywhere_do_not_tighten_what_holds_for_the_others() -> None:
    gradient, rest = torch.zeros(5, 2, 1, 1).double(), torch.zeros(5, 2).double()
    gradient[0], gradient[1], rest[1] = 1.0, 0.01, 1e-4
    found = misfit(rest, gradient)
    assert found[[0, 2, 3, 4]].tolist() == [0.0] * 4
    small = gradient[1].norm() / (gradient[1].norm() + 0.1 * gradient[:2].flatten(1).norm(dim=1).median())
    torch.testing.assert_close(found[1], 1e-2 * small)
