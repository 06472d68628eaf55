"""A client audits an update of its own before it leaves, holds it to a limit, and decides.

    update --audit--> leakage --outcome--> above, below or unknown --policy--> pass, noise or withhold

Leakage and its limit are those of `inversefed gate`: decibels over the best control, measured against the client's own
pictures where it gives them, or the verdict where it does not.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from inversefed.errors import ConfigError, UpdateMismatchError
from inversefed.fl.losses import labels_are_inputs
from inversefed.fl.network import freeze
from inversefed.fl.threat_model import ThreatModel
from inversefed.inputs import Images, InputSpace
from inversefed.integrations.training_settings import client_text, metadata_of
from inversefed.pipeline import audit_observation
from inversefed.report.gate import Leakage, Outcome, leakage, outcome
from inversefed.report.model import Report
from inversefed.report.spoken import spoken
from inversefed.specs import registry
from inversefed.specs.load_setting import network_by_name
from inversefed.types import Batch
from inversefed.updates.diagnosis import diagnose, require_usable
from inversefed.updates.metadata import Metadata
from inversefed.updates.update import Update, as_observation, expected_tensors
from inversefed.zoo import networks

__all__ = ["Action", "Decision", "Policy", "SelfAudit", "importable"]

Action: TypeAlias = Literal["pass", "noise", "withhold"]
_ACTIONS = ("pass", "noise", "withhold")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Policy:
    """What a client does with an update of which an audit says that it leaks.

    Args:
        max_leakage: decibels over the best control that may leak; `None`: the verdict decides, as in `inversefed gate`.
        above: what is done with an update above that.
        unknown: what is done where the audit is no evidence for either side, or failed.
        std: standard deviation of the Gaussian noise that `"noise"` adds to every number.
        seconds: for each audit; the round waits for it.
        nulls: null runs of the verdict; `None` for as many as it needs.

    Raises:
        ConfigError: an action that there is not, or noise without a standard deviation.

    >>> Policy(max_leakage=3.0).action("above"), Policy().action("below"), Policy().action("unknown")
    ('withhold', 'pass', 'pass')
    """

    max_leakage: float | None = None
    above: Action = "withhold"
    unknown: Action = "pass"
    std: float = 0.0
    seconds: float = 30.0
    nulls: int | None = None

    def __post_init__(self) -> None:
        outcome(Leakage(None), self.max_leakage)  # refuses a limit that is no number
        for action in (self.above, self.unknown):
            if action not in _ACTIONS:
                raise ConfigError(f"a policy passes, noises or withholds: {', '.join(_ACTIONS)}; got {action!r}")
        if self.seconds <= 0 or self.std < 0 or ("noise" in (self.above, self.unknown) and not self.std):
            raise ConfigError(
                f"a policy needs seconds above 0, and a std above 0 to add noise; got {self.seconds} and {self.std}"
            )

    def action(self, side: Outcome) -> Action:
        """What is done on that side of the limit."""
        return self.above if side == "above" else self.unknown if side == "unknown" else "pass"


@dataclass(frozen=True)
class Decision:
    """What is done with an update, and why.

    Args:
        action: `"pass"`, `"noise"` or `"withhold"`.
        reason: in one sentence.
        side: of the limit.
    """

    action: Action
    reason: str
    side: Outcome = "unknown"


@dataclass(frozen=True)
class SelfAudit:
    """Audits a client's own updates.

    Args:
        policy: what is done above the limit.
        network: the network's factory, or a name of `inversefed list networks`.
        image_shape: channels, height and width of its input; `None` where `inputs` or its name tells, 3x32x32 for a
            factory.
        num_classes: how many classes a network by name has.
        mean: what the client's input normalization subtracts, one number or one a channel; `None` for 0, or that of
            `inputs`.
        std: what it divides by.
        train_mode: whether the client trains in train mode.
        loss: what it minimizes.
        attack: what the server would run.
        truth: gives the pictures and labels of a round, in pixel space, from the framework's own context; `None` where
            the verdict is to do without.
        stated: what is known of the training that the configuration does not say.
        reports: a folder where each round's report goes; `None` for none.
        seed: fixes the randomness of the audits.
        inputs: what the network takes, where that is no picture: a space, or its text, such as
            `"Series(channels=2, length=128)"`.

    Raises:
        ConfigError: both a shape of pictures and other inputs, or inputs that no name leads to.
    """

    policy: Policy
    network: Callable[[], nn.Module] | str
    image_shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] | float | None = None
    std: tuple[float, ...] | float | None = None
    train_mode: bool = True
    loss: str = "CrossEntropy"
    attack: str = "best"
    truth: Callable[[Any], Batch] | None = None
    stated: Metadata = field(default_factory=Metadata)
    reports: Path | None = None
    seed: int = 0
    inputs: InputSpace | str | None = None
    num_classes: int = 10

    def __post_init__(self) -> None:
        if self.inputs is not None and self.image_shape is not None:
            raise ConfigError("image_shape is for pictures, and inputs say that there are none: give one of them")
        if isinstance(self.inputs, str):
            object.__setattr__(self, "inputs", registry.build("inputs", self.inputs, trust_code=True))

    @property
    def space(self) -> InputSpace:
        """What the network is fed."""
        if self.inputs is not None:
            assert not isinstance(self.inputs, str)
            return self.inputs
        own = networks.input_shape(self.network) if isinstance(self.network, str) else (3, 32, 32)
        return Images(self.image_shape or own)

    def judge(
        self,
        number: int,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        config: Mapping[str, Any],
        num_examples: int | None,
        context: Any,
    ) -> Decision:
        """Audit an update, and say what is to be done with it; the reason is logged.

        Args:
            number: of the round.
            before: the arrays that were sent to the client.
            after: those that it would send back.
            config: its settings by name.
            num_examples: how many examples it says it has.
            context: what `truth` takes.
        """
        try:
            report = self._report(before, after, config, num_examples, context)
            found = leakage(report.to_dict())
            side = outcome(found, self.policy.max_leakage)
            why = spoken(_why(found, self.policy.max_leakage), self.space)
            if self.reports is not None:
                report.save(self.reports / f"round-{number:04d}", overwrite=True)
        except Exception as error:  # the last door: a round that cannot be audited is decided by the policy
            side, why = "unknown", f"the audit failed: {type(error).__name__}: {error}"
        action = self.policy.action(side)
        done = {"pass": "passed", "noise": f"noise of {self.policy.std:g} added", "withhold": "withheld"}[action]
        reason = f"round {number}: {done}: {why}"
        _LOG.warning("%s", reason)  # at the level that is seen without any setting
        return Decision(action, reason, side)

    def noised(self, arrays: Mapping[str, Any]) -> dict[str, Any]:
        """The arrays with noise on every number that is no counter; it is drawn from the system's own source."""
        generator = torch.Generator()
        generator.seed()
        return {name: self._with_noise(torch.as_tensor(each), generator).numpy() for name, each in arrays.items()}

    def _with_noise(self, part: Tensor, generator: torch.Generator) -> Tensor:
        if not part.is_floating_point():
            return part
        return part + self.policy.std * torch.randn(part.shape, generator=generator).to(part.dtype)

    def _report(
        self,
        before: Mapping[str, Any],
        after: Mapping[str, Any],
        config: Mapping[str, Any],
        num_examples: int | None,
        context: Any,
    ) -> Report:
        loss = registry.build("loss", self.loss, trust_code=True)
        module = (
            network_by_name(self.network, self.space, self.num_classes, self.seed, language=labels_are_inputs(loss))
            if isinstance(self.network, str)
            else self.network()
        )
        own = expected_tensors(module)
        sent, back = (_by_name(own, each) for each in (before, after))
        module.load_state_dict(sent, strict=False)
        network = freeze(module.train(self.train_mode), self.space, mean=self.mean, std=self.std, loss=loss)
        truth = None if self.truth is None else self.truth(context)
        count = len(truth.images) if truth is not None else num_examples
        told = replace(metadata_of(config, count, self.stated), kind="weight_delta")
        text = client_text(config, told)
        client = None if text is None else registry.build("client", text)
        change = {name: back[name] - sent[name] for name in back if name in sent}
        findings = diagnose(network, change, told, client=client)
        require_usable(findings)
        observation = as_observation(network, Update(change, told), num_examples=count, client=client)
        threat = ThreatModel(client="known" if observation.client_known else "unknown")
        return audit_observation(
            observation, truth=truth, attack=registry.build("attack", self.attack, trust_code=True), threat=threat,
            seed=self.seed, time_budget=self.policy.seconds, nulls=self.policy.nulls, findings=findings,
        )  # fmt: skip


