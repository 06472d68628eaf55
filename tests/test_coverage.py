"""Whatever people bring, an audit ends with a report or with an `InversefedError`, and leaves their module as it was.

`python -m benchmarks.coverage` has all networks in all modes, and says how good the pictures are; this is its reduced
form, in few iterations.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import hypothesis
import pytest
import torch
from hypothesis import strategies as some
from torch import Generator, Tensor, nn
from torch.nn import functional as F

import inversefed
from benchmarks.small_networks import SHAPE, SMALL_NETWORKS, Function, Residual
from inversefed import FedAvg, FedSGD, errors
from inversefed.errors import InversefedError
from inversefed.fl.clients import Client
from inversefed.pipeline import audit
from inversefed.report.model import Report
from inversefed.types import Status

# What torch and a user's network say while they run is not the house's.
pytestmark = pytest.mark.filterwarnings("ignore")

CLIENTS: tuple[Client, ...] = (FedSGD(), FedAvg(local_steps=2, lr=1e-2))
TREE = {getattr(errors, name) for name in errors.__all__ if isinstance(getattr(errors, name), type)}


def audited(module: nn.Module, images: Tensor, labels: Tensor, **options: object) -> Report | InversefedError:
    """What comes out, held to what always holds."""
    before, given, state = held(module), images.clone(), torch.get_rng_state()
    try:
        found = audit(module, images, labels, nulls=0, **options)
    except InversefedError as error:
        found = error
    assert same(before, held(module)), "the user's module is not what it was"
    assert torch.equal(images, given) and torch.equal(torch.get_rng_state(), state)
    check_error(found) if isinstance(found, InversefedError) else check_report(found, images)
    return found


def held(module: nn.Module) -> tuple[dict[str, Tensor], list[object]]:
    """All that a module is: weights, buffers, modes, gradients, hooks."""
    values = {name: value.detach().clone() for name, value in module.state_dict(keep_vars=True).items()}
    facts: list[object] = [(each.training, len(each._forward_hooks)) for each in module.modules()]
    facts += [(id(each), each.requires_grad, each.grad is None) for each in module.parameters()]
    return values, facts


def same(before: tuple[dict[str, Tensor], list[object]], after: tuple[dict[str, Tensor], list[object]]) -> bool:
    values, facts = after
    equal = all(torch.equal(value, values[name]) for name, value in before[0].items())
    return equal and values.keys() == before[0].keys() and facts == before[1]


def check_error(error: InversefedError) -> None:
    """One of the tree, in words, without a torch object's address or a traceback in it."""
    assert type(error) in TREE
    assert len(str(error)) > 20 and "Traceback" not in str(error) and "object at 0x" not in str(error)


def check_report(report: Report, images: Tensor) -> None:
    """Finite pictures of the right shape, and a report that can be written."""
    found = report.images
    assert found.shape == images.shape and bool(torch.isfinite(found).all())
    assert report.truth is not None and torch.equal(report.truth.images, images)
    assert report.status in Status and len(report.labels) == len(images)
    assert '"verdict"' in report.to_json() and report.summary()


# --- networks by name --------------------------------------------------------------------------------------------

SAMPLED = sorted(SMALL_NETWORKS)[::3]
"""Every third by its name, each in another mode than its neighbors."""


def mode_of(name: str) -> tuple[bool, int, Client]:
    """Train mode, number of pictures, client: all eight in turn."""
    place = SAMPLED.index(name)
    return bool(place % 2), (1, 3)[place // 2 % 2], CLIENTS[place // 4 % 2]


@pytest.mark.parametrize("name", SAMPLED)
def test_a_network_of_any_kind_ends_in_a_report_or_in_our_own_error(name: str) -> None:
    small = SMALL_NETWORKS[name]
    train, count, client = mode_of(name)
    images = torch.rand(count, *SHAPE, generator=Generator().manual_seed(1)).to(small.dtype)
    labels = (3 * torch.arange(count) + 1) % small.classes
    options = {"client": client, "loss": small.loss, "max_iterations": 2, "time_budget": 0.5}
    audited(small.build().train(train), images, labels, **options)


def test_the_sample_has_all_modes() -> None:
    assert len({(*mode_of(name)[:2], type(mode_of(name)[2])) for name in SAMPLED}) == 8


# --- networks out of a grammar -----------------------------------------------------------------------------------

LAYERS: dict[str, Callable[[int], nn.Module]] = {
    "convolution": lambda c: nn.Conv2d(c, 6, 3, padding=1),
    "strided": lambda c: nn.Conv2d(c, 8, 3, 2, 1),
    "reflected": lambda c: nn.Conv2d(c, 6, 3, padding=1, padding_mode="reflect"),
    "depthwise": lambda c: nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False),
    "pointwise": lambda c: nn.Conv2d(c, 6, 1),
    "batchnorm": nn.BatchNorm2d,
    "groupnorm": lambda c: nn.GroupNorm(1, c),
    "instancenorm": lambda c: nn.InstanceNorm2d(c, affine=True),
    "channelwise": lambda c: nn.GroupNorm(c, c),
    "relu": lambda _: nn.ReLU(),
    "in place": lambda _: nn.SiLU(inplace=True),
    "prelu": lambda _: nn.PReLU(),
    "sigmoid": lambda _: nn.Sigmoid(),
    "gelu": lambda _: Function(F.gelu),
    "hardswish": lambda _: nn.Hardswish(),
    "hardsigmoid": lambda _: nn.Hardsigmoid(),
    "max pool": lambda _: nn.MaxPool2d(2),
    "average pool": lambda _: nn.AvgPool2d(2),
    "global pool": lambda _: nn.AdaptiveAvgPool2d(1),
    "zero pad": lambda _: nn.ZeroPad2d(1),
    "pad": lambda _: Function(lambda x: F.pad(x, (1, 0, 1, 0))),
    "dropout": lambda _: nn.Dropout(0.3),
    "residual": lambda c: Residual(nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.ReLU()), torch.add),
    "concatenated": lambda c: Residual(nn.Conv2d(c, 4, 3, padding=1), lambda y, x: torch.cat([x, y], 1)),
    "frozen": lambda c: nn.Conv2d(c, 6, 3, padding=1).requires_grad_(False),
}
HEADS: dict[str, Callable[[int], nn.Module]] = {
    "linear": lambda f: nn.Linear(f, 4),
    "no bias": lambda f: nn.Linear(f, 4, bias=False),
    "two": lambda f: nn.Sequential(nn.Linear(f, 16), nn.ReLU(), nn.Linear(16, 4)),
    "normed": lambda f: nn.Sequential(nn.Linear(f, 16), nn.BatchNorm1d(16), nn.Linear(16, 4)),
    "log-softmax": lambda f: nn.Sequential(nn.Linear(f, 4), nn.LogSoftmax(1)),
}


