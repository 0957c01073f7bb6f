# SPDX-License-Identifier: Apache-2.0
"""The one place where parts are put together: settings become folders, keys, a database, a store, an office.

Nothing below this module reads settings; nothing above it chooses implementations.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import migrations
from cluster.artifacts import RemovingDirectoryStore
from cluster.home import Home
from cluster.office.counter import Office
from cluster.office.desk import Desk, now_us
from cluster.office.scales import Scales
from cluster.settings import Settings
from cluster.telemetry import log_to
from model_core.packing.bundle import CheckedBundle, check_bundle, countersign_bundle, reseal_bundle
from model_core.packing.files import copy_plain_file, sync_folder
from model_core.packing.keys import load_or_create_key
from model_core.packing.manifest import MANIFEST_FILE, SEAL_FILE, BaseManifest
from model_core.packing.seal import TrustedKeys
from model_core.packing.store import ArtifactStore
from policy.audit.adopting import adopt
from policy.audit.sealing import seal_database
from tenants.accounts.database import Database
from tenants.accounts.role_check import check_role
from tenants.accounts.scope import PLATFORM
from tenants.errors import DatabaseInUse, ExpiredKey, RevokedKey, SchemaBehind, UnknownKey
from tenants.roles import PLATFORM_TENANT, Role

log = logging.getLogger(__name__)

_LOCK_PATIENCE_S = 15.0
FIRST_OPERATOR = "operator"


def kernels_folder(settings: Settings) -> Path | None:
    """Where an installation keeps compiled kernels; None where its hosts compute without."""
    if not settings.host_kernels:
        return None
    return settings.kernels_folder or Home(settings.home).kernels


def read_settings(document: dict[str, Any]) -> Settings:
    """Settings that came from another process of the marketplace."""
    return Settings.model_validate(document)


def open_home(settings: Settings) -> Home:
    """The installation's folders, made and checked, with every platform key in place."""
    home = Home(settings.home)
    home.prepare()
    home.ray_token_text()
    load_or_create_key(home.admission_key)
    load_or_create_key(home.checkpoint_key)
    load_or_create_key(home.receipt_key)
    return home


def open_store(settings: Settings, home: Home) -> ArtifactStore:
    """The artifact store that the settings name; buckets stage into the home folder."""
    if not settings.artifacts_in_s3:
        return RemovingDirectoryStore(Path(settings.artifacts))
    from cluster.s3 import S3Store

    bucket, _, prefix = settings.artifacts.removeprefix("s3://").partition("/")
    return S3Store(
        bucket=bucket,
        prefix=prefix,
        cache=home.root / "artifact-cache",
        endpoint_url=settings.s3_endpoint or None,
    )


def trusted_keys(home: Home, *tenants: str) -> TrustedKeys:
    """Whose signatures a host accepts: admission's, and the named tenants' own.

    Args:
        home: the installation.
        *tenants: slugs of the tenants whose experts may be loaded.
    """
    owners = {
        tenant: frozenset({load_or_create_key(home.owner_key(tenant)).public_key}) for tenant in tenants
    }
    return TrustedKeys(
        owners=owners, admission=frozenset({load_or_create_key(home.admission_key).public_key})
    )


def open_database(settings: Settings, *, patience_s: float = _LOCK_PATIENCE_S) -> Database:
    """Opens the database, waiting a little for a predecessor that is still dying; upgrades the embedded one.

    Raises:
        DatabaseInUse: another process keeps the embedded database open.
        SchemaBehind: PostgreSQL's schema is another release's.
        UnsafeDatabaseRole: PostgreSQL's role could get around the guards.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            database = Database(settings.database_url, scope=PLATFORM)
        except DatabaseInUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            break
    with _closed_on_failure(database):
        seal_database(database)
        if database.is_sqlite:
            _upgrade(database, database, Home(settings.home))
        else:
            _check_ready(database)
    return database


@contextmanager
def _closed_on_failure(database: Database) -> Iterator[None]:
    """Lets go of a database that was not made ready: its lock would hide the reason from the next try."""
    try:
        yield
    except BaseException:
        database.close()
        raise


def upgrade_database(settings: Settings) -> None:
    """Has PostgreSQL's owner bring the schema to this release, and looks whether the office may work with it.

    The embedded database is upgraded by the office, the only one that opens it.

    Raises:
        SchemaBehind: no owner is named, and the schema is another release's.
        UnsafeDatabaseRole: the office's role could get around the guards.
    """
    if settings.embedded_database:
        return
    with ExitStack() as opened:
        database = Database(settings.database_url, scope=PLATFORM)
        opened.callback(database.close)
        check_role(database.engine)
        if settings.migrator_database_url:
            owner = Database(settings.migrator_database_url)
            opened.callback(owner.close)
            seal_database(database)
            _upgrade(owner, database, Home(settings.home))
        _check_ready(database)


def _upgrade(owner: Database, database: Database, home: Home) -> None:
    """Upgrades as the tables' owner, and seals what that changed as the office; a later start if need be."""
    if migrations.current(owner.engine) not in {None, migrations.head()}:
        home.make_folder(home.root)
        home.upgrade_mark.touch(mode=0o600)
        sync_folder(home.root)
    migrations.upgrade(owner.engine)
    if home.upgrade_mark.exists():
        _adopt(database)
        home.upgrade_mark.unlink()


