# SPDX-License-Identifier: Apache-2.0
"""Why a decision came out as it did: stable codes, the sentences for people, and what is missing.

A code is API: it is never renamed and never changes its meaning. Three things stay apart: the outcome
(class of the verdict), the code (for programs) and the sentence (for people). It does not decide
anything; it only knows how to say it.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from operator import attrgetter
from typing import Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from policy.facts.terms import GATES, OUTCOMES, Gate, Outcome
from policy.facts.values import built

# From one question to the next most reasons stay what they are; what is kept is only ever forgotten.
_KEPT: Final = 32_768


class Reason(BaseModel):
    """One gate's word on one expert, with the facts that it rests on."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    gate: Gate
    code: str
    sentence: str
    fact_ids: tuple[str, ...] = ()


class NearestMiss(BaseModel):
    """The smallest change that would open one gate.

    ``ask`` is the tenant (or ``compliance``) whose word is needed, ``fact_id`` the fact that came
    closest, ``differs`` the fields in which it falls short.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    gate: Gate
    sentence: str
    ask: str
    fact_id: str | None = None
    differs: tuple[str, ...] = ()


ObligationKind = Literal[
    "attribute", "notice", "flow_down", "prohibited_purpose", "share_alike", "user_cap", "royalty"
]


class Obligation(BaseModel):
    """What whoever enforces a permit has to do; an enforcer that does not know the kind must deny."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    kind: ObligationKind
    license_key: str
    subject: str
    text: str


class Code(NamedTuple):
    """What a code means: its gate, the class of verdict it makes, and its sentence."""

    gate: Gate
    outcome: Outcome
    sentence: str


CODES: Final[dict[str, Code]] = {
    # facts: is the question understood?
    "unknown_vocabulary": Code("facts", "error", "The snapshot's vocabulary {version} is not known here."),
    "unknown_engine": Code(
        "facts", "error", "The snapshot needs decision engine {version}, which this is not."
    ),
    "unknown_action": Code("facts", "error", "The action {term} is not in the vocabulary."),
    "unknown_purpose": Code("facts", "error", "The purpose {term} is not in the vocabulary."),
    "unknown_region": Code("facts", "error", "The region {term} is not in the vocabulary."),
    "unknown_expert": Code("facts", "error", "The snapshot holds no expert {expert}."),
    "ambiguous_expert": Code(
        "facts", "error", "{expert} has several versions; name one by its bundle digest."
    ),
    # identity
    "identity_holds": Code("identity", "permit", "Consumer, owner, base and expert are in good standing."),
    "unknown_consumer": Code("identity", "not_identified", "The snapshot holds no tenant {tenant}."),
    "consumer_suspended": Code("identity", "not_identified", "The consumer {tenant} is suspended."),
    "unknown_owner": Code(
        "identity", "not_identified", "The snapshot holds no tenant {tenant}, the expert's owner."
    ),
    "owner_suspended": Code("identity", "not_identified", "The expert's owner {tenant} is suspended."),
    "unknown_base": Code("identity", "not_identified", "The snapshot holds no base {base}."),
    "base_suspended": Code("identity", "not_identified", "The base {base} is suspended."),
    "other_base": Code("identity", "not_identified", "The expert was trained against another base."),
    "expert_not_listed": Code("identity", "not_identified", "The expert is {state}, not listed."),
    # consent
    "consent_permits": Code("consent", "permit", "The owner {tenant} consents to this use."),
    "dataset_consent_permits": Code("consent", "permit", "The owner of the dataset {dataset} consents."),
    "consent_forbids": Code("consent", "forbidden", "The owner {tenant} forbids this use."),
    "consent_forbids_part": Code(
        "consent", "forbidden", "The owner {tenant} forbids a part of this use; narrow the purpose or region."
    ),
    "consent_unreadable": Code(
        "consent", "error", "A prohibition of the owner {tenant} uses the unknown term {term}."
    ),
    "no_consent": Code("consent", "no_consent", "No consent of the owner {tenant} covers this use."),
    "consent_withdrawn": Code("consent", "no_consent", "The owner {tenant} withdrew the consent."),
    "consent_expired": Code("consent", "no_consent", "The consent of the owner {tenant} has expired."),
    "consent_not_yet": Code("consent", "no_consent", "The consent of the owner {tenant} has not begun."),
    "lineage_missing": Code("consent", "no_consent", "The expert names no dataset it was trained on."),
    "dataset_owner_differs": Code(
        "consent", "no_consent", "The dataset {dataset} is another tenant's and has no consent of its own."
    ),
    "dataset_consent_withdrawn": Code(
        "consent", "no_consent", "The consent for the dataset {dataset} was withdrawn."
    ),
    "no_dataset_consent": Code(
        "consent", "no_consent", "No consent for the dataset {dataset} covers this use."
    ),
    "dataset_consent_expired": Code(
        "consent", "no_consent", "The consent for the dataset {dataset} has expired."
    ),
    "dataset_consent_not_yet": Code(
        "consent", "no_consent", "The consent for the dataset {dataset} has not begun."
    ),
    "consent_withheld": Code("consent", "forbidden", "Withheld by the provider."),
    # grant
    "grant_permits": Code("grant", "permit", "A grant gives {consumer} access."),
    "no_grant": Code("grant", "no_grant", "No grant gives {consumer} access for this use."),
    "grant_revoked": Code("grant", "no_grant", "The grant for {consumer} was revoked."),
    "grant_expired": Code("grant", "no_grant", "The grant for {consumer} has expired."),
    "grant_not_yet": Code("grant", "no_grant", "The grant for {consumer} has not begun."),
    # license
    "license_permits": Code("license", "permit", "The license of {subject} permits this use by {chosen}."),
    "invalid_license": Code("license", "license", "The license of {subject} is no SPDX expression."),
    "unknown_license": Code(
        "license", "license", "The license {key} of {subject} is not known; have it reviewed."
    ),
    "unreviewed_license": Code(
        "license", "license", "The license {key} of {subject} was reviewed by nobody."
    ),
    "license_facet_unknown": Code(
        "license", "license", "Whether {key} of {subject} permits {facet} is unknown."
    ),
    "license_forbids": Code("license", "license", "The license {key} of {subject} does not permit {facet}."),
    "license_prohibits_purpose": Code(
        "license", "license", "The license {key} of {subject} prohibits the purpose {term}."
    ),
    "license_term_unknown": Code(
        "license", "license", "The license {key} of {subject} prohibits a purpose that is not known: {term}."
    ),
    "share_alike_conflict": Code(
        "license", "license", "Sharing this expert would need to obey {groups} at once."
    ),
    "royalty_overflow": Code("license", "license", "Royalties add up to {total} ppm, over a million."),
    # rules
    "rule_permits": Code("rules", "permit", "A published rule permits this use."),
    "no_permitting_rule": Code("rules", "no_rule", "No published rule permits this use."),
    "rule_forbids": Code("rules", "forbidden", "A published rule forbids this use{text}."),
    "rule_forbids_part": Code(
        "rules",
        "forbidden",
        "A published rule forbids a part of this use{text}; narrow the purpose or region.",
    ),
    "rule_unreadable": Code("rules", "error", "A published rule uses the unknown term {term}."),
    # set
    "conflict_share_alike": Code(
        "set", "set_conflict", "Shared together, members would need to obey {groups} at once."
    ),
    "conflict_royalty": Code(
        "set", "set_conflict", "The members' royalties add up to {total} ppm, over a million."
    ),
    "conflict_elsewhere": Code(
        "set", "set_conflict", "Other members conflict, and this deployment runs all or none."
    ),
    "awaits_review": Code(
        "set", "awaits_review", "The expert is permitted, but enters only with the next reviewed change."
    ),
}


