"""Plans as YAML: data only, read node by node, so that what is wrong is said with its line and column.

    name: demo
    targets: {images: FOLDER, limit: 6}
    networks: [LeNetZhu]
    clients: [{FedSGD: {}}]
    attacks: [{geiping: {max_iterations: 60}}]
    seeds: [0, 1]

A piece is written as its name, as on the command line (`"FedAvg(local_steps=4)"`), or as a mapping from its name to its
arguments. Names come from the registries only; nothing in a file names code. Under `otherwise` stands what is taken
where a data set is not there (`skip` leaves a network out that was to be trained on it). A plan with `points` is a
frontier: each point is a text such as `Clip(1.0) + GaussianNoise(0.01)`, or a list of its pieces. Numbers are those of
YAML 1.2: `1e-3` is a number, and `no` and `on` are text, which is not so in YAML 1.1.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import UnionType
from typing import Any, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from inversefed.errors import ConfigError, InputError, InversefedError, unknown_name
from inversefed.experiments.frontier_jobs import read_point
from inversefed.experiments.plan import ModelSpec, Plan, Targets, Training, Utility
from inversefed.fl.threat_model import ThreatModel
from inversefed.frontier import Point
from inversefed.specs import registry
from inversefed.specs.durations import seconds_in
from inversefed.specs.sources import BUNDLED
from inversefed.zoo import datasets, networks

T = TypeVar("T")

__all__ = ["parse_plan", "read_plan", "shipped"]

_MOST = 1_000_000
"""Bytes of a plan; a larger file is none."""


def read_plan(path: str | Path, data_path: Path | None = None) -> Plan:
    """Read a plan from a file; paths in it are relative to its folder.

    Args:
        path: the file.
        data_path: the folder of data sets for which the plan names none; `None` for `~/data`.

    Raises:
        InputError: no such file, or not text.
        ConfigError: an unknown key, name or value, with its line and column.
    """
    file = Path(path).expanduser()
    try:
        if file.stat().st_size > _MOST:
            raise InputError(f"{path} has more than {_MOST} bytes, and a plan has a few hundred")
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read the plan {path}: {error}") from error
    return parse_plan(text, str(path), file.absolute().parent, data_path)


def shipped() -> dict[str, Path]:
    """The plans that ship with the package, by name.

    >>> "demo" in shipped()
    True
    """
    return {each.stem: each for each in sorted((Path(__file__).parent / "plans").glob("*.yaml"))}


def parse_plan(text: str, source: str = "plan", folder: Path | None = None, data_path: Path | None = None) -> Plan:
    r"""Read a plan from text.

    Args:
        text: YAML.
        source: what errors call it.
        folder: what relative paths in it are relative to; `None` for the working directory.
        data_path: the folder of data sets for which it names none; `None` for `~/data`.

    Raises:
        ConfigError: an unknown key, name or value, with its line and column.

    >>> len(parse_plan("name: demo\nnetworks: [LeNetZhu, ConvNet]\nseeds: [0, 1]"))
    4
    >>> parse_plan("name: demo\nnetwork: [LeNetZhu]")
    Traceback (most recent call last):
    inversefed.errors.ConfigError: plan, line 2, column 1: unknown key 'network'; did you mean networks? Known: ...
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = "" if mark is None else f", line {mark.line + 1}, column {mark.column + 1}"
        raise ConfigError(f"{source}{where}: this is not YAML: {error.problem or error.context}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ConfigError(f"{source}: this is not YAML: {error}") from error
    if root is None:
        raise ConfigError(f"{source} is empty; a plan has at least a name, such as 'name: demo'")
    return _Reader(source, folder or Path.cwd(), data_path).plan(root)


class _Loader(yaml.SafeLoader):
    """Scalars of YAML 1.2's core schema."""


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))

