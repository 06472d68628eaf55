"""What an update can reveal at most: counted from network and update, before any attack runs.

    numbers in the update < values to be found   =>   no method finds them all

Counting refutes, it does not prove: enough equations may still depend on each other, and only an exact method that
reproduces the update shows that they do not. With one example and a chain of layers the count follows the way of
peeling, from the head to the image (see `exact.peel`); where linear equations settle layer after layer until as many
numbers are known as the image has values, the image is called determined. So it is where learned positions tell
the loss gradient of a transformer's tokens, and that settles its patches (see `exact.patch_embedding`).
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from inversefed.attacks.exact.april import AttentionInput
from inversefed.attacks.exact.categories import CategoryRows
from inversefed.attacks.exact.dense_batch.spear import SparseBatch
from inversefed.attacks.exact.linear import LinearInput
from inversefed.attacks.exact.peel.attack import Peel, known_exactly
from inversefed.attacks.exact.peel.conv_input import gradient_matrix
from inversefed.attacks.exact.peel.forecast import forecast
from inversefed.attacks.exact.peel.state import PeelState
from inversefed.attacks.exact.text.embedding_rows import EmbeddingRows
from inversefed.attacks.exact.text.span_sentences import SpanSentences
from inversefed.attacks.exact.transformer.token_inputs import TokenEntry
from inversefed.attacks.exact.transformer.token_system import TokenSystem, token_system, told
from inversefed.attacks.identifiability.hidden import unrecoverable
from inversefed.attacks.identifiability.layer_counts import TOLERANCE, LayerEquations, count, numerical_rank
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.clients.views import gradients_summed
from inversefed.fl.threat import Observation
from inversefed.inputs import Columns, Tokens, pictured
from inversefed.networks.layer_chain import Layer, flat
from inversefed.types import Finding

__all__ = ["Identifiability", "Method", "identify"]

_MEASURED = 4_000_000
"""Entries of a convolution's matrix up to which its rank is computed, not bounded."""
_LINEAR = (nn.Flatten, nn.Identity, nn.Dropout, nn.Dropout2d, nn.Sigmoid, nn.Tanh, nn.LeakyReLU, nn.ReLU,
           nn.BatchNorm2d, nn.Linear, nn.Conv2d)  # fmt: skip
"""What linear equations pass, from behind to the front."""


@dataclass(frozen=True)
class Method:
    """One exact method, asked before it runs.

    Args:
        name: as `inversefed list attacks` prints it.
        applies: whether what it needs is there; that its result is exact only its own run can show.
        reason: what it would do and where it is expected to stop, or why it refuses, in its own words.
    """

    name: str
    applies: bool
    reason: str


@dataclass(frozen=True)
class Identifiability:
    """How much there is to find, how much the update holds, and who could find it.

    Args:
        verdict: `"nothing"`: the update is zero. `"underdetermined"`: fewer numbers than unknowns, so no method finds
            them all. `"determined"`: counted from the head down, linear equations settle layers until as many numbers
            are known as the image has values. `"open"`: enough numbers in all, but not on a way that is linear.
        reason: the figures behind it.
        examples: how many examples made the update.
        unknowns: values to be found.
        entries: numbers in the update.
        numbers: the most independent ones among them.
        least_examples: lower bound on the number of examples, `rank / (places x passes of each example)` of a linear
            layer; it holds if what was added to the update lies below the tolerance. 0 where no rank bounds it.
        bound_by: the layer whose rank gives it, empty if none does.
        tolerance: singular values up to this share of a gradient matrix's norm count as zero.
        layers: from the head to the image.
        methods: the exact ones.
        limits: what no method recovers, and why.
    """

    verdict: Literal["nothing", "underdetermined", "determined", "open"]
    reason: str
    examples: int
    unknowns: int
    entries: int
    numbers: int
    least_examples: int
    bound_by: str
    tolerance: float
    layers: tuple[LayerEquations, ...]
    methods: tuple[Method, ...]
    limits: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """All of it as values that JSON can hold, each layer with its `suffices`."""
        layers = [{**asdict(row), "suffices": row.suffices} for row in self.layers]
        return {**asdict(self), "layers": layers, "limits": [finding.to_dict() for finding in self.limits]}


