"""Bias alignment: whether a layer's weight and bias gradients belong together.

    dW[o, :] = sum over places of  delta_o x,    db[o] = sum of delta_o      =>   mean_j dW[o, j] ~ db[o],  if x > 0

Behind a sigmoid or a ReLU the cosine between the two, over the channels o, is near 1; between tensors of different
layers it is not. So two tensors in each other's place are found where no conservation law (`conservation`) covers
them.
"""

from collections.abc import Mapping

import torch
from torch import nn

from inversefed.findings import Code
from inversefed.fl.hooks import record
from inversefed.fl.network import Network
from inversefed.networks.natural_noise import natural_noise
from inversefed.types import Finding, Params
from inversefed.updates.diagnosis.evidence import Subject

__all__ = ["check_rows"]

_LOW, _HIGH = 0.5, 0.8
"""Cosine below which weight and bias do not belong together, and above which they do."""
_CHANNELS = 8
"""Fewest channels of which a cosine says anything."""


def check_rows(subject: Subject) -> tuple[Finding, ...]:
    """Look for two tensors of equal shape whose exchange makes weights and biases agree.

    Returns:
        A warning `names`, or nothing.
    """
    layers = [name for name in positive_inputs(subject.network) if _covers(subject, name)]
    before = {name: _cosine(subject.raw, name) for name in layers}
    low = [name for name in layers if before[name] < _LOW]
    if not low:
        return ()
    shapes = {name: part.shape for name, part in subject.raw.items()}
    suspects = [f"{name}.{kind}" for name in low for kind in ("weight", "bias")]
    pairs = {frozenset((a, b)) for a in suspects for b in shapes if a != b and shapes[a] == shapes[b]}
    mended = {pair: _mended(subject.raw, pair, layers, low) for pair in pairs}
    best = max(mended, key=lambda pair: mended[pair], default=None)
    if best is None or mended[best] < _HIGH:
        return ()
    first, second = sorted(best)
    others = [sorted(pair) for pair, cosine in mended.items() if pair != best and cosine > mended[best] - 1e-6]
    other = f" (or {others[0][0]} and {others[0][1]}: the two cannot be told apart)" if others else ""
    message = (
        f"{first} and {second}{other} seem to be in each other's place: exchanged, the gradients of weight and bias of "
        f"{', '.join(low[:3])} agree (cosine {mended[best]:.2f}), as they are they do not "
        f"({min(before.values()):.2f}). Map the tensors of the update by name, not by position."
    )
    return (Finding(Code.NAMES, "warning", message, {"exchanged": [first, second], "or": others, "cosines": before}),)


def positive_inputs(network: Network) -> tuple[str, ...]:
    """The layers with bias whose inputs are never negative, by what stand-in pictures put into them."""
    layers: Mapping[str, nn.Module] = {
        name: layer
        for name, layer in network.module.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None
    }
    least: dict[str, float] = {}
    for run in record(layers, lambda: network.features(natural_noise(network, 2)), lambda _, __, x: float(x.min()))[1]:
        least[run.name] = min(least.get(run.name, 0.0), run.inputs)
    return tuple(name for name, value in least.items() if value >= 0)


def _covers(subject: Subject, layer: str) -> bool:
    """Whether both gradients are there, of enough channels, and no mere rounding, as they may be before BatchNorm."""
    names = (f"{layer}.weight", f"{layer}.bias")
    if any(name not in subject.raw for name in names) or len(subject.raw[names[1]]) < _CHANNELS:
        return False
    return all(bool(subject.raw[n].norm() > 100 * subject.rounding(n).norm() + 1e-300) for n in names)


def _cosine(update: Params, layer: str) -> float:
    rows, bias = update[f"{layer}.weight"].flatten(start_dim=1).mean(dim=1), update[f"{layer}.bias"]
    return float(torch.nn.functional.cosine_similarity(rows, bias, dim=0))


def _mended(update: Params, pair: frozenset[str], layers: list[str], low: list[str]) -> float:
    """The least cosine of the layers concerned, once the two tensors have changed places."""
    first, second = pair
    exchanged = {**update, first: update[second], second: update[first]}
    touched = [name for name in layers if name in low or f"{name}.weight" in pair or f"{name}.bias" in pair]
    return min(_cosine(exchanged, name) for name in touched)
