# SPDX-License-Identifier: Apache-2.0
"""What only the directory store promises: atomic under SIGKILL, sweeping, and when bytes are read again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model_core import errors
from model_core.packing import store as store_module
from model_core.packing.store import DirectoryStore

_ROOT = str(Path(errors.__file__).parents[1])

# Stops right where it is told to, says so, and waits to be killed.
_WRITER = """
import sys, time
from pathlib import Path
from model_core.packing import store
def stop(*_):
    print("here", flush=True)
    time.sleep(60)
moment, root, folder, digest = sys.argv[1:]
if moment == "copying":
    real, done = store.copy_plain_file, []
    def copy(source, target):
        real(source, target)
        stop()
    store.copy_plain_file = copy
elif moment == "renaming":
    store._rename_into_place = stop
elif moment == "renamed":
    real_sync = store.sync_folder
    store.sync_folder = lambda folder: stop() if folder.name == "bundles" else real_sync(folder)
store.DirectoryStore(Path(root)).put_bundle(Path(folder), digest)
"""


def _start_writer(moment: str, root: Path, folder: Path, digest: str) -> subprocess.Popen[str]:
    writer = subprocess.Popen(
        [sys.executable, "-c", _WRITER, moment, str(root), str(folder), digest],
        stdout=subprocess.PIPE,
        text=True,
        env={"PYTHONPATH": _ROOT, "PATH": os.environ["PATH"]},
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "here\n"
    return writer


def _kill(writer: subprocess.Popen[str]) -> None:
    writer.send_signal(signal.SIGKILL)
    writer.wait(10)
    assert writer.stdout is not None
    writer.stdout.close()


@pytest.mark.parametrize(("moment", "visible"), [("copying", False), ("renaming", False), ("renamed", True)])
def test_a_killed_writer(bundles: Any, tmp_path: Path, moment: str, visible: bool) -> None:
    """Killed at any moment a put leaves all or nothing; the rest is swept and the next put succeeds."""
    expert = bundles.expert(tmp_path / "bundle")
    root = tmp_path / "store"
    writer = _start_writer(moment, root, expert.folder, expert.digest)
    try:
        beside = DirectoryStore(root)
        assert beside.has(expert.digest) is visible
        assert len(list((root / "staging").iterdir())) > 0, "a living writer's staging is left alone"
    finally:
        _kill(writer)
    after = DirectoryStore(root)
    assert list((root / "staging").iterdir()) == []
    assert after.has(expert.digest) is visible
    assert after.digests() == ((expert.digest,) if visible else ())
    after.put_bundle(expert.folder, expert.digest)
    assert (after.get_bundle(expert.digest) / "manifest.json").is_file()


def test_nothing_is_left_in_staging(bundles: Any, tmp_path: Path) -> None:
    """Neither a good nor a refused put leaves anything but bundles."""
    store = DirectoryStore(tmp_path / "store")
    expert = bundles.expert(tmp_path / "bundle")
    store.put_bundle(expert.folder, expert.digest)
    store.put_bundle(expert.folder, expert.digest)
    (expert.folder / "more.json").touch()
    with pytest.raises(errors.BundleExtraFile):
        store.put_bundle(expert.folder, expert.digest)
    assert list((tmp_path / "store" / "staging").iterdir()) == []


def test_the_source_may_change_during_the_put(
    bundles: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy is what is verified: a source that changes after its check is not stored."""
    store = DirectoryStore(tmp_path / "store")
    expert = bundles.expert(tmp_path / "bundle")
    real = store_module.copy_plain_file

    def change_then_copy(source: Path, target: Path) -> None:
        if source.name == "expert.safetensors":
            source.write_bytes(source.read_bytes()[:-1] + b"\x7f")
        real(source, target)

    monkeypatch.setattr(store_module, "copy_plain_file", change_then_copy)
    with pytest.raises(errors.BundleCorrupt):
        store.put_bundle(expert.folder, expert.digest)
    assert store.digests() == ()


def test_bytes_are_read_again_only_when_files_changed(
    bundles: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first get reads every byte, the second none, and one after a change all of them again."""
    store = DirectoryStore(tmp_path / "store")
    expert = bundles.expert(tmp_path / "bundle")
    store.put_bundle(expert.folder, expert.digest)
    real, checks = store_module.check_bundle, []

    def counting(*args: Any, **named: Any) -> Any:
        checks.append(args)
        return real(*args, **named)

    monkeypatch.setattr(store_module, "check_bundle", counting)
    home = store.get_bundle(expert.digest)
    store.get_bundle(expert.digest)
    assert len(checks) == 1
    weights = home / "expert.safetensors"
    before = weights.stat()
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1
    weights.write_bytes(bytes(data))
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # size and mtime as before
    weights.chmod(0o444)
    with pytest.raises(errors.BundleCorrupt):
        store.get_bundle(expert.digest)
    with pytest.raises(errors.BundleCorrupt):
        store.get_bundle(expert.digest)
    assert len(checks) == 3


def test_an_extra_stored_file_is_seen(bundles: Any, tmp_path: Path) -> None:
    """A file put beside a verified bundle is noticed by the same process."""
    store = DirectoryStore(tmp_path / "store")
    expert = bundles.expert(tmp_path / "bundle")
    store.put_bundle(expert.folder, expert.digest)
    home = store.get_bundle(expert.digest)
    (home / "expert.pkl").touch()
    with pytest.raises(errors.BundleExtraFile):
        store.get_bundle(expert.digest)


def test_stray_folders_are_no_bundles(bundles: Any, tmp_path: Path) -> None:
    """Other names among the bundles are not listed."""
    store = DirectoryStore(tmp_path / "store")
    (tmp_path / "store" / "bundles" / "lost+found").mkdir()
    (tmp_path / "store" / "bundles" / "sha256-zz").mkdir()
    assert store.digests() == ()


def test_a_disk_that_fails(bundles: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is a typed refusal that leaves nothing visible."""
    store = DirectoryStore(tmp_path / "store")
    expert = bundles.expert(tmp_path / "bundle")

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store_module, "copy_plain_file", full)
    with pytest.raises(errors.StoreUnavailable, match="No space"):
        store.put_bundle(expert.folder, expert.digest)
    assert store.digests() == ()
    (tmp_path / "file").touch()
    with pytest.raises(errors.StoreUnavailable):
        DirectoryStore(tmp_path / "file")
