"""Updates that somebody made with plain PyTorch: read in each format, and understood as what they are."""

import copy
import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from inversefed import FedAvg, FedSGD, LocalAdam, LocalAdamW, LocalSGD, freeze
from inversefed.errors import ConfigError, InputError, UpdateMismatchError
from inversefed.fl.batchnorm import sent_buffers
from inversefed.fl.clients.partial import Shares, _fits
from inversefed.fl.clients.views import UnknownClient, unknown
from inversefed.specs import registry
from inversefed.updates.described import described, stated_by
from inversefed.updates.diagnosis import MISFITS, diagnose
from inversefed.updates.files.axes import turned
from inversefed.updates.left_out import patterns
from inversefed.updates.metadata import read_metadata
from inversefed.updates.update import (
    Metadata,
    Update,
    as_observation,
    assumptions,
    expected_tensors,
    read_update,
    write_update,
)

SHAPE = (3, 8, 8)
MEAN, STD = 0.5, 0.25
TOLD = Metadata("weight_delta", 0.1, 4, 8, 2, 0.9, "mean", "eval")


def network_with_norm() -> nn.Module:
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten(), nn.Linear(64, 4))
    return nn.Sequential(*layers).eval()


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    return torch.rand((4, *SHAPE), generator=generator), torch.tensor([0, 3, 1, 1])


def gradient_of(module: nn.Module, images: torch.Tensor, labels: torch.Tensor, reduction: str = "mean") -> dict:
    """What a stranger writes, in plain PyTorch."""
    loss = nn.functional.cross_entropy(module((images - MEAN) / STD), labels, reduction=reduction)
    names, weights = zip(*module.named_parameters(), strict=True)
    return dict(zip(names, torch.autograd.grad(loss, weights), strict=True))


def trained(module: nn.Module, images: torch.Tensor, labels: torch.Tensor, **settings: float) -> nn.Module:
    """A copy of the module after two steps on two examples each."""
    other = copy.deepcopy(module)
    optimizer = torch.optim.SGD(other.parameters(), **settings)
    for part in (slice(0, 2), slice(2, 4)):
        optimizer.zero_grad()
        nn.functional.cross_entropy(other((images[part] - MEAN) / STD), labels[part]).backward()
        optimizer.step()
    return other


def close(left: dict, right: dict, tolerance: float = 1e-6) -> bool:
    return left.keys() == right.keys() and all(torch.allclose(left[n], right[n], atol=tolerance) for n in left)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt", ".pth"])
