"""Which weights of a transformer are what: embeddings, positions, and the first two attentions' projections.

The module is run once on made-up sentences, and what its layers are fed says what they are, whatever their names:

    token embedding:   is fed the ids                      positions:  is fed 0, 1, 2, .. (or rows of the right shape)
    attention:         three linear layers or more are fed one tensor; or one of three times its width, fused
    causal:            another last token changes nothing of what the second attention is fed in front of it

`torch.nn.Linear`, `torch.nn.MultiheadAttention`, the Conv1D of Hugging Face's GPT-2, and low-rank adapters of
`networks.lora` and of peft are known. For anything else name in a `TextRoles` what is not read, or not as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from inversefed.errors import InversefedError, UnsupportedNetworkError
from inversefed.fl.hooks import LayerRun, record
from inversefed.fl.network import Network
from inversefed.inputs.tokens import Tokens
from inversefed.networks.lora import LowRankLinear

__all__ = ["TextRoles"]


@dataclass(frozen=True)
class TextRoles:
    """Names of weights, as `named_parameters` has them. What is not named is read off a run of the network.

    A weight of `first` and `second` may be a layer's or a bare parameter: what the module that holds it is fed is taken
    for what the weight multiplies.

    Args:
        tokens: of the token embedding, `[vocabulary, width]`; an empty name says that there is none.
        positions: of learned positions, `[.., places, width]`; an empty name that there are none, as in Llama.
        first: weights that multiply what the first attention is fed: its queries, keys and values, or their adapters.
        second: likewise of the second attention, or of any other layer behind the first.
        causal: whether a token sees only those before it.

    >>> TextRoles(first=("blocks.0.to_q.weight", "blocks.0.to_kv.weight"), second=("blocks.1.to_q.weight",))
    TextRoles(tokens=None, positions=None, first=('blocks.0.to_q.weight', 'blocks.0.to_kv.weight'),
              second=('blocks.1.to_q.weight',), causal=None)
    """

    tokens: str | None = None
    positions: str | None = None
    first: tuple[str, ...] = ()
    second: tuple[str, ...] = ()
    causal: bool | None = None


class _Reached(InversefedError):
    """A layer was about to run, and what it was fed is known."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs


def layer_inputs(network: Network, weight: str, ids: Tensor) -> Tensor:
    """What the layer that holds a weight is fed, `[n, length, width]`; nothing behind it is computed.

    Args:
        network: run with its own weights.
        weight: the name of one of the layer's weights.
        ids: sentences, `[n, length]`.

    Raises:
        UnsupportedNetworkError: the layer does not run, or the network fails before it.
    """
    name = weight.rpartition(".")[0]

    def reached(_: str, __: nn.Module, inputs: Tensor) -> None:
        raise _Reached(inputs.detach())

    try:
        with torch.no_grad():
            record({name: network.module.get_submodule(name)}, lambda: network.apply(network.params, ids), reached)
    except _Reached as found:
        return found.inputs
    raise UnsupportedNetworkError(f"layer {name} does not run on token ids of shape {tuple(ids.shape)}")


def read_roles(network: Network, space: Tokens, given: TextRoles = TextRoles()) -> TextRoles:
    """Run the network on made-up sentences, and read off what its weights are.

    Args:
        network: takes ids `[n, length]`.
        space: of its inputs.
        given: what is not to be read off.

    Raises:
        UnsupportedNetworkError: it fails on ids.

    Returns:
        All of them; `None`, and no names, for what there is none of or what was not read.
    """
    kinds = (nn.Linear, nn.Embedding, nn.MultiheadAttention, LowRankLinear)
    layers = {
        name: layer for name, layer in network.module.named_modules() if isinstance(layer, kinds) or _is_conv1d(layer)
    }
    drawn = torch.randint(space.vocabulary - 1, (2, space.length), generator=Generator().manual_seed(0))
    ids = drawn + (drawn >= space.pad)
    ids[1, :-1] = ids[0, :-1]
    ids = ids.to(network.device)
    with torch.no_grad():
        _, runs = record(layers, lambda: network.apply(network.params, ids), lambda _, __, inputs: inputs.detach())
    embeddings = [run for run in runs if isinstance(run.layer, nn.Embedding)]
    tokens = next((run.name for run in embeddings if torch.equal(run.inputs, ids)), None)
    placed = next((run.name for run in embeddings if _counts_up(run.inputs, space.length)), None)
    positions = _held(network, space.length) if placed is None else f"{placed}.weight"
    first, second, *_ = *_attentions(runs), (), ()
    read = TextRoles(None if tokens is None else f"{tokens}.weight", positions, first, second)
    named = {name: value for name, value in vars(given).items() if value not in (None, ())}
    roles = replace(read, **named)
    roles = replace(roles, tokens=roles.tokens or None, positions=roles.positions or None)
    return roles if roles.causal is not None else replace(roles, causal=_causal(network, roles.second, ids))


