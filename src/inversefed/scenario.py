"""All that an audit is, as one frozen value: what is audited, how it is attacked, and a hash that says it is the same.

    Scenario = sources + client, defenses, threat, loss, seed + attack, budget, null runs + SHA-256 of what was loaded

    hash = SHA-256( all of it but where things come from and with which versions )

Two audits with the same hash are the same audit, whether they were written in Python, in the shell, or read from a
report: equal weights, pixels, labels and settings. Where a network is found (its name, a path) is no part of the hash,
its layers and weights are. Versions, device and threads are recorded and are no part of it either: the same audit on
another machine is the same audit, though floating-point rounding may differ.

Tensors stand beside the value (`held`), and never go into a record. A record holds names, numbers and hashes; to run
it, the sources are loaded again and must have the same hashes.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inversefed.attacks import Attack, recipes
from inversefed.errors import ConfigError, InputError, unknown_name
from inversefed.fl.checks import check_pieces, check_threat, check_truth
from inversefed.fl.clients import Client, FedSGD
from inversefed.fl.clients.client import check_client
from inversefed.fl.defenses import Defense
from inversefed.fl.losses import CrossEntropy
from inversefed.fl.network import Loss, Network
from inversefed.fl.simulate import frozen, simulate
from inversefed.fl.threat import Observation, ThreatModel
from inversefed.report import environment
from inversefed.report.read import read_report
from inversefed.specs import registry
from inversefed.specs.sources import Sources, as_json, read_fields
from inversefed.specs.written import UNNAMED, hash_of_batch, hash_of_network, hash_of_observation, written
from inversefed.types import Batch, Finding

__all__ = ["Hashes", "Held", "Scenario", "read_hashes"]

_PIECES = ("client", "loss", "attack")
_NONE = type(None)
_NUMBERS = {
    "seed": (int,),
    "time_budget": (float, int, _NONE),
    "max_iterations": (int, _NONE),
    "nulls": (int, _NONE),
}
_FACTS = {
    "network", "parameters", "tensors", "num_examples", "image_shape", "num_classes", "dtype", "device", "privacy",
}  # fmt: skip
"""What a report says of an audit beside its record, for people."""


@dataclass(frozen=True)
class Hashes:
    """SHA-256 of what an audit was made of; `None` for what there was not, all `None` for what nobody has loaded yet.

    Args:
        network: layers, modes, weights and buffers.
        images: the private pictures, or those behind an update from outside.
        labels: theirs.
        update: an update from outside, with the client that is believed in and what is known with it.
        others: public pictures for the controls.
    """

    network: str | None = None
    images: str | None = None
    labels: str | None = None
    update: str | None = None
    others: str | None = None


@dataclass(frozen=True, eq=False)
class Held:
    """The tensors of a scenario, for the run; no record has them.

    Args:
        network: as it is before any defense.
        truth: the private pictures, where they are known.
        others: public pictures of the same kind.
        hashes: of all of it.
        received: what the server saw, where the update came from outside.
        findings: what was found out about such an update.
        name: what the pictures or the update are called.
    """

    network: Network = field(repr=False)
    truth: Batch | None = field(default=None, repr=False)
    others: Batch | None = field(default=None, repr=False)
    hashes: Hashes = Hashes()
    received: Observation | None = field(default=None, repr=False)
    findings: tuple[Finding, ...] = ()
    name: str = ""


@dataclass(frozen=True)
class Scenario:
    """All that an audit is.

    Args:
        sources: how network, pictures and update are named; `None` where they are values of the program.
        client: how the update is made; of an update from outside its sources say that.
        defenses: what is done to it before it leaves, in order.
        threat: what the server knows beside it.
        loss: the client's training loss.
        mean: what the client's input normalization subtracts, one number a channel; `None` for the data set's.
        std: what it divides by.
        seed: fixes all randomness, weights that nobody trained among it.
        attack: how the server attacks.
        time_budget: seconds for attack and null runs together.
        max_iterations: replaces the attack's own number.
        nulls: how many null runs the verdict rests on; `None` for as many as it needs.
        sha256: of what was loaded.
        versions: with which versions, machine and threads; no part of the hash.
        held: the tensors, where they are at hand.

    >>> scenario = Scenario(Sources(network="LeNetZhu"), attack=recipes.linear(), nulls=0).loaded()
    >>> again = Scenario.from_dict(json.loads(json.dumps(scenario.to_dict())))
    >>> again.hash() == scenario.hash() != replace(scenario, seed=1).hash()
    True
    """

    sources: Sources | None = None
    client: Client = FedSGD()
    defenses: tuple[Defense, ...] = ()
    threat: ThreatModel = ThreatModel()
    loss: Loss = CrossEntropy()
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    seed: int = 0
    attack: Attack = field(default_factory=recipes.best)
    time_budget: float | None = None
    max_iterations: int | None = None
    nulls: int | None = None
    sha256: Hashes = Hashes()
    versions: Mapping[str, str] = field(default_factory=environment.describe, repr=False, compare=False)
    held: Held | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_pieces(client=self.client, loss=self.loss, defenses=self.defenses)
        check_client(self.client)
        check_threat(self.threat, self.seed)
        if self.held is not None:
            network = self.held.network
            bound = tuple(tuple(part.flatten().tolist()) for part in (network.mean, network.std))
            if bound != (self.mean, self.std) or written(network.loss) != written(self.loss):
                raise ConfigError(
                    "the loss and the normalization of a network that was loaded stay as they are: change them before, "
                    "or load it again, replace(scenario, held=None, sha256=Hashes(), loss=..)"
                )

    def loaded(
        self, device: str | torch.device = "cpu", before: Callable[[nn.Module], object] | None = None
    ) -> "Scenario":
        """The same scenario with its tensors at hand, found by their names; itself where they are.

        Args:
            device: where the network goes. A network named `pkg.mod:factory` is imported and run.
            before: called with the network before anything is computed with it.

        Raises:
            InputError: files that cannot be used, or that are not those whose hashes were recorded.
            ConfigError: an unknown name.
        """
        from inversefed.specs.load_setting import load  # data sets, networks and file formats take a while to import
        from inversefed.specs.load_update import is_received, receive
        from inversefed.specs.public_images import stand_ins

        if self.held is not None:
            return self
        if self.sources is None:
            raise InputError(
                "the network and the pictures of this audit were values of the program that made it, and nothing names "
                "them; give them: Scenario.from_report(path, module=.., images=.., labels=..)"
            )
        setting = load(self.sources, self.seed, self.mean, self.std)
        module, shape = setting.module.to(device), setting.images.shape[1:]
        if before is not None:
            before(module)
        others = stand_ins(self.sources, (shape[0], shape[1], shape[2]))
        if not is_received(self.sources, bool(self.defenses)):
            found = self.of(module, setting.images, setting.labels, others, setting.mean, setting.std)
        else:
            brought = receive(self.sources, replace(setting, module=module), self.client, self.loss, self.threat)
            found = replace(self, threat=brought.threat)
            found = found.received(brought.observation, brought.truth, others, brought.findings)
        assert found.held is not None
        return replace(found, held=replace(found.held, name=setting.source))

    def of(
        self,
        module: nn.Module,
        images: Tensor,
        labels: Tensor,
        others: Batch | None = None,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
    ) -> "Scenario":
        """The same scenario of this network and these private pictures; the client makes its update of them.

        Args:
            module: any classifier, in the mode that the client uses.
            images: the private pictures, `[n, c, h, w]`, in [0, 1].
            labels: theirs.
            others: public pictures of the same kind, with labels.
            mean: what the client's input normalization subtracts.
            std: what it divides by.

        Raises:
            InputError: pictures or labels that cannot be used, or others than those recorded.
            UnsupportedNetworkError: the module cannot be audited.
        """
        network, truth = frozen(module, images, labels, mean=mean, std=std, loss=self.loss)
        hashes = Hashes(hash_of_network(network), *hash_of_batch(truth), None, _hash_of_others(others))
        return self._holding(Held(network, truth, others, hashes))

    def received(
        self,
        observation: Observation,
        truth: Batch | None = None,
        others: Batch | None = None,
        findings: Sequence[Finding] = (),
    ) -> "Scenario":
        """The same scenario of an update that came from outside.

        Args:
            observation: what the server saw.
            truth: the pictures behind it, where they are known.
            others: public pictures of the same kind.
            findings: what was found out about the update.

        Raises:
            InputError: another update or network than those recorded, or a truth that does not fit the update.
        """
        check_truth(observation, truth)
        images, labels = (None, None) if truth is None else hash_of_batch(truth)
        network, update = hash_of_network(observation.network), hash_of_observation(observation)
        hashes = Hashes(network, images, labels, update, _hash_of_others(others))
        return self._holding(Held(observation.network, truth, others, hashes, observation, tuple(findings)))

    def observe(self) -> Observation:
        """What the server sees: the update from outside, or the one that the client makes of what is held.

        Raises:
            InputError: nothing is held, or the update is not finite.
        """
        if self.held is None:
            raise InputError("nothing was loaded yet: scenario.loaded().observe()")
        if self.held.received is not None or self.held.truth is None:
            assert self.held.received is not None
            return self.held.received
        return simulate(
            self.held.network, self.held.truth,
            client=self.client, defenses=self.defenses, threat=self.threat, seed=self.seed,
        )  # fmt: skip

    def _holding(self, held: Held) -> "Scenario":
        """Hold these tensors, if they are those that were recorded."""
        if self.sha256.network is not None:
            for each in fields(Hashes):
                here, recorded = getattr(held.hashes, each.name), getattr(self.sha256, each.name)
                if here != recorded:
                    raise InputError(_differs(each.name, here, recorded, self.versions))
        mean, std = (tuple(part.flatten().tolist()) for part in (held.network.mean, held.network.std))
        loss = held.network.loss  # of a margin loss the equal form that can be searched
        return replace(
            self, held=held, sha256=held.hashes, loss=loss, mean=mean, std=std, versions=environment.describe()
        )

    def hash(self) -> str:
        """SHA-256 of the audit, 64 hexadecimal digits, equal for equal audits wherever they were written.

        Raises:
            ConfigError: its network and pictures were not loaded yet.
        """
        if self.sha256.network is None:
            raise ConfigError("a scenario has a hash once its network and pictures are there: scenario.loaded().hash()")
        return _hash_of(self._record())

    def to_dict(self) -> dict[str, Any]:
        """The record: names, numbers and hashes as JSON holds them; no pixel, no weight, no code."""
        whole = {"hash": self.hash()} if self.sha256.network is not None else {}
        sources = None if self.sources is None else as_json(self.sources)
        return {**whole, **self._record(), "sources": sources, "versions": dict(self.versions)}

    def _record(self) -> dict[str, Any]:
        received = self.sha256.update is not None
        return {
            **({} if received else {"client": written(self.client)}),
            "defenses": [written(each) for each in self.defenses],
            "threat_model": asdict(self.threat),
            "loss": written(self.loss),
            "mean": None if self.mean is None else [float(each) for each in self.mean],
            "std": None if self.std is None else [float(each) for each in self.std],
            "seed": self.seed,
            "attack": written(self.attack),
            "time_budget": None if self.time_budget is None else float(self.time_budget),
            "max_iterations": self.max_iterations,
            "nulls": self.nulls,
            "sha256": asdict(self.sha256),
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], trust_code: bool = False) -> "Scenario":
        """Read a record; its tensors are loaded by `loaded`, or given by `of` and `received`.

        Args:
            content: as `to_dict` has it, or the entry `scenario` of a report.
            trust_code: whether what it names as `pkg.mod:Name` may be imported, which runs that code.

        Raises:
            ConfigError: an unknown entry or name, one of the wrong type, or code that is not trusted.
            InputError: it was changed after its hash was made.
        """
        record = dict(content)
        _check_record(record)
        sources = record.get("sources")
        named = None if sources is None else Sources(**read_fields(Sources, sources))
        if named is not None and ":" in named.network and not trust_code:
            raise ConfigError(
                f"the scenario names code to run as its network, {named.network!r}; a data file may not: pass "
                "trust_code=True (--trust-code) if you trust it"
            )
        known = {name: record[name] for name in _NUMBERS if name in record}
        for name in ("mean", "std"):
            known[name] = None if record.get(name) is None else tuple(float(each) for each in record[name])
        received = (record.get("sha256") or {}).get("update") is not None
        texts = {name: record[name] for name in _PIECES if name in record and not (received and name == "client")}
        if received and named is not None:
            texts["client"] = named.client
        return cls(
            named,
            defenses=tuple(_built("defense", each, trust_code) for each in record.get("defenses", ())),
            threat=ThreatModel(**record.get("threat_model", {})),
            sha256=Hashes(**record.get("sha256", {})),
            versions=dict(record.get("versions", {})),
            **{name: _built(name, text, trust_code) for name, text in texts.items()},
            **known,
        )

    @classmethod
    def from_report(
        cls,
        path: str | Path,
        *,
        module: nn.Module | None = None,
        images: Tensor | None = None,
        labels: Tensor | None = None,
        others: Batch | None = None,
        trust_code: bool = False,
    ) -> "Scenario":
        """Read what a report was made of, ready to be audited again.

        Args:
            path: a `report.json`, or its folder.
            module: the network, where the report cannot name it.
            images: the private pictures, where it cannot name them.
            labels: theirs.
            others: the public pictures that its controls had, if any.
            trust_code: whether what it names as `pkg.mod:Name` may be imported, which runs that code.

        Raises:
            InputError: no report, one without a scenario, or values that are missing or are not those of the report.
            ConfigError: an unknown name, or code that is not trusted.
        """
        content = read_report(path).get("scenario")
        if not isinstance(content, dict) or "sha256" not in content:
            raise InputError(f"{path} holds no scenario: an earlier version wrote it; audit again")
        found = cls.from_dict(content, trust_code)
        values = {"module": module, "images": images, "labels": labels}
        missing = [name for name, value in values.items() if value is None]
        if len(missing) == len(values):
            if found.sources is None:
                raise InputError(_missing(path, found))
            return found
        if missing or found.sha256.update is not None:
            raise InputError(
                f"{path} was read with {', '.join(set(values) - set(missing))}"
                + (f" and without {', '.join(missing)}; give all three" if missing else ", but it is of an update from "
                   "outside: read that, and call scenario.received(observation, truth)")
            )  # fmt: skip
        assert module is not None and images is not None and labels is not None
        return found.of(module, images, labels, others, found.mean, found.std)


def read_hashes(record: Mapping[str, Any]) -> Hashes:
    """The hashes of a record, none of whose pieces is built.

    Raises:
        ConfigError: an unknown entry.
        InputError: the record was changed after it was written.
    """
    _check_record(record)
    return Hashes(**record.get("sha256", {}))


def _built(kind: str, text: Any, trust_code: bool) -> Any:
    if not isinstance(text, str):
        raise ConfigError(f"{kind} must be text, such as a piece's repr; got {text!r}")
    if UNNAMED in text:
        raise ConfigError(
            f"the {kind} of this audit was code of the program that made it, {text.split(UNNAMED)[0]}, and no text "
            "builds it; run inversefed.audit from that program"
        )
    return registry.build(kind, text, trust_code)


def _check_record(record: Mapping[str, Any]) -> None:
    """Refuse what is no record, or not the one that its hash was made of."""
    own = {*_PIECES, *_NUMBERS, "mean", "std", "defenses", "threat_model", "sha256", "sources", "versions", "hash"}
    _check_names("entry of a scenario", record, own, _FACTS)
    _check_names("entry of threat_model", record.get("threat_model", {}), {each.name for each in fields(ThreatModel)})
    _check_names("entry of sha256", record.get("sha256", {}), {each.name for each in fields(Hashes)})
    for name in _NUMBERS.keys() & record.keys():
        if type(record[name]) not in _NUMBERS[name]:
            raise ConfigError(f"{name} of a scenario must be a number, got {record[name]!r}")
    if "hash" in record and record["hash"] != _hash_of(record):
        raise InputError(
            f"the scenario says that its hash is {str(record['hash'])[:12]}.., and what it holds has another, "
            f"{_hash_of(record)[:12]}..: it was changed after it was written; take the entry hash out to run it so"
        )


def _check_names(what: str, found: Any, own: set[str], beside: Iterable[str] = ()) -> None:
    if not isinstance(found, Mapping):
        raise ConfigError(f"{what}: a JSON object is expected, got {found!r}")
    for name in found.keys() - own - set(beside):
        raise unknown_name(what, name, own)


def _hash_of(record: Mapping[str, Any]) -> str:
    """The hash of a record by its texts and numbers, which need not be built for that."""
    silent = {"hash", "sources", "versions", *_FACTS}
    if (record.get("sha256") or {}).get("update") is not None:
        silent.add("client")  # the update's own hash holds the client that is believed in
    payload = {name: value for name, value in record.items() if name not in silent}
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(_WHOLE.sub(r"\1", text).encode()).hexdigest()


_WHOLE = re.compile(r"(?<![\w.])(\d+)\.0(?![\w.])")
"""A whole number written as a float: `lr=1.0` and `lr=1` are the same."""


def _hash_of_others(others: Batch | None) -> str | None:
    return None if others is None else "".join(hash_of_batch(others)[:1])


def _differs(name: str, here: str | None, recorded: str | None, versions: Mapping[str, str]) -> str:
    what = {"images": "pictures", "others": "public pictures"}.get(name, name)
    shown = [f"SHA-256 {each[:12]}.." if each else "none" for each in (recorded, here)]
    now = environment.describe()
    other = [key for key in now if versions.get(key, now[key]) != now[key]]
    changed = [f"{key} {versions[key]} then and {now[key]} now" for key in other]
    return (
        f"the {what} of this audit: {shown[0]} recorded, and {shown[1]} here"
        + (f" ({', '.join(changed)})" if changed else "")
        + "; give the same ones, or run another audit with replace(scenario, sha256=Hashes())"
    )


def _missing(path: str | Path, found: Scenario) -> str:
    if found.sha256.update is not None:
        return (
            f"{path} is of an update that was a value of the program that made it: read it, and call "
            "scenario.received(observation, truth), or inversefed.audit_observation"
        )
    with_others = ", others=.." if found.sha256.others else ""
    return (
        f"{path} names neither its network nor its pictures, which were values of the program that made it: give them, "
        f"Scenario.from_report(path, module=.., images=.., labels=..{with_others})"
    )
