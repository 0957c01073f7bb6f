# SPDX-License-Identifier: Apache-2.0
"""Accounts and datasets: keys open what they should, and nothing else, on both engines."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from model_core.packing.canonical import merkle_root
from model_core.packing.manifest import DataCard
from tenants.accounts.accounts import Accounts
from tenants.accounts.database import Database
from tenants.accounts.datasets import Datasets
from tenants.errors import (
    ExpiredKey,
    NameTaken,
    RevokedKey,
    RoleRefused,
    SuspendedTenant,
    UnknownKey,
    UnknownObject,
)
from tenants.roles import Role

NOW = 1_800_000_000_000_000
CARD = DataCard(documents=1, text_bytes=4, license="MIT", merkle_root=merkle_root([b"a"]))
DIGEST = "sha256:" + "a" * 64


def test_key_opens_its_principal(database: Database) -> None:
    """A new key authenticates as its principal, and a second key of that name is the same principal."""
    with database.unit_of_work() as session:
        accounts = Accounts(session, NOW)
        accounts.create_tenant("acme", "Acme", "DE")
        one = accounts.create_key("acme", "ada", {Role.OWNER})
        two = accounts.create_key("acme", "ada", {Role.DEVELOPER})
        assert one.principal.id == two.principal.id
    with database.unit_of_work() as session:
        found = Accounts(session, NOW).authenticate(one.secret)
        assert found == one.principal
        assert found.roles == {Role.OWNER}


def test_secret_is_not_stored(database: Database) -> None:
    """No column of the keys table holds the secret or its random part."""
    with database.unit_of_work() as session:
        accounts = Accounts(session, NOW)
        accounts.create_tenant("acme", "Acme")
        key = accounts.create_key("acme", "ada", {Role.OWNER})
        stored = str([tuple(row) for row in session.execute(text("SELECT * FROM api_keys"))])
        assert key.secret not in stored
        assert key.secret[-43:] not in stored


def test_wrong_secrets_open_nothing(database: Database) -> None:
    """Unknown ids, wrong random parts, cut and empty secrets are all refused alike."""
    with database.unit_of_work() as session:
        accounts = Accounts(session, NOW)
        accounts.create_tenant("acme", "Acme")
        good = accounts.create_key("acme", "ada", {Role.OWNER}).secret
        other = accounts.create_key("acme", "bob", {Role.OWNER}).secret
        flipped = good[:-1] + ("A" if good[-1] != "A" else "B")
        for wrong in ("", "mk_", good[:-1], good + "a", flipped, other[:40] + good[40:], good.upper()):
            with pytest.raises(UnknownKey):
                accounts.authenticate(wrong)


def test_revoked_expired_and_suspended_keys_are_refused(database: Database) -> None:
    """Each way to end a key has its own refusal, and expiry holds from its very microsecond."""
    with database.unit_of_work() as session:
        accounts = Accounts(session, NOW)
        accounts.create_tenant("acme", "Acme")
        accounts.create_tenant("beta", "Beta")
        revoked = accounts.create_key("acme", "ada", {Role.OWNER})
        expiring = accounts.create_key("acme", "ada", {Role.OWNER}, expires_at_us=NOW + 5)
        suspended = accounts.create_key("beta", "bob", {Role.OWNER})
        accounts.revoke_key(revoked.key_id)
        accounts.suspend_tenant("beta")
    with database.unit_of_work() as session:
        with pytest.raises(RevokedKey):
            Accounts(session, NOW).authenticate(revoked.secret)
        Accounts(session, NOW + 4).authenticate(expiring.secret)
        with pytest.raises(ExpiredKey):
            Accounts(session, NOW + 5).authenticate(expiring.secret)
        with pytest.raises(SuspendedTenant):
            Accounts(session, NOW).authenticate(suspended.secret)
        Accounts(session, NOW).resume_tenant("beta")
        Accounts(session, NOW).authenticate(suspended.secret)


def test_platform_roles_stay_in_the_platform(database: Database) -> None:
    """A tenant can not get a compliance or operator key, and the platform can not be suspended."""
    with database.unit_of_work() as session:
        accounts = Accounts(session, NOW)
        accounts.create_tenant("acme", "Acme")
        accounts.create_tenant("platform", "Platform")
        for role in (Role.COMPLIANCE, Role.OPERATOR):
            with pytest.raises(RoleRefused):
                accounts.create_key("acme", "eve", {Role.OWNER, role})
            accounts.create_key("platform", "pia", {role})
        with pytest.raises(RoleRefused):
            accounts.create_key("acme", "eve", set())
        with pytest.raises(RoleRefused):
            accounts.suspend_tenant("platform")


def test_keys_of_other_tenants_do_not_exist(database: Database) -> None:
    """Revoking another tenant's key says that there is no such key, and leaves it alive."""
    with database.unit_of_work() as session:
        accounts = Accounts(session, NOW)
        for slug in ("acme", "beta"):
            accounts.create_tenant(slug, slug)
        key = accounts.create_key("beta", "bob", {Role.OWNER})
        with pytest.raises(UnknownObject):
            accounts.revoke_key(key.key_id, tenant="acme")
        accounts.authenticate(key.secret)
        assert [one.key_id for one in accounts.list_keys("beta")] == [key.key_id]
        assert accounts.list_keys("acme") == []


def test_names_are_taken_once(database: Database) -> None:
    """Tenants and datasets are unique by name; the very same dataset again is the first one."""
    with database.unit_of_work() as session:
        accounts, datasets = Accounts(session, NOW), Datasets(session, NOW)
        accounts.create_tenant("acme", "Acme")
        with pytest.raises(NameTaken):
            accounts.create_tenant("acme", "Other")
        first = datasets.add("acme", "letters", CARD, DIGEST, 4)
        assert datasets.add("acme", "letters", CARD, DIGEST, 4) == first
        with pytest.raises(NameTaken):
            datasets.add("acme", "letters", CARD, "sha256:" + "b" * 64, 4)
        with pytest.raises(UnknownObject):
            datasets.add("nobody", "letters", CARD, DIGEST, 4)
        assert datasets.get(first.id) == datasets.list("acme")[0] == first
        assert datasets.list("beta") == []
