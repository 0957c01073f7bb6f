# SPDX-License-Identifier: Apache-2.0
"""Signing keys in files, and the two signatures of a seal."""

from __future__ import annotations

import stat
import threading
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from model_core import errors
from model_core.packing.bundle import check_bundle
from model_core.packing.canonical import canonical_bytes, digest_bytes
from model_core.packing.keys import (
    create_key,
    generate_key,
    key_id_of,
    load_key,
    load_or_create_key,
    verify_signature,
)
from model_core.packing.seal import Seal, TrustedKeys, countersign, make_seal, parse_seal, verify_seal


def test_a_key_survives_its_file(tmp_path: Path) -> None:
    """The file has mode 0600, holds the same pair, and nothing is left beside it."""
    made = create_key(tmp_path / "keys" / "owner.pem")
    assert stat.S_IMODE((tmp_path / "keys" / "owner.pem").stat().st_mode) == 0o600
    assert load_key(tmp_path / "keys" / "owner.pem") == made
    assert [file.name for file in (tmp_path / "keys").iterdir()] == ["owner.pem"]
    assert verify_signature(made.public_key, b"m", load_key(tmp_path / "keys" / "owner.pem").sign(b"m"))
    assert made.key_id == digest_bytes(bytes.fromhex(made.public_key))[7:23]


def test_the_private_half_is_never_shown(tmp_path: Path) -> None:
    """Neither repr nor str of a key holds the private bytes."""
    made = create_key(tmp_path / "k")
    pem_lines = (tmp_path / "k").read_text().splitlines()
    assert pem_lines[1] not in repr(made) + str(made)
    assert "rivate" not in repr(made)


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    """Creating where there is a key is refused and the key stays."""
    made = create_key(tmp_path / "k")
    with pytest.raises(errors.KeyInvalid, match="already"):
        create_key(tmp_path / "k")
    assert load_or_create_key(tmp_path / "k") == made


def test_two_starters_agree_on_one_key(tmp_path: Path) -> None:
    """Of many that load or create at once, all end with the same pair."""
    found: list[str] = []
    gate = threading.Barrier(6)

    def start() -> None:
        gate.wait(10)
        found.append(load_or_create_key(tmp_path / "k").public_key)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 6
    assert len(set(found)) == 1


def _other_kind() -> bytes:
    return X25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize("text", [b"", b"hello", b"-----BEGIN PRIVATE KEY-----\nAAAA\n", _other_kind()])
def test_what_is_no_key(tmp_path: Path, text: bytes) -> None:
    """Other files and other kinds of keys are refused."""
    (tmp_path / "k").write_bytes(text)
    (tmp_path / "k").chmod(0o600)
    with pytest.raises(errors.KeyInvalid):
        load_key(tmp_path / "k")


def test_a_key_that_others_can_read(tmp_path: Path) -> None:
    """A key of mode 0640 is refused, and so are a link, a folder and an absent file."""
    create_key(tmp_path / "k")
    (tmp_path / "link").symlink_to(tmp_path / "k")
    for name in ("link", "absent", "."):
        with pytest.raises(errors.KeyInvalid):
            load_key(tmp_path / name)
    (tmp_path / "k").chmod(0o640)
    with pytest.raises(errors.KeyInvalid, match="Others can read"):
        load_key(tmp_path / "k")


def test_signatures() -> None:
    """A signature holds for its message and key only; malformed input is not a signature."""
    key, other = generate_key(), generate_key()
    signature = key.sign(b"message")
    assert verify_signature(key.public_key, b"message", signature)
    assert not verify_signature(key.public_key, b"massage", signature)
    assert not verify_signature(other.public_key, b"message", signature)
    for bad in ("", "zz", signature[:-2], signature + "00", signature.upper()):
        assert not verify_signature(key.public_key, b"message", bad)
    assert not verify_signature("00", b"message", signature)
    with pytest.raises(errors.KeyInvalid):
        key_id_of("xyz")


@pytest.fixture
def sealed(bundles: Any) -> tuple[Any, str, Seal]:
    """A manifest, its digest and a seal with both signatures."""
    manifest = bundles.expert_manifest({"expert.safetensors": b"x", "metrics.jsonl": b"y"})
    digest = manifest.digest
    seal = make_seal(digest, manifest.files, bundles.owner)
    return manifest, digest, countersign(seal, bundles.admission, manifest)


def test_a_whole_seal(bundles: Any, sealed: tuple[Any, str, Seal]) -> None:
    """Both signatures verify, survive their bytes, and a second countersigning changes nothing."""
    manifest, digest, seal = sealed
    verify_seal(parse_seal(seal.to_bytes()), manifest, digest, bundles.trusted())
    assert countersign(seal, bundles.admission, manifest) == seal


def test_signed_bytes_are_those_of_the_format(bundles: Any, sealed: tuple[Any, str, Seal]) -> None:
    """Anyone can verify with the format alone: canonical JSON of the named fields."""
    manifest, digest, seal = sealed
    message = {"manifest_digest": digest, "files": manifest.files}
    owner, admission = seal.signatures
    assert verify_signature(bundles.owner.public_key, canonical_bytes(message), owner.signature)
    more = message | {"tenant": "acme", "base_digest": manifest.base_digest}
    assert verify_signature(bundles.admission.public_key, canonical_bytes(more), admission.signature)


