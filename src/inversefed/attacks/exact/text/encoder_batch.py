"""Several sentences of an encoder: which tokens stood where, who attended to whom, and what fits the second attention.

Tokens at places (v, t) that lie in the first span may be more than were there (see `span`). The embeddings' gradients
are sums of one vector g for each of them, and the attention's are too, of D; those with fewest that are not zero tell:

    sum_t g_(v,t) = dE_v,    sum_v g_(v,t) = dP_t,    or    sum D_(v,t) x_(v,t)^T = [dW_Q; dW_K; dW_V]

Then each input's own gradients are known, [dq; dk] = dW pinv(X), and say whose keys and queries they are made of:

    sqrt(d_h) dq_i^h = sum_j a_ij^h k_j^h,    sqrt(d_h) dk_j^h = sum_i a_ij^h q_i^h,    sum_j a_ij^h = 0,
    a_ij^h = 0 for all heads h unless i and j share a sentence

a regression with few groups that are not zero. Sentences are read off it, and hold where the second attention's inputs
are in their span; else one token at a time is changed while they come nearer. Own derivation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch
from torch import Tensor

from inversefed.attacks.exact.text.attention_parts import AttentionParts, Projection
from inversefed.attacks.exact.text.roles import TextRoles, layer_inputs
from inversefed.attacks.exact.text.span import Span
from inversefed.attacks.exact.watch import Stopped
from inversefed.fl.network import Network
from inversefed.inputs.tokens import Tokens
from inversefed.types import Params

__all__ = ["EncoderBatch", "affinity", "fewest", "flow"]

_ROUNDS = 12
"""Of reweighting; from the tenth on, the same sentences are read off, though sizes still change by a percent."""
_POWERS = (1.0,) * 20 + (1.5,) * 10 + (2.0,) * 10
"""Of a group's size, by which it is reweighted: from the sum of norms to their number (Chartrand and Yin 2008)."""
_AT_ONCE = 128
"""Sentences that are run together."""
_ALTERNATIVES = 8
"""Tokens of one place that are tried in another's stead, those that make most of the gradients."""
_WORST = 2
"""Places of a sentence where others are tried at a time: a wrong token's own input is the farthest off."""
_CHANGES = 40
"""Most changes of a sentence, one token each."""
_NEW = 1e-3
"""Share of an input that is outside of all chosen so far, from which it is a direction of its own."""
_KNOWN = 10.0
"""How much more a pair weighs at first that is in a sentence found already."""


def fewest(operator: Tensor, sums: Tensor, weights: Tensor) -> Tensor:
    """Norms of the rows of D, `[m]`, of which fewest are not zero, where `operator D = sums`.

    Args:
        operator: `[k, m]`, of fewer independent rows than m.
        sums: `[k, width]`.
        weights: of the rows at first, `[m]`; ones where nothing is known of them.

    Two tokens and two places, of which the third pair only looks as if it had been there:

    >>> operator = torch.tensor([[1.0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 1, 1]], dtype=torch.float64)
    >>> rows = torch.tensor([[1.0, 2.0], [3.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    >>> [round(each, 2) for each in fewest(operator, operator @ rows, torch.ones(3, dtype=torch.float64)).tolist()]
    [2.24, 3.16, 0.0]
    """
    sizes = weights
    for power in _POWERS:
        scaled = operator * weights
        gram = scaled @ operator.T
        gram = gram + 1e-13 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
        sizes = (scaled.T @ torch.linalg.lstsq(gram, sums, driver="gelsd").solution).norm(dim=1)
        weights = (sizes / sizes.max()) ** power + 1e-6
    return sizes


def flow(pairs: Tensor, tokens: Tensor, positions: Tensor, weights: Tensor) -> Tensor:
    """The norms of what each token at a place adds to the embeddings' gradients, `[m]`.

    Args:
        pairs: tokens and places, `[m, 2]`.
        tokens: gradient of the token embedding, `[vocabulary, width]`.
        positions: of the positions, `[places, width]`.
        weights: of the pairs at first, as in `fewest`.
    """
    kinds, rows = torch.unique(pairs[:, 0], return_inverse=True)
    places, columns = torch.unique(pairs[:, 1], return_inverse=True)
    numbers = torch.arange(len(pairs))
    incidence = torch.zeros(len(kinds) + len(places), len(pairs), dtype=torch.float64)
    incidence[rows, numbers] = 1
    incidence[len(kinds) + columns, numbers] = 1
    return fewest(incidence, torch.cat([tokens.cpu().double()[kinds], positions.cpu().double()[places]]), weights)


