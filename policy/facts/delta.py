# SPDX-License-Identifier: Apache-2.0
"""What leads from one epoch's snapshot to a later one's: the facts that came, changed or went.

Whoever holds the earlier snapshot applies it and compares the digest; what comes out is the later snapshot
or nothing. Knows no storage and no transport.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, ValidationError, model_validator

from model_core.packing.canonical import canonical_bytes
from policy.errors import SnapshotMismatch
from policy.facts.kinds import (
    KINDS,
    BaseFact,
    ConsentFact,
    DeploymentFact,
    ExpertFact,
    Fact,
    GrantFact,
    LicenseFact,
    RuleFact,
    TenantFact,
)
from policy.facts.snapshot import Edits, Snapshot, malformed
from policy.facts.terms import AtUs, Count


class Delta(Fact):
    """The way from one published snapshot to another.

    Attributes:
        from_epoch: of the earlier one.
        from_digest: its digest.
        head: everything that the later one says beside its facts.
        gone: by kind, what the facts were called that the later one has no longer.
    """

    from_epoch: Count
    from_digest: str
    epoch: Count
    published_at_us: AtUs
    vocabulary_version: str
    engine_version: str
    format: int
    gone: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    tenants: tuple[TenantFact, ...] = ()
    bases: tuple[BaseFact, ...] = ()
    licenses: tuple[LicenseFact, ...] = ()
    experts: tuple[ExpertFact, ...] = ()
    consents: tuple[ConsentFact, ...] = ()
    grants: tuple[GrantFact, ...] = ()
    rules: tuple[RuleFact, ...] = ()
    deployments: tuple[DeploymentFact, ...] = ()

    @classmethod
    def of(cls, from_epoch: int, from_digest: str, snapshot: Snapshot, edits: Edits) -> Self:
        """The way to a snapshot.

        Args:
            from_epoch: the earlier epoch.
            from_digest: its digest.
            snapshot: the later one.
            edits: at least the facts in which the two differ, as the later one has them.
        """
        gone: dict[str, list[str]] = {}
        put: dict[str, list[Fact]] = {}
        for (kind, identity), fact in sorted(edits.items(), key=lambda edit: edit[0]):
            if fact is None:
                gone.setdefault(kind, []).append(identity)
            else:
                put.setdefault(kind, []).append(fact)
        fields: dict[str, Any] = {"format": snapshot.format, **snapshot.head(), "gone": gone, **put}
        return cls(from_epoch=from_epoch, from_digest=from_digest, **fields)

    def to_json(self) -> bytes:
        """Canonical bytes."""
        return canonical_bytes(self.model_dump(mode="json", exclude_defaults=True))

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Reads what ``to_json`` wrote.

        Raises:
            MalformedSnapshot: a field is missing or of the wrong type.
        """
        try:
            return cls.model_validate_json(data, strict=True)
        except ValidationError as error:
            raise malformed(error) from error

    @model_validator(mode="after")
    def _known(self) -> Self:
        if not self.gone.keys() <= KINDS.keys():
            raise ValueError("there is no such kind of fact")
        return self

    def applied(self, snapshot: Snapshot, expect_digest: str) -> Snapshot:
        """The later snapshot.

        Args:
            snapshot: the earlier one.
            expect_digest: the published digest of the later one.

        Raises:
            SnapshotMismatch: this starts from another snapshot, or leads elsewhere.
        """
        if snapshot.epoch != self.from_epoch or snapshot.digest != self.from_digest:
            raise SnapshotMismatch(
                "The changes are to another snapshot than this one; ask for the whole.",
                expected=self.from_digest,
                actual=snapshot.digest,
            )
        edits: dict[tuple[str, str], Fact | None] = {}
        for kind, (_, identity) in KINDS.items():
            edits |= {(kind, name): None for name in self.gone.get(kind, ())}
            edits |= {(kind, identity(fact)): fact for fact in getattr(self, kind)}
        head = {name: getattr(self, name) for name in ("epoch", "published_at_us", "format")}
        words = {name: getattr(self, name) for name in ("vocabulary_version", "engine_version")}
        return snapshot.changed({**head, **words}, edits).checked(expect_digest)