@dataclass(frozen=True)
class Drawn:
    """A network and how it is audited, all by name, so that a failure can be typed in."""

    layers: tuple[str, ...]
    head: str
    train: bool
    count: int
    client: Client
    known: bool
    dtype: torch.dtype

    def build(self) -> nn.Module:
        """The layers for pictures of 3x8x8; what does not fit the features that are left is left out."""
        torch.manual_seed(0)
        module, x = nn.Sequential(), torch.zeros(2, 3, 8, 8)
        for name in self.layers:
            if fits(name, x.shape[-1]):
                module.append(LAYERS[name](x.shape[1]))
                x = module[-1].eval()(x)
        module.append(nn.Flatten()).append(HEADS[self.head](x[0].numel()))
        return module.to(self.dtype).train(self.train)


def fits(name: str, side: int) -> bool:
    return side >= 2 or not (name.endswith("pool") or name in ("reflected", "instancenorm", "channelwise"))


drawn = some.builds(
    Drawn,
    layers=some.lists(some.sampled_from(sorted(LAYERS)), min_size=1, max_size=5).map(tuple),
    head=some.sampled_from(sorted(HEADS)),
    train=some.booleans(),
    count=some.integers(1, 3),
    client=some.sampled_from(CLIENTS),
    known=some.booleans(),
    dtype=some.sampled_from([torch.float32, torch.float32, torch.float64, torch.bfloat16]),
)


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2, 3))])
def test_any_network_out_of_a_grammar_ends_in_a_report_or_in_our_own_error(part: int) -> None:
    @hypothesis.seed(part)
    @hypothesis.settings(max_examples=25, deadline=None, database=None, phases=[hypothesis.Phase.generate])
    @hypothesis.given(drawn)
    def holds(one: Drawn) -> None:
        images = torch.rand(one.count, 3, 8, 8, generator=Generator().manual_seed(1)).to(one.dtype)
        threat = inversefed.ThreatModel(labels="known" if one.known else "unknown")
        options = {"client": one.client, "threat": threat, "max_iterations": 2, "time_budget": 2.0}
        audited(one.build(), images, torch.arange(one.count), **options)

    holds()


@pytest.mark.parametrize("count", [1, 3])
def test_a_first_layer_that_works_in_place_changes_no_picture(count: int) -> None:
    one = Drawn(("in place", "strided", "sigmoid"), "linear", False, count, FedSGD(), False, torch.float32)
    images = torch.rand(count, 3, 8, 8, generator=Generator().manual_seed(1))
    found = audited(one.build(), images, torch.arange(count), max_iterations=2, time_budget=2.0)
    assert isinstance(found, Report)


# --- networks that fail on the way -------------------------------------------------------------------------------


class Failing(nn.Module):
    """A network whose forward fails at one call, whoever's copy it is."""

    def __init__(self, error: BaseException, calls: Iterator[int], at: int) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Sigmoid(), nn.Flatten(), nn.Linear(96, 4))
        self.fails = Function(lambda x: failing(x, error, calls, at))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.fails(x))


def failing(x: Tensor, error: BaseException, calls: Iterator[int], at: int) -> Tensor:
    if next(calls) == at:
        raise error
    return x


def fails_at(at: int, error: BaseException, count: int = 1) -> Report | InversefedError:
    torch.manual_seed(0)
    module = Failing(error, itertools.count(1), at).eval()
    images = torch.rand(count, 3, 8, 8, generator=Generator().manual_seed(1))
    return audited(module, images, torch.arange(count), max_iterations=3, time_budget=5.0)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("at", [1, 2, 3, 5, 8, 13, 21])
def test_a_forward_that_fails_at_any_call_is_no_foreign_exception(at: int, count: int) -> None:
    error = [RuntimeError, ValueError, KeyError, ZeroDivisionError, IndexError][at % 5]("of the user's own")
    found = fails_at(at, error, count)
    if isinstance(found, InversefedError):
        assert "of the user's own" in str(found)


@pytest.mark.parametrize("at", [3, 12])
def test_an_interruption_stays_one(at: int) -> None:
    try:
        found = fails_at(at, KeyboardInterrupt())
    except KeyboardInterrupt:
        return
    assert isinstance(found, Report) and found.status is Status.INTERRUPTED
