"""One sentence where the span of the first attention has no end: updates in 16 bits, with noise, or of thin adapters.

Two cases, told apart by nothing: both are tried, and the client decides.

    nearest:   rounding is as large as the smallest of the span's directions, so no tolerance parts true tokens from
               others; but the nearest token of a place still is the true one. Of each likely rank r the r places'
               nearest tokens are a sentence.
    pursuit:   adapters of rank r give R directions S of the span of N > R inputs. Then not the inputs lie in S, but S
               in theirs: atoms x_(v,t) are chosen one a place, Q spans those chosen, U spans the rest S - S Q Q^T,
                   next (v, t) = argmax |U x| / |x - Q Q^T x|,    until S lies in Q
               (rank-aware matching pursuit: Davies and Eldar 2012, arXiv:1004.4529). With N - R right atoms the rest is
               exact: all others have 1 there. The length is where it ends, and need not be known.

Both need positions that are added to tokens; without them (Llama) prefixes are nearest by the second attention.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from inversefed.attacks.exact.text.roles import TextRoles, layer_inputs
from inversefed.attacks.exact.text.span import Span, spans_of
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.inputs.tokens import Tokens

__all__ = ["likely_sentences", "pursued"]

_KEPT = 256
"""Tokens of each place that a pursuit chooses of: those whose inputs lie most in S."""
_STARTS = 24
"""Pursuits, each with another first atom."""
_RESOLVED = 1e-4
"""Largest share of a direction of S that may be left at the end: rounding leaves 1e-6, a wrong atom 1e-2."""
_UNSURE = 8.0
"""Of what a direction of S is off by rounding, up to which its rest counts as none."""
_LONGER = 4
"""Tokens by which a sentence of nearest tokens may be longer than the span has dimensions, as adapters make it."""
_BEAM = 8
"""Prefixes that are kept of each length, where positions are not added."""
_OWN = 0.02
"""Share of a place's input that is outside of those before it: a first token repeated adds nothing, and is nearest."""
_AT_ONCE = 4_000_000
"""Numbers of inputs that are held at a time: 16 MB."""


def likely_sentences(
    observation: Observation, space: Tokens, roles: TextRoles, tokens: Tensor | None, go_on: Callable[[], None]
) -> Iterator[tuple[tuple[int, ...], str]]:
    """Sentences that one example may have been, with how each was found; the client tells which it is.

    Args:
        observation: of one example.
        space: of its inputs.
        roles: which weights are what.
        tokens: those to be tried; `None` for the whole vocabulary.
        go_on: called before each run of the network; it may raise to end the search.

    Raises:
        ThreatModelError: the first attention's weights were not sent, or say nothing.
    """
    network, weight = observation.network, roles.first[0]
    spans = [span for span in spans_of(observation, roles.first) if span.rank < span.width]
    if not spans:
        return
    tried = torch.arange(space.vocabulary) if tokens is None else tokens.cpu()
    tried = tried[tried != space.pad]
    probe = layer_inputs(network, weight, tried[:1, None].expand(1, space.length).to(network.device))
    placeless = space.length > 1 and torch.equal(probe[:, :1].expand_as(probe), probe)
    near = _nearest(network, weight, spans, tried, 1 if placeless else space.length, go_on)
    if placeless:
        best = max(range(len(spans)), key=lambda number: spans[number].gap)
        yield from _by_prefixes(observation, roles, near[best][:, 0], spans[best].rank, space.length, go_on)
        return
    for each, span in zip(near, spans, strict=True):
        yield tuple(each[0, : min(span.rank, space.length)].tolist()), "each place has its nearest token"
    widest = max(range(len(spans)), key=lambda number: spans[number].rank)
    if spans[widest].rank < space.length:  # else all inputs lie in it, not it in theirs
        yield from _by_pursuit(network, weight, near[widest], spans[widest], go_on)


def _by_prefixes(
    observation: Observation, roles: TextRoles, tokens: Tensor, rank: int, length: int, go_on: Callable[[], None]
) -> Iterator[tuple[tuple[int, ...], str]]:
    """Sentences of the nearest tokens, where positions are not added: as long as a span has dimensions, or longer."""
    for second in spans_of(observation, roles.second):
        if second.rank < second.width:
            whole = _prefix(observation.network, roles.second[0], second, tokens[: 2 * rank], length, go_on)
            ends = {second.rank, *range(rank, rank + _LONGER)}
            yield from ((whole[:end], "its prefixes are nearest") for end in sorted(ends))


def _by_pursuit(
    network: Network, weight: str, near: Tensor, span: Span, go_on: Callable[[], None]
) -> Iterator[tuple[tuple[int, ...], str]]:
    """Sentences of more tokens than the span has dimensions: the nearest tokens, or those whose span holds it."""
    length = near.shape[1]
    for longer in range(span.rank + 1, min(span.rank + _LONGER, length) + 1):
        yield tuple(near[0, :longer].tolist()), "each place has its nearest token"
    places = torch.arange(length).repeat_interleave(len(near))
    atoms, tokens = _inputs(network, weight, near, go_on), near.T.flatten()
    for chosen in pursued(atoms, places, span.basis, span.noise / span.sizes, go_on):
        by_place = {int(places[number]): int(tokens[number]) for number in chosen}
        if sorted(by_place) == list(range(len(by_place))):
            yield tuple(by_place[place] for place in range(len(by_place))), "what it is fed spans the adapters' rows"