def identify(observation: Observation) -> Identifiability:
    """Count what an update can give away, without solving for it.

    Args:
        observation: network, client and update; nothing is run but one gray picture, for the shapes of the layers.

    >>> from inversefed.fl.clients import FedSGD
    >>> from inversefed.fl.network import freeze
    >>> network = freeze(nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), (3, 2, 2))
    >>> update = FedSGD()(network, torch.rand(2, 3, 2, 2), torch.tensor([2, 0]))
    >>> found = identify(Observation(network, FedSGD(), update, 2))
    >>> found.verdict, found.numbers, found.unknowns, found.least_examples, found.bound_by
    ('open', 32, 24, 2, '1')
    """
    layers = count(observation)
    read = _read(observation)
    way = None if isinstance(read, str) else _way(observation, layers, *read)
    patches, tokens = _patches(observation)
    methods = _methods(observation, layers, read, patches)
    if way is not None and not isinstance(read, str) and any(each.name == "peel" and each.applies for each in methods):
        way = replace(way, layers=_followed(way.layers, read[0], observation.network.grid))
    layers = layers if way is None else way.layers
    if tokens is not None and not _altered(layers):
        layers = tuple(_solved(row, *tokens) for row in layers)
    least, bound_by = _least_examples(observation, layers)
    numbers = sum(row.numbers for row in layers)
    verdict, reason = _verdict(observation, layers, way, numbers)
    return Identifiability(
        verdict,
        reason,
        observation.num_examples,
        math.prod(observation.batch_shape),
        sum(row.entries for row in layers),
        numbers,
        least,
        bound_by,
        TOLERANCE * torch.finfo(observation.network.dtype).eps,
        layers,
        methods,
        unrecoverable(observation, layers, None if way is None else way.front.values, numbers),
    )


@dataclass(frozen=True, eq=False)
class _Way:
    """From the head to the image: what the head gives away, and the rows with what is known there."""

    front: PeelState
    layers: tuple[LayerEquations, ...]


def _read(observation: Observation) -> tuple[tuple[Layer, ...], PeelState] | str:
    """The chain and what its head gives away, or the reason why peeling cannot begin."""
    try:
        return known_exactly(observation)
    except (ThreatModelError, UnsupportedNetworkError) as error:
        return str(error)


def _methods(
    observation: Observation,
    layers: tuple[LayerEquations, ...],
    read: tuple[tuple[Layer, ...], PeelState] | str,
    patches: Method,
) -> tuple[Method, ...]:
    space = observation.network.space
    if isinstance(space, Tokens):
        return (
            _asked("embedding_rows", lambda: EmbeddingRows().check(observation)),
            _asked("token_span", lambda: SpanSentences().check(observation)),
        )
    linear = _asked("linear", lambda: LinearInput().check(observation))
    others = [_asked("sparse", lambda: SparseBatch().check(observation))]
    if isinstance(space, Columns):
        others.append(_asked("categories", lambda: CategoryRows().check(observation)))
    if pictured(space):
        others += [patches, _asked("april", lambda: AttentionInput().check(observation))]
    peel = _asked("peel", lambda: Peel().check(observation, None if isinstance(read, str) else read[0]))
    once = gradients_summed(observation.client, observation.num_examples) == observation.num_examples
    if peel.applies and (_altered(layers) or not once):
        peel = replace(peel, reason=f"{peel.reason}; its equations hold only roughly here, and so will its result")
    return linear, peel, *others


def _patches(observation: Observation) -> tuple[Method, tuple[TokenEntry, TokenSystem] | None]:
    """What the gradient of positions tells of the picture's patches, measured once."""
    found: list[tuple[TokenEntry, TokenSystem]] = []

    def check() -> str:
        found.append(token_system(observation))
        return told(*found[0])

    return _asked("patch_embedding", check), found[0] if found else None


def _solved(row: LayerEquations, entry: TokenEntry, system: TokenSystem) -> LayerEquations:
    """The patch embedding, whose loss gradient the positions tell."""
    own = int(system.told.sum()) * entry.patches.index.shape[1]
    if row.name != entry.patches.layer or entry.patches.unseen:
        return row
    return replace(row, own=own, measured=True, known=min(own, row.unknowns), settled=not system.free)


def _asked(name: str, check: Callable[[], str]) -> Method:
    try:
        return Method(name, True, check())
    except (ThreatModelError, UnsupportedNetworkError) as error:
        return Method(name, False, str(error))
    except Exception as error:  # foreign code of the network: whatever it raises means the same
        return Method(name, False, f"the network does not run as this method asks: {str(error)[:200]}")


def _least_examples(observation: Observation, layers: tuple[LayerEquations, ...]) -> tuple[int, str]:
    """The rank of a linear layer's gradient is at most forward passes x places; a client may make several a picture."""
    seen, best = gradients_summed(observation.client, observation.num_examples), (0, "")
    if seen is None:
        return best
    for row in layers:
        if row.kind == "Linear" and row.rank:
            again = row.places * math.ceil(seen / observation.num_examples)
            best = max(best, (math.ceil(row.rank / again), row.name), key=lambda pair: pair[0])
    return best


def _altered(layers: tuple[LayerEquations, ...]) -> bool:
    """Whether a rank is higher than the client's examples allow."""
    return any(row.rank is not None and row.rank_bound is not None and row.rank > row.rank_bound for row in layers)


def _way(
    observation: Observation, layers: tuple[LayerEquations, ...], chain: tuple[Layer, ...], front: PeelState
) -> _Way | None:
    """What is known on the way from the head, where one step on one example made the update."""
    if gradients_summed(observation.client, observation.num_examples) != 1 or _altered(layers):
        return None
    rows = {row.name: row for row in layers}
    _measure(rows, chain, front, observation)
    _accumulate(rows, chain)
    return _Way(front, tuple(rows.values()))


