# SPDX-License-Identifier: Apache-2.0
"""Pages for people: the training-data summary, the attributions, and how to verify.

The summary has the three sections that Article 53(1)(d) of Regulation (EU) 2024/1689 asks for, filled from
the data cards that owners signed and nothing else: what a card does not say is said to be missing. Knows no
database.
"""

from __future__ import annotations

from collections.abc import Iterable

from policy.evidence.bom import moment
from policy.evidence.facts import Facts
from tenants.accounts.datasets import DatasetRecord

_MISSING = "not stated by the owner"


def training_summary(facts: Facts) -> str:
    """The public summary of the content used for training, in Markdown."""
    last = max((one.card.collected_to or "" for one in facts.datasets), default="")
    experts = "\n".join(
        f"  - {one.tenant}/{one.name}, version {one.version} (`{one.bundle_digest}`)" for one in facts.members
    )
    sources = "\n".join(line for one in facts.datasets for line in _source(facts, one))
    return f"""# Summary of the content used for training: {facts.deployment.name}

As of epoch {facts.publication.epoch} ({moment(facts.at_us)}), composition `{facts.composition.digest}`.

## 1. General information

- Provider of the composition: {facts.deployment.tenant}
- Base model: {facts.base.name} (`{facts.base.base_digest}`), license {facts.base.license}
- Experts, each trained by its owner alone:
{experts or "  - none"}
- Modality: text. Size of the experts' data: {_size(facts.datasets)}
- Languages: {_languages(facts.datasets)}
- Latest collection: {last or _MISSING}

## 2. List of data sources

### Base model

{facts.base.manifest.trained_on or _MISSING}

### Private datasets of the experts' owners, used by their consent

{sources or "None."}

### Crawled by the platform, synthetic, or collected from its users

None: the platform collects no data of its own.

## 3. Relevant data processing aspects

- Reservations of rights: every dataset in an expert's lineage needs its owner's dated, withdrawable consent;
  the licenses that the owners named are part of every decision.
- Removal of content: an owner's withdrawal takes the expert out of every composition, exactly.
- What was used is fixed by the Merkle root of the documents' digests in each data card.
"""


def attributions(facts: Facts) -> str:
    """Whom the endpoint has to name, and its other duties, in Markdown."""
    duties = sorted({(one.subject, one.license_key, one.text) for one in facts.composition.obligations})
    lines = [f"# Attributions and duties of {facts.deployment.name}", ""]
    lines += [f"- {one.name} by {one.tenant}, {one.license or _MISSING}" for one in facts.members]
    lines += [f"- {facts.base.name}, {facts.base.license}", "", "## Duties", ""]
    lines += [f"- {subject} ({key}): {text}" for subject, key, text in duties] or ["None."]
    return "\n".join([*lines, ""])


def readme(facts: Facts, public_key: str) -> str:
    """How to verify the folder, in Markdown."""
    return f"""# Evidence for the deployment {facts.deployment.name}, epoch {facts.publication.epoch}

| file | what it is |
|---|---|
| `bom.cdx.json` | bill of materials of the composition, CycloneDX 1.7 |
| `training-data-summary.md` | summary of the content used for training (Article 53(1)(d)) |
| `attribution.md` | whom the endpoint names, and its duties |
| `composition.json` | the composition with the decision and the reasons for every candidate |
| `consents.json` | the owners' words behind it, with their history |
| `receipts.json` | a signed receipt for each consent (ISO/IEC TS 27560 fields) |
| `decisions.json` | logged decisions, each decided again from its snapshot |
| `licenses.json` | reviewed facets of the licenses, with their digests |
| `proofs.json` | rows behind all this, each with its path to the signed root |
| `checkpoint.txt` | the signed root (C2SP signed note) |
| `manifest.json` | digests of all files, signed |

Verify it on any machine: `marketplace evidence verify FOLDER --public-key {public_key}`. Take the key from
somewhere else than this folder: whoever forged the folder would have written their own.
"""


def _source(facts: Facts, one: DatasetRecord) -> Iterable[str]:
    card = one.card
    used = ", ".join(
        f"{member.tenant}/{member.name}" for member in facts.members if one.id in member.dataset_ids
    )
    collected = f"{card.collected_from or _MISSING} to {card.collected_to or _MISSING}"
    return (
        f"- **{one.tenant}/{one.name}** (`{one.id}`), used for {used}",
        f"  - content: {card.description or _MISSING}",
        f"  - license: {one.license}; languages: {' '.join(card.languages) or _MISSING}",
        f"  - collected: {collected}",
        f"  - {card.documents} documents, {card.text_bytes} bytes; Merkle root `{card.merkle_root}`",
        "",
    )


def _size(datasets: Iterable[DatasetRecord]) -> str:
    cards = [one.card for one in datasets]
    return (
        f"{sum(card.documents for card in cards)} documents, {sum(card.text_bytes for card in cards)} bytes"
    )


def _languages(datasets: Iterable[DatasetRecord]) -> str:
    return " ".join(sorted({tag for one in datasets for tag in one.card.languages})) or _MISSING
