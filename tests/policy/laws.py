# SPDX-License-Identifier: Apache-2.0
"""The laws of deciding as pairs of worlds: one, another made from it, and what has to be between them.

Each law takes a world and a question and yields what it compares. The tests run them over facts in memory
and over facts that went through a register. A law knows how worlds are changed, not how they are decided.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

from worlds import CONSUMERS, OWNERS, consent, grant, rule

from policy.deciding.questions import Question
from policy.facts.snapshot import GrantFact, Snapshot, TenantFact
from policy.facts.vocabulary import vocabulary


class Pair(NamedTuple):
    """Two questions to two worlds, and what the second may permit beside the first."""

    one: tuple[Snapshot, Question]
    other: tuple[Snapshot, Question]
    then: Literal["no more", "the same"]


Law = Callable[[Snapshot, Question, random.Random], Iterator[Pair]]


def _changed(snapshot: Snapshot, question: Question, **facts: Any) -> Pair:
    return Pair((snapshot, question), (snapshot.model_copy(update=facts), question), "no more")


def adding_a_forbid(snapshot: Snapshot, question: Question, dice: random.Random) -> Iterator[Pair]:
    """A prohibition, of an owner or of compliance, readable or not."""
    purpose = dice.choice(("military-research", "cancer-research", "any", "gibberish"))
    said = rule(99, effect="forbid", purpose=purpose, expert_id=dice.choice(("*", "exp_1")))
    yield _changed(snapshot, question, rules=(*snapshot.rules, said))
    word = consent(
        99, expert_id="*", effect="forbid", tenant=dice.choice(OWNERS), purpose=purpose, action="*"
    )
    yield _changed(snapshot, question, consents=(*snapshot.consents, word))


def removing_a_permit(snapshot: Snapshot, question: Question, dice: random.Random) -> Iterator[Pair]:
    """A consent is missing or withdrawn, a grant or a permitting rule is missing."""
    for word in [fact for fact in snapshot.consents if fact.effect == "permit"][:2]:
        rest = tuple(fact for fact in snapshot.consents if fact != word)
        yield _changed(snapshot, question, consents=rest)
        withdrawn = word.model_copy(update={"state": "withdrawn"})
        yield _changed(snapshot, question, consents=(*rest, withdrawn))
    if snapshot.grants:
        gone = dice.choice(snapshot.grants)
        yield _changed(snapshot, question, grants=tuple(fact for fact in snapshot.grants if fact != gone))
    rules = tuple(fact for fact in snapshot.rules if fact.effect == "forbid")
    yield _changed(snapshot, question, rules=rules)


def widening_the_request(snapshot: Snapshot, question: Question, dice: random.Random) -> Iterator[Pair]:
    """The same for a purpose or region that contains the one before."""
    narrow = question.model_copy(update={"purpose": "cancer-research", "region": "de"})
    for wider in ({"purpose": dice.choice(("medical-research", "research", "any"))}, {"region": "eu"}):
        yield Pair((snapshot, narrow), (snapshot, narrow.model_copy(update=wider)), "no more")


def intersecting_a_grant(snapshot: Snapshot, question: Question, dice: random.Random) -> Iterator[Pair]:
    """One access is cut to what it has in common with another scope."""
    if not snapshot.grants:
        return
    cut = dice.choice(snapshot.grants)
    rest = tuple(fact for fact in snapshot.grants if fact != cut)
    scope = grant(
        98,
        action=dice.choice(("*", "infer", "export_weights")),
        purpose=dice.choice(("*", "any", "research", "medical-research", "commercial")),
        region=dice.choice(("*", "global", "eu", "de")),
        consumer_tenant=dice.choice(("*", *CONSUMERS)),
        commercial=dice.random() < 0.5,
        valid_from_us=dice.choice((0, question.at_us, question.at_us + 1)),
        valid_until_us=dice.choice((None, question.at_us, question.at_us + 1)),
    )
    common = _common(cut, scope)
    yield _changed(snapshot, question, grants=rest if common is None else (*rest, common))


def _common(one: GrantFact, other: GrantFact) -> GrantFact | None:
    words = vocabulary()
    cut: dict[str, Any] = {}
    for field, above in (("purpose", words.purposes.above), ("region", words.regions.above)):
        cut[field] = _narrower(getattr(one, field), getattr(other, field), above)
    for field in ("action", "consumer_tenant"):
        cut[field] = _narrower(getattr(one, field), getattr(other, field), {})
    if None in cut.values():
        return None
    ends = [fact.valid_until_us for fact in (one, other) if fact.valid_until_us is not None]
    cut["commercial"] = one.commercial and other.commercial
    cut["valid_from_us"] = max(one.valid_from_us, other.valid_from_us)
    cut["valid_until_us"] = min(ends, default=None)
    return one.model_copy(update=cut)


def _narrower(one: str, other: str, above: Any) -> str | None:
    if other in ("*", one) or other in above.get(one, ()):
        return one
    return other if one == "*" or one in above.get(other, ()) else None


def mixing_the_rows(snapshot: Snapshot, question: Question, dice: random.Random) -> Iterator[Pair]:
    """The same facts in another order, some of them twice."""
    kinds = ("tenants", "experts", "consents", "grants", "rules")
    mixed = {kind: [*getattr(snapshot, kind), *getattr(snapshot, kind)[:1]] for kind in kinds}
    for facts in mixed.values():
        dice.shuffle(facts)
    other = snapshot.model_copy(update={kind: tuple(facts) for kind, facts in mixed.items()})
    yield Pair((snapshot, question), (other, question), "the same")


def renaming_a_tenant(snapshot: Snapshot, question: Question, dice: random.Random) -> Iterator[Pair]:
    """Every tenant by another name, in another order of names."""
    document = json.loads(snapshot.to_json())
    names = dict(zip((*OWNERS, *CONSUMERS), ("zoe", "yves", "xenia", "will"), strict=True))

    def renamed(value: Any, field: str = "") -> Any:
        if isinstance(value, dict):
            return {key: renamed(inner, key) for key, inner in value.items()}
        if isinstance(value, list):
            return [renamed(inner, field) for inner in value]
        tenants = field in ("slug", "tenant", "consumer_tenant", "recipient")
        return names.get(value, value) if tenants else value

    other = Snapshot.model_validate(renamed(document))
    yield Pair((snapshot, question), (other, question), "the same")


def a_strangers_rows(snapshot: Snapshot, question: Question, dice: random.Random) -> Iterator[Pair]:
    """Words and accesses of a tenant who owns neither expert nor dataset, about everything."""
    effect = dice.choice(("permit", "forbid"))
    words = (
        consent(97, expert_id="*", tenant="stranger", effect=effect, action="*"),
        consent(98, expert_id="exp_1", tenant="stranger", effect="permit", action="*"),
    )
    facts = {
        "tenants": (*snapshot.tenants, TenantFact(slug="stranger", status="active")),
        "consents": (*snapshot.consents, *words),
        "grants": (*snapshot.grants, grant(97, tenant="stranger", consumer_tenant="*")),
    }
    other = snapshot.model_copy(update=facts)
    yield Pair((snapshot, question), (other, question), "the same")


def fewer_candidates(snapshot: Snapshot, question: Question, dice: random.Random) -> Iterator[Pair]:
    """Some of the candidates: whoever may serve with all may serve with some."""
    some = tuple(fact.bundle_digest for fact in snapshot.experts if dice.random() < 0.6)
    fewer = question.model_copy(update={"candidates": some})
    yield Pair((snapshot, question), (snapshot, fewer), "no more")


LAWS: dict[str, Law] = {
    law.__name__: law
    for law in (
        adding_a_forbid,
        removing_a_permit,
        widening_the_request,
        intersecting_a_grant,
        mixing_the_rows,
        renaming_a_tenant,
        a_strangers_rows,
        fewer_candidates,
    )
}
