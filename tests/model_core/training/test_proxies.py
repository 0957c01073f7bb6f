# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import random

import numpy as np
import pytest
from training_builders import texts

from model_core.errors import DatasetRefused
from model_core.text.documents import Document
from model_core.training.proxies import ProxySettings, hashed_ngrams, select_proxies

_SETTINGS = ProxySettings(count=6, buckets=1 << 12, document_bytes=400)


def _public_with_likes() -> list[Document]:
    """Forty public documents, six of which are written in the owner's dialect."""
    likes = [
        Document(id=f"like/{index}", text=item.text) for index, item in enumerate(texts("own", 6, seed=3))
    ]
    return [*texts("public", 34), *likes]


def test_the_public_documents_most_like_the_owners_are_picked() -> None:
    """Public documents in the owner's dialect are found, and no private document is ever in the result."""
    private = texts("own", 40)
    public = _public_with_likes()
    found = select_proxies(private, public, settings=_SETTINGS)
    assert {document.id for document in found.documents} == {f"like/{index}" for index in range(6)}
    assert all(document in public for document in found.documents)
    assert found.accuracy > 0.85
    assert 0 < found.lowest_probability < 1


def test_the_selection_does_not_depend_on_the_order_of_documents() -> None:
    """Shuffled on both sides, the same documents come in the same order."""
    private, public = list(texts("own", 30)), _public_with_likes()
    first = select_proxies(private, public, settings=_SETTINGS)
    random.Random(1).shuffle(private)
    random.Random(2).shuffle(public)
    assert select_proxies(private, public, settings=_SETTINGS).documents == first.documents


def test_a_document_is_never_scored_by_the_half_that_was_fitted_on_it() -> None:
    """Where both sides are of one dialect nothing can be told apart: the accuracy is that of a coin."""
    private = [Document(id=f"own/{index}", text=item.text) for index, item in enumerate(texts("public", 60))]
    found = select_proxies(private, texts("public", 60, seed=1), settings=_SETTINGS)
    assert 0.25 < found.accuracy < 0.75


def test_too_little_text_is_refused() -> None:
    """Fewer candidates than proxies, or a side that cannot be halved, is refused with the reason."""
    with pytest.raises(DatasetRefused):
        select_proxies(texts("own", 20), texts("public", 5), settings=_SETTINGS)
    with pytest.raises(DatasetRefused):
        select_proxies(texts("own", 1), texts("public", 20), settings=_SETTINGS)


def test_features_are_unit_length_and_read_the_beginning_alone() -> None:
    """Long documents weigh as much as short ones; what stands after the limit changes nothing."""
    settings = ProxySettings(document_bytes=16, buckets=256)
    one = hashed_ngrams(b"int main(void) { return 0; }", settings)
    assert np.linalg.norm(one) == pytest.approx(1.0, abs=1e-6)
    assert np.array_equal(one, hashed_ngrams(b"int main(void) {something else", settings))
    assert not np.array_equal(one, hashed_ngrams(b"int main(void) [", settings))
    assert not hashed_ngrams(b"", settings).any()
