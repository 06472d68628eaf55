"""How often each answer of a verdict is wrong, and how well the limit of an update predicts what an attack reaches.

python -m benchmarks.calibration --images FOLDER --json OUT --picture PICTURE

Three measurements, a setting and a seed at a time; a seed draws the weights, the private pictures, and everything else.

    false alarms  audits of updates that hold nothing of the pictures which the audit takes for the truth: `random`,
                  the real update's own numbers out of place, and `another`, the update of other pictures with the same
                  labels
    power         audits of real updates under Gaussian noise, over its deviation relative to the update's root mean
                  square
    agreement     of the same noisy updates, the limit of each picture and the PSNR that a longer attack reaches

What is a false alarm depends on the answer. `recovered` and `in the update, not recovered` are false in the first two
kinds of update. `not in the update` is false where the longer attack recovers a picture clearly, by 3 dB over plain
pictures. A share has its exact interval (Clopper and Pearson). The file is written anew after each setting and seed;
the same command again goes on where it stopped.
"""

import json
import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn

from benchmarks import record
from benchmarks.cases import chosen
from benchmarks.pictures import CLASSES, read_folder
from inversefed import FedAvg, FedSGD, ThreatModel, recipes
from inversefed.attacks import Search
from inversefed.controls.null_update import null_observation
from inversefed.errors import ConfigError, InputError
from inversefed.evaluation.align import align
from inversefed.evaluation.controls import guesses
from inversefed.evaluation.intervals import share_interval
from inversefed.evaluation.metrics import peak_signal_noise_ratio
from inversefed.evaluation.verdict import Answer, greatest, margins
from inversefed.fl.clients import Client
from inversefed.fl.defenses import GaussianNoise
from inversefed.fl.simulate import observed
from inversefed.fl.threat import Observation
from inversefed.pipeline import audit_observation
from inversefed.thresholds import CLEARLY_DB
from inversefed.types import Batch, Budget
from inversefed.zoo.networks.resnet import ResNetSpec, resnet
from inversefed.zoo.networks.seeding import seeded

__all__ = ["LEVELS", "SETTINGS", "Options", "Outcome", "Setting", "main", "measured", "outcomes", "summary"]

