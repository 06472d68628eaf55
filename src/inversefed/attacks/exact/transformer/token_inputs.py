"""How an image becomes tokens: which weights embed its patches, and which are added as position embeddings.

    z_p = s E a_p + position_p   =>   dL/dE = s sum_p (dL/dposition_p) a_p^T

That identity is the measure: with a made-up picture it holds for the positions of the patches, wherever they stand in
their tensor, and for no other weights. So no layer has to be known by its class or name.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from inversefed.attacks.exact.transformer.embedded_patches import PatchMap, first_layer, patch_map, unsuited
from inversefed.errors import ThreatModelError
from inversefed.fl.clients.views import gradients_summed, inner_client
from inversefed.fl.foreign import foreign_code
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.numerics import float32_products
from inversefed.types import Images, Params

__all__ = ["TokenEntry", "token_entry"]


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        holds: relative error up to which the identity counts as holding on a made-up picture: both sides are sums of
            the same numbers, rounded in single precision.
        most_offsets: most places in a table of positions at which the first patch is looked for.
        most_open: patches over width up to which it is worth solving: at 2, half of the numbers are open, and 28 to 33
            dB come out.
        tiny: near the least number of double precision: a product that is zero has no scale.
    """

    holds: float = 1e-4
    most_offsets: int = 4096
    most_open: int = 2
    tiny: float = 1e-300


TOLERANCES = Tolerances()


@dataclass(frozen=True, eq=False)
class TokenEntry:
    """How a picture becomes tokens.

    Args:
        patches: which pixels the patch embedding sees.
        embed: name of its weights.
        positions: name of the weights that are added to the tokens.
        leading: whether the first axis of the positions is the width, not the last.
        first: which of them belongs to the first patch.
        scale: what the embedding is multiplied by before they are added.
        width: of a token.
    """

    patches: PatchMap
    embed: str
    positions: str
    leading: bool
    first: int
    scale: float
    width: int

    def tokens(self, gradient: Params) -> Tensor:
        """The loss gradient at the patches' tokens, `[patches, width]`."""
        part = _as_tokens(gradient[self.positions], self.width, self.leading)
        return part[self.first : self.first + len(self.patches.index)]

    def image(self, entries: Tensor, network: Network) -> Images:
        """The picture whose patches are these."""
        return self.patches.image(entries).to(network.device, network.dtype)


def token_entry(observation: Observation) -> TokenEntry:
    """Measure how pictures enter the network, where its update can be solved for them.

    Args:
        observation: made-up pictures go through a private copy of its network, in eval mode.

    Raises:
        ThreatModelError: the update is not that of one example in plain steps, or lacks what is needed.
        UnsupportedNetworkError: no learned positions are added to patches of the picture, or there are more than
            twice as many patches as the tokens are wide.
    """
    _check_update(observation)
    dtype = torch.promote_types(observation.network.dtype, torch.float32)
    network = observation.network.to(dtype)
    network.module.eval()  # the copy that `to` made
    candidates = _required(network, *first_layer(network, network.space.middle(1)))
    patches = patch_map(network)
    count, width = len(patches.index), len(network.params[_weight(patches.layer)])
    entry = _identified(network, patches, _weight(patches.layer), candidates)
    _check_sent(entry, observation.gradient)
    if count > TOLERANCES.most_open * width:
        raise unsuited(
            f"the gradient gives {width} equations, the tokens' width, for {count} patches, so {count - width} of "
            f"every {count} numbers stay open"
        )
    return entry


def _required(network: Network, layer: str, entries: Tensor) -> tuple[tuple[str, bool], ...]:
    """Weights that may be positions, told from shapes: most networks have none, and no picture more is sent."""
    embed, count = _weight(layer), len(entries)
    if embed not in network.params:
        frozen = embed in dict(network.module.named_parameters())
        why = "frozen, and so have no gradient" if frozen else "made of others, or shared with another layer"
        raise unsuited(f"the weights of the patch embedding, {layer}, are {why}")
    width = len(network.params[embed])
    if count == 1:
        raise unsuited(f"the first layer on the picture, {layer}, sees all of it at once, and no patches")
    if network.params[embed].numel() != width * entries.shape[1]:
        raise unsuited(f"the first layer on the picture, {layer}, takes its channels in groups")
    candidates = tuple(_candidates(network, width, count))
    if not candidates:
        raise unsuited(_without_positions(network, width, count))
    return candidates


def _weight(layer: str) -> str:
    return f"{layer}.weight".lstrip(".")


