# SPDX-License-Identifier: Apache-2.0
"""The byte-level BPE tokenizer: any bytes of text go in and come back out unchanged.

All 256 byte symbols are in the alphabet, so text from any domain can be encoded however little of it
was seen in training, and bits per byte are exact. There is one special token, the end of a text, which
also opens every sequence. No normaliser touches the text. This module does not know models.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from model_core.errors import TokenizerInvalid

END_OF_TEXT = "<|endoftext|>"


class TextTokenizer:
    """Encodes and decodes text with a trained byte-level BPE.

    Args:
        tokenizer: the underlying tokenizer; must have the end-of-text token.

    Raises:
        TokenizerInvalid: the end-of-text token is missing.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        end = tokenizer.token_to_id(END_OF_TEXT)
        if end is None:
            raise TokenizerInvalid(
                f"The tokenizer has no {END_OF_TEXT} token. Use the one of the base bundle."
            )
        self._tokenizer = tokenizer
        self.end_of_text_id: int = end

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
        """Reads ``tokenizer.json``.

        Raises:
            TokenizerInvalid: the file is missing or is no tokenizer.
        """
        try:
            return cls(Tokenizer.from_file(str(path)))
        except TokenizerInvalid:
            raise
        except Exception as error:  # the library raises bare Exception for every kind of bad file
            raise TokenizerInvalid(
                "tokenizer.json cannot be read. Fetch the base bundle anew.", reason=type(error).__name__
            ) from error

    def save(self, path: Path) -> None:
        """Writes ``tokenizer.json``."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self._tokenizer.save(str(path), pretty=False)

    @property
    def vocab_size(self) -> int:
        """How many tokens there are, the end of text included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, without the end of text; a marker spelled out in the text is plain text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of several texts."""
        self._tokenizer.encode_special_tokens = True
        return [
            list(item.ids) for item in self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        ]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; the end of text is left out, broken UTF-8 becomes U+FFFD."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True))
