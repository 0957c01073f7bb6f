# SPDX-License-Identifier: Apache-2.0
"""A model host without Ray: base, bank, engine room, register line, journal and streams put together.

One server holds one base and every expert that the register permits beside it. It decides nothing about
permission (policy does) and nothing about money (the office does); it sees to it that what is released was
permitted, was journaled first, and says what it was computed with.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import Protocol

from cluster.hosting.chat import ChatFormat
from cluster.hosting.choice import Choice, Ending, Failure, StepToken
from cluster.hosting.errors import (
    HostStopping,
    LeaseLost,
    PromptRefused,
)
from cluster.hosting.facts import HostHealth, HostSettings
from cluster.hosting.floor import EpochFloor
from cluster.hosting.gate import ReleaseGate
from cluster.hosting.journal import UsageJournal
from cluster.hosting.lease import wall_us
from cluster.hosting.link import RegisterDesk, RegisterLink
from cluster.hosting.messages import (
    GenerationChunk,
    GenerationRequest,
    PromptEcho,
    ScoreAnswer,
)
from cluster.hosting.places import Places
from cluster.hosting.plan import Roster
from cluster.hosting.probe import Probe
from cluster.hosting.prompts import read_prompt, sampling_of
from cluster.hosting.questions import Questions
from cluster.hosting.release import Release
from cluster.hosting.room import EngineRoom
from cluster.hosting.scoring import scored_tokens
from cluster.hosting.stock import Stock
from cluster.hosting.uploader import Uploader, UsageDesk
from cluster.office.protocol import Admission, UsageRecord
from model_core.engine.native.claims import Claims
from model_core.engine.runners import OpenedRunner, open_runner, pages_within
from model_core.network.bank import ExpertBank
from model_core.packing.bundle import CheckedBundle, check_bundle
from model_core.packing.ids import new_id
from model_core.packing.manifest import TOKENIZER_FILE
from model_core.packing.seal import TrustedKeys, verify_seal
from model_core.packing.store import ArtifactStore
from model_core.text.tokenizer import TextTokenizer

log = logging.getLogger(__name__)


class HostDesk(RegisterDesk, UsageDesk, Protocol):
    """What a host asks of the office."""


class ModelServer:
    """One host of one base.

    Args:
        office: register and metering.
        store: where bundles come from.
        trusted: the keys that a bundle's seal must be by, asked anew at every load so that a revoked key
            counts.
        base_digest: the base.
        journals: folder of usage journals.
        settings: choices.
        gate: the release gate (tests pass clocks of their own).
    """

    def __init__(
        self,
        *,
        office: HostDesk,
        store: ArtifactStore,
        trusted: Callable[[CheckedBundle], TrustedKeys],
        base_digest: str,
        journals: Path,
        settings: HostSettings | None = None,
        gate: ReleaseGate | None = None,
    ) -> None:
        self.server_id = new_id("srv")
        self.base_digest = base_digest
        self.settings = settings or HostSettings()
        self.gate = gate or ReleaseGate()
        self._office = office
        self._store = store
        self._trusted = trusted
        self._journals = journals
        self._tasks: list[asyncio.Task[None]] = []
        self._outbox: list[tuple[Choice, StepToken | Ending | Failure]] = []
        self._outbox_due = False
        self._places = Places(self.settings.max_sequences, self.settings.max_waiting)
        self._releases: dict[Choice, Release] = {}

    async def start(self) -> None:
        """Loads the base, opens the journal and follows the register."""
        self._loop = asyncio.get_running_loop()
        bank, self.tokenizer, self.chat = await asyncio.to_thread(self._open_base)
        self.max_context = min(self.settings.max_context, bank.shape.max_positions)
        self.journal = await asyncio.to_thread(UsageJournal.create, self._journals, self.server_id)
        self.uploader = Uploader(self.journal, self._office, interval_s=self.settings.upload_s)
        self._opened = await asyncio.to_thread(self._open_runner, bank)
        log.info("steps are computed by %s; compiling took %.1f s", self._opened.said, self._opened.compile_s)
        self.room = EngineRoom(
            bank,
            self.gate,
            max_sequences=self.settings.max_sequences,
            max_context=self.max_context,
            threads=self.settings.threads,
            keep_poisoned=self.settings.keep_poisoned,
            max_waiting=self.settings.max_waiting,
            runner=self._opened.runner,
        )
        self.room.start()
        self.stock = Stock(
            self.room,
            self._verified,
            budget_bytes=self.settings.experts_bytes,
            pins=self.settings.pins,
            claims=None if self.settings.weights is None else Claims(self.settings.weights, self.server_id),
            patience_s=self.settings.reach_s,
        )
        self._questions = Questions(
            self.room, self.gate, self.tokenizer, self.stock, max_context=self.max_context
        )
        self.link = RegisterLink(
            self._office,
            self.server_id,
            self.base_digest,
            self.gate,
            apply=self._apply,
            load=self.stock.follow,
            stop=self._stop_requests,
            floor=EpochFloor(self._journals / "epoch.floor"),
            renew_s=self.settings.renew_s,
        )
        self._tasks = [asyncio.create_task(self.link.run()), asyncio.create_task(self.uploader.run())]

    async def stop(self) -> None:
        """Ends streams, uploads what is left and closes the journal."""
        self.gate.seal()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.to_thread(self.room.stop)
        await asyncio.to_thread(self._opened.close)
        await self.stock.close()
        for _ in range(100):  # streams hear that they failed and write their final records
            if not self._releases:
                break
            await asyncio.sleep(0.02)
        await self.uploader.finish()

    def check(self) -> None:
        """Raises if this host cannot serve any more and should be replaced.

        Raises:
            HostStopping: a thread or task has ended.
        """
        broken = self.room.failure is not None or any(task.done() for task in self._tasks)
        if broken or not self._opened.alive:
            raise HostStopping("The model host failed and is being replaced; ask again in a few seconds.")

    def in_flight(self) -> int:
        """Choices that are computed or that wait here."""
        return self._places.taken

    def health(self) -> HostHealth:
        """This host's state."""
        residents = self.stock.residents
        return HostHealth(
            server_id=self.server_id,
            base_digest=self.base_digest,
            epoch=self.link.roster.epoch,
            acknowledged_epoch=self.link.counts.acknowledged_epoch,
            gate_open=self.gate.is_open(),
            resident=self.room.bank.digests,
            poisoned=self.room.bank.poisoned,
            running=len(self._releases),
            steps=self.room.counts.steps,
            discarded=self.room.counts.discarded,
            recomposed=self.room.counts.recomposed,
            restarted=self.room.counts.restarted,
            journaled_tokens=self.journal.journaled_tokens,
            compositions=self.link.roster.compositions,
            resident_bytes=sum(one.size_bytes for one in residents),
            budget_bytes=self.stock.budget_bytes,
            pinned=tuple(one.digest for one in residents if one.pinned),
            former=tuple(one.digest for one in residents if one.successor is not None),
            loaded=self.stock.counts.loaded,
            evicted=self.stock.counts.evicted,
            waited=self.stock.counts.waited,
        )

    async def generate(
        self, admission: Admission, request: GenerationRequest
    ) -> AsyncGenerator[GenerationChunk, None]:
        """Answers an admitted request; closing the generator cancels it.

        Raises:
            PromptRefused: the prompt does not fit the base.
            DeploymentNotHosted: the deployment may not answer at present.
            HostOverloaded: too many choices wait already.
            ExpertsNotLoaded: its experts did not come in time.
            ExpertsDoNotFit: its experts are larger than the memory for experts.
            LeaseLost: the register has not answered for too long.
        """
        prompt_ids = await read_prompt(request, self.tokenizer, self.chat, max_context=self.max_context)
        indexes = request.open_choices
        limit = min(request.max_tokens, self.max_context - len(prompt_ids))
        reserved = admission.reserved_tokens - (len(prompt_ids) if request.scores_prompt else 0)
        shares = reserved // max(1, len(indexes))
        limits = {n: min(limit, len(request.said(n)) + shares) for n in indexes}
        echoes_only = request.echo and not request.max_tokens and reserved >= 0 and limit >= 0
        if not echoes_only and any(limits[n] <= len(request.said(n)) for n in indexes):
            raise PromptRefused(
                f"The prompt has {len(prompt_ids)} tokens and leaves no room for an answer; at most "
                f"{self.max_context - 1} fit.",
                prompt_tokens=len(prompt_ids),
                max_context=self.max_context,
            )
        choices = [
            Choice(
                name=f"{admission.request_id}/{index}",
                index=index,
                deployment=admission.deployment,
                consumer=admission.tenant,
                prompt_ids=prompt_ids,
                sampling=sampling_of(request, limits[index], index, self.tokenizer),
                notify=self._notify,
                released_ids=list(request.said(index)),
            )
            for index in indexes
        ]
        with self._places.take(admission.tenant, len(indexes)):
            release = Release(
                admission=admission,
                request=request,
                prompt_tokens=len(prompt_ids),
                journal=self.journal,
                gate=self.gate,
                decode=self.tokenizer.decode,
                names=self._names,
                exact=self.room.engine.exact,
            )
            release.open()
            try:
                if request.echo:
                    for chunk in await self._echo(admission, request, prompt_ids, release):
                        yield chunk
                    if echoes_only:
                        return
                await self._begin(admission, choices, release)
                async for chunk in release.chunks(self._hold_s(admission.deployment), self._leave):
                    yield chunk
            finally:
                for choice in choices:
                    self._leave(choice)
                release.close()

    async def probe(self, deployment: str, text: str, experts: tuple[str, ...] | None = None) -> Probe:
        """Logits of a text under a deployment's present composition; see ``Questions.probe``."""
        return await self._questions.probe(deployment, text, experts)

    async def score(
        self, deployment: str, texts: tuple[str, ...], experts: tuple[str, ...] | None = None
    ) -> ScoreAnswer:
        """Bits of texts under a deployment's present composition; see ``Questions.score``."""
        return await self._questions.score(deployment, texts, experts)

    # ── inside ────────────────────────────────────────────────────────────────────────────────────────
    def _open_base(self) -> tuple[ExpertBank, TextTokenizer, ChatFormat]:
        folder = self._verified(self.base_digest).folder
        tokenizer = TextTokenizer.load(folder / TOKENIZER_FILE)
        return ExpertBank.open(self.base_digest, folder), tokenizer, ChatFormat.load(folder, tokenizer)

    def _open_runner(self, bank: ExpertBank) -> OpenedRunner:
        pages = pages_within(
            bank,
            size_bytes=self.settings.kv_bytes,
            max_context=self.max_context,
            shards=self.settings.shards,
        )
        return open_runner(
            bank,
            n_pages=pages,
            n_tails=self.settings.max_sequences,
            kernels=self.settings.kernels,
            weights=self.settings.weights,
            threads=self.settings.threads,
            shards=self.settings.shards,
            shard_device=self.settings.device,
            wanted_device=self.settings.device,
        )

    def _verified(self, digest: str) -> CheckedBundle:
        """A bundle whose digests and both signatures hold (law 11)."""
        folder = self._store.get_bundle(digest)
        checked = check_bundle(folder, expect_digest=digest)
        verify_seal(checked.seal, checked.manifest, digest, self._trusted(checked))
        return checked

    async def _apply(self, roster: Roster) -> None:
        await asyncio.wrap_future(self.room.call(lambda: self.room.apply(roster)))

    def _hold_s(self, deployment: str) -> float:
        served = self.room.roster.served.get(deployment)
        refuses = served is not None and served.when_cut_off == "refuse"
        return 0.0 if refuses else self.settings.hold_s

    async def _stop_requests(self, stopped: Mapping[str, str]) -> None:
        await asyncio.wrap_future(self.room.call(lambda: self.room.stop_requests(stopped)))

    async def _echo(
        self, admission: Admission, request: GenerationRequest, ids: tuple[int, ...], release: Release
    ) -> list[GenerationChunk]:
        """The prompt given back, scored where asked for, under what permits it at the end as at the start."""
        opened = int(request.prompt_token_ids is None)  # the host's own first token is not shown
        shown = ids[opened:]
        text = self.tokenizer.decode(shown)
        if request.logprobs is None:
            return release.prompt(PromptEcho(text=text), None)
        await self._reach(admission)
        served, scored = await self._questions.score_prompt(admission.deployment, ids, request.logprobs)
        self.room.check_going(admission.request_id)
        logprobs = scored_tokens(self.tokenizer, ids, scored)
        record = UsageRecord(
            request_id=admission.request_id,
            deployment=admission.deployment,
            epoch=served.epoch,
            composition_digest=served.composition_digest,
            prompt_tokens=0,
            completion_tokens=len(scored.logprobs),
            experts=scored.experts,
            at_us=wall_us(),
        )
        chunks = release.prompt(PromptEcho(text=text, logprobs=logprobs[opened:]), record)
        if not self.gate.is_open():
            raise LeaseLost("The lease ended while the prompt was scored; ask again.", retry_after_s=1)
        return chunks

    async def _reach(self, admission: Admission) -> None:
        if not await self.link.reached(admission.epoch, self.settings.reach_s):
            raise LeaseLost(
                "This host has not heard of the epoch that admitted the request; ask again in a few seconds.",
                epoch=admission.epoch,
            )

    async def _begin(self, admission: Admission, choices: list[Choice], release: Release) -> None:
        await self._reach(admission)
        for choice in choices:
            self._releases[choice] = release
            await self.stock.having(
                lambda: self._experts_of(admission.deployment),
                lambda choice=choice: self.room.submit(choice),  # type: ignore[misc]
            )

    def _experts_of(self, deployment: str) -> tuple[str, ...]:
        served = self.room.roster.served.get(deployment)
        return served.experts if served is not None and served.allowed else ()

    def _leave(self, choice: Choice) -> None:
        if self._releases.pop(choice, None) is not None:
            self.room.call(lambda: self.room.leave(choice))

    def _notify(self, choice: Choice, item: StepToken | Ending | Failure) -> None:
        # One wake-up of the event loop per step, however many sequences the step served.
        self._outbox.append((choice, item))
        if not self._outbox_due:
            self._outbox_due = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._outbox_due = False
        items, self._outbox = self._outbox, []
        for choice, item in items:
            release = self._releases.get(choice)
            if release is not None:
                release.put(choice, item)

    def _names(self, deployment: str, digest: str) -> str:
        served = self.room.roster.served.get(deployment)
        return served.names.get(digest, digest) if served is not None else digest
