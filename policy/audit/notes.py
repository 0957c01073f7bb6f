# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as text: signed notes that other tools read too.

The format is that of C2SP ``tlog-checkpoint`` over ``signed-note``: origin, size of the tree, its root in
base64, further lines (here the audit chain's length and head, and the time), an empty line, and one line for
each signature. The tree is the one over the seals, and the seals cover the audit chain as they cover every
other row. A file may hold many notes, one after another. Nothing here knows where the numbers came from.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from model_core.packing.keys import SigningKey, verify_signature
from policy.errors import BrokenProof

ORIGIN: Final = "expert-marketplace.audit"
_ED25519: Final = b"\x01"
_DASH: Final = "\u2014 "


@dataclass(frozen=True, kw_only=True, slots=True)
class Note:
    """What a checkpoint states.

    Attributes:
        seals: leaves of the tree.
        root: of the tree, 64 hex digits.
        length: records of the audit chain.
        head: leaf of its last record.
        at_us: when it was stated.
        text: the signed lines.
        signature: 128 hex digits.
        key_hash: the four bytes by which the signature names its key, 8 hex digits.
    """

    seals: int
    root: str
    length: int
    head: str
    at_us: int
    text: str = ""
    signature: str = ""
    key_hash: str = ""

    def is_by(self, public_key: str) -> bool:
        """Whether the note is signed by a key."""
        known = self.key_hash == key_hash(public_key)
        return known and verify_signature(public_key, self.text.encode(), self.signature)


def key_hash(public_key: str, origin: str = ORIGIN) -> str:
    """How signatures of a key name it, 8 hex digits."""
    named = origin.encode() + b"\n" + _ED25519 + bytes.fromhex(public_key)
    return hashlib.sha256(named).hexdigest()[:8]


def verifier_key(public_key: str, origin: str = ORIGIN) -> str:
    """The key in the form in which tools for signed notes take it."""
    encoded = base64.b64encode(_ED25519 + bytes.fromhex(public_key)).decode()
    return f"{origin}+{key_hash(public_key, origin)}+{encoded}"


def write_note(note: Note, key: SigningKey) -> str:
    """Signs a checkpoint."""
    root = base64.b64encode(bytes.fromhex(note.root)).decode()
    lines = [ORIGIN, str(note.seals), root, f"audit {note.length} {note.head}", f"at_us {note.at_us}", ""]
    text = "\n".join(lines)
    signed = bytes.fromhex(key_hash(key.public_key) + key.sign(text.encode()))
    return f"{text}\n{_DASH}{ORIGIN} {base64.b64encode(signed).decode()}\n"


def read_notes(text: str, trusted: Collection[str]) -> list[Note]:
    """Reads every note of a file, and checks that each is signed.

    Args:
        text: one or several notes.
        trusted: public keys, of which one must have signed each.

    Raises:
        BrokenProof: what is there is no note, or nobody trusted signed it.
    """
    notes = []
    for piece in text.replace("\r\n", "\n").split(f"{ORIGIN}\n")[1:]:
        note = _read(f"{ORIGIN}\n{piece}")
        if not any(note.is_by(key) for key in trusted):
            raise BrokenProof(
                f"The checkpoint over {note.seals} seals is not signed by a key that is trusted here; name "
                "the platform's checkpoint key, or ask where the file came from.",
                seals=note.seals,
            )
        notes.append(note)
    if not notes:
        raise BrokenProof("The file holds no checkpoint; take one of the exported files.")
    return notes


def _read(piece: str) -> Note:
    try:
        text, _, signatures = piece.partition("\n\n")
        _, seals, root, audit, at = text.split("\n")
        length, head = audit.removeprefix("audit ").split(" ")
        line = next(line for line in signatures.split("\n") if line.startswith(f"{_DASH}{ORIGIN} "))
        signed = base64.b64decode(line.rpartition(" ")[2], validate=True)
        return Note(
            seals=int(seals),
            root=base64.b64decode(root, validate=True).hex(),
            length=int(length),
            head=head,
            at_us=int(at.removeprefix("at_us ")),
            text=text + "\n",
            signature=signed[4:].hex(),
            key_hash=signed[:4].hex(),
        )
    except (ValueError, StopIteration, IndexError, binascii.Error) as error:
        raise BrokenProof("The file holds no checkpoint that can be read; take it anew.") from error
