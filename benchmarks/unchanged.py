"""Whether a change that is to change nothing does so: a fixed list of small audits, before it and after it.

python -m benchmarks.unchanged --json runs/bench/unchanged-A.json
python -m benchmarks.unchanged --compare runs/bench/unchanged-A.json runs/bench/unchanged-B.json

Each point is an audit, a count of equations, a call in the dialect of 2020, or a session of the command line, with
seeds and numbers of steps fixed and without a limit of time, in one thread. It is made through public names only, so
that the same file runs on both trees. It records the SHA-256 of the reconstruction's bytes, labels, codes of findings
and what the verdict says; every figure of the report; and its texts, which may change on purpose and make no difference
here. Bits are comparable on one machine with the same versions only.
"""

import contextlib
import hashlib
import io
import json
import re
import runpy
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from unittest import mock

import torch
from PIL import Image
from torch import Tensor, nn

import inversefed
from benchmarks import record
from benchmarks.coverage import Setting, World, commit_of, world
from benchmarks.small_networks import SMALL_NETWORKS
from inversefed import (
    DPSGD,
    Batch,
    FedAvg,
    FedSGD,
    LocalAdam,
    LocalSGD,
    Observation,
    Report,
    SumOfClients,
    ThreatModel,
    defenses,
    labels,
    objectives,
    priors,
    recipes,
)
from inversefed.errors import ConfigError, InputError
from inversefed.inputs import Category, Columns, Number, Tokens
from inversefed.zoo import networks, pictures
from inversefed.zoo.networks import language

__all__ = ["Audit", "Command", "Difference", "Facts", "Options", "compare", "main", "measured", "points"]

Mode = Literal["eval", "train"]
MEAN, STD = 0.5, 0.25
KNOWN = ThreatModel(labels="known")
TOLD = ThreatModel(labels="known", defenses="known")
BLIND = ThreatModel(labels="known", client="unknown")
SENT = ThreatModel(labels="known", buffers="sent")
UNTOLD = ("seconds", "seconds_of_controls", "format", "schema", "version", "config", "environment")
"""Of a report: the time that it took, where it was made, and how it is written."""
OF_THE_MOMENT = "memory"
"""The finding that depends on how much memory is free."""


@dataclass(frozen=True)
class Facts:
    """What a point came to.

    Args:
        facts: what has to be the same, by name: bits as SHA-256, labels, codes, outcomes; the class of an error.
        figures: numbers, by their place in the report; `None` where they are not finite, or there is none.
        texts: what is said, by its place in the report.
        seconds: that it took.
    """

    facts: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, float | int | None] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 0.0


@dataclass(frozen=True)
class Audit:
    """An audit, or what is known of one before it: small, and the same each time.

    Args:
        network: `small NAME` or `zoo NAME`, as in `benchmarks.coverage`.
        attack: `None` for the default.
        count: how many pictures.
        mode: of the network.
        client: how the update is made.
        defenses: what is done to it.
        threat: what the attack is given.
        nulls: how many null runs.
        others: whether there are other public pictures, for more controls.
        max_iterations: replaces the attack's own number.
    """

    network: str
    attack: Any = None
    count: int = 1
    mode: Mode = "eval"
    client: Any = FedSGD()
    defenses: tuple[Any, ...] = ()
    threat: ThreatModel = KNOWN
    nulls: int = 0
    others: bool = False
    max_iterations: int | None = None

    @property
    def world(self) -> World:
        """The network, the pictures, their labels and the loss."""
        return world(Setting(self.network, self.mode, self.count, "FedSGD", 0.0))

    def __call__(self) -> Facts:
        """Audit."""
        made = self.world
        channels, height, width = made.images.shape[1:]
        public = torch.stack([pictures.photo(name, (channels, height, width)) for name in pictures.photo_names()[-2:]])
        report = inversefed.audit(
            made.module,
            made.images,
            made.labels,
            mean=MEAN,
            std=STD,
            client=self.client,
            defenses=self.defenses,
            threat=self.threat,
            attack=self.attack,
            loss=made.loss,
            nulls=self.nulls,
            others=Batch(public.to(made.images.dtype), torch.arange(2)) if self.others else None,
            max_iterations=self.max_iterations,
        )
        return of_report(report)


@dataclass(frozen=True)
class AuditOfTable:
    """An audit of rows of a table, drawn from its columns."""

    attack: Any
    count: int = 8

    def __call__(self) -> Facts:
        """Audit."""
        values = (5, 4, 6, 3, 4, 5)
        categories = [Category(f"c{place}", tuple(map(str, range(each)))) for place, each in enumerate(values)]
        table = Columns((*categories, Number("age", 17, 90, whole=True, mean=40, std=15), Number("score", -3, 3)))
        rows, labels = table.stand_ins(self.count, torch.Generator().manual_seed(0)), torch.arange(self.count) % 2
        torch.manual_seed(0)
        module = nn.Sequential(nn.Linear(table.shape[0], 60), nn.GELU(), nn.Linear(60, 2))
        return of_report(inversefed.audit(module, rows, labels, inputs=table, attack=self.attack, nulls=0))


