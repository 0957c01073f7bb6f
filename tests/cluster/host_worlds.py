# SPDX-License-Identifier: Apache-2.0
"""A tiny random base, three owners' experts, and an office that the test holds in its hand."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.errors import OfficeUnavailable
from cluster.hosting.facts import HostSettings
from cluster.hosting.gate import ReleaseGate
from cluster.hosting.lease import boottime_us
from cluster.hosting.messages import GenerationChunk, GenerationRequest
from cluster.hosting.server import ModelServer
from cluster.office.protocol import Admission, EpochNews, UsageRecord
from model_core.engine.requests import TokenEvent
from model_core.network.checkpoint import save_expert
from model_core.network.expert import Expert
from model_core.packing.ids import new_id
from model_core.packing.manifest import ModelShape
from model_core.packing.store import DirectoryStore
from model_core.text.tokenizer import TextTokenizer
from policy.facts.snapshot import (
    BaseFact,
    ConsentFact,
    DatasetFact,
    DeploymentFact,
    ExpertFact,
    GrantFact,
    LicenseFact,
    RuleFact,
    Snapshot,
    TenantFact,
)
from tests.cluster.admissions import admitted

OWNERS = ("anna", "ben", "cleo")
TEXT = "the quick brown fox jumps over the lazy dog and the dog sleeps on; " * 8


class Office:
    """Publishes snapshots, stores usage once, and can be unplugged."""

    def __init__(self) -> None:
        self.snapshot: Snapshot | None = None
        self.unplugged = False
        self.acknowledged: list[tuple[int, str, dict[str, str]]] = []
        self.usage: dict[tuple[str, int], list[UsageRecord]] = {}
        self._news = asyncio.Condition()

    async def publish(self, snapshot: Snapshot) -> None:
        """Makes a snapshot the newest."""
        async with self._news:
            self.snapshot = snapshot
            self._news.notify_all()

    async def wait_epoch(
        self, server_id: str, seen_epoch: int, timeout_s: float = 0.5, changes: bool = False
    ) -> EpochNews:
        """The newest epoch, as soon as it is newer than the seen one."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s), self._news:
                await self._news.wait_for(
                    lambda: self.snapshot is not None and self.snapshot.epoch > seen_epoch
                )
        if self.unplugged or self.snapshot is None:
            raise OfficeUnavailable("The office does not answer.")
        new = self.snapshot.epoch != seen_epoch
        return EpochNews(
            epoch=self.snapshot.epoch,
            snapshot_digest=self.snapshot.digest,
            snapshot_json=self.snapshot.to_json() if new else None,
            lease_s=2.0,
            office_at_us=time.time_ns() // 1000,
        )

    async def acknowledge(
        self, server_id: str, epoch: int, snapshot_digest: str, compositions: dict[str, str]
    ) -> None:
        """Notes it."""
        self.acknowledged.append((epoch, snapshot_digest, compositions))

    async def record_usage(self, server_id: str, sequence: int, batch: list[UsageRecord]) -> int:
        """Stores once."""
        if self.unplugged:
            raise OfficeUnavailable("The office does not answer.")
        assert self.usage.setdefault((server_id, sequence), batch) == batch
        return sequence

    @property
    def records(self) -> list[UsageRecord]:
        """Everything stored."""
        return [one for batch in self.usage.values() for one in batch]


