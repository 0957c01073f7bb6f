# SPDX-License-Identifier: Apache-2.0
"""Tokenizers: text to token ids and back.

Those that are trained here are byte-level BPE: all 256 byte symbols are in the alphabet, so text from any
domain can be encoded however little of it was seen in training, and bits per byte are exact. There is one
special token, the end of a text, which also opens every sequence, and no normaliser touches the text.

Those that come with an imported model are used as they are. What ends a text there, and what opens a
sequence, stands in ``tokenizer_config.json`` beside ``tokenizer.json``. This module does not know models.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model_core.errors import TokenizerInvalid

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"


class TextTokenizer:
    """Encodes and decodes text.

    Args:
        tokenizer: the underlying tokenizer.
        end_of_text: the token that ends a text.
        begin_of_text: the token that opens every sequence; None: the end-of-text token does.

    Attributes:
        end_of_text_id: id of the former.
        begin_id: id of the latter.

    Raises:
        TokenizerInvalid: one of them is missing.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, end_of_text: str = END_OF_TEXT, begin_of_text: str | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._marking: Tokenizer | None = None
        self.end_of_text_id = self._special(end_of_text)
        self.begin_id = self.end_of_text_id if begin_of_text is None else self._special(begin_of_text)

    def _special(self, token: str) -> int:
        number = self._tokenizer.token_to_id(token)
        if number is None:
            raise TokenizerInvalid(
                f"The tokenizer has no {token[:80]} token. Use the one of the base bundle, or name the token "
                f"that ends a text as eos_token in a {TOKENIZER_CONFIG_FILE} beside it."
            )
        return int(number)

    @classmethod
    def train(cls, texts: Iterable[str], *, vocab_size: int) -> TextTokenizer:
        """Trains a vocabulary; the same texts in the same order give the same one.

        Args:
            texts: public text.
            vocab_size: tokens in all, at least 257 (256 bytes and the end of text).

        Raises:
            TokenizerInvalid: ``vocab_size`` is too small to hold every byte.
        """
        if vocab_size < 257:
            raise TokenizerInvalid(
                "A byte-level vocabulary needs at least 257 tokens.", vocab_size=vocab_size
            )
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
            max_token_length=24,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls(tokenizer)

    @classmethod
    def load(cls, path: Path) -> TextTokenizer:
        """Reads ``tokenizer.json``, and ``tokenizer_config.json`` beside it where there is one.

        ``eos_token`` there names the end of a text and ``bos_token`` what opens a sequence, as strings or as
        objects with a ``content``. Without them both are ``<|endoftext|>``.

        Raises:
            TokenizerInvalid: a file is missing or unreadable, or a token that is named is not in it.
        """
        named = _named_tokens(path.parent / TOKENIZER_CONFIG_FILE)
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception for every kind of bad file
            raise TokenizerInvalid(
                "tokenizer.json cannot be read. Fetch the base bundle anew.", reason=type(error).__name__
            ) from error
        return cls(
            tokenizer,
            end_of_text=named.get("eos_token", END_OF_TEXT),
            begin_of_text=named.get("bos_token"),
        )

    def save(self, path: Path) -> None:
        """Writes ``tokenizer.json``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(path), pretty=False)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, the end of text included."""
        return int(self._tokenizer.get_vocab_size())

    @property
    def highest_id(self) -> int:
        """The largest token id; in vocabularies with gaps it exceeds their size."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values())

    @cached_property
    def longest_token(self) -> int:
        """Characters of the longest token: no text of more than ``n`` times that many has ``n`` tokens."""
        return max(len(token) for token in self._tokenizer.get_vocab(with_added_tokens=True))

    def token(self, number: int) -> str | None:
        """The token of an id, as it is spelled in the vocabulary; None where there is none."""
        token: str | None = self._tokenizer.id_to_token(number)
        return token

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without the end of text; a marker spelled out in the text is plain text."""
        return self.encode_batch([text])[0]

    @property
    def markers(self) -> tuple[str, ...]:
        """Spellings of the special tokens, the longest first."""
        added = self._tokenizer.get_added_tokens_decoder().values()
        return tuple(sorted({str(token.content) for token in added if token.special}, key=len, reverse=True))

    def encode_marked(self, text: str) -> list[int]:
        """Token ids of a text in which spelled-out markers are the special tokens they name."""
        if self._marking is None:
            # Its own copy: what reads markers is a switch of the library's object, and threads share that.
            self._marking = Tokenizer.from_str(self._tokenizer.to_str())
        return list(self._marking.encode(text, add_special_tokens=False).ids)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts."""
        self._tokenizer.encode_special_tokens = True
        return [
            list(item.ids) for item in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; the end of text is left out, broken UTF-8 becomes U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))


def _named_tokens(path: Path) -> dict[str, str]:
    """The end and begin tokens that a tokenizer's config names."""
    try:
        fields = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerInvalid(f"{path.name} cannot be read. Fetch the base bundle anew.") from error
    named = {}
    for field in ("eos_token", "bos_token"):
        value = fields.get(field) if isinstance(fields, dict) else None
        value = value.get("content") if isinstance(value, dict) else value
        if isinstance(value, str):
            named[field] = value
    return named
