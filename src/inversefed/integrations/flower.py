"""Flower: a strategy that has its clients' updates audited, and a mod by which a client audits its own.

    strategy = AuditedStrategy(FedAvg(), network=Net, mean=0.5, std=0.5)        on the server
    @app.train(mods=[audit_mod(Policy(), network=Net, mean=0.5, std=0.5)])         on a client

The strategy decides nothing otherwise than the one it wraps: it writes down what each client was sent and sent back,
and another process audits that (see `federation`). Clients of Flower send new weights; arrays of a `NumPyClient` have
no names, and are taken in the order of the network's state dict. Run with Flower 1.42.
"""

import atexit
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from inversefed.errors import ConfigError
from inversefed.experiments.ledger import shown_url
from inversefed.integrations.federation import Federation, Inbox
from inversefed.integrations.flower_protections import protections
from inversefed.integrations.self_audit import Policy, SelfAudit, importable
from inversefed.integrations.training_settings import client_text, metadata_of
from inversefed.updates.metadata import Metadata

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord
    from flwr.serverapp import Grid
    from flwr.serverapp.strategy import Result, Strategy
except ModuleNotFoundError as missing:
    raise ConfigError("this needs Flower, which is not installed: pip install 'inversefed[flower]'") from missing

__all__ = ["AuditedStrategy", "Policy", "audit_mod"]

_LOG = logging.getLogger(__name__)
_WAITING = 256
"""Updates that wait to be written; where more come, they are not kept, and that is logged."""
_WITHHELD = 6
"""What Flower calls `MOD_FAILED_PRECONDITION`."""
_EXAMPLES = "num-examples"


class AuditedStrategy(Strategy):  # type: ignore[misc]
    """A strategy whose clients' updates are kept and audited in another process; all else is the wrapped one's.

    Args:
        strategy: the strategy that decides.
        network: the network's factory, such as the class `Net` of the app, or its name (`pkg.mod:factory`, or one of
            `inversefed list networks`).
        run: the run's name in the ledger; by default `flower-` with date and time.
        run_config: `context.run_config`: where the app has batch size, epochs and learning rate, if not in
            `train_config`.
        stated: what is known of the training that neither says, such as `Metadata(momentum=0.9)`.
        mods: the mods that clients run, outermost first, for what the report says of them.
        settings: those of `Federation`: `mean`, `std`, `image_shape`, `every`, `time_budget`, `ledger`, ..

    Raises:
        ConfigError: a setting that cannot be, or a network that no other process could import.
        StorageError: the folder cannot be made.
    """

    def __init__(
        self,
        strategy: Strategy,
        *,
        network: Callable[[], Any] | str,
        run: str | None = None,
        run_config: Mapping[str, Any] | None = None,
        stated: Metadata = Metadata(),
        mods: Sequence[object] = (),
        **settings: Any,
    ) -> None:
        self.strategy = strategy
        name = f"flower-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}" if run is None else run
        try:
            self.federation = Federation(name, importable(network), **settings)
        except TypeError as error:
            raise ConfigError(f"AuditedStrategy takes the settings of Federation; {error}") from error
        self.inbox = Inbox(self.federation)
        self._run_config, self._stated = dict(run_config or {}), stated
        self._findings = protections(strategy, mods)
        self._sent: dict[int, dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]]] = {}
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inversefed")
        self._waiting: list[Future[None]] = []
        self._last: tuple[Mapping[str, Any] | None, dict[str, Any]] = (None, {})
        self._closed = False
        atexit.register(self.close)

    def __getattr__(self, name: str) -> Any:
        """Whatever else the wrapped strategy has."""
        if name == "strategy":  # while a copy is made
            raise AttributeError(name)
        return getattr(self.strategy, name)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The wrapped strategy's messages; what each client is sent is remembered until it answers."""
        messages = list(self.strategy.configure_train(server_round, arrays, config, grid))
        if self.federation.samples(server_round):
            try:
                self._sent = {server_round: _sent(messages)}
            except Exception as error:  # the last door: no round may fail because it is audited
                _LOG.warning("round %s is not audited: %s: %s", server_round, type(error).__name__, error)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """What the wrapped strategy makes of the same replies; they are written down aside."""
        replies = list(replies)
        sent = self._sent.pop(server_round, {})
        if sent:
            try:
                self._hand_on(server_round, sent, replies)
            except Exception as error:  # the last door
                _LOG.warning("round %s is not audited: %s: %s", server_round, type(error).__name__, error)
        return self.strategy.aggregate_train(server_round, replies)  # type: ignore[no-any-return]

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """The wrapped strategy's."""
        return self.strategy.configure_evaluate(server_round, arrays, config, grid)  # type: ignore[no-any-return]

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """The wrapped strategy's."""
        return self.strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """The wrapped strategy's, and where the audits are."""
        self.strategy.summary()
        run, ledger = self.federation.run, self.federation.to_dict()["ledger"]
        _LOG.warning("updates are audited: inversefed results %s --ledger %s", run, shown_url(ledger))

    def start(self, *arguments: Any, **named: Any) -> Result:
        """The wrapped strategy's rounds; afterwards the audits are told that no more comes."""
        try:
            return type(self.strategy).start(self, *arguments, **named)
        finally:
            self.close()

    def close(self) -> None:
        """Write what waits, and say that the federation is over; the audits go on until nothing is left."""
        if not self._closed:
            self._closed = True
            self._writer.shutdown(wait=True)
            self.inbox.close()

    def _hand_on(
        self, number: int, sent: Mapping[int, tuple[Mapping[str, Any], Mapping[str, Any]]], replies: Sequence[Message]
    ) -> None:
        """Have those that are drawn written, in a thread: a round waits for no disk."""
        answers = {each.metadata.src_node_id: each for each in replies if not each.has_error()}
        chosen = self.federation.drawn(number, [str(node) for node in answers if node in sent])
        self._waiting = [each for each in self._waiting if not each.done()]
        for node in map(int, chosen):
            if len(self._waiting) >= _WAITING:
                _LOG.warning("round %s, client %s: not kept for the audit: %s wait already", number, node, _WAITING)
                continue
            before, config = sent[node]
            after, examples = dict(_arrays(answers[node])), _examples(answers[node])
            self._waiting.append(self._writer.submit(self._keep, number, node, before, after, config, examples))

    def _keep(
        self,
        number: int,
        node: int,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        config: Mapping[str, Any],
        examples: int | None,
    ) -> None:
        config = {**self._run_config, **config}
        told = metadata_of(config, examples, self._stated)
        if before is not self._last[0]:  # the same value for all who were sent it, which is written once
            self._last = (before, _numbers(before))
        self.inbox.keep(
            number, str(node), self._last[1], after=_numbers(after), metadata=told,
            client_text=client_text(config, told), findings=self._findings,
        )  # fmt: skip