@pytest.mark.parametrize("role", ["owner", "admission"])
def test_a_missing_signature(bundles: Any, sealed: tuple[Any, str, Seal], role: str) -> None:
    """Serving needs both signatures."""
    manifest, digest, seal = sealed
    left = seal.model_copy(update={"signatures": tuple(s for s in seal.signatures if s.role != role)})
    with pytest.raises(errors.SealMissing) as caught:
        verify_seal(left, manifest, digest, bundles.trusted())
    assert caught.value.facts["role"] == role


@pytest.mark.parametrize("role", ["owner", "admission"])
def test_a_flipped_signature(bundles: Any, sealed: tuple[Any, str, Seal], role: str) -> None:
    """One wrong digit in either signature is seen, with or without trusted keys."""
    manifest, digest, seal = sealed
    flipped = tuple(
        one.model_copy(update={"signature": ("0" if one.signature[0] != "0" else "1") + one.signature[1:]})
        if one.role == role
        else one
        for one in seal.signatures
    )
    for trusted in (None, bundles.trusted()):
        with pytest.raises(errors.SignatureInvalid):
            verify_seal(seal.model_copy(update={"signatures": flipped}), manifest, digest, trusted)


def test_signatures_cannot_change_roles(bundles: Any, sealed: tuple[Any, str, Seal]) -> None:
    """An owner's signature offered as admission's does not verify, even by a key trusted for both."""
    manifest, digest, seal = sealed
    owner = seal.signatures[0]
    forged = seal.model_copy(update={"signatures": (owner, owner.model_copy(update={"role": "admission"}))})
    both = TrustedKeys(
        owners={"acme": frozenset({bundles.owner.public_key})},
        admission=frozenset({bundles.owner.public_key}),
    )
    with pytest.raises(errors.SignatureInvalid):
        verify_seal(forged, manifest, digest, both)


@pytest.mark.parametrize(
    "change",
    [{"tenant": "other"}, {"base_digest": "sha256:" + "1" * 64}],
)
def test_admission_is_for_one_tenant_and_base(
    bundles: Any, sealed: tuple[Any, str, Seal], change: dict[str, str]
) -> None:
    """The countersignature does not carry over to another tenant or base, digests being equal."""
    manifest, digest, seal = sealed
    with pytest.raises(errors.SignatureInvalid):
        verify_seal(seal, manifest.model_copy(update=change), digest, bundles.trusted("acme", "other"))


def test_untrusted_keys(bundles: Any, sealed: tuple[Any, str, Seal]) -> None:
    """Keys of another tenant, no longer trusted (revoked) or swapped between roles are refused by role."""
    manifest, digest, seal = sealed
    trusted = bundles.trusted()
    cases = {
        "owner": [
            TrustedKeys(owners={}, admission=trusted.admission),
            TrustedKeys(owners={"other": trusted.owners["acme"]}, admission=trusted.admission),
            TrustedKeys(owners={"acme": trusted.admission}, admission=trusted.admission),
        ],
        "admission": [
            TrustedKeys(owners=trusted.owners),
            TrustedKeys(owners=trusted.owners, admission=trusted.owners["acme"]),
        ],
    }
    for role, wrong in cases.items():
        for keys in wrong:
            with pytest.raises(errors.UntrustedKey) as caught:
                verify_seal(seal, manifest, digest, keys)
            assert caught.value.facts["role"] == role


def test_a_seal_for_other_digests(bundles: Any, sealed: tuple[Any, str, Seal]) -> None:
    """A valid seal of another manifest or other files does not cover this one."""
    manifest, digest, seal = sealed
    for change in ({"manifest_digest": digest_bytes(b"")}, {"files": {**seal.files, "more.json": digest}}):
        with pytest.raises(errors.DigestMismatch):
            verify_seal(seal.model_copy(update=change), manifest, digest, bundles.trusted())


def test_malformed_seals(sealed: tuple[Any, str, Seal]) -> None:
    """Bytes that are no seal, and two signatures of one role, are refused."""
    seal = sealed[2]
    doubled = seal.model_copy(update={"signatures": (*seal.signatures, seal.signatures[0])})
    for data in (
        b"",
        b"[]",
        b"{}",
        b"\x80\x04K\x01.",
        doubled.to_bytes(),
        seal.to_bytes() + b" ",
        b"0" * (1 << 19),
    ):
        with pytest.raises(errors.SignatureInvalid):
            parse_seal(data)


def test_countersigning_needs_the_owner(bundles: Any, sealed: tuple[Any, str, Seal]) -> None:
    """Admission does not sign what no owner signed."""
    manifest, _, seal = sealed
    with pytest.raises(errors.SealMissing):
        countersign(seal.model_copy(update={"signatures": ()}), bundles.admission, manifest)


def test_an_owner_cannot_seal_for_another_tenant(bundles: Any, tmp_path: Path) -> None:
    """A bundle that names tenant acme, sealed by a key trusted only for other, is not served."""
    expert = bundles.expert(tmp_path / "expert", tenant="acme")
    check_bundle(expert.folder, trusted=bundles.trusted("acme"))
    with pytest.raises(errors.UntrustedKey):
        check_bundle(expert.folder, trusted=bundles.trusted("other"))
