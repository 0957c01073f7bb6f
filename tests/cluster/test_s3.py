# SPDX-License-Identifier: Apache-2.0
"""What only the S3 store promises: its commit point, its local cache, and what its errors say."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from cluster.s3 import S3Store, connect
from model_core import errors
from model_core.packing.bundle import countersign_bundle
from model_core.packing.keys import generate_key


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The address of an S3 server on loopback."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def client(endpoint: str) -> Any:
    """A client of it."""
    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)


@pytest.fixture
def bucket(client: Any) -> str:
    """A fresh bucket."""
    name = f"bucket-{os.urandom(6).hex()}"
    client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def store(client: Any, bucket: str, tmp_path: Path) -> S3Store:
    """A store in the bucket, without a prefix."""
    return S3Store(bucket=bucket, cache=tmp_path / "cache", client=client)


class Watched:
    """A client that records its calls and can stop at one, as a killed writer does."""

    def __init__(self, client: Any, *, stop_at: str = "") -> None:
        self.client, self.stop_at = client, stop_at
        self.calls: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(self.client, name)

        def call(**given: Any) -> Any:
            key = given.get("Key", "")
            if name == "put_object" and self.stop_at and key.endswith(self.stop_at):
                raise KeyboardInterrupt
            self.calls.append((name, key.rpartition("/")[2]))
            return real(**given)

        return real if name == "get_paginator" else call


def _keys(client: Any, bucket: str) -> set[str]:
    return {item["Key"] for item in client.list_objects_v2(Bucket=bucket).get("Contents", [])}


def test_the_seal_comes_last(client: Any, bucket: str, bundles: Any, tmp_path: Path) -> None:
    """The seal is the last object written; until then nobody sees the bundle."""
    expert = bundles.expert(tmp_path / "bundle")
    watched = Watched(client)
    S3Store(bucket=bucket, cache=tmp_path / "cache", client=watched).put_bundle(expert.folder, expert.digest)
    written = [name for call, name in watched.calls if call == "put_object"]
    assert written[-1] == "seal.json"
    assert sorted(written) == ["expert.safetensors", "manifest.json", "metrics.jsonl", "seal.json"]
    home = expert.digest.replace(":", "-")
    assert _keys(client, bucket) == {f"bundles/{home}/{name}" for name in written}


@pytest.mark.parametrize("stop_at", ["expert.safetensors", "manifest.json", "seal.json"])
def test_a_writer_that_dies(client: Any, bucket: str, bundles: Any, tmp_path: Path, stop_at: str) -> None:
    """Wherever a writer stops, nothing is visible, and another with another seal completes the bundle."""
    expert = bundles.expert(tmp_path / "bundle")
    dying = S3Store(bucket=bucket, cache=tmp_path / "one", client=Watched(client, stop_at=stop_at))
    with pytest.raises(KeyboardInterrupt):
        dying.put_bundle(expert.folder, expert.digest)
    store = S3Store(bucket=bucket, cache=tmp_path / "two", client=client)
    assert not store.has(expert.digest)
    assert store.digests() == ()
    with pytest.raises(errors.ArtifactNotFound):
        store.get_bundle(expert.digest)
    countersign_bundle(expert.folder, generate_key())
    store.put_bundle(expert.folder, expert.digest)
    assert store.digests() == (expert.digest,)
    found = store.get_bundle(expert.digest)
    assert (found / "seal.json").read_bytes() == (expert.folder / "seal.json").read_bytes()


def test_the_slower_of_two_writers(client: Any, bucket: str, bundles: Any, tmp_path: Path) -> None:
    """A seal that appeared since the look is not overwritten: an equal one is fine, another is refused."""
    expert = bundles.expert(tmp_path / "bundle")
    shutil.copytree(expert.folder, tmp_path / "other")
    countersign_bundle(tmp_path / "other", generate_key())
    for place, (folder, refused) in enumerate([(expert.folder, False), (tmp_path / "other", True)]):
        slow = Watched(client)
        slow_store = S3Store(bucket=bucket, cache=tmp_path / f"slow{place}", client=slow)
        first = S3Store(bucket=bucket, cache=tmp_path / f"first{place}", client=client)
        real_head = slow_store._head

        def late(key: str, real: Any = real_head, first: S3Store = first) -> Any:
            first.put_bundle(expert.folder, expert.digest)  # between the look for a seal and the commit
            return real(key)

        slow_store._head = late  # type: ignore[method-assign]
        if refused:
            with pytest.raises(errors.ArtifactConflict):
                slow_store.put_bundle(folder, expert.digest)
        else:
            slow_store.put_bundle(folder, expert.digest)
        key = f"bundles/{expert.digest.replace(':', '-')}/seal.json"
        stored = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        assert stored == (expert.folder / "seal.json").read_bytes()
        client.delete_object(Bucket=bucket, Key=key)


def test_the_second_get_is_local(client: Any, bucket: str, bundles: Any, tmp_path: Path) -> None:
    """What was fetched once is served from the verified local copy without asking the server."""
    expert = bundles.expert(tmp_path / "bundle")
    watched = Watched(client)
    store = S3Store(bucket=bucket, cache=tmp_path / "cache", client=watched)
    store.put_bundle(expert.folder, expert.digest)
    first = store.get_bundle(expert.digest)
    count = len(watched.calls)
    assert store.get_bundle(expert.digest) == first
    assert len(watched.calls) == count


def test_a_bad_local_copy_is_fetched_anew(store: S3Store, bundles: Any, tmp_path: Path) -> None:
    """Damage to the cache is seen and repaired from the server."""
    expert = bundles.expert(tmp_path / "bundle")
    store.put_bundle(expert.folder, expert.digest)
    weights = store.get_bundle(expert.digest) / "expert.safetensors"
    weights.chmod(0o644)
    weights.write_bytes(b"garbage")
    again = store.get_bundle(expert.digest) / "expert.safetensors"
    assert again.read_bytes() == (expert.folder / "expert.safetensors").read_bytes()


def test_strange_objects_are_never_fetched(
    client: Any, store: S3Store, bucket: str, bundles: Any, tmp_path: Path
) -> None:
    """Objects beside a bundle that its manifest does not name stay where they are."""
    expert = bundles.expert(tmp_path / "bundle")
    store.put_bundle(expert.folder, expert.digest)
    home = f"bundles/{expert.digest.replace(':', '-')}"
    client.put_object(Bucket=bucket, Key=f"{home}/model.pkl", Body=b"\x80\x04K\x01.")
    client.put_object(Bucket=bucket, Key="bundles/sha256-zz/seal.json", Body=b"{}")
    assert store.digests() == (expert.digest,)
    assert not (store.get_bundle(expert.digest) / "model.pkl").exists()


def test_another_manifest_is_not_even_parsed(client: Any, bucket: str, bundles: Any, tmp_path: Path) -> None:
    """A manifest swapped in the bucket is refused by its digest, before anything it names is fetched."""
    one, two = (bundles.expert(tmp_path / str(seed), seed=seed) for seed in (1, 2))
    watched = Watched(client)
    store = S3Store(bucket=bucket, cache=tmp_path / "cache", client=watched)
    store.put_bundle(one.folder, one.digest)
    for name in ("manifest.json", "seal.json"):
        key = f"bundles/{one.digest.replace(':', '-')}/{name}"
        client.put_object(Bucket=bucket, Key=key, Body=(two.folder / name).read_bytes())
    watched.calls.clear()
    with pytest.raises(errors.DigestMismatch):
        store.get_bundle(one.digest)
    assert watched.calls == [("get_object", "seal.json"), ("get_object", "manifest.json")]


def test_a_huge_object_is_not_downloaded(
    client: Any, store: S3Store, bucket: str, bundles: Any, tmp_path: Path
) -> None:
    """An object above the limit of its kind is refused by its announced length."""
    expert = bundles.expert(tmp_path / "bundle")
    store.put_bundle(expert.folder, expert.digest)
    key = f"bundles/{expert.digest.replace(':', '-')}/manifest.json"
    client.put_object(Bucket=bucket, Key=key, Body=b" " * (2 << 20))
    with pytest.raises(errors.BundleTooLarge):
        store.get_bundle(expert.digest)


def test_two_prefixes_are_two_stores(client: Any, bucket: str, bundles: Any, tmp_path: Path) -> None:
    """Stores under different prefixes of a bucket do not see each other's bundles."""
    expert = bundles.expert(tmp_path / "bundle")
    one = S3Store(bucket=bucket, cache=tmp_path / "one", prefix="/a/b/", client=client)
    two = S3Store(bucket=bucket, cache=tmp_path / "two", prefix="a", client=client)
    one.put_bundle(expert.folder, expert.digest)
    assert one.digests() == (expert.digest,)
    assert two.digests() == ()


def test_connecting_by_address(
    endpoint: str, bucket: str, bundles: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store made from an address and boto3's own credentials works."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    expert = bundles.expert(tmp_path / "bundle")
    store = S3Store(bucket=bucket, cache=tmp_path / "cache", endpoint_url=endpoint, region="us-east-1")
    store.put_bundle(expert.folder, expert.digest)
    store.get_bundle(expert.digest)


def test_refusals_of_the_server(client: Any, tmp_path: Path, bundles: Any) -> None:
    """A missing bucket and a wrong address are typed refusals that do not name the server."""
    expert = bundles.expert(tmp_path / "bundle")
    store = S3Store(bucket="no-such-bucket", cache=tmp_path / "cache", client=client)
    for ask in (
        store.digests,
        lambda: store.has(expert.digest),
        lambda: store.put_bundle(expert.folder, expert.digest),
    ):
        with pytest.raises(errors.StoreUnavailable) as caught:
            ask()
        assert caught.value.facts["reason"] == "NoSuchBucket"
        assert "127.0.0.1" not in caught.value.sentence
    with pytest.raises(errors.StoreUnavailable):
        connect(endpoint_url="no address", region="us-east-1")
