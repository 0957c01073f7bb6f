# SPDX-License-Identifier: Apache-2.0
"""What every artifact store must do, run against each of them."""

from __future__ import annotations

import itertools
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from cluster.artifacts import RemovingDirectoryStore, RemovingStore
from cluster.s3 import S3Store
from model_core import errors
from model_core.packing.bundle import check_bundle, countersign_bundle
from model_core.packing.keys import generate_key
from model_core.packing.store import ArtifactStore

_UNKNOWN = "sha256:" + "ab" * 32


class StoreUnderTest:
    """A store, ways to open it again as another process would, and a hand inside its storage."""

    def open(self) -> ArtifactStore:
        """The same store, opened anew with nothing remembered."""
        raise NotImplementedError

    def tamper(self, digest: str, name: str, change: Callable[[bytes], bytes] | None) -> None:
        """Rewrites a stored file behind the store's back; None deletes it."""
        raise NotImplementedError


class DirectoryUnderTest(StoreUnderTest):
    """A directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def open(self) -> ArtifactStore:
        """See above."""
        return RemovingDirectoryStore(self.root)

    def tamper(self, digest: str, name: str, change: Callable[[bytes], bytes] | None) -> None:
        """See above."""
        path = self.root / "bundles" / digest.replace(":", "-") / name
        if change is None:
            path.unlink()
            return
        path.chmod(0o644)
        path.write_bytes(change(path.read_bytes()))


class BucketUnderTest(StoreUnderTest):
    """A bucket on a loopback server; every opening has a cold cache."""

    def __init__(self, client: Any, bucket: str, caches: Path) -> None:
        self.client, self.bucket, self.caches = client, bucket, caches
        self.count = itertools.count()

    def open(self) -> ArtifactStore:
        """See above."""
        cache = self.caches / str(next(self.count))
        return S3Store(bucket=self.bucket, cache=cache, prefix="market/", client=self.client)

    def tamper(self, digest: str, name: str, change: Callable[[bytes], bytes] | None) -> None:
        """See above."""
        where = {"Bucket": self.bucket, "Key": f"market/bundles/{digest.replace(':', '-')}/{name}"}
        if change is None:
            self.client.delete_object(**where)
        else:
            body = self.client.get_object(**where)["Body"].read()
            self.client.put_object(**where, Body=change(body))


@pytest.fixture(scope="module")
def s3_client() -> Iterator[Any]:
    """A client of an S3 server on loopback."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield boto3.client(
        "s3",
        endpoint_url=f"http://{host}:{port}",
        region_name="us-east-1",
        aws_access_key_id="test",
        aws_secret_access_key="test",
    )
    server.stop()