@dataclass(frozen=True)
class OfSentences:
    """An audit of made-up sentences of a small transformer.

    Args:
        network: its class in `zoo.networks.language`.
        attack: that is run.
        count: how many sentences.
    """

    network: str
    attack: Any
    count: int = 1

    def __call__(self) -> Facts:
        """Audit."""
        space = Tokens(12, 500)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = getattr(language, self.network)(500, 12, num_classes=3).eval()
        ids = space.stand_ins(self.count, torch.Generator().manual_seed(0))
        labels = torch.arange(self.count) % 3
        return of_report(inversefed.audit(module, ids, labels, inputs=space, attack=self.attack, nulls=0))


@dataclass(frozen=True)
class WithoutTruth:
    """The same where nobody has the pictures; the update is made and observed by hand."""

    audit: Audit

    def __call__(self) -> Facts:
        """Attack, and judge without a truth."""
        own = self.audit
        report = inversefed.audit_observation(
            observed(own), attack=own.attack, threat=own.threat, nulls=own.nulls, max_iterations=own.max_iterations
        )
        return of_report(report)


@dataclass(frozen=True)
class Equations:
    """What the update can give away at most, counted layer by layer, and which exact methods apply."""

    audit: Audit

    def __call__(self) -> Facts:
        """Count."""
        found = inversefed.identify(observed(self.audit)).to_dict()
        figures, texts = flat(found)
        return Facts({"verdict": found["verdict"], "codes": [each["code"] for each in found["limits"]]}, figures, texts)


@dataclass(frozen=True)
class Dialect:
    """A reconstruction in the dialect of 2020, of one gradient or of local steps.

    Args:
        config: beside that of a short search.
        local_steps: 0 for a gradient.
        known: whether the labels are given.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    local_steps: int = 0
    known: bool = True

    def __call__(self) -> Facts:
        """Build, make an update by hand, and reconstruct."""
        model, _ = inversefed.construct_model("LeNetZhu", num_classes=10, num_channels=3, seed=0)
        model.eval()
        constants = [torch.as_tensor(each)[:, None, None] for each in (inversefed.consts.cifar10_mean, [0.25] * 3)]
        picture, label = pictures.photo(pictures.photo_names()[1], (3, 32, 32))[None], torch.tensor([4])
        truth, given = (picture - constants[0]) / constants[1], label if self.known else None
        gradient = torch.autograd.grad(torch.nn.functional.cross_entropy(model(truth), label), list(model.parameters()))
        config = {"max_iterations": 4, "restarts": 1, "cost_fn": "sim", "total_variation": 1e-2} | dict(self.config)
        with contextlib.redirect_stdout(None):
            if self.local_steps:
                machine = inversefed.FedAvgReconstructor(
                    model, constants, self.local_steps, 1e-2, config, use_updates=True
                )
                output, stats = machine.reconstruct([-1e-2 * part for part in gradient], given, img_shape=(3, 32, 32))
            else:
                machine = inversefed.GradientReconstructor(model, constants, config, num_images=1)
                output, stats = machine.reconstruct(gradient, given, img_shape=(3, 32, 32))
        weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        facts = {"pictures": digest(output), "labels": stats["labels"].tolist(), "weights": digest(weights)}
        return Facts(facts, {"opt": float(stats["opt"]), "psnr": float(inversefed.metrics.psnr(output, truth))})


@dataclass(frozen=True)
class Command:
    """Lines of `inversefed`, run one after the other in a folder that is thrown away.

    The folder holds the weights `w.pt` of a LeNetZhu, gradients of one photograph, right (`right.pt`), of the other
    sign, 100 times too large, and with a tensor left out, and the weights `after.pt` after one local step.
    """

    lines: tuple[str, ...]

    def __call__(self) -> Facts:
        """Run them; every report that they write or print counts, with its pictures."""
        found = Facts()
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            save_updates()
            for number, line in enumerate(self.lines, start=1):
                status, printed = command(shlex.split(line))
                found = joined(found, f"{number}", Facts({"exit": status, "command": line}))
                found = joined(found, f"{number}", of_text(printed))
            for path in sorted(Path().rglob("*")):
                if path.name in ("report.json", "defend.json"):
                    found = joined(found, path.parent.name, of_text(path.read_text(encoding="utf-8")))
                elif path.suffix == ".png":
                    with Image.open(path) as image:
                        pixels = hashlib.sha256(image.tobytes()).hexdigest()
                    found = joined(found, path.parent.name, Facts({path.name: pixels}))
        return found


Point = Callable[[], Facts]


@dataclass(frozen=True, kw_only=True)
class Options:
    """Run small audits and keep what they came to, or compare two such files."""

    json: Path | None = None
    """File for what the points came to."""
    only: str = ""
    """A regular expression that a point's name has to match."""
    compare: tuple[Path, Path] | None = None
    """Two such files, before and after: print what differs."""


