"""What an update hides from every method, and why: read from the network and the update."""

import math
from collections.abc import Iterator

from torch import Tensor, nn

from inversefed.attacks.identifiability.layer_counts import LayerEquations
from inversefed.findings import Code
from inversefed.fl.clients.views import gradients_summed
from inversefed.fl.threat import Observation
from inversefed.fl.train_mode import batchnorm_in_train_mode, dropout_in_train_mode
from inversefed.networks.architecture import architecture
from inversefed.types import Finding

__all__ = ["unrecoverable", "zero_head"]


def unrecoverable(
    observation: Observation, layers: tuple[LayerEquations, ...], features: Tensor | None, numbers: int
) -> tuple[Finding, ...]:
    """Say what cannot be recovered.

    Args:
        observation: the update, and the network that it belongs to.
        layers: the counts of each layer.
        features: what the head gives away of one example, as far as nothing had to be solved for.
        numbers: the most independent numbers in the update.
    """
    if not any(bool(part.any()) for part in observation.gradient.values()):
        return (
            Finding(Code.ZERO_UPDATE, "warning", "Every entry of the update is zero, and nothing can be recovered."),
        )
    parts = (
        _too_few(observation, numbers), _mixed(observation, layers), _steps(observation), _ranks(layers),
        zero_head(observation), _zero_rows(layers), _relu(observation, features), _pooling(observation),
        _coupled(observation),
    )  # fmt: skip
    return tuple(finding for part in parts for finding in part)


def zero_head(observation: Observation) -> tuple[Finding, ...]:
    """Say that nothing but the head has a gradient, where its weights are all zero and stop what comes back.

    Networks whose head starts at zero (torchvision's `VisionTransformer`) are sent so in their first round.

    Args:
        observation: the update, and the network that it belongs to; several local steps move the head.
    """
    name, gradient = observation.network.head, observation.gradient
    weight = observation.network.params.get(f"{name}.weight".lstrip("."))
    if name is None or weight is None or bool(weight.any()):
        return ()
    before = [part for each, part in gradient.items() if each.rpartition(".")[0] != name]
    if not before or any(bool(part.any()) for part in before):
        return ()
    width = weight[0].numel()
    message = (
        f"The head's weights ({name}) are all zero: no gradient reaches the layers before it. The update holds only "
        f"what goes into the head, {width} numbers an example at most, and the labels. That ends with the first step "
        "of training: audit such a network with the weights of a later round as well."
    )
    return (Finding(Code.ZERO_HEAD, "warning", message, {"head": name, "width": width}),)


def _too_few(observation: Observation, numbers: int) -> Iterator[Finding]:
    unknowns = math.prod(observation.batch_shape)
    if numbers < unknowns:
        message = f"{unknowns - numbers} of {unknowns} values: the update has at most {numbers} independent numbers."
        yield Finding(Code.TOO_FEW_EQUATIONS, "warning", message, {"free": unknowns - numbers})


def _mixed(observation: Observation, layers: tuple[LayerEquations, ...]) -> Iterator[Finding]:
    count = observation.num_examples
    if count == 1:
        return
    yield Finding(Code.ORDER, "info", f"The order of the {count} examples: the update is a sum over them.")
    linear = [row for row in layers if row.kind == "Linear" and row.rank == row.rank_bound == count]
    if linear:
        biased = any(f"{row.name}.bias" in observation.gradient for row in linear)
        free, names = count * (count - 1) if biased else count**2, ", ".join(row.name for row in linear)
        yield Finding(
            Code.MIXED_EXAMPLES,
            "info",
            f"Which example is which, from a linear layer alone ({names}): its gradient gives the space that the "
            f"{count} inputs span, and leaves {free} numbers of their mixture free. What takes them apart has to come "
            "from elsewhere: zeros behind a ReLU, independence, the other layers, or a prior.",
            {"free": free, "layers": [row.name for row in linear]},
        )


