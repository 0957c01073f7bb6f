# SPDX-License-Identifier: Apache-2.0
"""Croissant 1.1 cards, plain ODRL policies and lists of DUO codes, told apart and read into one import.

From a Croissant card come name, description, languages, dates, the license as an SPDX expression, the words
on responsible use, and from ``usageInfo`` the terms. Several licenses or terms on the same data hold
together; a permit that another term may limit is left to the owner. Fields that say how files are laid out
are not terms and are passed over; everything else that is not read is listed.
"""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import BaseModel, ConfigDict

from policy.cards.drafts import Drafts, ImportedCard, NotImported
from policy.cards.duo import Scope, drafts_of_codes, find_term
from policy.cards.errors import CardRefused
from policy.cards.odrl import drafts_of_policy
from policy.cards.reading import (
    Node,
    check_document,
    field,
    followed,
    last_part,
    listed,
    nodes_by_id,
    text_of,
    texts_of,
)
from policy.deciding.license_expressions import parse
from policy.errors import InvalidLicenseExpression
from policy.facts.vocabulary import read_data

_DATE: Final = re.compile(r"(?<![\d+])([12]\d{3})(?!\d)(?:-(0[1-9]|1[0-2])(?:-(0[1-9]|[12]\d|3[01]))?)?")
_MAX_NOTE: Final = 2_000
_POLICIES: Final = frozenset({"Policy", "Set", "Offer", "Agreement"})


class Import(BaseModel):
    """Everything that was read of a document.

    Attributes:
        kind: what it was taken for.
        card: facts about the data; empty for a bare policy or list of codes.
        license: SPDX expression, None where the document names none that is known.
        drafts: what may be proposed, and what could not be taken over.
    """

    model_config = ConfigDict(frozen=True)

    kind: str
    card: ImportedCard = ImportedCard()
    license: str | None = None
    drafts: Drafts = Drafts()


def read_card(document: object, scope: Scope) -> Import:
    """Reads a document of any of the three kinds.

    Args:
        document: parsed JSON.
        scope: what the drafts are about.

    Raises:
        CardRefused: none of the three, or one that hides or contradicts something.
        CardTooLarge: more than is read.
    """
    node = check_document(document)
    known = nodes_by_id(node)
    if _types(node) & _POLICIES:
        return Import(kind="odrl", drafts=drafts_of_policy(node, scope))
    if set(node) == {"duo"}:
        return Import(kind="duo", drafts=drafts_of_codes(list(texts_of(node["duo"])), scope))
    datasets = [one for one in (node, *known.values()) if "Dataset" in _types(one)]
    if len(datasets) != 1:
        raise CardRefused(
            'The document is no Croissant card of one data set, no ODRL policy and no {"duo": [codes]}.',
            datasets=len(datasets),
        )
    return _croissant(datasets[0], known, scope)


def _types(node: Node) -> set[str]:
    return {last_part(text) for text in texts_of(field(node, "@type", "type"))}


def _croissant(node: Node, known: Mapping[str, Node], scope: Scope) -> Import:
    license_, drafts = _license(node, known)
    terms = drafts.joined(_terms([followed(one, known) for one in listed(field(node, "usageInfo"))], scope))
    if any(one.where in {"usageInfo", "license"} for one in terms.not_imported):
        terms = terms.withheld("usageInfo", "terms beside it could not be read")
    names = read_data("croissant-1.json")
    passed = {*names["layout"], *names["read"], *names["notes"]}
    others = [name for name in node if last_part(name) not in passed]
    unread = tuple(
        NotImported(where="card", what=name[:200], why="the field is not known here") for name in others
    )
    return Import(
        kind="croissant",
        card=_facts(node, known),
        license=license_,
        drafts=terms.joined(Drafts(not_imported=unread)),
    )