def points() -> dict[str, Point]:
    """All of them, by name."""
    return {
        **_recipes(),
        **_clients(),
        **_defenses(),
        **_costs(),
        **_labels(),
        **_networks(),
        **_verdicts(),
        **_commands(),
        **_dialect(),
    }


def _recipes() -> dict[str, Point]:
    """Every published attack, on a network that it applies to."""
    shuffled = FedAvg(epochs=2, batch_size=2, lr=1e-2, shuffle=True)
    of_recipes: dict[str, Point] = {
        "april": Audit("zoo BareViT", recipes.april()),
        "best": Audit("zoo LeNetZhu", recipes.best(), threat=ThreatModel(), max_iterations=4),
        "categories": AuditOfTable(recipes.categories()),
        "cocktail_party": Audit("small mlp", recipes.cocktail_party(20), count=4),
        "curvature": Audit("small sigmoid", recipes.curvature(3)),
        "deep_prior": Audit("small relu", recipes.deep_prior(1, 3)),
        "dlg": Audit("small sigmoid", recipes.dlg(1, 2)),
        "dropout_inversion": Audit("small dropout", recipes.dropout_inversion(4), mode="train", count=4),
        "embedding_rows": OfSentences("Bert", recipes.embedding_rows()),
        "geiping": Audit("small relu", recipes.geiping(2, 6)),
        "gradinversion": Audit("small batchnorm", recipes.gradinversion(2, 8), count=4),
        "idlg": Audit("small sigmoid", recipes.idlg(1, 2), threat=ThreatModel()),
        "in_range": Audit("small groupnorm", recipes.in_range(6)),
        "linear": Audit("small linear", recipes.linear()),
        "modern": Audit("small leaky-relu", recipes.modern(1, 6)),
        "patch_embedding": Audit("small vit", recipes.patch_embedding()),
        "peel": Audit("small depthwise", recipes.peel()),
        "per_epoch": Audit("small relu", recipes.per_epoch(3), count=4, client=shuffled),
        "relaxed_order": Audit("small relu", recipes.relaxed_order(3), count=4, client=shuffled),
        "separated": Audit(
            "small grouped", replace(recipes.separated(), initial=recipes.in_range(4), evaluations=20), count=4
        ),
        "smoothed": Audit("small max-pool", recipes.smoothed(6), count=4),
        "steady": Audit("small max-pool", recipes.steady(6), count=4),
        "sparse": Audit("small mlp", recipes.sparse(), count=4),
        "spear": Audit("small mlp", recipes.spear(8), count=4),
        "spectral": Audit("small average-pool", recipes.spectral(6)),
        "surrogate": Audit("small relu", recipes.surrogate(6), client=FedAvg(2, 1e-2), threat=BLIND),
        "tag": Audit("small gelu", recipes.tag(1, 6)),
        "token_span": OfSentences("Llama", recipes.token_span(), count=2),
        "train_mode": Audit("small batchnorm", recipes.train_mode(6), mode="train", count=4),
        "without_prior": Audit("small relu", recipes.without_prior(4)),
    }
    further: dict[str, Point] = {
        "gradinversion batch": Audit(
            "small batchnorm", recipes.gradinversion(2, 8, "batch"), count=4, mode="train", threat=SENT
        ),
        "gradinversion sent": Audit(
            "small batchnorm", recipes.gradinversion(2, 8, "sent"), count=4, mode="train", threat=SENT
        ),
        "peel residual": Audit("small residual", replace(recipes.peel(), evaluations=50, starts=0)),
        "peel refused": Audit("small mixer", recipes.peel()),
    }
    return {f"recipe {name}": point for name, point in (of_recipes | further).items()}


