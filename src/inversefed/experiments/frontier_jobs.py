"""A point of the privacy-utility frontier as a job: a client with its defenses, attacked twice and trained with.

    text --read_point--> point --plan--> record --hash--> job of kind "point" --measure--> `Row`, in the ledger's result

Its hash is that of the record, the weights' file with it: two commands that ask for the same point have one job.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from inversefed.attacks import SearchAttack
from inversefed.attacks.shown import shown
from inversefed.errors import ConfigError, InputError
from inversefed.experiments.ledger import Job, NewJob, Outcome
from inversefed.experiments.schema import POINT
from inversefed.experiments.table import PSNR
from inversefed.fl.network import Loss, freeze
from inversefed.fl.threat_model import ThreatModel
from inversefed.frontier import Data, Point, measure
from inversefed.report.frontier import Row, read_rows, to_dict
from inversefed.report.to_json import plain
from inversefed.scenario import Scenario
from inversefed.specs import registry
from inversefed.specs.load_setting import Setting, load
from inversefed.specs.short import short
from inversefed.specs.sources import Sources, as_json, names_code, read_fields
from inversefed.specs.written import written
from inversefed.types import Budget, Step
from inversefed.zoo import datasets

__all__ = [
    "Loaded",
    "PointSpec",
    "data_of",
    "measured",
    "needs_of",
    "point_of",
    "read_point",
    "row_in",
    "setting_of",
]

_TESTED = 1000
"""Pictures on which a short training's accuracy is measured."""


@dataclass(frozen=True)
class PointSpec:
    """All that a point of the frontier depends on.

    Args:
        point: the client, its defenses and its number of examples.
        sources: network and pictures, as many as all its targets need.
        attack: what the server runs, as it is and adapted.
        loss: what the client minimizes.
        threat: what else the server knows.
        mean: what the input normalization subtracts; `None` for the data set's.
        std: what it divides by.
        seed: fixes all randomness.
        targets: how many updates are attacked.
        time_budget: seconds for each attack.
        max_iterations: replaces the attack's own number.
        utility: data sets with their folders that are tried, in order, for the short training; `None` for none.
        rounds: of that training.
    """

    point: Point
    sources: Sources
    attack: SearchAttack
    loss: Loss
    threat: ThreatModel = ThreatModel()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = 0
    targets: int = 1
    time_budget: float | None = None
    max_iterations: int | None = None
    utility: tuple[tuple[str, Path], ...] | None = None
    rounds: int = 100

    def setting(self) -> dict[str, Any]:
        """All of it but the point, as JSON holds it."""
        return {
            "sources": as_json(self.sources),
            "attack": written(self.attack),
            "loss": written(self.loss),
            "threat_model": asdict(self.threat),
            **{name: plain(vars(self)[name]) for name in _NUMBERS},
            "utility": None if self.utility is None else [[name, str(path)] for name, path in self.utility],
        }

    def to_dict(self) -> dict[str, Any]:
        """The record: names and numbers, no pixel and no weight."""
        point = self.point
        named = {"name": point.name, "num_images": point.num_images, "client": written(point.client)}
        return {**self.setting(), "point": {**named, "defenses": [written(each) for each in point.defenses]}}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], trust_code: bool = False) -> "PointSpec":
        """Read a record.

        Raises:
            ConfigError: an unknown name, or code that is not trusted.
        """
        sources, point = Sources(**read_fields(Sources, content["sources"])), content["point"]
        if names_code(sources.network) and not trust_code:
            raise ConfigError(
                f"the point names code to run as its network, {sources.network!r}; `inversefed defend` runs it, in "
                "processes of this machine"
            )
        defenses = tuple(registry.build("defense", each, trust_code) for each in point["defenses"])
        client = registry.build("client", point["client"], trust_code)
        places = content["utility"]
        numbers = {name: content[name] for name in _NUMBERS}
        numbers |= {name: None if numbers[name] is None else tuple(numbers[name]) for name in ("mean", "std")}
        return cls(
            Point(point["name"], client, defenses, point["num_images"]),
            sources,
            registry.build("attack", content["attack"], trust_code),
            registry.build("loss", content["loss"], trust_code),
            ThreatModel(**content["threat_model"]),
            utility=None if places is None else tuple((name, Path(path)) for name, path in places),
            **numbers,
        )

    def scenario(self) -> Scenario:
        """The audit of its first update by the attack that is not adapted: what that takes, this takes several times.

        Its pictures are not loaded.
        """
        sources, point = self.sources, self.point
        if sources.images:
            labels = None if sources.labels is None else sources.labels[: point.num_images]
            sources = replace(sources, images=sources.images[: point.num_images], labels=labels)
        return Scenario(
            replace(sources, num_images=point.num_images),
            client=point.client,
            defenses=point.defenses,
            threat=self.threat,
            loss=self.loss,
            mean=self.mean,
            std=self.std,
            seed=self.seed,
            attack=self.attack,
            time_budget=self.time_budget,
            max_iterations=self.max_iterations,
            nulls=0,
        )

    def job(self, model: str = "", memory: int = 0) -> NewJob:
        """The point as the ledger writes it.

        Args:
            model: what tables call the network; by default its name.
            memory: bytes that it is predicted to take; 0 where nothing tells.
        """
        record, sources = self.to_dict(), self.sources
        files = [sources.weights, *map(str, sources.images)]
        known = [hashlib.sha256(Path(each).read_bytes()).hexdigest() for each in files if each and Path(each).is_file()]
        text = json.dumps(record, sort_keys=True)
        pictures = sources.images[0].name if sources.images else f"{sources.dataset} {sources.index}"
        return NewJob(
            hash=hashlib.sha256(json.dumps([text, known]).encode()).hexdigest(),
            scenario=text,
            network=model or sources.network,
            client=short(self.point.client),
            defenses=" + ".join(map(short, self.point.defenses)) or "none",
            attack=shown(self.attack),
            images=pictures,
            num_images=self.point.num_images,
            seed=self.seed,
            bytes=memory,
            kind=POINT,
        )


