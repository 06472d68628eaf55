"""From names to what an audit is given: pictures or rows, their labels, and a network that takes them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inversefed.errors import ConfigError, InputError, InversefedError, UnsupportedNetworkError, shown
from inversefed.findings import Code
from inversefed.inputs import Images, InputSpace, Table, pictured
from inversefed.inputs.table_file import Kind
from inversefed.specs.named_tables import load_table
from inversefed.specs.registry import import_object
from inversefed.specs.sources import BUNDLED, Sources, names_code
from inversefed.types import Batch, Finding
from inversefed.updates.files import read_tensors
from inversefed.updates.update import expected_tensors
from inversefed.zoo import constants, datasets, networks
from inversefed.zoo.checkpoints import with_weights
from inversefed.zoo.datasets import Dataset
from inversefed.zoo.networks.seeding import seeded
from inversefed.zoo.pictures import read_picture

__all__ = ["Setting", "check_shape", "load"]

Shape = tuple[int, int, int]
_MOST_OTHERS = 64
"""Rows of a table that stand beside the private ones."""


@dataclass(frozen=True, eq=False)
class Setting:
    """What the private side of an audit holds.

    Args:
        module: the network.
        space: what its inputs are.
        images: the private examples, `[n, *space.shape]`.
        labels: theirs.
        mean: what the client's input normalization subtracts; `None` for that of the space.
        std: what it divides by.
        source: what the examples, or the update, are called.
        others: public examples that came with them; `None` where they are to be looked for elsewhere.
        findings: what is worth knowing about the file that they came from.
        read: reads more such examples from a file, with labels, -1 for what is not known; `None` for pictures.
    """

    module: nn.Module = field(repr=False)
    space: InputSpace
    images: Tensor = field(repr=False)
    labels: Tensor
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    source: str
    others: Batch | None = field(default=None, repr=False)
    findings: tuple[Finding, ...] = ()
    read: Callable[[Path], Batch] | None = field(default=None, repr=False)


def load(
    named: Sources,
    seed: int,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    space: InputSpace | None = None,
) -> Setting:
    """Read examples and network, on the CPU.

    Args:
        named: what they are called.
        seed: of weights that nobody trained.
        mean: what the client's input normalization subtracts; `None` for the data set's.
        std: what it divides by.
        space: what the examples are, where they are neither pictures nor rows of a table.

    Raises:
        ConfigError: an unknown name, or options that contradict each other.
        InputError: files that cannot be used.
    """
    if named.num_classes is not None and named.num_classes < 1:
        raise ConfigError("--num-classes must be at least 1")
    if named.num_images < 1 or named.index < 0:
        raise ConfigError(
            f"--num-images must be at least 1 and --index at least 0; got {named.num_images}, {named.index}"
        )
    if named.table is not None:
        return _of_table(named, named.table, seed, mean, std)
    for name in ("target", "columns"):
        if getattr(named, name):
            raise ConfigError(f"--{name} tells of a table; name it by --table")
    if space is not None and not pictured(space):
        return _of_space(named, space, seed, mean, std)
    if named.batch is not None:
        raise ConfigError('--batch holds examples that are no pictures; say by --inputs what they are, "Tokens(..)"')
    check_shape(named)
    shape = named.image_shape or _named_shape(named)
    images, labels, dataset = _pictures(named, shape)
    num_classes = _num_classes(named, dataset) if named.num_classes is None else named.num_classes
    module = _network(named, shape, num_classes, seed)
    mean = mean or (dataset.mean if dataset else _usual(named, shape[0])[0])
    std = std or (dataset.std if dataset else _usual(named, shape[0])[1])
    source = _called(named) or (dataset.name if dataset else "pictures")
    return Setting(module, Images(shape), images, labels, mean, std, source)


def _called(named: Sources) -> str:
    """What an update from outside is called; empty for one that is made here."""
    brought = named.update or named.after
    return _plain(brought.stem) if brought else ""


def _plain(name: str) -> str:
    return re.sub(r"[^\w.-]", "_", name)[:60]


def _of_table(
    named: Sources, file: Path, seed: int, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Setting:
    """Rows of a table, the public ones after the private, and a network that takes them."""
    _require_no_picture(named, "--table")
    if named.batch is not None:
        raise ConfigError("--table and --batch both hold the examples: give one of them")
    table = load_table(file.expanduser(), named.target, _kinds(named.columns))
    if table.targets is None:
        raise ConfigError(
            f"--target names the column that the network tells; the columns of {file.name} are "
            f"{', '.join(shown(each.name) for each in table.columns.columns)}"
        )
    rows, targets, read = table.rows, table.targets, partial(_rows_of, table)
    first, behind = named.index, named.index + named.num_images
    if named.update or named.after:
        private = _behind(named, table.columns, read)
        first = behind = 0
    else:
        if behind > len(rows):
            raise InputError(
                f"{file.name} has {len(rows)} rows that can be used, and rows {first} to {behind - 1} were asked for"
            )
        private = Batch(rows[first:behind], targets[first:behind])
    # What equals a private row, be it that row itself, is nothing that anybody may have.
    same = torch.stack([torch.zeros(len(rows)).bool(), *((rows == each).all(dim=1) for each in private.images)]).any(
        dim=0
    )
    after = [at for step in range(behind, first + len(rows)) if not same[at := step % len(rows)]][:_MOST_OTHERS]
    others = Batch(rows[after], targets[after]) if after else None
    num_classes = named.num_classes or len(table.classes) or 1
    module = _network(named, table.columns.shape, num_classes, seed)
    source = _called(named) or _plain(file.stem.removeprefix(BUNDLED))
    images, labels = private.images, private.labels
    return Setting(module, table.columns, images, labels, mean, std, source, others, _told(table), read)


def _require_no_picture(named: Sources, option: str) -> None:
    """Refuse what tells of pictures."""
    if named.images or named.image_shape or named.labels is not None:
        raise ConfigError(
            f"{option} gives examples and targets; leave out --images, --image-shape and --labels, which are for "
            "pictures"
        )
    if not (names_code(named.network) or networks.is_perceptron(named.network)):
        raise ConfigError(
            f"{named.network} takes pictures; for {option} name a perceptron, --network mlp:200,200, or your own "
            "network, --network pkg.mod:factory"
        )


def _of_space(
    named: Sources, space: InputSpace, seed: int, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> Setting:
    """Examples of any input space, from a file of tensors."""
    _require_no_picture(named, "--inputs")
    brought, read = named.update or named.after, partial(_tensors_of, space)
    if bool(brought) == (named.batch is not None):
        raise ConfigError(
            f"of {space.noun}s one file of tensors is taken, .safetensors or .npz: --batch for an update that is made "
            "here, --truth for those behind --update"
        )
    private = _behind(named, space, read) if named.batch is None else read(named.batch)
    if named.num_classes is None and networks.is_perceptron(named.network):
        raise ConfigError(f"{named.network} needs the number of its outputs: --num-classes")
    module = _network(named, space.shape, named.num_classes or 0, seed)
    source = _called(named) if named.batch is None else _plain(named.batch.stem)
    return Setting(module, space, private.images, private.labels, mean, std, source, read=read)


def _tensors_of(space: InputSpace, file: Path) -> Batch:
    """A file's `inputs` and `labels`, -1 where there are none."""
    found = read_tensors(file.expanduser()).tensors
    if "inputs" not in found or found.keys() - {"inputs", "labels"}:
        raise InputError(
            f"{file.name} holds {', '.join(map(shown, sorted(found)[:8])) or 'nothing'}; a file of examples holds the "
            "tensor inputs, and labels"
        )
    inputs = found["inputs"]
    space.check(inputs)
    labels = found.get("labels", torch.full((len(inputs),), -1))
    if len(labels) != len(inputs):
        raise InputError(f"{file.name} holds {len(inputs)} {space.noun}s and {len(labels)} labels; give one of each")
    return Batch(inputs, labels)


