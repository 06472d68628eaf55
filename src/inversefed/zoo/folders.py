"""Folders of picture files as data sets: classes by sub-folder, or one flat folder; files are opened on demand."""

import re
from collections.abc import Sequence
from pathlib import Path

from inversefed.errors import InputError
from inversefed.zoo import constants
from inversefed.zoo.picture_sources import Dataset, Files, Shape
from inversefed.zoo.pictures import photo_names, photo_path

__all__ = ["read_bsds", "read_folder", "read_imagenet", "read_photos"]

_ENDINGS = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_NOMINAL_CLASSES = 10
"""Pictures without a class list pretend to at least this many classes, so that a CIFAR network takes them."""


def read_photos() -> Dataset:
    """Return the photographs that ship with scikit-image: `label == index`, ten classes nominally, 224x224.

    >>> read_photos().classes[:3]
    ('chelsea', 'astronaut', 'coffee')
    """
    names = photo_names()
    source = Files([photo_path(name) for name in names], range(len(names)), (3, 224, 224))
    return _dataset("photos", names, source)


def read_imagenet(path: Path, split: str) -> Dataset:
    """Read ImageNet as torchvision lays it out: `train/<class>/*` and `val/<class>/*`, 224x224.

    Args:
        path: the folder that holds `train` and `val`, or one above it called `imagenet` or `ImageNet`.
        split: `"test"` reads `val`.

    Raises:
        InputError: there is no such folder, or it holds no classes.
    """
    part = "train" if split == "train" else "val"
    places = [path / part, path / "imagenet" / part, path / "ImageNet" / part]
    root = next((place for place in places if place.is_dir()), None)
    if root is None:
        raise InputError(
            f"no ImageNet in {', '.join(map(str, places))}: one of them must hold a folder for each class. "
            f"ImageNet is not downloaded; get it from image-net.org"
        )
    classes = _class_folders(root)
    if not classes:
        raise InputError(f"{root} holds no folder with pictures; ImageNet has one for each class")
    return _by_class("ImageNet", classes, (3, 224, 224))


def read_folder(path: Path, split: str) -> Dataset:
    """Read any folder of pictures; they keep their own sizes until `fitted`.

    With sub-folders, each is a class. In a flat folder the label is the number after the last underscore of the
    file's name (`dog_07_5.png` is 5), or 0; there are ten classes at least. Where `path` holds a folder called
    `split` (or `val` for `"test"`), that is read.

    Raises:
        InputError: there is no such folder, or no picture in it.
    """
    if not path.is_dir():
        raise InputError(f"expected a folder of pictures, but {path} is {'a file' if path.exists() else 'not there'}")
    parts = [path / split, *([path / "val"] if split == "test" else [])]
    root = next((part for part in parts if part.is_dir()), path)
    classes = _class_folders(root)
    if classes:
        return _by_class(path.name, classes, None)
    files = pictures_in(root)
    if not files:
        raise InputError(f"no pictures in {root} nor in its sub-folders; looked for {', '.join(sorted(_ENDINGS))}")
    labels = [_label(file) for file in files]
    names = tuple(str(label) for label in range(max(labels) + 1))
    return _dataset(path.name, names, Files(files, labels))


def read_bsds(path: Path, split: str, channels: int) -> Dataset:
    """Read the pictures of BSDS500 as one class: centered squares of 256 pixels, in gray or RGB.

    The data sets of 2020 with this name were for super-resolution and denoising. Their pictures are here; labels to
    attack with there are none, so all are 0. (Arbelaez et al., PAMI 2011.)

    Raises:
        InputError: there is no such folder, or no picture in it.
    """
    images = Path("BSDS500/data/images")
    places = [path / images, path / "BSR" / images, path / "BSDS500" / "images", path]
    root = next((place / split for place in places if (place / split).is_dir()), None)
    files = pictures_in(root) if root else []
    if not files:
        raise InputError(f"no BSDS500 pictures: looked for {', '.join(str(place / split) for place in places)}")
    source = Files(files, [0] * len(files), (3, 256, 256))
    return _dataset("BSDS500", (), source).fitted((channels, 256, 256))


def _by_class(name: str, classes: Sequence[tuple[Path, list[Path]]], shape: Shape | None) -> Dataset:
    files = [file for _, members in classes for file in members]
    labels = [label for label, (_, members) in enumerate(classes) for _ in members]
    names = tuple(folder.name for folder, _ in classes)
    source = Files(files, labels, shape)
    return Dataset(name, names, constants.imagenet_mean, constants.imagenet_std, shape, source)


def _dataset(name: str, classes: tuple[str, ...], source: Files) -> Dataset:
    extra = tuple(str(label) for label in range(len(classes), _NOMINAL_CLASSES))
    return Dataset(name, (*classes, *extra), constants.imagenet_mean, constants.imagenet_std, source.shape, source)


def _class_folders(root: Path) -> list[tuple[Path, list[Path]]]:
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    return [(folder, members) for folder in folders if (members := pictures_in(folder))]


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder by their endings, in the order of their names."""
    return sorted(entry for entry in folder.iterdir() if entry.suffix.lower() in _ENDINGS)


def _label(file: Path) -> int:
    found = re.search(r"_(\d{1,6})$", file.stem)
    return int(found[1]) if found else 0