@pytest.mark.parametrize("told", [Metadata(), TOLD], ids=["silent", "told"])
def test_an_update_comes_back_from_every_format(tmp_path, suffix, told):
    tensors = expected_tensors(network_with_norm())
    write_update(tmp_path / f"u{suffix}", Update(tensors, told))
    for expected in (None, tensors):
        read = read_update(tmp_path / f"u{suffix}", expected)
        assert read.metadata == told
        assert read.tensors.keys() == tensors.keys()
        assert all(torch.equal(read.tensors[name], tensors[name]) for name in tensors)
        assert all(read.tensors[name].dtype == tensors[name].dtype for name in tensors)
    assert [file.name for file in tmp_path.iterdir()] == [f"u{suffix}"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
def test_other_number_formats_keep_their_values(tmp_path, suffix, dtype):
    tensors = {"weight": torch.linspace(-2, 2, 12).view(3, 4).to(dtype), "scale": torch.tensor(0.5, dtype=dtype)}
    write_update(tmp_path / f"u{suffix}", Update(tensors))
    read = read_update(tmp_path / f"u{suffix}").tensors
    assert all(torch.equal(read[name].double(), tensors[name].double()) for name in tensors)


def arrays(update: dict) -> dict:
    return {name: part.numpy() for name, part in update.items()}


def one_storage(update: dict) -> dict:
    parts = torch.cat([part.flatten() for part in update.values()]).split([part.numel() for part in update.values()])
    return {name: part.view_as(update[name]) for name, part in zip(update, parts, strict=True)}


def channels_last(update: dict) -> dict:
    return {n: p.to(memory_format=torch.channels_last) if p.ndim == 4 else p for n, p in update.items()}


def checkpoint(update: dict) -> dict:
    state = {index: {"step": torch.tensor(3.0), "exp_avg": part} for index, part in enumerate(update.values())}
    groups = [{"lr": 0.1, "betas": (0.9, 0.999), "foreach": None, "params": list(state)}]
    return {"model": update, "optimizer": {"state": state, "param_groups": groups}, "epoch": 3}


def marked(part: torch.Tensor) -> nn.Parameter:
    parameter = nn.Parameter(part)
    parameter.layer = "some note of the training code"
    return parameter


def wrapped(update: dict, prefix: str) -> dict:
    return {"model_state_dict": {f"{prefix}{name}": part for name, part in update.items()}}


SAVED = {
    "save_file": (".safetensors", lambda f, u: safetensors.torch.save_file(u, f, {"kind": "gradient"})),
    "savez by name": (".npz", lambda f, u: np.savez(f, **arrays(u), kind="gradient", learning_rate=0.1)),
    "savez by position": (".npz", lambda f, u: np.savez(f, *arrays(u).values())),
    "savez_compressed": (".npz", lambda f, u: np.savez_compressed(f, **arrays(u))),
    "Fortran": (".npz", lambda f, u: np.savez(f, **{n: np.asfortranarray(a) for n, a in arrays(u).items()})),
    "list": (".pt", lambda f, u: torch.save(list(u.values()), f)),
    "parameters": (".pt", lambda f, u: torch.save({name: nn.Parameter(part) for name, part in u.items()}, f)),
    "marked parameters": (".pt", lambda f, u: torch.save({name: marked(part) for name, part in u.items()}, f)),
    "channels last": (".pt", lambda f, u: torch.save(channels_last(u), f)),
    "one storage": (".pt", lambda f, u: torch.save(one_storage(u), f)),
    "checkpoint": (".pth", lambda f, u: torch.save(checkpoint(u), f)),
    "Lightning": (".pt", lambda f, u: torch.save({"state_dict": u, "kind": "gradient"}, f)),
    "DataParallel": (".pt", lambda f, u: torch.save(wrapped(u, "module."), f)),
    "compiled": (".pt", lambda f, u: torch.save(wrapped(u, "_orig_mod."), f)),
    "Opacus": (".pt", lambda f, u: torch.save(wrapped(u, "_module."), f)),
}
"""What people's own scripts write."""


@pytest.mark.parametrize("tool", SAVED)
def test_what_other_tools_write_is_read(tmp_path, batch, tool):
    module = network_with_norm()
    update = gradient_of(module, *batch)
    suffix, save = SAVED[tool]
    save(tmp_path / f"u{suffix}", update)
    read = read_update(tmp_path / f"u{suffix}", expected_tensors(module))
    observation = as_observation(freeze(module, SHAPE, mean=MEAN, std=STD), read, num_examples=4)
    assert observation.client == FedSGD()
    assert list(observation.update) == [name for name, _ in module.named_parameters()]
    assert all(torch.equal(observation.update[name], update[name]) for name in update)


def test_positions_of_a_whole_state_dict_are_named(tmp_path):
    module = network_with_norm()
    np.savez(tmp_path / "u.npz", *[value.numpy() for value in module.state_dict().values()])
    read = read_update(tmp_path / "u.npz", expected_tensors(module))
    assert list(read.tensors) == list(module.state_dict())
    np.savez(tmp_path / "u.npz", *[value.numpy() for value in reversed(module.state_dict().values())])
    with pytest.raises(UpdateMismatchError, match="without names"):
        read_update(tmp_path / "u.npz", expected_tensors(module))


def test_a_gradient_is_what_this_client_would_send(batch):
    module = network_with_norm()
    network = freeze(module, SHAPE, mean=MEAN, std=STD)
    for reduction in ("mean", "sum"):
        told = Metadata("gradient", num_examples=4, loss_reduction=reduction)
        observation = as_observation(network, Update(gradient_of(module, *batch, reduction), told))
        assert observation.num_examples == 4 and observation.buffers is None
        assert close(observation.update, observation.client(network, *batch))


@pytest.mark.parametrize("kind", ["weight_delta", "new_weights"])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_trained_weights_are_what_this_client_would_send(batch, kind, momentum):
    module = network_with_norm()
    network = freeze(module, SHAPE, mean=MEAN, std=STD)
    old, new = module.state_dict(), trained(module, *batch, lr=0.1, momentum=momentum).eval().state_dict()
    sent = new if kind == "new_weights" else {name: new[name] - old[name] for name in new}
    told = Metadata(kind, learning_rate=0.1, local_steps=2, num_examples=4, batch_size=2, momentum=momentum)
    observation = as_observation(network, Update(sent, told))
    assert observation.client == FedAvg(
        2, 0.1, 2, optimizer=LocalSGD(momentum), sends="delta" if kind == "weight_delta" else "weights"
    )
    assert close(observation.update, observation.client(network, *batch))
    if kind == "new_weights":
        again = as_observation(network, Update(sent, Metadata(learning_rate=0.1)), after=True)
        assert close(dict(again.update), dict(observation.update))


def test_a_sum_of_losses_is_a_longer_step(batch):
    module = network_with_norm()
    network = freeze(module, SHAPE, mean=MEAN, std=STD)
    gradient = gradient_of(module, *batch, "sum")
    delta = {name: -0.1 * part for name, part in gradient.items()}
    told = Metadata("weight_delta", learning_rate=0.1, num_examples=4, loss_reduction="sum")
    observation = as_observation(network, Update(delta, told))
    assert close(observation.update, observation.client(network, *batch))


@pytest.mark.parametrize("kind", ["weight_delta", "new_weights"])
def test_running_buffers_come_with_the_weights(batch, kind):
    module = network_with_norm().train()
    network = freeze(module, SHAPE, mean=MEAN, std=STD)
    old, new = module.state_dict(), trained(module, *batch, lr=0.1).state_dict()
    sent = new if kind == "new_weights" else {name: new[name] - old[name] for name in new}
    told = Metadata(kind, learning_rate=0.1, local_steps=2, num_examples=4, batch_size=2)
    observation = as_observation(network, Update(sent, told))
    assert observation.buffers is not None
    assert close(dict(observation.buffers), dict(sent_buffers(observation.client, network, *batch)))
    assert observation.buffers["1.num_batches_tracked"].dtype == torch.int64


def test_the_mode_of_batchnorm_is_that_of_the_metadata(batch):
    module = network_with_norm()
    network = freeze(module, SHAPE, mean=MEAN, std=STD)
    gradient = gradient_of(module.train(), *batch)
    observation = as_observation(network, Update(gradient, Metadata("gradient", num_examples=4, bn_mode="train")))
    assert close(observation.update, observation.client(observation.network, *batch))
    assert not close(observation.update, observation.client(network, *batch), 1e-4)
    assert not network.module.training and not any(part.training for part in network.module.modules())


def test_frozen_parameters_may_be_in_the_file_if_they_did_not_move(batch):
    module = network_with_norm()
    module[0].requires_grad_(False)
    network, state = freeze(module, SHAPE), module.state_dict()
    observation = as_observation(network, Update(state, Metadata("new_weights", 0.1)))
    assert "0.weight" not in observation.update and "4.weight" in observation.update
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    as_observation(network, Update(zeros, Metadata("weight_delta", 0.1)))
    with pytest.raises(UpdateMismatchError, match=r"0\.bias is frozen"):
        as_observation(network, Update(zeros | {"0.bias": torch.ones(4)}, Metadata("weight_delta", 0.1)))


def test_tied_weights_are_found_under_either_name():
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 192), nn.Sigmoid(), nn.Linear(192, 192))
    module[3].weight = module[1].weight
    state = {name: value.clone() for name, value in module.state_dict().items()}
    network = freeze(module, SHAPE)
    for left_out in ("1.weight", "3.weight"):
        rest = {name: value for name, value in state.items() if name != left_out}
        assert set(as_observation(network, Update(rest)).update) == {"1.weight", "1.bias", "3.bias"}


