"""A data set as a value: what it is called, how its pixels are distributed, and a source that gives batches on demand.

A source is an array in memory (small pictures) or a list of files, read when they are asked for (large ones).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn import functional as F

from inversefed.errors import InputError
from inversefed.types import Images, Labels
from inversefed.zoo.pictures import Picture, crop_and_resize, read_picture, with_channels

__all__ = ["Arrays", "Dataset", "Files", "Shape", "Source"]

Shape = tuple[int, int, int]
"""Channels, height, width."""


@runtime_checkable
class Source(Protocol):
    """Where the examples of a data set come from."""

    def __len__(self) -> int:
        """Return the number of examples."""

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """Return the examples at these places, in this order."""

    def fitted(self, shape: Shape) -> "Source":
        """Return a source of the same examples whose pictures have this shape."""


@dataclass(frozen=True, eq=False)
class Arrays:
    """Examples held in memory as bytes.

    Args:
        pixels: uint8, `[n, c, h, w]`.
        labels: int64, `[n]`.
        pad: enlarge by a black border, as is usual for digits; otherwise enlarging is refused.
        shape: what the pictures are brought to; `None` leaves them.
    """

    pixels: Tensor
    labels: Tensor
    pad: bool = False
    shape: Shape | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """Return the examples at these places, in this order."""
        places = torch.as_tensor(indices, dtype=torch.long)
        images = self.pixels[places].float() / 255
        return (images if self.shape is None else self._fit(images, self.shape)), self.labels[places]

    def _fit(self, images: Tensor, shape: Shape) -> Tensor:
        images = with_channels(images, shape[0])
        down, right = shape[1] - images.shape[2], shape[2] - images.shape[3]
        if down > 0 or right > 0:
            return F.pad(images, (right // 2, right - right // 2, down // 2, down - down // 2))
        return crop_and_resize(images, shape[1], shape[2])

    def fitted(self, shape: Shape) -> "Arrays":
        """Return the same examples in this shape.

        Raises:
            InputError: the pictures would have to be enlarged.
        """
        height, width = self.pixels.shape[2:]
        if not self.pad and (shape[1] > height or shape[2] > width):
            raise InputError(
                f"these pictures are {width}x{height} pixels and {shape[2]}x{shape[1]} are asked for; "
                f"they are not enlarged: take a network for smaller pictures, or larger pictures"
            )
        return replace(self, shape=shape)


@dataclass(frozen=True, eq=False)
class Files:
    """Examples in picture files, read when they are asked for.

    Args:
        paths: one file an example.
        labels: class indices, in the order of `paths`.
        shape: what the pictures are brought to; `None` leaves each its own size, in RGB.
    """

    paths: Sequence[Path] = field(repr=False)
    labels: Sequence[int] = field(repr=False)
    shape: Shape | None = None

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """Return the examples at these places, in this order.

        Raises:
            InputError: a file is not a sound picture, is too small, or the pictures differ in size.
        """
        pictures = [read_picture(self.paths[index], self.shape) for index in indices]
        if len({picture.shape for picture in pictures}) > 1:
            raise InputError("these pictures differ in size; give `size`, so that they are brought to one")
        return torch.stack(pictures), torch.tensor([self.labels[index] for index in indices])

    def fitted(self, shape: Shape) -> "Files":
        """Return the same examples in this shape."""
        return replace(self, shape=shape)


@dataclass(frozen=True, eq=False)
class Dataset:
    """Labeled pictures: `dataset[i]` is `(picture in [0, 1], label)`.

    Args:
        name: what it is called.
        classes: the names of the classes, in the order of the labels.
        mean: of the pixels, one number a channel.
        std: of the pixels, one number a channel.
        shape: `(channels, height, width)`; `None` where pictures differ in size.
        source: where the examples come from.
    """

    name: str
    classes: tuple[str, ...] = field(repr=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    shape: Shape | None
    source: Source = field(repr=False)

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Picture, int]:
        images, labels = self.source.batch([range(len(self))[index]])
        return images[0], int(labels[0])

    def batch(self, indices: Sequence[int]) -> tuple[Images, Labels]:
        """Return `(images, labels)` of the examples at these places, in this order.

        Raises:
            InputError: a place lies outside the data set, or a picture cannot be used.
        """
        wrong = [index for index in indices if not 0 <= index < len(self)]
        if wrong:
            raise InputError(f"{self.name} has examples 0 to {len(self) - 1}; there is no {wrong[0]}")
        if not len(indices):
            raise InputError("a batch needs at least one example; no index was given")
        return self.source.batch(indices)

    def fitted(self, shape: Shape) -> "Dataset":
        """Return the same examples with pictures of this shape: centered crop, resized, in gray or RGB.

        Raises:
            InputError: the number of channels is neither 1 nor 3, or pictures would have to be enlarged.
        """
        if shape[0] not in (1, 3) or min(shape) < 1:
            raise InputError(f"a picture's shape is (1 or 3 channels, height, width), not {shape}")
        mean, std = _spread(self.mean, shape[0]), _spread(self.std, shape[0])
        return replace(self, source=self.source.fitted(shape), shape=shape, mean=mean, std=std)


def _spread(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    return values if len(values) == channels else (sum(values) / len(values),) * channels
