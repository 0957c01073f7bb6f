# SPDX-License-Identifier: Apache-2.0
"""The seal: who vouches for a bundle's digests.

Two signatures, each over canonical JSON. The owner signs the manifest digest and the file digests. After
its checks, admission countersigns the same with the tenant and the base, so that a bundle admitted for
one tenant or base is not admitted for another. The two messages have different fields, so one signature
can never pass for the other. Knows nothing of files; bundle.py compares digests with bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model_core.errors import (
    DigestMismatch,
    KeyInvalid,
    NotCanonical,
    SealMissing,
    SignatureInvalid,
    UntrustedKey,
)
from model_core.packing.canonical import canonical_bytes, parse_canonical
from model_core.packing.fields import Digest
from model_core.packing.keys import SigningKey, key_id_of, verify_signature
from model_core.packing.manifest import BaseManifest, Manifest

MAX_SEAL_BYTES = 1 << 18

PLATFORM_TENANT = "platform"  # bases belong to the platform itself

Role = Literal["owner", "admission"]


class SealSignature(BaseModel):
    """One signature with the key that made it.

    Attributes:
        role: what the signer vouches for.
        key_id: short name of the key.
        public_key: 64 hex digits.
        signature: 128 hex digits.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    role: Role
    key_id: str = Field(pattern=r"\A[0-9a-f]{16}\z")
    public_key: str = Field(pattern=r"\A[0-9a-f]{64}\z")
    signature: str = Field(pattern=r"\A[0-9a-f]{128}\z")


class Seal(BaseModel):
    """What stands in ``seal.json``.

    Attributes:
        manifest_digest: digest of the manifest's bytes, the bundle's address.
        files: file name → digest, as in the manifest.
        signatures: at most one per role.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    manifest_digest: Digest
    files: dict[str, Digest]
    signatures: Annotated[tuple[SealSignature, ...], Field(max_length=16)] = ()

    def to_bytes(self) -> bytes:
        """The canonical bytes, as they stand in ``seal.json``."""
        return canonical_bytes(self.model_dump(mode="json"))

    def signature(self, role: Role) -> SealSignature | None:
        """The signature of that role, if there is one."""
        return next((one for one in self.signatures if one.role == role), None)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrustedKeys:
    """The public keys that somebody who decides has vouched for; a revoked key is one left out.

    Attributes:
        owners: tenant slug → public keys of that tenant (``platform`` for bases).
        admission: public keys of the platform's admission.
    """

    owners: Mapping[str, frozenset[str]] = field(default_factory=dict)
    admission: frozenset[str] = frozenset()


def make_seal(manifest_digest: str, files: Mapping[str, str], owner_key: SigningKey) -> Seal:
    """Seals digests with the owner's signature."""
    bare = Seal(manifest_digest=manifest_digest, files=dict(files))
    return _with_signature(bare, "owner", owner_key, _owner_message(bare))


def countersign(seal: Seal, admission_key: SigningKey, manifest: Manifest) -> Seal:
    """Adds admission's signature, bound to the manifest's tenant and base; call it after the checks.

    A second call with the same key returns an equal seal.

    Raises:
        SealMissing: the owner has not signed.
        SignatureInvalid: the owner's signature does not verify.
    """
    _check(seal, "owner", _owner_message(seal))
    tenant, base_digest = subject_of(manifest, seal.manifest_digest)
    return _with_signature(seal, "admission", admission_key, _admission_message(seal, tenant, base_digest))


def verify_seal(
    seal: Seal, manifest: Manifest, manifest_digest: str, trusted: TrustedKeys | None = None
) -> None:
    """Checks the seal against a manifest.

    Without trusted keys the owner's signature must be present and every signature must verify: that shows
    the seal is whole, not that anybody known made it. With them both signatures must be present and by
    trusted keys, which is what serving requires.

    Raises:
        DigestMismatch: the seal is for another manifest or other files.
        SealMissing: a required signature is absent.
        SignatureInvalid: a signature does not verify.
        UntrustedKey: a signature by a key outside the trusted ones.
    """
    if seal.manifest_digest != manifest_digest or seal.files != manifest.files:
        raise DigestMismatch("The seal names other digests than the manifest; seal the bundle again.")
    tenant, base_digest = subject_of(manifest, manifest_digest)
    owner = _check(seal, "owner", _owner_message(seal))
    admission = None
    if trusted is not None or seal.signature("admission") is not None:
        admission = _check(seal, "admission", _admission_message(seal, tenant, base_digest))
    if trusted is None:
        return
    if owner.public_key not in trusted.owners.get(tenant, frozenset()):
        raise UntrustedKey(
            f"The owner's signature is by key {owner.key_id}, which is not a trusted key of tenant {tenant}.",
            role="owner",
            key_id=owner.key_id,
            tenant=tenant,
        )
    if admission is None or admission.public_key not in trusted.admission:
        key_id = admission.key_id if admission else ""
        raise UntrustedKey(
            f"The countersignature is by key {key_id}, which is not a trusted admission key.",
            role="admission",
            key_id=key_id,
        )


def parse_seal(data: bytes) -> Seal:
    """Reads ``seal.json``.

    Raises:
        SignatureInvalid: not canonical JSON, fields missing or malformed, or two signatures of one role.
    """
    if len(data) > MAX_SEAL_BYTES:
        raise SignatureInvalid(f"The seal is larger than {MAX_SEAL_BYTES} bytes.")
    try:
        parse_canonical(data)
        seal = Seal.model_validate_json(data, strict=True)
    except (NotCanonical, ValidationError) as error:
        raise SignatureInvalid("The seal cannot be read; seal the bundle again.") from error
    roles = [one.role for one in seal.signatures]
    if len(set(roles)) != len(roles):
        raise SignatureInvalid("The seal holds two signatures of one role; seal the bundle again.")
    return seal


def subject_of(manifest: Manifest, manifest_digest: str) -> tuple[str, str]:
    """Whose bundle it is and which base it is for: (tenant, base digest). A base is its own base."""
    if isinstance(manifest, BaseManifest):
        return PLATFORM_TENANT, manifest_digest
    return manifest.tenant, manifest.base_digest


def _owner_message(seal: Seal) -> bytes:
    return canonical_bytes({"manifest_digest": seal.manifest_digest, "files": seal.files})


def _admission_message(seal: Seal, tenant: str, base_digest: str) -> bytes:
    return canonical_bytes(
        {
            "manifest_digest": seal.manifest_digest,
            "files": seal.files,
            "tenant": tenant,
            "base_digest": base_digest,
        }
    )


def _with_signature(seal: Seal, role: Role, key: SigningKey, message: bytes) -> Seal:
    mine = SealSignature(role=role, key_id=key.key_id, public_key=key.public_key, signature=key.sign(message))
    others = tuple(one for one in seal.signatures if one.role != role)
    return seal.model_copy(update={"signatures": (*others, mine)})


def _check(seal: Seal, role: Role, message: bytes) -> SealSignature:
    """The signature of that role, present and verified."""
    found = seal.signature(role)
    if found is None:
        raise SealMissing(f"The seal lacks the {role}'s signature.", role=role)
    try:
        known_as = key_id_of(found.public_key)
    except KeyInvalid as error:
        raise SignatureInvalid(f"The {role}'s public key is malformed.", role=role) from error
    if known_as != found.key_id or not verify_signature(found.public_key, message, found.signature):
        raise SignatureInvalid(
            f"The {role}'s signature does not verify; the bundle is not what was signed.", role=role
        )
    return found
