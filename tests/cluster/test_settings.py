# SPDX-License-Identifier: Apache-2.0
"""Settings: one reader of the environment, safe defaults, nothing secret shown."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from pydantic import ValidationError

import cluster
from cluster.settings import Settings, clean_environment

_ROOT = Path(cluster.__file__).parents[1]


def test_defaults_are_loopback_and_embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without any variable the marketplace binds loopback and keeps everything below its home."""
    monkeypatch.setenv("MARKETPLACE_HOME", str(tmp_path))
    settings = Settings()
    assert settings.loopback_only
    assert settings.embedded_database
    assert settings.database_url == f"sqlite:///{tmp_path}/marketplace.sqlite"
    assert Path(settings.artifacts).parent == tmp_path


def test_variables_are_read_and_documents_win(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A value that crossed a process border is not changed by the receiving process's environment."""
    monkeypatch.setenv("MARKETPLACE_HOME", str(tmp_path / "a"))
    monkeypatch.setenv("MARKETPLACE_LEASE_S", "1.5")
    sent = Settings().model_dump(mode="json")
    monkeypatch.setenv("MARKETPLACE_HOME", str(tmp_path / "b"))
    monkeypatch.setenv("MARKETPLACE_LEASE_S", "9")
    received = Settings.model_validate(sent)
    assert received.home == tmp_path / "a"
    assert received.lease_s == 1.5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_PORT", "70000"),
        ("LEASE_S", "0"),
        ("THREADS", "none"),
        ("LOG_LEVEL", "LOUD"),
        ("MAX_TOKENS", "0"),
    ],
)
def test_nonsense_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    """A value out of bounds stops the start instead of meaning something else."""
    monkeypatch.setenv(f"MARKETPLACE_{name}", value)
    with pytest.raises(ValidationError):
        Settings()


def test_public_settings_hide_the_database_password(tmp_path: Path) -> None:
    """What is printed and logged keeps host and user but not the password."""
    settings = Settings(home=tmp_path, database_url="postgresql://market:hunter2@db.example:5432/market")
    shown = settings.public()
    assert "hunter2" not in str(shown)
    assert shown["database_url"] == "postgresql://market:***@db.example:5432/market"


def test_clean_environment_passes_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """A secret exported in the operator's shell does not reach a started process."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("MARKETPLACE_DATABASE_URL", "postgresql://x:canary@h/d")
    assert "canary" not in str(clean_environment())
    assert "PATH" in clean_environment()


def test_nobody_else_reads_the_environment() -> None:
    """Only ``cluster/settings.py`` names ``os.environ`` or ``os.getenv`` in the product."""
    readers = set()
    for package in ("cluster", "policy", "tenants", "model_core", "migrations"):
        for file in (_ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                if isinstance(node, ast.Attribute) and node.attr in {"environ", "getenv", "putenv"}:
                    readers.add(str(file.relative_to(_ROOT)))
    assert readers == {"cluster/settings.py"}
