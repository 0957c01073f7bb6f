# SPDX-License-Identifier: Apache-2.0
"""Tenants, keys, and who I am.

Keys are made by operators alone: whoever could make a second principal of his own tenant could approve his
own widenings with it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cluster.operations.changes import draft_one
from cluster.operations.scope import cut, sees_everything, tenant_scope
from cluster.operations.table import ANYONE, Answer, Nothing, Operation, Page, Request
from policy.records.changes import ChangeRecord
from policy.records.epochs import Publication
from policy.records.items import TenantResume
from tenants.accounts.accounts import KeyRecord, TenantRecord
from tenants.roles import Principal, Role

if TYPE_CHECKING:
    from cluster.office.desk import Desk


class NewTenant(Request):
    """A tenant to be."""

    slug: str = Field(max_length=63, description="its name in addresses, for ever")
    title: str = Field(min_length=1, max_length=200, description="what people call it")
    country: str = Field(default="", max_length=60)


class TenantName(Request):
    """Which tenant."""

    slug: str = Field(max_length=63)


class TenantPage(Answer):
    """Tenants by slug."""

    items: tuple[TenantRecord, ...]
    next: str | None = None


class NewKeyRequest(Request):
    """A key to be made for a person or program."""

    tenant: str = Field(max_length=63, description="slug of its tenant")
    principal: str = Field(max_length=63, description="the person or program; made if new")
    roles: tuple[Role, ...] = Field(min_length=1, max_length=5, description="what the key may do")
    expires_at_us: int | None = Field(default=None, ge=0, lt=2**53)


class NewKeyAnswer(Answer):
    """A key at the only moment when its secret is known."""

    id: str
    secret: str
    tenant: str
    principal_id: str
    roles: tuple[str, ...]


class KeyId(Request):
    """Which key."""

    key_id: str = Field(max_length=60)


class KeyView(Answer):
    """A key without its secret."""

    id: str
    tenant: str
    principal_id: str
    principal: str
    roles: tuple[str, ...]
    created_at_us: int
    expires_at_us: int | None
    revoked_at_us: int | None


class KeyPage(Answer):
    """Keys, newest first."""

    items: tuple[KeyView, ...]
    next: str | None = None


class Me(Answer):
    """Who the key belongs to."""

    principal_id: str
    name: str
    tenant: str
    roles: tuple[str, ...]
    key_id: str


def create_tenant(desk: Desk, principal: Principal, request: NewTenant) -> TenantRecord:
    """Registers a tenant and publishes it."""
    del principal
    return desk.accounts.create_tenant(request.slug, request.title, request.country)


def list_tenants(desk: Desk, principal: Principal, request: Page) -> TenantPage:
    """Every tenant, or one's own."""
    own = tenant_scope(principal)
    rows = [row for row in desk.accounts.list_tenants() if own in {None, row.slug}]
    items, after = cut(rows, request, lambda row: row.slug)
    return TenantPage(items=items, next=after)


def suspend_tenant(desk: Desk, principal: Principal, request: TenantName) -> Publication:
    """Stops every key and every expert of a tenant."""
    return desk.register.suspend_tenant(request.slug, principal)


def resume_tenant(desk: Desk, principal: Principal, request: TenantName) -> ChangeRecord:
    """Drafts the return of a suspended tenant."""
    title = f"Resume the tenant {request.slug}"
    return draft_one(desk, principal, title, TenantResume(slug=request.slug))


def create_key(desk: Desk, principal: Principal, request: NewKeyRequest) -> NewKeyAnswer:
    """Makes a key."""
    del principal
    made = desk.accounts.create_key(request.tenant, request.principal, request.roles, request.expires_at_us)
    return NewKeyAnswer(
        id=made.key_id,
        secret=made.secret,
        tenant=made.principal.tenant,
        principal_id=made.principal.id,
        roles=tuple(sorted(made.principal.roles)),
    )