class World:
    """A store with a base and three owners' experts, and the register's facts about them."""

    def __init__(self, bundles: Any, folder: Path, *, n_kv_heads: int = 1) -> None:
        self.folder = folder
        self.tokenizer = TextTokenizer.train([TEXT], vocab_size=300)
        self.bundles = bundles
        shape = ModelShape(
            n_layers=2,
            d_model=8,
            n_heads=2,
            n_kv_heads=n_kv_heads,
            d_ffn=12,
            vocab_size=self.tokenizer.vocab_size,
            max_positions=256,
            rope_theta=10_000.0,
            norm_eps=1e-6,
        )
        bundles.shape = lambda: shape
        plain_files = bundles.base_files
        self.tokenizer.save(folder / "tokenizer.json")
        tokenizer_json = (folder / "tokenizer.json").read_bytes()
        bundles.base_files = lambda seed=0: plain_files(seed=seed) | {"tokenizer.json": tokenizer_json}
        bundles.expert_files = self._expert_files
        self.store = DirectoryStore(folder / "store")
        base = bundles.base(folder / "base")
        self.base = self.store.put_bundle(folder / "base", base.digest)
        self.experts = {}
        for number, owner in enumerate(OWNERS):
            made = bundles.expert(
                folder / owner, base, seed=number + 1, tenant=owner, name=f"{owner}s-expert"
            )
            self.experts[owner] = self.store.put_bundle(folder / owner, made.digest)
        self.trusted = bundles.trusted(*OWNERS)

    def _expert_files(self, *, seed: int = 0, **_: Any) -> dict[str, bytes]:
        torch.manual_seed(seed)
        expert = Expert(n_layers=2, d_model=8, d_ffn=10, gated=True)
        for layer in expert.layers:
            torch.nn.init.normal_(layer.router.row, std=0.5)
            torch.nn.init.normal_(layer.ffn.down.weight, std=0.5)
        path = self.folder / f"expert-{seed}.safetensors"
        save_expert(expert, path)
        return {"expert.safetensors": path.read_bytes(), "metrics.jsonl": b'{"step":1,"loss":1.5}\n'}

    def snapshot(
        self,
        epoch: int,
        *,
        without: tuple[str, ...] = (),
        ends_us: dict[str, int] | None = None,
        deployments: tuple[str, ...] = ("lab",),
        candidates: dict[str, tuple[str, ...]] | None = None,
    ) -> Snapshot:
        """Every owner permits everything, except those left out; ``candidates`` are owners by deployment."""
        license_fact = LicenseFact(
            key="MIT",
            hosted_use=True,
            use_commercial=True,
            derivatives=True,
            distribution_weights=True,
            attribution=False,
            reviewed_by="counsel",
        )
        return Snapshot(
            epoch=epoch,
            published_at_us=1,
            vocabulary_version="1",
            tenants=tuple(TenantFact(slug=slug, status="active") for slug in (*OWNERS, "app")),
            bases=(BaseFact(base_digest=self.base, name="tiny", license="MIT"),),
            licenses=(license_fact,),
            experts=tuple(
                ExpertFact(
                    bundle_digest=digest,
                    expert_id=f"exp_{owner}",
                    name=f"{owner}s-expert",
                    tenant=owner,
                    base_digest=self.base,
                    license="MIT",
                    datasets=(DatasetFact(id=f"ds_{owner}", tenant=owner, license="MIT"),),
                    state="listed",
                    price_micro_per_1k_tokens=1000,
                )
                for owner, digest in self.experts.items()
            ),
            consents=tuple(
                ConsentFact(
                    id=f"con_{owner}",
                    expert_id=f"exp_{owner}",
                    tenant=owner,
                    effect="permit",
                    action="infer",
                    purpose="any",
                    region="global",
                    commercial=True,
                    valid_from_us=0,
                    valid_until_us=(ends_us or {}).get(owner),
                    state="withdrawn" if owner in without else "given",
                )
                for owner in OWNERS
            ),
            grants=tuple(
                GrantFact(
                    id=f"gra_{owner}",
                    expert_id=f"exp_{owner}",
                    tenant=owner,
                    consumer_tenant="app",
                    valid_from_us=0,
                )
                for owner in OWNERS
            ),
            rules=(RuleFact(id="rul_1", effect="permit"),),
            deployments=tuple(
                DeploymentFact(
                    name=name,
                    tenant="app",
                    base_digest=self.base,
                    purpose="research",
                    region="eu",
                    commercial=False,
                    top_k=4,
                    candidates=(
                        "*" if candidates is None else tuple(f"exp_{owner}" for owner in candidates[name])
                    ),
                )
                for name in candidates or deployments
            ),
        )

    def digests(self, *owners: str) -> tuple[str, ...]:
        """Bundle digests in canonical order."""
        return tuple(sorted(self.experts[owner] for owner in owners))


def bundle_maker(request: pytest.FixtureRequest) -> Any:
    """The class behind the shared ``bundles`` fixture, which is made per test."""
    plugin = next(p for p in request.config.pluginmanager.get_plugins() if hasattr(p, "BundleMaker"))
    return plugin.BundleMaker()


@asynccontextmanager
async def running(
    world: World, office: Office, journals: Path, gate: ReleaseGate | None = None, **settings: Any
) -> AsyncIterator[ModelServer]:
    """A started host."""
    defaults: dict[str, Any] = {"renew_s": 0.05, "hold_s": 5.0, "reach_s": 5.0, "upload_s": 0.1}
    server = ModelServer(
        office=office,
        store=world.store,
        trusted=lambda _: world.trusted,
        base_digest=world.base,
        journals=journals,
        settings=HostSettings(**(defaults | settings)),
        gate=gate,
    )
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def admission(world: World, epoch: int = 1, *, tokens: int = 1000, deployment: str = "lab") -> Admission:
    """What the office would have said."""
    return admitted(
        new_id("req"),
        deployment=deployment,
        base_digest=world.base,
        tenant="app",
        epoch=epoch,
        composition_digest="sha256:" + "0" * 64,
        reserved_tokens=tokens,
    )


async def collect(
    server: ModelServer,
    given: Admission,
    seen: Callable[[GenerationChunk], None] = lambda _: None,
    **fields: Any,
) -> list[GenerationChunk]:
    """All chunks of one greedy request that does not stop at the end of text."""
    request = GenerationRequest(**({"prompt": "the dog", "max_tokens": 40, "temperature": 0.0} | fields))
    chunks = []
    async for chunk in server.generate(given, request):
        chunks.append(chunk)
        seen(chunk)
    return chunks


async def until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    """Waits for a condition."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def tokens_of(chunks: list[GenerationChunk]) -> list[int]:
    """Token ids in order."""
    return [token for chunk in chunks for token in chunk.token_ids]


def slow_down(server: ModelServer, step_s: float = 0.02) -> None:
    """Makes every step of the engine last longer, as a larger model would."""
    step = server.room.engine.step

    def slow() -> list[TokenEvent]:
        time.sleep(step_s)
        return step()

    server.room.engine.step = slow  # type: ignore[method-assign]


async def timed(
    server: ModelServer, given: Admission, times: list[int], *, max_tokens: int
) -> list[GenerationChunk]:
    """Chunks of a greedy request, each noted with the boot clock at its release."""
    return await collect(server, given, lambda _: times.append(boottime_us()), max_tokens=max_tokens)
