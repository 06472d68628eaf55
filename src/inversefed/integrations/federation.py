"""The updates of a federation, kept as they come in and audited by another process, whatever the framework.

    round --keep--> <ledger's folder>/updates/<run>/round-0001/<client>/ --watch--> job of the ledger --> result

Keeping writes files and no more; no attack is run in a round, and nothing that fails in keeping or auditing reaches the
round. What one client was sent and sent back in one round is one folder, which appears whole or not at all, for its
owner only, and is never written again. Weights that several clients were sent are one file, named by their hash.
"""

import hashlib
import hmac
import json
import logging
import os
import re
import secrets
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from inversefed.errors import ConfigError, InputError, InversefedError, StorageError
from inversefed.experiments.ledger import is_dead, new_owner
from inversefed.experiments.places import make_private
from inversefed.fl.threat_model import ThreatModel
from inversefed.specs import registry
from inversefed.specs.written import hash_of_tensors
from inversefed.types import Finding
from inversefed.updates.files import write_tensors
from inversefed.updates.finding_notes import write_notes
from inversefed.updates.metadata import Metadata

__all__ = ["Arrays", "Capture", "Federation", "Inbox", "captures", "folder_of", "read_federation", "remove_kept"]

Arrays: TypeAlias = Mapping[str, Any] | Sequence[Any]
"""Tensors or arrays of numpy by name, or without names in the order of the network's state dict."""

_LOG = logging.getLogger(__name__)
_SETTINGS, _CAPTURE, _OVER, _KEY, _LOCK, _SAID = (
    "federation.json", "capture.json", "over", "client.key", "watch.lock", "watch.log",
)  # fmt: skip
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")
_MOST_SAID = 1_000_000
"""Bytes of the auditing process's own log, above which it begins anew."""


@dataclass(frozen=True)
class Federation:
    """Which updates of a federation are audited, and how.

    Args:
        run: the run's name in the ledger; letters, digits, dots and dashes.
        network: a network's name (see `inversefed list networks`), or `pkg.mod:factory`, which is imported and run by
            the auditing process.
        image_shape: channels, height and width of its input; `None` where its name tells, 3x32x32 for a factory.
        inputs: what the network takes where that is no picture, as text, such as `"Series(channels=2, length=128)"`, or
            `repr(table.columns)`; `None` for pictures.
        num_classes: how many classes a network by name has; `None` for its own number.
        mean: what the client's input normalization subtracts, one number a channel, or one for all; `None` for the
            usual one.
        std: what it divides by.
        train_mode: whether clients train in train mode, as nearly all do.
        client: how the client trains, such as `"FedAvg(epochs=2, lr=0.1, batch_size=8)"`; `None` for what stands beside
            each update.
        loss: what it minimizes.
        attack: how the server attacks.
        threat: what the server knows beside the update.
        time_budget: seconds for each audit; `None` for no limit.
        max_iterations: replaces the attack's own number.
        nulls: null runs of each verdict; `None` for as many as it needs.
        every: the rounds that are audited: the first, and each so-and-so-many-th after it.
        clients: how many clients of such a round are audited at most, drawn anew each round; `None` for all.
        anonymous: whether clients are named by a keyed hash, whose key never leaves the folder.
        seed: fixes the randomness of the audits, and the draw.
        ledger: an SQLite file, or the URL of a database.
        ledger_folder: where updates and reports go; `None` for the folder of the SQLite file, or `runs`.
        watched: whether a process is begun that audits while the federation runs; without it, `inversefed watch RUN`
            does so at any time.
        nice: how far that process stands back for others, from 0 to 19.

    Raises:
        ConfigError: a setting that cannot be.

    >>> federation = Federation("demo", "ConvNet", every=5)
    >>> [number for number in range(1, 12) if federation.samples(number)]
    [1, 6, 11]
    """

    run: str
    network: str
    image_shape: tuple[int, int, int] | None = None
    num_classes: int | None = None
    mean: tuple[float, ...] | float | None = None
    std: tuple[float, ...] | float | None = None
    train_mode: bool = True
    client: str | None = None
    loss: str = "CrossEntropy"
    attack: str = "best"
    threat: ThreatModel = ThreatModel()
    time_budget: float | None = 60.0
    max_iterations: int | None = None
    nulls: int | None = None
    every: int = 1
    clients: int | None = None
    anonymous: bool = False
    seed: int = 0
    ledger: str = "runs/ledger.db"
    ledger_folder: Path | None = None
    watched: bool = True
    nice: int = 19
    inputs: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.run):
            raise ConfigError(f"a run's name is of letters, digits, dots and dashes, at most 100; got {self.run!r}")
        if self.every < 1 or (self.clients is not None and self.clients < 1):
            raise ConfigError(
                f"every and clients of a federation are at least 1; got every={self.every}, clients={self.clients}"
            )
        if not 0 <= self.nice <= 19:
            raise ConfigError(f"nice is from 0 to 19; got {self.nice}")
        for kind in ("client", "loss", "attack", "inputs"):
            text = getattr(self, kind)
            if text is not None:
                registry.build(kind, text, trust_code=True)  # whoever writes this runs the program that it stands in

    def samples(self, number: int) -> bool:
        """Whether a round, from 1, is audited."""
        return (number - 1) % self.every == 0

    def drawn(self, number: int, clients: Sequence[str]) -> tuple[str, ...]:
        """Which clients of a round are audited: all, or so many by a draw that the seed and the round fix."""
        if self.clients is None or len(clients) <= self.clients:
            return tuple(clients)
        order = sorted(clients, key=lambda each: hashlib.sha256(f"{self.seed}\0{number}\0{each}".encode()).digest())
        return tuple(each for each in clients if each in set(order[: self.clients]))

    @property
    def folder(self) -> Path:
        """Where its updates are kept."""
        return folder_of(self.run, self.ledger, self.ledger_folder)

    def to_dict(self) -> dict[str, Any]:
        """The settings as JSON holds them."""
        plain = asdict(self)
        folder = None if self.ledger_folder is None else str(self.ledger_folder.expanduser().absolute())
        ledger = self.ledger if "://" in self.ledger else str(Path(self.ledger).expanduser().absolute())
        return plain | {"ledger": ledger, "ledger_folder": folder}


