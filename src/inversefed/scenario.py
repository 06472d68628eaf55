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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inversefed.attacks import Attack, recipes
from inversefed.errors import ConfigError, InputError
from inversefed.fl.checks import check_pieces, check_threat, check_truth
from inversefed.fl.clients import Client, FedSGD
from inversefed.fl.clients.client import check_client
from inversefed.fl.defenses import Defense
from inversefed.fl.losses import CrossEntropy
from inversefed.fl.network import Loss, Network
from inversefed.fl.settings import (
    describe_observation,
    describe_promise,
    describe_setting,
    promise_findings,
    setting_findings,
)
from inversefed.fl.simulate import frozen, simulate
from inversefed.fl.threat import Observation, ThreatModel
from inversefed.inputs import InputSpace, pictured
from inversefed.report import environment
from inversefed.report.read import read_report
from inversefed.specs.record import ASKED, Hashes, hash_of_record, read_record, require_same
from inversefed.specs.sources import Records, Sources, as_json
from inversefed.specs.written import hash_of_batch, hash_of_network, hash_of_observation, hash_of_tensors, written
from inversefed.types import Batch, Finding

__all__ = ["Hashes", "Held", "Scenario"]


@dataclass(frozen=True, eq=False)
class Held:
    """The tensors of a scenario, for the run; no record has them.

    Args:
        network: as it is before any defense.
        truth: the private pictures, where they are known.
        others: public pictures of the same kind.
        hashes: of all of it.
        received: what the server saw, where the update came from outside.
        findings: what was found out about such an update, or about the file that the examples came from.
        name: what the pictures or the update are called.
        candidates: records that are asked for, whether they were in the update.
        candidates_out: records that are known not to be in it; `None` for `others`.
    """

    network: Network = field(repr=False)
    truth: Batch | None = field(default=None, repr=False)
    others: Batch | None = field(default=None, repr=False)
    hashes: Hashes = Hashes()
    received: Observation | None = field(default=None, repr=False)
    findings: tuple[Finding, ...] = ()
    name: str = ""
    candidates: Batch | None = field(default=None, repr=False)
    candidates_out: Batch | None = field(default=None, repr=False)


