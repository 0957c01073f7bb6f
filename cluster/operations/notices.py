# SPDX-License-Identifier: Apache-2.0
"""Notices: the words that are shown before consent is asked for; consents cite them by digest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from cluster.operations.scope import cut, tenant_scope
from cluster.operations.table import READERS, Answer, Operation, Page, Request
from policy.records.paper import Notice, NoticeRecord
from tenants.roles import Principal, Role

if TYPE_CHECKING:
    from cluster.office.desk import Desk

PlainWords = Annotated[str, Field(min_length=1, max_length=1000)]


class NewNotice(Request):
    """A text that is shown before consent is asked for."""

    language: str = Field(
        max_length=35, pattern="^[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*$", description="as in en-GB"
    )
    version: str = Field(min_length=1, max_length=60, description="your name for this wording")
    text: str = Field(min_length=1, max_length=50_000)
    purposes: dict[Annotated[str, Field(max_length=100)], PlainWords] = Field(
        default_factory=dict,
        max_length=100,
        description="purpose of the vocabulary to what it means, plainly",
    )


class NoticeDigest(Request):
    """Which notice."""

    notice_digest: str = Field(max_length=71)


class NoticePage(Answer):
    """Notices, oldest first."""

    items: tuple[NoticeRecord, ...]
    next: str | None = None


def create_notice(desk: Desk, principal: Principal, request: NewNotice) -> NoticeRecord:
    """Keeps a notice."""
    return desk.consents.keep_notice(principal.tenant, Notice(**request.model_dump()))


def list_notices(desk: Desk, principal: Principal, request: Page) -> NoticePage:
    """One's own notices."""
    rows = desk.consents.notices(tenant_scope(principal))
    items, after = cut(rows, request, lambda row: row.id)
    return NoticePage(items=items, next=after)


def show_notice(desk: Desk, principal: Principal, request: NoticeDigest) -> NoticeRecord:
    """One of one's own notices."""
    return desk.consents.notice(principal.tenant, request.notice_digest)


_OWNER = frozenset({Role.OWNER})

ROWS = (
    Operation(
        name="notices.create",
        method="POST",
        path="/notices",
        roles=_OWNER,
        request=NewNotice,
        response=NoticeRecord,
        run=create_notice,
        summary="Keeps a text that is shown before consent is asked for; consents cite it by digest.",
        example={"language": "en", "version": "2026-1", "text": "We ask you to let a model learn from ..."},
        unaudited=frozenset({"text", "purposes"}),
        isolated=True,
    ),
    Operation(
        name="notices.list",
        method="GET",
        path="/notices",
        roles=READERS,
        request=Page,
        response=NoticePage,
        run=list_notices,
        summary="Lists your notices.",
        isolated=True,
    ),
    Operation(
        name="notices.show",
        method="GET",
        path="/notices/{notice_digest}",
        roles=_OWNER,
        request=NoticeDigest,
        response=NoticeRecord,
        run=show_notice,
        summary="Shows the words of one of your notices.",
        example={"notice_digest": "sha256:" + "0" * 64},
        isolated=True,
    ),
)