def importable(network: Callable[[], Any] | str) -> str:
    """The name by which another process finds a network's factory.

    Raises:
        ConfigError: there is none.

    >>> importable(nn.Identity), importable("ConvNet")
    ('torch.nn.modules.linear:Identity', 'ConvNet')
    """
    if isinstance(network, str):
        return network
    module, name = network.__module__, network.__qualname__
    if module == "__main__" or not name.isidentifier():
        raise ConfigError(
            f"the auditing process imports the network by name, and {name!r} of {module!r} has none: define it at the "
            "top of a module, or give pkg.mod:factory"
        )
    return f"{module}:{name}"


def _by_name(own: Mapping[str, Tensor], arrays: Mapping[str, Any]) -> dict[str, Tensor]:
    """Arrays by the network's names; those that are numbered are taken in its order, held to its shapes."""
    tensors = {name: torch.as_tensor(each) for name, each in arrays.items()}
    if list(tensors) == [str(place) for place in range(len(own))]:
        tensors = dict(zip(own, tensors.values(), strict=True))
    wrong = [name for name, part in tensors.items() if name not in own or own[name].shape != part.shape]
    if wrong:
        raise UpdateMismatchError(f"{wrong[0]!r} is none of the network's tensors, or of another shape")
    return tensors


def _why(found: Leakage, limit: float | None) -> str:
    said = "the verdict decides" if limit is None else f"the limit is {limit:g} dB"
    if found.exact:
        return f"a picture is recovered exactly; {said}"
    if found.decibels is not None:
        return f"picture {found.picture} is {found.decibels:.1f} dB over the best control ({found.control}); {said}"
    return f"{found.answer or found.evidence or 'nothing was measured'}; {said}"
