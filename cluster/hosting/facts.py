# SPDX-License-Identifier: Apache-2.0
"""What a model host may be told and what it says about itself."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class HostSettings:
    """Choices of one host.

    Attributes:
        max_sequences: choices computed at the same time.
        max_waiting: choices that may wait for a place; beyond, requests are refused.
        max_context: longest prompt plus completion, cut to the base's positions.
        threads: compute threads.
        keep_poisoned: withdrawn experts stay resident, filled with NaN (a proof, not a saving).
        hold_s: how long streams wait for a lost lease before they fail.
        reach_s: how long a request waits for the epoch it was admitted under, and for experts to load.
        renew_s: pause between lease renewals.
        upload_s: pause between uploads of usage; also the longest time between two syncs of the journal.
        kv_bytes: memory for keys and values of running sequences and of prefixes that are kept.
        kernels: folder of compiled kernels; None computes with torch.
        weights: folder of packed weights that all hosts of a machine map; None packs into memory.
        shards: processes that share the arithmetic of one host, each with its part of base and experts.
        device: ``cpu`` or ``cuda``: where steps are computed.
        experts_bytes: what all experts in memory may take together; None sets no bound.
        pins: experts that stay in memory once they are there, by bundle digest or as ``tenant/name``.
    """

    max_sequences: int = 32
    max_waiting: int = 256
    max_context: int = 1024
    threads: int = 1
    keep_poisoned: bool = False
    hold_s: float = 30.0
    reach_s: float = 20.0
    renew_s: float = 0.5
    upload_s: float = 1.0
    kv_bytes: int = 256 * 2**20
    kernels: Path | None = None
    weights: Path | None = None
    shards: int = 1
    device: str = "cpu"
    experts_bytes: int | None = None
    pins: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class HostHealth:
    """A host's own state, without prompts and secrets.

    ``resident`` are the experts in memory, ``pinned`` those of them that never make room and ``former`` those
    that a newer version has replaced; ``waited`` counts requests whose experts had to be loaded first.
    """

    server_id: str
    base_digest: str
    epoch: int
    acknowledged_epoch: int
    gate_open: bool
    resident: tuple[str, ...]
    poisoned: tuple[str, ...]
    running: int
    steps: int
    discarded: int
    recomposed: int
    restarted: int
    journaled_tokens: int
    compositions: dict[str, str] = field(default_factory=dict)
    resident_bytes: int = 0
    budget_bytes: int | None = None
    pinned: tuple[str, ...] = ()
    former: tuple[str, ...] = ()
    loaded: int = 0
    evicted: int = 0
    waited: int = 0
