"""Sentences from what the first two attentions were fed, embeddings trained or frozen.

    tokens at places:    x_(v,t) in the span of the first attention's gradients                  (see `span`)
    one sentence:        one token a place, where positions are added; else as a decoder's
    decoders:            prefixes whose last place is in the span of the second attention's      (see `prefixes`)
    one, without a gap:  nearest tokens, or a pursuit of the adapters' directions               (see `one_sentence`)
    encoders:            who attended to whom, and the span of the second attention's            (see `encoder_batch`)

(DAGER, Petrov et al. 2024, arXiv:2405.15586, with tolerances that come from the spectrum.) Of more sentences than
examples those are chosen that fill the second span. The result is exact only if the client makes the same update.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from inversefed.attacks.exact.text.attention_parts import attention_parts
from inversefed.attacks.exact.text.encoder_batch import EncoderBatch
from inversefed.attacks.exact.text.last_tokens import with_last_tokens
from inversefed.attacks.exact.text.one_sentence import likely_sentences
from inversefed.attacks.exact.text.outcome import resolved, result, tokens_of
from inversefed.attacks.exact.text.prefixes import prefixes
from inversefed.attacks.exact.text.roles import TextRoles, layer_inputs, unread
from inversefed.attacks.exact.text.span import Span, placed_tokens, span_of, spans_of
from inversefed.attacks.exact.watch import Stopped, Watch
from inversefed.errors import ThreatModelError
from inversefed.findings import Code
from inversefed.fl.network import Network
from inversefed.fl.threat import Observation
from inversefed.thresholds import SOLVED
from inversefed.types import Budget, Finding, Reconstruction, Status

__all__ = ["SpanSentences"]

_NEW = 1e-3
"""Share of an input that is outside of all chosen so far, from which it is a direction of its own."""


@dataclass(frozen=True)
class SpanSentences:
    """Find tokens by the span of the first attention's gradients, and sentences by that of the second's.

    Args:
        roles: which weights are what, as far as a run of the network does not tell.
    """

    roles: TextRoles | None = field(default=None)

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Search until all sentences are found or the budget ends it; randomness is not used.

        Raises:
            ThreatModelError: the spans tell no token, or no sentence.
            UnsupportedNetworkError: the network takes no token ids.
        """
        roles, watch = self._resolved(observation), Watch(budget)
        if observation.num_examples > 1:
            return self._by_spans(observation, roles, watch)
        found, refused = None, None
        try:
            found = self._by_spans(observation, roles, watch)
        except ThreatModelError as error:
            refused = error
        if found is None or (found.loss > SOLVED and observation.client_known):
            for other in self._likely(observation, roles, watch):
                found = other if found is None or other.loss < found.loss else found
                if found.loss <= SOLVED:
                    break
        if found is None:
            assert refused is not None
            raise refused
        return found

    def _resolved(self, observation: Observation) -> TextRoles:
        roles = resolved(observation, self.roles)
        if not roles.first:
            raise unread("no three linear layers are fed one tensor, and none gives three of its width")
        return roles

    def _likely(self, observation: Observation, roles: TextRoles, watch: Watch) -> Iterator[Reconstruction]:
        """What one sentence may be where the span tells no token by itself."""
        sentences = likely_sentences(observation, tokens_of(observation), roles, _used(observation, roles), watch.go_on)
        seen = set()
        with suppress(Stopped):
            for sentence, how in sentences:
                if sentence in seen:
                    continue
                seen.add(sentence)
                whole = with_last_tokens(observation, [sentence], watch.go_on)
                figures = {"tokens": len(whole[0]), "roles": repr(roles)}
                status = Status.STOPPED if watch.stopped else Status.FINISHED
                yield result(self, observation, whole, how, figures, status=status)

    def _by_spans(self, observation: Observation, roles: TextRoles, watch: Watch) -> Reconstruction:
        """The sentences whose tokens lie in the first span."""
        first, space = span_of(observation, roles.first), tokens_of(observation)
        figures: dict[str, object] = {"rank": first.rank, "width": first.width, "gap": first.gap}
        sentences: Sequence[tuple[int, ...]] = ()
        placed: Sequence[Tensor] = ()
        try:
            used = _used(observation, roles)
            placed = placed_tokens(observation.network, space, first, roles.first[0], used, watch.go_on)
            figures["pairs"] = sum(map(len, placed))
            sentences, how = self._sentences(observation, roles, placed, first, watch, figures)
        except Stopped:
            how = "the time was over before a sentence was found"
        if not placed:
            raise ThreatModelError(
                f"no token was found in the span of {', '.join(roles.first)}, of rank {first.rank} of {first.width}: "
                "the update is not that of this network on such sentences as it was computed, or there was no time"
            )
        sentences = sentences or [tuple(int(column[0]) for column in placed)]
        sentences = with_last_tokens(observation, sentences, watch.go_on)
        status = Status.STOPPED if watch.stopped else Status.FINISHED
        told = _deficient(placed, first)
        return result(self, observation, sentences, how, {**figures, "roles": repr(roles)}, told, status)

    def check(self, observation: Observation) -> str:
        """Say what it would do.

        Raises:
            ThreatModelError: as when it is called.
            UnsupportedNetworkError: likewise.
        """
        roles = self._resolved(observation)
        try:
            span = span_of(observation, roles.first)
        except ThreatModelError:
            if observation.num_examples > 1:
                raise
            span = spans_of(observation, roles.first)[-1]
            return f"looks for one sentence nearest to {span.rank} directions of {span.width}; {roles!r}"
        return (
            f"looks for tokens in the span of {', '.join(roles.first)}, of rank {span.rank} of {span.width} with a gap "
            f"of {span.gap:.1g}; {roles!r}"
        )

    def _sentences(
        self,
        observation: Observation,
        roles: TextRoles,
        placed: Sequence[Tensor],
        first: Span,
        watch: Watch,
        figures: dict[str, object],
    ) -> tuple[Sequence[tuple[int, ...]], str]:
        """As many sentences as there are examples, if there are, and how they were found."""
        network, count = observation.network, observation.num_examples
        if not placed or (count == 1 and all(len(column) == 1 for column in placed)):
            sentence = tuple(int(column[0]) for column in placed)
            return [sentence], f"each place has one token in the span of {', '.join(roles.first)}"
        second, weight = span_of(observation, roles.second), roles.second[0]
        figures["second_rank"] = second.rank
        if roles.causal:
            found: Sequence[tuple[int, ...]] = prefixes(network, placed, second, weight, watch.go_on)
            ranked = _filling(network, found, second, weight, count)
        else:
            space = tokens_of(observation)
            parts, sent = attention_parts(network, roles, space), observation.gradient
            batch = EncoderBatch(network, space, roles, parts, sent, placed, first, second, watch.go_on)
            found, others = batch.sentences(count)
            ranked = [*found, *others]
        figures["sentences"] = len(found)
        how = f"{len(found)} sentences have what the second attention was fed in the span of {', '.join(roles.second)}"
        return ranked[:count], how


