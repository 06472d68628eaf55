"""Each layer of the table is the same layer in every form in which it is written, and what the table says holds."""

import inspect
from collections.abc import Callable
from dataclasses import fields

import pytest
import torch
from torch import Tensor, nn

from inversefed import freeze
from inversefed.networks.architecture import architecture
from inversefed.networks.graph import LAYER_KINDS, Affine, LayerKind
from inversefed.networks.layer_chain import chain, run
from inversefed.updates.diagnosis.module_graph import edges

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
VALUES = {"kernel_size": 2, "output_size": 2, "dim": 1, "threshold": 0.1, "value": 0.2, "padding": (1, 1, 1, 1)}
"""What layers are given that ask for something."""
OTHERWISE: dict[str, tuple[dict[str, object], tuple[object, ...], dict[str, object]]] = {
    "Softmax": ({"dim": 1}, (1,), {}), "LogSoftmax": ({"dim": 1}, (1,), {}), "Dropout": ({}, (), {"training": False}),
    "Dropout2d": ({}, (), {"training": False}), "Upsample": ({"scale_factor": 2}, (), {"scale_factor": 2}),
    "ZeroPad2d": ({"padding": (1, 1, 1, 1)}, ((1, 1, 1, 1),), {}), "Identity": ({}, (), {}),
}  # fmt: skip
"""Layers whose module and function are called differently: arguments of the module, and those of the function."""
BY_HAND = {"reshape": ((-1, 512),), "view": ((-1, 512),), "flatten": (1,), "mean": ((2, 3), True)}
"""What functions are given that do only sometimes what the layer does."""
SQUEEZES = {torch.squeeze, "squeeze", "squeeze_"}
NOT_ALIKE = {torch.adaptive_max_pool1d, torch.dropout, torch.dropout_, *SQUEEZES}
"""Functions that give a pair, cannot be told to be off by name, or flatten series alone."""
DROPS_AXIS = [kind for kind in LAYER_KINDS if kind.module is nn.AdaptiveAvgPool1d and "mean" in kind.forms]
"""A layer and a `Flatten`: see `test_series_chain.py`."""

KINDS = [
    kind
    for kind in LAYER_KINDS
    if kind.module not in (None, Affine) and kind.arguments is not None and kind not in DROPS_AXIS
]
FORMS = [(kind, form) for kind in KINDS for form in (*kind.functions, *kind.methods) if form not in NOT_ALIKE]


def named(each: object) -> str:
    return each.module.__name__ if isinstance(each, LayerKind) and each.module else getattr(each, "__name__", str(each))


def module_of(kind: LayerKind) -> nn.Module:
    assert kind.module is not None
    given = {
        name: VALUES[name]
        for name, each in inspect.signature(kind.module).parameters.items()
        if each.default is inspect.Parameter.empty and name in VALUES
    }
    if "mean" in kind.forms:
        given = {"output_size": 1}
    return kind.module(**OTHERWISE.get(kind.module.__name__, (given,))[0]).eval()


def called(kind: LayerKind, form: Callable[..., Tensor] | str) -> Callable[[Tensor], Tensor]:
    """A form of a layer as a function of what goes in."""
    assert kind.module is not None and kind.arguments is not None
    name = form if isinstance(form, str) else form.__name__
    asked = inspect.signature(kind.module).parameters
    needed = [VALUES[each] for each in kind.arguments if asked[each].default is inspect.Parameter.empty]
    _, given, words = OTHERWISE.get(kind.module.__name__, ({}, BY_HAND.get(name, tuple(needed)), {}))
    if isinstance(form, str):
        return lambda x: getattr(x, name)(*given, **words)
    return lambda x: form(x, *given, **words)


class Net(nn.Module):
    """A convolution and a head, and something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor], lines: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.front, self.lines = nn.Conv2d(3, 8, 3, padding=1), nn.Flatten(2) if lines else nn.Identity()
        self.between, self.flatten, self.head = between, nn.Flatten(), nn.LazyLinear(4)
        self.double().eval()(IMAGES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.flatten(self.between(self.lines(self.front(x)))))


@pytest.mark.parametrize(("kind", "form"), FORMS, ids=named)
def test_every_form_is_read_as_the_same_layer(kind: LayerKind, form: Callable[..., Tensor] | str) -> None:
    lines = named(kind).endswith("1d")
    networks = [freeze(Net(each, lines), (3, 8, 8)) for each in (module_of(kind), called(kind, form))]
    layers, other = (chain(network) for network in networks)
    assert [type(layer.module) for layer in other] == [type(layer.module) for layer in layers]
    assert [layer.shape for layer in other] == [layer.shape for layer in layers]
    assert not any(layer.module.training for layer in other)
    for found, network in zip((layers, other), networks, strict=True):
        torch.testing.assert_close(run(found, IMAGES), network.module(IMAGES))
    facts, others = (architecture(network) for network in networks)
    for field in fields(facts):
        assert bool(getattr(facts, field.name)) == bool(getattr(others, field.name)), field.name
    assert edges(networks[0]) == edges(networks[1])
    assert bool(edges(networks[0])) == kind.piecewise_linear


def pulled_back(kind: LayerKind, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What comes out of its module, made-up slopes `delta` of that, and those of what went in."""
    module, leaf = module_of(kind), inputs.clone().requires_grad_()
    outputs = module(leaf.flatten(2) if named(kind).endswith("1d") else leaf)
    delta = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return outputs.detach(), delta, torch.autograd.grad(outputs, leaf, delta)[0]


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_slopes_jump_where_the_table_says_so(kind: LayerKind) -> None:
    """At equal inputs from -8 to 8, and a little to either side of them: there a kink or another winner shows."""
    aside = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inputs = (torch.arange(-80, 81, dtype=torch.float64) / 10)[:, None, None, None].expand(-1, 4, 4, 4)
    before, behind = (pulled_back(kind, inputs + step * aside)[2] for step in (-1e-7, 1e-7))
    # SELU's slope jumps by 0.7 at 0; it is curved on one side, and searches take it for smooth.
    assert bool((before - behind).abs().max() < 1e-4) == (kind.smooth and kind.module is not nn.SELU)


@pytest.mark.parametrize("kind", KINDS, ids=named)
def test_what_is_linear_between_its_kinks_keeps_products(kind: LayerKind) -> None:
    """The sum of delta x, in front and behind."""
    inputs = 5 * torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outputs, delta, below = pulled_back(kind, inputs)
    assert torch.allclose((delta * outputs).sum(), (below * inputs).sum()) == kind.piecewise_linear


def test_no_kind_stands_twice_in_the_table() -> None:
    averages = nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d  # a mean over places is one more form of them
    modules = [kind.module for kind in LAYER_KINDS if kind.module not in (None, Affine, *averages)]
    assert len(modules) == len(set(modules))
