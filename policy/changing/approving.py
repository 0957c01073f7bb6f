# SPDX-License-Identifier: Apache-2.0
"""Whether somebody's word publishes a change: another person, who may, about this very content, today.

Asked with every approval, and once more at the moment of a publication that was approved earlier.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from policy.changing.contents import change_digest, read_items
from policy.errors import AuthorityLapsed, DigestChanged, PolicyError, SelfApproval
from policy.guards.authority import Authority
from policy.guards.people import principal_now
from policy.records.items import ChangeItem
from policy.tables import ApprovalRow, ChangeRow
from tenants.roles import Principal


class Approving:
    """The second pair of eyes, within one unit of work."""

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us
        self._authority = Authority(session)

    def check(self, row: ChangeRow, digest: str, principal: Principal) -> None:
        """Lets an approval pass that publishes the change.

        Args:
            row: the change, open.
            digest: what the approver read.
            principal: the approver.

        Raises:
            SelfApproval: the author approves.
            NotAllowed: the principal may not approve such edits.
            DigestChanged: the digest is not the change's.
            AuthorityLapsed: the author may no longer propose them.
        """
        if principal.id == row.author_id:
            raise SelfApproval("You proposed this change; somebody else has to approve it.", change_id=row.id)
        items = read_items(row.items)
        for item in items:
            self._authority.check_approver(principal, item, row.tenant)
        # Computed anew: a row that somebody edited in the database no longer has the digest it shows.
        actual = change_digest(row.id, row.title, row.author_id, row.items.encode(), row.effective_at_us)
        if digest != row.digest or digest != actual:
            raise DigestChanged(
                "The digest is not that of the change; read the change again before approving it.",
                change_id=row.id,
                digest=actual,
            )
        self._check_author(row, items)

    def check_earlier(self, row: ChangeRow, approval: ApprovalRow) -> None:
        """Lets an approval pass that was given earlier and still holds.

        Raises:
            AuthorityLapsed: the approver holds no live key any more.
            PolicyError: as ``check``.
        """
        approver = principal_now(self._session, approval.principal_id, self._now_us)
        if approver is None:
            raise AuthorityLapsed(
                f"{approval.principal_name} approved the change and holds no live key now; propose it anew.",
                change_id=row.id,
            )
        self.check(row, approval.digest, approver)

    def _check_author(self, row: ChangeRow, items: Sequence[ChangeItem]) -> None:
        author = principal_now(self._session, row.author_id, self._now_us)
        try:
            if author is not None:
                for item in items:
                    self._authority.check_author(author, item)
                return
        except PolicyError:
            pass
        raise AuthorityLapsed(
            f"{row.author_name} may no longer propose these edits; have somebody who may propose them anew.",
            change_id=row.id,
        )
