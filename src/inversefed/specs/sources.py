"""How a network, pictures and an update are named: plain text and numbers, which a file or a command line may hold.

Nothing here imports torch: the command line answers `--help` with these, and a worker reads them from JSON.
`specs.load_setting` turns them into values.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from inversefed.errors import ConfigError, unknown_name

__all__ = [
    "BUNDLED",
    "Asked",
    "Model",
    "OtherInputs",
    "Pictures",
    "Received",
    "Records",
    "Sources",
    "Stated",
    "absolute",
    "absolute_path",
    "as_json",
    "names_code",
    "plain_json",
    "read_fields",
    "records_of",
    "sources_of",
]

BUNDLED = "sklearn:"
"""What the name of a table begins with that is no file, such as `sklearn:wine`."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Whose pictures."""

    images: tuple[Path, ...] = ()
    """Picture files to audit with; each is cropped to its center and resized to the network's input."""
    labels: tuple[int | float, ...] | None = None
    """The true classes of --images or --text, one each (0 by default); for --loss MeanSquaredError numbers such as
    63.0."""
    dataset: str = "photos"
    """Where pictures come from if --images names none (see `inversefed list datasets`)."""
    data_path: Path = Path("~/data")
    """Folder that holds the data set."""
    index: int = 0
    """First example of the data set's test part, or row of --table, to take."""
    num_images: int = 1
    """How many consecutive examples share one update."""


@dataclass(frozen=True, kw_only=True)
class OtherInputs:
    """What else the network is fed than pictures."""

    table: Path | None = None
    """A CSV file with a header, a Parquet file, or a table of scikit-learn's such as sklearn:wine. What each column is,
    is inferred; --network mlp:200,200 takes any table."""
    target: str | None = None
    """The column of --table that the network tells."""
    columns: tuple[str, ...] = ()
    """What columns of --table are, instead of what is inferred: NAME=number, whole, category or "leave out"."""
    text: Path | None = None
    """A text file, one sentence a line, which share one update, for --tokenizer; --labels are their classes."""
    tokenizer: Path | None = None
    """A tokenizer.json of the library tokenizers, by which sentences are ids; the report shows words then. It is read
    as data. --network Bert, Gpt or Llama takes its sentences."""
    batch: Path | None = None
    """A file of tensors, .safetensors or .npz, for --inputs: `inputs` [n, ..] as the space has them, and `labels`."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """Which network."""

    network: str = "LeNetZhu"
    """A network's name (see `inversefed list networks`), a perceptron by the outputs of its layers, such as mlp:200,200
    or mlp:200,200,gelu, a transformer for sentences, such as Bert or Gpt:128, or pkg.mod:factory. The last IMPORTS AND
    RUNS that code."""
    weights: str | None = None
    """A .safetensors or .pt file of weights; for torchvision's networks also a name such as DEFAULT, which downloads.
    Without it the network is untrained, its weights drawn from --seed."""
    num_classes: int | None = None
    """How many classes the network has; by default as many as the data set."""
    image_shape: tuple[int, int, int] | None = None
    """Channels, height and width of the network's input, where its name does not tell."""
    train_mode: bool = False
    """Run the network in train mode (BatchNorm on the batch, dropout on), as a client that trains does."""


@dataclass(frozen=True, kw_only=True)
class Received:
    """An update made elsewhere, instead of one made here."""

    update: Path | None = None
    """An update made elsewhere, instead of one made here: .safetensors, .npz or a .pt state dict. It is read as data;
    nothing in it is run."""
    after: Path | None = None
    """The same for the weights after training, where --weights are those from before."""
    truth: tuple[Path, ...] = ()
    """The pictures behind --update, where their owner has them, for the scores; the attack never sees them. With
    --table a file of rows, with --tokenizer a text file, with --inputs a file of tensors as --batch has them."""


@dataclass(frozen=True, kw_only=True)
class Stated:
    """What the update in a file is, instead of what the file says of itself."""

    kind: Literal["gradient", "weight_delta", "new_weights"] | None = None
    """What the update's file holds."""
    learning_rate: float | None = None
    """Of the client's local steps."""
    local_steps: int | None = None
    """How many steps the client took."""
    num_examples: int | None = None
    """How many examples the client has."""
    batch_size: int | None = None
    """How many of them a local step sees."""
    momentum: float | None = None
    """Of the client's optimizer."""
    loss_reduction: Literal["mean", "sum"] | None = None
    """Whether the loss of a batch is the mean or the sum over its examples."""
    bn_mode: Literal["train", "eval"] | None = None
    """Whether BatchNorm normalized by the batch (train) or by its running statistics (eval)."""
    optimizer: Literal["sgd", "nesterov", "adam", "adamw"] | None = None
    """The client's optimizer; nesterov is SGD with Nesterov momentum."""
    weight_decay: float | None = None
    """Of the client's optimizer."""
    epochs: int | None = None
    """How many passes over its examples the client made, instead of --local-steps; a last, smaller batch counts."""
    micro_batch_size: int | None = None
    """How many examples of a step went through the network at once, where gradients were accumulated."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The client."""

    client: str = "FedSGD"
    """How the update is made."""


