"""The last token of each sentence of a language model: nothing is computed from it, so the loss alone says which it is.

With the next token's loss a sentence's last token is a target and no more: what attentions are fed at its place has no
gradient, and lies in no span. All others known, the update is linear in its one-hot vector e_y. With a guess y', h_i
what the output layer is fed at the place before, N places in all, and J_i = d o_i / d weights,

    dW_out(y') - dW_out = sum_i (e_(y_i) - e_(y'_i)) h_i^T / N    =>    e_y - e_y' = N (dW_out(y') - dW_out) pinv(H)
    g(y') - g = sum_i J_i^T (e_(y_i) - e_(y'_i)) / N              =>    J (g(y') - g) is largest near y

The first holds where the output layer is sent, but for rows of tokens that are in the sentences if it is tied to the
embedding; the second is a guess where it is not. Tokens that rank high are tried, and the client decides. Own
derivation.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from inversefed.attacks.exact.text.outcome import tokens_of
from inversefed.attacks.exact.watch import Stopped
from inversefed.attacks.matching_error import matching_error
from inversefed.fl.losses import labels_are_inputs
from inversefed.fl.network import Network, first_names
from inversefed.fl.threat import Observation
from inversefed.thresholds import EXACT
from inversefed.types import Params

__all__ = ["with_last_tokens"]

_ROUNDS = 6
"""Most times that all last tokens are ranked anew; each mends what was wrong in another sentence before."""
_TRIED = 8
"""Tokens of the highest ranks that are tried for one sentence, each for an update of the client."""


def with_last_tokens(
    observation: Observation, sentences: Sequence[tuple[int, ...]], go_on: Callable[[], None] = lambda: None
) -> list[tuple[int, ...]]:
    """Sentences of a language model with their last tokens, which `sentences` lack; of another loss, as they are.

    As they are too where they make the update: a loss may give a gradient at every place.

    Args:
        observation: what the server sees.
        sentences: as many as there are examples, each of one token less than it has; the empty one stays so.
        go_on: called before each update of the client; it may raise to end the search, and what stands then is kept.
    """
    space, network = tokens_of(observation), observation.network
    if not labels_are_inputs(network.loss):
        return list(sentences)
    whole = space.ids(sentences).to(network.device)
    if matching_error(observation, whole, whole) < EXACT:
        return list(sentences)
    open_ = [len(each) < space.length and len(each) > 0 for each in sentences]
    guess = int(space.pad == 0)
    ids = space.ids([(*each, guess) if more else each for each, more in zip(sentences, open_, strict=True)])
    ids = ids.to(network.device)
    rows = torch.tensor([row for row, more in enumerate(open_) if more], device=network.device)
    ends = torch.tensor([len(sentences[row]) for row in rows.tolist()], device=network.device)
    cost = matching_error(observation, ids, ids)
    with suppress(Stopped):  # what was found by then is kept
        for _ in range(_ROUNDS if len(rows) else 0):
            before = cost
            scores = _scores(observation, ids, rows, ends - 1)
            scores[:, space.pad] = -torch.inf
            ranked = scores.topk(min(_TRIED, scores.shape[1]), dim=1).indices
            every = torch.where(scores.amax(dim=1) > 0, ranked[:, 0], ids[rows, ends])
            changes = [(rows, ends, every)]
            changes += [(rows[each], ends[each], token) for each in range(len(rows)) for token in ranked[each]]
            for where, place, token in changes:
                if cost < EXACT:
                    return _unpadded(ids, space.pad)
                other = ids.clone()
                other[where, place] = token
                if not torch.equal(other, ids):
                    go_on()
                    nearer = matching_error(observation, other, other)
                    ids, cost = (other, nearer) if nearer < cost else (ids, cost)
            if cost >= before:
                break
    return _unpadded(ids, space.pad)


def _unpadded(ids: Tensor, pad: int) -> list[tuple[int, ...]]:
    return [tuple(row[row != pad].tolist()) for row in ids.cpu()]


def _scores(observation: Observation, ids: Tensor, rows: Tensor, places: Tensor) -> Tensor:
    """How far each token speaks for being the last one, `[rows, vocabulary]`, by what the update lacks of a guess.

    Args:
        observation: what the server sees.
        ids: sentences with a guess of their last tokens.
        rows: which of them are asked for.
        places: those before their last tokens.
    """
    network = observation.network
    inputs = network.linear_inputs(ids)
    shapes = {name: weight.shape for name, weight in network.module.named_parameters(remove_duplicate=False)}
    outputs = [name for name in inputs if shapes[f"{name}.weight"][0] == network.num_classes]
    weight = first_names(network.module)[f"{outputs[-1]}.weight"] if outputs else ""
    if weight in observation.gradient:
        off = _lacking(observation, ids, [weight])[weight].double()
        scores: Tensor = (off @ torch.linalg.pinv(inputs[outputs[-1]][rows, places].double())).T
        return scores
    lacking = _lacking(observation, ids, [name for name in network.params if name in observation.gradient])
    return _pulled(network, ids, rows, places, lacking)


def _lacking(observation: Observation, ids: Tensor, names: Sequence[str]) -> Params:
    """The gradient of some weights under a guess, less the one that was sent."""
    network = observation.network
    with torch.enable_grad():
        weights = [network.params[name] for name in names]
        made = torch.autograd.grad(
            network.loss(network.apply(network.params, ids), ids), weights, materialize_grads=True
        )
    return {name: each - observation.gradient[name].to(each) for name, each in zip(names, made, strict=True)}


def _pulled(network: Network, ids: Tensor, rows: Tensor, places: Tensor, off: Params) -> Tensor:
    """`J off` of the logits at one place of each of some sentences, as the derivative of `sum off J^T u` by u."""
    with torch.enable_grad():
        logits = network.apply(network.params, ids)[rows, places]
        u = torch.zeros_like(logits, requires_grad=True)
        weights = [network.params[name] for name in off]
        mixed = torch.autograd.grad(logits, weights, u, create_graph=True, materialize_grads=True)
        inner = torch.stack([(part * each).sum() for part, each in zip(mixed, off.values(), strict=True)]).sum()
        (scores,) = torch.autograd.grad(inner, u)
    return scores
