"""The state of a search in a file: a killed search ends with the same bits, and a file is whole, old or refused."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Generator

from inversefed import (
    Batch,
    Budget,
    FedSGD,
    GradientInversion,
    Observation,
    Reconstruction,
    ThreatModel,
    freeze,
    observe,
    recipes,
)
from inversefed.attacks.labels import JointLabels
from inversefed.attacks.pieces import optimizers
from inversefed.attacks.search import checkpoint, restarts
from inversefed.errors import InputError
from inversefed.types import Status, Step
from inversefed.zoo import networks

ITERATIONS, RESTARTS = 12, 2
SHAPE = (3, 32, 32)


class _Killed(BaseException):
    """The end of the process: nothing that runs after it may write."""


@pytest.fixture(scope="module")
def observation() -> Observation:
    network = freeze(networks.build("LeNetZhu", seed=0).eval(), SHAPE, mean=0.5, std=0.25)
    batch = Batch(torch.rand((1, *SHAPE), generator=Generator().manual_seed(1)), torch.tensor([3]))
    update = FedSGD()(network, batch.images, batch.labels)
    return observe(network, FedSGD(), update, batch, ThreatModel())


def search(name: str) -> GradientInversion:
    """Images and labels together, so that a state has both."""
    optimizer = getattr(optimizers, name)()
    if isinstance(optimizer, optimizers.LBFGS):  # as in DLG it takes twenty evaluations a step
        optimizer = replace(optimizer, inner=2)
    return replace(recipes.geiping(RESTARTS, ITERATIONS), optimizer=optimizer, labels=JointLabels())


def ran(attack: GradientInversion, observation: Observation, **budget: Any) -> Reconstruction:
    return attack(observation, Generator().manual_seed(0), Budget(**budget))


def same(one: Reconstruction, other: Reconstruction) -> bool:
    """Bit by bit: images, labels, matching error, the restart that was chosen, and all that each restart came to."""
    pairs = list(zip(one.candidates, other.candidates, strict=True))
    return (
        torch.equal(one.images, other.images)
        and torch.equal(one.labels, other.labels)
        and one.loss == other.loss
        and one.status is other.status
        and chosen(one) == chosen(other)
        and all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in pairs)
        and all((a.loss, a.history, a.status) == (b.loss, b.history, b.status) for a, b in pairs)
    )


def chosen(found: Reconstruction) -> int:
    return next(each.restart for each in found.candidates if torch.equal(each.images, found.images))


@pytest.mark.parametrize("name", optimizers.__all__)
def test_a_search_killed_again_and_again_ends_with_the_same_bits(
    name: str, observation: Observation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)  # a state after each step
    attack, path, steps = search(name), tmp_path / "state", []
    whole = ran(attack, observation, on_step=lambda step: steps.append((step.restart, step.iteration)))
    assert len(steps) == RESTARTS * ITERATIONS and whole.loss < whole.candidates[0].history[0]

    taken: list[tuple[int, int]] = []
    for after in (1, 4, 6, 1, 8):  # into the first restart, to its last step, and through the second one
        due = len(taken) + after

        def look(step: Step, due: int = due) -> None:
            taken.append((step.restart, step.iteration))
            if len(taken) == due:
                raise _Killed

        with pytest.raises(_Killed):
            ran(attack, observation, on_step=look, checkpoint=path, resume=path if path.exists() else None)
    rest = ran(attack, observation, on_step=lambda step: taken.append((step.restart, step.iteration)), resume=path)
    assert taken == steps and same(rest, whole)


@pytest.mark.parametrize("name", optimizers.__all__)
def test_a_search_that_had_ended_is_there_again_without_a_step(
    name: str, observation: Observation, tmp_path: Path
) -> None:
    attack, path = search(name), tmp_path / "state"
    whole = ran(attack, observation, checkpoint=path)

    def none(step: Step) -> None:
        raise AssertionError(f"a step was taken: {step}")

    assert same(ran(attack, observation, on_step=none, resume=path), whole)


def test_a_search_killed_before_its_first_step_begins_anew(observation: Observation, tmp_path: Path) -> None:
    attack, path, evaluated = search("Adam"), tmp_path / "state", 0

    class Kills:
        """A prior that adds nothing, and once ends the process."""

        def __repr__(self) -> str:
            return "Kills()"

        def __call__(self, images: torch.Tensor, _: Observation) -> torch.Tensor:
            nonlocal evaluated
            evaluated += 1
            if evaluated == 1:
                raise _Killed
            return images.sum() * 0

    shaky = replace(attack, priors=(Kills(),))
    with pytest.raises(_Killed):
        ran(shaky, observation, checkpoint=path)
    assert same(ran(shaky, observation, resume=path), ran(shaky, observation))


# The file


CALLS = [(os, "write"), (os, "fsync"), (Path, "replace")]
STATE = {"images": torch.arange(3.0), "rung": 1}


def test_a_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "state"
    checkpoint.write(path, STATE, "mark")
    found = checkpoint.read(path, "mark")
    assert found.keys() == STATE.keys() and torch.equal(found["images"], STATE["images"])
    assert list(tmp_path.iterdir()) == [path] and path.stat().st_mode & 0o077 == 0
    with pytest.raises(InputError, match="of another search"):
        checkpoint.read(path, "other")


def test_a_file_that_is_torn_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    checkpoint.write(path, STATE, "mark")
    content = path.read_bytes()
    size, ending = len(content), 22  # bytes of an archive's last record, part of which says what is known otherwise
    torn = [content[:length] for length in range(0, size, 11)]  # 0 bytes first
    torn += [content[:length] + bytes(size - length) for length in range(0, size - ending, 11)]  # unwritten blocks
    for each in (*torn, b"no archive at all", bytes(8) + content[8:]):
        path.write_bytes(each)
        with pytest.raises(InputError, match="no checkpoint of inversefed, or is damaged"):
            checkpoint.read(path, "mark")


def test_no_bit_can_change_unseen(tmp_path: Path) -> None:
    path, seen = tmp_path / "state", 0
    checkpoint.write(path, STATE, "mark")
    content = path.read_bytes()
    for place in range(0, len(content), 5):
        path.write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1 :])
        try:
            found = checkpoint.read(path, "mark")
            assert torch.equal(found["images"], STATE["images"]) and found["rung"] == STATE["rung"]
        except InputError:
            seen += 1
    assert seen > 20


@pytest.mark.parametrize("content", [[1, 2], {"format": 0, "fingerprint": "mark", "state": {}}, {"format": 1}])
def test_what_torch_can_load_and_is_no_state_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "state")
    with pytest.raises(InputError, match="no checkpoint of this version"):
        checkpoint.read(tmp_path / "state", "mark")


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", CALLS, ids=["write", "fsync", "replace"])
def test_a_full_disk_is_told_and_leaves_the_older_state(
    call: tuple[object, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    checkpoint.write(path, STATE, "mark")
    before = path.read_bytes()
    monkeypatch.setattr(*call, full)
    with pytest.raises(InputError, match=r"cannot write the checkpoint .*No space left on device"):
        checkpoint.write(path, {"images": torch.zeros(10_000)}, "mark")
    monkeypatch.undo()
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", CALLS, ids=["write", "fsync", "replace"])
def test_a_process_killed_while_it_writes_leaves_the_older_state(
    call: tuple[object, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, newer = tmp_path / "state", {"images": torch.zeros(4), "rung": 2}
    checkpoint.write(path, STATE, "mark")

    def dies(*_: object) -> None:
        raise _Killed

    monkeypatch.setattr(*call, dies)
    with pytest.raises(_Killed):
        checkpoint.write(path, newer, "mark")
    monkeypatch.undo()
    assert checkpoint.read(path, "mark")["rung"] == 1
    checkpoint.write(path, newer, "mark")
    assert checkpoint.read(path, "mark")["rung"] == 2 and list(tmp_path.iterdir()) == [path]


def test_a_state_is_on_the_disk_before_it_takes_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    fsync, swap, folder = os.fsync, Path.replace, tmp_path.stat().st_ino

    def synced(descriptor: int) -> None:
        order.append("folder" if os.fstat(descriptor).st_ino == folder else "file")
        fsync(descriptor)

    def named(source: Path, target: Path) -> Path:
        order.append("name")
        return swap(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", named)
    checkpoint.write(tmp_path / "state", STATE, "mark")
    assert order == ["file", "name", "folder"]


def test_a_disk_that_is_full_for_a_while_costs_no_step_and_is_not_asked_at_each(
    observation: Observation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attack, path, asked, write = search("Adam"), tmp_path / "state", 0, checkpoint.write
    monkeypatch.setattr(restarts, "_SECONDS_BETWEEN_CHECKPOINTS", -1.0)
    refuses = {3}

    def sometimes(*args: Any) -> None:
        nonlocal asked
        asked += 1
        if asked in refuses:
            raise InputError("cannot write the checkpoint: No space left on device")
        write(*args)

    monkeypatch.setattr(checkpoint, "write", sometimes)
    found = ran(attack, observation, checkpoint=path)
    assert found.status is Status.FINISHED and not [each for each in found.findings if "checkpoint" in each.code]
    assert same(ran(attack, observation, resume=path), found)

    monkeypatch.setattr(restarts, "_SECONDS_BETWEEN_CHECKPOINTS", 3600.0)
    asked, refuses = 0, set(range(2, 100))
    found = ran(attack, observation, checkpoint=path)
    assert asked == 2 and [each.code for each in found.findings].count("checkpoint-failed") == 1
