# SPDX-License-Identifier: Apache-2.0
"""The algebra of license terms.

An SPDX expression (see ``policy.license_expressions``) is a tree whose leaves are looked up among the
reviewed licenses of a snapshot: AND asks all of them, OR takes the branch that permits with the fewest
obligations (then the lexicographically smallest), ``WITH`` is a license of its own. Terms of several
licenses join as a semilattice (AND, union, minimum), so that order and repetition cannot matter. Every row
of the shipped table is data that a reviewed change can replace; nothing here is legal advice. Knows no
consents, grants or rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, reduce
from typing import Any, Final, Literal, NamedTuple

from policy.errors import InvalidLicenseExpression
from policy.license_expressions import Node, parse
from policy.reasons import Obligation, Reason, reason
from policy.snapshot import LicenseFact
from policy.terms import SHARING_ACTIONS
from policy.vocabulary import Vocabulary, read_data

CURRENT_VERSION: Final = "1"
MILLION_PPM: Final = 1_000_000

_FACETS: Final[Mapping[str, tuple[str, ...]]] = {
    "view_card": (),
    "compose": ("hosted_use",),
    "infer": ("hosted_use",),
    "evaluate": ("hosted_use",),
    "attribute": ("hosted_use",),
    "fine_tune": ("hosted_use", "derivatives"),
    "train_on_outputs": ("hosted_use", "derivatives"),
    "export_weights": ("derivatives", "distribution_weights"),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Use:
    """What a license is asked for."""

    action: str
    purpose: str
    commercial: bool
    vocabulary: Vocabulary

    def facets(self) -> tuple[str, ...]:
        """The facets that have to be true."""
        return (*_FACETS[self.action], *(("use_commercial",) if self.commercial else ()))


class Subject(NamedTuple):
    """What is licensed: its id, and the name that sentences call it by."""

    id: str
    name: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What one or several licenses ask together; ``join`` is commutative, associative and idempotent.

    Attributes:
        share_alike: groups under one of which adapted material has to be shared.
        royalties: (subject, license key, ppm) of every license that asks for one; each counts once.
        user_cap: the least number of users allowed, None for no limit.
    """

    use_commercial: bool = True
    derivatives: bool = True
    distribution_weights: bool = True
    share_alike: frozenset[str] = frozenset()
    prohibited_purposes: frozenset[str] = frozenset()
    obligations: frozenset[Obligation] = frozenset()
    royalties: frozenset[tuple[str, str, int]] = frozenset()
    user_cap: int | None = None

    def join(self, other: Terms) -> Terms:
        """The terms that satisfy both."""
        caps = [cap for cap in (self.user_cap, other.user_cap) if cap is not None]
        return Terms(
            use_commercial=self.use_commercial and other.use_commercial,
            derivatives=self.derivatives and other.derivatives,
            distribution_weights=self.distribution_weights and other.distribution_weights,
            share_alike=self.share_alike | other.share_alike,
            prohibited_purposes=self.prohibited_purposes | other.prohibited_purposes,
            obligations=self.obligations | other.obligations,
            royalties=self.royalties | other.royalties,
            user_cap=min(caps, default=None),
        )

    def royalty_ppm(self) -> int:
        """The sum of all royalties; above a million they cannot be paid."""
        return sum(ppm for _, _, ppm in self.royalties)

    def conflict(self, *, action: str, commercial: bool) -> Literal["share_alike", "royalty"] | None:
        """Why these terms cannot be met at once, if they cannot.

        Share-alike bites only where adapted material is shared; hosted answers are not taken for it.
        """
        if action in SHARING_ACTIONS and len(self.share_alike) > 1:
            return "share_alike"
        return "royalty" if commercial and self.royalty_ppm() > MILLION_PPM else None


