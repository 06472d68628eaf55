"""Sentences as token ids: one long tensor `[n, length]`, padded at its end with the tokenizer's pad id.

The network takes the ids as they are, and makes its attention mask of them. Nothing here knows a tokenizer: any object
that encodes a text to ids and back may stand beside, for people.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from inversefed.errors import ConfigError, InputError
from inversefed.inputs.space import Measure

__all__ = ["Tokens"]

MEASURES: Mapping[str, Measure] = {
    "tokens_in_place": Measure(
        "Tokens", "", True, ".2f", "Share of places with the right token, where either sentence has one: 1 for all."
    ),
    "rouge_1": Measure("ROUGE-1", "", True, ".2f", "F1 of single tokens, wherever they stand: 1 for the same tokens."),
    "rouge_2": Measure("ROUGE-2", "", True, ".2f", "F1 of neighboring pairs of tokens: 1 for the same pairs."),
    "rouge_l": Measure("ROUGE-L", "", True, ".2f", "F1 of the longest common subsequence: 1 for the same sentence."),
    "exact_sentences": Measure(
        "Sentence", "", True, ".2f", "1 if every token is right, else 0; its mean is the share of sentences."
    ),
}
"""What a report says of a sentence, by name."""


@runtime_checkable
class Tokenizer(Protocol):
    """What any tokenizer can do: texts to ids and back."""

    def encode(self, text: str) -> Sequence[int]:
        """The ids of a text, with whatever the tokenizer puts around it."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids."""
        ...