def _clients() -> dict[str, Point]:
    """Every client through a short search."""
    clients = {
        "FedSGD": FedSGD(),
        "FedAvg": FedAvg(2, 1e-2),
        "FedAvg momentum": FedAvg(3, 1e-2, optimizer=LocalSGD(momentum=0.9, nesterov=True)),
        "FedAvg decay": FedAvg(2, 1e-2, optimizer=LocalSGD(weight_decay=1e-2)),
        "FedAvg Adam": FedAvg(2, 1e-3, optimizer=LocalAdam()),
        "FedAvg epochs": FedAvg(epochs=2, lr=1e-2, batch_size=2),
        "FedAvg weights": FedAvg(2, 1e-2, sends="weights"),
        "FedAvg long": FedAvg(6, 1e-2, keep_graphs=2),
        "FedProx": FedAvg(2, 1e-2, proximal=0.1),
        "FedAvg order": FedAvg(epochs=1, lr=1e-2, batch_size=2, order=((3, 1, 0, 2),)),
        "DPSGD": DPSGD(noise_multiplier=0.01, max_grad_norm=1.0),
        "DPSGD silent": DPSGD(noise_multiplier=0.0, max_grad_norm=0.1),
        "DPSGD delta": DPSGD(noise_multiplier=0.01, max_grad_norm=1.0, local_steps=2, sends="delta"),
        "DPSGD poisson": DPSGD(
            noise_multiplier=0.0, max_grad_norm=1.0, expected_batch_size=2, poisson_sampling=True, loss_reduction="sum"
        ),
        "SumOfClients": SumOfClients(),
        "SumOfClients FedAvg": SumOfClients(FedAvg(2, 1e-2), sizes=(1, 3)),
        "SumOfClients rounded": SumOfClients(FedAvg(2, 1e-2), reduction="sum", rounding=True),
    }
    search = recipes.geiping(1, 4)
    found: dict[str, Point] = {
        f"client {name}": Audit("small gelu", search, count=4, client=client) for name, client in clients.items()
    }
    for name, client in clients.items():
        found[f"equations of client {name}"] = Equations(Audit("small relu", count=4, client=client))
    found["client FedAvg by default"] = Audit("small average-pool", client=clients["FedAvg"], max_iterations=3)
    found["client FedAvg unknown"] = Audit("small gelu", client=clients["FedAvg"], threat=BLIND, max_iterations=3)
    found["client FedAvg train"] = Audit("small batchnorm", search, count=4, mode="train", client=clients["FedAvg"])
    return found


def _defenses() -> dict[str, Point]:
    """Every defense, against an attack that ignores it and one that is told of it."""
    chosen: dict[str, Any] = {
        "ATS": defenses.ATS(),
        "Clip": defenses.Clip(0.1),
        "Dropout": defenses.Dropout(),
        "ExcludeVars": defenses.ExcludeVars("weight"),
        "GaussianNoise": defenses.GaussianNoise(1e-3),
        "LaplaceNoise": defenses.LaplaceNoise(1e-3),
        "Mixup": defenses.Mixup(),
        "PRECODE": defenses.PRECODE(width=16),
        "PercentilePrivacy": defenses.PercentilePrivacy(50.0),
        "RandomPruning": defenses.RandomPruning(0.5),
        "SignQuantization": defenses.SignQuantization(),
        "SVTPrivacy": defenses.SVTPrivacy(0.5, noise_var=4.0, gamma=0.1),
        "Soteria": defenses.Soteria(),
        "StochasticQuantization": defenses.StochasticQuantization(4),
        "TopK": defenses.TopK(0.2),
        "UniformQuantization": defenses.UniformQuantization(4),
    }
    search, found = recipes.geiping(1, 4), dict[str, Point]()
    for name, defense in chosen.items():
        found[f"defense {name}"] = Audit("small gelu", search, count=4, defenses=(defense,))
        found[f"defense {name} told"] = Audit("small max-pool", defenses=(defense,), threat=TOLD, max_iterations=3)
    both = (chosen["Clip"], chosen["GaussianNoise"])
    found["defense Clip and GaussianNoise told"] = Audit("small max-pool", defenses=both, threat=TOLD, max_iterations=3)
    return found


def _costs() -> dict[str, Point]:
    """Every public objective and prior."""
    search, found = recipes.geiping(1, 4), dict[str, Point]()
    for name in objectives.__all__:
        attack = replace(search, objective=getattr(objectives, name)())
        found[f"objective {name}"] = Audit("small gelu", attack, count=4)
    for name in priors.__all__:
        attack = replace(search, priors=(getattr(priors, name)(),))
        found[f"prior {name}"] = Audit("small gelu", attack)
    return found


def _labels() -> dict[str, Point]:
    """Every label rule, of one picture and of four, through a search of one step."""
    found = dict[str, Point]()
    for name in labels.__all__:
        attack = replace(recipes.geiping(1, 1), labels=getattr(labels, name)())
        for network, count in (("small relu", 1), ("small relu", 4), ("small one-logit", 1), ("small sigmoid", 4)):
            point = Audit(network, attack, count=count, threat=ThreatModel())
            found[f"labels {name} {network} {count}"] = point
    after = Audit("small relu", recipes.geiping(1, 1), count=4, threat=ThreatModel(), client=FedAvg(2, 1e-2))
    return found | {"labels after local steps": after}