def test_without_a_learning_rate_the_client_is_unknown_and_said_to_be(batch):
    module = network_with_norm()
    update = Update(gradient_of(module, *batch), Metadata("weight_delta"))
    assert as_observation(freeze(module, SHAPE), update).client == UnknownClient("delta")
    assert [finding.code for finding in assumptions(update.metadata)] == ["client-unknown", "num-examples-assumed"]
    assert [finding.code for finding in assumptions(Metadata())] == ["kind-assumed", "num-examples-assumed"]
    assert not assumptions(TOLD)


def test_a_client_that_is_given_has_to_send_what_the_file_holds(batch):
    module = network_with_norm()
    network, gradient = freeze(module, SHAPE), gradient_of(module, *batch)
    client = FedAvg(1, 0.1)
    assert as_observation(network, Update(gradient), client=client).client == client
    with pytest.raises(ConfigError, match="kind gradient"):
        as_observation(network, Update(gradient, Metadata("gradient")), client=client)


def test_what_does_not_fit_is_refused(batch, tmp_path):
    module = network_with_norm()
    network, gradient = freeze(module, SHAPE), gradient_of(module, *batch)
    with pytest.raises(UpdateMismatchError, match=r"4\.bias is missing"):
        as_observation(network, Update({name: part for name, part in gradient.items() if name != "4.bias"}))
    with pytest.raises(InputError, match=r"NaN or infinite values in 4\.bias"):
        as_observation(network, Update(gradient | {"4.bias": torch.full((4,), torch.nan)}))
    with pytest.raises(InputError, match="not finite"):
        as_observation(network, Update(gradient | {"1.running_mean": torch.full((4,), torch.inf)}))
    with pytest.raises(InputError, match="--num-examples to look for them all"):
        as_observation(network, Update(gradient, Metadata(num_examples=1_000_000)))
    assert as_observation(network, Update(gradient), num_examples=100_000).num_examples == 100_000
    with pytest.raises(InputError, match="--batch-size"):
        as_observation(network, Update(gradient, Metadata("weight_delta", 0.1, num_examples=2, batch_size=4)))
    write_update(tmp_path / "u.pt", Update({"0.weight": torch.zeros(1), "5.weight": torch.zeros(4)}))
    with pytest.raises(UpdateMismatchError, match=r"5\.weight is not in the network; 0\.weight has shape \(1,\)"):
        read_update(tmp_path / "u.pt", expected_tensors(module))
    assert set(read_update(tmp_path / "u.pt", expected_tensors(module), strict=False).tensors) == {
        "0.weight",
        "5.weight",
    }