def affinity(signals: Tensor, vectors: Tensor, heads: int, centered: bool) -> Tensor:
    """How much of each signal each vector makes, over all heads, `[n, n]`: few groups, by reweighted least squares.

    Args:
        signals: gradients of queries (or keys) of n inputs, `[n, width]`.
        vectors: their keys (or queries), `[n, width]`.
        heads: parts of the width that attend on their own.
        centered: whether coefficients of a signal sum to zero in each head, as those of a softmax's gradient do.
    """
    wanted = signals.reshape(len(signals), heads, -1).transpose(0, 1)
    given = vectors.reshape(len(vectors), heads, -1).transpose(0, 1)
    if centered:
        ones = given.new_ones(*given.shape[:2], 1) * given.norm(dim=2).mean()
        given, wanted = torch.cat([given, ones], dim=2), torch.cat([wanted, torch.zeros_like(ones)], dim=2)
    count, width = given.shape[1], given.shape[2]
    sizes = given.new_ones(count, count)
    squares = (given[..., :, None] * given[..., None, :]).flatten(2)
    for _ in range(_ROUNDS):
        weights = sizes / sizes.max(dim=1, keepdim=True).values.clamp(min=1e-300) + 1e-6
        gram = (weights @ squares).reshape(heads, count, width, width)
        ridge = 1e-10 * gram.diagonal(dim1=2, dim2=3).sum(dim=2)[..., None, None] / width
        multiplier = torch.linalg.solve(gram + ridge * torch.eye(width, dtype=gram.dtype), wanted[..., None])[..., 0]
        coefficients = multiplier @ given.transpose(1, 2) * weights
        sizes = coefficients.square().sum(dim=0).sqrt()
    return sizes / sizes.max(dim=1, keepdim=True).values.clamp(min=1e-300)