def pursued(
    atoms: Tensor, places: Tensor, directions: Tensor, unsure: Tensor, go_on: Callable[[], None] = lambda: None
) -> Iterator[list[int]]:
    """Sets of atoms, one a place at most, whose span holds all directions; the likeliest first.

    Args:
        atoms: `[m, width]`, in double precision.
        places: of each, `[m]`.
        directions: S, orthonormal, `[R, width]`.
        unsure: how far each of them is off by rounding, `[R]`.
        go_on: called before each pursuit; it may raise to end them.

    Three directions of the span of four of forty atoms, one of each place:

    >>> random = torch.Generator().manual_seed(0)
    >>> atoms, places = torch.randn(40, 12, generator=random).double(), torch.arange(40) % 4
    >>> mixed = torch.randn(3, 4, generator=random).double() @ atoms[[0, 5, 10, 15]]
    >>> sorted(next(pursued(atoms, places, torch.linalg.qr(mixed.T)[0].T, torch.zeros(3))))
    [0, 5, 10, 15]
    """
    atoms = atoms / atoms.norm(dim=1, keepdim=True)
    most = int(places.max()) + 1
    enough = (_UNSURE * unsure.to(atoms)).clamp(min=_RESOLVED)
    starts = (atoms @ directions.T).norm(dim=1).argsort(descending=True)[:_STARTS]
    for start in starts.tolist():
        go_on()
        chosen, rests = [start], atoms.clone()
        left = directions
        while True:
            axis = rests[chosen[-1]] / rests[chosen[-1]].norm()
            rests = rests - (rests @ axis)[:, None] * axis
            left = left - (left @ axis)[:, None] * axis
            open_ = left.norm(dim=1) > enough
            if not bool(open_.any()):
                yield chosen
                break
            free = ~torch.isin(places, places[chosen])
            if len(chosen) == most or not bool(free.any()):
                break
            _, sizes, axes = torch.linalg.svd(left[open_], full_matrices=False)
            share = (rests @ axes[sizes > _RESOLVED].T).norm(dim=1) / rests.norm(dim=1).clamp(min=_RESOLVED)
            chosen = [*chosen, int(torch.where(free, share, -1.0).argmax())]


def _nearest(
    network: Network, weight: str, spans: Sequence[Span], tokens: Tensor, places: int, go_on: Callable[[], None]
) -> list[Tensor]:
    """For each span, the nearest tokens of each place, `[_KEPT, places]`, the nearest first."""
    full = max(spans, key=lambda span: span.rank).basis
    best = [(torch.zeros(0, places), torch.zeros(0, places, dtype=torch.long)) for _ in spans]
    for part in torch.split(tokens, max(1, _AT_ONCE // (places * full.shape[1]))):
        go_on()
        x = layer_inputs(network, weight, part[:, None].expand(-1, places).to(network.device)).cpu().float()
        inside = ((x @ full.float().T) / x.norm(dim=-1, keepdim=True).clamp(min=1e-30)).square().cumsum(dim=-1)
        for number, span in enumerate(spans):
            shares = torch.cat([best[number][0], inside[..., span.rank - 1]])
            ids = torch.cat([best[number][1], part[:, None].expand(-1, places)])
            order = shares.argsort(dim=0, descending=True)[:_KEPT]
            best[number] = shares.gather(0, order), ids.gather(0, order)
    return [ids for _, ids in best]


def _inputs(network: Network, weight: str, tokens: Tensor, go_on: Callable[[], None]) -> Tensor:
    """What the attention is fed of tokens `[k, places]`, place by place, `[places k, width]`."""
    go_on()
    return layer_inputs(network, weight, tokens.to(network.device)).cpu().double().transpose(0, 1).flatten(0, 1)


def _prefix(
    network: Network, weight: str, span: Span, tokens: Tensor, length: int, go_on: Callable[[], None]
) -> tuple[int, ...]:
    """The sentence of `length` tokens whose places are nearest to a span, by a beam of prefixes."""
    live, costs = torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, dtype=torch.float64)
    for _ in range(length):
        go_on()
        tried = torch.cat([live.repeat_interleave(len(tokens), 0), tokens.repeat(len(live))[:, None]], dim=1)
        inputs = layer_inputs(network, weight, tried.to(network.device)).cpu().double()
        inputs = inputs / inputs.norm(dim=-1, keepdim=True).clamp(min=1e-300)
        own = torch.linalg.qr(inputs.transpose(1, 2), mode="r").R[:, -1, -1].abs()  # outside of all places before
        total = costs.repeat_interleave(len(tokens)) + span.distances(inputs[:, -1]).square()
        total = torch.where(own > _OWN, total, torch.inf)
        order = total.argsort()[:_BEAM]
        live, costs = tried[order], total[order]
    return tuple(live[0].tolist())
