"""NVIDIA FLARE: filters by which a client audits its own update, and by which a server keeps each for the ledger.

    server: SentFilter on task data, LedgerFilter on task results;   client: SentFilter on task data, AuditFilter last

FLARE names a component of a job by its path and arguments that JSON holds, and makes it anew on each site: so all
arguments here are plain, and functions are `"pkg.mod:name"`. A filter that stands after others sees what leaves. One
that cannot audit lets the round go on, as its policy says. Needs NVFlare 2.8 or later; written for 2.9.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from inversefed.errors import ConfigError
from inversefed.findings import Code
from inversefed.integrations.federation import Federation, Inbox
from inversefed.integrations.self_audit import Decision, Policy, SelfAudit
from inversefed.integrations.training_settings import client_text, metadata_of
from inversefed.specs import registry
from inversefed.specs.registry import import_object
from inversefed.specs.sources import names_code
from inversefed.types import Finding
from inversefed.updates.metadata import Kind, Metadata

try:
    from nvflare.apis.dxo import DXO, DataKind, MetaKey
    from nvflare.apis.dxo_filter import DXOFilter
    from nvflare.apis.event_type import EventType
    from nvflare.apis.fl_context import FLContext
    from nvflare.apis.shareable import Shareable
    from nvflare.app_common.app_constant import AppConstants
except ModuleNotFoundError as missing:
    raise ConfigError("this needs NVFlare, which is not installed: pip install 'inversefed[nvflare]'") from missing

__all__ = ["AuditFilter", "LedgerFilter", "SentFilter"]

_LOG = logging.getLogger(__name__)
_SENT = "inversefed_sent"
"""The property of a site's context that holds the weights of the task."""
_KINDS: Mapping[str, Kind] = {DataKind.WEIGHTS: "new_weights", DataKind.WEIGHT_DIFF: "weight_delta"}


class _Weights(DXOFilter):  # type: ignore[misc]
    """A filter of weights and their differences."""

    def __init__(self) -> None:
        super().__init__(supported_data_kinds=list(_KINDS), data_kinds_to_filter=list(_KINDS))


class SentFilter(_Weights):
    """Remembers the weights of a task, for the filter of its result; it changes nothing.

    `recipe.add_client_input_filter(SentFilter())`, and `add_server_output_filter` on the server.
    """

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> None:
        """Put the weights into the site's context."""
        if dxo.data_kind == DataKind.WEIGHTS and not _is_encrypted(dxo):
            fl_ctx.set_prop(_SENT, dict(dxo.data), private=True, sticky=True)


