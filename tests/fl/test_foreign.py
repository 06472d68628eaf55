"""The boundary around the user's code, and modules as a search needs them."""

import copy
import re
from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from inversefed import audit, freeze
from inversefed.attacks import recipes
from inversefed.errors import InversefedError, UnsupportedNetworkError
from inversefed.fl.clients import FedSGD
from inversefed.fl.foreign import Callback, foreign_code

IMAGE, LABEL = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([1])


def smooth() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.Flatten(), nn.Linear(512, 4)).eval()


class Failing(nn.Module):
    """Fails from a call on; copies count for themselves."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.net, self.calls = smooth(), calls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls -= 1
        if self.calls < 0:
            raise KeyError("a fault of the user's own")
        return self.net(x)


@dataclass
class ModelOutput(OrderedDict[str, Any]):
    """In the style of Hugging Face: a dictionary with fields."""

    logits: torch.Tensor
    hidden_states: Any = None

    def __post_init__(self) -> None:
        super().__init__(logits=self.logits)


@dataclass
class Answer:
    logits: torch.Tensor
    loss: float


Outputs = namedtuple("Outputs", ["logits", "aux_logits"])


class Returning(nn.Module):
    """Returns its logits within something else, in train mode alone or always."""

    def __init__(self, form: Any, always: bool = False) -> None:
        super().__init__()
        self.net, self.form, self.always = smooth(), form, always

    def forward(self, x: torch.Tensor) -> Any:
        logits = self.net(x)
        return self.form(logits) if self.training or self.always else logits


OUTPUTS = {
    "a tuple": (lambda z: (z, 1.0), "tuple of Tensor[1, 4], float; wrap the module in one whose forward returns"),
    "nothing": (lambda _: None, "NoneType; wrap the module"),
    "a dictionary": (lambda z: {"out": z, "aux": z}, "dict of out, aux; wrap the module"),
    "logits by key": (lambda z: {"logits": z}, "outputs['logits']"),
    "a dataclass": (lambda z: Answer(z, 0.0), "Answer of logits, loss; wrap the module in one"),
    "a field": (lambda z: Answer(z, 0.0), "outputs.logits"),
    "a model's output": (
        ModelOutput,
        "ModelOutput of logits; wrap the module in one whose forward returns the logits ",
    ),
    "both": (ModelOutput, "outputs.logits"),
    "auxiliary heads": (lambda z: Outputs(z, z), "aux_logits=False, or call .eval(); or wrap the module"),
}


class Reentrant(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.net, self.reentrant = smooth(), reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net[2:](checkpoint(self.net[:2], x, use_reentrant=self.reentrant))


@pytest.mark.parametrize("calls", range(12))
def test_a_module_that_fails_on_any_call_is_an_error_of_ours(calls: int) -> None:
    with pytest.raises(InversefedError, match=r"KeyError: .a fault of the user.s own"):
        audit(Failing(calls), IMAGE, LABEL, attack=recipes.geiping(max_iterations=20), nulls=0)


@pytest.mark.parametrize("name", OUTPUTS)
def test_what_is_returned_beside_the_logits_is_named_with_what_to_do(name: str) -> None:
    form, told = OUTPUTS[name]
    expected = re.escape("one tensor of logits [n, classes]; this one gave ") + ".*" + re.escape(told)
    with pytest.raises(UnsupportedNetworkError, match=expected):
        audit(Returning(form).train(), IMAGE, LABEL, max_iterations=2, nulls=0)
    with pytest.raises(UnsupportedNetworkError, match=re.escape("one tensor of logits [n, classes]")):
        freeze(Returning(form, always=True), (3, 8, 8))


@pytest.mark.filterwarnings("ignore")
def test_auxiliary_heads_of_torchvision_are_refused_in_train_mode_alone() -> None:
    module = torchvision.models.googlenet(weights=None, init_weights=False, num_classes=3, aux_logits=True)
    with pytest.raises(UnsupportedNetworkError, match=r"of logits, .*aux_logits=False, or call \.eval\(\)"):
        FedSGD()(freeze(module.train(), (3, 64, 64)), torch.rand(2, 3, 64, 64), torch.tensor([0, 1]))
    assert freeze(module.eval(), (3, 64, 64)).num_classes == 3


@pytest.mark.filterwarnings("ignore")
def test_checkpoints_that_cannot_be_differentiated_are_refused_with_advice() -> None:
    with pytest.raises(UnsupportedNetworkError, match="use_reentrant=False"):
        audit(Reentrant(True).eval(), IMAGE, LABEL, max_iterations=2, nulls=0)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        lambda net: torch.compile(net, backend="eager"),
        lambda net: torch.compile(nn.DataParallel(net), backend="eager"),
        lambda net: nn.Sequential(torch.compile(net[0], backend="eager"), nn.DataParallel(net[1]), *net[2:]),
        lambda net: Reentrant(False),
    ],
)
def test_wrappers_change_nothing(wrap) -> None:
    attack = recipes.geiping(max_iterations=3)
    expected = audit(smooth(), IMAGE, LABEL, attack=attack, nulls=0)
    module = wrap(smooth())
    names = [name for name, _ in module.named_parameters()]
    report = audit(module.eval(), IMAGE, LABEL, attack=attack, nulls=0)
    assert torch.allclose(report.images, expected.images, atol=1e-3)
    assert [name for name, _ in module.named_parameters()] == names


@pytest.mark.parametrize("hard", [nn.Hardsigmoid(), F.hardsigmoid])
def test_hardsigmoid_is_searched_in_an_equal_form(hard) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.own = smooth(), hard if isinstance(hard, nn.Module) else nn.Identity()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net[2:](hard(self.net[:2](x)))

    module = Net().eval()
    network = freeze(module, (3, 8, 8))
    assert torch.equal(network.apply(network.params, IMAGE), module(IMAGE)) or torch.allclose(
        network.apply(network.params, IMAGE), module(IMAGE), atol=1e-6
    )
    assert audit(module, IMAGE, LABEL, max_iterations=3, nulls=0).images.isfinite().all()


def test_errors_of_the_callers_own_callbacks_pass() -> None:
    def stop(_: object) -> None:
        raise LookupError("the caller's own")

    for attack in (recipes.best(), recipes.geiping(max_iterations=3)):
        with pytest.raises(LookupError, match="the caller's own"):
            audit(smooth(), IMAGE, LABEL, attack=attack, on_step=stop, nulls=0)
    with pytest.raises(LookupError, match="the caller's own"):
        audit(
            smooth(), IMAGE, LABEL, attack=recipes.geiping(max_iterations=3), nulls=1, on_control=lambda *_: stop(None)
        )


@pytest.mark.parametrize("error", [KeyboardInterrupt(), MemoryError("all"), torch.OutOfMemoryError("CUDA")])
def test_interrupts_and_memory_errors_keep_their_meaning(error: BaseException) -> None:
    with pytest.raises(type(error)), foreign_code("the loss"):
        raise error
    with pytest.raises(MemoryError, match="the loss ran out of memory"), foreign_code("the loss"):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")


def test_only_what_a_callback_raised_itself_passes() -> None:
    callback = Callback(lambda: None)
    callback()
    with pytest.raises(UnsupportedNetworkError), foreign_code("the loss", callback, None):
        raise ValueError


def test_lazy_layers_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedNetworkError, match="lazy layers that were never built"):
        freeze(nn.Sequential(nn.Flatten(), nn.LazyLinear(4)), (3, 8, 8))
    built = nn.Sequential(nn.Flatten(), nn.LazyLinear(4))
    built(IMAGE)
    assert freeze(built, (3, 8, 8)).num_classes == 4


def test_operations_are_counted_where_train_mode_refuses_one_picture() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 8), nn.BatchNorm1d(8), nn.Linear(8, 4)).train()
    network = freeze(module, (3, 8, 8))
    assert network.operations() == 2 * (192 * 8 + 8 * 4)
    assert network.module.training and network.module[2].training


def test_what_a_module_keeps_of_the_private_pictures_stays_with_the_client() -> None:
    class Keeping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.seen = smooth(), []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.append(x.detach().clone())
            return self.net(x)

    from inversefed.fl.simulate import observed

    observation, _ = observed(Keeping().eval(), IMAGE, LABEL)
    assert all(not torch.equal(seen[:1], IMAGE) for seen in observation.network.module.seen)


def test_the_update_is_the_same_with_and_without_the_boundary() -> None:
    module = smooth()
    update = FedSGD()(freeze(module, (3, 8, 8)), IMAGE, LABEL)
    plain = copy.deepcopy(module)
    loss = F.cross_entropy(plain(IMAGE), LABEL)
    expected = torch.autograd.grad(loss, list(plain.parameters()))
    assert all(torch.equal(found, part) for found, part in zip(update.values(), expected, strict=True))


@pytest.mark.parametrize("form", [torch.float16, torch.bfloat16, torch.channels_last])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.Sigmoid])
def test_formats_that_a_module_may_be_in(form: torch.dtype | torch.memory_format, activation: type[nn.Module]) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), activation(), nn.Flatten(), nn.Linear(512, 4)).eval()
    module = module.to(memory_format=form) if isinstance(form, torch.memory_format) else module.to(form)
    report = audit(module, IMAGE.expand(2, -1, -1, -1) * torch.tensor([1.0, 0.5]).view(2, 1, 1, 1),
                   torch.tensor([1, 2]), max_iterations=100, nulls=0)  # fmt: skip
    # How far 16 bits of an update lead depends on how the processor sums them: 19.7 to 20.2 dB of the brighter picture.
    above = report.scores["peak_signal_noise_ratio"] - report.baselines["constant"]["peak_signal_noise_ratio"]
    assert bool((above > 8).all())


def test_a_search_of_sixteen_bits_is_computed_in_thirty_two() -> None:
    class Casting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = smooth().bfloat16()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x.bfloat16())

    for module in (smooth().bfloat16(), Casting().eval()):
        report = audit(module, IMAGE, LABEL, attack=recipes.spectral(100), nulls=0)
        assert report.images.dtype == torch.bfloat16
        assert report.scores["peak_signal_noise_ratio"] > 15
