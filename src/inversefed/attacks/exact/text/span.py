"""Which tokens can stand at which place: what an attention is fed lies in the row space of its weights' gradients.

    dW_Q = sum_t dq_t x_t^T,  likewise dW_K, dW_V    =>    x_t in span of the rows, of dimension r < width

(DAGER, Petrov et al. 2024, arXiv:2405.15586, theorem 3.1.) Whether x lies in it is a matter of rounding. With the
singular values s_1 >= .. >= s_r of the three gradients above each other, and s_(r+1) the largest that rounding makes, a
direction v_i of the span is known up to s_(r+1) / s_i, and so a true x is off it by at most about

    e(x) = s_(r+1) sqrt( sum_i (v_i . x / s_i)^2 )

(Wedin 1972). So each x has a tolerance of its own, which comes from the spectrum, and is not set by hand: true inputs
are found at 0.1 to 0.5 of e(x), others at 1e4 of it and more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from inversefed.attacks.exact.text.roles import layer_inputs
from inversefed.errors import ThreatModelError
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.inputs.tokens import Tokens

__all__ = ["Span", "placed_tokens", "span_of", "spans_of"]

_GAP = 30.0
"""A ratio of neighboring singular values below which the spectrum has no end: rounding or noise drowns it, or there are
as many inputs as the attention is wide. True gaps are 1e3 to 1e6 in single precision."""
_WITHIN = 4.0
"""Of e(x), up to which an input counts as in the span: true ones have 0.5 at most, others 1e3 and more."""
_MOST = 0.05
"""A relative distance from which nothing counts as in the span, whatever the spectrum: other tokens begin there."""
_RANKS = 4
"""Ranks that are tried where the spectrum has no end."""
_PROBES = 8
"""Sentences drawn at random, by which a span is tried: LayerNorm's outputs do not fill the width, and need not to."""
_AT_ONCE = 4_000_000
"""Numbers of inputs that are held at a time: 16 MB."""


@dataclass(frozen=True, eq=False)
class Span:
    """The row space of what an attention's weights were sent as gradients.

    Args:
        basis: orthonormal rows, `[rank, width]`, in double precision.
        sizes: their singular values, `[rank]`, falling.
        noise: the largest singular value that rounding made.
        gap: the last of `sizes` over `noise`.
    """

    basis: Tensor = field(repr=False)
    sizes: Tensor = field(repr=False)
    noise: float
    gap: float

    @property
    def rank(self) -> int:
        """Dimensions of the span."""
        return len(self.sizes)

    @property
    def width(self) -> int:
        """Of what the attention is fed."""
        return self.basis.shape[1]

    def distances(self, x: Tensor) -> Tensor:
        """How far inputs `[.., width]` are from the span, relative to their norm, 0 to 1."""
        x = x.to(self.basis)
        far: Tensor = (x - x @ self.basis.T @ self.basis).norm(dim=-1) / x.norm(dim=-1).clamp(min=1e-300)
        return far

    def expected(self, x: Tensor) -> Tensor:
        """How far a true input may be from it by rounding, e(x), relative to its norm."""
        x = x.to(self.basis)
        off: Tensor = self.noise * (x @ self.basis.T / self.sizes).norm(dim=-1) / x.norm(dim=-1).clamp(min=1e-300)
        return off

    def holds(self, x: Tensor) -> Tensor:
        """Whether inputs `[.., width]` lie in the span, up to rounding; those far off are not looked at twice."""
        basis = self.basis.to(x)
        rough: Tensor = (x - x @ basis.T @ basis).norm(dim=-1) < 2 * _MOST * x.norm(dim=-1)
        near = x[rough]
        far = self.distances(near)
        rough[rough.clone()] = (far <= _WITHIN * self.expected(near)) & (far < _MOST)
        return rough


def span_of(observation: Observation, weights: Sequence[str]) -> Span:
    """The span of what an attention was fed.

    Args:
        observation: what the server sees.
        weights: those that multiply it; of these the ones that were sent count.

    Raises:
        ThreatModelError: none of them was sent, or their gradients' spectrum has no end below the width.
    """
    sizes, basis, floor = _spectrum(observation, weights)
    ratios = sizes[:-1].clamp(min=floor) / sizes[1:].clamp(min=floor)
    rank = int(ratios.argmax()) + 1 if len(ratios) else 0
    if not len(ratios) or float(ratios[rank - 1]) < _GAP:
        raise ThreatModelError(
            f"the gradients of {', '.join(weights)} fill all {len(sizes)} dimensions that they have, so they tell no "
            "token from another: a batch of as many tokens, noise, pruning or quantization do that"
        )
    return Span(basis[:rank], sizes[:rank], max(float(sizes[rank]), floor), float(ratios[rank - 1]))


