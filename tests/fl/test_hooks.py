"""Layers are noted as they run, and left as they were."""

import pytest
import torch
from torch import Tensor, nn

from inversefed.fl.hooks import record, replaced_outputs

INPUTS = torch.tensor([[1.0, -2.0]])


def hooked(module: nn.Module) -> bool:
    return any(part._forward_hooks or part._forward_pre_hooks for part in module.modules())


def test_what_went_into_a_layer_in_place_is_kept_as_it_was() -> None:
    module = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))
    result, runs = record({"1": module[1]}, lambda: module(INPUTS.clone()), lambda _, __, inputs: inputs.tolist())
    assert runs[0].inputs == INPUTS.tolist() and torch.equal(runs[0].outputs, INPUTS.relu())
    assert torch.equal(result, INPUTS.relu()) and not hooked(module)


def test_layers_within_layers_and_repeated_ones_are_told_apart_in_the_order_they_end() -> None:
    inner = nn.Linear(2, 2)
    module = nn.Sequential(nn.Sequential(inner, inner), nn.Identity())
    layers = {name: layer for name, layer in module.named_modules() if name}
    names = [run.name for run in record(layers, lambda: module(INPUTS), lambda *_: None)[1]]
    assert names == ["0.0", "0.0", "0", "1"]


def test_what_is_kept_may_end_the_run_and_leaves_no_hook() -> None:
    def refuse(name: str, _: nn.Module, __: Tensor) -> None:
        raise LookupError(name)

    module = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    with pytest.raises(LookupError, match="1"):
        record({"1": module[1]}, lambda: module(INPUTS), refuse)
    with pytest.raises(LookupError, match="0"), replaced_outputs({"0": module[0]}, lambda *given: refuse(*given[:3])):
        module(INPUTS)
    assert not hooked(module)
