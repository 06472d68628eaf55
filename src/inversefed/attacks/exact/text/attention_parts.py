"""Which projection of an attention makes its queries, keys and values, and how wide a head is: by changing one of each.

a value's channel changes that channel of the mixed values, in every token that attends
a query's channel of one token changes one head's channels, in that token alone;  a key's, in all tokens
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from inversefed.attacks.exact.text.roles import TextRoles
from inversefed.errors import UnsupportedNetworkError
from inversefed.fl.hooks import record, replaced_outputs
from inversefed.fl.network import Network
from inversefed.inputs.tokens import Tokens

__all__ = ["AttentionParts", "attention_parts"]


@dataclass(frozen=True)
class AttentionParts:
    """The projections of one attention.

    Args:
        query: name of the weight that makes queries.
        key: of that which makes keys.
        value: of that which makes values.
        heads: how many parts of equal width attend on their own.
    """

    query: str
    key: str
    value: str
    heads: int


def attention_parts(network: Network, roles: TextRoles, space: Tokens) -> AttentionParts:
    """What the three layers of the first attention are for.

    Raises:
        UnsupportedNetworkError: they are not three linear layers of one width, or change something else.
    """
    names = [weight.rpartition(".")[0] for weight in roles.first]
    layers = {name: network.module.get_submodule(name) for name in names}
    if len(layers) != 3 or not all(isinstance(each, nn.Linear) for each in layers.values()):
        raise UnsupportedNetworkError(
            f"{', '.join(roles.first)}: sentences of an encoder are told apart only where queries, keys and values are "
            "made by three linear layers"
        )
    drawn = torch.randint(space.vocabulary - 1, (1, min(6, space.length)), generator=Generator().manual_seed(0))
    ids = (drawn + (drawn >= space.pad)).to(network.device)
    before = _mixed(network, names, ids, None)
    parts: dict[str, tuple[str, int]] = {}
    for name in names:
        changed = (_mixed(network, names, ids, name) - before).abs() > 1e-6 * before.abs().max()
        channels, elsewhere = int(changed.any(dim=0).sum()), bool(changed[1:].any())
        kind = "value" if channels == 1 else "key" if elsewhere else "query"
        parts[kind] = (f"{name}.weight", channels)
    width = parts.get("query", ("", 0))[1]
    if set(parts) != {"query", "key", "value"} or not width or before.shape[1] % width:
        raise UnsupportedNetworkError(f"{', '.join(roles.first)} are not the queries, keys and values of one attention")
    return AttentionParts(parts["query"][0], parts["key"][0], parts["value"][0], before.shape[1] // width)


def _mixed(network: Network, names: Sequence[str], ids: Tensor, changed: str | None) -> Tensor:
    """What the next linear layer behind an attention is fed, `[length, width]`, one channel of the first token changed.

    Args:
        network: run as it is.
        names: of the attention's own layers.
        ids: one sentence, `[1, length]`.
        changed: the layer whose first output channel is another at the first token; `None` for none.
    """

    def other(_: str, __: nn.Module, ___: Tensor, outputs: Tensor) -> Tensor:
        outputs = outputs.clone()
        outputs[0, 0, 0] += 1 + outputs.abs().max()
        return outputs

    linear = {name: network.module.get_submodule(name) for name in network.linear_layers()}
    layers = {} if changed is None else {changed: linear[changed]}
    with torch.no_grad(), replaced_outputs(layers, other):
        _, runs = record(linear, lambda: network.apply(network.params, ids), lambda _, __, inputs: inputs.clone())
    order = [run.name for run in runs]
    last = max(order.index(name) for name in names)
    return runs[last + 1].inputs[0]