@dataclass(frozen=True, eq=False)
class EncoderBatch:
    """What is known of a batch of an encoder.

    Args:
        network: the encoder.
        space: of its sentences.
        roles: which weights are what.
        parts: of the first attention.
        gradient: what was sent.
        placed: tokens in the first span, by place.
        first: that span.
        second: that of the second attention.
        go_on: called before each run of the network; it may raise to end the search.
    """

    network: Network
    space: Tokens
    roles: TextRoles
    parts: AttentionParts
    gradient: Params = field(repr=False)
    placed: Sequence[Tensor] = field(repr=False)
    first: Span = field(repr=False)
    second: Span = field(repr=False)
    go_on: Callable[[], None] = field(default=lambda: None, repr=False)

    def sentences(self, count: int) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
        """Sentences whose second inputs are in their span, and the nearest of others.

        Args:
            count: of examples.
        """
        pairs = torch.tensor([(int(token), place) for place, each in enumerate(self.placed) for token in each])
        right: list[tuple[int, ...]] = []
        others: dict[tuple[int, ...], float] = {}
        with suppress(Stopped):  # what was found by then is kept
            self._search(pairs, self._inputs(pairs), count, right, others)
        return right, sorted(others.keys() - set(right), key=others.__getitem__)

    def _search(
        self,
        pairs: Tensor,
        inputs: Tensor,
        count: int,
        right: list[tuple[int, ...]],
        others: dict[tuple[int, ...], float],
    ) -> None:
        """Read sentences off, again with those that are known, and change the nearest of the others at every place."""
        before = -1
        while before < len(right) < count:
            before = len(right)
            known = {(token, place) for each in right for place, token in enumerate(each)}
            weights = torch.tensor([1.0 if tuple(pair) in known else 1 / _KNOWN for pair in pairs.tolist()]).double()
            for sizes in self._sizes(pairs, inputs, weights if known else torch.ones_like(weights)):
                self._read_off(pairs, inputs, sizes, count, right, others)
                if len(right) == count:
                    return
        for sentence in sorted(others, key=others.__getitem__)[: 2 * (count - len(right))]:
            far = self._best([sentence])[2]
            nearer, fits, far = self._changed(sentence, far, self.placed, places=len(sentence), tokens=len(pairs))
            others[nearer] = float(far.mean())
            if fits and nearer not in right and len(right) < count:
                right.append(nearer)

    def _sizes(self, pairs: Tensor, inputs: Tensor, weights: Tensor) -> Iterator[Tensor]:
        """How much of the gradients each pair makes, `[m]`: by the attention, and by the embeddings."""
        if len(pairs) <= self.first.rank:
            yield weights
            return
        sent = [self.gradient[name].cpu().double() for name in self.roles.first if name in self.gradient]
        sums = torch.cat([part / part.norm() for part in sent if bool(part.any())]).T
        basis = self.first.basis  # of all inputs and sums; and norms of rows stay where columns are turned
        turned = torch.linalg.qr((basis @ sums).T, mode="r").R.T
        yield fewest(basis @ inputs.T / inputs.norm(dim=1).mean(), turned, weights)
        tokens, positions = self.gradient.get(str(self.roles.tokens)), self.gradient.get(str(self.roles.positions))
        if tokens is not None and positions is not None:
            yield flow(pairs, tokens, positions.reshape(positions.shape[-2:]), weights)

    def _read_off(
        self,
        pairs: Tensor,
        inputs: Tensor,
        sizes: Tensor,
        count: int,
        right: list[tuple[int, ...]],
        others: dict[tuple[int, ...], float],
    ) -> None:
        """Add sentences that hold to those that are right, and those that do not to the others, with their distance."""
        chosen = self._basis(pairs, inputs, sizes, count)
        near, kept = self._affinity(inputs[chosen]), pairs[chosen]
        ranked = []
        for place in range(len(self.placed)):
            here = pairs[:, 1] == place
            ranked.append(pairs[here][sizes[here].argsort(descending=True), 0])
        for seed in self._seeds(kept, count):
            token, place = kept[seed].tolist()
            if any(place < len(each) and each[place] == token for each in right):
                continue
            read = self._read(kept, near, seed)
            sentence, fits, far = self._best([read[:end] for end in range(place + 1, len(read) + 1)])
            if not fits and sentence not in others:
                others[sentence] = float(far.mean())
                sentence, fits, far = self._changed(sentence, far, ranked)
            if fits and sentence not in right:
                right.append(sentence)
            elif not fits:
                others[sentence] = float(far.mean())
            if len(right) == count:
                return

    def _inputs(self, pairs: Tensor) -> Tensor:
        """What the first attention is fed, `[m, width]`, of each token at its place."""
        rows = []
        kinds, numbers = torch.unique(pairs[:, 0], return_inverse=True)
        for part in torch.split(kinds, _AT_ONCE):
            ids = part[:, None].expand(-1, len(self.placed)).to(self.network.device)
            rows.append(layer_inputs(self.network, self.roles.first[0], ids).cpu().double())
        return torch.cat(rows)[numbers, pairs[:, 1]]

    def _basis(self, pairs: Tensor, inputs: Tensor, sizes: Tensor, count: int) -> Tensor:
        """Numbers of as many pairs as the first span has dimensions, largest first, each a new direction."""
        if len(pairs) <= self.first.rank:
            return torch.arange(len(pairs))
        kept: list[int] = []
        basis = torch.zeros(0, inputs.shape[1], dtype=torch.float64)
        used = [0] * len(self.placed)
        for number in sizes.argsort(descending=True).tolist():
            rest = inputs[number] / inputs[number].norm()
            for _ in range(2):  # once more, for rounding
                rest = rest - rest @ basis.T @ basis
            place = int(pairs[number, 1])
            if len(kept) < self.first.rank and used[place] < count and float(rest.norm()) > _NEW:
                kept.append(number)
                used[place] += 1
                basis = torch.cat([basis, (rest / rest.norm())[None]])
        return torch.tensor(sorted(kept))

    def _affinity(self, inputs: Tensor) -> Tensor:
        """Who attends to whom, `[n, n]`, symmetric."""
        inverse = torch.linalg.pinv(inputs)
        query, key = (self._projected(inputs, part) for part in (self.parts.query, self.parts.key))
        near = torch.zeros(len(inputs), len(inputs), dtype=torch.float64)
        for part, vectors, centered in ((self.parts.query, key, True), (self.parts.key, query, False)):
            if part.weight in self.gradient:
                sent = self.gradient[part.weight][part.rows].cpu().double()
                near += affinity((sent @ inverse).T, vectors, self.parts.heads, centered)
        return near + near.T

    def _projected(self, inputs: Tensor, part: Projection) -> Tensor:
        """Queries or keys, `[n, width]`."""
        params = self.network.params
        made = inputs @ params[part.weight][part.rows].detach().cpu().double().T
        bias = params.get(f"{part.weight.removesuffix('weight')}bias")
        return made if bias is None else made + bias[part.rows].detach().cpu().double()

    def _seeds(self, pairs: Tensor, count: int) -> list[int]:
        """Tokens to read sentences from: at places with most of them, for those tell sentences apart."""
        numbers = pairs[:, 1].bincount(minlength=len(self.placed))
        order = sorted(range(len(pairs)), key=lambda each: (-int(numbers[pairs[each, 1]]), int(pairs[each, 1])))
        return order[: 4 * count]

    def _read(self, pairs: Tensor, near: Tensor, seed: int) -> tuple[int, ...]:
        """The sentence that a token attends to most, place by place, and again with all that were chosen."""
        groups = [(pairs[:, 1] == place).nonzero()[:, 0] for place in range(len(self.placed))]
        groups = groups[: next((place for place, group in enumerate(groups) if not len(group)), len(groups))]
        weights, before = near[seed], None
        for _ in range(10):
            chosen = [seed if seed in group else int(group[weights[group].argmax()]) for group in groups]
            if chosen == before:
                break
            before, weights = chosen, near[chosen].sum(dim=0)
        return tuple(pairs[chosen, 0].tolist())

    def _best(self, sentences: Sequence[tuple[int, ...]]) -> tuple[tuple[int, ...], bool, Tensor]:
        """Of some sentences the nearest, whether all that the second attention is fed of it is in its span, and how far
        each place is, `[length]`."""
        nearest: tuple[float, tuple[int, ...], bool, Tensor] | None = None
        for start in range(0, len(sentences), _AT_ONCE):
            self.go_on()
            part = sentences[start : start + _AT_ONCE]
            longest = max(map(len, part))
            ids = torch.tensor([[*each] + [self.space.pad] * (longest - len(each)) for each in part])
            inputs = layer_inputs(self.network, self.roles.second[0], ids.to(self.network.device)).cpu()
            real = ids != self.space.pad
            held = (self.second.holds(inputs) | ~real).all(dim=1)
            far = self.second.distances(inputs) * real
            means = far.sum(dim=1) / real.sum(dim=1)
            best = int(means.argmin())
            if nearest is None or float(means[best]) < nearest[0]:
                sentence = part[best]
                nearest = float(means[best]), sentence, bool(held[best]), far[best, : len(sentence)]
        assert nearest is not None
        return nearest[1:]

    def _changed(
        self,
        sentence: tuple[int, ...],
        far: Tensor,
        ranked: Sequence[Tensor],
        places: int = _WORST,
        tokens: int = _ALTERNATIVES,
    ) -> tuple[tuple[int, ...], bool, Tensor]:
        """The sentence with one token changed at a time, while the distance falls.

        Args:
            sentence: to begin with.
            far: its distances, `[length]`.
            ranked: tokens of each place, the likeliest first.
            places: how many are tried, those that are farthest.
            tokens: how many are tried at each.
        """
        fits = False
        for _ in range(_CHANGES):
            tried = [
                (*sentence[:place], int(token), *sentence[place + 1 :])
                for place in far.argsort(descending=True)[:places].tolist()
                for token in ranked[place][:tokens]
                if int(token) != sentence[place]
            ]
            tried += [sentence[:-1]] if len(sentence) > 1 else []
            if len(sentence) < len(ranked):
                tried += [(*sentence, int(each)) for each in ranked[len(sentence)][:_ALTERNATIVES]]
            if not tried:
                break
            nearer, holds, distances = self._best(tried)
            if float(distances.mean()) >= float(far.mean()):
                break
            sentence, fits, far = nearer, holds, distances
            if fits:
                break
        return sentence, fits, far
