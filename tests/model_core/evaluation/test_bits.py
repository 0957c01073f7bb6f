# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch
from training_builders import texts, tiny_decoder, tiny_tokenizer

from model_core.errors import DatasetRefused
from model_core.evaluation.bits import DocumentBits, bits_per_byte, bits_per_document
from model_core.evaluation.intervals import bits_interval, paired_difference, paired_ratio
from model_core.evaluation.shares import routing_shares
from model_core.network.decoder import upcycle
from model_core.text.documents import Document

_TOKENIZER = tiny_tokenizer()


def _direct_bits(text: str) -> float:
    """One document scored token by token, without windows, batches or padding."""
    decoder = tiny_decoder()
    ids = [_TOKENIZER.end_of_text_id, *_TOKENIZER.encode(text)]
    bits = 0.0
    for place in range(1, len(ids)):
        with torch.no_grad():
            logits = decoder(torch.tensor([ids[:place]]))[0, -1].double()
        bits -= float(logits.log_softmax(-1)[ids[place]]) / math.log(2)
    return bits


def test_bits_equal_a_direct_computation() -> None:
    """Batched and padded scoring gives what scoring token by token gives, bytes counted in UTF-8."""
    documents = [
        Document(id="a", text="the river é"),
        Document(id="b", text="int float; return x"),
        *texts("own", 2, words=9),
    ]
    scores = bits_per_document(tiny_decoder(), documents, _TOKENIZER)
    for score, document in zip(scores, documents, strict=True):
        assert score.bits == pytest.approx(_direct_bits(document.text), rel=1e-5)
        assert score.size_bytes == len(document.text.encode())
        assert score.tokens == len(_TOKENIZER.encode(document.text))
    total = sum(_direct_bits(document.text) for document in documents)
    assert bits_per_byte(scores) == pytest.approx(
        total / sum(len(d.text.encode()) for d in documents), rel=1e-5
    )


def test_windows_score_every_token_once() -> None:
    """A long document in overlapping windows has every token scored once, the first window as without."""
    (document,) = texts("public", 1, words=150)
    decoder = tiny_decoder()
    logits_are_flat = decoder.lm_head
    assert logits_are_flat is not None
    with torch.no_grad():
        logits_are_flat.weight.zero_()
    for window, overlap in ((128, 32), (40, 10), (17, 16), (9, 0)):
        (score,) = bits_per_document(
            decoder, [document], _TOKENIZER, window_tokens=window, overlap_tokens=overlap
        )
        assert score.bits == pytest.approx(score.tokens * math.log2(300), rel=1e-6)


def test_a_copy_of_the_public_expert_changes_no_bits() -> None:
    """Upcycling is neutral: bits beside a copy equal the base's within fp32."""
    decoder = tiny_decoder()
    documents = texts("own", 3)
    alone = bits_per_document(decoder, documents, _TOKENIZER)
    beside = bits_per_document(decoder, documents, _TOKENIZER, experts=(upcycle(decoder),), top_k=2)
    for left, right in zip(alone, beside, strict=True):
        assert left.bits == pytest.approx(right.bits, rel=1e-5)
    shares = routing_shares(decoder, (upcycle(decoder),), documents, _TOKENIZER)
    assert torch.allclose(shares, torch.full((2, 2), 0.5, dtype=torch.float64))
    assert torch.equal(
        routing_shares(decoder, (), documents, _TOKENIZER), torch.ones(2, 1, dtype=torch.float64)
    )


def _scores(bits: list[float]) -> list[DocumentBits]:
    return [
        DocumentBits(id=str(index), bits=value, size_bytes=100 + index, tokens=10)
        for index, value in enumerate(bits)
    ]


def test_intervals_tell_a_real_difference_from_noise() -> None:
    """A constant gain lies below zero with its whole interval; a symmetric one does not; pairs must match."""
    base = [200.0 + 30 * math.sin(index) for index in range(60)]
    better = paired_difference(_scores([value - 10 for value in base]), _scores(base))
    assert better.low <= better.value <= better.high < 0
    noise = [value + (12 if index % 2 else -12) for index, value in enumerate(base)]
    unclear = paired_difference(_scores(noise), _scores(base))
    assert unclear.low < 0 < unclear.high
    assert paired_ratio(_scores([2 * value for value in base]), _scores(base)).value == pytest.approx(2)
    whole = bits_interval(_scores(base))
    assert whole.low < bits_per_byte(_scores(base)) < whole.high
    assert whole.documents == 60
    with pytest.raises(DatasetRefused):
        paired_difference(_scores(base), _scores(base[:-1]))
    with pytest.raises(DatasetRefused):
        bits_interval([])


def test_nothing_to_score_is_refused() -> None:
    """No documents is a refusal, not a division by zero."""
    with pytest.raises(DatasetRefused):
        bits_per_document(tiny_decoder(), [], _TOKENIZER)
