"""APRIL: one image from a vision transformer whose first attention has neither norm nor residual before it.

Needs: one example; a learnable position embedding; a first attention without norm before it or skip around it.

    z = E(patches) + positions,  W_q^T gW_q + W_k^T gW_k + W_v^T gW_v = (dL/dz)^T z = (dL/dpositions)^T z

(APRIL, Lu et al. 2022, arXiv:2112.14087.) The gradient of each projection is `d^T z`, and what goes back through all of
them is dL/dz, which is the gradient of the position embedding: a linear system for z, then one for the patches behind
E. Whether a network is of this kind is not guessed from its layers: a made-up picture is sent through it, and what
goes into the attention, and the identity itself, must come out so. The small singular values of dL/dpositions cost
digits: in an untrained network they are about 1e-6 of the largest.
"""

from dataclasses import dataclass, field
from typing import TypeGuard

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from inversefed.attacks.exact.verify import matched, verified
from inversefed.attacks.labels.nearest_update import labels_of
from inversefed.errors import ThreatModelError, UnsupportedNetworkError
from inversefed.fl.clients import FedSGD
from inversefed.fl.hooks import record
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.types import Budget, Candidate, Params, Reconstruction

__all__ = ["AttentionInput"]


@dataclass(frozen=True)
class Tolerances:
    """The numbers that it decides by, each with its reason.

    Args:
        holds: relative error up to which the identity counts as holding on the made-up picture, in double precision.
        same: relative difference up to which patches + positions are what the attention sees, in double precision.
        same_zero: likewise beside a zero.
        tiny: near the least number of double precision: the condition of a singular system is no division by zero.
    """

    holds: float = 1e-6
    same: float = 1e-9
    same_zero: float = 1e-12
    tiny: float = 1e-300


TOLERANCES = Tolerances()


@dataclass(frozen=True)
class AttentionInput:
    """Solve for what the first attention saw, and for the picture behind it."""

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Solve; neither randomness nor budget is used.

        Raises:
            ThreatModelError: the update is not that of one example.
            UnsupportedNetworkError: the first attention does not see patches and positions as they are, or there are
                more patches than the width can tell apart.
        """
        network, entry = observation.network, _entry(observation)
        gradient = {name: part.detach().cpu().double() for name, part in observation.gradient.items()}
        tokens, spread = _tokens(entry, gradient)
        inputs = _unembedded(entry, tokens, network.grid)
        images = network.denormalize(inputs[None].to(network.device, network.dtype))
        labels, told = labels_of(observation, images)
        images, loss = matched(observation, images, labels)
        how = f"the picture was read off {entry.positions} and the attention behind it in closed form, without a search"
        return verified(self, Candidate(images, labels, loss, iterations=1), how, {"condition": spread}, told=told)

    def check(self, observation: Observation) -> str:
        """Say what it would do.

        Raises:
            ThreatModelError: as when it is called.
            UnsupportedNetworkError: likewise.
        """
        entry = _entry(observation)
        return f"reads the picture's {entry.count} patches off the gradient of {entry.positions}, without a search"


@dataclass(frozen=True, eq=False)
class _Entry:
    """How a picture enters the transformer, weights in double precision.

    Args:
        embed: the patch embedding.
        positions: name of the position embedding.
        offset: `z - E(patches)` at the patches' tokens, `[patches, width]`.
        first: the number of the first patch's token.
        count: how many patches there are.
        readers: weights that see z, by name, `[outputs, width]`.
        known: tokens that no patch enters, `[tokens, width]`; zero at the patches.
    """

    embed: nn.Conv2d = field(repr=False)
    positions: str
    offset: Tensor = field(repr=False)
    first: int
    count: int
    readers: Params = field(repr=False)
    known: Tensor = field(repr=False)


def _entry(observation: Observation) -> _Entry:
    if observation.num_examples != 1:
        raise ThreatModelError(f"an attention's input is solved for one example; got {observation.num_examples}")
    if not any(_is_patches(layer) for layer in observation.network.module.modules()):
        raise _no_patches()  # before anything runs: most networks are of another kind
    network = observation.network.to(torch.float64)
    probe = torch.rand((1, *network.image_shape), generator=Generator().manual_seed(0), dtype=torch.float64)
    probe = probe.to(network.device)
    seen = _Seen.of(network, probe)
    positions = _positions(network, seen)
    first, offset = _place(seen)
    tokens, count = seen.tokens, len(offset)
    readers = {name: weight.detach().cpu().double() for name, weight in seen.readers.items()}
    _check_identity(network, probe, tokens, positions, readers)
    if count > tokens.shape[1] or seen.embed.weight[0].numel() > tokens.shape[1]:
        raise UnsupportedNetworkError(
            f"{count} patches of {seen.embed.weight[0].numel()} values are more than a width of {tokens.shape[1]} can "
            "tell apart; use an optimization attack such as geiping()"
        )
    known = tokens.clone()
    known[first : first + count] = 0
    return _Entry(seen.embed.cpu(), positions, offset, first, count, readers, known)


@dataclass(frozen=True, eq=False)
class _Seen:
    """What went through the network with the made-up picture.

    Args:
        embed: the convolution that sees the picture, patch by patch.
        patches: what comes out of it, `[patches, width]`.
        tokens: what the first attention sees, `[tokens, width]`.
        readers: weights of linear layers and of the attention that see the same.
    """

    embed: nn.Conv2d = field(repr=False)
    patches: Tensor = field(repr=False)
    tokens: Tensor = field(repr=False)
    readers: Params = field(repr=False)

    @classmethod
    def of(cls, network: Network, probe: Tensor) -> "_Seen":
        kinds = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
        layers = {name: layer for name, layer in network.module.named_modules() if isinstance(layer, kinds)}
        _, runs = record(layers, lambda: network.features(probe), lambda _, __, inputs: inputs.detach())
        embeds = [(run.layer, run.outputs) for run in runs if _is_patches(run.layer) and run.outputs.ndim == 4]
        if not embeds:
            raise _no_patches()
        embed, outputs = embeds[0]
        patches = outputs[0].flatten(1).T
        readers: dict[str, Tensor] = {}
        tokens: Tensor | None = None
        for run in runs:
            layer, inputs = run.layer, run.inputs
            weight = f"{run.name}.{'in_proj_weight' if isinstance(layer, nn.MultiheadAttention) else 'weight'}"
            if isinstance(layer, nn.Conv2d) or weight not in network.params or inputs.shape[-1] != patches.shape[1]:
                continue
            if tokens is None:
                tokens = inputs.reshape(-1, inputs.shape[-1])
            if torch.equal(inputs.reshape(-1, inputs.shape[-1]), tokens):
                readers[weight] = network.params[weight]
        if tokens is None:
            raise _unsuited("no attention and no linear layers see the patches")
        return cls(embed, patches.cpu(), tokens.cpu(), readers)


def _is_patches(layer: nn.Module) -> TypeGuard[nn.Conv2d]:
    if not isinstance(layer, nn.Conv2d) or layer.groups != 1 or set(layer.dilation) != {1}:
        return False
    return layer.kernel_size == layer.stride and layer.padding in ((0, 0), "valid")


def _place(seen: _Seen) -> tuple[int, Tensor]:
    """Where the patches' tokens begin, and what is added to them: the same for any picture."""
    spare = len(seen.tokens) - len(seen.patches)
    if spare < 0:
        raise _unsuited("it sees fewer tokens than there are patches")
    return spare, seen.tokens[spare:] - seen.patches


