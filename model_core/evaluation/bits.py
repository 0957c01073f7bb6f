# SPDX-License-Identifier: Apache-2.0
"""Bits per byte: how well a model predicts text, in a unit that does not depend on the tokenizer.

A document's bits are the negative log2 probabilities of all its tokens, given the end-of-text token and what
stands before; its bytes are exactly those of its UTF-8 text. Documents longer than a window are scored in
windows that overlap, each token once, with at least the overlap as context.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from model_core.errors import DatasetRefused
from model_core.network.decoder import Decoder, Observer
from model_core.network.expert import Expert
from model_core.text.documents import Document
from model_core.text.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class DocumentBits:
    """One document's score.

    Attributes:
        id: the document.
        bits: total, over all its tokens.
        size_bytes: UTF-8 bytes of the text that was scored.
        tokens: tokens that were scored.
    """

    id: str
    bits: float
    size_bytes: int
    tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _Window:
    document: int
    ids: list[int]
    first_target: int  # index into ids of the first token that this window scores


def cut_documents(documents: Sequence[Document], max_characters: int) -> tuple[Document, ...]:
    """The documents' first characters: what an evaluation with a time limit scores."""
    return tuple(Document(id=document.id, text=document.text[:max_characters]) for document in documents)


def bits_per_document(
    decoder: Decoder,
    documents: Sequence[Document],
    tokenizer: TextTokenizer,
    *,
    experts: Sequence[Expert] = (),
    top_k: int | None = None,
    window_tokens: int = 1024,
    overlap_tokens: int = 256,
    batch_tokens: int = 8192,
    observe: Observer | None = None,
) -> tuple[DocumentBits, ...]:
    """Scores documents under a base and experts beside it.

    Args:
        decoder: the base.
        documents: texts to score.
        tokenizer: the base's.
        experts: in canonical order; none scores the base alone.
        top_k: experts per token, the public one counted; None means all.
        window_tokens: longest sequence that is run, at most the model's positions.
        overlap_tokens: context that a later window repeats.
        batch_tokens: padded tokens a forward pass, at most about this many.
        observe: passed to the decoder (rows beyond a document's end are padding).

    Returns:
        One score per document, in the given order.

    Raises:
        DatasetRefused: there is nothing to score.
    """
    if not documents:
        raise DatasetRefused("There is no document to score. Keep some documents out of training.")
    window_tokens = min(window_tokens, decoder.shape.max_positions)
    overlap_tokens = max(1, min(overlap_tokens, window_tokens // 2))
    encoded = tokenizer.encode_batch([document.text for document in documents])
    windows = [
        window
        for index, ids in enumerate(encoded)
        for window in _windows(index, [tokenizer.begin_id, *ids], window_tokens, overlap_tokens)
    ]
    windows.sort(key=lambda window: (len(window.ids), window.document, window.first_target))
    nats = [0.0] * len(documents)
    with torch.no_grad():
        for batch in _batches(windows, batch_tokens):
            ids_BS = _padded(batch, tokenizer.end_of_text_id).to(decoder.embed.weight.device)
            logits_BSV = decoder(ids_BS[:, :-1], experts, top_k=top_k, observe=observe)
            nats_BS = F.cross_entropy(
                logits_BSV.float().flatten(0, 1), ids_BS[:, 1:].flatten(), reduction="none"
            ).view(ids_BS.shape[0], -1)
            for row, window in enumerate(batch):
                scored = nats_BS[row, window.first_target - 1 : len(window.ids) - 1]
                nats[window.document] += float(scored.double().sum())
    return tuple(
        DocumentBits(
            id=document.id,
            bits=nats[index] / math.log(2),
            size_bytes=document.size_bytes,
            tokens=len(encoded[index]),
        )
        for index, document in enumerate(documents)
    )


def bits_per_byte(scores: Sequence[DocumentBits]) -> float:
    """Total bits over total bytes."""
    return sum(score.bits for score in scores) / sum(score.size_bytes for score in scores)


def _windows(document: int, ids: list[int], window: int, overlap: int) -> list[_Window]:
    found = [_Window(document=document, ids=ids[: window + 1], first_target=1)]
    start = 0
    while start + window + 1 < len(ids):
        scored_to = start + window + 1
        start = min(scored_to - overlap, len(ids) - window - 1)
        found.append(
            _Window(document=document, ids=ids[start : start + window + 1], first_target=scored_to - start)
        )
    return [item for item in found if len(item.ids) > item.first_target]


def _batches(windows: Sequence[_Window], batch_tokens: int) -> list[list[_Window]]:
    batches: list[list[_Window]] = []
    for window in windows:
        if batches and (len(batches[-1]) + 1) * len(window.ids) <= batch_tokens:
            batches[-1].append(window)
        else:
            batches.append([window])
    return batches


def _padded(batch: Sequence[_Window], fill: int) -> Tensor:
    """Rows filled up on the right: causal, so the filling reaches no scored position."""
    longest = max(len(window.ids) for window in batch)
    return torch.tensor([window.ids + [fill] * (longest - len(window.ids)) for window in batch])
