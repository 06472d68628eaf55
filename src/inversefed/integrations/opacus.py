"""Updates of Opacus training: what a `PrivacyEngine` was told becomes the client that makes the same update.

    p.grad = (sum_i g_i min(1, C / (|g_i| + 1e-6))  +  sigma C N(0, 1)) / L

is what `DPOptimizer` leaves in `.grad` (Yousefpour et al. 2021, arXiv:2109.12298), and what `DPSGD` computes: both have
the same names for sigma, C and L. What a wrapped module puts before its names, `_module.`, is taken off. Epsilon is
that of the engine's own accountant. Opacus is imported here alone, and only by a call.
"""

import copy
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from inversefed.errors import ConfigError, InputError
from inversefed.findings import Code
from inversefed.fl.accounting import Accounting
from inversefed.fl.clients.dpsgd import DPSGD
from inversefed.fl.clients.local_optimizers import LocalAdam, LocalOptimizer, LocalSGD
from inversefed.fl.network import Network
from inversefed.fl.privacy import PrivacySpent, epsilon_of_history
from inversefed.fl.threat import Observation
from inversefed.types import Finding, Params, Targets
from inversefed.updates.described import kind_of
from inversefed.updates.metadata import Metadata
from inversefed.updates.update import Update, as_observation

__all__ = ["OpacusTraining", "noised_gradient", "plain_module", "read_training", "without_prefix"]

History: TypeAlias = list[tuple[float, float, int]]
"""Noise multiplier, sample rate and number of steps, in turn, as Opacus' accountants keep them."""

_PREFIX = "_module."
"""What Opacus' wrappers put before every name."""
_LEFT = {"activations", "max_batch_len"}
"""What its hooks leave in a layer between forward and backward pass."""


@dataclass(frozen=True)
class OpacusTraining:
    """What Opacus was told, in the words of this package.

    Args:
        client: the client that makes the same update, with its accounting, so that a report has epsilon and the bound.
        metadata: what a file of the update would say of itself.
        spent: epsilon of all steps so far by the engine's own accountant; `None` without an engine.
        findings: what a report should say beside that.
    """

    client: DPSGD
    metadata: Metadata
    spent: PrivacySpent | None = None
    findings: tuple[Finding, ...] = ()

    def observed(self, network: Network, update: Params, labels: Targets | None = None) -> Observation:
        """What a server sees of an update of this training.

        Args:
            network: with the weights from before the update, such as `freeze(plain_module(module), ..)` before a step.
            update: its tensors, with Opacus' names or plain ones.
            labels: the labels, where they are granted to the attack.

        Raises:
            UpdateMismatchError: names or shapes are not the network's.
            InputError: NaN or infinite values.
        """
        told = Update(without_prefix(update), self.metadata)
        return as_observation(network, told, num_examples=self.metadata.num_examples, client=self.client, labels=labels)