SIDE = 8
"""Of the pictures: an audit with 19 null runs takes about a second."""
LEVELS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Deviations of the noise over the root mean square of the update."""
LONGER = 100
"""Iterations of the attack whose result is held to the limit."""
PUBLIC = 32
"""Public pictures of each audit."""
HELD_OUT = 0.2
"""Share of the pictures, the last ones, that nothing is trained on; private ones are taken from them."""

Kind = Literal["random", "another", "noise"]


@dataclass(frozen=True)
class Setting:
    """A network, pictures, client and attack.

    Args:
        network: draws it.
        attack: with few iterations, the search of each audit.
        number: pictures.
        client: how the update is made.
        epochs: passes of Adam over the pictures that are not held out; 0 for a network that nobody trained.
        every: only seeds that it divides are measured, where an audit takes long.
    """

    network: Callable[[], nn.Module]
    attack: Search
    number: int = 1
    client: Client = FedSGD()
    epochs: int = 0
    every: int = 1


def lenet() -> nn.Module:
    """The LeNet of Zhu et al. (2019), for 8x8."""
    layers = (nn.Conv2d(3, 12, 5, 2, 2), nn.Conv2d(12, 12, 5, 2, 2), nn.Conv2d(12, 12, 5, 1, 2))
    net = nn.Sequential(
        *(part for each in layers for part in (each, nn.Sigmoid())), nn.Flatten(), nn.Linear(48, CLASSES)
    )
    for weight in net.parameters():
        nn.init.uniform_(weight, -0.5, 0.5)
    return net


def two_pools() -> nn.Module:
    """The network of PyTorch's tutorial on CIFAR-10, padded, for 8x8."""
    first = (nn.Conv2d(3, 6, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2))
    second = (nn.Conv2d(6, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    return nn.Sequential(*first, *second, *perceptron(64, 120, 84))


def perceptron(*widths: int) -> nn.Sequential:
    """Linear layers of these widths with ReLU, and the classes."""
    layers = (part for inputs, outputs in pairwise(widths) for part in (nn.Linear(inputs, outputs), nn.ReLU()))
    return nn.Sequential(*layers, nn.Linear(widths[-1], CLASSES))


def group_norm() -> nn.Module:
    """All convolutions, with strides and GroupNorm."""
    first = (nn.Conv2d(3, 16, 3, 1, 1), nn.GroupNorm(4, 16), nn.ReLU())
    second = (nn.Conv2d(16, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.ReLU())
    return nn.Sequential(*first, *second, nn.Flatten(), nn.Linear(512, CLASSES))


def resnet8() -> nn.Module:
    """Three stages of one block, 16 wide, with BatchNorm and an average over places."""
    return resnet(ResNetSpec((1, 1, 1), 16), CLASSES)


_STEPS = 6
SETTINGS: Mapping[str, Setting] = {
    "perceptron b=1": Setting(lambda: nn.Sequential(nn.Flatten(), perceptron(192, 32)), recipes.spectral(_STEPS)),
    "LeNet b=1": Setting(lenet, recipes.smoothed(_STEPS)),
    "LeNet b=4": Setting(lenet, recipes.smoothed(_STEPS), 4),
    "LeNet b=8": Setting(lenet, recipes.smoothed(_STEPS), 8, every=5),
    "LeNet b=16": Setting(lenet, recipes.smoothed(_STEPS), 16, every=20),
    "two pools b=1": Setting(two_pools, recipes.spectral(_STEPS)),
    "two pools b=4": Setting(two_pools, recipes.spectral(_STEPS), 4),
    "two pools b=4 2 steps": Setting(
        two_pools, recipes.spectral(_STEPS), 4, FedAvg(local_steps=2, lr=0.01, batch_size=2)
    ),
    "two pools b=4 4 steps": Setting(
        two_pools, recipes.spectral(_STEPS), 4, FedAvg(local_steps=4, lr=0.01, batch_size=1)
    ),
    "GroupNorm b=1": Setting(group_norm, recipes.in_range(_STEPS)),
    "ResNet-8 b=1": Setting(resnet8, recipes.smoothed(_STEPS)),
    "ResNet-8 b=4": Setting(resnet8, recipes.smoothed(_STEPS), 4),
    "ResNet-8 trained b=1": Setting(resnet8, recipes.smoothed(_STEPS), epochs=15),
}
"""By name; b is how many pictures."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Measure how often each answer is wrong, and how well the limit predicts."""

    images: Path
    """A folder of square pictures, NAME_LABEL.png, a few hundred or more."""
    seeds: int = 200
    """Null updates of each kind and setting."""
    power_seeds: int = 10
    """Updates of each setting that noise is added to, at each level."""
    settings: str = ""
    """Settings, with commas; all by default."""
    jobs: int = 1
    """Processes side by side, of one thread each."""
    json: Path | None = None
    """File for the figures, which is also where the next run goes on from."""
    picture: Path | None = None
    """File for the plot."""


@dataclass(frozen=True)
class Outcome:
    """One audit.

    Args:
        setting: of `SETTINGS`.
        seed: which.
        kind: of update.
        noise: its deviation over the root mean square of the update; 0 for none.
        answer: of the verdict.
        p_value: of its null runs.
        room: dB of the limit over the best control, and the prior, of the best picture.
        limit: of each picture, dB; `None` where it was not looked at.
        reached: PSNR of the longer attack, dB; nothing in null updates.
        over: dB of its best picture over plain pictures.
        misfit: of what the truth leaves unexplained; `None` where that is nothing.
        seconds: of the audit.
    """

    setting: str
    seed: int
    kind: Kind
    noise: float
    answer: str
    p_value: float | None
    room: float | None
    limit: tuple[float | None, ...]
    reached: tuple[float, ...] = ()
    over: float | None = None
    misfit: float | None = None
    seconds: float = 0.0


@cache
def pictures_of(folder: Path) -> Batch:
    """All pictures, 8x8, with their labels."""
    read = read_folder(folder)
    images = torch.stack([each.image for each in read])
    small = nn.functional.avg_pool2d(images, images.shape[-1] // SIDE)
    return Batch(small, torch.tensor([each.label for each in read]))


@cache
def trained(folder: Path, name: str) -> nn.Module:
    """The network of a setting after its epochs of Adam, from seed 0."""
    setting, examples, random = SETTINGS[name], pictures_of(folder), Generator().manual_seed(0)
    with seeded(0):
        net = setting.network().train()
    count = round((1 - HELD_OUT) * len(examples.images))
    inputs, optimizer = (examples.images[:count] - 0.5) / 0.25, torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(setting.epochs):
        for part in torch.randperm(count, generator=random).split(64):  # type: ignore[no-untyped-call]
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[part]), examples.labels[part]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    return net.eval()


@dataclass(frozen=True, eq=False)
class World:
    """What a setting and a seed draw: the private batch, one that is not, and public pictures."""

    name: str
    seed: int
    module: nn.Module
    truth: Batch
    another: Tensor
    public: Batch

    @staticmethod
    def of(folder: Path, name: str, seed: int) -> "World":
        setting, examples = SETTINGS[name], pictures_of(folder)
        first, number = round((1 - HELD_OUT) * len(examples.images)), setting.number
        places = first + torch.randperm(len(examples.images) - first, generator=Generator().manual_seed(seed))
        if len(places) < 3 * number:
            raise InputError(f"{folder} holds too few pictures: {name} needs {15 * number} or more")
        private, other, rest = places[:number], places[number : 2 * number], places[2 * number :][:PUBLIC]
        with seeded(seed):
            module = trained(folder, name) if setting.epochs else setting.network().eval()
        truth, public = (Batch(examples.images[each], examples.labels[each]) for each in (private, rest))
        return World(name, seed, module, truth, examples.images[other], public)

    def seen(self, images: Tensor, noise: float = 0.0) -> Observation:
        """The update of these pictures with the private ones' labels, with so much noise."""
        client, labels = SETTINGS[self.name].client, self.truth.labels
        known: dict[str, Any] = {"mean": 0.5, "std": 0.25, "client": client, "threat": ThreatModel(labels="known")}
        found, _ = observed(self.module, images, labels, **known, seed=self.seed)
        if not noise:
            return found
        base = found.network.params if client.sends == "weights" else {}
        parts = [(part - base[key] if key in base else part).flatten() for key, part in found.update.items()]
        size = float(torch.cat(parts).detach().square().mean().sqrt())
        found, _ = observed(
            self.module, images, labels, **known, seed=self.seed, defenses=(GaussianNoise(noise * size),)
        )
        return found


def measured(world: World, kind: Kind, noise: float = 0.0) -> Outcome:
    """Audit one update.

    Raises:
        InversefedError: the audit refuses it.
    """
    setting, began = SETTINGS[world.name], time.perf_counter()
    seen = world.seen(world.another if kind == "another" else world.truth.images, noise)
    if kind == "random":
        seen = null_observation(seen, Generator().manual_seed(10_000 + world.seed))
    report = audit_observation(
        seen, truth=world.truth, attack=setting.attack, threat=ThreatModel(labels="known"), seed=world.seed,
        others=world.public, nulls=19,
    )  # fmt: skip
    assert report.verdict is not None
    figures, limit = report.verdict.figures, report.limit
    room = None if figures.limit_over_controls is None else greatest(figures.limit_over_controls)
    found = Outcome(
        world.name, world.seed, kind, noise, str(report.verdict.answer), figures.p_value, room,
        () if limit is None else limit.limit_psnr,
        misfit=None if limit is None else limit.misfit, seconds=time.perf_counter() - began,
    )  # fmt: skip
    return found if kind != "noise" else _reached(world, seen, found)


def _reached(world: World, seen: Observation, found: Outcome) -> Outcome:
    """The same with what the longer attack reaches."""
    attack = replace(SETTINGS[world.name].attack, max_iterations=LONGER)  # type: ignore[type-var]
    result = attack(seen, Generator().manual_seed(world.seed), Budget())
    images = result.images[align(result.images, world.truth.images)]
    reached = peak_signal_noise_ratio(images, world.truth.images)
    plain = {key: peak_signal_noise_ratio(each, world.truth.images) for key, each in guesses(world.truth).items()}
    return replace(found, reached=tuple(reached.tolist()), over=greatest(margins(reached, plain)))


def outcomes(folder: Path, name: str, seed: int, null: bool, power: bool) -> list[Outcome]:
    """All audits of a setting and a seed."""
    torch.set_num_threads(1)
    world = World.of(folder, name, seed)
    found = [measured(world, "random"), measured(world, "another")] if null else []
    return found + ([measured(world, "noise", level) for level in LEVELS] if power else [])


def share(hits: Sequence[bool]) -> dict[str, Any]:
    """How many, of how many, and the exact interval of the share."""
    low, high = share_interval(sum(hits), len(hits)) if hits else (None, None)
    return {"hits": sum(hits), "of": len(hits), "low": low, "high": high}


def summary(found: Sequence[Outcome]) -> dict[str, Any]:
    """Shares with their intervals: false alarms of each answer by kind, and power by level."""
    null = {kind: [each for each in found if each.kind == kind] for kind in ("random", "another")}
    noisy = [each for each in found if each.kind == "noise"]
    clear = [each for each in noisy if each.over is not None and each.over >= CLEARLY_DB]
    pairs = [
        bound - reached
        for each in noisy
        for bound, reached in zip(each.limit, each.reached, strict=bool(each.limit))
        if bound is not None
    ]
    return {
        "false_alarms": {
            str(answer): {kind: share([each.answer == answer for each in rows]) for kind, rows in null.items()}
            for answer in (Answer.RECOVERED, Answer.IN_THE_UPDATE)
        }
        | {str(Answer.NOT_IN_THE_UPDATE): {"clearly recovered": share([_denied(each) for each in clear])}},
        "power": {
            f"{level:g}": share([each.answer == Answer.RECOVERED for each in noisy if each.noise == level])
            for level in LEVELS
        },
        "answers": {
            f"{level:g}": {str(a): sum(e.answer == a for e in noisy if e.noise == level) for a in Answer}
            for level in LEVELS
        },
        "pictures_above_limit_by_1_dB": share([each < -1 for each in pairs]),
    }


def _denied(each: Outcome) -> bool:
    return each.answer == Answer.NOT_IN_THE_UPDATE


def run(options: Options, command: str = "") -> int:
    """Measure what is not there yet, and write after each setting and seed; 0 if all was measured.

    Raises:
        ConfigError: an unknown setting, or numbers that mean nothing.
        InversefedError: files that cannot be used.
    """
    if options.jobs < 1 or options.seeds < 0 or options.power_seeds < 0:
        raise ConfigError("--jobs is at least 1, --seeds and --power-seeds are at least 0")
    names = list(chosen(options.settings, SETTINGS)) if options.settings else list(SETTINGS)
    found = earlier(options.json)
    document: dict[str, Any] = {"command": command, "machine": record.machine()}
    for each in _carried_out(options, names, found):
        found += each
        if options.json is not None:
            record.write(options.json, document | _written(found))
        print(f"{each[0].setting}, seed {each[0].seed}: {', '.join(one.answer for one in each)}", flush=True)
    print(table(found))
    if options.picture is not None:
        from benchmarks.calibration_plot import save

        save(found, options.picture)
    return 0


def _written(found: Sequence[Outcome]) -> dict[str, Any]:
    by_name = {name: [each for each in found if each.setting == name] for name in SETTINGS}
    return {
        "all": summary(found),
        "settings": {name: summary(rows) for name, rows in by_name.items() if rows},
        "outcomes": [asdict(each) for each in found],
    }


def earlier(path: Path | None) -> list[Outcome]:
    """The outcomes of a file, if it is there.

    Raises:
        InputError: it is no file of this benchmark.
    """
    if path is None or not path.exists():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["outcomes"]
        return [Outcome(**row | {"limit": tuple(row["limit"]), "reached": tuple(row["reached"])}) for row in rows]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"--json: {path} is no file of this benchmark ({error}); name another file") from error


def _todo(options: Options, names: Sequence[str], found: Sequence[Outcome]) -> Iterator[tuple[str, int, bool, bool]]:
    """Setting, seed, and whether null updates and noisy ones are missing; seed after seed."""
    done = {(each.setting, each.seed, each.kind == "noise") for each in found}
    for seed in range(max(options.seeds, options.power_seeds)):
        for name in names:
            null = seed < options.seeds and (name, seed, False) not in done
            power = seed < options.power_seeds and (name, seed, True) not in done
            if seed % SETTINGS[name].every == 0 and (null or power):
                yield name, seed, null, power


def _carried_out(options: Options, names: Sequence[str], found: Sequence[Outcome]) -> Iterator[list[Outcome]]:
    todo = list(_todo(options, names, found))
    if options.jobs == 1:
        for each in todo:
            yield outcomes(options.images, *each)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, context) as pool:
        waiting = [pool.submit(outcomes, options.images, *each) for each in todo]
        try:
            for done in as_completed(waiting):
                yield done.result()
        finally:
            pool.shutdown(cancel_futures=True)


def table(found: Sequence[Outcome]) -> str:
    """False alarms and power, a setting a row, and all of them."""
    head = ["setting", "recovered: random", "another", "in the update: random", "another", "not in the update", "power"]
    lines = [" | ".join(head), "|".join(["---"] * len(head))]
    for name in (*SETTINGS, "all"):
        rows = [each for each in found if name in (each.setting, "all")]
        if rows:
            lines.append(" | ".join([name, *_cells(summary(rows))]))
    return "\n".join(f"| {line} |" for line in lines)


def _cells(told: Mapping[str, Any]) -> list[str]:
    alarms = told["false_alarms"]
    cells = [shown(alarms[str(a)][k]) for a in (Answer.RECOVERED, Answer.IN_THE_UPDATE) for k in ("random", "another")]
    power = "; ".join(f"{level}: {each['hits']}" for level, each in told["power"].items() if each["of"])
    count = max((each["of"] for each in told["power"].values()), default=0)
    denied = shown(alarms[str(Answer.NOT_IN_THE_UPDATE)]["clearly recovered"])
    return [*cells, denied, f"{power} of {count}" if count else ""]


def shown(told: Mapping[str, Any]) -> str:
    """A share in words.

    >>> shown(share([True, False, False, False]))
    '1 of 4 (1 to 81 %)'
    """
    if not told["of"]:
        return ""
    return f"{told['hits']} of {told['of']} ({100 * told['low']:.0f} to {100 * told['high']:.0f} %)"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 if all was measured, 2 for wrong usage or input, 130 if interrupted."""
    return record.command("calibration", Options, run, arguments, kept="the file has what was finished")


if __name__ == "__main__":
    sys.exit(main())
