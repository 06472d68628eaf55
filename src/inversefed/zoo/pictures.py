"""Picture files as tensors: opened with care, cropped around the middle, resized with anti-aliasing, in [0, 1].

The photographs that ship with scikit-image serve as pictures that everybody has.
"""

import importlib.util
import os
import warnings
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from inversefed.errors import InputError, unknown_name
from inversefed.types import Images

__all__ = ["Picture", "crop_and_resize", "photo", "photo_names", "photo_path", "read_picture", "with_channels"]

Picture: TypeAlias = Tensor
"""One picture in pixel space, [0, 1]: `[c, h, w]`."""

_PHOTOS = {
    "chelsea": "chelsea.png",
    "astronaut": "astronaut.png",
    "coffee": "coffee.png",
    "rocket": "rocket.jpg",
    "hubble_deep_field": "hubble_deep_field.jpg",
    "immunohistochemistry": "ihc.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
}

_LUMINANCE = (0.299, 0.587, 0.114)
"""ITU-R 601-2, the weights with which Pillow turns color into gray."""


def read_picture(
    path: str | os.PathLike[str], shape: tuple[int, int, int] | None = None, *, upscale: bool = False
) -> Picture:
    """Read a picture file; the largest centered part of the right proportions is resized to `shape`.

    The orientation that a camera noted is applied, and transparent parts become white. Of 16-bit gray pictures all
    bits are used.

    Args:
        path: a file in any format that Pillow reads.
        shape: `(channels, height, width)`, 1 channel for gray or 3 for RGB; `None` keeps the picture's size, in RGB.
        upscale: accept a picture that is smaller than `shape`.

    Raises:
        InputError: there is no such file, it is not a sound picture, or it is too small (or too large to be safe).
    """
    image = _opened(Path(path).expanduser())
    channels = 3 if shape is None else shape[0]
    picture = with_channels(image[None], channels)
    if shape is None:
        return picture[0]
    if not upscale:
        _require_size(picture, shape, str(path))
    return crop_and_resize(picture, shape[1], shape[2])[0]


def _opened(path: Path) -> Picture:
    if not path.is_file():
        raise InputError(f"expected a picture file, but {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return _to_tensor(ImageOps.exif_transpose(image))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path} is too large to be opened safely; shrink it first ({error})") from error
    except Exception as error:  # a decoder fed with a broken file fails in its own ways
        raise InputError(f"{path} cannot be read as a picture: {error}") from error


def _to_tensor(image: Image.Image) -> Picture:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_gray(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    gray = image.mode in ("1", "L", "LA")
    pixels = np.array(image.convert("L" if gray else "RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels[None] if gray else pixels.transpose(2, 0, 1).copy())


def _deep_gray(image: Image.Image) -> Picture:
    pixels = np.array(image, dtype=np.float32)[None] / (1 if image.mode == "F" else 65535)
    if not (np.isfinite(pixels).all() and pixels.min() >= 0 and pixels.max() <= 1):
        raise InputError(
            "gray values of this depth are read as 0 to 65535 (integers) or 0 to 1 (floats); these are not"
        )
    return torch.from_numpy(pixels)


def _require_size(images: Tensor, shape: tuple[int, int, int], name: str) -> None:
    height, width = images.shape[-2:]
    if height < shape[1] or width < shape[2]:
        raise InputError(
            f"{name} is {width}x{height} pixels, smaller than the {shape[2]}x{shape[1]} that are needed; "
            f"take a larger picture or a smaller input size"
        )


def with_channels(images: Images, channels: int) -> Tensor:
    """Return the pictures in gray (1 channel) or RGB (3 channels); gray becomes RGB by repetition.

    Raises:
        InputError: another number of channels is asked for.
    """
    if channels not in (1, 3):
        raise InputError(f"pictures have 1 channel (gray) or 3 (RGB), not {channels}")
    if images.shape[1] == channels:
        return images
    if channels == 3:
        return images.repeat(1, 3, 1, 1)
    weights = images.new_tensor(_LUMINANCE)[:, None, None]
    return (images * weights).sum(1, keepdim=True).clamp(0, 1)


def crop_and_resize(images: Images, height: int, width: int) -> Tensor:
    """Cut out the largest centered part of these proportions and resize it, anti-aliased, to `[n, c, height, width]`.

    >>> crop_and_resize(torch.rand(1, 3, 60, 40), 8, 8).shape
    torch.Size([1, 3, 8, 8])
    """
    rows, columns = images.shape[-2:]
    scale = min(rows / height, columns / width)
    high, wide = min(rows, max(1, round(height * scale))), min(columns, max(1, round(width * scale)))
    top, left = (rows - high) // 2, (columns - wide) // 2
    part = images[..., top : top + high, left : left + wide]
    if (high, wide) == (height, width):
        return part.clone()
    return F.interpolate(part, (height, width), mode="bilinear", align_corners=False, antialias=True).clamp(0, 1)


def photo_names() -> tuple[str, ...]:
    """Return the names of the photographs that ship with scikit-image, in fixed order.

    >>> photo_names()[:3]
    ('chelsea', 'astronaut', 'coffee')
    """
    return tuple(_PHOTOS)


def photo_path(name: str) -> Path:
    """Return the file of a bundled photograph.

    Raises:
        ConfigError: there is no photograph of this name.
        InputError: scikit-image is not installed.
    """
    if name not in _PHOTOS:
        raise unknown_name("photograph", name, _PHOTOS)
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("the photographs ship with scikit-image, which is not installed: pip install scikit-image")
    return Path(spec.submodule_search_locations[0]) / "data" / _PHOTOS[name]


def photo(name: str, shape: tuple[int, int, int] | None = None) -> Picture:
    """Read a bundled photograph, cropped and resized as by `read_picture`.

    Raises:
        ConfigError: there is no photograph of this name.
        InputError: it is smaller than `shape`, or scikit-image is not installed.

    >>> photo("astronaut", (3, 32, 32)).shape
    torch.Size([3, 32, 32])
    """
    return read_picture(photo_path(name), shape)