class AuditFilter(_Weights):
    """Audits a client's result before it leaves, and lets it pass, noises or withholds it.

    What is withheld is not missing, which would end the job: the weights are sent back as they came, a difference as
    zeros, and the result's meta says `inversefed_withheld`.

    `recipe.add_client_output_filter(AuditFilter(..))`, after the filters whose effect is to be seen, with a
    `SentFilter` on the client's input.

    Args:
        network: the network's factory, `pkg.mod:name`, or a name of `inversefed list networks`.
        image_shape: channels, height and width of its input; `None` where `inputs` says what it takes.
        mean: what the client's input normalization subtracts, one number or one a channel; `None` for 0, or that of
            `inputs`.
        std: what it divides by.
        training: how the client trains, such as `{"lr": 0.1, "batch-size": 8, "local-epochs": 1}`.
        num_examples: how many examples it has; `None` where `truth` tells.
        truth: `pkg.mod:name` of a function that takes FLARE's context and gives the `Batch` of the client's own
            pictures and labels; `None` leaves the decision to the verdict.
        max_leakage: decibels over the best control that may leak; `None`: the verdict decides.
        above: `"withhold"`, `"noise"` or `"pass"` above that.
        unknown: what is done where the audit is no evidence, or failed.
        noise_std: standard deviation of the noise that `"noise"` adds.
        seconds: for each audit; the round waits for it.
        nulls: null runs of the verdict; `None` for as many as it needs.
        attack: what the server would run.
        reports: a folder where each round's report goes, by site; `None` for none.
        inputs: what the network takes where that is no picture, as text, such as `"Series(channels=2, length=128)"`.
        num_classes: how many classes a network by name has.
        loss: what the client minimizes.

    Raises:
        ConfigError: a setting that cannot be, or a name that leads nowhere.
    """

    def __init__(
        self,
        network: str,
        image_shape: list[int] | None = None,
        mean: float | list[float] | None = None,
        std: float | list[float] | None = None,
        training: dict[str, Any] | None = None,
        num_examples: int | None = None,
        truth: str | None = None,
        max_leakage: float | None = None,
        above: str = "withhold",
        unknown: str = "pass",
        noise_std: float = 0.0,
        seconds: float = 30.0,
        nulls: int | None = None,
        attack: str = "best",
        reports: str | None = None,
        inputs: str | None = None,
        num_classes: int = 10,
        loss: str = "CrossEntropy",
    ) -> None:
        super().__init__()
        if (image_shape is None) == (inputs is None):
            raise ConfigError("AuditFilter needs image_shape=[c, h, w] for pictures, or inputs= for others")
        self.inputs, self.num_classes, self.loss = inputs, num_classes, loss
        for kind, text in (("inputs", inputs), ("loss", loss), ("attack", attack)):
            if text is not None:
                registry.build(kind, text, trust_code=True)  # here, and not in the first round
        self.network, self.image_shape, self.mean, self.std = network, image_shape, mean, std
        self.training, self.num_examples, self.truth = training, num_examples, truth
        self.max_leakage, self.above, self.unknown, self.noise_std = max_leakage, above, unknown, noise_std
        self.seconds, self.nulls, self.attack, self.reports = seconds, nulls, attack, reports
        self._policy = Policy(max_leakage, above, unknown, noise_std, float(seconds), nulls)  # type: ignore[arg-type]

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> DXO | None:
        """Audit, and send what the policy says; `None` where the result stays as it is."""
        sent = fl_ctx.get_prop(_SENT)
        if sent is None or _is_encrypted(dxo):
            why = "the weights of the task are not known: add a SentFilter" if sent is None else "it is encrypted"
            action = self._policy.action("unknown")
            _LOG.warning("not audited: %s; the policy says %s", why, action)
            found = Decision(action, why)
        else:
            found = self._judged(dxo, sent, shareable, fl_ctx)
        if found.action == "pass":
            return None
        data = self._own().noised(dxo.data) if found.action == "noise" else _unchanged(dxo, sent)
        changed = DXO(dxo.data_kind, data=data, meta=dict(dxo.meta))
        changed.set_meta_prop("inversefed_withheld" if found.action == "withhold" else "inversefed_noised", True)
        return changed

    def _judged(self, dxo: DXO, sent: Mapping[str, Any], shareable: Shareable, fl_ctx: FLContext) -> Decision:
        after = dxo.data
        if dxo.data_kind == DataKind.WEIGHT_DIFF:
            after = {name: torch.as_tensor(sent[name]) + torch.as_tensor(part) for name, part in after.items()}
        number = _round(dxo, shareable) or 1
        own = self._own(str(fl_ctx.get_identity_name()))
        return own.judge(number, sent, after, self.training or {}, self.num_examples, fl_ctx)

    def _own(self, site: str = "") -> SelfAudit:
        shape = None if self.image_shape is None else (self.image_shape[0], self.image_shape[1], self.image_shape[2])
        return SelfAudit(
            self._policy,
            import_object(self.network) if names_code(self.network) else self.network,
            shape,
            mean=_constants(self.mean),
            std=_constants(self.std),
            attack=self.attack,
            truth=None if self.truth is None else import_object(self.truth),
            reports=None if self.reports is None else Path(self.reports).expanduser() / site,
            inputs=self.inputs,
            num_classes=self.num_classes,
            loss=self.loss,
        )


