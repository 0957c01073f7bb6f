# SPDX-License-Identifier: Apache-2.0
"""How many choices a host takes in, and when it says no instead.

Who computes next is the engine's matter, which is fair between tenants. Here stands only the bound: of all
choices that compute or wait, and of one tenant's, so that nobody fills the waiting room alone.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator

from cluster.hosting.errors import HostOverloaded


class Places:
    """Places of one host.

    Args:
        computing: choices that compute at the same time.
        waiting: choices that may wait besides; a quarter of them is never one tenant's alone.
    """

    def __init__(self, computing: int, waiting: int) -> None:
        self._computing = computing
        self._total = computing + waiting
        self._per_tenant = computing + waiting - waiting // 4
        self._by_tenant: Counter[str] = Counter()

    @property
    def taken(self) -> int:
        """Places that are taken."""
        return self._by_tenant.total()

    @contextlib.contextmanager
    def take(self, tenant: str, count: int) -> Iterator[None]:
        """Takes places for the block's duration.

        Raises:
            HostOverloaded: too many are taken, or the request can never be computed at once.
        """
        mine = self._by_tenant[tenant] + count
        if count > self._computing or self.taken + count > self._total or mine > self._per_tenant:
            raise HostOverloaded("This model host is busy; ask again in a second.", retry_after_s=1)
        self._by_tenant[tenant] += count
        try:
            yield
        finally:
            self._by_tenant[tenant] -= count
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]