def read_training(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    engine: object = None,
    *,
    num_examples: int,
    sends: Literal["gradient", "delta", "weights"] = "gradient",
    local_steps: int = 1,
    batch_size: int = 0,
    target_delta: float = 1e-5,
) -> OpacusTraining:
    """Read from Opacus how an update was made, after the steps that made it.

    Args:
        module: the `GradSampleModule`, as `make_private` gave it.
        optimizer: the `DPOptimizer`, as `make_private` gave it; only its flat clipping is read.
        engine: the `PrivacyEngine`, for the steps so far and their epsilon.
        num_examples: of a gradient how many examples its step took, which under Poisson sampling is not what was
            expected; of local steps how many the client has.
        sends: `"gradient"` for what a step left in `.grad`, else the change of weights, or the new ones.
        local_steps: how many steps made the update.
        batch_size: of local steps without Poisson sampling how many examples each took, in order; 0 for as many as were
            expected.
        target_delta: at which epsilon is stated.

    Returns:
        The client, metadata, epsilon and findings.

    Raises:
        ConfigError: Opacus is not installed, its clipping is not flat, or its optimizer is none that is simulated here.
    """
    grad_sample, optimizers, engines = _opacus()
    if not isinstance(module, grad_sample.AbstractGradSampleHooks):
        raise ConfigError(
            "expected the module that PrivacyEngine.make_private returned, a GradSampleModule; got "
            f"{type(module).__name__}"
        )
    if type(optimizer) is not optimizers.DPOptimizer:
        raise ConfigError(
            "expected Opacus' DPOptimizer, which clips to one norm over all tensors on one machine (clipping='flat', "
            f"no ghost clipping); got {type(optimizer).__name__}, whose step is not simulated"
        )
    if engine is not None and not isinstance(engine, engines.PrivacyEngine):
        raise ConfigError(f"expected a PrivacyEngine; got {type(engine).__name__}")
    history: History = [] if engine is None else [(float(s), float(q), int(n)) for s, q, n in engine.accountant.history]
    mechanism = "" if engine is None else str(engine.accountant.mechanism())
    accountant: Literal["prv", "rdp"] = "rdp" if mechanism in ("rdp", "gdp") else "prv"
    poisson = isinstance(module, grad_sample.GradSampleHooks) and not module.grad_accumulation_allowed
    client = _client(optimizer, history, poisson and sends != "gradient", sends, local_steps, batch_size)
    client = replace(client, accounting=_accounting(client, history, poisson, accountant, target_delta))
    spent = epsilon_of_history(history, target_delta, accountant) if history else None
    trained = sends != "gradient"
    metadata = Metadata(
        kind=kind_of(client),
        learning_rate=client.lr if trained else None,
        local_steps=local_steps if trained else None,
        num_examples=num_examples,
    )
    return OpacusTraining(client, metadata, spent, _findings(client, history, spent, mechanism, poisson))


def noised_gradient(module: nn.Module) -> Params:
    """What `DPOptimizer.step` left in `.grad`, by the network's own names: clipped, summed, noised and divided.

    Args:
        module: the `GradSampleModule`, after `optimizer.step()` and before `optimizer.zero_grad()`.

    Raises:
        InputError: there is none.
    """
    named = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
    empty = [name for name, weight in named.items() if weight.grad is None]
    if empty or not named:
        raise InputError(
            f"there is no gradient in {', '.join(empty[:3]) or 'the module'}: read it after optimizer.step() and "
            "before optimizer.zero_grad()"
        )
    return without_prefix(
        {name: weight.grad.detach().clone() for name, weight in named.items() if weight.grad is not None}
    )