def _check_update(observation: Observation) -> None:
    if observation.num_examples != 1:
        raise ThreatModelError(
            f"the patches of one example are solved for; this update has {observation.num_examples}, whose tokens' "
            "gradients are summed"
        )
    summed = gradients_summed(observation.client, observation.num_examples) is not None
    if not summed and observation.client_known:
        raise ThreatModelError(
            f"patches are solved for from sums of gradients; {inner_client(observation.client)!r} changes or mixes "
            "them with weights entry by entry"
        )


def _check_sent(entry: TokenEntry, gradient: Params) -> None:
    for name in (entry.positions, entry.embed):
        if name not in gradient:
            raise ThreatModelError(f"patches are solved for from the gradient of {name}, and the update lacks it")
    if not bool(entry.tokens(gradient).any()) or not bool(gradient[entry.embed].any()):
        raise unsuited(
            f"the gradients of {entry.positions} and {entry.embed} are zero: nothing comes back to the patches, as "
            "where the head's weights are all zero"
        )


def _candidates(network: Network, width: int, count: int) -> Iterator[tuple[str, bool]]:
    """Weights that could be added to `count` tokens, and whether their first axis is the width."""
    layers = {name.rpartition(".")[0]: name for name in network.params}
    owned = {name for name in layers if isinstance(network.module.get_submodule(name), _MULTIPLY)}
    for name, weight in network.params.items():
        if name.rpartition(".")[0] not in owned:
            yield from ((name, leading) for leading in (False, True) if _fits(weight, width, count, leading))


_MULTIPLY = (nn.Linear, nn.modules.conv._ConvNd, nn.MultiheadAttention, nn.LayerNorm, nn.modules.batchnorm._NormBase)
"""Layers whose weights are no positions: asking only spares time, for the identity would tell."""


def _fits(weight: Tensor, width: int, count: int, leading: bool) -> bool:
    sides = [side for side in weight.shape if side > 1] or [1]
    return sides[0 if leading else -1] == width and weight.numel() >= count * width


def _as_tokens(part: Tensor, width: int, leading: bool) -> Tensor:
    """Positions or their gradient as rows, `[tokens, width]`, in double precision."""
    part = part.detach().cpu().double()
    return part.reshape(width, -1).T if leading else part.reshape(-1, width)


def _without_positions(network: Network, width: int, count: int) -> str:
    frozen = ((name, part) for name, part in network.module.named_parameters() if name not in network.params)
    for name, part in (*frozen, *network.module.named_buffers()):
        if _fits(part, width, count, False) or _fits(part, width, count, True):
            return f"{name}, which may be the tokens' positions, is not trained, so no token's gradient is sent"
    return (
        f"no trained weights could be added to each of the {count} patches (positions that are fixed or relative, or "
        "none, send no gradient of single tokens)"
    )


def _identified(
    network: Network, patches: PatchMap, embed: str, candidates: tuple[tuple[str, bool], ...]
) -> TokenEntry:
    """The positions for which the identity holds with a made-up picture."""
    picture = torch.rand((1, *network.image_shape), generator=Generator().manual_seed(1))
    gradient = _probe_gradient(network, picture, [embed, *dict.fromkeys(name for name, _ in candidates)])
    weights, entries = gradient[embed].detach().cpu().double().flatten(1), patches.entries(picture)
    count, width = len(entries), len(weights)
    if not bool(weights.any()):
        raise unsuited(
            f"no gradient comes back to {embed}, whatever the picture, as where the head's weights are all zero"
        )
    for name, leading in candidates:
        tokens = _as_tokens(gradient[name], width, leading)
        for first in range(min(len(tokens) - count + 1, TOLERANCES.most_offsets)):
            product = tokens[first : first + count].T @ entries
            scale = float((weights * product).sum() / product.square().sum().clamp(min=TOLERANCES.tiny))
            if (weights - scale * product).norm() <= TOLERANCES.holds * weights.norm():
                return TokenEntry(patches, embed, name, leading, first, scale, width)
    names = ", ".join(dict.fromkeys(name for name, _ in candidates))
    raise unsuited(
        f"what comes back to {names} is not what comes back to each patch's token, as where a norm stands between the "
        "patch embedding and the positions, or where they are added more than once"
    )


def _probe_gradient(network: Network, picture: Tensor, names: list[str]) -> Params:
    """The gradient of a made-up mixture of the logits: which loss the client takes does not matter here."""
    mixture = torch.randn(network.num_classes, generator=Generator().manual_seed(2))

    with torch.enable_grad(), float32_products(network.device), foreign_code("the gradient of a made-up picture"):
        logits = network.apply(network.params, picture.to(network.device, network.dtype))
        value = (logits * mixture.to(logits)).sum()
        weights = [network.params[name] for name in names]
        found = torch.autograd.grad(value, weights, materialize_grads=True)
    return dict(zip(names, found, strict=True))
