# SPDX-License-Identifier: Apache-2.0
"""Tenants, their principals and their API keys.

A key's secret carries 256 random bits and is shown once; the database holds its SHA-256 (a slow hash guards
guessable secrets, which these are not). Knows nothing of what a role may do.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from typing import Final

from pydantic import BaseModel, ConfigDict
from sqlalchemy import select
from sqlalchemy.orm import Session

from model_core.packing.ids import check_name, new_id
from tenants.accounts.tables import KeyRow, PrincipalRow, TenantRow
from tenants.errors import (
    ExpiredKey,
    NameTaken,
    RevokedKey,
    RoleRefused,
    SuspendedTenant,
    UnknownKey,
    UnknownObject,
)
from tenants.roles import PLATFORM_ROLES, PLATFORM_TENANT, Principal, Role

_SECRET: Final = re.compile(r"mk_(key_[0-9a-f]{32})_([A-Za-z0-9_-]{43})")
_SECRET_BYTES: Final = 32


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class TenantRecord(_Value):
    """A tenant as everyone sees it."""

    slug: str
    title: str
    country: str
    status: str
    created_at_us: int


class KeyRecord(_Value):
    """A key without its secret."""

    key_id: str
    tenant: str
    principal_id: str
    principal_name: str
    roles: frozenset[Role]
    created_at_us: int
    expires_at_us: int | None
    revoked_at_us: int | None


class NewKey(_Value):
    """A key at the only moment when its secret is known."""

    key_id: str
    secret: str
    principal: Principal


class Accounts:
    """The account room, within one unit of work.

    Args:
        session: the open unit of work; never committed here.
        now_us: the time of every act in it.
    """

    def __init__(self, session: Session, now_us: int) -> None:
        self._session = session
        self._now_us = now_us

    def create_tenant(self, slug: str, title: str, country: str = "") -> TenantRecord:
        """Registers a tenant under a slug that is its identity for ever.

        Raises:
            NameTaken: the slug is in use.
            InvalidName: the slug is not a name.
        """
        check_name(slug, "tenant")
        if self._session.get(TenantRow, slug) is not None:
            raise NameTaken(f"There is a tenant called {slug} already; choose another slug.", slug=slug)
        row = TenantRow(slug=slug, title=title, country=country, status="active", created_at_us=self._now_us)
        self._session.add(row)
        self._session.flush()
        return _tenant(row)

    def list_tenants(self) -> list[TenantRecord]:
        """Every tenant, by slug."""
        return [_tenant(row) for row in self._session.scalars(select(TenantRow).order_by(TenantRow.slug))]

    def tenant(self, slug: str) -> TenantRecord:
        """One tenant.

        Raises:
            UnknownObject: no tenant has this slug.
        """
        return _tenant(self._tenant_row(slug))

    def suspend_tenant(self, slug: str) -> TenantRecord:
        """Stops every key of the tenant at once. Suspending twice changes nothing."""
        row = self._tenant_row(slug)
        if slug == PLATFORM_TENANT:
            raise RoleRefused("The platform's own tenant can not be suspended: nobody could resume it.")
        row.status = "suspended"
        self._session.flush()
        return _tenant(row)

    def resume_tenant(self, slug: str) -> TenantRecord:
        """Undoes a suspension. Called by an approved change only: it widens."""
        row = self._tenant_row(slug)
        row.status = "active"
        self._session.flush()
        return _tenant(row)

    def create_key(
        self, tenant: str, principal_name: str, roles: Iterable[Role], expires_at_us: int | None = None
    ) -> NewKey:
        """Makes a key for a principal of the tenant, and the principal if its name is new.

        Returns:
            The key with its secret, which can not be read again.

        Raises:
            UnknownObject: no such tenant.
            RoleRefused: no role given, or a platform role for another tenant.
        """
        wanted = frozenset(Role(role) for role in roles)
        row = self._tenant_row(tenant)
        check_name(principal_name, "principal")
        if not wanted:
            raise RoleRefused("A key needs at least one role.", tenant=tenant)
        if tenant != PLATFORM_TENANT and wanted & PLATFORM_ROLES:
            raise RoleRefused(
                "Compliance and operator roles exist in the platform's own tenant only; choose owner, "
                "developer or auditor.",
                tenant=tenant,
            )
        person = self._principal(row.slug, principal_name)
        key_id = new_id("key")
        secret = f"mk_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
        self._session.add(
            KeyRow(
                key_id=key_id,
                principal_id=person.id,
                secret_sha256=_hash(secret),
                roles=" ".join(sorted(wanted)),
                created_at_us=self._now_us,
                expires_at_us=expires_at_us,
                revoked_at_us=None,
            )
        )
        self._session.flush()
        principal = Principal(id=person.id, tenant=row.slug, name=person.name, roles=wanted, key_id=key_id)
        return NewKey(key_id=key_id, secret=secret, principal=principal)

    def list_keys(self, tenant: str | None = None) -> list[KeyRecord]:
        """Keys without secrets, newest first; of one tenant, or of all with None."""
        query = select(KeyRow, PrincipalRow).join(PrincipalRow, KeyRow.principal_id == PrincipalRow.id)
        if tenant is not None:
            query = query.where(PrincipalRow.tenant == tenant)
        rows = self._session.execute(query.order_by(KeyRow.key_id.desc()))
        return [_key(key, person) for key, person in rows]

    def revoke_key(self, key_id: str, tenant: str | None = None) -> KeyRecord:
        """Makes a key open nothing from now on. Revoking twice keeps the first time.

        Args:
            key_id: which key.
            tenant: if given, keys of other tenants do not exist for the caller.

        Raises:
            UnknownObject: no such key, or not one of that tenant.
        """
        key = self._session.get(KeyRow, key_id)
        person = None if key is None else self._session.get(PrincipalRow, key.principal_id)
        if key is None or person is None or tenant not in {None, person.tenant}:
            raise UnknownObject("There is no such key; list the keys to see which there are.", key_id=key_id)
        if key.revoked_at_us is None:
            key.revoked_at_us = self._now_us
            self._session.flush()
        return _key(key, person)

    def authenticate(self, secret: str) -> Principal:
        """Says whose secret this is.

        Raises:
            UnknownKey: nobody's.
            RevokedKey: it was revoked.
            ExpiredKey: its time is over.
            SuspendedTenant: its tenant is suspended.
        """
        match = _SECRET.fullmatch(secret)
        # One question for key, person and tenant: every request asks it.
        query = (
            select(KeyRow, PrincipalRow, TenantRow.status)
            .join(PrincipalRow, PrincipalRow.id == KeyRow.principal_id)
            .join(TenantRow, TenantRow.slug == PrincipalRow.tenant)
        )
        found = self._session.execute(query.where(KeyRow.key_id == match[1])).first() if match else None
        key = None if found is None else found[0]
        # Compared in either case, so that the time taken does not tell whether the id exists.
        stored = key.secret_sha256 if key is not None else _hash("")
        if not hmac.compare_digest(stored, _hash(secret)) or found is None or key is None:
            raise UnknownKey("The API key is not known here; check that it was copied whole.")
        if key.revoked_at_us is not None:
            raise RevokedKey(
                "The API key was revoked; ask your administrator for another.", key_id=key.key_id
            )
        if key.expires_at_us is not None and self._now_us >= key.expires_at_us:
            raise ExpiredKey(
                "The API key has expired; ask your administrator for another.", key_id=key.key_id
            )
        _, person, status = found
        if status != "active":
            raise SuspendedTenant(
                f"The tenant {person.tenant} is suspended; ask the platform's compliance staff.",
                tenant=person.tenant,
            )
        return Principal(
            id=person.id, tenant=person.tenant, name=person.name, roles=_roles(key.roles), key_id=key.key_id
        )

    def _tenant_row(self, slug: str) -> TenantRow:
        row = self._session.get(TenantRow, slug)
        if row is None:
            raise UnknownObject(
                "There is no such tenant; list the tenants to see which there are.", slug=slug
            )
        return row

    def _principal(self, tenant: str, name: str) -> PrincipalRow:
        query = select(PrincipalRow).where(PrincipalRow.tenant == tenant, PrincipalRow.name == name)
        row = self._session.scalars(query).one_or_none()
        if row is None:
            row = PrincipalRow(id=new_id("pri"), tenant=tenant, name=name, created_at_us=self._now_us)
            self._session.add(row)
            self._session.flush()
        return row


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _roles(stored: str) -> frozenset[Role]:
    return frozenset(Role(word) for word in stored.split())


def _tenant(row: TenantRow) -> TenantRecord:
    return TenantRecord(
        slug=row.slug,
        title=row.title,
        country=row.country,
        status=row.status,
        created_at_us=row.created_at_us,
    )


def _key(key: KeyRow, person: PrincipalRow) -> KeyRecord:
    return KeyRecord(
        key_id=key.key_id,
        tenant=person.tenant,
        principal_id=person.id,
        principal_name=person.name,
        roles=_roles(key.roles),
        created_at_us=key.created_at_us,
        expires_at_us=key.expires_at_us,
        revoked_at_us=key.revoked_at_us,
    )
