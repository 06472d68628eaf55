"""MNIST and Fashion-MNIST in the idx format: four bytes of type, the sizes, then the pixels (LeCun et al., 1998)."""

import gzip
import math
import zlib
from pathlib import Path

import torch
from torch import Tensor

from inversefed.errors import InputError
from inversefed.zoo import constants
from inversefed.zoo.picture_sources import Arrays, Dataset

__all__ = ["read_fashion_mnist", "read_idx", "read_mnist"]

_FASHION_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
_LARGEST = 2**30
"""Bytes; MNIST has 47 million. A header that promises more is not believed."""


def read_mnist(path: Path, split: str, download: bool) -> Dataset:
    """Read MNIST, one gray channel, from `path`, `path/MNIST/raw` or `path/mnist`.

    Raises:
        InputError: a file is missing or broken, or could not be fetched.
    """
    folders = [path, path / "MNIST" / "raw", path / "MNIST", path / "mnist"]
    source = _read(folders, split, "MNIST" if download else None)
    classes = tuple(str(digit) for digit in range(10))
    return Dataset("MNIST", classes, constants.mnist_mean, constants.mnist_std, (1, 28, 28), source)


def read_fashion_mnist(path: Path, split: str, download: bool) -> Dataset:
    """Read Fashion-MNIST, one gray channel, from `path`, `path/FashionMNIST/raw` or `path/fashion-mnist`.

    Debian's package dataset-fashion-mnist puts it into /usr/share/datasets/fashion-mnist.

    Raises:
        InputError: a file is missing or broken, or could not be fetched.
    """
    folders = [path, path / "FashionMNIST" / "raw", path / "FashionMNIST", path / "fashion-mnist"]
    source = _read(folders, split, "FashionMNIST" if download else None)
    mean, std = constants.fashion_mnist_mean, constants.fashion_mnist_std
    return Dataset("FashionMNIST", _FASHION_CLASSES, mean, std, (1, 28, 28), source)


def _read(folders: list[Path], split: str, fetch: str | None) -> Arrays:
    prefix = "train" if split == "train" else "t10k"
    if fetch is not None and _find(folders, f"{prefix}-images-idx3-ubyte") is None:
        _download(fetch, folders[0])
    images, labels = (_require(folders, f"{prefix}-{kind}-ubyte") for kind in ("images-idx3", "labels-idx1"))
    pixels, classes = read_idx(images, 3), read_idx(labels, 1)
    if len(pixels) != len(classes) or tuple(pixels.shape[1:]) != (28, 28) or int(classes.max()) > 9:
        raise InputError(
            f"{images} holds {tuple(pixels.shape)} pixels and {labels} {len(classes)} labels; "
            f"as many 28x28 pictures as labels from 0 to 9 are expected"
        )
    return Arrays(pixels[:, None], classes.long(), pad=True)


def _download(fetch: str, root: Path) -> None:
    import torchvision

    try:
        getattr(torchvision.datasets, fetch)(str(root), download=True)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{fetch} could not be fetched into {root}: {error}") from error


def _find(folders: list[Path], name: str) -> Path | None:
    files = (folder / f"{name}{end}" for folder in folders for end in ("", ".gz"))
    return next((file for file in files if file.is_file()), None)


def _require(folders: list[Path], name: str) -> Path:
    file = _find(folders, name)
    if file is None:
        places = ", ".join(map(str, folders))
        raise InputError(f"no {name} nor {name}.gz in {places}; put it there, name its folder, or allow the download")
    return file


def read_idx(file: Path, dimensions: int) -> Tensor:
    """Read an idx file of unsigned bytes, plain or gzipped.

    Args:
        file: the file; a name that ends in `.gz` is unpacked.
        dimensions: how many the array must have.

    Raises:
        InputError: the file is not of this kind, or is damaged.
    """
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rb") as stream:
            header = stream.read(4 + 4 * dimensions)
            sizes = [int.from_bytes(header[at : at + 4], "big") for at in range(4, len(header), 4)]
            sound = header[:4] == bytes([0, 0, 8, dimensions]) and len(sizes) == dimensions
            content = stream.read(math.prod(sizes) + 1) if sound and 0 < math.prod(sizes) <= _LARGEST else b""
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if not content or len(content) != math.prod(sizes):
        raise InputError(
            f"{file} is not an idx file of bytes with {dimensions} dimension(s), or it is damaged: "
            f"its header says {sizes}, and {len(content)} bytes follow"
        )
    return torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(sizes)