def without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a wrapped module under the names of the module inside.

    >>> list(without_prefix({"_module.0.weight": torch.zeros(1), "_module.0.bias": torch.zeros(1)}))
    ['0.weight', '0.bias']
    """
    named = dict(tensors)
    while named and all(name.startswith(_PREFIX) for name in named):
        named = {name.removeprefix(_PREFIX): part for name, part in named.items()}
    return named


def plain_module(module: nn.Module) -> nn.Module:
    """A copy of what Opacus wrapped, with its weights as they are now and without Opacus' hooks.

    Args:
        module: a `GradSampleModule`.

    Raises:
        ConfigError: it is none, or Opacus is not installed.
    """
    grad_sample, *_ = _opacus()
    if not isinstance(module, grad_sample.AbstractGradSampleModule):
        raise ConfigError(f"expected a GradSampleModule of Opacus; got {type(module).__name__}")
    copied: nn.Module = copy.deepcopy(module).to_standard_module()
    for layer in copied.modules():
        for left in _LEFT & vars(layer).keys():
            delattr(layer, left)
    return copied


def _client(
    optimizer: Any,
    history: History,
    drawn: bool,
    sends: Literal["gradient", "delta", "weights"],
    local_steps: int,
    batch_size: int,
) -> DPSGD:
    """The client of the last steps; where their noise changed, the least of it."""
    rule, lr = _inner(optimizer.original_optimizer)
    expected = optimizer.expected_batch_size or 0
    if int(expected) != expected:
        raise ConfigError(f"DPSGD divides by a whole number of examples; Opacus' expected_batch_size is {expected}")
    each_step = [noise for noise, _, steps in history for _ in range(min(steps, local_steps))]
    return DPSGD(
        noise_multiplier=float(min(each_step[-local_steps:], default=optimizer.noise_multiplier)),
        max_grad_norm=float(optimizer.max_grad_norm),
        expected_batch_size=int(expected),
        loss_reduction=optimizer.loss_reduction,
        local_steps=local_steps,
        batch_size=0 if drawn or sends == "gradient" else batch_size or int(expected),
        poisson_sampling=drawn,
        lr=lr,
        optimizer=rule,
        sends=sends,
        sample_rate=float(history[-1][1]) if drawn and history else 0.0,
    )


def _inner(optimizer: torch.optim.Optimizer) -> tuple[LocalOptimizer, float]:
    """The update rule that sees the noised gradients, and its learning rate.

    Raises:
        ConfigError: another rule than SGD or Adam, or settings of it that differ between weights or are not simulated.
    """
    groups = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    told, kind = groups[0], type(optimizer)
    switched = [name for name in ("dampening", "maximize", "amsgrad", "decoupled_weight_decay") if told.get(name)]
    if kind not in (torch.optim.SGD, torch.optim.Adam) or any(group != told for group in groups) or switched:
        beside = f" with {', '.join(switched)}" if switched else ""
        raise ConfigError(
            "as the optimizer inside DPOptimizer, SGD and Adam are simulated, of one setting for all weights, without "
            f"dampening, maximize and amsgrad; got {kind.__name__}{beside}, {len(groups)} groups of weights"
        )
    lr, decay = float(told["lr"]), float(told["weight_decay"])
    if kind is torch.optim.SGD:
        return LocalSGD(float(told["momentum"]), decay, bool(told["nesterov"])), lr
    (beta1, beta2), eps = told["betas"], float(told["eps"])
    return LocalAdam(float(beta1), float(beta2), eps, decay), lr


def _accounting(
    client: DPSGD, history: History, poisson: bool, accountant: Literal["prv", "rdp"], target_delta: float
) -> Accounting:
    """How all steps so far add up, for the figures of a report.

    Without Poisson sampling an example is in one step of each pass over the data, and no sampling is credited.
    """
    steps, rate = sum(number for _, _, number in history), max((each for _, each, _ in history), default=1.0)
    if client.sends == "gradient" and poisson:
        return Accounting(target_delta, max(steps, 1), min(rate, 1.0), accountant)
    of_one = math.ceil(steps * rate) if client.sends == "gradient" else math.ceil(steps / client.local_steps)
    return Accounting(target_delta, max(of_one, 1), 1.0, accountant)


def _findings(
    client: DPSGD, history: History, spent: PrivacySpent | None, mechanism: str, poisson: bool
) -> tuple[Finding, ...]:
    """What a report should say beside the client."""
    found, steps = [], sum(number for _, _, number in history)
    if spent is not None:
        said = [f"Opacus' PrivacyEngine, all steps so far: {spent}."]
        if mechanism == "gdp":
            said.append("Its own accountant, GDP, is an approximation that may say too little; RDP is a bound.")
        if not poisson:
            said.append("It credits sampling, which was not Poisson sampling: no epsilon this low is proved.")
        if spent.note:
            said.append(f"({spent.note}.)")
        level: Literal["info", "warning"] = "info" if poisson else "warning"
        found.append(Finding(Code.DIFFERENTIAL_PRIVACY, level, " ".join(said), asdict(spent)))
    keeps = not isinstance(client.optimizer, LocalSGD) or client.optimizer.momentum
    if client.sends != "gradient" and keeps and steps > client.local_steps:
        message = (
            f"The optimizer had taken {steps - client.local_steps} steps before those of this update, and "
            f"{client.optimizer!r} keeps moments, which the attack takes for zero: it simulates another client."
        )
        found.append(Finding(Code.OPTIMIZER, "warning", message))
    return tuple(found)


def _opacus() -> tuple[Any, Any, Any]:
    try:
        from opacus import grad_sample, optimizers, privacy_engine
    except ImportError as error:
        raise ConfigError("Opacus is not installed; install it: pip install 'inversefed[dp]'") from error
    return grad_sample, optimizers, privacy_engine