def list_keys(desk: Desk, principal: Principal, request: Page) -> KeyPage:
    """Keys without secrets."""
    rows = desk.accounts.list_keys(tenant_scope(principal))
    items, after = cut(rows, request, lambda row: row.key_id)
    return KeyPage(items=tuple(_key_view(row) for row in items), next=after)


def revoke_key(desk: Desk, principal: Principal, request: KeyId) -> KeyView:
    """Makes a key open nothing."""
    own = None if sees_everything(principal) and principal.has(Role.OPERATOR) else principal.tenant
    return _key_view(desk.accounts.revoke_key(request.key_id, own))


def show_me(desk: Desk, principal: Principal, request: Nothing) -> Me:
    """Who asks."""
    del desk, request
    return Me(
        principal_id=principal.id,
        name=principal.name,
        tenant=principal.tenant,
        roles=tuple(sorted(principal.roles)),
        key_id=principal.key_id,
    )


def _key_view(row: KeyRecord) -> KeyView:
    return KeyView(
        id=row.key_id,
        tenant=row.tenant,
        principal_id=row.principal_id,
        principal=row.principal_name,
        roles=tuple(sorted(row.roles)),
        created_at_us=row.created_at_us,
        expires_at_us=row.expires_at_us,
        revoked_at_us=row.revoked_at_us,
    )


_KEY = "key_0198f0c2a1b37c4e8d5f60718293a4b5"
_OPERATOR = frozenset({Role.OPERATOR})

ROWS = (
    Operation(
        name="me.show",
        method="GET",
        path="/me",
        roles=ANYONE,
        request=Nothing,
        response=Me,
        run=show_me,
        summary="Says whose key this is and what it may do.",
        isolated=True,
    ),
    Operation(
        name="tenants.create",
        method="POST",
        path="/tenants",
        roles=_OPERATOR,
        request=NewTenant,
        response=TenantRecord,
        run=create_tenant,
        summary="Registers a tenant.",
        example={"slug": "north-hospital", "title": "North Hospital", "country": "de"},
    ),
    Operation(
        name="tenants.list",
        method="GET",
        path="/tenants",
        roles=ANYONE,
        request=Page,
        response=TenantPage,
        run=list_tenants,
        summary="Lists the tenants you may know of.",
    ),
    Operation(
        name="tenants.suspend",
        method="POST",
        path="/tenants/{slug}/suspend",
        roles=frozenset({Role.OPERATOR, Role.COMPLIANCE}),
        request=TenantName,
        response=Publication,
        run=suspend_tenant,
        summary="Stops every key and every expert of a tenant at once.",
        example={"slug": "north-hospital"},
    ),
    Operation(
        name="tenants.resume",
        method="POST",
        path="/tenants/{slug}/resume",
        roles=frozenset({Role.OPERATOR, Role.COMPLIANCE}),
        request=TenantName,
        response=ChangeRecord,
        run=resume_tenant,
        summary="Drafts the return of a suspended tenant; somebody else approves it.",
        example={"slug": "north-hospital"},
    ),
    Operation(
        name="keys.create",
        method="POST",
        path="/keys",
        roles=_OPERATOR,
        request=NewKeyRequest,
        response=NewKeyAnswer,
        run=create_key,
        summary="Makes a key; its secret is shown this once.",
        example={"tenant": "north-hospital", "principal": "ada", "roles": ["owner"]},
        secret_answer=True,
    ),
    Operation(
        name="keys.list",
        method="GET",
        path="/keys",
        roles=ANYONE,
        request=Page,
        response=KeyPage,
        run=list_keys,
        summary="Lists keys without their secrets.",
        isolated=True,
    ),
    Operation(
        name="keys.revoke",
        method="POST",
        path="/keys/{key_id}/revoke",
        roles=frozenset({Role.OPERATOR, Role.OWNER, Role.DEVELOPER}),
        request=KeyId,
        response=KeyView,
        run=revoke_key,
        summary="Makes a key open nothing from now on.",
        example={"key_id": _KEY},
        isolated=True,
    ),
)