_NUMBERS = ("mean", "std", "seed", "targets", "time_budget", "max_iterations", "rounds")


def read_point(text: str) -> Point:
    """Read a point: pieces with plus signs between, each a client, a defense or `num_images=N`; or `none`.

    Raises:
        ConfigError: a piece of an unknown name, two clients, or a number that is none.

    >>> read_point("num_images=2 + Clip(1.0)")
    Point(name='num_images=2 + Clip(1.0)', client=FedSGD(), defenses=(Clip(max_norm=1.0),), num_images=2)
    """
    point, named = Point(text, num_images=1), False
    for part in (each.strip() for each in text.split(" + ")):
        if part.startswith("num_images="):
            count = part.removeprefix("num_images=")
            if not count.isdecimal():
                raise ConfigError(f"the point {text!r} needs a whole number for num_images, not {count!r}")
            point = replace(point, num_images=int(count))
        elif part.partition("(")[0].lower() in {name.lower() for name in registry.choices("client")}:
            if named:
                raise ConfigError(
                    f"the point {text!r} names two clients; one wraps the other, as in Shares(FedAvg(..))"
                )
            point, named = replace(point, client=registry.build("client", part)), True
        elif part != "none":
            point = replace(point, defenses=(*point.defenses, registry.build("defense", part)))
    return point


def needs_of(record: Mapping[str, Any]) -> tuple[str, str]:
    """What network and pictures of a point are known by, and what its training data are: equal ones are loaded once.

    Args:
        record: as `PointSpec.to_dict` has it.
    """
    sources = record["sources"]
    same = sources | {"index": 0, "num_images": 1, "images": sources["images"][:1], "labels": None}
    pictures = [sources, *(record[name] for name in ("seed", "mean", "std"))]
    return json.dumps(["setting", *pictures]), json.dumps(["data", same, record["utility"]])


def setting_of(spec: PointSpec) -> Setting:
    """Network and pictures of a point.

    Raises:
        InversefedError: they cannot be loaded.
    """
    return load(spec.sources, spec.seed, spec.mean, spec.std)


def data_of(spec: PointSpec, setting: Setting) -> Data | str:
    """What is trained on with a point's defenses, or why there is nothing."""
    return "none was asked for" if spec.utility is None else _data(spec.utility, setting)


@dataclass
class Loaded:
    """Pictures, network and training data that points share."""

    setting: Setting | None = field(default=None, repr=False)
    data: Data | str | None = field(default=None, repr=False)
    needs: tuple[str, str] = ("", "")

    def of(self, spec: PointSpec) -> tuple[Setting, Data | str]:
        """What a point needs, loaded or taken from the last one.

        Raises:
            InversefedError: it cannot be loaded.
        """
        needs = needs_of(spec.to_dict())
        setting = self.setting if self.needs[0] == needs[0] else None
        setting = setting_of(spec) if setting is None else setting
        data = self.data if self.needs[1] == needs[1] else None
        data = data_of(spec, setting) if data is None else data
        self.setting, self.data, self.needs = setting, data, needs
        return setting, data


def measured(
    spec: PointSpec,
    setting: Setting,
    data: Data | str,
    on_step: Callable[[Step], object] | None = None,
) -> Outcome:
    """Attack a point's updates with both attacks, train with it, and say what came of it.

    Args:
        spec: the point.
        setting: its network and pictures.
        data: what to train on, or why there is nothing.
        on_step: told of every iteration of both attacks; a true answer ends them.

    Raises:
        InversefedError: a point that cannot be measured.
    """
    row = measure(
        setting.module,
        setting.images,
        setting.labels,
        spec.point,
        attack=spec.attack,
        mean=setting.mean,
        std=setting.std,
        threat=spec.threat,
        loss=spec.loss,
        seed=spec.seed,
        targets=spec.targets,
        budget=Budget(spec.time_budget, spec.max_iterations, on_step),
        data=data,
        rounds=spec.rounds,
    )
    best = max((each for each in (row.plain, row.adaptive) if each is not None), default=None)
    same = {PSNR: best, "control_psnr": row.control, "margin": row.leakage, "verdict": "not judged"}
    return Outcome("not judged", best, row.leakage, row.seconds, {**to_dict(row), **same})


def row_in(content: Mapping[str, Any]) -> Row:
    """The point in a result."""
    return read_rows([dict(content)], "the ledger")[0]


def point_of(job: Job) -> str:
    """What the point of a job is called."""
    return str(json.loads(job.scenario)["point"]["name"])


def _data(places: Sequence[tuple[str, Path]], setting: Setting) -> Data | str:
    """What to train on, or why there is nothing."""
    channels, height, width = setting.images.shape[1:]
    shape, reasons = (channels, height, width), []
    for name, path in places:
        try:
            train, test = (datasets.load(name, path, split, size=shape) for split in ("train", "test"))
        except InputError as error:
            reasons.append(str(error))
            continue
        classes = freeze(setting.module, shape).num_classes
        if train.num_classes > classes:
            reasons.append(f"{train.name} has {train.num_classes} classes and the network {classes}; see --num-classes")
            continue
        return Data(train.name, train.batch, len(train), test.batch(range(min(_TESTED, len(test)))))
    return "no data to train on: " + "; ".join(reasons)