def _used(observation: Observation, roles: TextRoles) -> Tensor | None:
    """The tokens whose rows of the embedding's gradient are not zero; `None` where it is frozen or tied: any may be."""
    rows = observation.gradient.get(str(roles.tokens))
    if rows is None:
        return None
    used = rows.any(dim=1).nonzero()[:, 0].cpu()
    return used if 0 < len(used) < len(rows) else None


def _filling(
    network: Network, sentences: Sequence[tuple[int, ...]], span: Span, weight: str, count: int
) -> list[tuple[int, ...]]:
    """Of all sentences those that fill the span, in turn the one that adds most directions.

    One that repeats its first token adds none where positions are not added: attention to equal tokens gives one value.
    """
    inputs = []
    for each in sentences:
        x = layer_inputs(network, weight, torch.tensor([each], device=network.device))[0].cpu().double()
        inputs.append(x / x.norm(dim=1, keepdim=True))
    chosen: list[int] = []
    basis = torch.zeros(0, span.width, dtype=torch.float64)
    while len(chosen) < min(count, len(sentences)):
        rests = [x - x @ basis.T @ basis for x in inputs]
        gains = [
            -1 if place in chosen else int((torch.linalg.svdvals(rest) > _NEW).sum())
            for place, rest in enumerate(rests)
        ]
        best = max(range(len(sentences)), key=gains.__getitem__)
        chosen.append(best)
        _, sizes, rows = torch.linalg.svd(rests[best], full_matrices=False)
        basis = torch.linalg.qr(torch.cat([basis, rows[sizes > _NEW]]).T)[0].T
    return [sentences[place] for place in chosen]


def _deficient(placed: Sequence[Tensor], span: Span) -> tuple[Finding, ...]:
    """Say that more tokens at places lie in the span than it has dimensions, so that some were in no sentence."""
    pairs = len({int(token) for token in placed[0]}) if _placeless(placed) else sum(map(len, placed))
    if pairs <= span.rank:
        return ()
    message = (
        f"{pairs} tokens at places lie in a span of {span.rank} dimensions: tokens and places that are added and "
        "repeat each other make further ones lie in it, so that being in it does not say that a token was there."
    )
    evidence = {"pairs": pairs, "rank": span.rank, "beyond": pairs - span.rank}
    return (Finding(Code.MIXED_EXAMPLES, "info", message, evidence),)


def _placeless(placed: Sequence[Tensor]) -> bool:
    return all(column is placed[0] for column in placed)
