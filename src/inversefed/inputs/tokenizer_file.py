"""Sentences of a file, a line each, by a `tokenizer.json` of the `tokenizers` library, which is read as data.

Such a file holds a vocabulary, rules, and which tokens are put around a sentence. Length and padding may stand in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from inversefed.errors import ConfigError, InputError, shown
from inversefed.inputs.tokens import Tokens

__all__ = ["TokenizerFile", "read_lines"]

_PADS = ("[PAD]", "<pad>", "<|padding|>")
"""Tokens that fill sentences up, where the file does not say which does."""
_LARGEST = 100_000_000
"""Bytes of a tokenizer or of sentences that are read; a vocabulary of 256,000 tokens takes 33 million."""


@dataclass(frozen=True, eq=False)
class TokenizerFile:
    """A tokenizer as `Tokens` takes one.

    Args:
        path: of its file.
        held: what the library made of it.
    """

    path: Path
    held: Any = field(repr=False)

    @classmethod
    def of(cls, path: Path) -> "TokenizerFile":
        """Read a file; it pads nothing then, as `Tokens` does so.

        Raises:
            InputError: no such file, none of a tokenizer, or the library is not installed.
        """
        try:
            from tokenizers import Tokenizer
        except ImportError as error:
            raise InputError(
                "a tokenizer.json is read by the library tokenizers, which is not installed: pip install "
                "'inversefed[text]'; or give ids, --inputs \"Tokens(..)\" --batch FILE"
            ) from error
        text = _text_of(path, "the tokenizer")
        try:
            held = Tokenizer.from_str(text)
        except Exception as error:  # the library raises no class of its own
            raise InputError(
                f"{path} is no tokenizer.json of the library tokenizers: {str(error).splitlines()[0]}; a model's "
                "folder has it beside the weights, and save_pretrained of a fast tokenizer writes it"
            ) from error
        return cls(path, held)

    def space(self, texts: Sequence[str], given: Tokens | None = None) -> Tokens:
        """What sentences by this tokenizer are.

        Its length is that to which the file cuts, or that of the longest text.

        Args:
            texts: sentences.
            given: what somebody says that they are; `None` for what file and texts tell.

        Raises:
            ConfigError: what is given has fewer tokens than the file, or nobody tells the length or the pad id.
        """
        known = self.held.get_vocab_size()
        if given is None:
            cut, padding = self.held.truncation, self.held.padding
            self.held.no_padding()
            pads = [self.held.token_to_id(each) for each in _PADS]
            pad = next((each for each in pads if each is not None), None) if padding is None else padding["pad_id"]
            length = cut["max_length"] if cut else max((len(self.encode(each)) for each in texts), default=0)
            if pad is None or not length:
                what = "which token fills sentences up" if pad is None else "how long sentences are"
                raise ConfigError(
                    f'{self.path.name} does not say {what}; say so: --inputs "Tokens(length=.., vocabulary={known}, '
                    'pad=..)"'
                )
            given = Tokens(length, known, pad)
        if given.vocabulary < known:
            raise ConfigError(
                f"{self.path.name} has {known} tokens, and --inputs says that there are {given.vocabulary}: give the "
                "tokenizer of this network"
            )
        self.held.no_padding()
        self.held.enable_truncation(given.length)  # which keeps the token that ends a sentence
        return Tokens(given.length, given.vocabulary, given.pad, self)

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with the tokens that the file puts around it."""
        ids: list[int] = self.held.encode(text).ids
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of ids, what stands around it included; an id that the vocabulary lacks is shown as one."""
        text: str = self.held.decode(list(token_ids), skip_special_tokens=False)
        return text or " ".join(f"[{each}]" for each in token_ids)


def read_lines(path: Path) -> tuple[str, ...]:
    """The sentences of a text file in UTF-8, a line each.

    Raises:
        InputError: no such file, none of text, no sentence, or an empty line among them.
    """
    lines = [line.strip() for line in _text_of(path, "the sentences").rstrip().splitlines()]
    if not all(lines) or not lines:
        where = (
            f"line {lines.index('') + 1} of {shown(path.name)} is empty" if lines else f"{shown(path.name)} is empty"
        )
        raise InputError(f"{where}; a file of sentences has one in each line")
    return tuple(lines)


def _text_of(path: Path, what: str) -> str:
    if not path.is_file():
        raise InputError(f"cannot read {what}, {path}: there is no such file")
    if path.stat().st_size > _LARGEST:
        raise InputError(f"{path} has {path.stat().st_size} bytes, and at most {_LARGEST} are read")
    try:
        return path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"cannot read {what}, {path}, as text in UTF-8: save it so") from error
