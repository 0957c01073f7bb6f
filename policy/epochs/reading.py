# SPDX-License-Identifier: Apache-2.0
"""Reads facts out of the rows of the register: all of them, or those that changed since an epoch.

A word that no longer stands leaves when the same owner has said anything later in the same words: it only
ever explained why a use is denied, and the later one explains that at least as well (decision 0036: 4). Else
facts would be carried along for ever. Knows neither epochs nor who may publish.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter
from sqlalchemy import exists, select
from sqlalchemy.orm import Session

from policy.deciding.licenses import shipped_licenses
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
from policy.facts.snapshot import Snapshot
from policy.tables import (
    BaseRow,
    ConsentRow,
    DeploymentRow,
    ExpertDatasetRow,
    ExpertRow,
    GrantRow,
    LicenseRow,
    ListingRow,
    RuleRow,
)
from tenants.accounts.schema import Base
from tenants.accounts.tables import DatasetRow, TenantRow

AnyModel = TypeVar("AnyModel", bound=BaseModel)
Word = TypeVar("Word", ConsentFact, GrantFact)
Members = Mapping[str, tuple[str, ...] | None]
Names = Collection[str] | None
"""Which rows; None for all."""

#: Source of a note (see the triggers on ``unpublished``) → kind of fact that it feeds, where they differ.
_FEEDS = {"expert_datasets": "experts", "listings": "experts"}


class Reader:
    """Facts as they are in this unit of work."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def all(self, members: Members) -> dict[str, tuple[Fact, ...]]:
        """Every fact by kind, in canonical order.

        Args:
            members: what each deployment was last reviewed to run.
        """
        kinds: dict[str, Iterable[Fact]] = {
            "tenants": self._tenants(None),
            "bases": self._bases(None),
            "licenses": read_licenses(self._session).values(),
            "experts": self._experts(None),
            "consents": standing_words(self._words(ConsentFact, ConsentRow, None)),
            "grants": standing_words(self._words(GrantFact, GrantRow, None)),
            "rules": self._rules(None),
            "deployments": self._deployments(None, members),
        }
        return {kind: tuple(sorted(facts, key=KINDS[kind][1])) for kind, facts in kinds.items()}

    def some(
        self, before: Snapshot, notes: Iterable[tuple[str, str]], members: Members
    ) -> dict[tuple[str, str], Fact | None]:
        """The facts that are otherwise than in a snapshot; None for those that are gone.

        Args:
            before: the last epoch.
            notes: table and key of the rows that were written since.
            members: what each deployment was last reviewed to run.
        """
        names: dict[str, set[str]] = {}
        for source, name in notes:
            names.setdefault(_FEEDS.get(source, source), set()).add(name)
        if trained_on := names.pop("datasets", None):
            query = select(ExpertDatasetRow.expert_id).where(ExpertDatasetRow.dataset_id.in_(trained_on))
            names.setdefault("experts", set()).update(self._session.scalars(query))
        edits: dict[tuple[str, str], Fact | None] = {}
        for kind, some in names.items():
            match kind:
                case "tenants":
                    read: Mapping[str, Fact | None] = _by_name(some, kind, self._tenants(some))
                case "bases":
                    read = _by_name(some, kind, self._bases(some))
                case "rules":
                    read = _by_name(some, kind, self._rules(some))
                case "deployments":
                    read = _by_name(some, kind, self._deployments(some, members))
                case "experts":
                    # Versions are never deleted and never get another digest.
                    read = {fact.bundle_digest: fact for fact in self._experts(some)}
                case "consents":
                    words = self._words(ConsentFact, ConsentRow, some)
                    read = _settled(words, lambda one: _consents_beside(before, one))
                case _:
                    granted = self._words(GrantFact, GrantRow, some)
                    read = _settled(granted, lambda one: before.grants_by_expert.get(one.expert_id, ()))
            edits |= {(kind, name): fact for name, fact in read.items()}
        # Those that are shipped come with a release and not with a row.
        licenses = read_licenses(self._session)
        if tuple(licenses[key] for key in sorted(licenses)) != before.licenses:
            edits |= {
                ("licenses", key): licenses.get(key) for key in licenses.keys() | before.licenses_by_key
            }
        return {key: fact for key, fact in edits.items() if before.fact(*key) != fact}

    def _tenants(self, names: Names) -> list[TenantFact]:
        return self._plain(TenantFact, TenantRow, TenantRow.slug, names)

    def _bases(self, names: Names) -> list[BaseFact]:
        return self._plain(BaseFact, BaseRow, BaseRow.base_digest, names)

    def _rules(self, names: Names) -> list[RuleFact]:
        return self._plain(RuleFact, RuleRow, RuleRow.id, names, RuleRow.state == "live")

    def _plain(
        self, kind: type[AnyModel], table: type[Base], key: Any, names: Names, *conditions: Any
    ) -> list[AnyModel]:
        columns = [name for name in kind.model_fields if name in table.__table__.columns]
        query = select(*(getattr(table, name) for name in columns)).where(*conditions)
        if names is not None:
            query = query.where(key.in_(names))
        rows = [dict(zip(columns, row, strict=True)) for row in self._session.execute(query)]
        facts: list[AnyModel] = _list_of(kind).validate_python(rows)
        return facts

    def _words(self, kind: type[Word], table: type[Base], names: Names) -> list[Word]:
        return self._plain(kind, table, table.__table__.c.id, names)

    def _deployments(self, names: Names, members: Members) -> list[DeploymentFact]:
        query = select(DeploymentRow.name, DeploymentRow.document).where(DeploymentRow.state == "live")
        if names is not None:
            query = query.where(DeploymentRow.name.in_(names))
        return [
            DeploymentFact.model_validate({**json.loads(document), "members": members.get(name)})
            for name, document in self._session.execute(query)
        ]

    def _experts(self, ids: Names) -> list[ExpertFact]:
        prices = select(ListingRow.expert_id, ListingRow.license, ListingRow.price_micro_per_1k_tokens)
        lineage: dict[str, list[tuple[str, str, str]]] = {}
        links = select(ExpertDatasetRow.expert_id, DatasetRow.id, DatasetRow.tenant, DatasetRow.license)
        links = links.join(DatasetRow, DatasetRow.id == ExpertDatasetRow.dataset_id)
        rows = select(*(getattr(ExpertRow, name) for name in _EXPERT))
        # A manifest is long, and what it says of the license counts only until a listing says otherwise.
        cards = select(ExpertRow.expert_id, ExpertRow.manifest)
        cards = cards.where(~exists().where(ListingRow.expert_id == ExpertRow.expert_id))
        if ids is not None:
            links, prices = (
                links.where(ExpertDatasetRow.expert_id.in_(ids)),
                prices.where(ListingRow.expert_id.in_(ids)),
            )
            rows, cards = rows.where(ExpertRow.expert_id.in_(ids)), cards.where(ExpertRow.expert_id.in_(ids))
        for expert_id, name, tenant, license_ in self._session.execute(links):
            lineage.setdefault(expert_id, []).append((name, tenant, license_))
        licenses = {expert_id: _license_of(manifest) for expert_id, manifest in self._session.execute(cards)}
        # Later epochs overwrite earlier ones.
        offered = {row[0]: row[1:] for row in self._session.execute(prices.order_by(ListingRow.epoch))}
        documents = []
        for row in self._session.execute(rows):
            expert = dict(zip(_EXPERT, row, strict=True))
            expert["license"], expert["price_micro_per_1k_tokens"] = offered.get(expert["expert_id"]) or (
                licenses[expert["expert_id"]],
                0,
            )
            expert["datasets"] = [
                {"id": name, "tenant": tenant, "license": license_, "consent": _speaks_for(tenant, expert)}
                for name, tenant, license_ in lineage.get(expert["expert_id"], ())
            ]
            documents.append(expert)
        experts: list[ExpertFact] = _list_of(ExpertFact).validate_python(documents)
        return experts