@dataclass(frozen=True, kw_only=True)
class Records:
    """Records that are asked for: were they in the update?"""

    candidates: Path | None = None
    """A folder of pictures that are asked for. Their classes are sub-folders named by number, or file names such as
    dog_5.png; where no class is known, all are tried. With --table, a file of rows."""
    candidates_out: Path | None = None
    """A folder of pictures of the same kind that are known not to be in the update, 19 or more. By default the public
    pictures of the controls stand for them, which need not be of the same kind."""


@dataclass(frozen=True, kw_only=True)
class Sources(Pictures, OtherInputs, Model, Received, Stated, Asked):
    """Where network, pictures or rows, and update of an audit come from.

    >>> named = absolute(Sources(network="ConvNet", index=3))
    >>> Sources(**read_fields(Sources, as_json(named))) == named
    True
    >>> read_fields(Sources, {"labels": [3, 0.5]})
    {'labels': (3, 0.5)}
    """


def sources_of(options: Sources) -> Sources:
    """The part of a command's options that says where things come from."""
    return Sources(**{each.name: getattr(options, each.name) for each in fields(Sources)})


def names_code(network: str) -> bool:
    """Whether a network's name is that of code to import and run, such as `pkg.mod:factory`.

    >>> names_code("pkg.mod:factory"), names_code("mlp:200,200"), names_code("ResNet18")
    (True, False, False)
    """
    return re.search(r":(?!\d)", network) is not None


def absolute(sources: Sources) -> Sources:
    """The same sources, with paths that mean the same in any other folder."""
    return Sources(**{each.name: _absolute(getattr(sources, each.name)) for each in fields(Sources)})


def absolute_path(path: Path) -> Path:
    """The same in any other folder; a table by its name, such as `sklearn:wine`, is as it is."""
    return path if str(path).startswith(BUNDLED) else path.expanduser().absolute()


def _absolute(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_absolute(each) for each in value)
    return absolute_path(value) if isinstance(value, Path) else value


def records_of(options: Records) -> Records | None:
    """The part of a command's options that says which records are asked for, paths absolute; nothing for none."""
    found = Records(**{each.name: _absolute(getattr(options, each.name)) for each in fields(Records)})
    return None if found == Records() else found


def as_json(sources: Sources | Records) -> dict[str, Any]:
    """All of it as values that JSON can hold, paths absolute, defaults too: another version may have others."""
    return {name: plain_json(_absolute(value)) for name, value in vars(sources).items()}


def plain_json(value: Any) -> Any:
    """An option's value as JSON has it: paths as text, tuples as lists."""
    if isinstance(value, tuple):
        return [plain_json(each) for each in value]
    return str(value) if isinstance(value, Path) else value


def read_fields(kind: type, content: Mapping[str, Any]) -> dict[str, Any]:
    """Hold entries of a JSON object to the types of a dataclass's fields.

    Raises:
        ConfigError: an unknown entry, or one of the wrong type.
    """
    return {key: _typed(kind, key, value) for key, value in content.items()}


def _typed(kind: type, key: str, value: Any) -> Any:
    """Hold an entry of a config file to its option's type."""
    hints: Mapping[str, Any] = get_type_hints(kind)
    if key not in hints:
        raise unknown_name("config entry", key, hints)
    hint = hints[key]
    kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
    if value is None and type(None) in kinds:
        return None
    for each in kinds:
        read = _as_kind(each, value)
        if read is not None:
            return read
    raise ConfigError(f"config entry {key} must be {hint}, got {value!r}")


def _as_kind(kind: Any, value: Any) -> Any:
    if isinstance(kind, UnionType):
        return next((read for each in get_args(kind) if (read := _as_kind(each, value)) is not None), None)
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and type(value) is int:
        return float(value)
    if isinstance(value, list) and getattr(kind, "__origin__", None) is tuple:
        each, *rest = get_args(kind)
        right_length = rest == [Ellipsis] or len(rest) + 1 == len(value)
        read = tuple(_as_kind(each, part) for part in value)
        return read if right_length and None not in read else None
    if get_origin(kind) is Literal:
        return value if value in get_args(kind) else None
    return value if type(value) is kind else None
