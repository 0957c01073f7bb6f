# SPDX-License-Identifier: Apache-2.0
"""Which server runs which epoch, by its own word. Knows nothing of leases."""

from __future__ import annotations

import json
from collections.abc import Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from model_core.packing.canonical import canonical_bytes
from policy.errors import EpochRegressed, SnapshotMismatch
from policy.publishing.publication import Publisher
from policy.records.epochs import AcknowledgementRecord, ServerRecord
from policy.tables import AcknowledgementRow, ServerRow
from tenants.accounts.database import lock_for_writing
from tenants.accounts.schema import upsert


class Servers:
    """The acknowledgements, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def acknowledge(
        self, server_id: str, epoch: int, snapshot_digest: str, compositions: Mapping[str, str]
    ) -> AcknowledgementRecord:
        """Takes a server's word that it runs what an epoch permits.

        Args:
            server_id: which server.
            epoch: which epoch.
            snapshot_digest: of the snapshot that it decides from.
            compositions: deployment → digest of the composition that it runs.

        Raises:
            NotFound: the epoch was never published.
            SnapshotMismatch: the server decides from another snapshot than the published one.
            EpochRegressed: the server acknowledged a higher epoch before.
        """
        lock_for_writing(self._session, f"server:{server_id}")
        published = Publisher(self._session, self._now_us).publication(epoch)
        if published.snapshot_digest != snapshot_digest:
            raise SnapshotMismatch(
                "The server decides from another snapshot than the published one; it must stop serving.",
                epoch=epoch,
                expected=published.snapshot_digest,
                actual=snapshot_digest,
            )
        row = self._session.get(ServerRow, server_id)
        if row is not None and epoch < row.epoch:
            raise EpochRegressed(
                f"The server acknowledged epoch {row.epoch} before; a lower one is never taken up again.",
                server_id=server_id,
                epoch=epoch,
                seen=row.epoch,
            )
        if row is None:
            row = ServerRow(server_id=server_id, epoch=epoch, first_at_us=self._now_us, last_at_us=0)
            self._session.add(row)
        row.epoch, row.last_at_us = epoch, self._now_us
        self._session.flush()
        values = {
            "server_id": server_id,
            "epoch": epoch,
            "snapshot_digest": snapshot_digest,
            "compositions": canonical_bytes(dict(compositions)).decode(),
            "at_us": self._now_us,
        }
        upsert(self._session, AcknowledgementRow, values, ("server_id", "epoch"))
        return AcknowledgementRecord.model_validate({**values, "compositions": dict(compositions)})

    def acknowledgements(self, epoch: int) -> list[AcknowledgementRecord]:
        """Which servers acknowledged an epoch, by id."""
        query = select(AcknowledgementRow).where(AcknowledgementRow.epoch == epoch)
        ordered = query.order_by(AcknowledgementRow.server_id).execution_options(populate_existing=True)
        return [
            AcknowledgementRecord(
                server_id=row.server_id,
                epoch=row.epoch,
                snapshot_digest=row.snapshot_digest,
                compositions=json.loads(row.compositions),
                at_us=row.at_us,
            )
            for row in self._session.scalars(ordered)
        ]

    def list(self) -> Records:
        """Every server, by id."""
        return [
            ServerRecord(
                server_id=row.server_id,
                epoch=row.epoch,
                first_at_us=row.first_at_us,
                last_at_us=row.last_at_us,
            )
            for row in self._session.scalars(select(ServerRow).order_by(ServerRow.server_id))
        ]


# Named here because inside the class ``list`` is the method.
Records = list[ServerRecord]