BY_DEFAULT = (
    "small max-pool", "small f-max-pool", "small batchnorm-before-pool", "small depthwise", "small grouped",
    "small layernorm-1d", "small groupnorm-behind-pool", "small layernorm-whole", "small mixer", "small autocast",
    "small no-second-derivative", "small no-bias-head", "small convolution-head", "small adapters", "small frozen-head",
    "small pixel-shuffle", "small vit", "small vit-mean-token", "small global-pool", "small lazy", "small mlp",
    "small mlp-no-bias-head", "small linear", "small regression", "small zero-head", "small selu", "small dense",
    "small hardswish", "small gated-chunk", "small groupnorm", "small tied-layer",
)  # fmt: skip
"""Small networks that the default attack is quick on."""
OF_THE_ZOO = ("AllConv", "McMahan", "ConvNet8", "MLP", "BareViT", "SRNet3")


def _networks() -> dict[str, Point]:
    """The default on networks of many kinds; of the others, what is read in them."""
    unknown, found = ThreatModel(), dict[str, Point]()
    for name in BY_DEFAULT:
        found[f"default {name}"] = Audit(name, threat=unknown, max_iterations=3)
    for name in ("small max-pool", "small vit", "small mlp", "small linear", "small groupnorm-behind-pool"):
        found[f"default {name} 4"] = Audit(name, count=4, threat=unknown, max_iterations=3)
        found[f"default {name} 4 train"] = Audit(name, count=4, mode="train", max_iterations=3)
    for name in ("small batchnorm-behind-pool", "small dropout", "small batchnorm-1d"):
        found[f"default {name} 4 train"] = Audit(name, count=4, mode="train", max_iterations=3)
    for name in OF_THE_ZOO:
        found[f"default zoo {name}"] = Audit(f"zoo {name}", max_iterations=2)
    modes: tuple[Mode, ...] = ("eval", "train")
    for small in SMALL_NETWORKS:
        for mode in modes:
            found[f"equations small {small} {mode}"] = Equations(Audit(f"small {small}", mode=mode, count=2))
    for name in ("LeNetZhu", "ResNet20", "ResNet18", "DenseNet40", "MobileNet", *OF_THE_ZOO):
        found[f"equations zoo {name}"] = Equations(Audit(f"zoo {name}"))
    return found


def _verdicts() -> dict[str, Point]:
    """Whether the update leaked, with null runs: exactly, a little, not at all, and where there is no truth."""
    search = recipes.geiping(1, 8)
    return {
        "verdict exact": Audit("zoo LeNetZhu", threat=ThreatModel(), nulls=2, others=True),
        "verdict open": Audit("small relu", search, nulls=3, others=True),
        "verdict 4 pictures": Audit("small gelu", search, count=4, threat=ThreatModel(), nulls=3),
        "verdict yes": Audit("small sigmoid", recipes.curvature(12), nulls=5),
        "verdict no": Audit("small relu", search, nulls=19, defenses=(defenses.GaussianNoise(1.0),)),
        "verdict without a truth": WithoutTruth(Audit("small gelu", recipes.curvature(6), nulls=2)),
        "verdict without a truth, exact": WithoutTruth(Audit("small linear", recipes.linear(), nulls=2)),
    }


SHORT = "--attack 'geiping(max_iterations=4)' --nulls 0 --threads 1 --device cpu --quiet"


