# SPDX-License-Identifier: Apache-2.0
"""The evidence pack: files about one deployment, a signed manifest over them, and their verification offline.

Everything that is claimed is either computed from a snapshot whose publication is among the proven rows, or
is such a row itself. Verifying needs the folder and a public key. Knows neither HTTP nor who may ask.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from model_core.errors import ProductError
from model_core.packing.canonical import canonical_bytes, digest_bytes, digest_of
from model_core.packing.keys import SigningKey, verify_signature
from policy.audit.chain import Audit
from policy.audit.notes import read_notes
from policy.audit.proofs import RowProof, prove_rows
from policy.consents.reading import ConsentReader
from policy.consents.receipts import check_receipt, consent_receipt, sign_receipt
from policy.errors import BrokenProof, NotFound
from policy.evidence.bom import bill_of_materials, difference
from policy.evidence.facts import Facts, gather
from policy.evidence.pages import attributions, readme, training_summary
from policy.register import Register
from policy.tables import AuditRow
from tenants.roles import PLATFORM_TENANT

_MANIFEST: Final = "manifest.json"
_LARGEST_BYTES: Final = 256 * 2**20


class EvidenceReport(BaseModel):
    """What verifying a pack found.

    Attributes:
        ok: every file, signature and proof holds.
        deployment: whose evidence it is.
        epoch: of which epoch.
        files: how many files were checked.
        proofs: how many rows are proven.
        public_key: whose signature it is.
        trusted: whether that key was named by whoever verifies, and not by the pack alone.
        sentence: what is wrong first, or that nothing is.
    """

    model_config = ConfigDict(frozen=True)

    ok: bool
    deployment: str
    epoch: int
    files: int
    proofs: int
    public_key: str
    trusted: bool
    sentence: str


def make_pack(
    session: Session, now_us: int, name: str, key: SigningKey, epoch: int | None = None
) -> dict[str, str]:
    """Makes the files of a pack, by name; see ``pages.readme`` for what they are.

    Args:
        session: a reading unit of work that sees every tenant's rows.
        now_us: its time.
        name: of the deployment.
        key: the platform's checkpoint key.
        epoch: which; the current one with None.

    Raises:
        NotFound: no such deployment or epoch.
    """
    facts = gather(session, now_us, name, epoch)
    register = Register(session, now_us)
    point = Audit(session, now_us).checkpoint(key)
    decisions = [
        {**one.model_dump(mode="json"), "replayed_equal": register.replay(one.id).equal}
        for one in facts.decisions
    ]
    licenses = [
        {**one.model_dump(mode="json"), "digest": digest_of(one.model_dump(mode="json"))}
        for one in facts.licenses
    ]
    proofs = prove_rows(session, _rows_behind(session, facts))
    documents: dict[str, Any] = {
        "bom.cdx.json": bill_of_materials(facts),
        "composition.json": facts.composition.model_dump(mode="json"),
        "consents.json": [one.model_dump(mode="json") for one in facts.consents],
        "decisions.json": decisions,
        "licenses.json": licenses,
        "receipts.json": _receipts(session, facts, key, now_us),
        "proofs.json": [one.model_dump(mode="json") for one in proofs],
    }
    files = {name: json.dumps(one, indent=1, sort_keys=True) + "\n" for name, one in documents.items()}
    files["training-data-summary.md"] = training_summary(facts)
    files["attribution.md"] = attributions(facts)
    files["checkpoint.txt"] = point.note
    files["README.md"] = readme(facts, key.public_key)
    manifest = {
        "kind": "deployment-evidence",
        "version": 1,
        "deployment": name,
        "epoch": facts.publication.epoch,
        "snapshot_digest": facts.publication.snapshot_digest,
        "composition_digest": facts.composition.digest,
        "at_us": now_us,
        "files": {path: digest_bytes(text.encode()) for path, text in sorted(files.items())},
        "public_key": key.public_key,
    }
    signed = {**manifest, "signature": key.sign(canonical_bytes(manifest))}
    files[_MANIFEST] = canonical_bytes(signed).decode()
    return files


def _receipts(session: Session, facts: Facts, key: SigningKey, now_us: int) -> list[dict[str, Any]]:
    """A receipt for where each consent stands, signed by itself, so that it can be handed on alone.

    A record has one for all its words; a prohibition has none, since it is no consent.
    """
    reader = ConsentReader(session, now_us)
    records = dict.fromkeys(word.record_id for word in facts.consents if word.effect == "permit")
    documents = (
        consent_receipt(reader.file(record_id), None, (), platform=PLATFORM_TENANT, issued_at_us=now_us)
        for record_id in records
    )
    return [sign_receipt(document, key).model_dump(mode="json") for document in documents]


def verify_pack(folder: Path, trusted: Collection[str] = ()) -> EvidenceReport:
    """Verifies a pack without the marketplace.

    Args:
        folder: where its files lie.
        trusted: public keys that are known from elsewhere; with none, the pack's own key is believed.

    Raises:
        BrokenProof: the folder holds no pack.
    """
    manifest = _manifest(folder)
    proofs: list[RowProof] = []
    wrong = _wrong(folder, manifest, trusted, proofs)
    return EvidenceReport(
        ok=not wrong,
        deployment=str(manifest["deployment"]),
        epoch=int(manifest["epoch"]),
        files=len(manifest["files"]),
        proofs=len(proofs),
        public_key=str(manifest["public_key"]),
        trusted=bool(trusted),
        sentence=wrong or "Every file, signature and proof holds.",
    )


def compare_packs(old: Path, new: Path) -> dict[str, Any]:
    """What changed in the composition between two packs.

    Raises:
        BrokenProof: one of the folders holds no pack.
    """
    bills = []
    for folder in (old, new):
        _manifest(folder)
        bills.append(json.loads(_read(folder, "bom.cdx.json")))
    return difference(*bills)


def _rows_behind(session: Session, facts: Facts) -> list[tuple[str, str]]:
    epoch = facts.publication.epoch
    published = select(AuditRow.seq).where(
        AuditRow.object == f"epoch:{epoch}", AuditRow.action == "epoch.publish"
    )
    seq = session.scalar(published)
    if seq is None:
        raise NotFound("The epoch's publication is not in the audit chain; verify the audit.", epoch=epoch)
    events = [
        ("consent_events", canonical_bytes([word.id, n]).decode())
        for word in facts.consents
        for n in range(len(word.events))
    ]
    return [
        ("audit", str(seq)),
        ("publications", str(epoch)),
        ("bases", facts.base.base_digest),
        *(("experts", one.expert_id) for one in facts.members),
        *(("datasets", one.id) for one in facts.datasets),
        *(("consents", one.id) for one in facts.consents),
        *events,
        *(("decisions", one.id) for one in facts.decisions),
    ]


def _wrong(
    folder: Path, manifest: Mapping[str, Any], trusted: Collection[str], proofs: list[RowProof]
) -> str:
    """The first thing that does not hold, as a sentence."""
    key = str(manifest["public_key"])
    if trusted and key not in trusted:
        return "The manifest is signed by a key that you do not trust."
    unsigned = {name: value for name, value in manifest.items() if name != "signature"}
    if not verify_signature(key, canonical_bytes(unsigned), str(manifest.get("signature"))):
        return "The manifest's signature does not hold: it was changed after it was signed."
    return (
        _files_changed(folder, manifest)
        or _unproven(folder, key, proofs)
        or _no_receipt(folder, key)
        or _unfit(folder, manifest, {(proof.table, proof.key): proof.row for proof in proofs})
    )


def _files_changed(folder: Path, manifest: Mapping[str, Any]) -> str:
    found = {path.name for path in folder.iterdir()} - {_MANIFEST}
    if odd := sorted(found ^ set(manifest["files"])):
        return f"{odd[0]} is missing, or was put in: the manifest names other files."
    changed = (
        name
        for name, digest in sorted(manifest["files"].items())
        if digest_bytes(_read(folder, name)) != digest
    )
    name = next(changed, "")
    return f"{name} was changed after it was signed." if name else ""


def _no_receipt(folder: Path, key: str) -> str:
    for receipt in json.loads(_read(folder, "receipts.json")):
        try:
            trusted = check_receipt(canonical_bytes(receipt), {key}).trusted
        except ProductError:
            trusted = False
        if not trusted:
            return "receipts.json holds a receipt that the pack's key did not sign."
    return ""


def _unproven(folder: Path, key: str, proofs: list[RowProof]) -> str:
    (note,) = read_notes(_read(folder, "checkpoint.txt").decode(), {key})
    try:
        proofs.extend(RowProof.model_validate(one) for one in json.loads(_read(folder, "proofs.json")))
    except (ValidationError, ValueError):
        return "proofs.json holds something else than proofs."
    for proof in proofs:
        if not proof.holds() or (proof.root, proof.size) != (note.root, note.seals):
            return f"The proof of {proof.table} {proof.key} does not lead to the signed root."
    return ""


def _unfit(
    folder: Path, manifest: Mapping[str, Any], rows: Mapping[tuple[str, str], Mapping[str, Any]]
) -> str:
    """Whether what the files say is what the proven rows say."""
    published = rows.get(("publications", str(manifest["epoch"])), {})
    if published.get("snapshot_digest") != manifest["snapshot_digest"]:
        return "The proven publication has another snapshot than the manifest."
    composition = json.loads(_read(folder, "composition.json"))
    if (composition["digest"], composition["snapshot_digest"]) != (
        manifest["composition_digest"],
        manifest["snapshot_digest"],
    ):
        return "The composition is of another snapshot than the manifest says."
    for member in composition["members"]:
        if rows.get(("experts", member["expert_id"]), {}).get("bundle_digest") != member["bundle_digest"]:
            return f"The member {member['expert_id']} is not a proven expert."
    for decision in json.loads(_read(folder, "decisions.json")):
        proven = rows.get(("decisions", decision["id"]), {})
        if proven.get("output_digest") != decision["output_digest"] or not decision["replayed_equal"]:
            return f"The decision {decision['id']} is not the proven one, or was not decided alike again."
    return ""


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(_read(folder, _MANIFEST))
    except ValueError as error:
        raise BrokenProof(f"{folder.name}/{_MANIFEST} cannot be read.") from error
    if not isinstance(manifest, dict) or manifest.get("kind") != "deployment-evidence":
        raise BrokenProof(f"{folder.name} holds something else than an evidence pack.")
    return manifest


def _read(folder: Path, name: str) -> bytes:
    path = folder / name
    try:
        if path.name != name or path.stat().st_size > _LARGEST_BYTES:
            raise BrokenProof(f"{name[:80]} is no file of an evidence pack.")
        return path.read_bytes()
    except OSError as error:
        raise BrokenProof(
            f"{folder.name} holds no {name[:80]}; make the pack with: marketplace deployment evidence NAME"
        ) from error