def spans_of(observation: Observation, weights: Sequence[str]) -> list[Span]:
    """What the span may be where its spectrum has no end: of the ranks with the largest gaps, and of all directions.

    Args:
        observation: what the server sees.
        weights: as in `span_of`.

    Raises:
        ThreatModelError: none of them was sent.
    """
    sizes, basis, floor = _spectrum(observation, weights)
    known = int((sizes > floor).sum())
    ratios = sizes[:-1].clamp(min=floor) / sizes[1:].clamp(min=floor)
    ranks = {int(each) + 1 for each in ratios.topk(min(_RANKS, len(ratios))).indices} | {known}
    return [
        Span(
            basis[:rank],
            sizes[:rank],
            max(float(sizes[rank]), floor) if rank < len(sizes) else floor,
            float(ratios[rank - 1]) if rank <= len(ratios) else 1.0,
        )
        for rank in sorted(ranks)
    ]


def _spectrum(observation: Observation, weights: Sequence[str]) -> tuple[Tensor, Tensor, float]:
    """Singular values of what was sent of some weights, falling, their rows, and the least that is no rounding.

    The gradients are weighed to equal norms, so that none drowns another.
    """
    gradient = observation.gradient
    sent = [gradient[name].detach().cpu().double() for name in weights if name in gradient]
    sent = [part / part.norm() for part in sent if bool(part.any())]
    if not sent:
        raise ThreatModelError(
            f"the update says nothing of {', '.join(weights) or 'an attention'}: these weights were not sent, or all "
            "their entries are zero, as those of fresh low-rank adapters are"
        )
    width = min(min(part.shape) for part in sent) if len(sent) == 1 else _common(sent)
    sent = [part if part.shape[-1] == width else part.T for part in sent]
    _, sizes, basis = torch.linalg.svd(torch.cat(sent), full_matrices=False)
    return sizes, basis, torch.finfo(observation.network.dtype).eps * float(sizes[0])


def _common(parts: Sequence[Tensor]) -> int:
    """The width that all weights share; their last dimension where they share both."""
    shared = set.intersection(*(set(part.shape) for part in parts))
    return parts[0].shape[-1] if parts[0].shape[-1] in shared else min(shared)


def placed_tokens(
    network: Network,
    space: Tokens,
    span: Span,
    weight: str,
    tokens: Tensor | None = None,
    go_on: Callable[[], None] = lambda: None,
) -> tuple[Tensor, ...]:
    """The tokens that can stand at each place, by what the first attention is fed: up to the first place with none.

    Where positions are added, `x = LN(E_v + P_t)`, several sentences may bring pairs that were in none of them: of two
    tokens and two places three pairs give the fourth, but for the norm's scale; with a cycle among the true pairs the
    norm's shift lies in the span as well, and then the fourth does exactly, in any precision. So what is found is no
    list of tokens yet. A sentence is not longer than the span has dimensions.

    Args:
        network: run on sentences of one token repeated, whose first layer does not see that they are none.
        space: of its inputs.
        span: of the first attention.
        weight: one of that attention's.
        tokens: those to be tried; `None` for the whole vocabulary.
        go_on: called before each run of the network; it may raise to end the search.

    Raises:
        ThreatModelError: most tokens of a made-up sentence are in the span, which therefore tells none from another.

    Returns:
        Of each place, ids in rising order. Without positions, the same for every place.
    """
    tried = torch.arange(space.vocabulary) if tokens is None else tokens.cpu()
    tried = tried[tried != space.pad]
    everything = torch.arange(space.vocabulary)
    everything = everything[everything != space.pad]
    probe = layer_inputs(network, weight, tried[:1, None].expand(1, space.length).to(network.device))
    same = space.length > 1 and torch.equal(probe[:, :1].expand_as(probe), probe)
    drawn = torch.randint(len(everything), (_PROBES, space.length), generator=Generator().manual_seed(0))
    if float(span.holds(layer_inputs(network, weight, everything[drawn].to(network.device))).double().mean()) > 0.5:
        raise ThreatModelError(
            f"the span of {weight} has rank {span.rank} of {span.width}, and tokens drawn at random lie in it: it "
            "tells no token from another, for there are as many tokens in the batch as inputs have dimensions"
        )
    places = 1 if same else min(space.length, span.rank + 1)
    held = []
    for part in torch.split(tried, max(1, _AT_ONCE // (places * span.width))):
        go_on()
        ids = part[:, None].expand(-1, places).to(network.device)
        held.append(span.holds(layer_inputs(network, weight, ids)).cpu())
    found = torch.cat(held)
    columns = [tried[found[:, place]] for place in range(places)]
    empty = next((place for place, column in enumerate(columns) if not len(column)), places)
    return tuple(columns * space.length if same and empty else columns[:empty])
