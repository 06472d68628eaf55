"""What a script of 2020 attacks: the constants of a data set, and the pictures whose update is made.

Only what is asked for is read: the demo picture needs no data set on this machine.
"""

import argparse
import secrets
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inversefed.errors import ConfigError, InputError, unknown_name
from inversefed.zoo import constants, datasets, networks, pictures
from inversefed.zoo.datasets import Dataset, Shape
from inversefed.zoo.networks import vision

__all__ = ["DEMO", "Facts", "Targets", "demo_picture", "facts_of", "targets_of", "validation_set"]

DEMO = -1
"""The `--target_id` of the demo picture."""


@dataclass(frozen=True)
class Facts:
    """What is known of a data set without reading it.

    Args:
        num_classes: how many there are.
        mean: of the pixels in [0, 1], one number a channel.
        std: likewise.
    """

    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def num_channels(self) -> int:
        """Channels of a picture."""
        return len(self.mean)


_FACTS = {
    "CIFAR10": Facts(10, constants.cifar10_mean, constants.cifar10_std),
    "CIFAR100": Facts(100, constants.cifar100_mean, constants.cifar100_std),
    "MNIST": Facts(10, constants.mnist_mean, constants.mnist_std),
    "MNIST_GRAY": Facts(10, constants.mnist_mean, constants.mnist_std),
    "FashionMNIST": Facts(10, constants.fashion_mnist_mean, constants.fashion_mnist_std),
    "ImageNet": Facts(1000, constants.imagenet_mean, constants.imagenet_std),
}


@dataclass(frozen=True, eq=False)
class Targets:
    """The pictures of one experiment.

    Args:
        images: pixel space, `[n, c, h, w]`.
        labels: the classes that the update is made for, `[n]`.
        first: the `--target_id` of the first.
        title: the first one's class, or `demo`, for the names of files.
    """

    images: Tensor = field(repr=False)
    labels: Tensor
    first: int
    title: str


def facts_of(dataset: str) -> Facts:
    """Return what is known of a data set with classes.

    Raises:
        ConfigError: an unknown name, or pictures without classes.
    """
    if dataset.upper().startswith("BSDS"):
        raise ConfigError(
            f"{dataset} has no classes, so no classifier makes an update of it; take CIFAR10, for example"
        )
    if dataset not in _FACTS:
        raise unknown_name("data set", dataset, _FACTS)
    return _FACTS[dataset]


def input_shape(args: argparse.Namespace, facts: Facts) -> Shape:
    """Return the (channels, height, width) that the chosen network wants of the pictures."""
    name = vision.resolve(args.model) if args.dataset == "ImageNet" else args.model
    return networks.input_shape(name, facts.num_channels)


def demo_picture(args: argparse.Namespace, facts: Facts) -> Targets:
    """Return a photograph that ships with the package, as class 1, or 5 with `--label_flip`.

    Raises:
        ConfigError: several pictures are asked for.
    """
    if args.num_images != 1:
        raise ConfigError("--target_id -1 is one picture; with --num_images name a --target_id of the validation set")
    picture = pictures.photo(pictures.photo_names()[0], input_shape(args, facts))
    return Targets(picture[None], torch.tensor([5 if args.label_flip else 1]), DEMO, "demo")


def validation_set(args: argparse.Namespace, facts: Facts) -> Dataset:
    """Return the validation pictures, in the network's size.

    Raises:
        InputError: they are not there.
    """
    try:
        return datasets.load(args.dataset, args.data_path, "test", input_shape(args, facts))
    except InputError as error:
        raise InputError(
            f"{error}. `reconstruct_image.py --target_id -1` attacks a bundled photograph, and needs no data set"
        ) from error


def targets_of(args: argparse.Namespace, facts: Facts, dataset: Dataset, first: int | None) -> Targets:
    """Return consecutive pictures from `first` on, or from a random place.

    Raises:
        InputError: the data set has fewer.
    """
    if len(dataset) < args.num_images:
        raise InputError(f"--num_images {args.num_images} are asked for, and {dataset.name} has {len(dataset)}")
    start = secrets.randbelow(len(dataset) - args.num_images + 1) if first is None else first
    images, labels = dataset.batch(range(start, start + args.num_images))
    title = dataset.classes[int(labels[0])].replace("/", "-").replace(" ", "_")
    return Targets(images, (labels + int(args.label_flip)) % facts.num_classes, start, title)
