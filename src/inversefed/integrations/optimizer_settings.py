"""What an optimizer of torch says of itself, in the words of an update's metadata."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from inversefed.errors import ConfigError

__all__ = ["OptimizerSettings", "inner_optimizer", "rate_of", "settings_of"]


@dataclass(frozen=True)
class OptimizerSettings:
    """How an optimizer steps, as far as a client of ours could do the same.

    Args:
        words: by the names that they have in `updates.Metadata`; the learning rate is not among them.
        is_plain: whether its next step moves the weights along the gradient and by nothing else.
        unknown: why no client of ours steps so, as a sentence without its end; empty where one does.
        note: what the words do not say exactly; empty where they do.
    """

    words: Mapping[str, Any]
    is_plain: bool = False
    unknown: str = ""
    note: str = ""


@dataclass(frozen=True)
class _Kind:
    """An optimizer of torch that has a local one of the same kind.

    Args:
        off: settings that the local one lacks, as they are where they change nothing.
        words: what a parameter group says, in the words of metadata.
    """

    off: Mapping[str, object]
    words: Callable[[Mapping[str, Any]], dict[str, Any]]


def _sgd(group: Mapping[str, Any]) -> dict[str, Any]:
    momentum = float(group["momentum"])
    own = {"optimizer": "nesterov" if group["nesterov"] else "sgd", "momentum": momentum or None}
    return {**own, "weight_decay": float(group["weight_decay"]) or None}


def _adam(group: Mapping[str, Any]) -> dict[str, Any]:
    beta1, beta2 = map(float, group["betas"])
    kind = "adamw" if group.get("decoupled_weight_decay") else "adam"
    own = {"optimizer": kind, "beta1": beta1, "beta2": beta2, "eps": float(group["eps"])}
    return {**own, "weight_decay": float(group["weight_decay"]) or None}


def _adamw(group: Mapping[str, Any]) -> dict[str, Any]:
    return {**_adam(group), "optimizer": "adamw"}


_KINDS: Mapping[type[Optimizer], _Kind] = {
    SGD: _Kind({"dampening": 0, "maximize": False}, _sgd),
    Adam: _Kind({"amsgrad": False, "maximize": False}, _adam),
    AdamW: _Kind({"amsgrad": False, "maximize": False}, _adamw),
}


def inner_optimizer(optimizer: Optimizer) -> Optimizer:
    """The optimizer within a wrapper that holds it as `optimizer`, as that of accelerate does.

    Raises:
        ConfigError: no optimizer at all.
    """
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(f"capture needs an optimizer of torch.optim, or one derived from it; got {optimizer!r}")
    inner = vars(optimizer).get("optimizer")
    return inner_optimizer(inner) if isinstance(inner, Optimizer) else optimizer


def rate_of(optimizer: Optimizer, names: Mapping[int, str]) -> float:
    """The learning rate of the named weights; NaN where it is not one for all of them."""
    rates = {float(group["lr"]) for group in _groups(optimizer, names) if "lr" in group}
    return rates.pop() if len(rates) == 1 else math.nan


def settings_of(optimizer: Optimizer, names: Mapping[int, str]) -> OptimizerSettings:
    """Read an optimizer before the first step that is recorded.

    Args:
        optimizer: any of torch's, or one that derives from them.
        names: of the network's trained weights, by their `id`.
    """
    groups, name = _groups(optimizer, names), type(optimizer).__name__
    kind = _KINDS.get(type(optimizer))
    if kind is None:
        return OptimizerSettings(
            {}, unknown=f"the optimizer is {name}, and local steps are those of SGD, Adam or AdamW"
        )
    fresh = not _has_moments(optimizer, names)
    plain = kind is _KINDS[SGD] and all(not each["weight_decay"] and (fresh or not each["momentum"]) for each in groups)
    other = next(
        (f"{key}={each.get(key)!r}" for each in groups for key, off in kind.off.items() if each.get(key, off) != off),
        None,
    )
    if other is not None:
        return OptimizerSettings({}, plain, f"the optimizer is {name} with {other}, which local steps do not have")
    words = [kind.words(each) for each in groups]
    if any({**each, "weight_decay": None} != {**words[0], "weight_decay": None} for each in words):
        return OptimizerSettings({}, plain, f"parameter groups of the {name} differ in more than their weight decay")
    if not fresh and not plain:
        return OptimizerSettings({}, plain, f"the {name} had taken steps before, and began with moments from there")
    return _decayed(words, groups, plain)


def _groups(optimizer: Optimizer, names: Mapping[int, str]) -> list[dict[str, Any]]:
    """The parameter groups that hold any of the named weights."""
    return [group for group in optimizer.param_groups if any(id(weight) in names for weight in group["params"])]


def _has_moments(optimizer: Optimizer, names: Mapping[int, str]) -> bool:
    """Whether it keeps anything of earlier steps; a momentum of `None` is none, and a counter at 0 neither."""
    kept = [value for weight, held in optimizer.state.items() if id(weight) in names for value in held.values()]
    return any(bool(value.any()) if isinstance(value, Tensor) else bool(value) for value in kept)


def _decayed(words: Sequence[dict[str, Any]], groups: Sequence[dict[str, Any]], plain: bool) -> OptimizerSettings:
    """The settings of all groups, with the weight decay of the one that holds most numbers."""
    sizes = [sum(weight.numel() for weight in group["params"]) for group in groups]
    largest = words[sizes.index(max(sizes))]
    decays = sorted({each["weight_decay"] or 0.0 for each in words})
    if len(decays) == 1:
        return OptimizerSettings(largest, plain)
    note = (
        f"The weight decay differs between parameter groups, from {decays[0]:g} to {decays[-1]:g}; that of most "
        f"weights, {largest['weight_decay'] or 0:g}, stands for all."
    )
    return OptimizerSettings(largest, plain, note=note)
