"""From recorded optimizer steps to the metadata of an update, and what they do not say exactly."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

from inversefed.findings import Code
from inversefed.integrations.optimizer_settings import OptimizerSettings
from inversefed.types import Finding
from inversefed.updates.metadata import Kind, Metadata

__all__ = ["StepTaken", "steps_in_words"]


@dataclass(frozen=True)
class StepTaken:
    """One optimizer step.

    Args:
        parts: how many examples each backward pass before it was of; empty where nobody counted.
        rate: the learning rate; NaN where parameter groups differ.
    """

    parts: tuple[int, ...]
    rate: float

    @property
    def examples(self) -> int:
        """Examples of the step."""
        return sum(self.parts)


def steps_in_words(
    taken: Sequence[StepTaken], kind: Kind, settings: OptimizerSettings, num_examples: int | None = None
) -> tuple[Metadata, tuple[Finding, ...]]:
    """Describe the client that takes such steps.

    Args:
        taken: one step or several.
        kind: what the update holds.
        settings: of the optimizer.
        num_examples: how many different examples the steps were of; `None` where each step saw examples of its own.

    Returns:
        Kind, steps, examples, learning rate and optimizer, as far as local steps of ours would be the same; and what
        had to be left out or averaged. Without a learning rate the client cannot be simulated.
    """
    counted = all(step.parts for step in taken)
    count = num_examples or (sum(step.examples for step in taken) if counted else None)
    told: dict[str, Any] = {"kind": kind, "local_steps": len(taken), "num_examples": count}
    found = [] if counted else [_uncounted(num_examples)]
    batches, unlike = _batches([step.examples for step in taken], count) if counted else ({}, "")
    parts, uneven = _parts(taken)
    told |= batches | parts
    unknown = settings.unknown or unlike or _unusable([step.rate for step in taken])
    if uneven:
        found.append(Finding(Code.LOCAL_STEPS, "warning", uneven))
    if settings.note:
        found.append(Finding(Code.OPTIMIZER, "warning", settings.note))
    if not unknown:
        told |= settings.words
        rates = [step.rate for step in taken]
        told["learning_rate"] = _mean(rates)
        found += _changed(rates)
    elif kind != "gradient":
        message = f"The client cannot be simulated: {unknown}. An attack that could would recover more."
        found.append(Finding(Code.CLIENT_UNKNOWN, "warning", message))
    return Metadata(**told), tuple(found)


def _uncounted(num_examples: int | None) -> Finding:
    message = (
        "Nobody counted the examples of a step, since the model was not called as a whole; say examples(n) of the "
        "capture before each backward pass."
    )
    if num_examples is not None:
        message = f"How many of the {num_examples} examples a step saw was not counted. " + message
    return Finding(Code.NUM_EXAMPLES_ASSUMED, "warning", message)


def _batches(sizes: Sequence[int], count: int | None) -> tuple[dict[str, Any], str]:
    """Batch size and passes over the examples; or why there are none such."""
    size, total = max(sizes), count or sum(sizes)
    if len(sizes) == 1:
        return ({}, "") if total == size else ({"batch_size": size}, "")
    if size > total:
        return {}, f"steps were of up to {size} examples, of {total} in all"
    whole, rest = divmod(total, size)
    one_pass = [size] * whole + [rest] * bool(rest)
    if list(sizes) == [size] * len(sizes):
        return {"batch_size": size}, ""
    if list(sizes) == list(islice(cycle(one_pass), len(sizes))) and len(sizes) % len(one_pass) == 0:
        return {"batch_size": size, "epochs": len(sizes) // len(one_pass)}, ""
    return {}, f"its steps were of {_listed(sizes)} examples, which are no passes in batches of one size"


def _parts(taken: Sequence[StepTaken]) -> tuple[dict[str, Any], str]:
    """How many examples went through the network at once, where gradients were accumulated."""
    if not any(len(step.parts) > 1 for step in taken):
        return {}, ""
    size = max(part for step in taken for part in step.parts)
    ends = [(step.parts[:-1], step.parts[-1]) for step in taken if step.parts]
    if all(set(before) <= {size} for before, _ in ends):
        shorter = [last for before, last in ends if before and last != size]
        if not shorter:
            return {"micro_batch_size": size}, ""
        return {"micro_batch_size": size}, (
            f"A step ended on a micro-batch of {shorter[0]} examples after others of {size}; its examples are taken to "
            "count as much as the others, but count more where the loss is divided by the number of micro-batches."
        )
    sizes = _listed([part for step in taken for part in step.parts])
    return {}, f"Gradients were accumulated over {sizes} examples, and are taken to be of whole batches."


def _unusable(rates: Sequence[float]) -> str:
    if any(math.isnan(rate) for rate in rates):
        return "the learning rate differs between parameter groups"
    return "" if 1e-9 <= _mean(rates) < 1e9 else f"the learning rate was {_mean(rates):g}"


def _mean(rates: Sequence[float]) -> float:
    return rates[0] if len(set(rates)) == 1 else math.fsum(rates) / len(rates)


def _changed(rates: Sequence[float]) -> list[Finding]:
    if len(set(rates)) == 1:
        return []
    message = (
        f"The learning rate changed during the steps, from {rates[0]:g} to {rates[-1]:g}; the client is described with "
        "their mean."
    )
    return [Finding(Code.LOCAL_STEPS, "warning", message, {"learning_rates": list(rates)})]


def _listed(numbers: Sequence[int]) -> str:
    first = ", ".join(map(str, numbers[:6]))
    return f"{first} and more" if len(numbers) > 6 else first