@dataclass(frozen=True)
class Tokens:
    """Sentences of at most so many tokens of a vocabulary.

    Args:
        length: places of a sentence, padding included.
        vocabulary: how many tokens there are; ids go from 0 to this less 1.
        pad: the id that fills a sentence up.
        tokenizer: writes ids as text, for people; no part of equality.

    >>> tokens = Tokens(length=4, vocabulary=10)
    >>> tokens.ids([[3, 7], [5, 5, 2, 9]]).tolist()
    [[3, 7, 0, 0], [5, 5, 2, 9]]
    >>> tokens.errors(tokens.ids([[3, 7]]), tokens.ids([[3, 7], [3, 8]])).tolist()
    [[0.0, 0.5]]
    """

    length: int
    vocabulary: int
    pad: int = 0
    tokenizer: Tokenizer | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        whole = all(type(each) is int for each in (self.length, self.vocabulary, self.pad))
        if not whole or self.length < 1 or self.vocabulary < 2 or not 0 <= self.pad < self.vocabulary:
            raise ConfigError(
                "Tokens need a length of at least 1, a vocabulary of at least 2, and a pad id in it; got "
                f"length={self.length!r}, vocabulary={self.vocabulary!r} and pad={self.pad!r}"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """`(length,)` of one sentence."""
        return (self.length,)

    @property
    def noun(self) -> str:
        """What one of them is called."""
        return "sentence"

    def normalization(self) -> tuple[float, float]:
        """None: ids are fed as they are."""
        return 0.0, 1.0

    def middle(self, count: int) -> Tensor:
        """Sentences of one token repeated, the first id that is no padding."""
        return torch.full((count, self.length), int(self.pad == 0))

    def cells(self, example: Tensor) -> Sequence[tuple[str, str]]:
        """Each place, from 1, and its token: as text where there is a tokenizer, else its id; padding left out."""
        shown = str if self.tokenizer is None else lambda each: self._tokenizer.decode([each])
        return [(str(place), shown(each)) for place, each in enumerate(example.tolist(), 1) if each != self.pad]

    def ids(self, sentences: Sequence[Sequence[int]]) -> Tensor:
        """Sentences of any length, padded, `[n, length]`.

        Raises:
            InputError: one is longer, or is no sentence of this vocabulary.
        """
        longest = max(map(len, sentences), default=0)
        if longest > self.length:
            raise InputError(f"a sentence has {longest} tokens, and at most {self.length} are taken: cut it")
        rows = [[*map(int, each)] + [self.pad] * (self.length - len(each)) for each in sentences]
        found = torch.tensor(rows, dtype=torch.long).reshape(-1, self.length)
        if len(found):
            self.check(found)
        return found

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Texts as ids `[n, length]`; what is longer is cut at its end.

        Raises:
            ConfigError: there is no tokenizer.
        """
        return self.ids([list(self._tokenizer.encode(text))[: self.length] for text in texts])

    def decode(self, inputs: Tensor) -> tuple[str, ...]:
        """Ids `[n, length]` as texts.

        Raises:
            ConfigError: there is no tokenizer.
        """
        return tuple(self._tokenizer.decode(row[row != self.pad].tolist()) for row in inputs.cpu())

    @property
    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise ConfigError("there is no tokenizer: Tokens(.., tokenizer=one), with encode(text) and decode(ids)")
        return self.tokenizer

    def check(self, inputs: object) -> None:
        """Refuse what are no sentences.

        Raises:
            InputError: what came, what was expected, and what to do.
        """
        wanted = f"sentences are token ids, whole numbers [n, {self.length}], from 0 to {self.vocabulary - 1}"
        if not isinstance(inputs, Tensor):
            raise InputError(f"{wanted}; got {type(inputs).__name__}: see Tokens.ids and Tokens.encode")
        if inputs.ndim != 2 or inputs.shape[1] != self.length:
            raise InputError(f"{wanted}; got shape {list(inputs.shape)}: pad or cut sentences, see Tokens.ids")
        if inputs.dtype != torch.long:
            raise InputError(f"{wanted}; got {inputs.dtype}: give ids, not their embeddings, as inputs.long()")
        if not len(inputs):
            raise InputError(f"an audit needs at least one example, got none: {wanted}")
        if int(inputs.min()) < 0 or int(inputs.max()) >= self.vocabulary:
            raise InputError(f"{wanted}; got {int(inputs.min())} to {int(inputs.max())}: is it another tokenizer's?")
        if bool((inputs[:, 0] == self.pad).any()):
            raise InputError(
                f"a sentence begins with the pad id {self.pad}, so it is empty or padded at its start; pad at the end"
            )

    def snap(self, inputs: Tensor) -> Tensor:
        """The nearest ids: whole numbers of the vocabulary."""
        return inputs.round().clamp(0, self.vocabulary - 1).long()

    def stand_ins(self, count: int, random: Generator) -> Tensor:
        """Nobody's sentences, `[count, length]`: tokens by Zipf's law, the n-th id with a chance of 1 / (n + 2.7).

        Lengths are even from half of `length` to all of it.
        """
        chances = 1 / (torch.arange(self.vocabulary, dtype=torch.float64) + 2.7)  # Mandelbrot's form of the law
        chances[self.pad] = 0
        drawn = torch.multinomial(chances, count * self.length, replacement=True, generator=random)
        lengths = torch.randint((self.length + 1) // 2, self.length + 1, (count, 1), generator=random)
        places = torch.arange(self.length)
        return drawn.reshape(count, self.length).masked_fill(places >= lengths, self.pad)

    def errors(self, found: Tensor, truth: Tensor) -> Tensor:
        """Share of places that differ, `[n, m]`, of every found sentence with every true one.

        A place counts where either of the two has a token, so that padding makes no two sentences alike.
        """
        mine, other = found.cpu()[:, None], truth.cpu()[None]
        places = ((mine != self.pad) | (other != self.pad)).sum(dim=2)
        return (mine != other).sum(dim=2).double() / places.clamp(min=1)

    def controls(self, truth: Tensor, others: Tensor | None) -> Mapping[str, Tensor]:
        """What needs no update: the most frequent token of each place, and a sentence of others drawn at random.

        Without others, sentences by Zipf's law.
        """
        random, count = Generator().manual_seed(0), len(truth)
        if others is None or not len(others):
            return {"zipf": self.stand_ins(count, random).to(truth.device)}
        frequent = others.mode(dim=0).values
        drawn = others[torch.randint(len(others), (count,), generator=random).to(others.device)]
        return {
            "most_frequent": frequent.expand(count, -1).clone().to(truth.device),
            "random_sentence": drawn.to(truth.device),
        }

    def measures(self, found: Tensor, truth: Tensor) -> Mapping[str, Tensor]:
        """Of each pair, `[n]` each, all in [0, 1], more is better.

        `tokens_in_place`: share of places that agree. `rouge_1`, `rouge_2`, `rouge_l`: F1 of single tokens, of pairs of
        neighbors, and of the longest common subsequence (Lin 2004), on ids. `exact_sentences`: 1 where all agree.
        """
        in_place = 1 - self.errors(found, truth).diagonal()
        pairs = [
            (mine[mine != self.pad].tolist(), other[other != self.pad].tolist())
            for mine, other in zip(found.cpu(), truth.cpu(), strict=True)
        ]
        scores = torch.tensor([rouge(*pair) for pair in pairs], dtype=torch.float64).reshape(-1, 3)
        rouges = dict(zip(("rouge_1", "rouge_2", "rouge_l"), scores.unbind(dim=1), strict=True))
        return {"tokens_in_place": in_place, **rouges, "exact_sentences": (in_place == 1).double()}


def rouge(found: Sequence[int], truth: Sequence[int]) -> tuple[float, float, float]:
    """ROUGE-1, ROUGE-2 and ROUGE-L of two sequences, each an F1 in [0, 1]; where neither has any, 1.

    Paper: Lin (2004), "ROUGE: A Package for Automatic Evaluation of Summaries".

    >>> rouge([1, 2, 3, 4], [1, 3, 2, 4])
    (1.0, 0.0, 0.75)
    """

    def overlap(size: int) -> float:
        mine, other = (
            Counter(tuple(each[at : at + size]) for at in range(len(each) - size + 1)) for each in (found, truth)
        )
        return _f1((mine & other).total(), mine.total(), other.total())

    row = [0] * (len(truth) + 1)
    for token in found:
        before = row
        row = [0]
        for place, other in enumerate(truth):
            row.append(before[place] + 1 if token == other else max(before[place + 1], row[place]))
    return overlap(1), overlap(2), _f1(row[-1], len(found), len(truth))


def _f1(common: int, found: int, truth: int) -> float:
    return 2 * common / (found + truth) if found + truth else 1.0
