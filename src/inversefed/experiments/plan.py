"""A plan: which audits. The product of targets, networks, clients, defenses, attacks and seeds, as scenarios.

    audits             = targets x networks x clients x defenses x attacks x seeds
    points (frontier)  = targets x networks x points x attacks x seeds

A point is a client with its defenses that is attacked by an attack which ignores the defenses, by one which knows them,
and trained with (`frontier`): what it leaks, and what it costs.

Everything in a plan is named as on the command line, so that a plan is data: a file may hold it, and a worker on
another machine reads the same. A scenario gets its hash once its pictures and weights are loaded; cells that differ
only in client, defenses or attack are loaded together.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from inversefed.attacks import Attack, SearchAttack
from inversefed.attacks.shown import shown as shown_attack
from inversefed.errors import ConfigError, InputError
from inversefed.experiments.frontier_jobs import PointSpec, read_point
from inversefed.fl.clients import Client
from inversefed.fl.defenses import Defense
from inversefed.fl.losses import CrossEntropy
from inversefed.fl.network import Loss
from inversefed.fl.threat_model import ThreatModel
from inversefed.frontier import Point
from inversefed.scenario import Scenario
from inversefed.specs import registry
from inversefed.specs.sources import Sources, absolute, absolute_path
from inversefed.specs.written import UNNAMED, written
from inversefed.zoo.folders import pictures_in

__all__ = ["Cell", "LastLoad", "ModelSpec", "Plan", "Targets", "Training", "Utility", "shown"]


@dataclass(frozen=True)
class Targets:
    """Whose updates are attacked: consecutive examples of a data set or rows of a table, or picture files.

    Args:
        dataset: where the pictures come from, unless `images` names files (see `inversefed list datasets`).
        data_path: the folder that holds the data set.
        images: picture files, or one folder of them, taken in the order of their names.
        labels: the true classes of `images`, one each; 0 where there are none.
        first: the first example to take, from 0.
        limit: how many updates; of `images` all that there are, by default.
        num_images: how many consecutive examples share one update.
        table: a CSV or Parquet file, or `sklearn:` with a table's name, instead of pictures.
        target: the column of it that the network tells.
        columns: what its columns are, instead of what is inferred: `NAME=kind`.
    """

    dataset: str = "photos"
    data_path: Path = Path("~/data")
    images: tuple[Path, ...] = ()
    labels: tuple[int | float, ...] | None = None
    first: int = 0
    limit: int | None = None
    num_images: int = 1
    table: Path | None = None
    target: str | None = None
    columns: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.table is not None and (self.images or self.labels is not None):
            raise ConfigError("targets are rows of a table or picture files, not both: leave out images and labels")
        if self.first < 0 or self.num_images < 1 or (self.limit is not None and self.limit < 1):
            raise ConfigError(
                f"targets need first of at least 0, and limit and num_images of at least 1; got first={self.first}, "
                f"limit={self.limit}, num_images={self.num_images}"
            )

    def sources(self) -> Iterator[Sources]:
        """The pictures or rows of each update, as the command line names them.

        Raises:
            InputError: a folder without pictures, or fewer of them than the limit asks for.
        """
        if not self.images:
            for number in range(1 if self.limit is None else self.limit):
                yield replace(self._named(), index=self.first + number * self.num_images, num_images=self.num_images)
            return
        files, size = self._files()[self.first :], self.num_images
        most = len(files) // size
        if (self.limit is not None and self.limit > most) or not most:
            raise InputError(
                f"{self.limit or 1} updates of {size} pictures were asked for, and {self.images[0]} has {len(files)} "
                f"pictures from number {self.first} on"
            )
        for number in range(most if self.limit is None else self.limit):
            part = slice(number * size, (number + 1) * size)
            labels = None if self.labels is None else self.labels[self.first :][part]
            yield Sources(images=files[part], labels=labels)

    def _named(self) -> Sources:
        """The data set or table, as the command line names it."""
        if self.table is None:
            return Sources(dataset=self.dataset, data_path=self.data_path)
        return Sources(table=self.table, target=self.target, columns=self.columns)

    def sources_of_point(self, num_images: int) -> tuple[Sources, int]:
        """All pictures of a point's updates, of so many each, and how many updates that are.

        Files that are too few are told when the point is measured, and the others are.
        """
        if not self.images:
            count = 1 if self.limit is None else self.limit
            many = count * num_images
            return replace(self._named(), index=self.first, num_images=many), count
        files = self._files()[self.first :]
        count = max(1, len(files) // num_images) if self.limit is None else self.limit
        part = slice(self.first, self.first + count * num_images)
        labels = None if self.labels is None else self.labels[part]
        return Sources(images=files[: count * num_images], labels=labels, num_images=count * num_images), count

    def _files(self) -> tuple[Path, ...]:
        found: list[Path] = []
        for path in (each.expanduser() for each in self.images):
            found += pictures_in(path) if path.is_dir() else [path]
        if self.labels is not None and len(self.labels) != len(found):
            raise InputError(f"labels gives {len(self.labels)} labels for {len(found)} pictures")
        return tuple(found)


@dataclass(frozen=True)
class Training:
    """How a network is trained before it is audited: once, kept by what it was made of, and used again.

    Args:
        dataset: what it is trained on.
        data_path: the folder that holds the data set.
        epochs: passes over the training part; 0 for weights as they are drawn.
        recipe: `"conservative"` or `"adam"`.
        batch_size: examples a step.
        lr: learning rate; `None` for the recipe's.
        seed: fixes the first weights and the order of the examples.
    """

    dataset: str = "CIFAR10"
    data_path: Path = Path("~/data")
    epochs: int = 120
    recipe: str = "conservative"
    batch_size: int = 128
    lr: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1 or self.recipe not in ("conservative", "adam"):
            raise ConfigError(
                f"train needs epochs of at least 0, batch_size of at least 1, and the recipe conservative or adam; got "
                f"epochs={self.epochs}, batch_size={self.batch_size}, recipe={self.recipe!r}"
            )


@dataclass(frozen=True)
class ModelSpec:
    """A network, by name, with its weights.

    Args:
        network: its name (see `inversefed list networks`).
        weights: a file of weights, or the name of published ones; `None` for untrained.
        train: train it first, instead.
        num_classes: how many classes it has; `None` for those of the data set.
        image_shape: channels, height and width of its input, where its name does not tell.
        train_mode: run it in train mode.
        mean: what its input normalization subtracts, one number a channel; `None` for that of the data set.
        std: what it divides by.
        label: what tables call it; by default its name with where its weights come from.
    """

    network: str = "LeNetZhu"
    weights: str | None = None
    train: Training | None = None
    num_classes: int | None = None
    image_shape: tuple[int, int, int] | None = None
    train_mode: bool = False
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    label: str = ""

    def __post_init__(self) -> None:
        if self.weights is not None and self.train is not None:
            raise ConfigError(f"{self.network} has weights from a file or is trained first, not both")


@dataclass(frozen=True)
class Utility:
    """How long, and on what, each point is trained with, to see what it costs in accuracy.

    Args:
        data: data sets with their folders, tried in order; where none is there, accuracy is left out.
        rounds: server rounds, 32 examples each.
    """

    data: tuple[tuple[str, Path], ...]
    rounds: int = 100

    def __post_init__(self) -> None:
        if not self.data or self.rounds < 1:
            raise ConfigError(
                f"utility needs at least one data set and one round; got {len(self.data)} and {self.rounds}"
            )

    def places(self) -> tuple[tuple[str, Path], ...]:
        """The data sets with folders that any process finds."""
        return tuple((name, folder.expanduser().absolute()) for name, folder in self.data)


@dataclass(frozen=True)
class Cell:
    """One audit of a plan, and where it stands in it.

    Args:
        scenario: the audit.
        target: the number of its update among those of the plan, from 0.
        model: the network as the plan names it.
    """

    scenario: Scenario = field(repr=False)
    target: int
    model: str


@dataclass(frozen=True)
class Plan:
    """Many audits.

    Args:
        name: of the plan, and of its run where no other name is given.
        targets: whose updates are attacked.
        models: the networks.
        clients: how updates are made.
        defenses: what is done to an update before it leaves, one tuple for each choice; `()` is no defense.
        attacks: how the server attacks.
        seeds: each fixes all randomness of an audit.
        threat: what the server knows.
        loss: what the client minimizes.
        time_budget: seconds for each audit; with one, results depend on the machine and its load.
        max_iterations: replaces the attacks' own numbers.
        nulls: how many null runs each verdict rests on; 0 for none, and no verdict.
        points: what clients do, where a frontier is measured and not audits; in place of `clients` and `defenses`.
        utility: the training of each point; `None` for none.
        note: what the plan is for, in one sentence, shown above its tables.

    Raises:
        ConfigError: nothing to audit, or what does not go together.

    >>> plan = Plan("demo", targets=(Targets(limit=2),), seeds=(0, 1))
    >>> len(plan), [cell.scenario.seed for cell in plan.cells()]
    (4, [0, 1, 0, 1])
    """

    name: str
    targets: tuple[Targets, ...] = (Targets(),)
    models: tuple[ModelSpec, ...] = (ModelSpec(),)
    clients: tuple[Client, ...] = field(default_factory=lambda: (registry.build("client", "FedSGD"),))
    defenses: tuple[tuple[Defense, ...], ...] = ((),)
    attacks: tuple[Attack, ...] = field(default_factory=lambda: (registry.build("attack", "best"),))
    seeds: tuple[int, ...] = (0,)
    threat: ThreatModel = ThreatModel()
    loss: Loss = CrossEntropy()
    time_budget: float | None = None
    max_iterations: int | None = None
    nulls: int | None = None
    points: tuple[Point, ...] = ()
    utility: Utility | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for name in ("targets", "models", "clients", "defenses", "attacks", "seeds"):
            given = getattr(self, name)
            if not isinstance(given, tuple) or not given:
                raise ConfigError(f"a plan needs at least one of its {name}, as a tuple; got {given!r}")
        if self.points:
            self._check_points()
        elif self.utility is not None:
            raise ConfigError("utility is for a plan of points; audits measure none")

    def _check_points(self) -> None:
        if self.defenses != ((),) or self.clients != (registry.build("client", "FedSGD"),) or self.nulls:
            raise ConfigError(
                "points say clients and defenses themselves, and have no null runs: leave out clients, defenses and "
                "nulls"
            )
        if any(each.table is not None for each in self.targets):
            raise ConfigError("points are measured on pictures; audit rows of a table with each of `defenses` instead")
        if any(each.num_images != 1 for each in self.targets):
            raise ConfigError("a point says itself how many pictures share an update: num_images=2 + Mixup(1.0)")
        for attack in self.attacks:
            if not isinstance(attack, SearchAttack):
                raise ConfigError(f"a search is adapted to each defense of a point; {shown_attack(attack)} is none")

    def __len__(self) -> int:
        """How many audits or points there are, before equal ones are joined."""
        if self.points:
            return len(self.targets) * len(self.models) * len(self.points) * len(self.attacks) * len(self.seeds)
        per_target = len(self.models) * len(self.clients) * len(self.defenses) * len(self.attacks) * len(self.seeds)
        return per_target * sum(1 for each in self.targets for _ in each.sources())

    def specs(self) -> Iterator[tuple[PointSpec, str]]:
        """Every point of the plan with the network as the plan names it, nothing loaded.

        Raises:
            InputError: a folder without pictures.
        """
        for group in self.targets:
            for model in self.models:
                for seed in self.seeds:
                    for attack in self.attacks:
                        yield from (
                            (self._spec(group, model, seed, attack, point), shown(model)) for point in self.points
                        )

    def cells(self) -> Iterator[Cell]:
        """Every audit of the plan, nothing of it loaded; those that share pictures and weights follow each other.

        Raises:
            InputError: a folder without pictures.
            ConfigError: pieces that do not go together.
        """
        target = 0
        for group in self.targets:
            for pictures in group.sources():
                for model in self.models:
                    for seed in self.seeds:
                        first = self._scenario(pictures, model, seed)
                        yield from (Cell(each, target, shown(model)) for each in self._variants(first))
                target += 1

    def loaded(self, on_load: Callable[[int, int], object] | None = None) -> Iterator[Cell]:
        """The same cells with their tensors at hand, and so with their hashes; each load serves all that share it.

        Args:
            on_load: told after each cell (done, of how many).
        """
        total, last = len(self), LastLoad()
        for number, cell in enumerate(self.cells()):
            yield replace(cell, scenario=last.loaded(cell.scenario))
            if on_load is not None:
                on_load(number + 1, total)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON holds it, paths absolute; `plan_file.parse_plan` reads it back, since JSON is YAML.

        Raises:
            ConfigError: a piece that no text builds again.
        """
        return {
            "name": self.name,
            "note": self.note,
            "targets": [_plain(each) for each in self.targets],
            "networks": [{each.network: {**_plain(each, "network")}} for each in self.models],
            **(self._frontier() if self.points else self._audited()),
            "attacks": [_written(each) for each in self.attacks],
            "seeds": list(self.seeds),
            "threat": _plain(self.threat),
            "loss": _written(self.loss),
            **{name: getattr(self, name) for name in _LIMITS if getattr(self, name) is not None},
        }

    def _audited(self) -> dict[str, Any]:
        return {
            "clients": [_written(each) for each in self.clients],
            "defenses": [[_written(each) for each in choice] or "none" for choice in self.defenses],
        }

    def _frontier(self) -> dict[str, Any]:
        for point in self.points:
            written_so = f"a point of a plan is called as it is written, such as 'FedAvg(4) + Clip(1.0)': {point}"
            try:
                same = read_point(point.name) == point
            except ConfigError as error:
                raise ConfigError(f"{written_so}; {error}") from error
            if not same:
                raise ConfigError(f"{written_so} is called as another one")
        if self.utility is None:
            return {"points": [each.name for each in self.points]}
        data = [{"dataset": name, "data_path": str(folder)} for name, folder in self.utility.places()]
        return {
            "points": [each.name for each in self.points],
            "utility": {"data": data, "rounds": self.utility.rounds},
        }

    def trained(self, weights: Callable[[ModelSpec], Path]) -> "Plan":
        """The same plan, with files in place of what is to be trained.

        Args:
            weights: trains a network, or finds the file of one that was trained before.
        """
        models = tuple(
            replace(each, weights=str(weights(each)), train=None, label=shown(each)) if each.train is not None else each
            for each in self.models
        )
        return replace(self, models=models)

    def _spec(self, group: Targets, model: ModelSpec, seed: int, attack: Attack, point: Point) -> PointSpec:
        assert isinstance(attack, SearchAttack)
        pictures, count = group.sources_of_point(point.num_images)
        return PointSpec(
            point,
            _of_model(pictures, model),
            attack,
            self.loss,
            self.threat,
            model.mean,
            model.std,
            seed,
            count,
            self.time_budget,
            self.max_iterations,
            None
            if self.utility is None
            else tuple((name, path.expanduser().absolute()) for name, path in self.utility.data),
            100 if self.utility is None else self.utility.rounds,
        )

    def _scenario(self, pictures: Sources, model: ModelSpec, seed: int) -> Scenario:
        return Scenario(
            _of_model(pictures, model),
            client=self.clients[0],
            threat=self.threat,
            loss=self.loss,
            mean=model.mean,
            std=model.std,
            seed=seed,
            attack=self.attacks[0],
            time_budget=self.time_budget,
            max_iterations=self.max_iterations,
            nulls=self.nulls,
        )

    def _variants(self, first: Scenario) -> Iterator[Scenario]:
        assert first.sources is not None
        for client in self.clients:
            sources = replace(first.sources, client=written(client))
            for defenses in self.defenses:
                for attack in self.attacks:
                    yield replace(first, sources=sources, client=client, defenses=defenses, attack=attack)


