# SPDX-License-Identifier: Apache-2.0
"""What the deployments of one snapshot run, for whoever asks before every answer.

The snapshot is compiled when it is first asked about. A composition follows from snapshot, deployment and
moment, and time changes it only where a consent or a grant that speaks to the use begins or ends. So it is
kept by deployment and by the piece of time between two such moments. Snapshots never change, so nothing here
is ever wrong, only forgotten. Several threads may ask at once.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import cached_property, lru_cache
from typing import NamedTuple

from policy.compiled import Compiled, Composed, compile_snapshot
from policy.deciding.questions import Question, resolve
from policy.facts.snapshot import Snapshot

_KEPT_SNAPSHOTS = 4


class _Made(NamedTuple):
    """What a deployment runs in one piece of time, and the moments that part these pieces."""

    moments_us: list[int]
    period: int
    composed: Composed


class Standing:
    """The compositions of one snapshot.

    Args:
        snapshot: read and checked.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self._made: dict[str, _Made] = {}

    @cached_property
    def _compiled(self) -> Compiled:
        return compile_snapshot(self.snapshot)

    def composition(self, deployment: str, at_us: int) -> Composed:
        """What ``compose`` says of a deployment at a moment; ``at_us`` in it may be of an earlier asking.

        Raises:
            UnknownDeployment: the snapshot does not hold it.
        """
        made = self._made.get(deployment)
        if made is None or bisect_right(made.moments_us, at_us) != made.period:
            asked = resolve(self.snapshot, Question(at_us=at_us, deployment=deployment))
            moments_us = self._compiled.moments_us(asked) if made is None else made.moments_us
            period = bisect_right(moments_us, at_us)
            made = self._made[deployment] = _Made(moments_us, period, self._compiled.compose(asked))
        return made.composed


@lru_cache(maxsize=_KEPT_SNAPSHOTS)
def place_of(digest: str) -> list[Standing]:
    """Where the snapshot of a digest is kept by whoever read it first: empty until then."""
    del digest
    return []