def _told(table: Table) -> tuple[Finding, ...]:
    """What was read, and what was left out."""
    first, *columns = table.schema
    message = f"{first[0].upper()}{first[1:]}. {'; '.join(columns)}."
    return (Finding(Code.SCHEMA, "info", message), *table.findings)


def _kinds(columns: Sequence[str]) -> dict[str, Kind]:
    """`NAME=kind` by name; a wrong kind is told by the table."""
    found: dict[str, Any] = {}
    for each in columns:
        name, equals, kind = each.rpartition("=")
        if not equals:
            raise ConfigError(f'--columns takes NAME=kind, such as zip=category or "joined=leave out"; got {each!r}')
        found[name] = kind
    return found


def _behind(named: Sources, space: InputSpace, read: Callable[[Path], Batch]) -> Batch:
    """The examples behind an update that was made elsewhere: none, where their owner keeps them."""
    if len(named.truth) > 1:
        raise ConfigError(f"--truth takes one file with the {space.noun}s behind the update; got {len(named.truth)}")
    return read(named.truth[0]) if named.truth else Batch(space.middle(1)[:0], torch.full((0,), -1))


def _rows_of(table: Table, file: Path) -> Batch:
    rows, targets = table.more(file.expanduser())
    return Batch(rows, torch.full((len(rows),), -1) if targets is None else targets)


def check_shape(named: Sources) -> None:
    """Refuse a shape that no picture has.

    Raises:
        ConfigError: a side below 1.
    """
    if named.image_shape is not None and min(named.image_shape) < 1:
        sides = " ".join(map(str, named.image_shape))
        raise ConfigError(f"--image-shape is channels, height and width, all at least 1; got {sides}")


def _named_shape(named: Sources) -> Shape:
    if names_code(named.network):
        return (3, 32, 32)
    channels = 1 if named.dataset.upper().replace("-", "_").startswith(("MNIST", "FASHION")) else 3
    return networks.input_shape(named.network, 3 if named.images else channels, _published(named))


def _published(named: Sources) -> str | None:
    """The name of published weights, where `--weights` is not a file."""
    if named.weights is None or names_code(named.network) or re.search(r"[./\\]", named.weights):
        return None
    return named.weights


def _pictures(named: Sources, shape: Shape) -> tuple[Tensor, Tensor, Dataset | None]:
    if named.update or named.after:
        return _truth(named, shape)
    if named.images:
        images = torch.stack([read_picture(path, shape) for path in named.images])
        return images, _labels(named, len(images)), None
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
    if _published(named) or (not names_code(named.network) and networks.input_shape(named.network)[1] > 64):
        return 1000
    return dataset.num_classes if dataset else 10


def _network(named: Sources, shape: tuple[int, ...], num_classes: int, seed: int) -> nn.Module:
    if names_code(named.network):
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
        module = networks.build(named.network, num_classes, shape[0], seed, _published(named), shape)
    if named.weights and not _published(named):
        content = read_tensors(named.weights, expected_tensors(module), strict=False)
        module = with_weights(module, content.tensors, named.weights)
    return module.train(named.train_mode)


def _usual(named: Sources, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The usual normalization of a network whose pictures come as files."""
    if channels == 1:
        return tuple(constants.mnist_mean), tuple(constants.mnist_std)
    if not names_code(named.network) and networks.input_shape(named.network)[1] > 64:
        return tuple(constants.imagenet_mean), tuple(constants.imagenet_std)
    return tuple(constants.cifar10_mean), tuple(constants.cifar10_std)
