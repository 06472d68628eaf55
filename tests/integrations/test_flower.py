"""Flower's strategy and mod on plain records, without a server; skipped where Flower is not installed."""

import json
import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from inversefed.errors import ConfigError
from inversefed.experiments.ledger import Ledger
from inversefed.integrations.federated_audits import watch
from inversefed.integrations.federation import captures
from inversefed.integrations.flower_protections import protections
from inversefed.types import Batch
from inversefed.updates.finding_notes import read_notes
from inversefed.updates.metadata import Metadata
from inversefed.updates.update import read_update
from tests.integrations.federated_network import build

pytest.importorskip("flwr", reason="Flower is not installed; `make test-flower` runs this")

from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp.mod import LocalDpMod
from flwr.serverapp import Grid
from flwr.serverapp.strategy import DifferentialPrivacyServerSideFixedClipping, FedAvg
from flwr.supercore.task_identity import TaskIdentity

from inversefed.integrations.flower import AuditedStrategy, Policy, audit_mod

MEAN, STD, LR = 0.5, 0.25, 0.1


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who sends a message is known to Flower by the process it is sent from."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


class Nodes(Grid):
    """As much of a grid as a strategy asks for while it chooses clients."""

    def __init__(self, count: int) -> None:
        self.ids = [1000 + number for number in range(count)]

    def get_node_ids(self) -> list[int]:
        return self.ids

    def _none(self, *_: object, **__: object) -> Any:
        raise AssertionError("a strategy sends nothing by itself")

    set_run = run = get_nodes = create_message = push_messages = pull_messages = send_and_receive = _none


def pictures(number: int, count: int = 1) -> Batch:
    images = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(number))
    return Batch(images, torch.arange(count) % 4)


def trained(arrays: ArrayRecord, batch: Batch) -> dict[str, Tensor]:
    """One step of SGD on these pictures."""
    module = build()
    module.load_state_dict(arrays.to_torch_state_dict())
    loss = nn.functional.cross_entropy(module((batch.images - MEAN) / STD), batch.labels)
    gradients = torch.autograd.grad(loss, list(module.parameters()))
    named = zip(module.named_parameters(), gradients, strict=True)
    return {name: weight.detach() - LR * part for (name, weight), part in named}


def answer(message: Message, content: ArrayRecord | list, examples: int = 1) -> Message:
    arrays = content if isinstance(content, ArrayRecord) else ArrayRecord(content)
    metrics = MetricRecord({"num-examples": examples, "train_loss": 1.0})
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


def same(message: Message) -> Message:
    """The reply of clients who all have the same picture."""
    return answer(message, ArrayRecord(trained(message.content["arrays"], pictures(0))))


def strategy(tmp_path: Path, inner: Any = None, **settings: Any) -> AuditedStrategy:
    given = {"network": build, "mean": MEAN, "std": STD, "image_shape": (3, 8, 8), "attack": "linear", "nulls": 0}
    own = FedAvg() if inner is None else inner
    return AuditedStrategy(own, run="demo", ledger=str(tmp_path / "ledger.db"), watched=False, **{**given, **settings})


def a_round(
    audited: AuditedStrategy,
    number: int,
    nodes: Nodes,
    reply: Callable[[Message], Message],
    wrapped: Callable[[Iterable[Message]], Iterable[Message]] = list,
) -> ArrayRecord:
    arrays = ArrayRecord(build().state_dict())
    messages = list(audited.configure_train(number, arrays, ConfigRecord({"lr": LR}), nodes))
    result, _ = audited.aggregate_train(number, wrapped([reply(each) for each in messages]))
    return result


