"""CIFAR-10 and CIFAR-100 in their own format, pickled batches, read without running anything that a pickle may ask for.

A pickle names functions to call. The reader knows the few names of which numpy arrays are made and answers each with a
passive record of its own; bytes become pixels only after their type and length were checked. Any other name ends the
reading. (Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.)
"""

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inversefed.errors import InputError, UnsafeFileError
from inversefed.zoo import constants
from inversefed.zoo.picture_sources import Arrays, Dataset

__all__ = ["read_cifar10", "read_cifar100"]

_CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def read_cifar10(path: Path, split: str, download: bool) -> Dataset:
    """Read CIFAR-10 from `path/cifar-10-batches-py`, or from `path` if that is this folder.

    Raises:
        InputError: a batch is missing or broken, or could not be fetched.
        UnsafeFileError: a batch asks for more than arrays.
    """
    batches = ["test_batch"] if split == "test" else [f"data_batch_{index}" for index in range(1, 6)]
    folder = _folder(path, "cifar-10-batches-py", batches, "CIFAR10" if download else None)
    source = _read_batches([folder / batch for batch in batches], "labels", 10)
    mean, std = constants.cifar10_mean, constants.cifar10_std
    return Dataset("CIFAR10", _CIFAR10_CLASSES, mean, std, (3, 32, 32), source)


def read_cifar100(path: Path, split: str, download: bool) -> Dataset:
    """Read CIFAR-100, fine labels, from `path/cifar-100-python`, or from `path` if that is this folder.

    Raises:
        InputError: a file is missing or broken, or could not be fetched.
        UnsafeFileError: a file asks for more than arrays.
    """
    folder = _folder(path, "cifar-100-python", [split], "CIFAR100" if download else None)
    source = _read_batches([folder / split], "fine_labels", 100)
    mean, std = constants.cifar100_mean, constants.cifar100_std
    return Dataset("CIFAR100", _fine_names(folder / "meta"), mean, std, (3, 32, 32), source)


def _folder(path: Path, name: str, files: list[str], fetch_from: str | None) -> Path:
    for folder in (path / name, path):
        if all((folder / file).is_file() for file in files):
            return folder
    if fetch_from is None:
        raise InputError(
            f"no {_missing(path, name, files)} in {path / name} nor in {path}; "
            f"unpack the data set's Python version there, name its folder as the data path, or allow the download"
        )
    import torchvision

    known = getattr(torchvision.datasets, fetch_from)
    fetch = torchvision.datasets.utils.download_and_extract_archive
    try:
        fetch(known.url, str(path), filename=known.filename, md5=known.tgz_md5)
    except (OSError, RuntimeError) as error:
        raise InputError(f"{known.filename} could not be fetched from {known.url}: {error}") from error
    return path / name


def _missing(path: Path, name: str, files: list[str]) -> str:
    folder = path / name if (path / name).is_dir() else path
    return next(file for file in files if not (folder / file).is_file())


def _read_batches(files: list[Path], label_key: str, num_classes: int) -> Arrays:
    parts = [_read_batch(file, label_key, num_classes) for file in files]
    pixels = torch.cat([rows for rows, _ in parts])
    labels = torch.tensor([label for _, part in parts for label in part])
    return Arrays(pixels.reshape(-1, 3, 32, 32), labels)


def _read_batch(file: Path, label_key: str, num_classes: int) -> tuple[Tensor, list[int]]:
    content = _unpickle(file)
    data, labels = content.get("data"), content.get(label_key)
    if not isinstance(data, _Array) or not isinstance(labels, list):
        raise InputError(f"{file} is not a CIFAR batch: 'data' (an array) and '{label_key}' (a list) are expected")
    pixels = data.pixels(file)
    if len(pixels) != len(labels) or not all(type(y) is int and 0 <= y < num_classes for y in labels):
        raise InputError(
            f"{file}: {len(pixels)} pictures need as many labels, each from 0 to {num_classes - 1}; "
            f"there are {len(labels)}, or some lie outside"
        )
    return pixels, labels


def _fine_names(file: Path) -> tuple[str, ...]:
    found = _unpickle(file).get("fine_label_names", []) if file.is_file() else []
    names = [_text(name) for name in found] if isinstance(found, list) else []
    return tuple(str(name) for name in names) if len(names) == 100 else tuple(str(label) for label in range(100))


def _unpickle(file: Path) -> dict[Any, Any]:
    try:
        with file.open("rb") as stream:
            content = _ArraysOnly(stream, encoding="bytes").load()
    except UnsafeFileError as error:
        raise UnsafeFileError(f"{file}: {error}") from None
    except Exception as error:  # a broken pickle fails in any of a dozen ways
        raise InputError(f"{file} is not a CIFAR file, or it is damaged: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected a dictionary, as in a CIFAR file, not {type(content).__name__}")
    return {_text(key): value for key, value in content.items()}


def _text(value: Any) -> Any:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


class _Dtype:
    """Stands in for `numpy.dtype`: remembers its code and nothing else."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code = _text(code)

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like do not matter for single bytes."""


class _Array:
    """Stands in for `numpy.ndarray`: shape, type and bytes, as they came."""

    def __init__(self, *_: Any) -> None:
        self.shape: Any = None
        self.dtype: Any = None
        self.content: Any = None

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _version, self.shape, self.dtype, fortran_order, self.content = state
        if fortran_order:
            raise InputError("rows are expected in C order")

    def pixels(self, file: Path) -> Tensor:
        """Return the bytes as `[n, 3072]`, once they are known to be that."""
        code = self.dtype.code if isinstance(self.dtype, _Dtype) else None
        sound = code in ("u1", "|u1", "uint8") and isinstance(self.content, bytes | bytearray)
        if not sound or self.shape != (len(self.content) // 3072, 3072) or len(self.content) % 3072:
            raise InputError(f"{file}: expected rows of 3072 bytes, not an array of {self.shape}, type {code}")
        return torch.frombuffer(bytearray(self.content), dtype=torch.uint8).reshape(self.shape)


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order not in ("C", b"C"), content))
    return array


def _encode(text: str, encoding: str) -> bytes:
    if _text(encoding) != "latin1":
        raise UnsafeFileError(f"the pickle asks for the text encoding {encoding!r}; only latin1 is allowed")
    return text.encode("latin1")


_ANSWERS: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _ArraysOnly(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """Answer the names of which arrays are made; refuse every other."""
        if (module, name) not in _ANSWERS:
            raise UnsafeFileError(
                f"the pickle asks for {module}.{name}, and a CIFAR file holds arrays, numbers and text only. "
                f"Nothing was run. Take the file from the data set's own site"
            )
        return _ANSWERS[module, name]
