"""Folders of records that somebody asks for: pictures, with their classes where the folder says them."""

import re
from pathlib import Path

import torch

from inversefed.errors import ConfigError, InputError
from inversefed.fl.network import Network
from inversefed.specs.load_setting import Setting
from inversefed.specs.sources import Records
from inversefed.types import Batch
from inversefed.zoo.folders import pictures_in
from inversefed.zoo.picture_sources import Shape
from inversefed.zoo.pictures import read_picture

__all__ = ["read_asked", "read_records"]


def read_asked(records: Records | None, network: Network, setting: Setting) -> tuple[Batch | None, Batch | None]:
    """The records that are asked for, and those that are known to be out, as far as they are named.

    Args:
        records: how they are named: folders of pictures, or files with rows of the table that is audited.
        network: that they are for.
        setting: what was read beside.

    Raises:
        ConfigError: records that are known to be out, and none that is asked for.
        InputError: a folder that cannot be used.
    """
    if records is None:
        return None, None
    if records.candidates is None:
        raise ConfigError("--candidates-out says which records are out; name those asked for: --candidates")
    read = setting.read or (lambda folder: read_records(folder.expanduser(), network.grid, network.num_classes))
    asked, out = (None if each is None else read(each) for each in (records.candidates, records.candidates_out))
    return asked, out


def read_records(folder: Path, shape: Shape, num_classes: int) -> Batch:
    """Read the pictures of a folder, in the order of their names, sub-folders first.

    A class is the name of a sub-folder that is a number, the place of a sub-folder in their order where there are as
    many as classes, or the number after the last underscore of a file's name (`dog_07_5.png` is 5); else it is not
    known, -1.

    Args:
        folder: where they are.
        shape: `(channels, height, width)` of the network's input, which they are cropped and resized to.
        num_classes: of the network.

    Raises:
        InputError: no such folder, no picture in it, one that cannot be read, or a class that the network has not.
    """
    if not folder.is_dir():
        raise InputError(
            f"expected a folder of records, but {folder} is {'a file' if folder.exists() else 'not there'}"
        )
    classes = sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    files: list[tuple[Path, int]] = []
    for place, each in enumerate(classes):
        label = int(each.name) if each.name.isdecimal() else place if len(classes) == num_classes else -1
        files += [(file, label) for file in pictures_in(each)]
    for file in pictures_in(folder):
        number = re.search(r"_(\d{1,6})$", file.stem)
        files.append((file, int(number[1]) if number else -1))
    if not files:
        raise InputError(f"no pictures in {folder} nor in its sub-folders")
    wrong = next((file for file, label in files if label >= max(2, num_classes)), None)
    if wrong is not None:
        raise InputError(f"{wrong} names a class that a network of {num_classes} classes has not; they are from 0")
    return Batch(
        torch.stack([read_picture(file, shape) for file, _ in files]), torch.tensor([each for _, each in files])
    )
