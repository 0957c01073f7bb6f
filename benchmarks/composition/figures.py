# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the composition gap: what merging costs each owner, with intervals.

The gap of a domain is the loss of the merged model less that of the owner's own two-expert model as it was
trained, on the same held-out text, in bits per byte. Works are drawn again within every domain, and seeds
over all of them: passages of one work are not independent, and neither are models of one seed. Every figure
of one draw comes from the same works and seeds, so that differences and ratios are paired. Knows neither
models nor files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from model_core.evaluation.bits import DocumentBits
from model_core.evaluation.intervals import Interval

BASE, OWN = "base", "own"
DRAWS = 4000


@dataclass(frozen=True, kw_only=True)
class DomainScores:
    """Scores of several models on one domain.

    Attributes:
        domain: its name.
        sizes_W: UTF-8 bytes of each work's passages.
        bits_NW: model to bits of each work under each seed.
    """

    domain: str
    sizes_W: np.ndarray
    bits_NW: Mapping[str, np.ndarray]


def gather(
    domain: str, scores: Mapping[str, Sequence[Sequence[DocumentBits]]], work_of: Callable[[str], str]
) -> DomainScores:
    """Adds passages up by work.

    Args:
        domain: its name.
        scores: model to one evaluation a seed, all of the same passages.
        work_of: names the work of a passage from its id.

    Raises:
        ValueError: two evaluations did not score the same passages.
    """
    first = next(iter(scores.values()))[0]
    key = [(item.id, item.size_bytes) for item in first]
    works = {work: place for place, work in enumerate(sorted({work_of(item.id) for item in first}))}
    sizes_W = np.zeros(len(works))
    for item in first:
        sizes_W[works[work_of(item.id)]] += item.size_bytes
    bits: dict[str, np.ndarray] = {}
    for model, seeds in scores.items():
        bits[model] = np.zeros((len(seeds), len(works)))
        for row, scored in enumerate(seeds):
            if [(item.id, item.size_bytes) for item in scored] != key:
                raise ValueError(f"{model} did not score the same passages of {domain}.")
            for item in scored:
                bits[model][row, works[work_of(item.id)]] += item.bits
    return DomainScores(domain=domain, sizes_W=sizes_W, bits_NW=bits)


class Resampled:
    """Losses of every model and domain under one set of draws; the first draw is the sample itself.

    Args:
        domains: scores; every domain has the same number of seeds.
        draws: how often works and seeds are drawn again.
        seed: of the draws.
    """

    def __init__(self, domains: Sequence[DomainScores], *, draws: int = DRAWS, seed: int = 0) -> None:
        generator = np.random.Generator(np.random.PCG64(seed))
        n_seeds = len(next(iter(domains[0].bits_NW.values())))
        seeds_RN = _weights(generator, n_seeds, draws) / n_seeds
        self.works = {item.domain: len(item.sizes_W) for item in domains}
        self._loss: dict[tuple[str, str], np.ndarray] = {}
        for item in domains:
            works_RW = _weights(generator, len(item.sizes_W), draws)
            sizes_R = works_RW @ item.sizes_W
            for model, bits_NW in item.bits_NW.items():
                bits_RN = works_RW @ bits_NW.T
                self._loss[model, item.domain] = (bits_RN * seeds_RN).sum(1) / sizes_R

    def loss(self, model: str, domain: str) -> np.ndarray:
        """Bits per byte of each draw."""
        return self._loss[model, domain]

    def gap(self, model: str, domain: str) -> np.ndarray:
        """What merging costs the owner of a domain, bits per byte of each draw."""
        return self.loss(model, domain) - self.loss(OWN, domain)

    def mean_gap(self, model: str, owners: Sequence[str]) -> np.ndarray:
        """The gap, averaged over owners."""
        total: np.ndarray = np.mean([self.gap(model, owner) for owner in owners], axis=0)
        return total

    def share_closed(self, model: str, reference: str, owners: Sequence[str]) -> np.ndarray:
        """Share of the reference's mean gap that a model does not have."""
        closed: np.ndarray = 1 - self.mean_gap(model, owners) / self.mean_gap(reference, owners)
        return closed

    def harm(self, model: str, reference: str, domain: str) -> np.ndarray:
        """How much worse a domain is off than under the reference, bits per byte."""
        return self.loss(model, domain) - self.loss(reference, domain)

    def ratio(self, model: str, domain: str) -> np.ndarray:
        """Loss over the base's."""
        return self.loss(model, domain) / self.loss(BASE, domain)


def interval(drawn_R: np.ndarray, *, works: int, level: float = 0.95) -> Interval:
    """The sample's own figure with the quantiles of the draws."""
    low, high = np.quantile(drawn_R[1:], [(1 - level) / 2, (1 + level) / 2])
    return Interval(value=float(drawn_R[0]), low=float(low), high=float(high), documents=works)


def _weights(generator: np.random.Generator, count: int, draws: int) -> np.ndarray:
    """How often each draw takes each item, ``[1 + draws, count]``; row 0 takes each once."""
    drawn = generator.multinomial(count, np.full(count, 1 / count), size=draws).astype(float)
    return np.concatenate((np.ones((1, count)), drawn))
