# SPDX-License-Identifier: Apache-2.0
"""Signing keys: Ed25519 pairs that live in files only their owner can read.

Knows nothing of whose key it is or whether it is still trusted: callers pass in the keys they trust, as
full public keys, because a key id is too short to stand for one.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from model_core.errors import KeyInvalid
from model_core.packing.ids import new_id

_PUBLIC_BYTES = 32
_SIGNATURE_BYTES = 64
_MAX_KEY_FILE_BYTES = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class SigningKey:
    """One Ed25519 pair. Its text form never shows the private half.

    Attributes:
        public_key: the public half, 64 hex digits.
    """

    public_key: str
    _private: Ed25519PrivateKey = field(repr=False, compare=False)

    @property
    def key_id(self) -> str:
        """The short name of the public half; for people and look-ups, never for trust."""
        return key_id_of(self.public_key)

    def sign(self, message: bytes) -> str:
        """The signature of the message, 128 hex digits; the same message gives the same bytes."""
        return self._private.sign(message).hex()


def key_id_of(public_key: str) -> str:
    """The first 16 hex digits of the SHA-256 of the public key's bytes.

    Raises:
        KeyInvalid: not 64 hex digits.
    """
    return hashlib.sha256(_public_bytes(public_key)).hexdigest()[:16]


def verify_signature(public_key: str, message: bytes, signature: str) -> bool:
    """Whether the signature is by that key over that message; malformed input is simply not."""
    try:
        raw = bytes.fromhex(signature)
        if len(raw) != _SIGNATURE_BYTES or raw.hex() != signature:
            return False
        Ed25519PublicKey.from_public_bytes(_public_bytes(public_key)).verify(raw, message)
    except (InvalidSignature, KeyInvalid, ValueError, TypeError, UnsupportedAlgorithm):
        return False
    return True


def generate_key() -> SigningKey:
    """Makes a pair that is kept nowhere."""
    return _wrap(Ed25519PrivateKey.generate())


def create_key(path: Path) -> SigningKey:
    """Makes a pair and keeps it in a new file of mode 0600.

    The file appears complete or not at all, also when the machine stops in between.

    Raises:
        KeyInvalid: the file exists (keys are never overwritten) or cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    text = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    draft = path.with_name(f".{path.name}.{new_id('draft')}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        with os.fdopen(handle, "wb") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        # A link, unlike a rename, fails when the name is taken: of two creators one wins and one is told.
        os.link(draft, path)
    except FileExistsError as error:
        raise KeyInvalid(
            f"There is a key at {path.name} already; load it or choose another name.", file=path.name
        ) from error
    except OSError as error:
        raise KeyInvalid(f"The key file {path.name} cannot be written.", file=path.name) from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    return _wrap(private)


def load_key(path: Path) -> SigningKey:
    """Reads a pair from its file.

    Raises:
        KeyInvalid: no such file, not a plain file, readable by others, or not an Ed25519 key.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(handle, "rb") as stream:
            status = os.fstat(stream.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise KeyInvalid(f"{path.name} is not a plain file.", file=path.name)
            if stat.S_IMODE(status.st_mode) & 0o077:
                raise KeyInvalid(
                    f"Others can read the key file {path.name}; consider the key known and make a new one.",
                    file=path.name,
                )
            text = stream.read(_MAX_KEY_FILE_BYTES)
    except OSError as error:
        raise KeyInvalid(f"The key file {path.name} cannot be read.", file=path.name) from error
    try:
        private = serialization.load_pem_private_key(text, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise KeyInvalid(f"{path.name} does not hold an unencrypted PEM key.", file=path.name) from error
    if not isinstance(private, Ed25519PrivateKey):
        raise KeyInvalid(f"{path.name} holds a key of another kind than Ed25519.", file=path.name)
    return _wrap(private)


def load_or_create_key(path: Path) -> SigningKey:
    """Reads the pair, or makes it where there is none; safe when several processes start at once.

    Raises:
        KeyInvalid: the file is there but cannot be used.
    """
    if not path.is_symlink() and not path.exists():
        with contextlib.suppress(KeyInvalid):  # somebody else may have been first: then theirs is the key
            return create_key(path)
    return load_key(path)


def _wrap(private: Ed25519PrivateKey) -> SigningKey:
    return SigningKey(public_key=private.public_key().public_bytes_raw().hex(), _private=private)


def _public_bytes(public_key: str) -> bytes:
    try:
        raw = bytes.fromhex(public_key)
    except (ValueError, TypeError) as error:
        raise KeyInvalid("A public key is 64 lower-case hex digits.") from error
    if len(raw) != _PUBLIC_BYTES or raw.hex() != public_key:
        raise KeyInvalid("A public key is 64 lower-case hex digits.")
    return raw
