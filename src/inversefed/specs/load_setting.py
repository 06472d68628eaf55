"""From names to what an audit is given: pictures, their labels, and a network that takes them."""

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from inversefed.errors import ConfigError, InputError, InversefedError, UnsupportedNetworkError
from inversefed.specs.registry import import_object
from inversefed.specs.sources import Sources
from inversefed.updates.files import read_tensors
from inversefed.updates.update import expected_tensors
from inversefed.zoo import constants, datasets, networks
from inversefed.zoo.checkpoints import with_weights
from inversefed.zoo.datasets import Dataset
from inversefed.zoo.networks.seeding import seeded
from inversefed.zoo.pictures import read_picture

__all__ = ["Setting", "check_shape", "load"]

Shape = tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class Setting:
    """What the private side of an audit holds."""

    module: nn.Module = field(repr=False)
    images: Tensor = field(repr=False)
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


def load(
    named: Sources, seed: int, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Setting:
    """Read pictures and network, on the CPU.

    Args:
        named: what they are called.
        seed: of weights that nobody trained.
        mean: what the client's input normalization subtracts; `None` for the data set's.
        std: what it divides by.

    Raises:
        ConfigError: an unknown name, or options that contradict each other.
        InputError: files that cannot be used.
    """
    if named.num_classes is not None and named.num_classes < 1:
        raise ConfigError("--num-classes must be at least 1")
    check_shape(named)
    shape = named.image_shape or _named_shape(named)
    images, labels, dataset = _pictures(named, shape)
    num_classes = _num_classes(named, dataset) if named.num_classes is None else named.num_classes
    module = _network(named, shape, num_classes, seed)
    mean = mean or (dataset.mean if dataset else _usual(named, shape[0])[0])
    std = std or (dataset.std if dataset else _usual(named, shape[0])[1])
    brought = named.update or named.after
    source = re.sub(r"[^\w.-]", "_", brought.stem)[:60] if brought else dataset.name if dataset else "pictures"
    return Setting(module, images, labels, mean, std, source)


def check_shape(named: Sources) -> None:
    """Refuse a shape that no picture has.

    Raises:
        ConfigError: a side below 1.
    """
    if named.image_shape is not None and min(named.image_shape) < 1:
        sides = " ".join(map(str, named.image_shape))
        raise ConfigError(f"--image-shape is channels, height and width, all at least 1; got {sides}")


def _named_shape(named: Sources) -> Shape:
    if ":" in named.network:
        return (3, 32, 32)
    channels = 1 if named.dataset.upper().replace("-", "_").startswith(("MNIST", "FASHION")) else 3
    return networks.input_shape(named.network, 3 if named.images else channels, _published(named))


def _published(named: Sources) -> str | None:
    """The name of published weights, where `--weights` is not a file."""
    if named.weights is None or ":" in named.network or re.search(r"[./\\]", named.weights):
        return None
    return named.weights


def _pictures(named: Sources, shape: Shape) -> tuple[Tensor, Tensor, Dataset | None]:
    if named.update or named.after:
        return _truth(named, shape)
    if named.images:
        images = torch.stack([read_picture(path, shape) for path in named.images])
        return images, _labels(named, len(images)), None
    if named.num_images < 1 or named.index < 0:
        raise ConfigError(
            f"--num-images must be at least 1 and --index at least 0; got {named.num_images}, {named.index}"
        )
    dataset = datasets.load(named.dataset, named.data_path, size=shape)
    images, labels = dataset.batch(range(named.index, named.index + named.num_images))
    return images, labels if named.labels is None else _labels(named, len(images)), dataset


def _truth(named: Sources, shape: Shape) -> tuple[Tensor, Tensor, None]:
    """The pictures behind an update that was made elsewhere: none, where their owner keeps them."""
    images = torch.stack([torch.zeros(shape), *(read_picture(path, shape) for path in named.truth)])[1:]
    unknown = torch.full((len(images),), -1)
    return images, unknown if named.labels is None else torch.tensor(named.labels), None


def _labels(named: Sources, count: int) -> Tensor:
    labels = named.labels or (0,) * count
    if len(labels) != count:
        raise InputError(f"--labels gives {len(labels)} labels for {count} pictures")
    return torch.tensor(labels)


def _num_classes(named: Sources, dataset: Dataset | None) -> int:
    if _published(named) or (":" not in named.network and networks.input_shape(named.network)[1] > 64):
        return 1000
    return dataset.num_classes if dataset else 10


def _network(named: Sources, shape: Shape, num_classes: int, seed: int) -> nn.Module:
    if ":" in named.network:
        if named.num_classes is not None:
            raise ConfigError("--num-classes is for networks by name; a factory decides for itself")
        factory = import_object(named.network)
        try:
            with seeded(seed):
                module = factory()
        except InversefedError:
            raise
        except Exception as error:  # foreign code: whatever it raises means the same
            raise UnsupportedNetworkError(
                f"{named.network} raised {type(error).__name__}: {error}; it is called without arguments"
            ) from error
        if not isinstance(module, nn.Module):
            raise UnsupportedNetworkError(f"{named.network} gave {type(module).__name__}, not a torch.nn.Module")
    else:
        module = networks.build(named.network, num_classes, shape[0], seed, _published(named))
    if named.weights and not _published(named):
        content = read_tensors(named.weights, expected_tensors(module), strict=False)
        module = with_weights(module, content.tensors, named.weights)
    return module.train(named.train_mode)


def _usual(named: Sources, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The usual normalization of a network whose pictures come as files."""
    if channels == 1:
        return tuple(constants.mnist_mean), tuple(constants.mnist_std)
    if ":" not in named.network and networks.input_shape(named.network)[1] > 64:
        return tuple(constants.imagenet_mean), tuple(constants.imagenet_std)
    return tuple(constants.cifar10_mean), tuple(constants.cifar10_std)