class LedgerFilter(_Weights):
    """Keeps each client's result on the server, for audits by another process; it changes nothing.

    `recipe.add_server_input_filter(LedgerFilter(..))`, with a `SentFilter` on the server's output.

    Args:
        run: the run's name in the ledger.
        network: the network's factory, `pkg.mod:name`, or a name of `inversefed list networks`.
        settings: those of `Federation` that JSON holds, by name: `image_shape`, `mean`, `std`, `every`, `ledger`, ..
        training: how the clients train, such as `{"lr": 0.1, "batch-size": 8, "local-epochs": 1}`.
        num_examples: how many examples a client has, as far as that is known.

    Raises:
        ConfigError: a setting that cannot be.
    """

    def __init__(
        self,
        run: str,
        network: str,
        settings: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
        num_examples: int | None = None,
    ) -> None:
        super().__init__()
        self.run, self.network, self.settings = run, network, settings
        self.training, self.num_examples = training, num_examples
        given: dict[str, Any] = {
            name: tuple(each) if isinstance(each, list) else each for name, each in (settings or {}).items()
        }
        try:
            self._federation = Federation(run, network, **given)
        except TypeError as error:
            raise ConfigError(f"LedgerFilter takes the settings of Federation; {error}") from error
        self._inbox: Inbox | None = None

    def handle_event(self, event_type: str, fl_ctx: FLContext) -> None:
        """Say that the federation is over when the job ends."""
        if event_type == EventType.END_RUN and self._inbox is not None:
            self._inbox.close()

    def process_dxo(self, dxo: DXO, shareable: Shareable, fl_ctx: FLContext) -> None:
        """Write down what the client was sent and sent back."""
        peer = fl_ctx.get_peer_context()
        site = "unknown" if peer is None else str(peer.get_identity_name())
        sent, number = fl_ctx.get_prop(_SENT), _round(dxo, shareable)
        if sent is None or number is None or _is_encrypted(dxo):
            why = "it is encrypted" if _is_encrypted(dxo) else "its round or its task is not known: add a SentFilter"
            _LOG.warning("round %s, client %s: not kept for the audit: %s", number, site, why)
            return
        if self._inbox is None:
            self._inbox = Inbox(self._federation)
        stated = Metadata(kind=None if dxo.data_kind == DataKind.WEIGHTS else "weight_delta")
        told = metadata_of(self.training or {}, self.num_examples, stated)
        whole = dxo.data_kind == DataKind.WEIGHTS
        self._inbox.keep(
            number, site, dict(sent), after=dict(dxo.data) if whole else None, update=None if whole else dict(dxo.data),
            metadata=told, client_text=client_text(self.training or {}, told), findings=_filtered_by(dxo),
        )  # fmt: skip


def _is_encrypted(dxo: DXO) -> bool:
    return dxo.get_meta_prop(MetaKey.PROCESSED_ALGORITHM) is not None


def _round(dxo: DXO, shareable: Shareable) -> int | None:
    """The number of the round, from 1; FLARE counts from 0."""
    name = AppConstants.CURRENT_ROUND
    told = (shareable.get_header(name), dxo.get_meta_prop(name), shareable.get_cookie(AppConstants.CONTRIBUTION_ROUND))
    return next((int(each) + 1 for each in told if each is not None), None)


def _unchanged(dxo: DXO, sent: Mapping[str, Any] | None) -> dict[str, Any]:
    """A result that says nothing: what came, or no difference."""
    if dxo.data_kind == DataKind.WEIGHTS and sent is not None:
        return {name: sent[name] for name in dxo.data if name in sent}
    return {name: part * 0 for name, part in dxo.data.items()}


def _filtered_by(dxo: DXO) -> tuple[Finding, ...]:
    """The filters that a result went through on its way, as FLARE keeps them."""
    history = [str(each) for each in dxo.get_filter_history() or ()]
    if not history:
        return ()
    message = f"By FLARE's record the client ran these filters on its result: {', '.join(history)}."
    return (Finding(Code.DEFENSE_UNKNOWN, "info", message, {"filters": history}),)


def _constants(value: float | list[float] | None) -> tuple[float, ...] | float | None:
    return tuple(map(float, value)) if isinstance(value, list) else value
