# SPDX-License-Identifier: Apache-2.0
"""The artifact store in an S3 bucket, with a verified local copy of what was read.

An object store has no rename, so a bundle counts as stored when its seal is: all other objects are fixed
by the manifest's digest and come first, the seal comes last and only if there is none (a conditional
write). Of several writers one seal wins, and a writer that dies in between leaves objects that nobody
sees and that the next writer of the same bundle completes. The server must honour ``If-None-Match: *``
on writes (AWS S3 does; so do MinIO, Ceph and R2 in current releases).

Knows nothing of who may read what. Credentials come from boto3's own chain and are never logged.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError

from cluster.artifacts import RemovingDirectoryStore
from model_core.errors import (
    ArtifactConflict,
    ArtifactNotFound,
    BundleMissingFile,
    BundleTooLarge,
    DigestMismatch,
    PackingError,
    StoreUnavailable,
)
from model_core.packing.bundle import BundleLimits, CheckedBundle, check_bundle
from model_core.packing.canonical import check_digest, digest_bytes, is_digest
from model_core.packing.files import copy_plain_file, open_plain_file, write_new_file
from model_core.packing.manifest import MANIFEST_FILE, MAX_MANIFEST_BYTES, SEAL_FILE, parse_manifest
from model_core.packing.seal import MAX_SEAL_BYTES, Seal, parse_seal, verify_seal
from model_core.packing.store import disk_errors

_ABSENT = {"404", "NoSuchKey", "NotFound"}
_TAKEN = {"409", "412", "PreconditionFailed", "ConditionalRequestConflict"}
_ONE_PUT_BYTES = 1 << 30  # S3 takes 5 GiB in one request; above this, parts can be retried one by one
_CHUNK_BYTES = 1 << 20


def connect(*, endpoint_url: str | None = None, region: str | None = None) -> Any:
    """Makes a client with bounded waits; other servers than AWS are named by ``endpoint_url``.

    Raises:
        StoreUnavailable: boto3 cannot make a client from these settings.
    """
    style = {"addressing_style": "path"} if endpoint_url else {}
    config = Config(
        retries={"mode": "standard", "max_attempts": 4},
        connect_timeout=5,
        read_timeout=60,
        s3=style,  # type: ignore[arg-type,unused-ignore]
    )
    try:
        with server_errors():
            return boto3.client("s3", endpoint_url=endpoint_url, region_name=region, config=config)
    except ValueError as error:  # how botocore refuses an address
        raise StoreUnavailable(
            "The artifact store's address is not a URL; write it as https://host:port.", reason="endpoint"
        ) from error


class S3Store:
    """An ``ArtifactStore`` in a bucket; see the protocol for what it promises.

    Reading goes through a ``DirectoryStore`` on the local disk, which verifies what arrived before it
    becomes visible and again whenever its files changed; a copy that has gone bad is fetched anew. Objects
    that the manifest does not name are never fetched. A local copy outlives the object in the bucket.

    Args:
        bucket: exists already.
        cache: directory of the local copies; made if absent.
        prefix: put before every key, without slashes at its ends; empty for none.
        endpoint_url: of a server other than AWS.
        region: of the bucket, where boto3 cannot tell.
        client: a client made elsewhere; then ``endpoint_url`` and ``region`` are not used.

    Raises:
        StoreUnavailable: the local directory or the client cannot be made.
    """

    def __init__(
        self,
        *,
        bucket: str,
        cache: Path,
        prefix: str = "",
        endpoint_url: str | None = None,
        region: str | None = None,
        client: Any = None,
    ) -> None:
        self._client = client if client is not None else connect(endpoint_url=endpoint_url, region=region)
        self._bucket = bucket
        self._root = f"{prefix.strip('/')}/bundles/".lstrip("/")
        self._cache = RemovingDirectoryStore(cache)
        self._limits = BundleLimits()

    def put_bundle(self, folder: Path, expect_digest: str) -> str:
        """See ``ArtifactStore.put_bundle``."""
        check_digest(expect_digest)
        with self._cache.stage() as draft:
            # What goes up is our own verified copy: the folder offered may change under us.
            with disk_errors():
                checked = check_bundle(folder, expect_digest=expect_digest)
                for name in (*checked.manifest.files, MANIFEST_FILE, SEAL_FILE):
                    copy_plain_file(folder / name, draft / name)
                checked = check_bundle(draft, expect_digest=expect_digest)
            stored = self._stored_seal(checked)
            if stored is not None and stored != checked.seal:
                raise _conflict(expect_digest)
            for name, digest in {**checked.manifest.files, MANIFEST_FILE: expect_digest}.items():
                self._upload(draft / name, self._key(expect_digest, name), digest)
            if stored is None:
                self._commit(checked)
        return expect_digest

    def get_bundle(self, digest: str) -> Path:
        """See ``ArtifactStore.get_bundle``."""
        with contextlib.suppress(PackingError):  # absent or gone bad on the local disk: the server has it
            return self._cache.get_bundle(check_digest(digest))
        with self._cache.stage() as draft:
            self._download(check_digest(digest), draft)
            self._cache.adopt(draft, digest)
        return self._cache.get_bundle(digest)

    def has(self, digest: str) -> bool:
        """See ``ArtifactStore.has``."""
        key = self._key(digest, SEAL_FILE)
        with server_errors():
            # A listing, since the answer to a HEAD has no body: it cannot tell no object from no bucket.
            found = self._client.list_objects_v2(Bucket=self._bucket, Prefix=key, MaxKeys=1)
        return any(item["Key"] == key for item in found.get("Contents", []))

    def digests(self) -> tuple[str, ...]:
        """See ``ArtifactStore.digests``."""
        found: set[str] = set()
        with server_errors():
            lister = self._client.get_paginator("list_objects_v2")
            for page in lister.paginate(Bucket=self._bucket, Prefix=self._root):
                for item in page.get("Contents", []):
                    home, _, name = item["Key"].removeprefix(self._root).partition("/")
                    if name == SEAL_FILE:
                        found.add(home.replace("-", ":", 1))
        return tuple(sorted(filter(is_digest, found)))

    def remove_bundle(self, digest: str) -> bool:
        """See ``RemovingStore.remove_bundle``. A bucket with versions keeps those of what is removed."""
        prefix = self._key(digest, "")
        cached = self._cache.remove_bundle(digest)
        keys = []
        with server_errors():
            # The seal first: without it nobody sees a bundle, whatever happens next.
            self._client.delete_object(Bucket=self._bucket, Key=self._key(digest, SEAL_FILE))
            lister = self._client.get_paginator("list_objects_v2")
            for page in lister.paginate(Bucket=self._bucket, Prefix=prefix):
                keys += [item["Key"] for item in page.get("Contents", [])]
            for key in keys:
                self._client.delete_object(Bucket=self._bucket, Key=key)
        return cached or bool(keys)

    def _commit(self, checked: CheckedBundle) -> None:
        """Writes the seal if there is none: the one moment at which the bundle becomes visible."""
        key = self._key(checked.digest, SEAL_FILE)
        with server_errors():
            try:
                self._client.put_object(
                    Bucket=self._bucket, Key=key, Body=checked.seal.to_bytes(), IfNoneMatch="*"
                )
            except ClientError as error:
                if _code(error) not in _TAKEN:
                    raise
                if self._stored_seal(checked) != checked.seal:
                    raise _conflict(checked.digest) from error

    def _stored_seal(self, checked: CheckedBundle) -> Seal | None:
        """The seal in the bucket; a damaged one is removed, so that a good one can be written."""
        key = self._key(checked.digest, SEAL_FILE)
        data = self._read(key, MAX_SEAL_BYTES)
        if data is None:
            return None
        try:
            seal = parse_seal(data)
            verify_seal(seal, checked.manifest, checked.digest)
        except PackingError:
            with server_errors():
                self._client.delete_object(Bucket=self._bucket, Key=key)
            return None
        return seal

    def _upload(self, path: Path, key: str, digest: str) -> None:
        """Uploads a file unless the server already has these bytes by its own checksum."""
        checksum = base64.b64encode(bytes.fromhex(digest.removeprefix("sha256:"))).decode()
        with disk_errors(), open_plain_file(path, self._limits.weights_bytes) as (stream, size_bytes):
            head = self._head(key)
            if head and head.get("ChecksumSHA256") == checksum and head["ContentLength"] == size_bytes:
                return
            with server_errors():
                if size_bytes <= _ONE_PUT_BYTES:
                    self._client.put_object(
                        Bucket=self._bucket, Key=key, Body=stream, ChecksumSHA256=checksum
                    )
                else:
                    self._client.upload_fileobj(
                        stream, self._bucket, key, ExtraArgs={"ChecksumAlgorithm": "SHA256"}
                    )

    def _download(self, digest: str, draft: Path) -> None:
        """Fetches the objects that the manifest names; the caller verifies them."""
        seal = self._read(self._key(digest, SEAL_FILE), MAX_SEAL_BYTES)
        if seal is None:
            raise ArtifactNotFound("The store holds no bundle of that digest.", digest=digest)
        manifest_bytes = self._read(self._key(digest, MANIFEST_FILE), MAX_MANIFEST_BYTES)
        if manifest_bytes is None:
            raise BundleMissingFile(f"The stored bundle lacks {MANIFEST_FILE}.", file=MANIFEST_FILE)
        if digest_bytes(manifest_bytes) != digest:  # before it is parsed: it says what to fetch
            raise DigestMismatch("The stored manifest is not the one that the digest names.", expected=digest)
        with disk_errors():
            write_new_file(draft / SEAL_FILE, seal)
            write_new_file(draft / MANIFEST_FILE, manifest_bytes)
        for name in parse_manifest(manifest_bytes).files:
            is_weights = name.endswith(".safetensors")
            limit_bytes = self._limits.weights_bytes if is_weights else self._limits.side_file_bytes
            with disk_errors(), (draft / name).open("xb") as out:
                if not self._copy(self._key(digest, name), out, limit_bytes):
                    raise BundleMissingFile(f"The stored bundle lacks {name}.", file=name)

    def _read(self, key: str, limit_bytes: int) -> bytes | None:
        """A small object whole; None if there is none."""
        with server_errors():
            body = self._open(key, limit_bytes)
            if body is None:
                return None
            with contextlib.closing(body):
                return bytes(body.read(limit_bytes))

    def _copy(self, key: str, out: BinaryIO, limit_bytes: int) -> bool:
        """Copies an object into a file, never more than the limit; False if there is none."""
        with server_errors():
            body = self._open(key, limit_bytes)
            if body is None:
                return False
            with contextlib.closing(body):
                for piece in body.iter_chunks(_CHUNK_BYTES):
                    out.write(piece)
        return True

    def _open(self, key: str, limit_bytes: int) -> Any:
        """The body of an object, whose announced length (which boto3 enforces) is within the limit."""
        try:
            answer = self._client.get_object(Bucket=self._bucket, Key=key)
        except ClientError as error:
            if _code(error) in _ABSENT:
                return None
            raise
        if answer["ContentLength"] > limit_bytes:
            answer["Body"].close()
            name = key.rpartition("/")[2]
            raise BundleTooLarge(f"{name} is larger than the limit of {limit_bytes} bytes.", file=name)
        return answer["Body"]

    def _head(self, key: str) -> dict[str, Any] | None:
        with server_errors():
            try:
                return dict(self._client.head_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED"))
            except ClientError as error:
                if _code(error) in _ABSENT:
                    return None
                raise

    def _key(self, digest: str, name: str) -> str:
        return f"{self._root}{check_digest(digest).replace(':', '-')}/{name}"


@contextlib.contextmanager
def server_errors() -> Iterator[None]:
    """Turns boto3's errors into ``StoreUnavailable``, without the addresses and names in their texts."""
    try:
        yield
    except (ClientError, BotoCoreError, Boto3Error) as error:
        reason = _code(error) if isinstance(error, ClientError) else type(error).__name__
        remedy = "check its address and rights and try again"
        if isinstance(error, NoCredentialsError):
            # Not from the environment: every process of the cluster would inherit it.
            remedy = "put the keys into ~/.aws/credentials (mode 0600), or give the machine a role"
        raise StoreUnavailable(
            f"The artifact store's server failed ({reason}); {remedy}.",
            reason=reason,
        ) from error


def _code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", "unknown"))


def _conflict(digest: str) -> ArtifactConflict:
    return ArtifactConflict(
        "This bundle is stored with another seal; a stored bundle never changes.", digest=digest
    )
