# SPDX-License-Identifier: Apache-2.0
"""Which replica of a base answers a request: pure functions over values.

Requests that share deployment, consumer tenant and the beginning of their prompt go to one replica, since
that one has computed the prefix already. Every replica gets a weight per key by hashing (rendezvous hashing:
Thaler and Ravishankar 1998), so a replica that comes or goes moves only the keys that are its own. A replica
that has much more to do than the average is passed over (bounded loads: Mirrokni, Thorup and Zadimoghaddam
2018). Nothing here knows Ray, sockets or time.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

#: How much of a prompt counts for its key: long enough to tell system prompts apart, short enough that the
#: later turns of a conversation find the replica of the first.
PREFIX_CHARACTERS = 256
PREFIX_TOKENS = 64

_SLACK = 1.25
_FEW = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplicaState:
    """What is known of one replica.

    Attributes:
        name: stable while it lives.
        in_flight: choices that it computes or that wait there.
        holds: whether the experts of the request are in its memory.
    """

    name: str
    in_flight: int = 0
    holds: bool = True


def affinity_key(deployment: str, tenant: str, prompt: str | Sequence[int]) -> bytes:
    """What requests that should meet have in common: 16 bytes that say nothing about the prompt.

    Args:
        deployment: stands for the expert set.
        tenant: the consumer's; prefixes are never shared between tenants.
        prompt: its text (a rendered conversation), or its token ids.
    """
    digest = hashlib.blake2b(digest_size=16)
    for part in (deployment, tenant):
        digest.update(part.encode() + b"\0")
    if isinstance(prompt, str):
        digest.update(b"text\0" + prompt[:PREFIX_CHARACTERS].encode("utf-8", "surrogatepass"))
    else:
        digest.update(b"ids\0" + ",".join(map(str, prompt[:PREFIX_TOKENS])).encode())
    return digest.digest()


def load_bound(states: Sequence[ReplicaState], *, slack: float = _SLACK, few: int = _FEW) -> int:
    """From how many choices on a replica is passed over.

    Args:
        states: all replicas.
        slack: how much above the average load it may be; at least 1.
        few: never passed over below this many: a batch of a few costs hardly more than one.
    """
    total = sum(state.in_flight for state in states) + 1
    return max(few, math.ceil(slack * total / max(1, len(states))))


def route(
    key: bytes, states: Sequence[ReplicaState], *, slack: float = _SLACK, few: int = _FEW
) -> tuple[str, ...]:
    """Every replica, best first.

    Those below the load bound come first (among them those that hold the experts, then by their weight for
    the key), and then the overloaded ones, the least loaded first. Depends on no order of ``states``.
    """
    bound = load_bound(states, slack=slack, few=few)

    def rank(state: ReplicaState) -> tuple[bool, bool | int, bytes, str]:
        weight = hashlib.blake2b(state.name.encode(), key=key, digest_size=8).digest()
        least = bytes(255 - byte for byte in weight)
        if state.in_flight >= bound:
            return (True, state.in_flight, least, state.name)
        return (False, not state.holds, least, state.name)

    return tuple(state.name for state in sorted(states, key=rank))