def _check_ready(database: Database) -> None:
    check_role(database.engine)
    present = migrations.current(database.engine)
    if present != migrations.head():
        raise SchemaBehind(
            "The database is not at the revision of this release. Set MARKETPLACE_MIGRATOR_DATABASE_URL to "
            "its owner's URL and run marketplace database upgrade.",
            present=present,
            needed=migrations.head(),
        )


def _adopt(database: Database) -> None:
    """Seals what the schema's upgrade found or changed."""
    with database.unit_of_work() as session:
        adopted = adopt(session, migrations.head(), now_us())
    log.warning("rows were adopted by an upgrade", extra={"rows": adopted, "schema": migrations.head()})


def open_office(document: dict[str, Any]) -> Office:
    """Everything the office needs, opened; the first run's work is done before it answers anyone."""
    settings = read_settings(document)
    home = open_home(settings)
    log_to(home.logs, "office", settings.log_level)
    store = open_store(settings, home)
    database = open_database(settings)
    with _closed_on_failure(database), database.unit_of_work() as session:
        desk = Desk(session=session, home=home, artifacts=store, settings=settings)
        found_platform(desk)
        import_starter_base(desk)
        desk.repeats.forget_old()
    log.info("the office is open", extra={"schema": migrations.head()})
    return Office(
        settings=settings,
        home=home,
        database=database,
        artifacts=store,
        schema_revision=migrations.head(),
        scales=Scales(home, store, threads=settings.threads, limits=settings.admission),
    )


def found_platform(desk: Desk) -> None:
    """Makes the platform's own tenant and its first operator key, if there are none.

    The key file is written before the unit of work commits. A crash in between leaves a file with a key
    that the database does not know, which the next start replaces; the other order could leave a
    marketplace whose only operator key nobody has seen.
    """
    if all(tenant.slug != PLATFORM_TENANT for tenant in desk.accounts.list_tenants()):
        desk.accounts.create_tenant(PLATFORM_TENANT, "The platform")
        desk.audit.append("platform", "tenants.create", f"tenants/{PLATFORM_TENANT}", {})
    known = any(
        Role.OPERATOR in key.roles and key.revoked_at_us is None
        for key in desk.accounts.list_keys(PLATFORM_TENANT)
    )
    if known and not _is_stray(desk):
        return
    made = desk.accounts.create_key(PLATFORM_TENANT, FIRST_OPERATOR, [Role.OPERATOR])
    desk.audit.append("platform", "keys.create", f"keys/{made.key_id}", {"roles": ["operator"]})
    desk.home.write_secret(desk.home.operator_key, made.secret.encode())


def import_starter_base(desk: Desk) -> None:
    """Registers the starter base if the register has no base and one is at hand."""
    folder = _starter_folder(desk.settings)
    if folder is None or desk.register.list_bases():
        return
    with resources.as_file(folder) as path:
        checked = check_bundle(path)
        if not isinstance(checked.manifest, BaseManifest):
            log.warning("the starter folder holds no base; nothing was imported")
            return
        keep_base(desk, checked)
        desk.register.add_base(checked.manifest, checked.digest)
    desk.audit.append("platform", "bases.import", f"bases/{checked.digest}", {"name": checked.manifest.name})


def keep_base(desk: Desk, checked: CheckedBundle) -> None:
    """Stores a base under the platform's own seal, unless it is stored already.

    Bases belong to the platform: whoever made one and sealed it, the platform vouches for the bytes it
    serves. Its digest stays, since the seal is no part of it.
    """
    if desk.artifacts.has(checked.digest):
        return
    with TemporaryDirectory(dir=desk.home.uploads, prefix="base-") as draft:
        own = Path(draft) / "bundle"
        own.mkdir()
        # The manifest is copied as it is: written anew by a later release it would have other bytes.
        for name in (*checked.manifest.files, MANIFEST_FILE, SEAL_FILE):
            copy_plain_file(checked.folder / name, own / name)
        reseal_bundle(own, load_or_create_key(desk.home.owner_key(PLATFORM_TENANT)))
        countersign_bundle(own, load_or_create_key(desk.home.admission_key))
        desk.artifacts.put_bundle(own, checked.digest)


def _starter_folder(settings: Settings) -> Traversable | None:
    if settings.starter_base == "none":
        return None
    if settings.starter_base:
        return Path(settings.starter_base).expanduser()
    shipped = resources.files("model_core") / "starter"
    return shipped if (shipped / MANIFEST_FILE).is_file() else None


def _is_stray(desk: Desk) -> bool:
    """Whether the key file holds a key that the database never knew (a crash before the commit)."""
    if not desk.home.operator_key.exists():
        return False  # taken to a safe place, as it should be
    try:
        desk.accounts.authenticate(desk.home.read_secret(desk.home.operator_key).decode().strip())
    except UnknownKey:
        return True
    except (RevokedKey, ExpiredKey):
        return False
    return False
