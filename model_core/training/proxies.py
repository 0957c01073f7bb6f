# SPDX-License-Identifier: Apache-2.0
"""Public documents that stand for an owner's text, picked by a classifier (FlexOlmo, section 3.3.3).

An owner fits, alone, a logistic regression between its own documents and public ones, and names the public
documents that look most like its own. Only those public documents are used afterwards; no private text, and
no feature of it, leaves. What leaves is which public documents were picked, and that tells what the private
text is about: an owner who may not say even that must not take part in router tuning.

The features are hashed byte n-grams, so no base runs over the public collection and no language is assumed.
Every document is scored by the half of the classifier that did not see it: otherwise public documents that
it was fitted on would look less like the owner's text than others, and the accuracy would flatter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model_core.errors import DatasetRefused
from model_core.text.documents import Document, split_of

_HALVES = {"first": 0.5, "second": 0.5}


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxySettings:
    """How proxies are picked.

    Attributes:
        count: public documents to pick.
        fit_documents: most documents a side that each half of the classifier is fitted on.
        document_bytes: beginning of each document that is looked at.
        ngram_bytes: lengths of the n-grams.
        buckets: hashed features (a power of two).
        ridge: weight of the squared norm of the classifier's weights.
    """

    count: int = 64
    fit_documents: int = 1000
    document_bytes: int = 4096
    ngram_bytes: tuple[int, ...] = (2, 3, 4)
    buckets: int = 1 << 14
    ridge: float = 1e-4


@dataclass(frozen=True, kw_only=True, slots=True)
class ProxySelection:
    """What was picked.

    Attributes:
        documents: public documents, the most similar first.
        accuracy: share of documents on the right side, both sides weighing the same, each scored by the half
            that did not see it.
        lowest_probability: of belonging to the owner's side, among those picked.
    """

    documents: tuple[Document, ...]
    accuracy: float
    lowest_probability: float


def select_proxies(
    private: Sequence[Document],
    public: Sequence[Document],
    *,
    settings: ProxySettings | None = None,
) -> ProxySelection:
    """Picks the public documents that a classifier finds most like the private ones.

    The same documents give the same selection, whatever their order.

    Args:
        private: the owner's documents; nothing of them is in the result.
        public: candidates, with ids of their own.
        settings: how.

    Raises:
        DatasetRefused: a side has too few documents to be split into halves, or fewer than ``count``
            candidates exist.
    """
    chosen = settings or ProxySettings()
    if len(public) < chosen.count:
        raise DatasetRefused(
            f"{chosen.count} proxies were asked of {len(public)} public documents. Ask fewer or bring more.",
            documents=len(public),
        )
    sides = [_halves(documents) for documents in (private, public)]
    if any(not half for side in sides for half in side):
        raise DatasetRefused(
            "Proxy selection needs several documents a side, so that one half can check the other.",
            private=len(private),
            public=len(public),
        )
    scored: list[tuple[float, str, Document]] = []
    right = []
    for half in (0, 1):
        weights_F, bias = _fit([side[half][: chosen.fit_documents] for side in sides], chosen)
        private_N, public_N = (_scores(side[1 - half], weights_F, bias, chosen) for side in sides)
        right += [(private_N > 0).mean(), (public_N < 0).mean()]
        scored += [
            (-float(score), document.id, document)
            for score, document in zip(public_N, sides[1][1 - half], strict=True)
        ]
    scored.sort(key=lambda item: item[:2])
    picked = scored[: chosen.count]
    lowest = 1 / (1 + np.exp(np.clip(picked[-1][0], -60, 60)))
    return ProxySelection(
        documents=tuple(document for _, _, document in picked),
        accuracy=float(np.mean(right)),
        lowest_probability=float(lowest),
    )


def hashed_ngrams(text: bytes, settings: ProxySettings) -> np.ndarray:
    """Byte n-gram counts, hashed, square-rooted and of unit length, fp32 ``[F]``."""
    data = np.frombuffer(text[: settings.document_bytes], np.uint8).astype(np.uint64)
    counts = np.zeros(settings.buckets, np.float64)
    for width in settings.ngram_bytes:
        if len(data) < width:
            continue
        codes = np.full(len(data) - width + 1, width, np.uint64)
        with np.errstate(over="ignore"):
            for offset in range(width):
                codes = codes * np.uint64(257) + data[offset : offset + len(codes)]
            codes *= np.uint64(0x9E3779B97F4A7C15)
            codes ^= codes >> np.uint64(32)
            codes *= np.uint64(0xBF58476D1CE4E5B9)
        places = (codes >> np.uint64(40)).astype(np.int64) % settings.buckets
        counts += np.bincount(places, minlength=settings.buckets)
    roots = np.sqrt(counts)
    length = float(np.linalg.norm(roots))
    unit: np.ndarray = (roots / length if length else roots).astype(np.float32)
    return unit


def _halves(documents: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    parts: dict[str, list[Document]] = {name: [] for name in _HALVES}
    for document in sorted(documents, key=lambda item: item.id):
        parts[split_of(document.id, _HALVES, salt="proxies")].append(document)
    return parts["first"], parts["second"]


def _features(documents: Sequence[Document], settings: ProxySettings) -> Tensor:
    rows = [hashed_ngrams(document.text.encode(), settings) for document in documents]
    return torch.from_numpy(np.stack(rows))


def _fit(sides: Sequence[Sequence[Document]], settings: ProxySettings) -> tuple[Tensor, float]:
    """Ridge logistic regression, both sides weighing the same; returns weights ``[F]`` and bias."""
    x_NF = torch.cat([_features(side, settings) for side in sides])
    sign_N = torch.cat([torch.full((len(side),), 1.0 - 2 * place) for place, side in enumerate(sides)])
    weight_N = torch.cat([torch.full((len(side),), 0.5 / len(side)) for side in sides])
    beta_F = torch.zeros(x_NF.shape[1], requires_grad=True)
    bias = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.LBFGS([beta_F, bias], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = (weight_N * F.softplus(-sign_N * (x_NF @ beta_F + bias))).sum()
        value = value + settings.ridge * beta_F.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return beta_F.detach(), float(bias.detach())


def _scores(
    documents: Sequence[Document], weights_F: Tensor, bias: float, settings: ProxySettings
) -> np.ndarray:
    """Log-odds of belonging to the private side, one document at a time, so that memory stays small."""
    weights = weights_F.numpy()
    scores = [float(hashed_ngrams(item.text.encode(), settings) @ weights) + bias for item in documents]
    return np.array(scores)
