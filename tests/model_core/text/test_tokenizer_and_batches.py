# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from training_builders import texts, tiny_tokenizer

from model_core.errors import DatasetRefused, TokenizerInvalid
from model_core.text.batches import BatchOrder, describe, encode_documents, pack
from model_core.text.documents import Document
from model_core.text.tokenizer import END_OF_TEXT, TextTokenizer

_TOKENIZER = tiny_tokenizer()


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=200))
def test_any_text_comes_back_unchanged(text: str) -> None:
    """Encoding is lossless for every text, and never yields the end of text by itself."""
    ids = _TOKENIZER.encode(text)
    assert _TOKENIZER.decode(ids) == text
    assert _TOKENIZER.end_of_text_id not in ids


def test_a_marker_spelled_out_is_plain_text() -> None:
    """Text cannot end a document by spelling the marker."""
    ids = _TOKENIZER.encode(f"a{END_OF_TEXT}b")
    assert _TOKENIZER.end_of_text_id not in ids
    assert _TOKENIZER.decode(ids) == f"a{END_OF_TEXT}b"


def test_tokenizers_survive_files_and_bad_ones_are_refused(tmp_path: Path) -> None:
    """A saved tokenizer encodes alike; equal training gives equal bytes; rubbish gives the typed refusal."""
    _TOKENIZER.save(tmp_path / "a.json")
    tiny_tokenizer().save(tmp_path / "b.json")
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert TextTokenizer.load(tmp_path / "a.json").encode("river int") == _TOKENIZER.encode("river int")
    (tmp_path / "c.json").write_text("{}")
    for name in ("c.json", "none.json"):
        with pytest.raises(TokenizerInvalid):
            TextTokenizer.load(tmp_path / name)
    with pytest.raises(TokenizerInvalid):
        TextTokenizer.train(["x"], vocab_size=100)


@pytest.mark.parametrize("spelled", ["</s>", {"content": "</s>", "special": True}])
def test_an_imported_tokenizer_says_what_opens_and_ends_a_text(spelled: object, tmp_path: Path) -> None:
    """From the config beside it, as a string or an object; documents are then closed as well as opened."""
    words = {"<s>": 0, "</s>": 1, "a": 2, "b": 3, "<unk>": 9}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(TokenizerInvalid, match="eos_token"):
        TextTokenizer.load(tmp_path / "tokenizer.json")
    config = tmp_path / "tokenizer_config.json"
    config.write_text(json.dumps({"eos_token": spelled, "bos_token": None}))
    loaded = TextTokenizer.load(tmp_path / "tokenizer.json")
    assert (loaded.begin_id, loaded.end_of_text_id, loaded.highest_id) == (1, 1, 9)
    config.write_text(json.dumps({"eos_token": spelled, "bos_token": "<s>"}))
    loaded = TextTokenizer.load(tmp_path / "tokenizer.json")
    assert [row.tolist() for row in encode_documents([Document(id="x", text="a b")], loaded)] == [
        [0, 2, 3, 1]
    ]
    for body in (b"{", b'{"eos_token": "<gone>"}'):
        config.write_bytes(body)
        with pytest.raises(TokenizerInvalid):
            TextTokenizer.load(tmp_path / "tokenizer.json")


def test_packing_keeps_every_token_once() -> None:
    """Joined rows are the documents' tokens in order, each opened by the end of text, each a target once."""
    documents = texts("own", 7)
    packed = pack(documents, _TOKENIZER, sequence_tokens=16, seed=3)
    inputs, targets = packed.rows_NS1[:, :-1].ravel(), packed.rows_NS1[:, 1:].ravel()
    assert np.array_equal(inputs[1:], targets[:-1])
    end = _TOKENIZER.end_of_text_id
    pieces = _split(np.concatenate((inputs[:1], targets)), end)
    wanted = {tuple(_TOKENIZER.encode(document.text)) for document in documents}
    assert all(piece in wanted for piece in pieces[:-1])
    assert packed.tokens - packed.rows_NS1.shape[0] * 16 <= 16
    assert packed.digest == pack(documents, _TOKENIZER, sequence_tokens=16, seed=3).digest
    assert packed.digest != pack(documents, _TOKENIZER, sequence_tokens=16, seed=4).digest


def _split(stream: np.ndarray, end: int) -> list[tuple[int, ...]]:
    pieces: list[list[int]] = []
    for token in stream.tolist():
        if token == end:
            pieces.append([])
        else:
            pieces[-1].append(token)
    return [tuple(piece) for piece in pieces]


def test_too_little_text_is_refused() -> None:
    """Less than one row is a refusal that says how many tokens there are."""
    with pytest.raises(DatasetRefused):
        pack([Document(id="a", text="x")], _TOKENIZER, sequence_tokens=64, seed=0)


@settings(max_examples=50, deadline=None)
@given(rows=st.integers(1, 30), batch=st.integers(1, 12), seed=st.integers(0, 5))
def test_every_epoch_reads_every_row_once(rows: int, batch: int, seed: int) -> None:
    """The order is a function of the step alone and covers each epoch exactly."""
    order = BatchOrder(rows=rows, batch_rows=batch, seed=seed)
    read = np.concatenate([order.indices(step) for step in range(2 * rows)])
    for epoch in range(len(read) // rows):
        assert sorted(read[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    assert np.array_equal(order.indices(3), BatchOrder(rows=rows, batch_rows=batch, seed=seed).indices(3))


def test_data_cards_count_and_bind_without_text() -> None:
    """The card's root does not depend on order, changes with any byte, and the card holds no text."""
    documents = texts("own", 5)
    card = describe(documents, license="MIT", description="d")
    again = describe(tuple(reversed(documents)), license="MIT", description="d")
    changed = describe((*documents[:4], Document(id="own/4", text="x")), license="MIT", description="d")
    assert card.merkle_root == again.merkle_root != changed.merkle_root
    assert card.documents == 5
    assert card.text_bytes == sum(document.size_bytes for document in documents)
    assert "struct" not in card.model_dump_json()