def audit_mod(
    policy: Policy = Policy(), *, network: Callable[[], Any] | str, **settings: Any
) -> Callable[[Message, Context, Callable[[Message, Context], Message]], Message]:
    """A client's mod that audits each update of its own before it leaves, and lets it pass, noises or withholds it.

    Named first, it sees the update as other mods leave it; named last, as the training left it.

    Args:
        policy: what is done above the limit.
        network: the network's factory, or a name of `inversefed list networks`.
        settings: those of `SelfAudit`: `image_shape`, `mean`, `std`, `truth`, `attack`, ..

    Returns:
        The mod. A round that is withheld is answered with an error that says why; strategies pass over such replies.
    """
    own = SelfAudit(policy, network, **settings)

    def mod(message: Message, context: Context, call_next: Callable[[Message, Context], Message]) -> Message:
        before = {} if not _is_training(message) else dict(_arrays(message))
        reply = call_next(message, context)
        if not before or reply.has_error() or not reply.content.array_records:
            return reply
        config = {**context.run_config, **_config(message)}
        number = int(config.get("server-round", 0))
        found = own.judge(number, _numbers(before), _numbers(_arrays(reply)), config, _examples(reply), context)
        if found.action == "withhold":
            return Message(Error(_WITHHELD, found.reason), reply_to=message)
        if found.action == "noise":
            (key,) = reply.content.array_records
            noised = own.noised(_numbers(_arrays(reply)))
            reply.content[key] = ArrayRecord({name: Array(each) for name, each in noised.items()})
        return reply

    return mod


def _is_training(message: Message) -> bool:
    return bool(message.metadata.message_type.split(".")[0] == "train") and bool(message.content.array_records)


def _sent(messages: Sequence[Message]) -> dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """What each client was sent: arrays and configuration; equal arrays are one value."""
    seen: dict[int, Mapping[str, Any]] = {}
    found: dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]] = {}
    for each in messages:
        arrays = _arrays(each)
        found[each.metadata.dst_node_id] = (seen.setdefault(id(arrays), dict(arrays)), _config(each))
    return found


def _arrays(message: Message) -> Mapping[str, Any]:
    """The arrays of a message, which has one record of them."""
    (record,) = message.content.array_records.values()
    return record  # type: ignore[no-any-return]


def _numbers(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each.numpy() for name, each in record.items()}


def _config(message: Message) -> dict[str, Any]:
    return {name: value for each in message.content.config_records.values() for name, value in each.items()}


def _examples(reply: Message) -> int | None:
    """How many examples a client says it trained on."""
    told = {name: value for each in reply.content.metric_records.values() for name, value in each.items()}
    count = told.get(_EXAMPLES, told.get("num_examples"))
    return int(count) if isinstance(count, int | float) and count >= 1 else None
