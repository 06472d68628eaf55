"""Which projection of an attention makes its queries, keys and values, and how wide a head is: by changing one of each.

a value's channel changes that channel of the mixed values, in every token that attends
a query's channel of one token changes one head's channels, in that token alone;  a key's, in all tokens
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn

from inversefed.attacks.exact.text.roles import TextRoles
from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.hooks import record, replaced_outputs
from inversefed.fl.network import Network
from inversefed.inputs.tokens import Tokens

__all__ = ["AttentionParts", "Projection", "attention_parts"]


class Projection(NamedTuple):
    """Rows of a weight that project what an attention is fed.

    Args:
        weight: its name.
        rows: which of them, as queries, keys and values may share one weight.
    """

    weight: str
    rows: slice


@dataclass(frozen=True)
class AttentionParts:
    """The projections of one attention.

    Args:
        query: what makes queries.
        key: what makes keys.
        value: what makes values.
        heads: how many parts of equal width attend on their own.
    """

    query: Projection
    key: Projection
    value: Projection
    heads: int


def attention_parts(network: Network, roles: TextRoles, space: Tokens) -> AttentionParts:
    """What the linear layers of the first attention are for, be they three, fewer, or those of torch's own attention.

    Raises:
        UnsupportedNetworkError: they are no linear layers, or do not make queries, keys and values of one width.
    """
    names = [weight.rpartition(".")[0] for weight in roles.first]
    layers = {name: network.module.get_submodule(name) for name in names}
    if isinstance(own := next(iter(layers.values())), nn.MultiheadAttention):
        ends = range(0, 4 * own.embed_dim, own.embed_dim)
        query, key, value = (Projection(roles.first[0], slice(*each)) for each in itertools.pairwise(ends))
        return AttentionParts(query, key, value, own.num_heads)
    linear = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}
    width, more = divmod(sum(layer.out_features for layer in linear.values()), 3)
    if len(linear) < len(layers) or more or any(layer.out_features % width for layer in linear.values()):
        raise UnsupportedNetworkError(
            f"{', '.join(roles.first)}: sentences of an encoder are told apart only where queries, keys and values, of "
            "one width, are made by linear layers"
        )
    drawn = torch.randint(space.vocabulary - 1, (1, min(6, space.length)), generator=Generator().manual_seed(0))
    ids = (drawn + (drawn >= space.pad)).to(network.device)
    before, parts, per_head = _mixed(network, names, ids), dict[_Kind, Projection](), 0
    for name, layer in linear.items():
        for start in range(0, layer.out_features, width):
            kind, channels = _kind(before, _mixed(network, names, ids, (name, start)))
            parts[kind] = Projection(f"{name}.weight", slice(start, start + width))
            per_head = channels if kind is _Kind.QUERY else per_head
    same = 0 < per_head <= width and width % per_head == 0 and len(parts) == 3
    for kind, (weight, rows) in parts.items() if same and per_head < width else ():
        other = _mixed(network, names, ids, (weight.rpartition(".")[0], rows.start + per_head))
        same = same and _kind(before, other)[0] is kind
    if not same:
        raise UnsupportedNetworkError(
            f"{', '.join(roles.first)} are not the queries, keys and values of one attention, each in rows of its own"
        )
    return AttentionParts(parts[_Kind.QUERY], parts[_Kind.KEY], parts[_Kind.VALUE], width // per_head)


class _Kind(Enum):
    """What a projection makes."""

    QUERY = auto()
    KEY = auto()
    VALUE = auto()


def _kind(before: Tensor, after: Tensor) -> tuple[_Kind, int]:
    """What a channel of the first token belongs to, and how many channels it changed of what is mixed.

    Args:
        before: what the layer behind an attention is fed, `[length, width]`.
        after: the same with that channel changed.
    """
    changed = (after - before).abs() > 1e-6 * before.abs().max()
    channels, elsewhere = int(changed.any(dim=0).sum()), bool(changed[1:].any())
    return (_Kind.VALUE if channels == 1 else _Kind.KEY if elsewhere else _Kind.QUERY), channels


def _mixed(network: Network, names: Sequence[str], ids: Tensor, changed: tuple[str, int] | None = None) -> Tensor:
    """What the next linear layer behind an attention is fed, `[length, width]`, one channel of the first token changed.

    Args:
        network: run as it is.
        names: of the attention's own layers.
        ids: one sentence, `[1, length]`.
        changed: a layer, and which of its output channels is another at the first token; `None` for none.
    """

    def other(_: str, __: nn.Module, ___: Tensor, outputs: Tensor) -> Tensor:
        outputs = outputs.clone()
        outputs[0, 0, channel] += 1 + outputs.abs().max()
        return outputs

    name, channel = changed or ("", 0)
    linear = {each: network.module.get_submodule(each) for each in network.linear_layers()}
    layers = {} if changed is None else {name: linear[name]}
    with torch.no_grad(), replaced_outputs(layers, other):
        _, runs = record(linear, lambda: network.apply(network.params, ids), lambda _, __, inputs: inputs.clone())
    order = [run.name for run in runs]
    last = max(order.index(each) for each in names)
    return runs[last + 1].inputs[0]
