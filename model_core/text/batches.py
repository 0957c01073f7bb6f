# SPDX-License-Identifier: Apache-2.0
"""Documents as training sequences, in an order that a seed decides and a digest records.

Documents are joined head to tail, each opened by the end-of-text token, and cut into rows of one length;
nothing is padded and nothing but the last incomplete row is left out. Every epoch has its own order,
computed from (seed, epoch), so that a run can resume at any step without state from the steps before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from model_core.errors import DatasetRefused
from model_core.packing.canonical import digest_bytes, merkle_root
from model_core.packing.manifest import DataCard
from model_core.text.documents import Document
from model_core.text.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedText:
    """Token rows ready for training.

    Attributes:
        rows_NS1: ``[N, S+1]`` token ids, uint16 or int32; inputs are columns 0..S-1, targets 1..S.
        tokens: tokens of all documents, end-of-text tokens included, before cutting.
        text_bytes: UTF-8 bytes of all documents.
    """

    rows_NS1: np.ndarray
    tokens: int
    text_bytes: int

    @property
    def digest(self) -> str:
        """Digest of the rows: equal digests mean equal training text in equal order."""
        return digest_bytes(np.ascontiguousarray(self.rows_NS1.astype("<i4")).tobytes())

    def batch(self, rows_B: np.ndarray) -> tuple[Tensor, Tensor]:
        """Inputs and targets ``[B, S]`` of the given rows, int64."""
        rows_BS1 = torch.from_numpy(self.rows_NS1[rows_B].astype(np.int64))
        return rows_BS1[:, :-1].contiguous(), rows_BS1[:, 1:].contiguous()


def encode_documents(documents: Sequence[Document], tokenizer: TextTokenizer) -> list[np.ndarray]:
    """Token ids of every document with its opening and closing tokens, int32.

    The end-of-text token is left out where it also opens sequences: the next document then closes this one.
    """
    begin, end = tokenizer.begin_id, tokenizer.end_of_text_id
    close = [] if begin == end else [end]
    encoded = tokenizer.encode_batch([document.text for document in documents])
    return [np.array([begin, *ids, *close], np.int32) for ids in encoded]


def pack(
    documents: Sequence[Document], tokenizer: TextTokenizer, *, sequence_tokens: int, seed: int
) -> PackedText:
    """Packs documents into rows.

    Args:
        documents: the training text.
        tokenizer: the base's.
        sequence_tokens: S, inputs a row.
        seed: shuffles the documents before they are joined.

    Raises:
        DatasetRefused: the text does not fill one row.
    """
    encoded = encode_documents(documents, tokenizer)
    order = np.random.Generator(np.random.PCG64([seed, 1])).permutation(len(encoded))
    stream = np.concatenate([encoded[index] for index in order]) if encoded else np.zeros(0, np.int32)
    # A row shares its last token with the next one, so that every token but the first is a target once.
    rows = (len(stream) - 1) // sequence_tokens
    if rows < 1:
        raise DatasetRefused(
            f"The data set has {len(stream)} tokens, fewer than one training row of {sequence_tokens + 1}. "
            "Add documents or shorten the rows.",
            tokens=len(stream),
        )
    starts = np.arange(rows)[:, None] * sequence_tokens
    return PackedText(
        rows_NS1=stream[starts + np.arange(sequence_tokens + 1)[None, :]],
        tokens=len(stream),
        text_bytes=sum(document.size_bytes for document in documents),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchOrder:
    """Which rows each step reads: a pure function of (rows, batch size, seed, step).

    Attributes:
        rows: N, rows in the data.
        batch_rows: B, rows a step; an epoch's last incomplete batch is filled from the next epoch.
        seed: decides every epoch's permutation.
    """

    rows: int
    batch_rows: int
    seed: int

    def indices(self, step: int) -> np.ndarray:
        """Row indices of a step (counted from 0), ``[B]``."""
        first = step * self.batch_rows
        places = np.arange(first, first + self.batch_rows)
        epochs = places // self.rows
        picked = np.empty(self.batch_rows, np.int64)
        for epoch in np.unique(epochs):
            order = np.random.Generator(np.random.PCG64([self.seed, 2, int(epoch)])).permutation(self.rows)
            chosen = epochs == epoch
            picked[chosen] = order[places[chosen] % self.rows]
        return picked

    def batch(self, packed: PackedText, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets ``[B, S]`` of a step, int64."""
        return packed.batch(self.indices(step))


def describe(
    documents: Sequence[Document],
    *,
    license: str,  # noqa: A002 (the manifest's field)
    description: str,
    tokens: int | None = None,
    languages: tuple[str, ...] = (),
    collected_from: str | None = None,
    collected_to: str | None = None,
) -> DataCard:
    """Writes a data card: counts, dates and one root digest over the documents, never their text.

    The root stands over the digests of id and text in the order of ids, so that an owner can later prove
    that a document was, or was not, among those trained on without showing the others.
    """
    leaves = [
        digest_bytes(document.id.encode() + b"\0" + document.text.encode()).encode()
        for document in sorted(documents, key=lambda document: document.id)
    ]
    return DataCard(
        documents=len(documents),
        text_bytes=sum(document.size_bytes for document in documents),
        tokens=tokens,
        languages=languages,
        collected_from=collected_from,
        collected_to=collected_to,
        license=license,
        merkle_root=merkle_root(leaves),
        description=description,
    )
