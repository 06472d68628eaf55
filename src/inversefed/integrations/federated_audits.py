"""From kept updates to jobs of the ledger, and the process that carries them out while the federation runs.

    captures -> scenarios -> jobs -> audits, until the federation is over and none is left

Round and client are part of a job: they fix the audit's seed, so that two clients who send the same update, or one that
sends the same twice, are two jobs. The process runs at the lowest priority, one at a time for each run, and may be
killed at any moment: the next one goes on.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from inversefed.attacks.shown import shown as shown_attack
from inversefed.errors import ConfigError, InputError, InversefedError
from inversefed.experiments.ledger import Ledger, NewJob, Run, Standing, new_owner
from inversefed.experiments.planning import predicted_bytes
from inversefed.experiments.work import Memory, remove_stale, run_job, write_private
from inversefed.fl.clients import FedSGD
from inversefed.integrations.federation import Capture, Federation, captures, is_over, lock_of, read_federation
from inversefed.scenario import Scenario
from inversefed.specs import registry
from inversefed.specs.short import short
from inversefed.specs.sources import Sources, absolute

__all__ = ["job_of_capture", "scenario_of", "watch", "write_captured"]

_LOOK = 0.5
"""Seconds between two looks for new updates."""
_WRITTEN = "job"
"""The file in a capture's folder that says that the ledger has it."""


def scenario_of(federation: Federation, capture: Capture) -> Scenario:
    """The audit of one kept update; nothing is loaded.

    Raises:
        ConfigError: a piece that no name leads to.
    """
    client = capture.client_text or federation.client
    sources = Sources(
        network=federation.network, weights=str(capture.weights), num_classes=federation.num_classes,
        image_shape=federation.image_shape, train_mode=federation.train_mode, client=client or "FedSGD",
        update=capture.update,
    )  # fmt: skip
    return Scenario(
        absolute(sources),
        client=FedSGD() if client is None else registry.build("client", client, trust_code=True),
        threat=federation.threat,
        loss=registry.build("loss", federation.loss, trust_code=True),
        mean=_constants(federation.mean),
        std=_constants(federation.std),
        inputs=None if federation.inputs is None else registry.build("inputs", federation.inputs, trust_code=True),
        seed=_seed(federation, capture),
        attack=registry.build("attack", federation.attack, trust_code=True),
        time_budget=federation.time_budget,
        max_iterations=federation.max_iterations,
        nulls=federation.nulls,
    )


def job_of_capture(federation: Federation, capture: Capture) -> NewJob:
    """One kept update as the ledger writes it.

    What cannot be loaded, because it does not fit the network or because a file is damaged, is a job all the same: it
    fails when it is carried out, and says why.
    """
    scenario = scenario_of(federation, capture)
    try:
        scenario = scenario.loaded()
        found = scenario.observe()
        hash, client, count = scenario.hash(), short(found.client), found.num_examples
        memory = predicted_bytes(scenario)
    except InversefedError:
        text = json.dumps(scenario.to_dict(), sort_keys=True)
        hash, client = hashlib.sha256(text.encode()).hexdigest(), short(scenario.client)
        count, memory = capture.num_examples or 0, 0
    return NewJob(
        hash=hash,
        scenario=json.dumps(scenario.to_dict()),
        network=federation.network.rpartition(":")[2],
        client=client,
        defenses="none",
        attack=shown_attack(scenario.attack),
        images=capture.name,
        num_images=count,
        seed=scenario.seed,
        bytes=memory,
    )


def write_captured(ledger: Ledger, run: Run, federation: Federation, kept: Iterable[Capture]) -> int:
    """Write jobs for those kept updates that the ledger does not have yet; how many."""
    number = 0
    for capture in kept:
        mark = capture.folder / _WRITTEN
        if not mark.exists():
            job = job_of_capture(federation, capture)
            ledger.plan_jobs(run, [job])
            write_private(mark, job.hash.encode())
            number += 1
    return number


def watch(
    folder: Path, ledger: Ledger, trust_code: bool = False, on_look: Callable[[Standing], object] = lambda _: None
) -> Standing | None:
    """Audit what is kept of a run, as it comes, until its federation is over and nothing is left.

    Args:
        folder: where its updates are kept.
        ledger: where results go.
        trust_code: whether a network or a piece that the run names as `pkg.mod:Name` may be imported, which runs it.
        on_look: told after each audit how far the run is.

    Returns:
        How far it came; `None` where another process audits this run already.

    Raises:
        InputError: nothing is kept there.
        ConfigError: it names code, and that is not trusted.
        StorageError: results cannot be written; what was finished is kept.
    """
    federation = read_federation(folder)
    _require_trusted(federation, trust_code)
    with _alone(folder) as first:
        if not first:
            return None
        run, owner, shared = _run(ledger, federation), new_owner(), Memory(trust_code=trust_code)
        ledger.release_dead()
        while True:
            ended = is_over(folder)  # asked before the look: what was kept until then is seen in it
            write_captured(ledger, run, federation, captures(folder))
            job = ledger.claim(run, owner)
            if job is not None:
                run_job(ledger, job, shared)
                on_look(ledger.standing(run))
            elif ended and not ledger.standing(run).open:
                remove_stale(ledger)
                return ledger.standing(run)
            else:
                time.sleep(_LOOK)


def _run(ledger: Ledger, federation: Federation) -> Run:
    """The run of the ledger, made where it is not there; it is planned at any time, for no plan says what comes."""
    if federation.run not in [each.name for each in ledger.runs()]:
        with contextlib.suppress(InputError):  # another process was first
            ledger.plan_jobs(ledger.add_run(federation.run, json.dumps({"federation": federation.to_dict()})), [])
    return ledger.run(federation.run)


def _require_trusted(federation: Federation, trust_code: bool) -> None:
    texts = (federation.network, federation.attack, federation.loss, federation.client or "", federation.inputs or "")
    code = [each for text in texts for each in registry.named_code(text)]
    if code and not trust_code:
        raise ConfigError(
            f"the run {federation.run!r} names code to run, {code[0]}; if you trust it, say so: --trust-code"
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[bool]:
    """Whether this is the only process that audits a run; it stays so until the end."""
    with os.fdopen(os.open(lock_of(folder), os.O_RDWR | os.O_CREAT, 0o600), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True


def _constants(value: tuple[float, ...] | float | None) -> tuple[float, ...] | None:
    return value if value is None or isinstance(value, tuple) else (float(value),)


def _seed(federation: Federation, capture: Capture) -> int:
    """31 bits that run, round and client fix."""
    named = json.dumps([federation.seed, federation.run, capture.round, capture.client, capture.number])
    return int.from_bytes(hashlib.sha256(named.encode()).digest()[:4], "big") >> 1
