"""Defect 14 of the list in docs/guides/legacy.md: the sign rule on a weight change."""

import pytest
import torch

import inversefed


@pytest.mark.parametrize("use_updates", [True, False])
def test_the_label_of_a_weight_update_is_the_true_one(use_updates: bool) -> None:
    model, _ = inversefed.construct_model("LeNetZhu", seed=0)
    inputs, labels = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)), torch.tensor([6])
    steps = inversefed.reconstruction_algorithms.loss_steps
    update = [part.detach() for part in steps(model, inputs, labels, lr=1e-2, local_steps=2, use_updates=use_updates)]
    machine = inversefed.FedAvgReconstructor(
        model, local_lr=1e-2, config={"max_iterations": 1}, use_updates=use_updates
    )
    _, stats = machine.reconstruct(update, None)
    assert stats["labels"].tolist() == [6]
