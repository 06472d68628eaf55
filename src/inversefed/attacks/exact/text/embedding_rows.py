"""One sentence from the gradients of token and position embeddings alone, whatever the network behind them.

    x_t = E_(v_t) + P_t    =>    dP_t = dL/dx_t,    dE_v = sum over t with v_t = v of dL/dx_t,    dE = S^T dP

S is a binary matrix, one 1 for each place. So `S^T = dE pinv(dP)` tells which token stood where, repeated ones too, as
long as the places' gradients are independent; a sentence is as long as dP has rows that are not zero. No attention, no
tolerance and no second round is needed. Own derivation; it needs one example, learned positions, and embeddings that
are trained and not tied to the output.
"""

from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor

from inversefed.attacks.exact.text.last_tokens import with_last_tokens
from inversefed.attacks.exact.text.outcome import resolved, result, tokens_of
from inversefed.attacks.exact.text.roles import TextRoles, tied_to, unread
from inversefed.errors import ThreatModelError
from inversefed.fl.threat import Observation
from inversefed.types import Budget, Reconstruction

__all__ = ["EmbeddingRows"]


def sentence_of_rows(tokens: Tensor, positions: Tensor) -> tuple[tuple[int, ...], float]:
    """The sentence, and by how much its matrix S is off whole numbers.

    Args:
        tokens: gradient of the token embedding, `[vocabulary, width]`.
        positions: gradient of the position embedding, `[places, width]`.

    Raises:
        ThreatModelError: no place was used, or more than the embeddings are wide.

    >>> places = torch.tensor([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0]])
    >>> rows = torch.zeros(5, 3).index_add(0, torch.tensor([4, 1]), places[:2])
    >>> sentence, off = sentence_of_rows(rows, places)
    >>> sentence, off < 1e-6
    ((4, 1), True)
    """
    dense, places = tokens.detach().cpu().double(), positions.detach().cpu().double()
    rows, used = dense.any(dim=1).nonzero()[:, 0], places.any(dim=1).nonzero()[:, 0]
    if not len(rows) or not 0 < len(used) <= places.shape[1]:
        raise ThreatModelError(
            f"the gradient of the positions has {len(used)} rows that are not zero and that of the tokens {len(rows)}; "
            f"a sentence of 1 to {places.shape[1]} tokens has as many of the first as tokens: are embeddings frozen?"
        )
    matrix = dense[rows] @ torch.linalg.pinv(places[used])
    off = float((matrix - matrix.round()).abs().max())
    return tuple(rows[matrix.argmax(dim=0)].tolist()), off


@dataclass(frozen=True)
class EmbeddingRows:
    """Read the sentence of one example off the gradients of its embeddings.

    Args:
        roles: which weights are what, as far as a run of the network does not tell.
    """

    roles: TextRoles | None = field(default=None)

    def __call__(self, observation: Observation, generator: Generator, budget: Budget = Budget()) -> Reconstruction:
        """Solve, find the label, and run the client on it; neither randomness nor budget is used.

        Raises:
            ThreatModelError: the update is not that of one example, or lacks an embedding.
            UnsupportedNetworkError: the network takes no token ids.
        """
        roles, tokens, positions = _sent(self.roles, observation)
        sentence, off = sentence_of_rows(tokens, positions)
        (sentence,) = with_last_tokens(observation, [sentence[: tokens_of(observation).length]])
        how = f"the {len(sentence)} tokens were read off the gradients of {roles.tokens} and {roles.positions}"
        return result(
            self,
            observation,
            [sentence],
            how,
            {"tokens": len(sentence), "off_whole_numbers": off, "roles": repr(roles)},
        )

    def check(self, observation: Observation) -> str:
        """Say what it would do.

        Raises:
            ThreatModelError: as when it is called.
            UnsupportedNetworkError: likewise.
        """
        roles, tokens, positions = _sent(self.roles, observation)
        sentence, off = sentence_of_rows(tokens, positions)
        return (
            f"reads {len(sentence)} tokens off the gradients of {roles.tokens} and {roles.positions}, whose matrix is "
            f"off whole numbers by {off:.1g}"
        )


def _sent(given: TextRoles | None, observation: Observation) -> tuple[TextRoles, Tensor, Tensor]:
    """The roles, and the gradients of tokens and positions."""
    roles, gradient = resolved(observation, given), observation.gradient
    if observation.num_examples != 1:
        raise ThreatModelError(
            f"the rows of the embeddings' gradients are one sentence's; this update has {observation.num_examples}"
        )
    if roles.tokens is None:
        raise unread("no embedding is fed the token ids")
    if roles.positions is None:
        raise ThreatModelError("this network learns no positions, so its embeddings' gradients tell no order")
    missing = [name for name in (roles.tokens, roles.positions) if name not in gradient]
    if missing:
        raise ThreatModelError(f"no gradient of {', '.join(missing)} was sent: embeddings are frozen, or left out")
    tied = tied_to(observation.network, roles.tokens)
    if tied:
        raise ThreatModelError(
            f"{roles.tokens} is tied to {', '.join(tied)}, so its gradient has rows for every token of the vocabulary, "
            "and does not tell which were there; the attention's gradients do: recipes.token_span()"
        )
    tokens, positions = gradient[roles.tokens], gradient[roles.positions]
    return roles, tokens, positions.reshape(positions.shape[-2:])