class ArtifactStoreContract:
    """The clauses; bound to implementations below."""

    @pytest.fixture
    def under_test(self) -> StoreUnderTest:
        """The implementation; each binding gives its own."""
        raise NotImplementedError

    def test_what_was_put_is_got(self, under_test: StoreUnderTest, bundles: Any, tmp_path: Path) -> None:
        """A base and an expert come back from another opening with equal bytes."""
        base = bundles.base(tmp_path / "base")
        expert = bundles.expert(tmp_path / "expert", base)
        store = under_test.open()
        for checked in (base, expert):
            assert store.put_bundle(checked.folder, checked.digest) == checked.digest
            found = under_test.open().get_bundle(checked.digest)
            for file in checked.folder.iterdir():
                assert (found / file.name).read_bytes() == file.read_bytes()
            check_bundle(found, expect_digest=checked.digest, trusted=bundles.trusted())

    def test_what_is_erased_is_gone(self, under_test: StoreUnderTest, bundles: Any, tmp_path: Path) -> None:
        """An erased bundle is nowhere, also after it was read; others stay, and it may be put again."""
        store = under_test.open()
        assert isinstance(store, RemovingStore)
        gone, kept = (bundles.expert(tmp_path / str(seed), seed=seed) for seed in range(2))
        for one in (gone, kept):
            store.put_bundle(one.folder, one.digest)
            store.get_bundle(one.digest)
        assert store.remove_bundle(gone.digest)
        for opened in (store, under_test.open()):
            assert not opened.has(gone.digest)
            assert opened.digests() == (kept.digest,)
            with pytest.raises(errors.ArtifactNotFound):
                opened.get_bundle(gone.digest)
        assert not store.remove_bundle(gone.digest)
        store.get_bundle(kept.digest)
        assert store.put_bundle(gone.folder, gone.digest) == gone.digest

    def test_lists_what_it_has(self, under_test: StoreUnderTest, bundles: Any, tmp_path: Path) -> None:
        """The list grows by what was put, sorted, and has() agrees."""
        store = under_test.open()
        assert store.digests() == ()
        made = [bundles.expert(tmp_path / str(seed), seed=seed) for seed in range(3)]
        assert not any(store.has(one.digest) for one in made)
        for one in made:
            store.put_bundle(one.folder, one.digest)
        assert under_test.open().digests() == tuple(sorted(one.digest for one in made))
        assert all(store.has(one.digest) for one in made)

    def test_unknown_digest(self, under_test: StoreUnderTest) -> None:
        """An absent bundle is named so."""
        store = under_test.open()
        assert not store.has(_UNKNOWN)
        with pytest.raises(errors.ArtifactNotFound):
            store.get_bundle(_UNKNOWN)

    @pytest.mark.parametrize("digest", ["", "../../etc", "sha256:../..", _UNKNOWN.upper(), _UNKNOWN + "\n"])
    def test_hostile_digest(
        self, under_test: StoreUnderTest, bundles: Any, tmp_path: Path, digest: str
    ) -> None:
        """A digest that is none never becomes a path or a key."""
        store = under_test.open()
        expert = bundles.expert(tmp_path / "expert")
        for ask in (store.has, store.get_bundle, lambda wrong: store.put_bundle(expert.folder, wrong)):
            with pytest.raises(errors.InvalidDigest):
                ask(digest)

    def test_another_bundle_than_expected(
        self, under_test: StoreUnderTest, bundles: Any, tmp_path: Path
    ) -> None:
        """A folder that is not the expected bundle changes nothing."""
        store = under_test.open()
        expert = bundles.expert(tmp_path / "expert")
        with pytest.raises(errors.DigestMismatch):
            store.put_bundle(expert.folder, _UNKNOWN)
        assert store.digests() == ()

    def test_refuses_what_the_check_refuses(
        self, under_test: StoreUnderTest, bundles: Any, tmp_path: Path
    ) -> None:
        """A corrupt folder changes nothing."""
        store = under_test.open()
        expert = bundles.expert(tmp_path / "expert")
        (expert.folder / "metrics.jsonl").write_bytes(b"{}\n")
        with pytest.raises(errors.BundleCorrupt):
            store.put_bundle(expert.folder, expert.digest)
        assert store.digests() == ()

    def test_put_again_is_nothing(self, under_test: StoreUnderTest, bundles: Any, tmp_path: Path) -> None:
        """Putting the same bundle twice keeps one."""
        store = under_test.open()
        expert = bundles.expert(tmp_path / "expert")
        store.put_bundle(expert.folder, expert.digest)
        before = store.get_bundle(expert.digest)
        assert under_test.open().put_bundle(expert.folder, expert.digest) == expert.digest
        assert store.digests() == (expert.digest,)
        assert store.get_bundle(expert.digest) == before

    def test_another_seal_is_refused(self, under_test: StoreUnderTest, bundles: Any, tmp_path: Path) -> None:
        """Written once also means the seal."""
        store = under_test.open()
        expert = bundles.expert(tmp_path / "expert")
        store.put_bundle(expert.folder, expert.digest)
        before = (store.get_bundle(expert.digest) / "seal.json").read_bytes()
        countersign_bundle(expert.folder, generate_key())
        with pytest.raises(errors.ArtifactConflict):
            store.put_bundle(expert.folder, expert.digest)
        assert (under_test.open().get_bundle(expert.digest) / "seal.json").read_bytes() == before

    @pytest.mark.parametrize("name", ["expert.safetensors", "metrics.jsonl", "manifest.json", "seal.json"])
    def test_bit_rot_is_seen_and_healed(
        self, under_test: StoreUnderTest, bundles: Any, tmp_path: Path, name: str
    ) -> None:
        """A flipped bit in any stored file is refused on read; putting a good copy again repairs it."""
        expert = bundles.expert(tmp_path / "expert")
        under_test.open().put_bundle(expert.folder, expert.digest)
        under_test.tamper(expert.digest, name, lambda data: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:])
        with pytest.raises(errors.PackingError):
            under_test.open().get_bundle(expert.digest)
        under_test.open().put_bundle(expert.folder, expert.digest)
        healed = under_test.open().get_bundle(expert.digest)
        assert (healed / name).read_bytes() == (expert.folder / name).read_bytes()

    def test_a_lost_file_is_seen(self, under_test: StoreUnderTest, bundles: Any, tmp_path: Path) -> None:
        """A stored bundle that lost its weights is refused on read and repaired by a put."""
        expert = bundles.expert(tmp_path / "expert")
        under_test.open().put_bundle(expert.folder, expert.digest)
        under_test.tamper(expert.digest, "expert.safetensors", None)
        with pytest.raises(errors.BundleMissingFile):
            under_test.open().get_bundle(expert.digest)
        under_test.open().put_bundle(expert.folder, expert.digest)
        under_test.open().get_bundle(expert.digest)

    def test_what_is_handed_out_is_read_only(
        self, under_test: StoreUnderTest, bundles: Any, tmp_path: Path
    ) -> None:
        """No file of a handed-out bundle has a write bit, and none shares its inode with the source."""
        expert = bundles.expert(tmp_path / "expert")
        store = under_test.open()
        store.put_bundle(expert.folder, expert.digest)
        for file in store.get_bundle(expert.digest).iterdir():
            assert stat.S_IMODE(file.stat().st_mode) & 0o222 == 0
            assert not file.samefile(expert.folder / file.name)

    def test_many_writers_and_readers(self, under_test: StoreUnderTest, bundles: Any, tmp_path: Path) -> None:
        """Eight threads put and get two bundles at once, through one opening and through several."""
        made = [bundles.expert(tmp_path / str(seed), seed=seed) for seed in range(2)]
        stores = [under_test.open() for _ in range(2)]
        failures: list[BaseException] = []
        gate = threading.Barrier(8)

        def work(place: int) -> None:
            try:
                gate.wait(10)
                store, one = stores[place % 2], made[place // 2 % 2]
                store.put_bundle(one.folder, one.digest)
                assert store.has(one.digest)
                check_bundle(store.get_bundle(one.digest), expect_digest=one.digest)
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(place,)) for place in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert failures == []
        assert under_test.open().digests() == tuple(sorted(one.digest for one in made))


class TestDirectoryStore(ArtifactStoreContract):
    """The directory obeys."""

    @pytest.fixture
    def under_test(self, tmp_path: Path) -> StoreUnderTest:
        """A fresh directory."""
        return DirectoryUnderTest(tmp_path / "store")


class TestS3Store(ArtifactStoreContract):
    """The bucket obeys."""

    @pytest.fixture
    def under_test(self, s3_client: Any, tmp_path: Path) -> StoreUnderTest:
        """A fresh bucket."""
        bucket = f"bucket-{os.urandom(6).hex()}"
        s3_client.create_bucket(Bucket=bucket)
        return BucketUnderTest(s3_client, bucket, tmp_path / "caches")