def _steps(observation: Observation) -> Iterator[Finding]:
    seen = gradients_summed(observation.client, observation.num_examples)
    if seen is None:
        message = (
            "Single gradients: the client's rule mixes entries or adds weights, so ranks and counts bound nothing."
        )
        yield Finding(Code.CLIENT_RULE, "info", message)
    elif seen > observation.num_examples:
        message = f"The gradients of single local steps: {seen} passes of an example are summed, at weights that move."
        yield Finding(Code.LOCAL_STEPS, "info", message, {"passes": seen})


def _ranks(layers: tuple[LayerEquations, ...]) -> Iterator[Finding]:
    over = [row for row in layers if row.rank is not None and row.rank_bound is not None and row.rank > row.rank_bound]
    if over:
        row = over[0]
        yield Finding(
            Code.RANK,
            "warning",
            f"What was changed after the gradient was computed: the gradient of {row.name} has rank {row.rank} or "
            f"more, and this client's examples allow {row.rank_bound}. Noise, pruning or quantization does that, or "
            "there are more examples than said; equations hold up to that change only, and nothing exact is expected.",
            {"layers": [row.name for row in over], "rank": row.rank, "rank_bound": row.rank_bound},
        )


def _zero_rows(layers: tuple[LayerEquations, ...]) -> Iterator[Finding]:
    dead = {row.name: row.zero_rows for row in layers if row.zero_rows}
    if dead:
        count, where = sum(dead.values()), ", ".join(f"{name} ({rows})" for name, rows in list(dead.items())[:4])
        yield Finding(
            Code.ZERO_ROWS,
            "info",
            f"What {count} outputs respond to: their rows of the gradient are exactly zero, in {where}"
            f"{', ..' if len(dead) > 4 else ''}. A ReLU that is off does that, or pruning; the update does not say.",
            {"rows": dead},
        )
    entries, zeros = sum(row.entries for row in layers), sum(row.zeros for row in layers)
    if zeros:
        share = f"{zeros} of {entries} entries ({zeros / entries:.0%})"
        message = f"What {share} held: they are exactly zero, because something is off, cancels or was pruned."
        yield Finding(Code.ZERO_ENTRIES, "info", message, {"zeros": zeros, "entries": entries})


def _relu(observation: Observation, features: Tensor | None) -> Iterator[Finding]:
    if not any(isinstance(part, nn.ReLU | nn.ReLU6) for part in observation.network.module.modules()):
        return
    message = "How far below zero the input of a ReLU is where it is off: from behind, only its sign is known."
    if features is None or not bool(features.isfinite().all()):
        yield Finding(Code.RELU_SIDES, "info", message)
        return
    off, count = int((features == 0).sum()), features.numel()
    if off:
        message = f"{message} That is so at {off} of the {count} values that the head gives away."
    yield Finding(Code.RELU_SIDES, "info", message, {"off": off, "values": count})


def _pooling(observation: Observation) -> Iterator[Finding]:
    traits = architecture(observation.network)
    if names := traits.max_pools:
        yield Finding(
            Code.MAX_POOLING,
            "info",
            f"What loses in a max pooling ({', '.join(names)}): from behind, it is bounded by the winner and no more, "
            "and which one won has to be inferred from the layers in front.",
        )
    if names := traits.averages:
        yield Finding(
            Code.AVERAGE_POOLING,
            "info",
            f"What an average cancels ({', '.join(names)}): behind it all inputs of equal mean are one. Only gradients "
            "of layers in front of it can tell them apart, being sums over places: it takes many channels.",
        )


def _coupled(observation: Observation) -> Iterator[Finding]:
    if batchnorm_in_train_mode(observation.network.module):
        message = "Single examples' equations: BatchNorm in train mode couples the batch; the counts stay upper bounds."
        yield Finding(Code.BATCHNORM_TRAIN_MODE, "info", message)
    if dropout_in_train_mode(observation.network.module):
        message = "What dropout removed: the client's masks are not known, and each of them hides inputs of its own."
        yield Finding(Code.DROPOUT_TRAIN_MODE, "info", message)
