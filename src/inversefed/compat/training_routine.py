"""Train a module in place on 2020's loaders, and validate it; optimizer and learning rate are the zoo's recipe.

What is random (dropout) follows a copy of the global random state, which stays as it was.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from inversefed.compat.losses import Loss
from inversefed.compat.strategy import TrainingStrategy, recipe_of
from inversefed.errors import InputError

__all__ = ["train", "validate"]

Stats = defaultdict[str, list[float]]


def train(
    model: nn.Module,
    loss_fn: Loss,
    trainloader: Iterable[Any],
    validloader: Iterable[Any],
    defs: TrainingStrategy,
    setup: Mapping[str, Any] | None = None,
) -> Stats:
    """Train a module in place; print a line at every validation.

    Args:
        model: the network; its weights change, it ends in eval mode and without gradients.
        loss_fn: loss and metric, as `construct_dataloaders` returns them.
        trainloader: batches of normalized pictures and labels.
        validloader: others, to validate on at the first and the last epoch and every `defs.validate` between.
        defs: how to train.
        setup: `device` and `dtype` of the pictures; `None` for the model's own.

    Returns:
        Lists, one entry an epoch or a validation: `train_losses`, `valid_losses`, and `train_` and `valid_` with
        the metric's name (`train_Accuracy`).

    Raises:
        ConfigError: settings out of range.
        InputError: a loader without batches.
    """
    recipe = recipe_of(defs)
    optimizer = recipe.optimizer_for(model)
    place = _place(model, setup)
    stats: Stats = defaultdict(list)
    with torch.random.fork_rng():
        for epoch in range(1 if defs.dryrun else recipe.epochs):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(epoch)
            _one_epoch(model, loss_fn, trainloader, optimizer, defs, place, stats)
            if epoch % defs.validate == 0 or epoch == recipe.epochs - 1:
                validate(model, loss_fn, validloader, defs, place, stats)
                _tell(epoch, recipe.rate(epoch), loss_fn, stats)
            if not math.isfinite(stats["train_losses"][-1]):
                print("Loss is NaN/Inf ... terminating early ...")
                break
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    return stats


def validate(
    model: nn.Module,
    loss_fn: Loss,
    dataloader: Iterable[Any],
    defs: TrainingStrategy,
    setup: Mapping[str, Any] | None,
    stats: dict[str, list[float]],
) -> None:
    """Measure a module in eval mode and append `valid_losses` and `valid_<metric>` to `stats`.

    Args:
        model: the network; its mode is put back.
        loss_fn: loss and metric.
        dataloader: what to measure on.
        defs: with `dryrun`, one batch is enough.
        setup: `device` and `dtype` of the pictures; `None` for the model's own.
        stats: lists that are appended to; a plain `dict` will do.

    Raises:
        InputError: a loader without batches.
    """
    modes = {part: part.training for part in model.modules()}
    model.eval()
    tally = _Tally(loss_fn)
    with torch.random.fork_rng(), torch.no_grad():
        for inputs, targets in dataloader:
            x, y = _moved(inputs, targets, _place(model, setup))
            tally.add(model(x), y, len(y))
            if defs.dryrun:
                break
    for part, training in modes.items():
        part.training = training
    tally.note(stats, "valid")


def _one_epoch(
    model: nn.Module,
    loss_fn: Loss,
    trainloader: Iterable[Any],
    optimizer: torch.optim.Optimizer,
    defs: TrainingStrategy,
    place: Mapping[str, Any],
    stats: Stats,
) -> None:
    model.train()
    tally = _Tally(loss_fn)
    for inputs, targets in trainloader:
        x, y = _moved(inputs, targets, place)
        optimizer.zero_grad(set_to_none=True)
        loss = tally.add(model(x), y, len(y))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if defs.dryrun:
            break
    tally.note(stats, "train")


class _Tally:
    """Means of loss and metric over the examples seen."""

    def __init__(self, loss_fn: Loss) -> None:
        self.loss_fn, self.loss, self.metric, self.count = loss_fn, 0.0, 0.0, 0

    def add(self, outputs: Tensor, targets: Tensor, count: int) -> Tensor:
        loss: Tensor = self.loss_fn(outputs, targets)[0]
        self.loss += float(loss.detach()) * count
        self.metric += float(self.loss_fn.metric(outputs.detach(), targets)[0]) * count
        self.count += count
        return loss

    def note(self, stats: dict[str, list[float]], part: str) -> None:
        if not self.count:
            raise InputError(f"the loader to {part} on holds no batch; are there fewer examples than one batch?")
        stats.setdefault(f"{part}_losses", []).append(self.loss / self.count)
        stats.setdefault(f"{part}_{self.loss_fn.metric()[0]}", []).append(self.metric / self.count)


def _place(model: nn.Module, setup: Mapping[str, Any] | None) -> Mapping[str, Any]:
    first = next(model.parameters())
    return {"device": first.device, "dtype": first.dtype} if setup is None else setup


def _moved(inputs: Tensor, targets: Tensor, place: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Pictures to device and type; labels to the device, and target pictures to the type as well."""
    wanted = place if targets.is_floating_point() else {"device": place["device"]}
    return inputs.to(**place), targets.to(**wanted)


def _tell(epoch: int, lr: float, loss_fn: Loss, stats: Stats) -> None:
    name, spec = loss_fn.metric()
    print(
        f"Epoch: {epoch}| lr: {lr:.4f} | "
        f"Train loss is {stats['train_losses'][-1]:6.4f}, Train {name}: {stats['train_' + name][-1]:{spec}} | "
        f"Val loss is {stats['valid_losses'][-1]:6.4f}, Val {name}: {stats['valid_' + name][-1]:{spec}} |"
    )
