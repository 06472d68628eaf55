"""The zoo's data sets as 2020's loaders: items are (normalized picture, label), with a loss beside them.

Order and augmentation follow a copy of the global random state, taken when the loaders are made; the state itself is
neither used up nor changed. Nothing is downloaded.
"""

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

from inversefed.compat.losses import Loss, classification, restoration
from inversefed.compat.strategy import TrainingStrategy
from inversefed.errors import InputError
from inversefed.zoo import datasets
from inversefed.zoo.augment import random_crop, random_flip
from inversefed.zoo.datasets import Dataset, Shape

__all__ = ["Damaged", "Loader", "Pictures", "class_loaders", "construct_dataloaders"]

NOISE_LEVEL = 25 / 255
"""Standard deviation of the noise on BSDS-DN and BSDS-RGB, in pixels of [0, 1]."""


class Pictures(torch.utils.data.Dataset[tuple[Tensor, int]]):
    """A zoo data set whose items are `(picture, label)`.

    Args:
        dataset: where the pictures come from.
        normalize: subtract the mean and divide by the standard deviation; else pixels in [0, 1].
        augment: shift by up to 4 pixels and mirror at random.
    """

    def __init__(self, dataset: Dataset, normalize: bool = True, augment: bool = False) -> None:
        self.dataset, self.normalize, self.augment = dataset, normalize, augment
        self.generator = _own_generator()

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of the labels."""
        return self.dataset.classes

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.__getitems__([range(len(self))[index]])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Tensor, int]]:
        """Several items at once, which is how a loader asks for a batch."""
        images, labels = self.dataset.batch(indices)
        if self.augment:
            images = random_flip(random_crop(images, 4, self.generator), self.generator)
        if self.normalize:
            mean, std = (images.new_tensor(values)[:, None, None] for values in (self.dataset.mean, self.dataset.std))
            images = (images - mean) / std
        return [(image, int(label)) for image, label in zip(images, labels, strict=True)]


class Damaged(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Pairs of a spoiled picture and the picture itself, in [0, 1], for networks that restore.

    Args:
        dataset: the pictures.
        shrink: the spoiled picture is this much smaller; 1 for no smaller.
        noise: the standard deviation of its noise.
    """

    def __init__(self, dataset: Dataset, shrink: int = 1, noise: float = 0.0) -> None:
        self.dataset, self.shrink, self.noise = dataset, shrink, noise
        self.generator = _own_generator()

    @property
    def classes(self) -> tuple[str, ...]:
        """None: these pictures are restored, not told apart."""
        return ()

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        target = self.dataset[index][0]
        spoiled = target[None]
        if self.shrink > 1:
            spoiled = F.interpolate(spoiled, scale_factor=1 / self.shrink, mode="bilinear", antialias=True)
        return spoiled[0] + self.noise * torch.randn(spoiled.shape[1:], generator=self.generator), target


class Loader(DataLoader[Any]):
    """A torch `DataLoader` that knows the name of its data set."""

    name: str


def construct_dataloaders(
    dataset: str,
    defs: TrainingStrategy,
    data_path: str | os.PathLike[str] = "~/data",
    shuffle: bool = True,
    normalize: bool = True,
) -> tuple[Loss, Loader, Loader]:
    """Return (loss_fn, trainloader, validloader) of a data set.

    Args:
        dataset: CIFAR10, CIFAR100, MNIST, MNIST_GRAY, ImageNet, BSDS-SR, BSDS-DN or BSDS-RGB, or any other name that
            `inversefed.zoo.datasets` knows.
        defs: its batch size and whether to augment the training pictures.
        data_path: the folder with the files; it is read as it is.
        shuffle: mix the training pictures.
        normalize: items are normalized, as the networks want them; else they lie in [0, 1].

    Raises:
        ConfigError: an unknown name.
        InputError: files are missing or broken; the message says where they were looked for.
    """
    if dataset.upper().startswith("BSDS"):
        return _restoring_loaders(dataset, defs, data_path, shuffle)
    return class_loaders(dataset, defs, data_path, shuffle, normalize)


def class_loaders(
    dataset: str,
    defs: TrainingStrategy,
    data_path: str | os.PathLike[str],
    shuffle: bool = True,
    normalize: bool = True,
    size: Shape | None = None,
) -> tuple[Loss, Loader, Loader]:
    """Return the loaders of a data set with classes, its pictures brought to `size` if that is given."""
    train, valid = (datasets.load(dataset, data_path, split, size) for split in ("train", "test"))
    loaders = _loaders(
        dataset, defs, shuffle, Pictures(train, normalize, defs.augmentations), Pictures(valid, normalize)
    )
    return classification(), *loaders


def _restoring_loaders(
    dataset: str, defs: TrainingStrategy, data_path: str | os.PathLike[str], shuffle: bool
) -> tuple[Loss, Loader, Loader]:
    """2020's tasks on BSDS: three times the size in color (SR), or noise in gray (DN) or in color (RGB)."""
    kind = dataset.upper()
    shape = (1 if kind == "BSDS-DN" else 3, 255, 255)
    shrink, noise = (3, 0.0) if kind == "BSDS-SR" else (1, NOISE_LEVEL)
    train, valid = (
        Damaged(datasets.load(dataset, data_path, split, shape), shrink, noise) for split in ("train", "test")
    )
    return restoration(), *_loaders(dataset, defs, shuffle, train, valid)


def _loaders(
    name: str, defs: TrainingStrategy, shuffle: bool, train: Pictures | Damaged, valid: Pictures | Damaged
) -> tuple[Loader, Loader]:
    size = min(defs.batch_size, len(train))
    if size < 1 or not len(valid):
        raise InputError(
            f"{name}: {len(train)} training and {len(valid)} validation examples in batches of {defs.batch_size}; "
            f"at least one of each is needed"
        )
    trainloader = Loader(train, size, shuffle, drop_last=True, generator=_own_generator())
    validloader = Loader(valid, size, generator=_own_generator())
    trainloader.name = validloader.name = name
    return trainloader, validloader


def _own_generator() -> Generator:
    return Generator().set_state(torch.default_generator.get_state())
