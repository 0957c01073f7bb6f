# SPDX-License-Identifier: Apache-2.0
"""The home folder: private, refused when it is not, secrets never open."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import HomeRefused
from cluster.home import Home
from model_core.errors import InvalidName


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_everything_is_private(tmp_path: Path) -> None:
    """Folders are 0700 and secrets 0600 even under a generous umask."""
    before = os.umask(0)
    try:
        home = Home(tmp_path / "home")
        home.prepare()
        home.ray_token_text()
        home.write_secret(home.operator_key, b"mk_secret")
        home.write_run({"pid": 1})
    finally:
        os.umask(before)
    for path in [home.root, *home.root.rglob("*")]:
        assert _mode(path) == (0o700 if path.is_dir() else 0o600), path


def _foreign(home: Home) -> None:
    os.chown(home.root, 12345, -1)


def _writable(home: Home) -> None:
    home.root.chmod(0o777)


def _linked(home: Home) -> None:
    home.root.rename(home.root.with_name("real"))
    home.root.symlink_to(home.root.with_name("real"))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(_foreign, "foreign_owner"), (_writable, "writable_by_others"), (_linked, "symlink")],
)
def test_an_unsafe_home_is_refused(tmp_path: Path, spoil: Callable[[Home], None], reason: str) -> None:
    """Somebody else's, world-writable and linked homes are refused with the reason."""
    if spoil is _foreign and os.geteuid() != 0:
        pytest.skip("only root can give a folder away")
    home = Home(tmp_path / "home")
    home.prepare()
    spoil(home)
    with pytest.raises(HomeRefused) as refused:
        home.prepare()
    assert refused.value.facts["reason"] == reason


def test_a_readable_home_is_closed(tmp_path: Path) -> None:
    """A home that others may only read is made private, not refused."""
    home = Home(tmp_path / "home")
    home.root.mkdir(mode=0o755)
    home.prepare()
    assert _mode(home.root) == 0o700


def test_an_open_secret_is_not_used(tmp_path: Path) -> None:
    """A secret that others could have read is refused, as is one behind a link, as is none."""
    home = Home(tmp_path / "home")
    home.prepare()
    with pytest.raises(HomeRefused):
        home.read_secret(home.ray_token)
    token = home.ray_token_text()
    assert home.ray_token_text() == token
    assert len(token) == 64
    home.ray_token.chmod(0o644)
    with pytest.raises(HomeRefused) as refused:
        home.ray_token_text()
    assert refused.value.facts["reason"] == "open_secret"
    home.ray_token.chmod(0o600)
    home.ray_token.rename(home.keys / "elsewhere")
    home.ray_token.symlink_to(home.keys / "elsewhere")
    with pytest.raises(HomeRefused):
        home.read_secret(home.ray_token)


@pytest.mark.parametrize("slug", ["../x", "a/b", "", "A", ".", "a" * 64])
def test_a_tenant_name_cannot_leave_its_folder(tmp_path: Path, slug: str) -> None:
    """Folders and keys are made for names only."""
    home = Home(tmp_path)
    for path in (home.owner_key, home.datasets, home.jobs):
        with pytest.raises(InvalidName):
            path(slug)


def test_a_torn_run_file_reads_as_none(tmp_path: Path) -> None:
    """A run file that a crash left half written is no reason to fail."""
    home = Home(tmp_path / "home")
    home.prepare()
    assert home.read_run() is None
    home.write_run({"url": "http://127.0.0.1:1"})
    assert home.read_run() == {"url": "http://127.0.0.1:1"}
    home.run_file.write_text('{"url": ')
    assert home.read_run() is None
    home.run_file.write_text("[1]")
    assert home.read_run() is None
    home.forget_run()
    home.forget_run()