def _measure(
    rows: dict[str, LayerEquations], chain: tuple[Layer, ...], front: PeelState, observation: Observation
) -> None:
    """The rank of the first convolution's own equations: the loss gradient at its output is known."""
    depth, layer = front.depth, chain[front.depth - 1]
    module, row = layer.module, rows.get(layer.name)
    shape = chain[depth - 2].shape if depth > 1 else observation.network.image_shape
    if depth == 0 or row is None or not isinstance(module, nn.Conv2d) or not bool(front.delta.isfinite().all()):
        return
    size = module.weight.numel() // shape[0] * math.prod(shape[1:])
    if module.groups > 1 or set(module.dilation) != {1} or isinstance(module.padding, str) or size > _MEASURED:
        return
    matrix = gradient_matrix(module, (shape[0], shape[1], shape[2]), front.delta)
    noise = TOLERANCE * torch.finfo(observation.network.dtype).eps * float(matrix.norm())
    rows[layer.name] = replace(row, own=min(row.own, shape[0] * numerical_rank(matrix, noise)), measured=True)


def _accumulate(rows: dict[str, LayerEquations], chain: tuple[Layer, ...]) -> None:
    """Go from the head to the image: what a layer's gradient says, and what is known behind it."""
    known, certain, settled, solved = 0, 0, True, False
    for layer in reversed(chain):
        known, certain = (min(part, math.prod(layer.shape)) for part in (known, certain))
        kinked = isinstance(layer.module, nn.ReLU)
        settled = settled and isinstance(layer.module, _LINEAR) and not (kinked and solved)
        certain = 0 if kinked or not settled else certain
        row = rows.get(layer.name)
        if row is None or not isinstance(layer.module, nn.Linear | nn.Conv2d):
            continue
        settled = settled and row.own + certain >= row.unknowns
        solved = solved or isinstance(layer.module, nn.Conv2d)
        forward, known = known, min(row.unknowns, row.own + known)
        certain = row.unknowns if settled else 0
        rows[layer.name] = replace(row, forward=forward, known=known, settled=settled)


def _followed(
    layers: tuple[LayerEquations, ...], chain: tuple[Layer, ...], image_shape: tuple[int, int, int]
) -> tuple[LayerEquations, ...]:
    """Settle, past averages and sums, the convolutions whose own equations do, as far as peeling should come."""
    far = forecast(chain, image_shape)
    if far.alternates:
        return layers
    passed = {layer.name for layer in flat(chain)} - {layer.name for layer in flat(far.left)}
    return tuple(
        replace(row, settled=True, known=row.unknowns)
        if row.kind == "Conv2d" and row.name in passed and row.own >= row.unknowns
        else row
        for row in layers
    )


def _verdict(
    observation: Observation, layers: tuple[LayerEquations, ...], way: _Way | None, numbers: int
) -> tuple[Literal["nothing", "underdetermined", "determined", "open"], str]:
    if not any(bool(part.any()) for part in observation.gradient.values()):
        return "nothing", "every entry of the update is zero: it says nothing of any picture"
    unknowns = math.prod(observation.batch_shape)
    if numbers < unknowns:
        return "underdetermined", (
            f"at most {numbers} independent numbers for {unknowns} values: {unknowns - numbers} of them stay free, "
            "whatever the method; only knowledge of what pictures look like can fill them"
        )
    row = next((row for row in reversed(layers) if row.settled), None)
    off = 0 if row is None or way is None else _off(row, way.front)
    if row is not None and row.unknowns - off >= unknowns:
        return "determined", (
            f"linear equations settle the {row.unknowns} values that go into {row.name or 'the network'}"
            f"{f' ({off} of them only as off)' if off else ''}, and the image has {unknowns}; "
            "counted, not proven: a run of an exact method proves it"
        )
    return "open", (
        f"up to {numbers} independent numbers for {unknowns} values, but "
        + ("no way from the head on which linear equations settle as many" if way else _why_no_way(observation, layers))
    )


def _off(row: LayerEquations, front: PeelState) -> int:
    """How many of the values that go into a layer are seen to be zero behind a ReLU, and so no equations."""
    here = row.kind == "Linear" and front.depth > 0 and front.values.numel() == row.unknowns
    return int((front.values == 0).sum()) if here and bool((front.values >= 0).all()) else 0


def _why_no_way(observation: Observation, layers: tuple[LayerEquations, ...]) -> str:
    if _altered(layers):
        return "they are not as this client computes them, and hold only roughly"
    if observation.num_examples > 1:
        return f"they are sums over {observation.num_examples} examples, which no linear equation takes apart"
    if gradients_summed(observation.client, observation.num_examples) != 1:
        return "they are sums over local steps, at weights that move, or bent by the client's rule"
    return "there is no chain of layers below a linear head with bias along which to follow them"
