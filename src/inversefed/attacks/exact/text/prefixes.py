"""Sentences of a decoder, token by token: a prefix is right if what the second attention is fed lies in its span.

A token sees only those before it, so what the second attention is fed at a place depends on the prefix up to there and
on nothing else. Of all tokens that can follow a right prefix, wrong ones are out of the span (DAGER, Petrov et al.
2024, arXiv:2405.15586, section 4.2, there with a tolerance set by hand).
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from inversefed.attacks.exact.text.roles import layer_inputs
from inversefed.attacks.exact.text.span import Span
from inversefed.fl.network import Network

__all__ = ["prefixes"]

_AT_ONCE = 256
"""Prefixes that are run together."""
_MOST = 4096
"""Prefixes that are kept of one length; more say that the span tells nothing."""


def prefixes(
    network: Network, placed: Sequence[Tensor], span: Span, weight: str, go_on: Callable[[], None] = lambda: None
) -> tuple[tuple[int, ...], ...]:
    """All sentences, each of which no token can follow.

    Args:
        network: a decoder.
        placed: the tokens that can stand at each place.
        span: of the second attention.
        weight: one of that attention's.
        go_on: called before each run of the network; it may raise to end the search.

    Returns:
        Ids of each, in the order of their lengths; none where the span holds not even a first token.
    """
    begun: list[tuple[int, ...]] = [(int(token),) for token in placed[0]] if placed else []
    live, ended = _held(network, begun, span, weight, go_on), []
    for column in placed[1:]:
        tried: list[tuple[int, ...]] = [(*prefix, int(token)) for prefix in live for token in column]
        held = _held(network, tried, span, weight, go_on)
        followed = {each[:-1] for each in held}
        ended += [each for each in live if each not in followed]
        live = held[:_MOST]
        if not live:
            break
    return (*ended, *live)


def _held(
    network: Network, tried: Sequence[tuple[int, ...]], span: Span, weight: str, go_on: Callable[[], None]
) -> list[tuple[int, ...]]:
    """Those whose last place is in the span."""
    kept = []
    for start in range(0, len(tried), _AT_ONCE):
        go_on()
        part = tried[start : start + _AT_ONCE]
        inputs = layer_inputs(network, weight, torch.tensor(part, device=network.device))[:, -1]
        kept += [each for each, held in zip(part, span.holds(inputs).tolist(), strict=True) if held]
    return kept