_EXPERT = ("bundle_digest", "expert_id", "name", "tenant", "base_digest", "state")


@cache
def _list_of(kind: type[BaseModel]) -> TypeAdapter[Any]:
    # Made once: every publication reads a few facts, and making one takes longer than reading them.
    return TypeAdapter(list[kind])  # type: ignore[valid-type]


def _speaks_for(tenant: str, expert: Mapping[str, Any]) -> str:
    """Whose word counts for a dataset of this tenant."""
    return "with_expert" if tenant == expert["tenant"] else "separate"


def _by_name(names: Iterable[str], kind: str, facts: Sequence[Fact]) -> dict[str, Fact | None]:
    """Facts by what they are called; None for those that were named and not found."""
    return {**dict.fromkeys(names), **{KINDS[kind][1](fact): fact for fact in facts}}


def _scope(word: ConsentFact | GrantFact) -> tuple[object, ...]:
    """Everything that a word says but for its times; two words of one scope differ in nothing else."""
    if isinstance(word, GrantFact):
        about: tuple[object, ...] = (word.consumer_tenant,)
    else:
        about = (word.dataset_id, word.effect, word.recipient)
    return (word.tenant, word.expert_id, word.action, word.purpose, word.region, word.commercial, *about)


def standing_words(words: Sequence[Word]) -> list[Word]:
    """The words without those that are over and that a later one of the same scope has replaced."""
    over = {_scope(word) for word in words if word.state != "given"}
    newest: dict[tuple[object, ...], str] = {}
    if over:
        for word in words:
            scope = _scope(word)
            if scope in over:
                newest[scope] = max(word.id, newest.get(scope, ""))
    return [word for word in words if word.state == "given" or newest[_scope(word)] == word.id]


