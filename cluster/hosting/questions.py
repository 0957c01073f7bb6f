# SPDX-License-Identifier: Apache-2.0
"""Questions that a host answers by a computation of its own between two steps: probes and scores.

Each runs under its deployment's present composition (or a subset of it), with a valid lease, on the engine's
thread. Nothing of what was asked is kept. What scored prompts cost is the caller's to journal.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TypeVar

from cluster.hosting.errors import DeploymentNotHosted, ExpertsNotLoaded, LeaseLost
from cluster.hosting.gate import ReleaseGate
from cluster.hosting.messages import GenerationRequest, ScoreAnswer, ScoredText
from cluster.hosting.plan import Served
from cluster.hosting.probe import Probe, probe
from cluster.hosting.prompts import prompt_ids_of
from cluster.hosting.room import EngineRoom
from cluster.hosting.scoring import ScoredPrompt, chosen_experts, score_prompt, score_texts
from cluster.hosting.stock import Stock
from model_core.text.tokenizer import TextTokenizer

T = TypeVar("T")
_LOOK_AGAIN_S = 0.05
_RENEWAL_S = 2.0  # a host that was stopped for a moment has its next lease by then
_TEXTS_AT_ONCE = 8  # about one forward pass, so that streams wait no longer than for a long prompt


class Questions:
    """What one host is asked besides generating.

    Args:
        room: the engine's.
        gate: nothing is computed without a lease.
        tokenizer: the base's.
        stock: brings experts that are not in memory.
        max_context: longest text in tokens.
    """

    def __init__(
        self,
        room: EngineRoom,
        gate: ReleaseGate,
        tokenizer: TextTokenizer,
        stock: Stock,
        *,
        max_context: int,
    ) -> None:
        self._room = room
        self._gate = gate
        self._tokenizer = tokenizer
        self._stock = stock
        self._max_context = max_context

    async def probe(self, deployment: str, text: str, experts: tuple[str, ...] | None = None) -> Probe:
        """Logits of a text, computed alone.

        Args:
            deployment: whose composition.
            text: what to compute; it is not kept.
            experts: a subset of the composition; None for all of it.

        Raises:
            DeploymentNotHosted: the deployment may not answer, or an expert is not among its own.
            LeaseLost: without a valid lease nothing is computed.
        """
        ids = prompt_ids_of(GenerationRequest(prompt=text, max_tokens=1), self._tokenizer)

        def compute() -> tuple[Served, Probe]:
            served = self._room.roster.served.get(deployment)
            wanted = served.experts if served is not None and experts is None else tuple(experts or ())
            if served is None or not served.allowed or not set(wanted) <= set(served.experts):
                raise DeploymentNotHosted(
                    "This composition may not be computed at present.", deployment=deployment
                )
            self._check_lease()
            self._check_here(wanted)
            return served, probe(self._room.bank, ids[-self._max_context :], wanted, served.top_k)

        _, answer = await self._permitted_throughout(lambda: self._served(deployment, experts), compute)
        return answer

    async def score(
        self, deployment: str, texts: tuple[str, ...], experts: tuple[str, ...] | None = None
    ) -> ScoreAnswer:
        """Bits of texts, a few texts between two steps.

        Args:
            deployment: whose composition.
            texts: what to score; nothing of it is kept.
            experts: a subset of the composition by name; None for all, empty for the base alone.

        Raises:
            DeploymentNotHosted: the deployment may not answer, or an expert is not among its own.
            LeaseLost: without a valid lease nothing is computed.
        """

        def compute(part: tuple[str, ...]) -> tuple[Served, tuple[tuple[str, ...], tuple[ScoredText, ...]]]:
            served, wanted = self._permitted(deployment, experts)
            self._check_here(wanted)
            scores = score_texts(self._room.bank, self._tokenizer, part, wanted, served.top_k)
            return served, (tuple(served.names[digest] for digest in wanted), scores)

        found: list[ScoredText] = []
        standing = ""
        while len(found) < len(texts):
            part = texts[len(found) : len(found) + _TEXTS_AT_ONCE]
            served, (names, scores) = await self._permitted_throughout(
                lambda: self._named(deployment, experts),
                lambda part=part: compute(part),  # type: ignore[misc]
            )
            if standing not in ("", served.composition_digest):
                found, standing = [], ""  # an answer is of one composition, and that is the present one
                continue
            standing = served.composition_digest
            found += scores
        return ScoreAnswer(
            epoch=served.epoch,
            composition_digest=served.composition_digest,
            experts=names,
            documents=tuple(found),
        )

    async def score_prompt(
        self, deployment: str, ids: tuple[int, ...], alternatives: int
    ) -> tuple[Served, ScoredPrompt]:
        """Log-probabilities of a prompt under what permits it at the end of the pass as at its start.

        Args:
            deployment: whose composition.
            ids: token ids of the prompt.
            alternatives: how many of the likeliest tokens to report at every place.

        Raises:
            DeploymentNotHosted: the deployment may not answer.
            LeaseLost: without a valid lease nothing is computed.
            ExpertsNotLoaded: its experts did not come in time.
        """

        def compute() -> tuple[Served, ScoredPrompt]:
            served, wanted = self._permitted(deployment, None)
            self._check_here(wanted)
            return served, score_prompt(self._room.bank, ids, wanted, served.top_k, alternatives)

        return await self._permitted_throughout(lambda: self._served(deployment), compute)

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    async def _permitted_throughout(
        self, wanted: Callable[[], tuple[str, ...]], compute: Callable[[], tuple[Served, T]]
    ) -> tuple[Served, T]:
        """What was computed under a composition that still stands when it is given away; computes anew else.

        A host may be stopped in the middle, and epochs pass between the engine's thread and here.
        """
        while True:
            served, answer = await self._stock.having(wanted, compute)
            now = self._room.roster.served.get(served.deployment)
            unchanged = now is not None and now.composition_digest == served.composition_digest
            if unchanged and self._gate.is_open():
                return served, answer
            await asyncio.sleep(_LOOK_AGAIN_S)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_RENEWAL_S):
                    while not self._gate.is_open():
                        await asyncio.sleep(_LOOK_AGAIN_S)

    def _served(self, deployment: str, experts: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """Digests that a computation asks for, as far as they are permitted."""
        served = self._room.roster.served.get(deployment)
        if served is None or not served.allowed:
            return ()
        return served.experts if experts is None else tuple(set(experts) & set(served.experts))

    def _named(self, deployment: str, names: tuple[str, ...] | None) -> tuple[str, ...]:
        served = self._room.roster.served.get(deployment)
        return chosen_experts(served, names, deployment)

    def _permitted(self, deployment: str, names: tuple[str, ...] | None) -> tuple[Served, tuple[str, ...]]:
        served = self._room.roster.served.get(deployment)
        wanted = chosen_experts(served, names, deployment)
        self._check_lease()
        if served is None:
            raise DeploymentNotHosted(
                "This deployment may not be computed at present.", deployment=deployment
            )
        return served, wanted

    def _check_lease(self) -> None:
        if not self._gate.is_open():
            raise LeaseLost("The register has not answered lately; nothing is computed without it.")

    def _check_here(self, experts: tuple[str, ...]) -> None:
        if missing := set(experts) - set(self._room.bank.digests):
            raise ExpertsNotLoaded("Experts of this deployment are being loaded.", missing=len(missing))