NO_TERMS: Final = Terms()


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What an expression says to a use: denials, or the chosen licenses and their joined terms."""

    denials: tuple[Reason, ...]
    chosen: tuple[str, ...] = ()
    terms: Terms = NO_TERMS

    @property
    def permits(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.denials


def joined(terms: Iterable[Terms]) -> Terms:
    """The join of any number of terms."""
    return reduce(Terms.join, terms, NO_TERMS)


def evaluate(licenses: Mapping[str, LicenseFact], subject: Subject, expression: str, use: Use) -> Answer:
    """Asks a license expression whether it permits a use.

    Args:
        licenses: reviewed licenses by lower-case key.
        subject: what is licensed, for reasons and obligations.
        expression: an SPDX expression; one that cannot be read denies.
        use: what is asked.
    """
    try:
        tree = parse(expression)
    except InvalidLicenseExpression:
        return Answer(denials=(reason("invalid_license", subject.id, subject=subject.name),))
    return _ask(tree, licenses, subject, use)


def _ask(node: Node, licenses: Mapping[str, LicenseFact], subject: Subject, use: Use) -> Answer:
    if node.kind == "license":
        return _ask_license(node.key, licenses, subject, use)
    answers = [_ask(child, licenses, subject, use) for child in node.children]
    if node.kind == "or":
        permitting = [answer for answer in answers if answer.permits]
        if permitting:
            return min(permitting, key=lambda answer: (len(answer.terms.obligations), answer.chosen))
    denials = tuple(denial for answer in answers for denial in answer.denials)
    if denials:
        return Answer(denials=denials)
    chosen = tuple(sorted({key for answer in answers for key in answer.chosen}))
    return Answer(denials=(), chosen=chosen, terms=joined(answer.terms for answer in answers))


def _ask_license(key: str, licenses: Mapping[str, LicenseFact], subject: Subject, use: Use) -> Answer:
    fact = licenses.get(key.lower())
    if fact is None or key.upper() in ("NOASSERTION", "NONE"):
        return Answer(denials=(reason("unknown_license", subject.id, subject=subject.name, key=key),))
    cited = (subject.id, fact.key)
    denials: list[Reason] = []
    if not fact.reviewed_by.strip():
        denials.append(reason("unreviewed_license", *cited, subject=subject.name, key=fact.key))
    for facet in use.facets():
        held: bool | None = getattr(fact, facet)
        if not held:
            code = "license_facet_unknown" if held is None else "license_forbids"
            denials.append(reason(code, *cited, subject=subject.name, key=fact.key, facet=facet))
    for term in fact.prohibited_purposes:
        if term not in use.vocabulary.purposes:
            code = "license_term_unknown"
        elif use.vocabulary.purposes.forbids(term, use.purpose):
            code = "license_prohibits_purpose"
        else:
            continue
        denials.append(reason(code, *cited, subject=subject.name, key=fact.key, term=term))
    if denials:
        return Answer(denials=tuple(denials))
    return Answer(denials=(), chosen=(fact.key,), terms=terms_of(fact, subject.id, commercial=use.commercial))


def terms_of(fact: LicenseFact, subject: str, *, commercial: bool) -> Terms:
    """The terms and obligations that one license lays on the use of a subject."""
    obligations = [
        Obligation(kind=kind, license_key=fact.key, subject=subject, text=text)
        for kind, text in _obligations(fact, commercial=commercial)
    ]
    royalty = fact.royalty_ppm if commercial else 0
    return Terms(
        use_commercial=fact.use_commercial is True,
        derivatives=fact.derivatives is True,
        distribution_weights=fact.distribution_weights is True,
        share_alike=frozenset({fact.share_alike_group} if fact.share_alike_group else ()),
        prohibited_purposes=frozenset(fact.prohibited_purposes),
        obligations=frozenset(obligations),
        royalties=frozenset({(subject, fact.key, royalty)} if royalty else ()),
        user_cap=fact.user_cap,
    )


def _obligations(fact: LicenseFact, *, commercial: bool) -> list[tuple[Any, str]]:
    found: list[tuple[Any, str]] = []
    if fact.attribution is not False:  # unknown is taken for yes: naming an author harms nobody
        found.append(("attribute", fact.title or fact.key))
    if fact.notice:
        found.append(("notice", fact.url or fact.key))
    found += [("flow_down", text) for text in fact.flow_down]
    found += [("prohibited_purpose", term) for term in fact.prohibited_purposes]
    if fact.share_alike_group:
        found.append(("share_alike", fact.share_alike_group))
    if fact.user_cap is not None:
        found.append(("user_cap", str(fact.user_cap)))
    if commercial and fact.royalty_ppm:
        found.append(("royalty", str(fact.royalty_ppm)))
    return found


@lru_cache(maxsize=4)
def shipped_licenses(version: str = CURRENT_VERSION) -> tuple[LicenseFact, ...]:
    """The table of licenses that a new register starts with; every row can be replaced by a change."""
    document = read_data(f"licenses-{version}.json")
    return tuple(LicenseFact.model_validate(row) for row in document["licenses"])


def check_expression(expression: str, licenses: Mapping[str, LicenseFact]) -> tuple[str, ...]:
    """The license keys of an expression, for doors that refuse early what a decision would deny.

    Raises:
        InvalidLicenseExpression: it cannot be read, or names a license that nobody has reviewed.
    """
    keys = sorted(_keys(parse(expression)))
    for key in keys:
        fact = licenses.get(key.lower())
        if fact is None or not fact.reviewed_by.strip() or key.upper() in ("NOASSERTION", "NONE"):
            raise InvalidLicenseExpression(
                f"The license {key} is not known here; ask compliance to review and add it first.", key=key
            )
    return tuple(keys)


def _keys(node: Node) -> frozenset[str]:
    return frozenset({node.key} if node.kind == "license" else ()).union(*map(_keys, node.children))
