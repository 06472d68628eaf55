"""Functions in a forward pass are read as layers where they can be, and refused by their names where not."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from inversefed import audit, freeze
from inversefed.attacks import recipes
from inversefed.errors import UnsupportedNetworkError
from inversefed.networks.layer_chain import chain, run

IMAGE, LABEL = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1])


class Net(nn.Module):
    """Two convolutions with a function between them."""

    def __init__(self, between: Callable[[Tensor], Tensor], side: int = 8) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head, self.between = nn.Linear(8 * side**2, 4), between
        self.offset = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.second(self.between(self.first(x))).sigmoid().flatten(1))


READ: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "gelu": (F.gelu, 8), "tanh gelu": (lambda x: F.gelu(x, approximate="tanh"), 8), "silu": (F.silu, 8),
    "leaky": (lambda x: F.leaky_relu(x, 0.2), 8), "elu": (lambda x: F.elu(x, alpha=0.5), 8),
    "hardswish": (F.hardswish, 8), "softplus": (lambda x: F.softplus(x, 2.0), 8),
    "pad": (lambda x: F.pad(x, (1, 1, 1, 1)), 10),
    "uneven pad": (lambda x: F.pad(x, (0, 2)), None), "add": (lambda x: x + 0.5, 8), "before": (lambda x: 2 * x, 8),
    "div": (lambda x: (x - 0.1) / 3, 8), "max": (lambda x: F.max_pool2d(x, 2), 4),
    "hard leaky": (lambda x: F.leaky_relu(x, 0.0), 8), "zero": (lambda x: x - 0, 8),
    "without pad": (lambda x: F.avg_pool2d(x, 2, 2, 1, count_include_pad=False), 5),
    "without pad by place": (lambda x: F.avg_pool2d(x, 2, 2, 1, False, False), 5),
    "average": (lambda x: F.avg_pool2d(x, 2, stride=2), 4), "double": (lambda x: F.interpolate(x, scale_factor=2), 16),
    "nothing": (lambda x: F.dropout(x, 0.5, training=False).contiguous(), 8),
}  # fmt: skip
REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "cat": (lambda x: torch.cat([x[:, :4], x[:, 4:]], 1), r"getitem\(\)"),
    "chunk": (lambda x: torch.cat(x.chunk(2, 1), 1), r"chunk|getitem|cat"),
    "square": (lambda x: x * x, r"mul\(\)"),
    "reflected": (lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect")[..., 1:-1, 1:-1], r"pad\(\)"),
    "minus": (lambda x: 1 - x, r"sub\(\)"), "nothing left": (lambda x: x * 0, r"mul\(\)"),
    "always dropped": (lambda x: F.dropout(x, 0.5), r"dropout\(\)"),
    "smoothed": (lambda x: F.interpolate(x, scale_factor=1.0, mode="bilinear", antialias=True), r"interpolate\(\)"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_function_is_read_as_the_layer_of_its_name(name: str) -> None:
    between, side = READ[name]
    module = Net(between, side or 8)
    if side is None:
        module.head = nn.Linear(8 * 8 * 10, 4)
    layers = chain(freeze(module.eval(), (3, 8, 8)))
    torch.testing.assert_close(run(layers, IMAGE.double()), module.double()(IMAGE.double()))


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_layer_is_refused_by_its_name_and_searched(name: str) -> None:
    between, told = REFUSED[name]
    module = Net(between).eval()
    with pytest.raises(UnsupportedNetworkError, match=told):
        chain(freeze(module, (3, 8, 8)))
    assert audit(module, IMAGE, LABEL, max_iterations=2, nulls=0).images.isfinite().all()


def test_a_tensor_outside_of_a_layer_is_told() -> None:
    class Scaled(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.second(self.first(x) + self.offset).sigmoid().flatten(1))

    with pytest.raises(UnsupportedNetworkError, match="its tensor offset outside of a layer"):
        chain(freeze(Scaled(torch.tanh).eval(), (3, 8, 8)))


class Padded(nn.Module):
    def __init__(self, pad: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.pad = pad
        self.first, self.second = nn.Conv2d(3, 12, 3), nn.Conv2d(12, 12, 3)
        self.head = nn.Linear(768, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.pad(2 * x - 1)).sigmoid()
        return self.head(self.second(self.pad(x)).sigmoid().flatten(1))


@pytest.mark.parametrize("pad", [nn.ZeroPad2d(1), lambda x: F.pad(x, (1, 1, 1, 1)), lambda x: F.pad(x, (0, 2, 2, 0))])
def test_zeros_around_a_convolution_and_constants_are_peeled(pad: Callable[[Tensor], Tensor]) -> None:
    report = audit(Padded(pad).eval(), IMAGE, LABEL, attack=recipes.peel(), nulls=0)
    assert report.scores["peak_signal_noise_ratio"] > 60
    assert any(finding.code == "exact" for finding in report.findings)
