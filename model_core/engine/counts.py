# SPDX-License-Identifier: Apache-2.0
"""What an engine has done, as plain numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class EngineCounts:
    """What the engine has done since it was made.

    Attributes:
        steps: committed steps.
        discarded: discarded steps.
        prefill_tokens: prompt positions computed in committed steps, recomputed ones included.
        recomputed_tokens: positions computed in committed steps that had been computed before, because of a
            change of set or for want of pages.
        new_tokens: tokens of committed steps.
        recomposed: sequences whose expert set changed.
        preempted: times that a sequence stepped back for want of pages.
        prefix_hits: times that a sequence found pages it need not compute.
        reused_tokens: positions on them.
        evicted_pages: pages of ended sequences given back to make room.
        dropped_pages: pages forgotten because an expert left.
    """

    steps: int = 0
    discarded: int = 0
    prefill_tokens: int = 0
    recomputed_tokens: int = 0
    new_tokens: int = 0
    recomposed: int = 0
    preempted: int = 0
    prefix_hits: int = 0
    reused_tokens: int = 0
    evicted_pages: int = 0
    dropped_pages: int = 0