def folder_of(run: str, ledger: str, ledger_folder: Path | None = None) -> Path:
    """The folder in which the updates of a run are kept.

    >>> folder_of("demo", "audits/ledger.db").relative_to(Path.cwd()).as_posix()
    'audits/updates/demo'
    """
    file = Path(ledger.removeprefix("sqlite:///")) if "://" not in ledger or ledger.startswith("sqlite:///") else None
    root = ledger_folder or (file.parent if file is not None else Path("runs"))
    return root.expanduser().absolute() / "updates" / run


def read_federation(folder: Path) -> Federation:
    """The settings of the federation whose updates a folder keeps.

    Raises:
        InputError: it keeps none, or another version wrote it.
    """
    content = _read_json(folder / _SETTINGS, f"the run {folder.name!r} keeps no updates of a federation")
    known = {each.name for each in fields(Federation)}
    try:
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in content.items()
        }
        values |= {"threat": ThreatModel(**values["threat"])}
        values |= {"ledger_folder": None if values["ledger_folder"] is None else Path(values["ledger_folder"])}
        return Federation(**{name: value for name, value in values.items() if name in known})
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / _SETTINGS} was written by another version: {error}; begin a new run") from error


@dataclass(frozen=True)
class Capture:
    """What one client was sent and sent back in one round, as files.

    Args:
        folder: its own.
        round: from 1.
        client: its name, or the keyed hash of it.
        number: how many were kept before of this client in this round, from 0.
        weights: what it was sent.
        update: what it sent back, as the change of the weights where it sent new ones; its file says which it is.
        num_examples: how many examples it says it has; `None` where it does not.
        client_text: how it trained, by what was known in the round; `None` for what the update's file says.
    """

    folder: Path
    round: int
    client: str
    number: int
    weights: Path
    update: Path
    num_examples: int | None = None
    client_text: str | None = None

    @property
    def name(self) -> str:
        """What tables call it."""
        return f"round {self.round}, client {self.client}" + (f", again {self.number}" if self.number else "")


