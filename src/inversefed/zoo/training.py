"""Train a zoo network: cross entropy, SGD or AdamW, a learning rate that falls in steps.

The caller's module and the global random state stay as they are; order, augmentation and dropout follow the generator.
What to train with is a `Recipe`; what comes out is a `Trained` copy.
"""

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from inversefed.errors import ConfigError, InputError
from inversefed.types import Images, Labels
from inversefed.zoo.augment import random_crop, random_flip
from inversefed.zoo.checkpoints import load_weights, save_checkpoint
from inversefed.zoo.picture_sources import Dataset
from inversefed.zoo.recipe import Recipe, adam, conservative

__all__ = [
    "BatchStats",
    "EpochStats",
    "Recipe",
    "Trained",
    "adam",
    "conservative",
    "evaluate",
    "load_weights",
    "save_checkpoint",
    "train",
]


@dataclass(frozen=True)
class EpochStats:
    """One pass over the training set: losses in nats, accuracies in [0, 1], after `epoch` of `epochs`."""

    epoch: int
    epochs: int
    lr: float
    train_loss: float
    train_accuracy: float
    test_accuracy: float


@dataclass(frozen=True)
class BatchStats:
    """One step of the optimizer: after `batch` of `batches` in this epoch."""

    epoch: int
    batch: int
    batches: int
    loss: float


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained copy of a network, in evaluation mode on the CPU, and what was measured on the way."""

    module: nn.Module = field(repr=False)
    recipe: Recipe
    history: tuple[EpochStats, ...] = field(repr=False)

    @property
    def accuracy(self) -> float:
        """The accuracy on the test set after the last epoch, in [0, 1]."""
        return self.history[-1].test_accuracy


def train(
    module: nn.Module,
    train_set: Dataset,
    test_set: Dataset,
    recipe: Recipe,
    *,
    generator: Generator,
    device: torch.device | str | None = None,
    on_epoch: Callable[[EpochStats], object] | None = None,
    on_batch: Callable[[BatchStats], object] | None = None,
    augment: bool = True,
) -> Trained:
    """Train a copy of `module` on normalized pictures; the same generator state gives the same weights on the CPU.

    Args:
        module: a network that returns logits; it is not changed.
        train_set: what to learn from; its mean and standard deviation normalize both sets.
        test_set: what to measure the accuracy on after each epoch.
        recipe: optimizer, learning rate, epochs.
        generator: a CPU generator, for order, augmentation and dropout.
        device: where to compute; `None` is the CPU.
        on_epoch: called after each epoch.
        on_batch: called after each step.
        augment: shift by up to 4 pixels and mirror at random.

    Raises:
        ConfigError: the loss became NaN or infinite.
        InputError: the training set is empty, or has more classes than the network.
    """
    if not len(train_set):
        raise InputError(f"{train_set.name} has no examples to train on")
    place = torch.device(device or "cpu")
    student = copy.deepcopy(module).to(place)
    optimizer = recipe.optimizer_for(student)
    history: list[EpochStats] = []
    with _dropout_from(generator, place):
        for epoch in range(recipe.epochs):
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate(epoch)
            batches = _batches(train_set, recipe.batch_size, generator, augment)
            loss, accuracy = _one_epoch(student, optimizer, batches, _Pass(train_set, recipe, epoch, place), on_batch)
            test_accuracy = evaluate(student, test_set, normalize_as=train_set, device=place)
            history.append(EpochStats(epoch + 1, recipe.epochs, recipe.rate(epoch), loss, accuracy, test_accuracy))
            if on_epoch is not None:
                on_epoch(history[-1])
    return Trained(student.cpu().eval(), recipe, tuple(history))


@dataclass(frozen=True, eq=False)
class _Pass:
    """Where one epoch stands."""

    dataset: Dataset
    recipe: Recipe
    epoch: int
    device: torch.device

    @property
    def batches(self) -> int:
        return max(1, len(self.dataset) // self.recipe.batch_size)


def _one_epoch(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[tuple[Images, Labels]],
    now: _Pass,
    on_batch: Callable[[BatchStats], object] | None,
) -> tuple[float, float]:
    student.train()
    loss_sum, correct, seen = 0.0, 0, 0
    for index, (images, labels) in enumerate(batches):
        images, labels = _normalized(images, now.dataset).to(now.device), labels.to(now.device)
        logits = student(images)
        _require_classes(logits, labels, now.dataset)
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        value = _finite(float(loss.detach()), now)
        loss_sum, seen = loss_sum + value * len(labels), seen + len(labels)
        correct += int((logits.argmax(1) == labels).sum())
        if on_batch is not None:
            on_batch(BatchStats(now.epoch + 1, index + 1, now.batches, value))
    return loss_sum / seen, correct / seen


def _finite(loss: float, now: _Pass) -> float:
    if not math.isfinite(loss):
        raise ConfigError(
            f"the loss became {loss} in epoch {now.epoch + 1}: training diverged. "
            f"Lower lr (it was {now.recipe.rate(now.epoch):g}), or start from other weights"
        )
    return loss


def _require_classes(logits: Tensor, labels: Labels, dataset: Dataset) -> None:
    if int(labels.max()) >= logits.shape[-1]:
        raise InputError(
            f"{dataset.name} has label {int(labels.max())}, but the network knows {logits.shape[-1]} classes; "
            f"build it with num_classes={dataset.num_classes}"
        )


def evaluate(
    module: nn.Module,
    dataset: Dataset,
    *,
    batch_size: int = 256,
    normalize_as: Dataset | None = None,
    device: torch.device | str | None = None,
) -> float:
    """Return the fraction of examples that the network labels rightly, in evaluation mode; `module` is not changed.

    Args:
        module: a network that returns logits.
        dataset: what to measure on.
        batch_size: examples at a time.
        normalize_as: use this data set's mean and standard deviation instead of `dataset`'s own.
        device: where to compute; `None` is the CPU.

    Raises:
        InputError: the data set is empty.
    """
    if not len(dataset):
        raise InputError(f"{dataset.name} has no examples to measure on")
    place = torch.device(device or "cpu")
    judge = copy.deepcopy(module).to(place).eval()
    correct = 0
    with torch.no_grad():
        for start in range(0, len(dataset), batch_size):
            images, labels = dataset.batch(range(start, min(start + batch_size, len(dataset))))
            logits = judge(_normalized(images, normalize_as or dataset).to(place))
            correct += int((logits.argmax(1).cpu() == labels).sum())
    return correct / len(dataset)


def _batches(dataset: Dataset, size: int, generator: Generator, augment: bool) -> Iterator[tuple[Images, Labels]]:
    order = torch.randperm(len(dataset), generator=generator).tolist()
    for start in range(0, max(1, len(order) - size + 1), size):  # a smaller rest is left out, unless it is all there is
        images, labels = dataset.batch(order[start : start + size])
        if augment:
            images = random_flip(random_crop(images, 4, generator), generator)
        yield images, labels


def _normalized(images: Images, dataset: Dataset) -> Images:
    mean, std = (images.new_tensor(values)[:, None, None] for values in (dataset.mean, dataset.std))
    return (images - mean) / std


@contextmanager
def _dropout_from(generator: Generator, device: torch.device) -> Iterator[None]:
    """Let dropout, which draws from the global state, follow the generator; put the global state back."""
    seed = int(torch.randint(2**62, (), generator=generator))
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            with torch.cuda.device(devices[0]):
                torch.cuda.manual_seed(seed)
        yield