def _positions(network: Network, seen: _Seen) -> str:
    """The weights that are added to the patches and to nothing else, so that patches + positions are what is seen."""
    spare = len(seen.tokens) - len(seen.patches)
    fits = [name for name, weight in network.params.items() if weight.shape[-2:] == seen.tokens.shape]
    fits = [name for name in fits if network.params[name].numel() == seen.tokens.numel() and name not in seen.readers]
    for name in fits:
        added = network.params[name].detach().cpu().reshape(seen.tokens.shape)[max(spare, 0) :]
        if spare >= 0 and torch.allclose(
            seen.patches + added, seen.tokens[spare:], rtol=TOLERANCES.same, atol=TOLERANCES.same_zero
        ):
            return name
    if not fits:
        raise _unsuited("it has no learnable position embedding for all of its tokens")
    raise _unsuited("something stands between patches + positions and the first attention, such as a norm")


def _check_identity(network: Network, probe: Tensor, tokens: Tensor, positions: str, readers: Params) -> None:
    labels = torch.zeros(1, dtype=torch.long, device=network.device)
    gradient = {name: part.detach().cpu() for name, part in FedSGD()(network, probe, labels).items()}
    left, right = _sides(gradient, positions, readers, tokens.shape)
    if (left - right.T @ tokens).norm() > TOLERANCES.holds * left.norm():
        raise _unsuited("positions reach the loss around the first attention too, by a skip connection")


def _sides(gradient: Params, positions: str, readers: Params, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """The two known sides of the identity: `sum W^T gW`, `[width, width]`, and dL/dpositions, `[tokens, width]`."""
    left = sum((weight.T @ gradient[name] for name, weight in readers.items()), torch.zeros(()).double())
    return left, gradient[positions].reshape(shape)


def _tokens(entry: _Entry, gradient: Params) -> tuple[Tensor, float]:
    """What the attention saw at the patches, `[patches, width]`, and the condition of the system."""
    left, right = _sides(gradient, entry.positions, entry.readers, entry.known.shape)
    rest = left - right.T @ entry.known
    system = right[entry.first : entry.first + entry.count].T
    values = torch.linalg.svdvals(system)
    solution: Tensor = torch.linalg.lstsq(system, rest, driver="gelsd").solution
    return solution, float(values[0] / values[-1].clamp(min=TOLERANCES.tiny))


def _unembedded(entry: _Entry, tokens: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """The normalized picture whose patches are embedded so, `[c, h, w]`."""
    bias = 0 if entry.embed.bias is None else entry.embed.bias.detach()
    embedded = (tokens - entry.offset - bias).T
    patches = torch.linalg.lstsq(entry.embed.weight.detach().flatten(1), embedded, driver="gelsd").solution
    kernel = entry.embed.kernel_size
    return F.fold(patches[None], shape[1:], kernel, stride=kernel)[0]


def _no_patches() -> UnsupportedNetworkError:
    return _unsuited("no convolution cuts the picture into patches (kernel and stride alike, no padding)")


def _unsuited(why: str) -> UnsupportedNetworkError:
    return UnsupportedNetworkError(
        f"the first attention does not see patches + positions as they are: {why}; use an optimization attack such as "
        "geiping()"
    )