def test_nothing_is_written_to(batch):
    module = network_with_norm()
    network, gradient = freeze(module, SHAPE), gradient_of(module, *batch)
    before = {name: part.clone() for name, part in gradient.items()}
    as_observation(network, Update(gradient, Metadata("gradient", num_examples=4, loss_reduction="sum")))
    assert all(torch.equal(gradient[name], before[name]) for name in before)


@pytest.mark.parametrize(
    ("notes", "message"),
    [
        ({"kind": "delta"}, "kind is delta, but it is one of gradient, weight_delta, new_weights; give --kind"),
        ({"kind": "<script>"}, r"kind is '\\x3cscript\\x3e'"),
        ({"learning_rate": "nan"}, "learning_rate is .*, but it is a number above 0"),
        ({"learning_rate": "1e-30"}, "learning_rate is .*, but it is a number above 0"),
        ({"learning_rate": "-0.1"}, "learning_rate is .*, but it is a number above 0"),
        ({"learning_rate": "1e999"}, "learning_rate is .*, but it is a number above 0"),
        ({"learning_rate": "x" * 500}, "learning_rate is .*, but it is a number"),
        ({"local_steps": "1.5"}, "local_steps is 1.5, but it is a whole number from 1 to 10,000"),
        ({"local_steps": "1e30"}, "local_steps is .*, but it is a whole number"),
        ({"num_examples": True}, "num_examples is True, but it is a whole number"),
        ({"momentum": 1.0}, "momentum is 1.0"),
        ({"bn_mode": 3}, "bn_mode is int"),
    ],
)
def test_metadata_that_cannot_be_are_refused(notes, message):
    with pytest.raises(InputError, match=message):
        read_metadata(notes)


def test_metadata_are_read_from_text_and_overridden(unchecked):
    notes = {name: str(value) for name, value in TOLD.given().items()} | {"round": "12", "local_steps": "4.0"}
    assert read_metadata(notes) == TOLD
    other = TOLD.overridden(Metadata(learning_rate=0.5, kind="new_weights"))
    assert (other.kind, other.learning_rate, other.local_steps) == ("new_weights", 0.5, 4)
    for wrong in ({"kind": "delta"}, {"local_steps": 0}, {"momentum": -1.0}):
        with pytest.raises(ConfigError):
            Metadata(**wrong)