def unread(missing: str) -> UnsupportedNetworkError:
    """The error for a network of which a run does not tell what is needed: what that is, and how to name it."""
    return UnsupportedNetworkError(
        f"{missing}, so this is no transformer that is known by a run of it; name its weights, as named_parameters "
        "has them: roles=TextRoles(tokens=.., first=(..), second=(..))"
    )


def _causal(network: Network, second: tuple[str, ...], ids: Tensor) -> bool:
    """Whether another last token changes nothing of what the second attention is fed in front of it.

    Args:
        network: run on both.
        second: weights of that attention.
        ids: two sentences that differ in their last tokens.
    """
    if not second or ids.shape[1] < 2:
        return False
    before = layer_inputs(network, second[0], ids)[:, :-1]
    return float((before[0] - before[1]).norm()) <= 1e-4 * float(before[0].norm())  # rounding, or everything


def tied_to(network: Network, weight: str) -> tuple[str, ...]:
    """Other names of a weight: those of layers that share it, as the output does in many language models."""
    named = dict(network.module.named_parameters(remove_duplicate=False))
    return tuple(name for name, other in named.items() if other is named[weight] and name != weight)


def _is_conv1d(layer: nn.Module) -> bool:
    """The linear layer of Hugging Face's GPT-2, whose weight is `[in, out]`."""
    return type(layer).__name__ == "Conv1D"


def _counts_up(inputs: Tensor, length: int) -> bool:
    """Whether an embedding is fed places: one more from each to the next."""
    return inputs.shape[-1] == length > 1 and bool((inputs.diff(dim=-1) == 1).all())


def _held(network: Network, length: int) -> str | None:
    """Positions that are a parameter of their own: rows for every place, in no layer."""
    for name, weight in network.params.items():
        owner = network.module.get_submodule(name.rpartition(".")[0])
        known = isinstance(owner, nn.Linear | nn.Embedding | nn.MultiheadAttention | LowRankLinear)
        if not known and weight.ndim >= 2 and weight.shape[-2] == length and weight[..., 0, 0].numel() == 1:
            return name
    return None


def _attentions(runs: Sequence[LayerRun[Tensor]]) -> list[tuple[str, ...]]:
    """Weights that multiply what an attention is fed, one tuple an attention, in the order in which they run."""
    fed: dict[tuple[object, ...], list[LayerRun[Tensor]]] = {}
    for run in runs:
        if not isinstance(run.layer, nn.Embedding):
            fed.setdefault((run.inputs.data_ptr(), *run.inputs.shape), []).append(run)
    return [tuple(_weight(run) for run in group) for group in fed.values() if _is_attention(group)]


def _is_attention(group: Sequence[LayerRun[Tensor]]) -> bool:
    """Queries, keys and values, each by a layer, adapters not counted; or all by one."""
    own = [run for run in group if not isinstance(run.layer, LowRankLinear) and ".lora_" not in run.name]
    width = group[0].inputs.shape[-1]
    fused = any(isinstance(run.layer, nn.MultiheadAttention) or run.outputs.shape[-1] == 3 * width for run in own)
    return len(own) >= 3 or fused


def _weight(run: LayerRun[Tensor]) -> str:
    if isinstance(run.layer, LowRankLinear):
        return f"{run.name}.down"
    return f"{run.name}.in_proj_weight" if isinstance(run.layer, nn.MultiheadAttention) else f"{run.name}.weight"
