# SPDX-License-Identifier: Apache-2.0
"""What reading a card gives: facts about the data, terms, edits to propose, and what could not be taken over.

Nothing of it is in force. An owner looks at the drafts and proposes them as a change; what the card says and
the drafts do not is listed with the reason.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict

from policy.records.items import ConsentGive, ForbidUse

T = TypeVar("T")


class NotImported(BaseModel):
    """A part of a card that no draft expresses."""

    model_config = ConfigDict(frozen=True)

    where: str
    what: str
    why: str


class ImportedCard(BaseModel):
    """What a card says of the data itself; ``notes`` are its words on responsible use, by name."""

    model_config = ConfigDict(frozen=True)

    name: str = ""
    description: str = ""
    languages: tuple[str, ...] = ()
    collected_from: str | None = None
    collected_to: str | None = None
    notes: dict[str, str] = {}


class Drafts(BaseModel):
    """What terms say, in the register's words.

    Attributes:
        consents: permits to propose; none where a condition on them could not be expressed.
        forbids: prohibitions to publish.
        conditions: duties that come with every use; they belong into the license that is reviewed.
        not_imported: everything else.
        notes: where a draft says less than the card allows, or forbids more than the card does.
    """

    model_config = ConfigDict(frozen=True)

    consents: tuple[ConsentGive, ...] = ()
    forbids: tuple[ForbidUse, ...] = ()
    conditions: tuple[str, ...] = ()
    not_imported: tuple[NotImported, ...] = ()
    notes: tuple[str, ...] = ()

    def joined(self, other: Drafts) -> Drafts:
        """Both beside each other."""
        return Drafts(
            consents=_once(self.consents + other.consents),
            forbids=_once(self.forbids + other.forbids),
            conditions=_once(self.conditions + other.conditions),
            not_imported=_once(self.not_imported + other.not_imported),
            notes=_once(self.notes + other.notes),
        )

    def withheld(self, where: str, why: str) -> Drafts:
        """The same without its permits, and the reason."""
        said = tuple(
            NotImported(where=where, what=f"permit {one.action} for {one.purpose}", why=why)
            for one in self.consents
        )
        return self.model_copy(update={"consents": (), "not_imported": _once(self.not_imported + said)})


def _once(items: tuple[T, ...]) -> tuple[T, ...]:
    found: list[T] = []
    for one in items:
        if one not in found:
            found.append(one)
    return tuple(found)
