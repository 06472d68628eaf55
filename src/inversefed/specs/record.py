"""The record of an audit as JSON: its entries, their checks, and the hash that says that two are the same.

    record = hash, sources, versions + client, defenses, threat model, loss, mean, std, seed, attack, budget + SHA-256

The hash is over texts and numbers as they stand, so that it can be asked of a record none of whose pieces is built.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from inversefed.errors import ConfigError, InputError, unknown_name
from inversefed.fl.threat_model import ThreatModel
from inversefed.specs import registry
from inversefed.specs.sources import Records, Sources, names_code, read_fields
from inversefed.specs.written import UNNAMED

__all__ = ["ASKED", "Hashes", "hash_of_record", "read_hashes", "read_record", "require_same"]

_PIECES = ("client", "loss", "attack", "inputs")
_NONE = type(None)
_NUMBERS = {
    "seed": (int,),
    "time_budget": (float, int, _NONE),
    "max_iterations": (int, _NONE),
    "nulls": (int, _NONE),
    "rehearsals": (int, _NONE),
    "rehearsal_time": (float, int, _NONE),
    "choose": (bool,),
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
        candidates: records that are asked for, with their labels.
        candidates_out: records that are known to be out.
    """

    network: str | None = None
    images: str | None = None
    labels: str | None = None
    update: str | None = None
    others: str | None = None
    candidates: str | None = None
    candidates_out: str | None = None


ASKED = ("candidates", "candidates_out")
"""Hashes that are left out of a record where no records are asked for; an audit that was recorded without may ask."""


def hash_of_record(record: Mapping[str, Any]) -> str:
    """The hash of a record by its texts and numbers, which need not be built for that."""
    silent = {"hash", "sources", "records", "versions", *_FACTS}
    if (record.get("sha256") or {}).get("update") is not None:
        silent.add("client")  # the update's own hash holds the client that is believed in
    payload = {name: value for name, value in record.items() if name not in silent}
    text = json.dumps(payload, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(_WHOLE.sub(r"\1", text).encode()).hexdigest()


_WHOLE = re.compile(r"(?<![\w.])(\d+)\.0(?![\w.])")
"""A whole number written as a float: `lr=1.0` and `lr=1` are the same."""


def read_record(record: Mapping[str, Any], trust_code: bool = False) -> dict[str, Any]:
    """The settings of an audit by a record of them, with the names that a scenario has for them.

    Args:
        record: as `Scenario.to_dict` has it, or the entry `scenario` of a report.
        trust_code: whether what it names as `pkg.mod:Name` may be imported, which runs that code.

    Raises:
        ConfigError: an unknown entry or name, one of the wrong type, or code that is not trusted.
        InputError: it was changed after its hash was made.
    """
    _check(record)
    sources = record.get("sources")
    named = None if sources is None else Sources(**read_fields(Sources, sources))
    if named is not None and names_code(named.network) and not trust_code:
        raise ConfigError(
            f"the scenario names code to run as its network, {named.network!r}; a data file may not: pass "
            "trust_code=True (--trust-code) if you trust it"
        )
    received = (record.get("sha256") or {}).get("update") is not None
    texts = {name: record[name] for name in _PIECES if name in record and not (received and name == "client")}
    if received and named is not None:
        texts["client"] = named.client
    constants = {name: record.get(name) for name in ("mean", "std")}
    return {
        "sources": named,
        "records": None if "records" not in record else Records(**read_fields(Records, record["records"])),
        "defenses": tuple(_built("defense", each, trust_code) for each in record.get("defenses", ())),
        "threat": ThreatModel(**record.get("threat_model", {})),
        "sha256": Hashes(**record.get("sha256", {})),
        "versions": dict(record.get("versions", {})),
        **{name: _built(name, text, trust_code) for name, text in texts.items()},
        **{name: None if each is None else tuple(map(float, each)) for name, each in constants.items()},
        **{name: record[name] for name in _NUMBERS if name in record},
    }


def read_hashes(record: Mapping[str, Any]) -> Hashes:
    """The hashes of a record, none of whose pieces is built.

    Raises:
        ConfigError: an unknown entry.
        InputError: the record was changed after it was written.
    """
    _check(record)
    return Hashes(**record.get("sha256", {}))


def require_same(here: Hashes, recorded: Hashes, then: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse what is not what was recorded.

    Args:
        here: of what was loaded.
        recorded: those of the record; the first that differs is told.
        then: versions and machine of the record.
        now: those of this process.

    Raises:
        InputError: another network, picture, label or update.
    """
    for each in fields(Hashes):
        found, expected = getattr(here, each.name), getattr(recorded, each.name)
        if found != expected and not (expected is None and each.name in ASKED):
            raise InputError(_differs(each.name, found, expected, then, now))


def _built(kind: str, text: Any, trust_code: bool) -> Any:
    if not isinstance(text, str):
        raise ConfigError(f"{kind} must be text, such as a piece's repr; got {text!r}")
    if UNNAMED in text:
        raise ConfigError(
            f"the {kind} of this audit was code of the program that made it, {text.split(UNNAMED)[0]}, and no text "
            "builds it; run inversefed.audit from that program"
        )
    return registry.build(kind, text, trust_code)


def _check(record: Mapping[str, Any]) -> None:
    """Refuse what is no record, or not the one that its hash was made of."""
    own = {
        *_PIECES,
        *_NUMBERS,
        "mean",
        "std",
        "defenses",
        "threat_model",
        "sha256",
        "sources",
        "records",
        "versions",
        "hash",
    }
    _check_names("entry of a scenario", record, own, _FACTS)
    _check_names("entry of threat_model", record.get("threat_model", {}), {each.name for each in fields(ThreatModel)})
    _check_names("entry of sha256", record.get("sha256", {}), {each.name for each in fields(Hashes)})
    for name in _NUMBERS.keys() & record.keys():
        if type(record[name]) not in _NUMBERS[name]:
            raise ConfigError(f"{name} of a scenario must be a number, got {record[name]!r}")
    if "hash" in record and record["hash"] != (found := hash_of_record(record)):
        raise InputError(
            f"the scenario says that its hash is {str(record['hash'])[:12]}.., and what it holds has another, "
            f"{found[:12]}..: it was changed after it was written; take the entry hash out to run it so"
        )


def _check_names(what: str, found: Any, own: set[str], beside: Iterable[str] = ()) -> None:
    if not isinstance(found, Mapping):
        raise ConfigError(f"{what}: a JSON object is expected, got {found!r}")
    for name in found.keys() - own - set(beside):
        raise unknown_name(what, name, own)


def _differs(name: str, here: str | None, recorded: str | None, then: Mapping[str, str], now: Mapping[str, str]) -> str:
    what = {"images": "pictures", "others": "public pictures", "candidates_out": "candidates that are out"}.get(
        name, name
    )
    shown = [f"SHA-256 {each[:12]}.." if each else "none" for each in (recorded, here)]
    other = [key for key in now if then.get(key, now[key]) != now[key]]
    changed = [f"{key} {then[key]} then and {now[key]} now" for key in other]
    return (
        f"the {what} of this audit: {shown[0]} recorded, and {shown[1]} here"
        + (f" ({', '.join(changed)})" if changed else "")
        + "; give the same ones, or run another audit with replace(scenario, sha256=Hashes())"
    )
