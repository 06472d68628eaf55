"""From options to what an audit is given: pictures, their labels, and a network that takes them."""

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from inversefed.cli import options as given
from inversefed.errors import ConfigError, InputError, InversefedError, UnsupportedNetworkError
from inversefed.fl.threat import ThreatModel
from inversefed.specs.registry import import_object
from inversefed.updates.files import read_tensors
from inversefed.updates.update import expected_tensors
from inversefed.zoo import constants, datasets, networks
from inversefed.zoo.checkpoints import with_weights
from inversefed.zoo.datasets import Dataset
from inversefed.zoo.networks.seeding import seeded
from inversefed.zoo.pictures import read_picture

__all__ = ["Setting", "check_shape", "granted", "pick_device", "read_seconds", "read_setting"]

Shape = tuple[int, int, int]
_SMALL = 100_000
_UNITS = {"": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


@dataclass(frozen=True, eq=False)
class Setting:
    """What the private side of an audit holds."""

    module: nn.Module = field(repr=False)
    images: Tensor = field(repr=False)
    labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    source: str


def read_setting(options: given.Setting) -> Setting:
    """Read pictures and network.

    Raises:
        ConfigError: an unknown name, or options that contradict each other.
        InputError: files that cannot be used.
    """
    if any(count is not None and count < 1 for count in (options.threads, options.num_classes)):
        raise ConfigError("--threads and --num-classes must be at least 1")
    check_shape(options)
    shape = options.image_shape or _named_shape(options)
    images, labels, dataset = _pictures(options, shape)
    num_classes = _num_classes(options, dataset) if options.num_classes is None else options.num_classes
    module = _network(options, shape, num_classes).to(pick_device(options.device))
    torch.set_num_threads(_threads(module) if options.threads is None else options.threads)
    mean = options.mean or (dataset.mean if dataset else _usual(options, shape[0])[0])
    std = options.std or (dataset.std if dataset else _usual(options, shape[0])[1])
    brought = options.update or options.after
    source = re.sub(r"[^\w.-]", "_", brought.stem)[:60] if brought else dataset.name if dataset else "pictures"
    return Setting(module, images, labels, mean, std, source)


def check_shape(options: given.Setting) -> None:
    """Refuse a shape that no picture has.

    Raises:
        ConfigError: a side below 1.
    """
    if options.image_shape is not None and min(options.image_shape) < 1:
        sides = " ".join(map(str, options.image_shape))
        raise ConfigError(f"--image-shape is channels, height and width, all at least 1; got {sides}")


def granted(options: given.Setting) -> ThreatModel:
    """What the options let the server know."""
    return ThreatModel(
        labels="known" if options.known_labels else "unknown",
        client="unknown" if options.unknown_client else "known",
        order="known" if options.known_order else "unknown",
        defenses="known" if options.known_defenses else "unknown",
        buffers="sent" if options.sent_buffers else "network",
    )


def _named_shape(options: given.Setting) -> Shape:
    if ":" in options.network:
        return (3, 32, 32)
    channels = 1 if options.dataset.upper().replace("-", "_").startswith(("MNIST", "FASHION")) else 3
    return networks.input_shape(options.network, 3 if options.images else channels, _published(options))


def _published(options: given.Setting) -> str | None:
    """The name of published weights, where `--weights` is not a file."""
    if options.weights is None or ":" in options.network or re.search(r"[./\\]", options.weights):
        return None
    return options.weights


def _pictures(options: given.Setting, shape: Shape) -> tuple[Tensor, Tensor, Dataset | None]:
    if options.update or options.after:
        return _truth(options, shape)
    if options.images:
        images = torch.stack([read_picture(path, shape) for path in options.images])
        return images, _labels(options, len(images)), None
    if options.num_images < 1 or options.index < 0:
        raise ConfigError(
            f"--num-images must be at least 1 and --index at least 0; got {options.num_images}, {options.index}"
        )
    dataset = datasets.load(options.dataset, options.data_path, size=shape)
    images, labels = dataset.batch(range(options.index, options.index + options.num_images))
    return images, labels if options.labels is None else _labels(options, len(images)), dataset


def _truth(options: given.Setting, shape: Shape) -> tuple[Tensor, Tensor, None]:
    """The pictures behind an update that was made elsewhere: none, where their owner keeps them."""
    images = torch.stack([torch.zeros(shape), *(read_picture(path, shape) for path in options.truth)])[1:]
    unknown = torch.full((len(images),), -1)
    return images, unknown if options.labels is None else torch.tensor(options.labels), None


def _labels(options: given.Setting, count: int) -> Tensor:
    given = options.labels or (0,) * count
    if len(given) != count:
        raise InputError(f"--labels gives {len(given)} labels for {count} pictures")
    return torch.tensor(given)


def _num_classes(options: given.Setting, dataset: Dataset | None) -> int:
    if _published(options) or (":" not in options.network and networks.input_shape(options.network)[1] > 64):
        return 1000
    return dataset.num_classes if dataset else 10


def _network(options: given.Setting, shape: Shape, num_classes: int) -> nn.Module:
    if ":" in options.network:
        if options.num_classes is not None:
            raise ConfigError("--num-classes is for networks by name; a factory decides for itself")
        factory = import_object(options.network)
        try:
            with seeded(options.seed):
                module = factory()
        except InversefedError:
            raise
        except Exception as error:  # foreign code: whatever it raises means the same
            raise UnsupportedNetworkError(
                f"{options.network} raised {type(error).__name__}: {error}; it is called without arguments"
            ) from error
        if not isinstance(module, nn.Module):
            raise UnsupportedNetworkError(f"{options.network} gave {type(module).__name__}, not a torch.nn.Module")
    else:
        module = networks.build(options.network, num_classes, shape[0], options.seed, _published(options))
    if options.weights and not _published(options):
        content = read_tensors(options.weights, expected_tensors(module), strict=False)
        module = with_weights(module, content.tensors, options.weights)
    return module.train(options.train_mode)


def _usual(options: given.Setting, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The usual normalization of a network whose pictures come as files."""
    if channels == 1:
        return tuple(constants.mnist_mean), tuple(constants.mnist_std)
    if ":" not in options.network and networks.input_shape(options.network)[1] > 64:
        return tuple(constants.imagenet_mean), tuple(constants.imagenet_std)
    return tuple(constants.cifar10_mean), tuple(constants.cifar10_std)


def _threads(module: nn.Module) -> int:
    """All threads, but one for a small network: sharing its work costs more than it saves."""
    small = sum(weight.numel() for weight in module.parameters()) < _SMALL
    return 1 if small else torch.get_num_threads()


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` prefers a GPU.

    Raises:
        ConfigError: no such device on this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"--device {name} cannot be used here: {str(error).splitlines()[0]}; try cpu") from error
    return device


def read_seconds(text: str | None) -> float | None:
    """Read a length of time such as 30s, 5m or 1h.

    >>> read_seconds("1.5m")
    90.0
    """
    if text is None:
        return None
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?)\s*([a-z]*)\s*", text.lower())
    if match is None or match[2] not in _UNITS or float(match[1]) <= 0:
        raise ConfigError(f"--time-budget is a length of time such as 30s, 5m or 1h, not {text!r}")
    return float(match[1]) * _UNITS[match[2]]