def test_formats_agree_with_each_other(tmp_path, batch):
    module = network_with_norm()
    update = Update(gradient_of(module, *batch), TOLD)
    suffixes = (".safetensors", ".npz", ".pt")
    for index, (one, other) in enumerate(itertools.permutations(suffixes, 2)):
        write_update(tmp_path / f"{index}{one}", update)
        write_update(tmp_path / f"{index}{other}", read_update(tmp_path / f"{index}{one}"))
        read = read_update(tmp_path / f"{index}{other}", expected_tensors(module))
        assert read.metadata == TOLD and all(torch.equal(read.tensors[n], update.tensors[n]) for n in update.tensors)


@pytest.mark.parametrize("prefix", ["model.", "net.encoder.", "module.model."])
def test_a_prefix_of_all_names_is_taken_off_where_they_are_the_networks_without_it(tmp_path, batch, prefix):
    module = network_with_norm()
    whole = dict(module.state_dict())
    torch.save(
        {"state_dict": {prefix + name: part for name, part in whole.items()}, "epoch": 3}, tmp_path / "last.ckpt"
    )
    read = read_update(tmp_path / "last.ckpt", expected_tensors(module))
    assert set(read.tensors) == set(whole)
    more = {f"{prefix}{name}": part for name, part in whole.items()} | {"metric.total": torch.zeros(1)}
    torch.save({"state_dict": more}, tmp_path / "more.ckpt")
    with pytest.raises(UpdateMismatchError, match="not in the network"):
        read_update(tmp_path / "more.ckpt", expected_tensors(module))


def half_frozen() -> nn.Module:
    """Its first layer is frozen, with weights small enough that 16 bits keep no digit of them."""
    module = network_with_norm()
    module[0].requires_grad_(False)
    with torch.no_grad():
        module[0].weight.view(-1)[::2] *= 1e-6
        module[1].running_mean += 0.0123
        module[1].num_batches_tracked += 5001
    return module


