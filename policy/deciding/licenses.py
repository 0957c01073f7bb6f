# SPDX-License-Identifier: Apache-2.0
"""The algebra of license terms.

An SPDX expression (see ``license_expressions``) is a tree whose leaves are looked up among the
reviewed licenses of a snapshot: AND asks all of them, OR takes the branch that permits with the fewest
obligations (then the lexicographically smallest), ``WITH`` is a license of its own. Terms of several
licenses join as a semilattice (AND, union, minimum), so that order and repetition cannot matter. Every row
of the shipped table is data that a reviewed change can replace; nothing here is legal advice. Knows no
consents, grants or rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from types import MappingProxyType
from typing import Final, Literal, NamedTuple

from policy.deciding.license_expressions import Node, parse
from policy.deciding.reasons import Obligation, ObligationKind, Reason, obligation, reason
from policy.errors import InvalidLicenseExpression
from policy.facts.snapshot import LicenseFact
from policy.facts.terms import SHARING_ACTIONS
from policy.facts.vocabulary import Vocabulary, read_data

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
        return joined((self, other))

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


Owed = tuple[ObligationKind, str, str]
"""Kind, license key and text of an obligation, whatever is licensed."""


class Denial(NamedTuple):
    """Why an expression does not permit a use, whatever it is the license of.

    Attributes:
        code: of the reason.
        cited: the license that it rests on, if that is known.
        words: for the reason's sentence, but for the subject.
    """

    code: str
    cited: tuple[str, ...] = ()
    words: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, kw_only=True, eq=False)
class Said:
    """What an expression says to a use, whatever it is the license of.

    Permits that say the same are one object, so that what follows from them can be found by it.

    Attributes:
        denials: none where it permits.
        licenses: those that the use rests on, in order of their keys.
        chosen: their keys.
        owed: (kind, license key, text) of every obligation, in order.
        commercial: whether the use is.
        can_clash: whether their terms hold anything that can clash with other terms.
    """

    denials: tuple[Denial, ...] = ()
    licenses: tuple[LicenseFact, ...] = ()
    chosen: tuple[str, ...] = ()
    owed: tuple[Owed, ...] = ()
    commercial: bool = False
    can_clash: bool = False

    @cached_property
    def permits(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.denials

    def denials_of(self, subject: Subject) -> tuple[Reason, ...]:
        """The denials, as reasons about a subject."""
        return tuple(
            reason(code, subject.id, *cited, subject=subject.name, **words)
            for code, cited, words in self.denials
        )

    def terms(self, subject: str) -> Terms:
        """The terms that the licenses lay on the use of a subject together."""
        return joined(terms_of(fact, subject, commercial=self.commercial) for fact in self.licenses)


def can_clash(fact: LicenseFact) -> bool:
    """Whether a license asks for anything that can clash with other licenses."""
    return bool(fact.share_alike_group or fact.royalty_ppm)


def may_clash(*, action: str, commercial: bool) -> bool:
    """Whether terms can be in conflict at all for such a use; see ``Terms.conflict``."""
    return commercial or action in SHARING_ACTIONS


def joined(terms: Iterable[Terms]) -> Terms:
    """The join of any number of terms."""
    several = (NO_TERMS, *terms)
    caps = [one.user_cap for one in several if one.user_cap is not None]
    return Terms(
        use_commercial=all(one.use_commercial for one in several),
        derivatives=all(one.derivatives for one in several),
        distribution_weights=all(one.distribution_weights for one in several),
        share_alike=frozenset[str]().union(*(one.share_alike for one in several)),
        prohibited_purposes=frozenset[str]().union(*(one.prohibited_purposes for one in several)),
        obligations=frozenset[Obligation]().union(*(one.obligations for one in several)),
        royalties=frozenset[tuple[str, str, int]]().union(*(one.royalties for one in several)),
        user_cap=min(caps, default=None),
    )


def evaluate(licenses: Mapping[str, LicenseFact], subject: Subject, expression: str, use: Use) -> Answer:
    """Asks the license expression of a subject whether it permits a use; see ``ask``."""
    said = ask(licenses, expression, use)
    if not said.permits:
        return Answer(denials=said.denials_of(subject))
    return Answer(denials=(), chosen=said.chosen, terms=said.terms(subject.id))


def ask(licenses: Mapping[str, LicenseFact], expression: str, use: Use) -> Said:
    """Asks a license expression whether it permits a use.

    Args:
        licenses: reviewed licenses by lower-case key.
        expression: an SPDX expression; one that cannot be read denies.
        use: what is asked.
    """
    try:
        tree = parse(expression)
    except InvalidLicenseExpression:
        return Said(denials=(Denial("invalid_license"),))
    return _ask(tree, licenses, use)


def _ask(node: Node, licenses: Mapping[str, LicenseFact], use: Use) -> Said:
    if node.kind == "license":
        return _ask_license(node.key, licenses, use)
    answers = [_ask(child, licenses, use) for child in node.children]
    if node.kind == "or":
        permitting = [answer for answer in answers if answer.permits]
        if permitting:
            return min(permitting, key=lambda answer: (len(answer.owed), answer.chosen))
    denials = tuple(denial for answer in answers for denial in answer.denials)
    if denials:
        return Said(denials=denials)
    return _resting_on([fact for answer in answers for fact in answer.licenses], use)


def _ask_license(key: str, licenses: Mapping[str, LicenseFact], use: Use) -> Said:
    fact = licenses.get(key.lower())
    if fact is None or key.upper() in ("NOASSERTION", "NONE"):
        return Said(denials=(Denial("unknown_license", words={"key": key}),))
    denials: list[Denial] = []

    def deny(code: str, **words: str) -> None:
        denials.append(Denial(code, (fact.key,), {"key": fact.key, **words}))

    if not fact.reviewed_by.strip():
        deny("unreviewed_license")
    for facet in use.facets():
        held: bool | None = getattr(fact, facet)
        if not held:
            deny("license_facet_unknown" if held is None else "license_forbids", facet=facet)
    for term in fact.prohibited_purposes:
        if term not in use.vocabulary.purposes:
            deny("license_term_unknown", term=term)
        elif use.vocabulary.purposes.forbids(term, use.purpose):
            deny("license_prohibits_purpose", term=term)
    return Said(denials=tuple(denials)) if denials else _resting_on([fact], use)


def _resting_on(facts: Iterable[LicenseFact], use: Use) -> Said:
    by_key = {fact.key: fact for fact in facts}
    owed = {
        (kind, key, text)
        for key, fact in by_key.items()
        for kind, text in _obligations(fact, commercial=use.commercial)
    }
    chosen = tuple(sorted(by_key))
    facts = tuple(by_key[key] for key in chosen)
    return _permitting(facts, tuple(sorted(owed)), use.commercial)


@lru_cache(maxsize=4096)
def _permitting(licenses: tuple[LicenseFact, ...], owed: tuple[Owed, ...], commercial: bool) -> Said:
    return Said(
        licenses=licenses,
        chosen=tuple(fact.key for fact in licenses),
        owed=owed,
        commercial=commercial,
        can_clash=any(map(can_clash, licenses)),
    )


def terms_of(fact: LicenseFact, subject: str, *, commercial: bool) -> Terms:
    """The terms and obligations that one license lays on the use of a subject."""
    obligations = [
        obligation(kind, fact.key, subject, text) for kind, text in _obligations(fact, commercial=commercial)
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


def _obligations(fact: LicenseFact, *, commercial: bool) -> list[tuple[ObligationKind, str]]:
    found: list[tuple[ObligationKind, str]] = []
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
