# SPDX-License-Identifier: Apache-2.0
"""Notifications: what a tenant has to know, and who of it has taken note. Knows nothing of mail."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from model_core.packing.canonical import canonical_bytes
from model_core.packing.ids import new_id
from policy.epochs.reading import columns_for
from policy.erasures.records import Notification
from policy.errors import NotYours
from policy.guards.authority import unknown
from policy.tables import NotificationRow
from tenants.roles import Principal


class Notifications:
    """The post room, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def tell(self, tenant: str, kind: str, object_: str, body: dict[str, Any]) -> str:
        """Writes to a tenant, once for each kind and object; answers the notification's id."""
        query = select(NotificationRow.id).where(
            NotificationRow.tenant == tenant,
            NotificationRow.kind == kind,
            NotificationRow.object == object_,
        )
        known = self._session.scalar(query)
        if known is not None:
            return known
        row = NotificationRow(
            id=new_id("ntf"),
            tenant=tenant,
            kind=kind,
            object=object_,
            body=canonical_bytes(body).decode(),
            at_us=self._now_us,
            acknowledged_by=None,
            acknowledged_at_us=None,
        )
        self._session.add(row)
        self._session.flush()
        return row.id

    def list(self, tenant: str | None = None, object_: str | None = None) -> Letters:
        """Notifications, newest first; to one tenant or to all, about one object or about all."""
        query = select(NotificationRow).order_by(NotificationRow.id.desc())
        if tenant is not None:
            query = query.where(NotificationRow.tenant == tenant)
        if object_ is not None:
            query = query.where(NotificationRow.object == object_)
        return [_record(row) for row in self._session.scalars(query)]

    def acknowledge(self, notification_id: str, principal: Principal) -> Notification:
        """Takes note; again: the first who did stays.

        Raises:
            NotFound: there is none with this id, or it is not addressed to the principal's tenant.
        """
        row = self._session.get(NotificationRow, notification_id)
        if row is None:
            raise unknown("notification", notification_id)
        if row.tenant != principal.tenant:
            raise NotYours(unknown("notification", notification_id).sentence, id=notification_id)
        if row.acknowledged_by is None:
            row.acknowledged_by, row.acknowledged_at_us = principal.id, self._now_us
            self._session.flush()
        return _record(row)


# Named here because inside the class ``list`` is the method.
Letters = list[Notification]


def _record(row: NotificationRow) -> Notification:
    return Notification.model_validate({**columns_for(Notification, row), "body": json.loads(row.body)})