_LIMITS = ("time_budget", "max_iterations", "nulls")


def _of_model(pictures: Sources, model: ModelSpec) -> Sources:
    """Pictures and network of an audit, with paths that any process finds."""
    names = ("network", "weights", "num_classes", "image_shape", "train_mode")
    return absolute(replace(pictures, **{name: getattr(model, name) for name in names}))


def _written(piece: object) -> str:
    text = written(piece)
    if UNNAMED in text:
        raise ConfigError(f"{text.split(UNNAMED)[0]} is code of this program, and no text builds it again in a worker")
    return text


def _plain(value: Any, *without: str) -> dict[str, Any]:
    """The fields of a frozen value, those that say nothing left out, paths absolute."""
    named = {each.name: getattr(value, each.name) for each in fields(value) if each.name not in without}
    return {name: _json(each) for name, each in named.items() if each not in (None, (), "")}


def _json(value: Any) -> Any:
    if is_dataclass(value):
        return _plain(value)
    if isinstance(value, tuple):
        return [_json(each) for each in value]
    return str(absolute_path(value)) if isinstance(value, Path) else value


def shown(model: ModelSpec) -> str:
    """A network as tables name it.

    >>> shown(ModelSpec("ConvNet", train=Training(epochs=10))), shown(ModelSpec("ConvNet"))
    ('ConvNet, 10 epochs of CIFAR10', 'ConvNet')
    """
    if model.label:
        return model.label
    parts = [model.network]
    if model.train is not None:
        parts.append(f"{model.train.epochs} epochs of {model.train.dataset}")
    elif model.weights is not None:
        parts.append(Path(model.weights).stem)
    return ", ".join([*parts, *(["train mode"] if model.train_mode else [])])


@dataclass
class LastLoad:
    """The tensors that the last scenario had: those that share pictures and weights follow each other."""

    key: Any = None
    held: Scenario | None = field(default=None, repr=False)

    def loaded(self, scenario: Scenario) -> Scenario:
        """The scenario with its tensors and their hashes, loaded or taken from the last one."""
        assert scenario.sources is not None
        sources = replace(scenario.sources, client="FedSGD")  # the same pictures and weights, whoever the client is
        key = sources, scenario.seed, scenario.mean, scenario.std, scenario.sha256
        if self.held is None or key != self.key:
            self.held, self.key = scenario.loaded(), key
        names = ("held", "sha256", "loss", "mean", "std", "versions")
        return replace(scenario, **{name: getattr(self.held, name) for name in names})
