# SPDX-License-Identifier: Apache-2.0
"""How sure a difference is: bootstrap over documents, paired where two models scored the same ones.

Documents are the unit that is drawn again, since tokens of one document are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from model_core.errors import DatasetRefused
from model_core.evaluation.bits import DocumentBits


@dataclass(frozen=True, kw_only=True, slots=True)
class Interval:
    """An estimate with its bootstrap interval.

    Attributes:
        value: the figure on all documents.
        low: lower end.
        high: upper end.
        documents: how many documents it stands on.
    """

    value: float
    low: float
    high: float
    documents: int


def bits_interval(
    scores: Sequence[DocumentBits], *, draws: int = 2000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Bits per byte with its interval."""
    bits, sizes = _columns(scores)
    weights = _draws(len(bits), draws, seed)
    return _interval((bits.sum() / sizes.sum()), (weights @ bits) / (weights @ sizes), level, len(bits))


def paired_difference(
    ours: Sequence[DocumentBits],
    theirs: Sequence[DocumentBits],
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Bits per byte of ``ours`` minus ``theirs`` on the same documents; below zero means ours is better.

    Raises:
        DatasetRefused: the two did not score the same documents.
    """
    left, right, sizes = _paired(ours, theirs)
    weights = _draws(len(left), draws, seed)
    drawn = (weights @ (left - right)) / (weights @ sizes)
    return _interval((left - right).sum() / sizes.sum(), drawn, level, len(left))


def paired_ratio(
    ours: Sequence[DocumentBits],
    theirs: Sequence[DocumentBits],
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Bits of ``ours`` over bits of ``theirs`` on the same documents; 1.02 means 2 % more.

    Raises:
        DatasetRefused: the two did not score the same documents.
    """
    left, right, _sizes = _paired(ours, theirs)
    weights = _draws(len(left), draws, seed)
    return _interval(left.sum() / right.sum(), (weights @ left) / (weights @ right), level, len(left))


def _paired(
    ours: Sequence[DocumentBits], theirs: Sequence[DocumentBits]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if [(item.id, item.size_bytes) for item in ours] != [(item.id, item.size_bytes) for item in theirs]:
        raise DatasetRefused("The two evaluations did not score the same documents; score them again alike.")
    left, sizes = _columns(ours)
    right, _ = _columns(theirs)
    return left, right, sizes


def _columns(scores: Sequence[DocumentBits]) -> tuple[np.ndarray, np.ndarray]:
    if not scores:
        raise DatasetRefused("There is no scored document.")
    return np.array([item.bits for item in scores]), np.array([item.size_bytes for item in scores], float)


def _draws(count: int, draws: int, seed: int) -> np.ndarray:
    """How often each draw takes each document, ``[draws, count]``."""
    generator = np.random.Generator(np.random.PCG64(seed))
    return generator.multinomial(count, np.full(count, 1 / count), size=draws).astype(float)


def _interval(value: float, drawn: np.ndarray, level: float, documents: int) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=float(value), low=float(low), high=float(high), documents=documents)
