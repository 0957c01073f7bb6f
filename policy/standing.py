# SPDX-License-Identifier: Apache-2.0
"""What the deployments of one snapshot run, composed once and kept.

A composition follows from snapshot, deployment and moment, and time changes it only where a consent or a
grant begins or ends. So it is kept by deployment and by the piece of time between two such moments. Snapshots
never change, so nothing here is ever wrong, only forgotten. Several threads may ask at once.
"""

from __future__ import annotations

from bisect import bisect_right
from functools import lru_cache

from policy.composition import Composition, compose
from policy.questions import Question
from policy.snapshot import Snapshot

_KEPT_SNAPSHOTS = 32


class Standing:
    """The compositions of one snapshot.

    Args:
        snapshot: read and checked.
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        moments: set[int | None] = set()
        for consent in snapshot.consents:
            moments |= {consent.valid_from_us, consent.valid_until_us}
        for grant in snapshot.grants:
            moments |= {grant.valid_from_us, grant.valid_until_us}
        self._moments = sorted(moment for moment in moments if moment is not None)
        self._made: dict[str, tuple[int, Composition]] = {}

    def composition(self, deployment: str, at_us: int) -> Composition:
        """What ``compose`` says of a deployment at a moment; ``at_us`` in it may be of an earlier asking.

        Raises:
            UnknownDeployment: the snapshot does not hold it.
        """
        period = bisect_right(self._moments, at_us)
        made = self._made.get(deployment)
        if made is None or made[0] != period:
            composed = compose(self.snapshot, Question(at_us=at_us, deployment=deployment))
            made = self._made[deployment] = (period, composed)
        return made[1]


@lru_cache(maxsize=_KEPT_SNAPSHOTS)
def place_of(digest: str) -> list[Standing]:
    """Where the snapshot of a digest is kept by whoever read it first: empty until then."""
    del digest
    return []