def test_what_clients_send_is_kept_and_the_wrapped_strategy_sees_it_unchanged(tmp_path: Path) -> None:
    audited, nodes = strategy(tmp_path), Nodes(3)

    def reply(message: Message) -> Message:
        node = message.metadata.dst_node_id
        if node == 1001:
            return Message(Error(0, "no time"), reply_to=message)
        return answer(message, ArrayRecord(trained(message.content["arrays"], pictures(node))))

    result = a_round(audited, 1, nodes, reply, wrapped=iter)  # replies that can be looked at once
    assert audited.fraction_train == 1.0  # what the wrapped one has
    expected = [trained(ArrayRecord(build().state_dict()), pictures(node)) for node in (1000, 1002)]
    mean = {name: (expected[0][name] + expected[1][name]) / 2 for name in expected[0]}
    assert all(torch.allclose(part, mean[name]) for name, part in result.to_torch_state_dict().items())

    audited.close()
    kept = captures(audited.inbox.folder)
    assert [each.client for each in kept] == ["1000", "1002"]
    told = read_update(kept[0].update).metadata
    assert told == Metadata(kind="weight_delta", learning_rate=LR, local_steps=1, num_examples=1)
    ledger = Ledger(str(tmp_path / "ledger.db"))
    standing = watch(audited.inbox.folder, ledger, trust_code=True)
    assert standing is not None and standing.counts["done"] == 2
    assert all(content["matching_error"] < 1e-5 for _, content in ledger.rows(ledger.run("demo")) if content)


def test_ten_clients_by_five_rounds_are_fifty_updates(tmp_path: Path) -> None:
    audited, nodes = strategy(tmp_path), Nodes(10)
    for number in range(1, 6):
        a_round(audited, number, nodes, same)
    audited.close()
    kept = captures(audited.inbox.folder)
    assert len({(each.round, each.client) for each in kept}) == len({each.folder for each in kept}) == 50


def test_arrays_of_a_numpy_client_are_named_by_the_state_dict(tmp_path: Path) -> None:
    audited = strategy(tmp_path)
    arrays = ArrayRecord([part.numpy() for part in build().state_dict().values()])
    messages = list(audited.configure_train(1, arrays, ConfigRecord({"lr": LR}), Nodes(2)))
    for each in messages:
        assert list(each.content["arrays"]) == ["0", "1"]
    named = ArrayRecord(build().state_dict())
    replies = [answer(each, [part.numpy() for part in trained(named, pictures(3)).values()]) for each in messages]
    audited.aggregate_train(1, replies)
    audited.close()
    ledger = Ledger(str(tmp_path / "ledger.db"))
    standing = watch(audited.inbox.folder, ledger, trust_code=True)
    assert standing is not None and standing.counts["done"] == 2


def test_a_failure_of_the_audit_reaches_no_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    audited = strategy(tmp_path)
    monkeypatch.setattr(audited.inbox, "keep", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(audited, "_hand_on", lambda *_: 1 / 0)
    assert a_round(audited, 1, Nodes(2), same) is not None
    assert "is not audited" in caplog.text
    audited.close()


def test_only_drawn_clients_of_sampled_rounds_are_kept(tmp_path: Path) -> None:
    audited, nodes = strategy(tmp_path, every=2, clients=3), Nodes(5)
    for number in range(1, 5):
        a_round(
            audited, number, nodes, lambda each: answer(each, ArrayRecord(trained(each.content["arrays"], pictures(0))))
        )
    audited.close()
    kept = captures(audited.inbox.folder)
    assert [each.round for each in kept] == [1, 1, 1, 3, 3, 3]


def test_central_differential_privacy_is_named_with_what_it_hides(tmp_path: Path) -> None:
    inner = DifferentialPrivacyServerSideFixedClipping(FedAvg(), 1.0, 0.5, 2)
    audited = strategy(tmp_path, inner)
    a_round(audited, 1, Nodes(2), same)
    audited.close()
    kept = captures(audited.inbox.folder)
    (note,) = read_notes(kept[0].update)
    assert "sees each update as the client sent it" in note.message and note.evidence["std_of_average"] == 0.25
    # The update is kept from before the server clips it.
    update = read_update(kept[0].update).tensors
    start = ArrayRecord(build().state_dict())
    expected = trained(start, pictures(0))
    assert all(torch.equal(update[name], expected[name] - build().state_dict()[name]) for name in expected)


def test_mods_are_named_with_what_they_hide() -> None:
    (local,) = protections(FedAvg(), [LocalDpMod(1.0, 1.0, 2.0, 1e-5)])
    assert local.level == "warning" and "does not hold as stated" in local.message
    assert local.evidence["std"] == pytest.approx((2 * torch.tensor(1.25e5).log()).sqrt().item() / 2)

    def secaggplus_mod() -> None: ...

    (summed,) = protections(None, [secaggplus_mod])
    assert "the sum over its clients" in summed.message
    assert protections(FedAvg(), [audit_mod(network=build)]) == ()


@pytest.mark.usefixtures("unchecked")
def test_a_network_that_no_other_process_finds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="imports the network by name"):
        strategy(tmp_path, network=lambda: build())
    with pytest.raises(ConfigError, match="settings of Federation"):
        strategy(tmp_path, evry=2)