def _settled(words: Sequence[Word], beside: Any) -> dict[str, Word | None]:
    """What becomes of words that were written, and of those that stood beside them.

    The newest word of a scope never leaves, so the ones that stand are enough to know it.
    """
    near: dict[str, Word] = {}
    for word in words:
        scope = _scope(word)
        near |= {one.id: one for one in beside(word) if _scope(one) == scope}
    near |= {word.id: word for word in words}
    stays = {word.id for word in standing_words(list(near.values()))}
    return {name: word if name in stays else None for name, word in near.items()}


def _consents_beside(before: Snapshot, word: ConsentFact) -> tuple[ConsentFact, ...]:
    if word.dataset_id is not None:
        return before.consents_by_dataset.get(word.dataset_id, ())
    return before.consents_by_expert.get(word.expert_id, ())


def to_fact(kind: type[AnyModel], row: Any) -> AnyModel:
    """Copies the columns of a row that a document has fields for."""
    return kind.model_validate(columns_for(kind, row))


def columns_for(kind: type[BaseModel], row: Any) -> dict[str, Any]:
    """The columns of a row that a document has fields for."""
    return {name: getattr(row, name) for name in kind.model_fields if name in row.__table__.columns}


def latest_listings(session: Session, ids: Names = None) -> dict[str, ListingRow]:
    """The listing that counts now, by expert id; of these experts, or of all with None."""
    query = select(ListingRow).order_by(ListingRow.epoch)
    if ids is not None:
        query = query.where(ListingRow.expert_id.in_(ids))
    # Later epochs overwrite earlier ones.
    return {row.expert_id: row for row in session.scalars(query)}


def read_licenses(session: Session) -> dict[str, LicenseFact]:
    """Reviewed licenses by lower-case key: the shipped table, overridden by the register's own versions."""
    facts = {fact.key.lower(): fact for fact in shipped_licenses()}
    for row in session.scalars(select(LicenseRow).order_by(LicenseRow.version)):
        facts[row.key.lower()] = LicenseFact.model_validate_json(row.facets)
    return facts


def card_license(row: ExpertRow) -> str:
    """The license of an expert's data card, which stands until a listing names another."""
    return _license_of(row.manifest)


def _license_of(manifest: str) -> str:
    return str(json.loads(manifest)["data_card"]["license"])
