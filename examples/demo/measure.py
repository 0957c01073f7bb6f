# SPDX-License-Identifier: Apache-2.0
"""Measures bits per byte through a deployment's own door, with document-bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cluster.client import MarketplaceClient
from examples.corpus import PUBLIC, Domain
from examples.demo.results import Bits
from model_core.evaluation.bits import DocumentBits, bits_per_byte
from model_core.evaluation.intervals import paired_difference
from model_core.text.documents import Document, read_documents

Scores = dict[str, tuple[DocumentBits, ...]]


def heldout(domains: dict[str, Domain], *, documents: int, characters: int) -> dict[str, list[Document]]:
    """The same beginnings of the same held-out documents for every model."""
    return {
        name: [
            Document(id=document.id, text=document.text[:characters])
            for document in read_documents(domain.files["heldout"])[:documents]
        ]
        for name, domain in sorted(domains.items(), key=lambda item: (item[0] == PUBLIC, item[0]))
    }


def score(
    client: MarketplaceClient,
    deployment: str,
    texts: dict[str, list[Document]],
    *,
    experts: Sequence[str] | None,
    tick: Callable[[], None],
) -> Scores:
    """Scores every domain under a deployment, or under a subset of its experts.

    Args:
        client: the consumer's.
        deployment: its endpoint.
        texts: documents by domain.
        experts: names of the experts to use; None means all that are permitted, empty the base alone.
        tick: called after every domain.
    """
    found: Scores = {}
    for domain, documents in texts.items():
        body: dict[str, Any] = {"texts": [document.text for document in documents]}
        if experts is not None:
            body["experts"] = list(experts)
        answer = client.post(f"/api/v1/deployments/{deployment}/score", body)
        found[domain] = tuple(
            DocumentBits(id=document.id, bits=row["bits"], size_bytes=row["size_bytes"], tokens=row["tokens"])
            for document, row in zip(documents, answer["documents"], strict=True)
        )
        tick()
    return found


def compare(models: dict[str, Scores]) -> dict[str, dict[str, Bits]]:
    """Domain → model → bits per byte, with the interval of the difference to the model called ``base``."""
    base = models["base"]
    return {
        domain: {name: _bits(scores[domain], base[domain]) for name, scores in models.items()}
        for domain in base
    }


def _bits(ours: Sequence[DocumentBits], base: Sequence[DocumentBits]) -> Bits:
    difference = paired_difference(ours, base)
    return Bits(
        mean=bits_per_byte(ours),
        delta_low=difference.low,
        delta_high=difference.high,
        documents=difference.documents,
    )