def _commands() -> dict[str, Point]:
    """What only the command line names, and what it makes of updates that were saved."""

    def audit(options: str, output: str = "out") -> str:
        return f"audit --output {output} {SHORT} {options}"

    def inspect(options: str) -> str:
        return f"inspect --network LeNetZhu --weights w.pt --threads 1 --device cpu --json {options}"

    lines: dict[str, tuple[str, ...]] = {
        "demo": ("audit --output out --threads 1 --device cpu --quiet --nulls 1",),
        "shares": (audit("--client \"Shares(FedSGD(), ('*weight',))\""),),
        "shares of weights": (audit("--client \"Shares(FedAvg(2, 0.01, sends='weights'), ('conv0*',))\""),),
        "two pictures": (audit("--num-images 2 --known-labels --seed 3"),),
        "train mode": (audit("--network AllConv --num-images 2 --train-mode --sent-buffers --known-labels"),),
        "restarts": (audit("--restarts 3 --precision double"),),
        "defended": (audit("--defenses 'Clip(1.0)' 'GaussianNoise(0.01)' --known-defenses"),),
        "config": (audit("--seed 5", "first"), "audit --config first/report.json --output second --quiet"),
        "saved update": (audit("--update right.pt --kind gradient --num-examples 1 --weights w.pt"),),
        "gate": (audit("--output out"), "gate out --quiet"),
        "inspect": ("inspect --json --threads 1 --device cpu", "inspect --threads 1 --device cpu --num-images 4"),
        "inspect right": (inspect("--update right.pt --kind gradient --num-examples 1"),),
        "inspect nothing said": (inspect("--update right.pt"),),
        "inspect sign": (inspect("--update sign.pt --kind gradient --num-examples 1"),),
        "inspect scale": (inspect("--update scale.pt --kind gradient --num-examples 1"),),
        "inspect part": (inspect("--update part.pt --kind gradient --num-examples 1"),),
        "inspect delta": (
            inspect("--update right.pt --kind weight_delta --learning-rate 0.1 --local-steps 1 --num-examples 1"),
        ),
        "inspect after": (inspect("--after after.pt --learning-rate 0.1 --local-steps 1 --num-examples 1"),),
        "inspect network": ("inspect --network ConvNet8 --update right.pt --json --threads 1 --device cpu",),
        "convert": (
            "convert right.pt u.npz --kind gradient --num-examples 1 --quiet",
            "convert u.npz u.safetensors --quiet",
            inspect("--update u.safetensors"),
        ),
        "defend": (
            "defend --points 'GaussianNoise(0.1)' 'TopK(0.1)' --output out --attack 'geiping(max_iterations=3)' "
            "--threads 1 --device cpu --quiet",
        ),
        "wrong usage": ("audit --client FedAvgg", "audit --attack 'geiping(steps=3)'", "inspect --update none.pt"),
        "lists": tuple(f"list {kind}" for kind in ("clients", "attacks", "defenses", "losses", "networks", "metrics")),
    }
    for loss in ("FocalLoss()", "NegativeLogLikelihood()", "CrossEntropy(label_smoothing=0.1)"):
        lines[f"loss {loss}"] = (audit(f"--loss '{loss}'"),)
    for loss in ("BinaryCrossEntropy()", "MeanSquaredError()"):
        lines[f"loss {loss}"] = (audit(f"--loss '{loss}' --num-classes 1 --labels 1 --known-labels"),)
    return {f"command {name}": Command(each) for name, each in lines.items()}


def _dialect() -> dict[str, Point]:
    """The names of 2020."""
    configs: dict[str, Dialect] = {
        "sim": Dialect(),
        "labels": Dialect(known=False),
        "l2 LBFGS": Dialect({"cost_fn": "l2", "optim": "LBFGS", "total_variation": 0.0}),
        "l1 sgd": Dialect({"cost_fn": "l1", "optim": "sgd", "signed": False, "boxed": False}),
        "first4 linear": Dialect({"cost_fn": "simlocal", "indices": "first4", "weights": "linear", "filter": "median"}),
        "rand restarts": Dialect({"init": "rand", "restarts": 2, "scoring_choice": "pixelmean"}),
        "FedAvg": Dialect(local_steps=1),
    }
    return {f"dialect {name}": each for name, each in configs.items()}


def observed(audit: Audit) -> Observation:
    """What the server sees, made by the pieces that an audit is made of."""
    made = audit.world
    network = inversefed.freeze(made.module, tuple(made.images.shape[1:]), mean=MEAN, std=STD, loss=made.loss)
    update = audit.client(network, made.images, made.labels)
    observation: Observation = inversefed.observe(
        network, audit.client, update, Batch(made.images, made.labels), audit.threat
    )
    return observation


def digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, with its kind of number and its shape.

    >>> digest(torch.zeros(2)) == digest(torch.zeros(2)), digest(torch.zeros(2)) == digest(-torch.zeros(2))
    (True, False)
    """
    values = tensor.detach().cpu().contiguous()
    raw = values.reshape(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{values.dtype} {tuple(values.shape)} ".encode() + raw).hexdigest()


def of_report(report: Report) -> Facts:
    """What a report says, beside the bits of the reconstruction."""
    found = of_document(report.to_dict())
    return replace(found, facts={"pictures": digest(report.reconstruction.images), **found.facts})


def of_document(document: Mapping[str, Any]) -> Facts:
    """What a report says as JSON; how the setting and the attack are described counts as text."""
    kept = {name: value for name, value in document.items() if name not in ("labels", "findings", "scenario")}
    found = [each for each in document.get("findings") or () if each["code"] != OF_THE_MOMENT]
    facts = {name: document[name] for name in ("labels", "status") if name in document}
    if document.get("verdict"):
        facts["leaked"] = document["verdict"]["leaked"]
    facts["codes"] = [each["code"] for each in found]
    figures, texts = flat({**kept, "findings": {each["code"]: each for each in found}})
    scenario = document.get("scenario") or {}
    return Facts(facts, figures, texts | {f"scenario.{n}": timeless(json.dumps(v)) for n, v in scenario.items()})


def of_text(printed: str) -> Facts:
    """What a command printed or wrote: JSON as such, everything else as text."""
    try:
        document = json.loads(printed)
    except ValueError:
        return Facts(texts={"printed": timeless(printed)} if printed else {})
    return of_document(document) if isinstance(document, dict) else Facts(texts={"printed": timeless(printed)})


def flat(value: Any, place: str = "") -> tuple[dict[str, float | int | None], dict[str, str]]:
    """Numbers and texts of a document, by their place in it.

    >>> flat({"scores": {"psnr": [20.5, None]}, "status": "finished", "seconds": 3.0})
    ({'scores.psnr.0': 20.5, 'scores.psnr.1': None}, {'status': 'finished'})
    """
    if isinstance(value, str):
        return {}, {place: timeless(value)}
    if value is None or isinstance(value, bool | int | float):
        return {place: value}, {}
    figures, texts = dict[str, float | int | None](), dict[str, str]()
    for name, item in value.items() if isinstance(value, Mapping) else enumerate(value):
        if name not in UNTOLD:
            more, said = flat(item, f"{place}.{name}" if place else str(name))
            figures, texts = figures | more, texts | said
    return figures, texts


def timeless(text: str) -> str:
    """A text without the times and the addresses in it.

    >>> timeless("1 iteration, for 0.9 s; all controls took 2 min.")
    '1 iteration, for # s; all controls took # min.'
    """
    return re.sub(r"\d+(?:\.\d+)?(?= (?:s|ms|min|h)\b)|\b0x[0-9a-f]+", "#", text)


def joined(found: Facts, place: str, more: Facts) -> Facts:
    """Facts with others behind them, under a name."""

    def under(values: Mapping[str, Any]) -> dict[str, Any]:
        return {f"{place}.{name}": value for name, value in values.items()}

    return Facts(
        {**found.facts, **under(more.facts)},
        {**found.figures, **under(more.figures)},
        {**found.texts, **under(more.texts)},
    )


def command(arguments: Sequence[str]) -> tuple[int, str]:
    """Run `python -m inversefed` in this process: its exit status, and what it printed and did not log."""
    out, errors = io.StringIO(), io.StringIO()
    argv = mock.patch.object(sys, "argv", ["inversefed", *arguments])
    with argv, contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
        try:
            runpy.run_module("inversefed", run_name="__main__")
            status = 0
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
    return status, out.getvalue() or (errors.getvalue() if status else "")


def save_updates() -> None:
    """Write the weights and updates of `Command` into the current folder, as a stranger's script does."""
    module = networks.build("LeNetZhu", 10, seed=0).eval()
    picture = pictures.photo(pictures.photo_names()[1], (3, 32, 32))[None]
    loss = torch.nn.functional.cross_entropy(module((picture - MEAN) / STD), torch.tensor([3]))
    names, weights = zip(*module.named_parameters(), strict=True)
    gradient = dict(zip(names, torch.autograd.grad(loss, weights), strict=True))
    updates = {
        "w": module.state_dict(),
        "right": gradient,
        "sign": {name: -part for name, part in gradient.items()},
        "scale": {name: 100 * part for name, part in gradient.items()},
        "part": dict(list(gradient.items())[1:]),
        "after": {**module.state_dict(), **{n: w.detach() - 0.1 * gradient[n] for n, w in module.named_parameters()}},
    }
    for name, update in updates.items():
        torch.save(update, f"{name}.pt")