@lru_cache(maxsize=_KEPT)
def reason(code: str, *fact_ids: str, **words: object) -> Reason:
    """Writes the reason of a code; ``words`` fill the sentence, facts are sorted and distinct."""
    gate, _, sentence = CODES[code]
    cited = tuple(sorted(set(fact_ids)))
    fields = {"gate": gate, "code": code, "sentence": sentence.format_map(words), "fact_ids": cited}
    return built(Reason, fields)


@lru_cache(maxsize=_KEPT)
def obligation(kind: ObligationKind, license_key: str, subject: str, text: str) -> Obligation:
    """What a license obliges to in the use of a subject."""
    fields = {"kind": kind, "license_key": license_key, "subject": subject, "text": text}
    return built(Obligation, fields)


PERMITTED: Final = len(OUTCOMES)
"""The place of a permit among the classes of verdicts: behind all that deny."""


class Weighed(NamedTuple):
    """Reasons in order and without repetitions, and the class of the verdict that they make.

    ``worst`` is the place of that class in ``OUTCOMES``, or ``PERMITTED`` where nothing denies.
    """

    reasons: tuple[Reason, ...]
    worst: int


NOTHING: Final = Weighed((), PERMITTED)


def weighed(reasons: Iterable[Reason]) -> Weighed:
    """Puts reasons in order by gate, code, facts and sentence, and finds the first class of ``OUTCOMES``."""
    distinct = {(_PLACE_OF_CODE[one.code], one.fact_ids, one.sentence): one for one in reasons}
    several = tuple([distinct[key] for key in sorted(distinct)])
    return Weighed(several, min([_OUTCOME_OF_CODE[one.code] for one in several], default=PERMITTED))


def outcome_at(place: int) -> Outcome:
    """The class of verdict at a place."""
    return "permit" if place == PERMITTED else OUTCOMES[place]


@lru_cache(maxsize=_KEPT)
def alone(code: str, *fact_ids: str, **words: object) -> Weighed:
    """The reason of a code, where it is the only one; see ``reason``."""
    return weighed([reason(code, *fact_ids, **words)])


def in_order(reasons: Iterable[Reason]) -> tuple[Reason, ...]:
    """Reasons by gate, then code, facts and sentence, without repetitions."""
    return weighed(reasons).reasons


def obligations_in_order(obligations: Iterable[Obligation]) -> tuple[Obligation, ...]:
    """Obligations by kind, license, subject and text, without repetitions."""
    # Most that are equal are one object.
    several = {id(one): one for one in obligations}.values()
    distinct = {_owed(one): one for one in several}
    return tuple([distinct[key] for key in sorted(distinct)])


_owed = attrgetter("kind", "license_key", "subject", "text")


def is_denial(one: Reason) -> bool:
    """Whether this reason alone denies."""
    return one.code not in _PERMITTING


_PERMITTING: Final = frozenset(code for code, said in CODES.items() if said.outcome == "permit")
_PLACE_OF_CODE: Final = {
    code: place
    for place, code in enumerate(sorted(CODES, key=lambda code: (GATES.index(CODES[code].gate), code)))
}
_OUTCOME_OF_CODE: Final = {
    code: PERMITTED if said.outcome == "permit" else OUTCOMES.index(said.outcome)
    for code, said in CODES.items()
}
