"""Networks of series are read as chains of layers of pictures of height one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversefed import freeze
from inversefed.errors import UnsupportedNetworkError
from inversefed.inputs import Series
from inversefed.networks.layer_chain import Residual, chain, run

WINDOWS = torch.rand(2, 3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Net(nn.Module):
    """A convolution, something behind it, and a head."""

    def __init__(self, behind: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front, self.behind, self.head = nn.Conv1d(3, 4, 3, padding=1), behind, nn.LazyLinear(5)
        self.double().eval()(WINDOWS)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.behind(self.front(x)).flatten(1))


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x)


def norm() -> nn.Module:
    layer = nn.BatchNorm1d(4)
    layer.running_mean, layer.running_var = torch.tensor([0.1, -0.2, 0.3, 0.0]), torch.tensor([1.0, 2.0, 0.5, 1.5])
    return layer


READ: dict[str, tuple[Callable[[Tensor], Tensor], type[nn.Module]]] = {
    "convolution": (nn.Conv1d(4, 6, 5, stride=2, padding=2, dilation=1, bias=False), nn.Conv2d),
    "groups": (nn.Conv1d(4, 8, 3, groups=2, dilation=2), nn.Conv2d),
    "same": (nn.Conv1d(4, 4, 3, padding="same"), nn.Conv2d),
    "maximum": (nn.MaxPool1d(3, 2, 1), nn.MaxPool2d),
    "maximum by function": (lambda x: F.max_pool1d(x, 2), nn.MaxPool2d),
    "average": (nn.AvgPool1d(3, 2, 1, count_include_pad=False), nn.AvgPool2d),
    "average by function": (lambda x: F.avg_pool1d(x, 2), nn.AvgPool2d),
    "adaptive": (nn.AdaptiveAvgPool1d(4), nn.AdaptiveAvgPool2d),
    "adaptive and squeezed": (lambda x: F.adaptive_avg_pool1d(x, 1).squeeze(-1), nn.AdaptiveAvgPool2d),
    "mean": (lambda x: x.mean(dim=-1), nn.AdaptiveAvgPool2d),
    "mean of a list": (lambda x: torch.mean(x, [2]), nn.AdaptiveAvgPool2d),
    "zeros": (nn.ConstantPad1d((1, 2), 0.0), nn.ZeroPad2d),
    "zeros by function": (lambda x: F.pad(x, (1, 2)), nn.ZeroPad2d),
    "norm": (norm(), nn.BatchNorm2d),
    "dropout": (nn.Dropout1d(0.5), nn.Identity),
    "sum": (Summed(), Residual),
}


@pytest.mark.parametrize("name", READ)
def test_a_layer_of_series_is_read_as_that_of_pictures_of_height_one(name: str) -> None:
    behind, kind = READ[name]
    network = freeze(Net(behind), Series(3, 16))
    layers = chain(network)
    assert type(layers[0].module) is nn.Conv2d and type(layers[1].module) is kind
    torch.testing.assert_close(run(layers, WINDOWS[:, :, None]), network.module(WINDOWS))
    for number, layer in enumerate(layers):
        assert run(layers[: number + 1], WINDOWS[:, :, None]).shape == (2, *layer.shape)
    assert not (layers[0].module.training or (layers[1].module.training and kind is not Residual))
    update = {key: torch.ones_like(weight) for key, weight in network.params.items()}
    assert layers[0].weight_gradient(update).shape == (4, 3, 1, 3)


def test_a_recurrent_network_is_no_chain() -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 4, batch_first=True), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.rnn(x.transpose(1, 2))[0][:, -1])

    with pytest.raises(UnsupportedNetworkError, match=r"transpose|getitem|rnn"):
        chain(freeze(Recurrent(), Series(3, 16)))