class Inbox:
    """Keeps the updates of a federation, and sees to it that a process audits them.

    Nothing here raises once it is made: what cannot be kept is logged, and the round goes on.

    Args:
        federation: what is kept, and how it is audited.

    Raises:
        StorageError: the folder cannot be made.
    """

    def __init__(self, federation: Federation) -> None:
        self.federation = federation
        self.folder = federation.folder
        make_private(self.folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._sent: tuple[Arrays, Path] | None = None
        try:
            (self.folder / _OVER).unlink(missing_ok=True)
            settings = federation.to_dict() | {"owner": new_owner()}
            _write(self.folder / _SETTINGS, json.dumps(settings, indent=1).encode())
            self._key = _key(self.folder / _KEY) if federation.anonymous else b""
        except OSError as error:
            raise StorageError(f"cannot write to {self.folder}: {error.strerror or error}") from error

    def keep(
        self,
        number: int,
        client: str,
        before: Arrays,
        after: Arrays | None = None,
        update: Arrays | None = None,
        *,
        metadata: Metadata = Metadata(),
        client_text: str | None = None,
        findings: Sequence[Finding] = (),
    ) -> Path | None:
        """Keep what one client was sent and sent back, as far as the round is one that is audited.

        Args:
            number: of the round, from 1.
            client: its name; it need not be a file's.
            before: the weights that it was sent. The same value for all clients of a round is written once.
            after: its weights after training; or
            update: the difference or gradient, which `metadata.kind` tells.
            metadata: how it came to be, as far as that is known.
            client_text: the same as a client's text, where metadata have no words for it.
            findings: what else is known of it, for the report: what protects it, and what not.

        Returns:
            The folder; `None` where nothing was kept, for whatever reason, which is logged.
        """
        try:
            if not self.federation.samples(number):
                return None
            kept = self._kept(number, client, before, after, update, metadata, client_text, findings)
        except Exception as error:  # the last door: no round may fail because it is audited
            _LOG.warning("round %s, client %s: not kept for the audit: %s", number, client, _told(error))
            return None
        self.watch()
        return kept

    def watch(self) -> None:
        """Begin the auditing process if there is none, or if it died; it is waited for nowhere."""
        if not self.federation.watched or (self._process is not None and self._process.poll() is None):
            return
        try:
            if self._process is not None:
                _LOG.warning("the auditing process ended with %s and is begun again", self._process.returncode)
            self._process = _begun(self.federation, self.folder)
        except (OSError, ValueError) as error:
            _LOG.warning("no auditing process could be begun: %s; `inversefed watch %s` audits what was kept", error,
                         self.federation.run)  # fmt: skip

    def close(self) -> None:
        """Say that the federation is over: the auditing process ends when nothing is left to audit."""
        try:
            _write(self.folder / _OVER, b"")
        except OSError as error:
            _LOG.warning("cannot say that the run %s is over: %s", self.federation.run, error)

    def __enter__(self) -> "Inbox":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def called(self, client: str) -> str:
        """The name of a client in the ledger: its own, or a keyed hash of it, 16 hexadecimal digits."""
        return hmac.new(self._key, client.encode(), "sha256").hexdigest()[:16] if self._key else client

    def _kept(
        self,
        number: int,
        client: str,
        before: Arrays,
        after: Arrays | None,
        update: Arrays | None,
        metadata: Metadata,
        client_text: str | None,
        findings: Sequence[Finding],
    ) -> Path:
        if (after is None) == (update is None):
            raise ConfigError("of the weights after training and the update exactly one is kept")
        name, weights = self.called(client), self._weights(before)
        change = None if after is None else _change(before, after)
        content = change if change is not None else after if after is not None else update
        assert content is not None
        home = self.folder / f"round-{number:04d}"
        staging = home / f".{secrets.token_hex(8)}"
        make_private(staging)
        try:
            tensors, suffix = _named(content)
            if after is not None:
                metadata = metadata.overridden(Metadata(kind="new_weights" if change is None else "weight_delta"))
            file = _private(write_tensors(staging / f"update{suffix}", tensors, metadata.given()))
            if findings:
                _private(write_notes(file, findings))
            said = {
                "round": number, "client": name, "weights": weights.name, "update": file.name,
                "num_examples": metadata.num_examples, "client_text": client_text,
            }  # fmt: skip
            return _placed(staging, home / _file_name(name), said)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _weights(self, before: Arrays) -> Path:
        """The file of what was sent, written once for all who were sent it."""
        if self._sent is None or self._sent[0] is not before:
            tensors, suffix = _named(before)
            file = self.folder / "weights" / f"{hash_of_tensors(tensors)}{suffix}"
            if not file.exists():
                make_private(file.parent)
                partial = file.with_name(f".{secrets.token_hex(8)}{suffix}")
                _private(write_tensors(partial, tensors, {})).replace(file)
            self._sent = (before, file)
        return self._sent[1]


def captures(folder: Path) -> tuple[Capture, ...]:
    """All that is kept of a run, in the order of rounds and names."""
    return tuple(_capture(file) for file in sorted(folder.glob(f"round-*/[!.]*/{_CAPTURE}")))


def is_over(folder: Path) -> bool:
    """Whether the federation has said that it is over, or its process is gone."""
    if (folder / _OVER).exists():
        return True
    owner = _read_json(folder / _SETTINGS, "its settings are gone").get("owner")
    return isinstance(owner, str) and is_dead(owner)


def remove_kept(folder: Path) -> None:
    """Remove what is kept of a run; a folder that keeps no updates of a federation is left alone.

    Raises:
        StorageError: it may not be removed.
    """
    if not (folder / _SETTINGS).is_file():
        return
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise StorageError(f"cannot remove the updates in {folder}: {error.strerror or error}") from error


def lock_of(folder: Path) -> Path:
    """The file that the auditing process of a run holds locked."""
    return folder / _LOCK


def _capture(file: Path) -> Capture:
    told = _read_json(file, "it is no captured update")
    folder, root = file.parent, file.parent.parent.parent
    given = {name: told[name] for name in ("round", "client", "number", "num_examples", "client_text")}
    return Capture(folder, weights=root / "weights" / told["weights"], update=folder / told["update"], **given)


def _placed(staging: Path, target: Path, said: Mapping[str, Any]) -> Path:
    """Move what was written to its place, or to the next free one: what is there already stays."""
    number = 0
    while True:
        _write(staging / _CAPTURE, json.dumps({**said, "number": number}).encode())
        place = target if not number else target.with_name(f"{target.name}.again-{number}")
        try:
            staging.rename(place)
        except OSError:
            if not place.is_dir():
                raise
            number += 1
        else:
            return place


def _named(arrays: Arrays) -> tuple[dict[str, Tensor], str]:
    """Tensors by name with the format that keeps them: those without names are told by their place."""
    if isinstance(arrays, Mapping) and list(arrays) != [str(place) for place in range(len(arrays))]:
        return {name: torch.as_tensor(each) for name, each in arrays.items()}, ".safetensors"
    values = arrays.values() if isinstance(arrays, Mapping) else arrays
    return {f"arr_{place}": torch.as_tensor(each) for place, each in enumerate(values)}, ".npz"


def _change(before: Arrays, after: Arrays) -> Arrays | None:
    """New weights less those that were sent; `None` where they are not of the same names and shapes.

    A search that compares whole weights sees little of a small change. Of two floats that are near each other the
    difference is a float itself, so that nothing is lost.
    """
    old, new = (_named(each)[0] for each in (before, after))
    if list(old) != list(new) or any(old[name].shape != new[name].shape for name in old):
        return None
    fine = {torch.float16: torch.float32, torch.bfloat16: torch.float32}
    wide = {name: (part.to(fine.get(part.dtype, part.dtype)), old[name]) for name, part in new.items()}
    changed = {name: part - start.to(part.dtype) for name, (part, start) in wide.items() if part.dtype != torch.bool}
    return changed if _named(after)[1] == ".safetensors" else list(changed.values())


def _file_name(client: str) -> str:
    """A client's name as one of a folder; where that changes it, a hash keeps it apart from others."""
    if _NAME.fullmatch(client):
        return client
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', client)[:40]}_{hashlib.sha256(client.encode()).hexdigest()[:12]}"


def _begun(federation: Federation, folder: Path) -> "subprocess.Popen[bytes]":
    """The auditing process: with the modules that this one finds, apart from its terminal, and of no concern to it."""
    command = [sys.executable, "-m", "inversefed", "watch", federation.run, "--quiet", "--trust-code",
               "--ledger-folder", str(folder.parent.parent), "--nice", str(federation.nice)]  # fmt: skip
    paths = [str(Path(each).absolute()) for each in sys.path if each and Path(each).exists()]
    # Flower installs an app's dependencies into an environment of the run, makes it the active one, and removes it
    # after the last round, while audits go on: packages that are elsewhere, too, are taken from there.
    active = Path(os.environ.get("VIRTUAL_ENV", sys.prefix)).resolve()
    passing = active != Path(sys.prefix).resolve()
    paths.sort(key=lambda each: passing and Path(each).resolve().is_relative_to(active))
    quiet = {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), *paths]), "OMP_NUM_THREADS": "1"}
    log = folder / _SAID
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    if log.exists() and log.stat().st_size > _MOST_SAID:
        flags |= os.O_TRUNC
    with os.fdopen(os.open(log, flags, 0o600), "ab") as said:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True,
            env={**os.environ, **quiet},
        )  # fmt: skip


def _key(file: Path) -> bytes:
    """The key under which clients are named, made once a run."""
    if not file.exists():
        _write(file, secrets.token_bytes(32))
    return file.read_bytes()


def _write(file: Path, content: bytes) -> None:
    """Replace a file at once, for its owner only; several may do so at the same time."""
    part = file.with_name(f".{file.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        out.write(content)
    part.replace(file)


def _private(file: Path) -> Path:
    file.chmod(0o600)
    return file


def _read_json(file: Path, otherwise: str) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{otherwise}: {file} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{otherwise}: {file} holds no JSON object")
    return content


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, InversefedError) else f"{type(error).__name__}: {error}"