@dataclass(frozen=True)
class Scenario:
    """All that an audit is.

    Args:
        sources: how network, pictures and update are named; `None` where they are values of the program.
        client: how the update is made; of an update from outside its sources say that, and here is what it promises.
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
        rehearsals: how many public stand-ins the same attack is run on, for the verdict's power; `None` for none.
        rehearsal_time: seconds for all of them; `None` for no limit.
        choose: whether the search is chosen by how several do on public stand-ins.
        inputs: what the examples are, where they are no pictures.
        records: folders of records that are asked for; `None` where there are none, or they are values of the program.
        sha256: of what was loaded.
        versions: with which versions, machine and threads; no part of the hash.
        held: the tensors, where they are at hand.

    >>> import json
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
    rehearsals: int | None = None
    rehearsal_time: float | None = None
    choose: bool = False
    inputs: InputSpace | None = None
    records: Records | None = None
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
        from inversefed.specs.record_folder import read_asked

        if self.held is not None:
            return self
        if self.sources is None:
            raise InputError(
                "the network and the pictures of this audit were values of the program that made it, and nothing names "
                "them; give them: Scenario.from_report(path, module=.., images=.., labels=..)"
            )
        setting = load(self.sources, self.seed, self.mean, self.std, self.inputs, self.loss)
        setting = replace(setting, module=setting.module.to(device))
        if before is not None:
            before(setting.module)
        others = stand_ins(self.sources, setting)
        if not is_received(self.sources, bool(self.defenses)):
            mean, std, space = setting.mean, setting.std, setting.space
            network, truth = frozen(
                setting.module, setting.images, setting.labels, mean=mean, std=std, loss=self.loss, inputs=space
            )
            found = self._made(network, truth, others, *read_asked(self.records, network, setting))
        else:
            brought = receive(self.sources, setting, self.client, self.loss, self.threat)
            found = replace(self, threat=brought.threat)
            asked = read_asked(self.records, brought.observation.network, setting)
            found = found.received(brought.observation, brought.truth, others, brought.findings, *asked)
        held = found.at_hand
        findings = (*setting.findings, *held.findings)
        return replace(found, held=replace(held, name=setting.source, findings=findings))

    def of(
        self,
        module: nn.Module,
        images: Tensor,
        labels: Tensor,
        others: Batch | None = None,
        mean: float | Sequence[float] | Tensor | None = None,
        std: float | Sequence[float] | Tensor | None = None,
        candidates: Batch | None = None,
        candidates_out: Batch | None = None,
        inputs: InputSpace | None = None,
    ) -> "Scenario":
        """The same scenario of this network and these private pictures; the client makes its update of them.

        Args:
            module: any classifier, in the mode that the client uses.
            images: the private pictures, `[n, c, h, w]`, in [0, 1], or examples of another input space.
            labels: theirs.
            others: public examples of the same kind, with labels.
            mean: what the client's input normalization subtracts.
            std: what it divides by.
            candidates: records that are asked for, whether they were in the update; -1 for a label that is not known.
            candidates_out: records of the same kind that are known not to be; `None` for `others`.
            inputs: what the examples are; `None` for pictures, or as this scenario has it.

        Raises:
            InputError: pictures or labels that cannot be used, or others than those recorded.
            UnsupportedNetworkError: the module cannot be audited.
        """
        space = self.inputs if inputs is None else inputs
        network, truth = frozen(module, images, labels, mean=mean, std=std, loss=self.loss, inputs=space)
        return self._made(network, truth, others, candidates, candidates_out)

    def _made(
        self, network: Network, truth: Batch, others: Batch | None, asked: Batch | None, out: Batch | None
    ) -> "Scenario":
        """The same scenario of an update that the client makes."""
        public = (_hash_of_others(others), _hash_of_asked(asked), _hash_of_asked(out))
        hashes = Hashes(hash_of_network(network), *hash_of_batch(truth), None, *public)
        return self._holding(Held(network, truth, others, hashes, candidates=asked, candidates_out=out))

    def received(
        self,
        observation: Observation,
        truth: Batch | None = None,
        others: Batch | None = None,
        findings: Sequence[Finding] = (),
        candidates: Batch | None = None,
        candidates_out: Batch | None = None,
    ) -> "Scenario":
        """The same scenario of an update that came from outside.

        Args:
            observation: what the server saw.
            truth: the pictures behind it, where they are known.
            others: public pictures of the same kind.
            findings: what was found out about the update.
            candidates: records that are asked for, whether they were in the update; -1 for a label that is not known.
            candidates_out: records of the same kind that are known not to be; `None` for `others`.

        Raises:
            InputError: another update or network than those recorded, or a truth that does not fit the update.
        """
        check_truth(observation, truth)
        images, labels = (None, None) if truth is None else hash_of_batch(truth)
        network, update = hash_of_network(observation.network), hash_of_observation(observation)
        public = (_hash_of_others(others), _hash_of_asked(candidates), _hash_of_asked(candidates_out))
        hashes = Hashes(network, images, labels, update, *public)
        told = (observation, tuple(findings), "", candidates, candidates_out)
        return self._holding(Held(observation.network, truth, others, hashes, *told))

    @property
    def at_hand(self) -> Held:
        """The tensors that are held.

        Raises:
            InputError: nothing is held.
        """
        if self.held is None:
            raise InputError("nothing was loaded yet: scenario.loaded().observe()")
        return self.held

    def observe(self) -> Observation:
        """What the server sees: the update from outside, or the one that the client makes of what is held.

        Raises:
            InputError: nothing is held, or the update is not finite.
        """
        held = self.at_hand
        if held.received is not None or held.truth is None:
            assert held.received is not None
            return held.received
        return simulate(
            held.network, held.truth,
            client=self.client, defenses=self.defenses, threat=self.threat, seed=self.seed,
        )  # fmt: skip

    def described(self, observation: Observation) -> tuple[dict[str, Any], tuple[Finding, ...]]:
        """The record with what people want to know of what was audited, and what is worth knowing about it.

        Args:
            observation: what `observe` gave.

        Raises:
            InputError: nothing is held.
        """
        held, threat = self.at_hand, self.threat
        facts = describe_observation(observation, threat, self.seed)
        if held.received is not None or held.truth is None:
            count = observation.num_examples
            facts |= describe_promise(self.client, count)
            return facts | self.to_dict(), (*held.findings, *promise_findings(self.client, count))
        network, truth = observation.network, held.truth
        facts |= describe_setting(network, self.client, self.defenses, threat, truth, self.seed)
        told = setting_findings(network, self.defenses, truth, self.client, threat)
        return facts | self.to_dict(), (*held.findings, *told)

    def _holding(self, held: Held) -> "Scenario":
        """Hold these tensors, if they are those that were recorded."""
        if self.sha256.network is not None:
            require_same(held.hashes, self.sha256, self.versions, environment.describe())
        mean, std = (tuple(part.flatten().tolist()) for part in (held.network.mean, held.network.std))
        space = None if pictured(held.network.space) else held.network.space
        loss = held.network.loss  # of a margin loss the equal form that can be searched
        return replace(
            self,
            held=held,
            sha256=held.hashes,
            loss=loss,
            mean=mean,
            std=std,
            inputs=space,
            versions=environment.describe(),
        )

    def hash(self) -> str:
        """SHA-256 of the audit, 64 hexadecimal digits, equal for equal audits wherever they were written.

        Raises:
            ConfigError: its network and pictures were not loaded yet.
        """
        if self.sha256.network is None:
            raise ConfigError("a scenario has a hash once its network and pictures are there: scenario.loaded().hash()")
        return hash_of_record(self._record())

    def to_dict(self) -> dict[str, Any]:
        """The record: names, numbers and hashes as JSON holds them; no pixel, no weight, no code."""
        record = self._record()
        whole = {"hash": hash_of_record(record)} if self.sha256.network is not None else {}
        sources = None if self.sources is None else as_json(self.sources)
        records = {} if self.records is None else {"records": as_json(self.records)}
        return {**whole, **record, "sources": sources, **records, "versions": dict(self.versions)}

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
            **{name: value for name in _REHEARSED if (value := getattr(self, name)) is not None},
            **({"choose": True} if self.choose else {}),
            **({} if self.inputs is None else {"inputs": written(self.inputs)}),
            "sha256": {
                name: each for name, each in asdict(self.sha256).items() if each is not None or name not in ASKED
            },
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
        return cls(**read_record(content, trust_code))

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


_REHEARSED = ("rehearsals", "rehearsal_time")
"""Entries of a record that are left out where nothing is rehearsed."""


def _hash_of_others(others: Batch | None) -> str | None:
    return None if others is None else "".join(hash_of_batch(others)[:1])


def _hash_of_asked(records: Batch | None) -> str | None:
    return None if records is None else hash_of_tensors({"images": records.images, "labels": records.labels})


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