_SCALARS: Mapping[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:bool": lambda text: text.lower() == "true",
    "tag:yaml.org,2002:int": int,
    "tag:yaml.org,2002:float": float,
    "tag:yaml.org,2002:null": lambda _: None,
    "tag:yaml.org,2002:str": str,
}


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Nodes to values; every error names its place."""

    source: str
    folder: Path
    data_path: Path | None = None

    def plan(self, root: Node) -> Plan:
        """The whole file."""
        known: dict[str, Callable[[Node], Any]] = {
            "name": self.name,
            "note": self.note,
            "targets": lambda node: self.each(node, self.targets),
            "networks": lambda node: self.each(node, self.model, flat=True),
            "clients": lambda node: self.each(node, lambda each: self.piece("client", each)),
            "defenses": lambda node: self.each(node, self.defenses),
            "attacks": lambda node: self.each(node, lambda each: self.piece("attack", each)),
            "seeds": lambda node: self.each(node, lambda each: self.typed(int, each)),
            "threat": lambda node: self.dataclass(ThreatModel, node),
            "loss": lambda node: self.piece("loss", node),
            "time_budget": self.seconds,
            "max_iterations": lambda node: self.typed(int, node),
            "nulls": lambda node: self.typed(int, node),
            "points": lambda node: self.each(node, self.point),
            "utility": self.utility,
        }
        entries = self.entries(root, known)
        if "name" not in entries:
            self.fail(root, "a plan needs a name, such as 'name: demo'")
        values = {key: known[key](node) for key, node in entries.items()}
        values = {{"networks": "models"}.get(key, key): value for key, value in values.items()}
        if "networks" in entries and not values["models"]:
            self.fail(entries["networks"], "no network is left: the data that they are trained on are not there")
        if "points" in entries and (key := next((each for each in ("clients", "defenses") if each in entries), None)):
            self.fail(entries[key], f"points say clients and defenses themselves; leave out {key}")
        return self.made(root, lambda: Plan(**values))

    def name(self, node: Node) -> str:
        """A name that is also a folder's."""
        text = self.text(node)
        if not re.fullmatch(r"[\w][\w. -]{0,99}", text):
            self.fail(node, f"a name has letters, digits, dots, dashes and spaces, at most 100 of them; got {text!r}")
        return text

    def targets(self, node: Node) -> Targets:
        """A group of targets: a mapping, a data set's name, or a folder of pictures."""
        if isinstance(node, ScalarNode):
            text = self.text(node)
            if datasets.is_known(text):
                return Targets(text)
            return self.made(node, lambda: Targets(images=self.files([text])))
        own = self.entries(node, [*(each.name for each in dataclasses.fields(Targets)), "otherwise"])
        values = {key: self.field(Targets, key, each) for key, each in own.items() if key not in _OWN}
        if (other := self.instead(own, values, "test")) is not None:
            return self.targets(other)
        if "table" in own:
            table = self.text(own["table"])
            bundled = table.startswith(BUNDLED)
            values["table"] = Path(table) if bundled else self.made(own["table"], lambda: self.files([table])[0])
        if "images" in own:
            paths = self.each(own["images"], self.text)
            values["images"] = self.made(own["images"], lambda: self.files(paths))
        return self.made(node, lambda: Targets(**values))

    def instead(self, own: Mapping[str, Node], values: dict[str, Any], split: str) -> Node | None:
        """What stands under `otherwise`, where the data set is not there; and the folder that the caller named."""
        if self.data_path is not None:
            values.setdefault("data_path", self.data_path)
        if "dataset" in own and not datasets.is_known(values["dataset"]):
            self.fail(own["dataset"], str(unknown_name("data set", values["dataset"], datasets.names())))
        if "otherwise" not in own:
            return None
        try:
            datasets.load(values.get("dataset", "photos"), values.get("data_path", "~/data"), split)
        except InputError:
            return own["otherwise"]
        return None

    def files(self, paths: Any) -> tuple[Path, ...]:
        """Pictures or folders that are there."""
        found = tuple(self.folder / Path(each).expanduser() for each in paths)
        for each in found:
            if not each.exists():
                raise InputError(f"there is no picture, table, folder or data set {str(each)!r}")
        return found

    def model(self, node: Node) -> list[ModelSpec]:
        """A network by name, or a mapping from its name to its settings; one for each number of epochs."""
        name_node, given = self.named(node)
        name = self.text(name_node)
        if name not in networks.names() and not networks.is_perceptron(name):
            self.fail(name_node, str(unknown_name("network", name, networks.names())))
        if given is None:
            return [ModelSpec(name)]
        own = self.entries(given, [each.name for each in dataclasses.fields(ModelSpec) if each.name != "network"])
        values = {key: self.field(ModelSpec, key, each) for key, each in own.items() if key != "train"}
        if "weights" in own and re.search(r"[./\\]", values["weights"]):
            values["weights"] = str(self.folder / Path(values["weights"]).expanduser())
            if not Path(values["weights"]).is_file():
                self.fail(own["weights"], f"there is no file {values['weights']!r}")
        if "train" not in own:
            return [self.made(given, lambda: ModelSpec(name, **values))]
        return [
            self.made(given, partial(ModelSpec, name, train=each, **values)) for each in self.trainings(own["train"])
        ]

    def trainings(self, node: Node) -> list[Training]:
        """How it is trained; one for each number of epochs."""
        if isinstance(node, ScalarNode) and node.value == "skip":
            return []
        own = self.entries(node, [*(each.name for each in dataclasses.fields(Training)), "otherwise"])
        values = {key: self.field(Training, key, each) for key, each in own.items() if key not in _OWN}
        if (other := self.instead(own, values, "train")) is not None:
            return self.trainings(other)
        epochs = self.each(own["epochs"], lambda each: self.typed(int, each)) if "epochs" in own else (120,)
        return [self.made(node, partial(Training, epochs=each, **values)) for each in epochs]

    def defenses(self, node: Node) -> tuple[Any, ...]:
        """One choice: `none`, a defense, or several in their order."""
        if isinstance(node, ScalarNode) and self.text(node).lower() == "none":
            return ()
        parts = node.value if isinstance(node, SequenceNode) else [node]
        return tuple(self.piece("defense", each) for each in parts)

    def point(self, node: Node) -> Point:
        """One point: its text, or a list of its pieces, of which `{num_images: 2}` is how many pictures it has."""
        parts = [self.part(each) for each in (node.value if isinstance(node, SequenceNode) else [node])]
        return self.made(node, lambda: read_point(" + ".join(parts)))

    def part(self, node: Node) -> str:
        """A piece of a point as its text has it."""
        name, given = self.named(node)
        if given is not None and self.text(name) == "num_images":
            return f"num_images={self.typed(int, given)}"
        return self.call(node)

    def utility(self, node: Node) -> Utility | None:
        """The training of each point: `none`, or data sets that are tried in order, and rounds."""
        if isinstance(node, ScalarNode) and self.text(node).lower() == "none":
            return None
        own = self.entries(node, [each.name for each in dataclasses.fields(Utility)])
        if "data" not in own:
            self.fail(node, "utility needs its data, such as {data: [FashionMNIST], rounds: 100}")
        values = {key: self.field(Utility, key, each) for key, each in own.items() if key != "data"}
        places = self.each(own["data"], self.place)
        return self.made(node, lambda: Utility(places, **values))

    def place(self, node: Node) -> tuple[str, Path]:
        """A data set by name, or with its folder."""
        own = {"dataset": node} if isinstance(node, ScalarNode) else self.entries(node, ["dataset", "data_path"])
        name = self.text(own["dataset"]) if "dataset" in own else ""
        if not datasets.is_known(name):
            self.fail(own.get("dataset", node), str(unknown_name("data set", name, datasets.names())))
        if "data_path" in own:
            return name, Path(self.typed(Path, own["data_path"]))
        return name, self.data_path or Path("~/data")

    def piece(self, kind: str, node: Node) -> Any:
        """A piece of the registry."""
        text = self.call(node)
        return self.made(node, lambda: registry.build(kind, text))

    def call(self, node: Node) -> str:
        """A piece as the command line writes it: `{FedAvg: {local_steps: 4}}` is `FedAvg(local_steps=4)`."""
        name_node, given = self.named(node)
        name = self.text(name_node)
        if given is None:
            return name
        if not re.fullmatch(r"\w+", name):
            self.fail(name_node, f"the name of a piece was expected, such as FedAvg; got {name!r}")
        if not isinstance(given, MappingNode):
            return f"{name}({self.argument(given)})"
        return f"{name}({', '.join(f'{key}={self.argument(each)}' for key, each in self.entries(given).items())})"

    def argument(self, node: Node) -> str:
        """An argument of a piece: a number, text, a list, or a further piece as a mapping."""
        if isinstance(node, SequenceNode):
            parts = [self.argument(each) for each in node.value]
            return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
        if isinstance(node, MappingNode):
            return self.call(node)
        value = self.scalar(node)
        return value if isinstance(value, str) and re.fullmatch(r"\w+\(.*\)", value) else repr(value)

    def named(self, node: Node) -> tuple[Node, Node | None]:
        """A name, and what stands under it."""
        if isinstance(node, ScalarNode):
            return node, None
        if not isinstance(node, MappingNode) or len(node.value) != 1:
            self.fail(node, "a name was expected, or one name with its settings, such as {FedAvg: {local_steps: 4}}")
        name, given = node.value[0]
        return name, None if _is_null(given) else given

    def dataclass(self, kind: type, node: Node) -> Any:
        """A frozen value whose fields are plain."""
        own = self.entries(node, [each.name for each in dataclasses.fields(kind)])
        values = {key: self.field(kind, key, each) for key, each in own.items()}
        return self.made(node, lambda: kind(**values))

    def field(self, kind: type, name: str, node: Node) -> Any:
        """One field by its declared type."""
        return self.typed(get_type_hints(kind)[name], node)

    def typed(self, hint: Any, node: Node) -> Any:
        """A scalar, or a list of them, of the declared type."""
        kinds = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
        for kind in (each for each in kinds if each is not type(None)):
            if get_origin(kind) is tuple and isinstance(node, SequenceNode):
                inner = get_args(kind)
                if inner[-1] is not Ellipsis and len(inner) != len(node.value):
                    self.fail(node, f"{len(inner)} values were expected, got {len(node.value)}")
                return tuple(self.typed(inner[0], each) for each in node.value)
            if not isinstance(node, ScalarNode):
                continue
            value = self.scalar(node)
            if kind is float and type(value) is int:
                return float(value)
            if kind is Path and isinstance(value, str):
                return self.folder / Path(value).expanduser()
            if type(value) is kind or (get_origin(kind) is not None and value in get_args(kind)):
                return value
        return self.fail(node, f"{_expected(kinds)} was expected, got {self.excerpt(node)}")

    def seconds(self, node: Node) -> float:
        """A length of time such as 30s, 5m or 1h; a bare number is seconds."""
        found = seconds_in(str(self.scalar(node)))
        if found is None:
            self.fail(node, f"a length of time was expected, such as 30s, 5m or 1h; got {self.excerpt(node)}")
        return found

    def each(self, node: Node, read: Callable[[Node], Any], flat: bool = False) -> tuple[Any, ...]:
        """A list, or one value that stands for a list of one."""
        parts = node.value if isinstance(node, SequenceNode) else [node]
        if not parts:
            self.fail(node, "at least one value was expected, got an empty list")
        found = [read(part) for part in parts]
        return tuple(value for part in found for value in part) if flat else tuple(found)

    def entries(self, node: Node, known: Any = None) -> dict[str, Node]:
        """The entries of a mapping, each once, all of them known."""
        if not isinstance(node, MappingNode):
            self.fail(node, f"keys with values were expected, got {self.excerpt(node)}")
        found: dict[str, Node] = {}
        for key_node, value in node.value:
            key = self.text(key_node)
            if known is not None and key not in known:
                self.fail(key_node, str(unknown_name("key", key, known)))
            if key in found:
                self.fail(key_node, f"the key {key!r} stands here twice")
            found[key] = value
        return found

    def note(self, node: Node) -> str:
        """A sentence, or nothing."""
        return "" if _is_null(node) or not node.value else self.text(node)

    def text(self, node: Node) -> str:
        """A scalar as it is written."""
        if not isinstance(node, ScalarNode) or _is_null(node):
            self.fail(node, f"text was expected, got {self.excerpt(node)}")
        return str(node.value)

    def scalar(self, node: Node) -> Any:
        """A number, text, true, false or null."""
        if not isinstance(node, ScalarNode):
            self.fail(node, f"one value was expected, got {self.excerpt(node)}")
        if node.tag not in _SCALARS:
            self.fail(node, f"the tag {node.tag!r} is not read here; write a plain number or text")
        return _SCALARS[node.tag](node.value)

    def made(self, node: Node, make: Callable[[], T]) -> T:
        """What a constructor gives; its refusal with the place."""
        try:
            return make()
        except InversefedError as error:
            self.fail(node, str(error), error)

    def excerpt(self, node: Node) -> str:
        """A node as a message shows it."""
        if isinstance(node, ScalarNode):
            return repr(node.value) if node.value else "nothing"
        return "a list" if isinstance(node, SequenceNode) else "keys with values"

    def fail(self, node: Node, message: str, cause: Exception | None = None) -> NoReturn:
        """Refuse, and say where."""
        mark = node.start_mark
        raise ConfigError(f"{self.source}, line {mark.line + 1}, column {mark.column + 1}: {message}") from cause


_OWN = ("images", "epochs", "otherwise")
"""Keys that are read by themselves."""


def _is_null(node: Node) -> bool:
    return isinstance(node, ScalarNode) and node.tag == "tag:yaml.org,2002:null"


def _expected(kinds: tuple[Any, ...]) -> str:
    words = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
    options = [part for kind in kinds if get_origin(kind) is not tuple for part in get_args(kind)]
    named = [words[kind] for kind in kinds if kind in words]
    lists = ["a list" for kind in kinds if get_origin(kind) is tuple]
    return " or ".join([*named, *lists, *map(str, options)])
