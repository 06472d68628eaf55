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
from inversefed.fl.losses import Loss, labels_are_inputs
from inversefed.inputs import Images, InputSpace, Table, Tokens, pictured
from inversefed.inputs.table_file import Kind
from inversefed.inputs.tokenizer_file import TokenizerFile, read_lines
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

__all__ = ["Setting", "check_shape", "load", "network_by_name"]

Shape = tuple[int, int, int]
_MOST_OTHERS = 64
"""Rows of a table that stand beside the private ones."""
_TENSORS = (".safetensors", ".npz", ".pt", ".pth")
"""Endings of files of tensors; where there is a tokenizer, other files hold sentences."""


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
    loss: Loss | None = None,
) -> Setting:
    """Read examples and network, on the CPU.

    Args:
        named: what they are called.
        seed: of weights that nobody trained.
        mean: what the client's input normalization subtracts; `None` for the data set's.
        std: what it divides by.
        space: what the examples are, where they are neither pictures nor rows of a table.
        loss: the client's, which may have the inputs themselves as labels.

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
    space = _spoken(named, space)
    if space is not None and not pictured(space):
        return _of_space(named, space, seed, mean, std, loss)
    if named.batch is not None:
        raise ConfigError('--batch holds examples that are no pictures; say by --inputs what they are, "Tokens(..)"')
    check_shape(named)
    shape = named.image_shape or _named_shape(named)
    images, labels, dataset = _pictures(named, shape)
    num_classes = _num_classes(named, dataset) if named.num_classes is None else named.num_classes
    module = _network(named, Images(shape), num_classes, seed)
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
    if named.batch or named.text or named.tokenizer:
        raise ConfigError("--table holds the examples, and so do --batch and --text: give one of them")
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
    module = _network(named, table.columns, num_classes, seed)
    source = _called(named) or _plain(file.stem.removeprefix(BUNDLED))
    images, labels = private.images, private.labels
    return Setting(module, table.columns, images, labels, mean, std, source, others, _told(table), read)


def _require_no_picture(named: Sources, option: str) -> None:
    """Refuse what tells of pictures."""
    labeled = named.labels is not None and (named.tokenizer is None or named.batch is not None)
    if named.images or named.image_shape or labeled:
        raise ConfigError(
            f"{option} gives examples and targets; leave out --images, --image-shape and --labels, which are for "
            "pictures, --labels also for --text"
        )
    if not (
        names_code(named.network) or networks.is_perceptron(named.network) or networks.is_transformer(named.network)
    ):
        raise ConfigError(
            f"{named.network} takes pictures; for {option} name a perceptron, --network mlp:200,200, for sentences a "
            "transformer, --network Bert, or your own network, --network pkg.mod:factory"
        )


def _spoken(named: Sources, given: InputSpace | None) -> InputSpace | None:
    """What sentences are by the tokenizer that is named, cut as the file or `given` says; `given` where there are none.

    Raises:
        ConfigError: there is no tokenizer, or something else than sentences.
        InputError: a file that cannot be used.
    """
    if named.tokenizer is None:
        if named.text is None:
            return given
        raise ConfigError(
            "--text holds sentences, and a tokenizer makes ids of them: --tokenizer FILE, a tokenizer.json"
        )
    if given is not None and not isinstance(given, Tokens):
        raise ConfigError(f"--tokenizer makes ids of sentences, and --inputs says that examples are {given!r}")
    files = [file for file in (named.text, *named.truth) if file and file.suffix not in _TENSORS]
    texts = [line for file in files for line in read_lines(file.expanduser())] if given is None else []
    return TokenizerFile.of(named.tokenizer.expanduser()).space(texts, given)


def _of_space(
    named: Sources,
    space: InputSpace,
    seed: int,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    loss: Loss | None,
) -> Setting:
    """Examples of any input space, from a file of tensors or of sentences."""
    _require_no_picture(named, "--inputs" if named.text is None else "--text")
    brought, read = named.update or named.after, partial(_examples_of, space, loss)
    files = [file for file in (named.batch, named.text) if file is not None]
    if len(files) != (not brought):
        raise ConfigError(
            f"of {space.noun}s one file is taken: --batch, of tensors, .safetensors or .npz, or --text, of sentences, "
            "for an update that is made here, --truth for those behind --update"
        )
    private = read(files[0]) if files else _behind(named, space, read)
    labels = private.labels
    if named.labels is not None or (named.text is not None and not labels_are_inputs(loss)):
        labels = _labels(named, len(private.images), space.noun)
    outputs = _outputs(named, labels, loss)
    module = _network(named, space, outputs, seed, labels_are_inputs(loss))
    source = _plain(files[0].stem) if files else _called(named)
    return Setting(module, space, private.images, labels, mean, std, source, read=read)


def _outputs(named: Sources, labels: Tensor, loss: Loss | None) -> int:
    """How many outputs a network by name has; 0 where it decides for itself."""
    if named.num_classes is not None or names_code(named.network):
        return named.num_classes or 0
    if networks.is_transformer(named.network) and labels_are_inputs(loss):
        return 0
    known = networks.is_transformer(named.network) and len(labels) and not labels.is_floating_point()
    if not known or int(labels.min()) < 0:
        raise ConfigError(f"{named.network} needs the number of its outputs: --num-classes")
    return max(2, int(labels.max()) + 1)


def _examples_of(space: InputSpace, loss: Loss | None, file: Path) -> Batch:
    """The examples of a file of tensors, or of sentences where there is a tokenizer; labels -1 where there are none."""
    file = file.expanduser()
    if isinstance(space, Tokens) and space.tokenizer is not None and file.suffix not in _TENSORS:
        inputs = space.encode(read_lines(file))
        found = Batch(inputs, torch.full((len(inputs),), -1))
    else:
        found = _tensors_of(space, file)
    unknown = found.labels.ndim == 1 and not found.labels.is_floating_point() and bool((found.labels == -1).all())
    return Batch(found.images, found.images) if unknown and labels_are_inputs(loss) else found


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


def _labels(named: Sources, count: int, noun: str = "picture") -> Tensor:
    labels = named.labels or (0,) * count
    if len(labels) != count:
        raise InputError(f"--labels gives {len(labels)} labels for {count} {noun}s")
    return torch.tensor(labels)


def _num_classes(named: Sources, dataset: Dataset | None) -> int:
    if _published(named) or (not names_code(named.network) and networks.input_shape(named.network)[1] > 64):
        return 1000
    return dataset.num_classes if dataset else 10


def _network(named: Sources, space: InputSpace, num_classes: int, seed: int, language: bool = False) -> nn.Module:
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
        module = network_by_name(named.network, space, num_classes, seed, _published(named), language)
    if named.weights and not _published(named):
        content = read_tensors(named.weights, expected_tensors(module), strict=False)
        module = with_weights(module, content.tensors, named.weights)
    return module.train(named.train_mode)


def network_by_name(
    name: str, space: InputSpace, num_classes: int, seed: int, weights: str | None = None, language: bool = False
) -> nn.Module:
    """A network of the zoo for some input space, on the CPU.

    Args:
        name: as `inversefed list networks` has it, or a perceptron's.
        space: what it is fed.
        num_classes: outputs; without meaning for a language model.
        seed: of its weights.
        weights: the name of published ones.
        language: whether it gives the next token at every place.

    Raises:
        ConfigError: an unknown name, or a network that takes something else.
    """
    if not networks.is_transformer(name):
        return networks.build(name, num_classes, space.shape[0], seed, weights, space.shape)
    if not isinstance(space, Tokens):
        raise ConfigError(f"{name} takes sentences, and the audit {space.noun}s; name another network")
    sizes = space.vocabulary, space.length, space.pad
    return networks.transformer(name, *sizes, None if language else num_classes, seed, weights)


def _usual(named: Sources, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The usual normalization of a network whose pictures come as files."""
    if channels == 1:
        return tuple(constants.mnist_mean), tuple(constants.mnist_std)
    if not names_code(named.network) and networks.input_shape(named.network)[1] > 64:
        return tuple(constants.imagenet_mean), tuple(constants.imagenet_std)
    return tuple(constants.cifar10_mean), tuple(constants.cifar10_std)