def client(policy: Policy, batches: dict[int, Batch], **settings: Any) -> list[Message]:
    """The replies of a client with the mod, round by round."""
    given = {"image_shape": (3, 8, 8), "mean": MEAN, "std": STD, "attack": "linear"}
    rounds = iter(batches.values())
    now: dict[str, Batch] = {}
    mod = audit_mod(policy, network=build, truth=lambda _: now["batch"], **{**given, **settings})
    replies = []
    for number, batch in zip(batches, rounds, strict=True):
        now["batch"] = batch
        config = ConfigRecord({"lr": LR, "server-round": number, "batch-size": 16, "local-epochs": 1})
        content = RecordDict({"arrays": ArrayRecord(build().state_dict()), "config": config})
        message = Message(content, dst_node_id=1, message_type="train")
        train = lambda each, _: answer(  # noqa: E731
            each, ArrayRecord(trained(each.content["arrays"], now["batch"])), len(now["batch"].images)
        )
        replies.append(mod(message, Context(1, 1, {}, RecordDict(), {}), train))
    return replies


def test_a_client_withholds_exactly_the_rounds_that_leak(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """One example is found; twelve in four numbers a pixel are not."""
    batches = {1: pictures(1), 2: pictures(2, 12), 3: pictures(3), 4: pictures(4, 12)}
    with caplog.at_level(logging.INFO):
        replies = client(Policy(max_leakage=3.0, nulls=0, seconds=4.0), batches, reports=tmp_path, attack="best")
    assert [each.has_error() for each in replies] == [True, False, True, False]
    assert "withheld" in replies[0].error.reason and "limit is 3 dB" in replies[0].error.reason
    assert caplog.text.count("withheld") == 2 and caplog.text.count("passed") == 2
    report = json.loads((tmp_path / "round-0002" / "report.json").read_text())
    assert report["scenario"]["num_examples"] == 12


def test_a_strategy_goes_on_without_what_was_withheld(tmp_path: Path) -> None:
    audited, nodes = strategy(tmp_path), Nodes(2)

    def reply(message: Message) -> Message:
        node = message.metadata.dst_node_id
        if node == 1000:
            return Message(Error(6, "round 1: withheld: the verdict decides"), reply_to=message)
        return answer(message, ArrayRecord(trained(message.content["arrays"], pictures(node))))

    result = a_round(audited, 1, nodes, reply)
    alone = trained(ArrayRecord(build().state_dict()), pictures(1001))
    assert all(torch.equal(part, alone[name]) for name, part in result.to_torch_state_dict().items())
    audited.close()


def test_noise_of_the_stated_size_is_added_to_what_leaks() -> None:
    (reply,) = client(Policy(max_leakage=3.0, above="noise", std=0.5, nulls=0), {1: pictures(1)})
    plain = trained(ArrayRecord(build().state_dict()), pictures(1))
    noise = torch.cat([
        (part - plain[name]).flatten() for name, part in reply.content["arrays"].to_torch_state_dict().items()
    ])  # fmt: skip
    assert 0.4 < float(noise.std()) < 0.6 and not reply.has_error()


def test_an_audit_that_fails_is_decided_by_the_policy(caplog: pytest.LogCaptureFixture) -> None:
    wrong = Metadata(learning_rate=1e-6, local_steps=1)  # the update is far too large for it
    for policy, withheld in ((Policy(), False), (Policy(unknown="withhold"), True)):
        (reply,) = client(policy, {1: pictures(1)}, stated=wrong)
        assert reply.has_error() == withheld
    assert "the audit failed" in caplog.text


@pytest.mark.usefixtures("unchecked")
def test_a_policy_that_cannot_be_is_refused() -> None:
    for wrong in ({"above": "hold"}, {"above": "noise"}, {"max_leakage": float("nan")}, {"seconds": 0}):
        with pytest.raises(ConfigError):
            replace(Policy(), **wrong)
