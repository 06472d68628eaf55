"""The data sets by name: `load` finds the files, checks them and returns a `Dataset`, pictures in [0, 1].

Nothing is downloaded unless asked for. A folder that the caller names is read as it is; what is downloaded is checked
against torchvision's checksums.

>>> photos = load("photos", size=32)
>>> picture, label = photos[0]
>>> picture.shape, photos.classes[label]
(torch.Size([3, 32, 32]), 'chelsea')
"""

import os
from pathlib import Path

from inversefed.errors import ConfigError, unknown_name
from inversefed.zoo import cifar, folders, idx
from inversefed.zoo.picture_sources import Arrays, Dataset, Files, Shape, Source

__all__ = ["Arrays", "Dataset", "Files", "Shape", "Source", "is_known", "load", "names"]

_NAMES = (
    "CIFAR10",
    "CIFAR100",
    "MNIST",
    "MNIST_GRAY",
    "FashionMNIST",
    "ImageNet",
    "BSDS-SR",
    "BSDS-DN",
    "BSDS-RGB",
    "folder",
    "photos",
)
_SPLITS = ("train", "test")


def names() -> tuple[str, ...]:
    """Return the names that `load` knows; letter case, dashes and underscores do not count."""
    return _NAMES


def load(
    name: str,
    path: str | os.PathLike[str] = "~/data",
    split: str = "test",
    size: int | Shape | None = None,
    download: bool = False,
) -> Dataset:
    """Load a data set.

    MNIST and MNIST_GRAY are the same pictures with one channel, as they were in 2020. `folder` is any folder of
    pictures, `photos` the photographs that ship with scikit-image. The three BSDS are pictures without classes.

    Args:
        name: one of `names()`, in any spelling.
        path: where the files are.
        split: `"train"` or `"test"`; photos have no parts.
        size: side in pixels, or the whole `(channels, height, width)`, to which pictures are cropped and resized; MNIST
            grows by a black border. `None` leaves the data set's own size (224 for ImageNet and photos).
        download: fetch CIFAR or an MNIST if the files are not there.

    Raises:
        ConfigError: an unknown name or split.
        InputError: files are missing or broken; the message says where they were looked for.
        UnsafeFileError: a CIFAR file asks for more than arrays.
    """
    if not is_known(name):
        raise unknown_name("data set", name, _NAMES)
    if split not in _SPLITS:
        raise ConfigError(f"a split is 'train' or 'test', not {split!r}")
    dataset = _read(_key(name), Path(path).expanduser(), split, download)
    if size is None:
        return dataset
    channels = len(dataset.mean)
    return dataset.fitted((channels, size, size) if isinstance(size, int) else size)


def is_known(name: str) -> bool:
    """Whether `load` knows a name, in any spelling.

    >>> is_known("cifar-10"), is_known("cifar-1000")
    (True, False)
    """
    return _key(name) in map(_key, _NAMES)


def _key(name: str) -> str:
    return name.lower().replace("-", "").replace("_", "")


def _read(key: str, path: Path, split: str, download: bool) -> Dataset:
    match key:
        case "cifar10":
            return cifar.read_cifar10(path, split, download)
        case "cifar100":
            return cifar.read_cifar100(path, split, download)
        case "mnist" | "mnistgray":
            return idx.read_mnist(path, split, download)
        case "fashionmnist":
            return idx.read_fashion_mnist(path, split, download)
        case "imagenet":
            return folders.read_imagenet(path, split)
        case "photos":
            return folders.read_photos()
        case "folder":
            return folders.read_folder(path, split)
        case _:
            return folders.read_bsds(path, split, channels=3 if key == "bsdsrgb" else 1)
