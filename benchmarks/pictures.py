"""The private pictures: a folder of square ones, sorted by name, or the photographs that everybody has.

A file tells its label by the last `_N` of its name: `cifar10_00_3.png` is of class 3. Without one, or where N is not
among the ten classes of the networks, the label is 0.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from inversefed.errors import ConfigError, InputError
from inversefed.types import Batch
from inversefed.zoo import pictures

__all__ = ["CLASSES", "SIDE", "Example", "bundled", "first", "label_of", "read_folder"]

SIDE, CLASSES = 32, 10
SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, eq=False)
class Example:
    """One picture and its label.

    Args:
        name: the file's name, or the photograph's.
        image: `[3, 32, 32]`, in [0, 1].
        label: its class, 0 to 9.
    """

    name: str
    image: Tensor = field(repr=False)
    label: int = 0

    @property
    def batch(self) -> Batch:
        """The client's private batch of one."""
        return Batch(self.image[None], self.image.new_tensor([self.label]).long())


def label_of(name: str) -> int:
    """Read the label from a file's name.

    >>> label_of("cifar10_00_3.png"), label_of("cat_7_small.jpg"), label_of("IMG_2034.jpg"), label_of("x2.png")
    (3, 7, 0, 0)
    """
    numbers = re.findall(r"_(\d+)(?=_|$)", Path(name).stem)
    label = int(numbers[-1]) if numbers else 0
    return label if label < CLASSES else 0


def read_folder(folder: Path) -> list[Example]:
    """Read every PNG and JPEG of a folder, sorted by name and resized to 32x32.

    Raises:
        InputError: there is no such folder, no picture in it, or one that is not square or not sound.
    """
    folder = folder.expanduser()
    if not folder.is_dir():
        raise InputError(
            f"expected a folder of pictures, but {folder} {'is a file' if folder.exists() else 'is not there'}"
        )
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    if not files:
        raise InputError(f"{folder} holds no picture; put square ones there, in {', '.join(SUFFIXES)}")
    return [Example(path.name, _square(path), label_of(path.name)) for path in files]


def _square(path: Path) -> Tensor:
    picture = pictures.read_picture(path)
    height, width = picture.shape[-2:]
    if height != width:
        raise InputError(f"{path} is {width}x{height} pixels; pictures must be square, so crop it first")
    return pictures.crop_and_resize(picture[None], SIDE, SIDE)[0]


def bundled() -> list[Example]:
    """The photographs that ship with scikit-image, cropped to their middle; their labels are 0."""
    return [Example(name, pictures.photo(name, (3, SIDE, SIDE))) for name in pictures.photo_names()]


def first(examples: Sequence[Example], limit: int | None) -> list[Example]:
    """The first `limit` of them, or all.

    Raises:
        ConfigError: the limit is below 1.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is a number of pictures, at least 1; got {limit}")
    return list(examples)[:limit]