def _terms(values: Sequence[object], scope: Scope) -> Drafts:
    """Terms on the same data hold together: what one permits and another may limit is not permitted."""
    policies = [_usage(one, scope) for one in values if _code(one) is None]
    codes = [text for one in values if (text := _code(one))]
    # Codes narrow each other and are read together.
    parts = [*policies, drafts_of_codes(codes, scope)] if codes else policies
    joined = Drafts()
    for part in parts:
        joined = joined.joined(part)
    permitting = sum(bool(one.consents) for one in policies)
    unread = len(parts) > 1 and any(one.not_imported for one in parts)
    if unread or permitting > 1 or (permitting and codes):
        return joined.withheld(
            "usageInfo", "terms beside it may limit it, and what they leave has no word here"
        )
    return joined


def _usage(value: object, scope: Scope) -> Drafts:
    if isinstance(value, Mapping) and _types(value) & _POLICIES:
        return drafts_of_policy(value, scope, "usageInfo policy")
    what = (text_of(value) or "a value without a text")[:200]
    return Drafts(not_imported=(NotImported(where="usageInfo", what=what, why="no DUO code and no policy"),))


def _code(value: object) -> str | None:
    """The DUO code of a defined term or a bare text, known or not."""
    texts = [text_of(value)]
    if isinstance(value, Mapping):
        texts += [text_of(field(value, name)) for name in ("termCode", "url", "@id")]
    for text in texts:
        if text and (find_term(text) is not None or "DUO" in text.upper()):
            return text
    return None


def _license(node: Node, known: Mapping[str, Node]) -> tuple[str | None, Drafts]:
    """The license as one expression: of several, each has to be kept."""
    keys, unread = [], []
    for one in listed(field(node, "license")):
        value = followed(one, known)
        text = text_of(value)
        if isinstance(value, Mapping):
            text = text_of(field(value, "url")) or text or text_of(field(value, "name"))
        key = _expression(text or "")
        if key is None:
            what = (text or "a value without a text")[:200]
            unread.append(NotImported(where="license", what=what, why="no SPDX expression and no known link"))
        elif key not in keys:
            keys.append(key)
    if unread or not keys:
        return None, Drafts(not_imported=tuple(unread))
    alone = len(keys) == 1
    return (keys[0] if alone else " AND ".join(f"({key})" for key in sorted(keys))), Drafts()


def _expression(text: str) -> str | None:
    link = re.sub(r"^https?://", "", text.strip().lower()).rstrip("/")
    for ending in ("/legalcode", "/deed.en", "/deed", ".html", ".txt"):
        link = link.removesuffix(ending)
    if (known := read_data("license-links-1.json")["links"].get(link)) is not None:
        return str(known)
    if link.startswith("spdx.org/licenses/"):
        text = text.strip().rstrip("/").rpartition("/")[2].removesuffix(".html")
    if not text.strip() or "/" in text or ":" in text:
        return None
    try:
        parse(text)
    except InvalidLicenseExpression:
        return None
    return text.strip()


def _facts(node: Node, known: Mapping[str, Node]) -> ImportedCard:
    def text(name: str) -> str:
        return " ".join(texts_of(field(node, name)))

    frame = " ".join(texts_of(field(node, "dataCollectionTimeFrame"))) or text("temporalCoverage")
    dates = list(_DATE.finditer(frame))
    kept = read_data("croissant-1.json")["notes"]
    notes: dict[str, str] = {
        last_part(name): said
        for name, value in node.items()
        if last_part(name) in kept and (said := " ".join(texts_of(followed(value, known)))[:_MAX_NOTE])
    }
    return ImportedCard(
        name=text("name")[:200],
        description=text("description"),
        languages=tuple(dict.fromkeys(one[:60] for one in texts_of(field(node, "inLanguage"))))[:100],
        collected_from=_day(dates[0], last=False) if dates else None,
        collected_to=_day(dates[-1], last=True) if dates else None,
        notes=notes,
    )


def _day(found: re.Match[str], *, last: bool) -> str:
    """The day that is meant; of a month or a year its first or its last."""
    year, month, day = found.groups()
    if month is None:
        month = "12" if last else "01"
    if day is None:
        day = str(monthrange(int(year), int(month))[1]) if last else "01"
    return f"{year}-{month}-{day}"