@pytest.mark.parametrize("decoded", [False, True], ids=["16 bits", "32 bits again"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_to_16_bits_is_no_change_of_what_is_frozen(batch, dtype, decoded):
    module = half_frozen()
    network, state = freeze(module, SHAPE, mean=MEAN, std=STD), module.state_dict()
    new = trained(module, *batch, lr=0.1).eval().state_dict()
    rounded = {name: value.to(dtype) for name, value in new.items()}
    rounded = {name: value.float() for name, value in rounded.items()} if decoded else rounded
    observation = as_observation(network, Update(rounded, Metadata("new_weights", 0.1, num_examples=4)))
    assert list(observation.update) == ["1.weight", "1.bias", "4.weight", "4.bias"]
    own = dict(network.module.named_buffers())
    assert all(torch.equal(buffer, own[name]) for name, buffer in observation.buffers.items()), "nor of the buffers"
    change = {name: rounded[name].float() - state[name] for name in state}
    observation = as_observation(network, Update(change, Metadata("weight_delta", 0.1, num_examples=4)))
    assert all(torch.equal(buffer, own[name]) for name, buffer in observation.buffers.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_a_change_of_what_is_frozen_by_more_than_rounding_is_refused(dtype):
    module = half_frozen()
    network, state = freeze(module, SHAPE), module.state_dict()
    moved = {**state, "0.weight": 1.02 * state["0.weight"]}
    for told, sent in (
        (Metadata("new_weights", 0.1), moved),
        (Metadata("weight_delta", 0.1), {name: moved[name] - state[name] for name in state}),
        (Metadata("gradient"), {name: 1e-6 * torch.ones_like(value) for name, value in state.items()}),
    ):
        with pytest.raises(
            UpdateMismatchError, match=r"0\.(weight|bias) is frozen in the network.* more than rounding"
        ):
            as_observation(network, Update({name: part.to(dtype) for name, part in sent.items()}, told))
    with pytest.raises(UpdateMismatchError, match=r"0\.bias has shape \(5,\), expected \(4,\)"):
        as_observation(network, Update({**state, "0.bias": torch.zeros(5)}, Metadata("new_weights", 0.1)))


COUNTERS = {
    "a number": torch.tensor(7),
    "a list of one": torch.tensor([7]),
    "a row": torch.tensor([[7.0]]),
    "16 bits": torch.tensor(7, dtype=torch.float16),
    "8 bits": torch.tensor([7], dtype=torch.uint8),
}
NO_COUNTERS = {"empty": torch.zeros(0), "several": torch.zeros(5), "too large for 16 bits": torch.tensor(torch.inf)}
"""What torch.Tensor makes of the numbers 0 and 5, and of 70,000 in float16."""


@pytest.mark.parametrize("suffix", [".safetensors", ".npz", ".pt"])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("form", [*COUNTERS, *NO_COUNTERS])
def test_counters_come_in_any_shape_and_format(tmp_path, form, named, suffix):
    module = network_with_norm()
    counter = {**COUNTERS, **NO_COUNTERS}[form]
    state = {**module.state_dict(), "1.num_batches_tracked": counter}
    if not named and suffix != ".safetensors":  # which keeps no order
        state = {f"arr_{index}": value for index, value in enumerate(state.values())}
    write_update(tmp_path / f"u{suffix}", Update(state, Metadata("new_weights", 0.1)))
    update = read_update(tmp_path / f"u{suffix}", expected_tensors(module))
    network = freeze(module, SHAPE)
    observation = as_observation(network, update)
    found = observation.buffers["1.num_batches_tracked"]
    assert found.shape == () and found.dtype == torch.int64 and int(found) == (7 if form in COUNTERS else 0)
    assert not any(finding.code in MISFITS for finding in diagnose(network, update.tensors, update.metadata))


def test_masks_among_the_buffers_are_read(batch):
    module = network_with_norm()
    module.register_buffer("mask", torch.ones(3, 3).tril().bool())
    network = freeze(module, SHAPE, mean=MEAN, std=STD)
    state = module.state_dict()
    told = Metadata("new_weights", 0.1, 1, 4)
    assert not any(finding.code in MISFITS for finding in diagnose(network, state, told))
    assert torch.equal(as_observation(network, Update(state, told)).buffers["mask"], module.mask)


def kernels() -> nn.Module:
    """Kernels that are higher than wide, one of them depthwise, and two square matrices."""
    torch.manual_seed(2)
    deep = (nn.Conv2d(3, 6, (3, 2)), nn.ReLU(), nn.Conv2d(6, 12, (2, 3), groups=6), nn.ReLU(), nn.Flatten())
    return nn.Sequential(*deep, nn.Linear(300, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


def as_keras(name: str, part: torch.Tensor) -> torch.Tensor:
    """The same numbers as Keras keeps them."""
    if part.ndim == 2:
        return part.T.contiguous()
    if part.ndim < 4:
        return part
    order = (2, 3, 1, 0) if part.shape[1] > 1 else (2, 3, 0, 1)
    part = part if part.shape[1] > 1 else part.view(6, 2, *part.shape[2:])
    return part.permute(order).contiguous()


def said_of(path, module: nn.Module) -> tuple[str, str]:
    """The refusal of an audit, and the finding of `inspect`."""
    with pytest.raises(UpdateMismatchError) as refused:
        read_update(path, expected_tensors(module))
    update = read_update(path, expected_tensors(module), strict=False)
    (found,) = diagnose(freeze(module, SHAPE), update.tensors, update.metadata)
    return str(refused.value), found.message


@pytest.mark.parametrize("named", ["by position", "by name", "by other names"])
def test_the_order_of_axes_of_another_framework_is_told(tmp_path, batch, named):
    module = kernels()
    update = {name: as_keras(name, part) for name, part in gradient_of(module, *batch).items()}
    renamed = {f"layer_{index}.kernel": part for index, part in enumerate(update.values())}
    positions = {f"arr_{index}": part for index, part in enumerate(update.values())}
    tensors = {"by position": positions, "by name": update, "by other names": renamed}[named]
    np.savez(tmp_path / "u.npz", **arrays(tensors), kind="gradient", num_examples=4)
    for message in said_of(tmp_path / "u.npz", module):
        assert "[h, w, in, out]" in message and "transpose" in message and "also those of equal sides" in message
        assert "permute(3, 2, 0, 1)" in message and "permute(2, 3, 0, 1).flatten(0, 1).unsqueeze(1)" in message
        assert "matrices by .T" in message and "permute(3, 2, 1, 0)" not in message, "height and width stay"


def test_what_is_advised_leads_to_the_networks_own_axes():
    for own in ((32, 16, 5, 3), (12, 1, 2, 3), (7, 5, 4), (6, 5, 4, 3, 2), (10, 64), (16, 3, 3, 3)):
        part = torch.randn(own)
        channels = (*range(2, len(own)), 1, 0)
        theirs = [part.permute(channels)] if own[1] > 1 else [part.view(6, 2, *own[2:]).permute(2, 3, 0, 1)]
        theirs += [part.permute(0, *range(2, len(own)), 1)] if len(own) > 2 and own[1] > 1 and own[0] != 16 else []
        for given in theirs:
            way = turned(given.shape, own)
            assert torch.equal(eval(f"given.{way.removeprefix('.')}"), part), (own, way)
    assert turned((5, 3), (4, 3)) == turned((3,), (4,)) == turned((2, 3, 4), (3, 4)) == ""


def test_a_list_without_the_layers_that_normalize_is_read_by_its_order(tmp_path, batch):
    module = network_with_norm()
    update = gradient_of(module, *batch)
    for left in (("1.weight", "1.bias"), ("4.weight", "4.bias"), ("0.weight", "0.bias", "1.weight", "1.bias")):
        sent = {name: part for name, part in update.items() if name not in left}
        torch.save(list(sent.values()), tmp_path / "u.pt")
        assert list(read_update(tmp_path / "u.pt", expected_tensors(module)).tensors) == list(sent)


PARTS = ("all layers of BatchNorm", "the head, 4", "all but the head, 4", "'0.bias'")


@pytest.mark.parametrize("kind", ["gradient", "weight_delta", "new_weights"])
@pytest.mark.parametrize("what", PARTS)
def test_an_update_of_a_part_is_told_as_such_with_the_option_that_audits_it(batch, kind, what):
    module = network_with_norm()
    network = freeze(module, SHAPE, mean=MEAN, std=STD)
    norm, head, body = (("1.weight", "1.bias"), ("4.weight", "4.bias"), ("0.weight", "0.bias", "1.weight", "1.bias"))
    left = dict(zip(PARTS, (norm, head, body, ("0.bias",)), strict=True))[what]
    for rate in (0.1, None):
        told = Metadata(kind, rate if kind != "gradient" else None, num_examples=4)
        made = described(Metadata(kind, 0.1), kind, 4, False)(network, *batch)
        sent = {name: part.detach() for name, part in made.items() if name not in left}
        (found,) = diagnose(network, sent, told)
        with pytest.raises(UpdateMismatchError) as refused:
            as_observation(network, Update(sent, told))
        for message in (found.message, str(refused.value)):
            assert f"leaves out {what} ({len(left)} of 6 tensors" in message
            written = re.search(r'--client "(.*?)"( --unknown-client)?', message)
            client = registry.build("client", written[1])
            client = unknown(client, network) if written[2] else client
            assert (written[2] is not None) == (rate is None and kind != "gradient")
            assert not [each for each in diagnose(network, sent, told, client=client) if each.level == "error"]
            observation = as_observation(network, Update(sent, told), client=client)
            assert list(observation.update) == list(sent)
            if not written[2]:
                assert close(observation.update, observation.client(network, *batch))


def test_patterns_name_what_is_sent_and_nothing_else():
    names = [f"stage{stage}.{block}.{layer}.{kind}" for stage in (1, 2) for block in (0, 1)
             for layer in ("conv1", "bn1", "downsample.0", "downsample.1") for kind in ("weight", "bias")]  # fmt: skip
    for kept in (names[:2], names[2:], names[::2], [n for n in names if "bn" not in n and "sample.1" not in n]):
        sent = Shares(FedSGD(), patterns(names, kept))
        assert [name for name in names if _fits(name, sent.names)] == kept
    assert patterns(["conv.weight", "fc.weight", "fc.bias"], ["fc.weight", "fc.bias"]) == ("!conv.*",)


def test_a_client_that_is_given_says_what_the_file_does_not(batch):
    module = network_with_norm()
    network = freeze(module, SHAPE, mean=MEAN, std=STD)
    client = FedAvg(2, 0.1, 2, optimizer=LocalSGD(0.9))
    update = client(network, *batch)
    found = diagnose(network, update, Metadata(num_examples=4), client=client)
    assert not [finding for finding in found if finding.level != "info"]
    told = stated_by(client, Metadata(num_examples=4))
    assert told == Metadata("weight_delta", 0.1, 2, 4, 2, 0.9) and not assumptions(told)
    with pytest.raises(ConfigError, match=r"FedAvg, sends weight_delta; .* where sends='weights' sends it"):
        as_observation(network, Update(update, Metadata("new_weights")), client=client)
    with pytest.raises(UpdateMismatchError, match="which the client does not send"):
        as_observation(network, Update(update), client=Shares(client, ("4.*",)))


def test_tied_weights_are_diagnosed_under_either_name():
    module = nn.Sequential(nn.Flatten(), nn.Linear(192, 192), nn.Sigmoid(), nn.Linear(192, 192))
    module[3].weight = module[1].weight
    network = freeze(module, SHAPE)
    update = FedSGD()(network, torch.rand(1, *SHAPE), torch.tensor([3]))
    other = {name.replace("1.weight", "3.weight"): part for name, part in update.items()}
    assert not [
        each for each in diagnose(network, other, Metadata("gradient", num_examples=1)) if each.level == "error"
    ]


def test_words_for_the_optimizer_make_the_client_that_steps_so(batch):
    network = freeze(network_with_norm(), SHAPE)

    def client(**words):
        told = Metadata("weight_delta", 0.1, num_examples=4, **words)
        update = Update({name: 0 * weight.detach() for name, weight in network.params.items()}, told)
        return as_observation(network, update).client

    assert client(optimizer="nesterov", momentum=0.9).optimizer == LocalSGD(0.9, nesterov=True)
    assert client(weight_decay=0.01).optimizer == LocalSGD(weight_decay=0.01)
    assert client(optimizer="adam", eps=1e-6, weight_decay=0.1).optimizer == LocalAdam(eps=1e-6, weight_decay=0.1)
    assert client(optimizer="adamw", beta1=0.8).optimizer == LocalAdamW(beta1=0.8, weight_decay=0.0)
    assert client(batch_size=3, epochs=2).slices(4) == [slice(0, 3), slice(3, 4)] * 2
    summed = client(optimizer="adamw", weight_decay=0.1, loss_reduction="sum")
    assert (summed.lr, summed.optimizer) == (0.1, LocalAdamW(eps=1e-8 / 4, weight_decay=0.1)), "Adam has no scale"
    summed = client(weight_decay=0.1, loss_reduction="sum")
    assert (summed.lr, summed.optimizer) == (0.4, LocalSGD(weight_decay=0.025))
    for name, wrong in (("optimizer", "lion"), ("beta1", "1"), ("weight_decay", "-1"), ("autocast", "int8")):
        with pytest.raises(InputError, match=r"--optimizer|--client|--weight-decay"):
            read_metadata({name: wrong})
    again = stated_by(FedAvg(2, 0.1, optimizer=LocalAdamW(beta1=0.8)), Metadata(momentum=0.9))
    assert (again.optimizer, again.momentum, again.beta1, again.weight_decay) == ("adamw", None, 0.8, 0.01)


def test_micro_batches_are_simulated_where_batchnorm_couples_them(batch):
    module, (images, labels) = network_with_norm(), batch
    told = Metadata("gradient", num_examples=4, bn_mode="train", micro_batch_size=2)
    parts = []
    for these in (slice(0, 2), slice(2, 4)):
        trains = copy.deepcopy(module)
        trains[1].train()
        parts.append(gradient_of(trains, images[these], labels[these]))
    accumulated = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    network = freeze(module, SHAPE, mean=MEAN, std=STD)
    seen = as_observation(network, Update(accumulated, told))
    assert seen.network.micro_batch == 2
    assert close(seen.client(seen.network, images, labels), accumulated)
    whole = as_observation(network, Update(accumulated, replace(told, micro_batch_size=None)))
    assert not close(whole.client(whole.network, images, labels), accumulated, 1e-3)
    still = as_observation(network, Update(accumulated, replace(told, bn_mode="eval")))
    assert still.network.micro_batch == 0, "nothing couples the examples"