def measured(point: Point) -> Facts:
    """What a point comes to; what it raises is that as well."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    began = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = point()
    except Exception as error:  # a refusal has to stay one, and so has a crash
        found = Facts({"error": type(error).__name__}, texts={"message": timeless(str(error))})
    return replace(found, seconds=time.perf_counter() - began)


@dataclass(frozen=True)
class Difference:
    """How a point differs.

    Args:
        point: its name.
        what: in words.
        texts: whether it is in texts only.
    """

    point: str
    what: str
    texts: bool = False


def compare(before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]) -> Iterator[Difference]:
    """What differs, point by point; what is only there afterwards does not.

    Args:
        before: points by name, each as `Facts` in JSON.
        after: the same, later.
    """
    for name in before:
        if name not in after:
            yield Difference(name, "missing")
            continue
        one, other = before[name], after[name]
        facts, figures, texts = (
            [key for key in one[kind] if key not in other[kind] or one[kind][key] != other[kind][key]]
            for kind in ("facts", "figures", "texts")
        )
        found = [*(_fact(key, one["facts"][key], other["facts"].get(key)) for key in facts)]
        found += [_figures(one["figures"], other["figures"], figures)] if figures else []
        if found:
            yield Difference(name, "; ".join(found))
        if texts:
            yield Difference(name, ", ".join(texts), texts=True)


def _fact(key: str, before: Any, after: Any) -> str:
    if isinstance(before, str) and len(before) == 64:
        return f"{key}: other bits" if after else f"{key}: none"
    return f"{key}: {json.dumps(before)}, now {json.dumps(after)}"


def _figures(before: Mapping[str, Any], after: Mapping[str, Any], names: Sequence[str]) -> str:
    """How many figures differ, the one that does most, and those that are gone."""
    gone = [name for name in names if name not in after]
    apart = {name: abs(float(before[name]) - float(after[name])) for name in names if _numbers(before, after, name)}
    nulls = [name for name in names if name not in gone and name not in apart]
    words = []
    if apart:
        most = max(apart, key=lambda name: apart[name])
        words += [f"{len(apart)} figures, at most by {apart[most]:.3g} ({most})"]
    for what, found in (("no figure any more", gone), ("null on one side", nulls)):
        words += [f"{what}: {', '.join(found[:4])}{f' and {len(found) - 4} more' * (len(found) > 4)}"] * bool(found)
    return "; ".join(words)


def _numbers(before: Mapping[str, Any], after: Mapping[str, Any], name: str) -> bool:
    return before.get(name) is not None and after.get(name) is not None


def carried_out(options: Options, command_line: str) -> int:
    """Run the points, or compare two files of them; 1 if something differs.

    Raises:
        ConfigError: a pattern that is none.
        InputError: a file that cannot be used, or no point has such a name.
    """
    try:
        re.compile(options.only)
    except re.error as error:
        raise ConfigError(f"--only is no regular expression: {options.only!r} ({error})") from error
    return run(options, command_line) if options.compare is None else report(options.compare)


def run(options: Options, command_line: str) -> int:
    """Run the points and print a line for each; the file is written once, at the end.

    Raises:
        InputError: no point has such a name, or the file cannot be written.
    """
    chosen = {name: point for name, point in points().items() if re.search(options.only, name)}
    if not chosen:
        raise InputError(f"--only {options.only!r} matches none of the {len(points())} points")
    began, found = time.perf_counter(), dict[str, Facts]()
    for name, point in chosen.items():
        found[name] = measured(point)
        said = found[name].facts.get("error") or found[name].facts.get("pictures", "")[:12]
        print(f"{found[name].seconds:6.2f} s  {name}  {said}", flush=True)
    print(f"{len(found)} points in {time.perf_counter() - began:.0f} s")
    if options.json is not None:
        document = {"command": command_line, "machine": record.machine(), "commit": commit_of(Path(__file__).parent)}
        record.write(options.json, document | {"points": {name: asdict(each) for name, each in found.items()}})
    return 0


def report(paths: tuple[Path, Path]) -> int:
    """Print what differs; 1 if something does beside texts.

    Raises:
        InputError: a file that this benchmark did not write.
    """
    before, after = (read(path) for path in paths)
    machines = (before["machine"], after["machine"])
    for name in sorted(set().union(*machines) - {"inversefed"}):
        if machines[0].get(name) != machines[1].get(name):
            print(f"note: {name} was {machines[0].get(name)}, now {machines[1].get(name)}; bits may differ by that")
    found = list(compare(before["points"], after["points"]))
    differing = [each for each in found if not each.texts]
    if differing:
        print("| point | what differs |\n|---|---|")
    for each in differing:
        print(f"| {each.point} | {each.what.replace('|', '/')} |")
    said = [each for each in found if each.texts]
    for each in said:
        print(f"text of {each.point}: {each.what}")
    for name in after["points"]:
        if name not in before["points"]:
            print(f"new: {name}")
    print(f"{len(before['points'])} points before: {len(differing)} differ, and {len(said)} in texts")
    return int(bool(differing))


def read(path: Path) -> Any:
    """A file of points.

    Raises:
        InputError: it is none.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if not all({"facts", "figures", "texts"} <= set(each) for each in document["points"].values()):
            raise ValueError("a point lacks facts, figures or texts")
        return {"machine": document["machine"], "points": document["points"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"--compare: {path} is no file of this benchmark ({error}); make it with --json") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0, 1 if something differs, 2 for wrong usage, 130 if interrupted."""
    return record.command("unchanged", Options, carried_out, arguments, "nothing was written")


if __name__ == "__main__":
    sys.exit(main())
