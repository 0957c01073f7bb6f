# SPDX-License-Identifier: Apache-2.0
"""Terms that others wrote: read into drafts that never permit more than they say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from policy.cards.croissant import read_card
from policy.cards.duo import Scope, duo_terms, find_term
from policy.cards.errors import CardError, CardRefused, CardTooLarge
from policy.cards.odrl import drafts_of_policy
from policy.cards.odrl_writing import policy_of
from policy.cards.reading import MAX_DEPTH, MAX_TEXT
from policy.cards.times import moment_us, text_of_moment
from policy.facts.terms import ACTIONS, ANY
from policy.facts.vocabulary import read_data, vocabulary
from policy.records.items import ConsentGive, ForbidUse

WORDS = vocabulary()
DUO = "http://purl.obolibrary.org/obo/DUO_"
SCOPE = Scope(expert_id="exp_1")


def _duo(*codes: str, **scope: Any) -> Any:
    return read_card({"duo": list(codes)}, Scope(expert_id="exp_1", **scope)).drafts


def _policy(**parts: Any) -> dict[str, Any]:
    return {"@context": "http://www.w3.org/ns/odrl.jsonld", "@type": "Set", "uid": "urn:p", **parts}


def _when(left: str, operator: str, right: object) -> dict[str, Any]:
    return {"leftOperand": left, "operator": operator, "rightOperand": right}


def _permit(*constraints: dict[str, Any], action: str = "use", **parts: Any) -> dict[str, Any]:
    return {"action": action, "constraint": list(constraints), **parts}


def _croissant(**parts: Any) -> dict[str, Any]:
    return {"@context": {"@vocab": "https://schema.org/"}, "@type": "sc:Dataset", "name": "notes", **parts}


# -- vocabularies ------------------------------------------------------------------------------------------


def test_every_usable_code_is_known_and_mapped_to_words_that_exist() -> None:
    """All codes that a data set can carry are there, each once, and every purpose is in the vocabulary."""
    usable = {4, 6, 7, 11, 12, 15, 16, *range(18, 23), *range(24, 30), *range(42, 47)}
    terms = {term.id: term for term in duo_terms().values()}
    assert set(terms) == {f"DUO:{number:07}" for number in usable}
    assert len({term.short for term in terms.values()}) == len(usable)
    for term in terms.values():
        assert set(term.permits) | set(term.forbids) <= set(WORDS.purposes)
        says = (term.permits, term.forbids, term.condition, term.needs, term.withholds, not term.commercial)
        assert any(says), term.short
        assert find_term(DUO + term.id.removeprefix("DUO:")) is term


def test_purposes_with_a_code_agree_with_the_ontology() -> None:
    """Where the vocabulary names a code for a purpose, that code permits this purpose."""
    for purpose in WORDS.purposes.terms.values():
        if purpose.duo is not None and (term := duo_terms()[purpose.duo]).needs != "disease":
            assert term.permits == (purpose.id,)


def test_mapped_purposes_of_other_vocabularies_exist() -> None:
    """Words of the Data Privacy Vocabulary and diseases lead to purposes of this one."""
    dpv = read_data("dpv-1.json")
    named = {*dpv["exact"].values(), *dpv["within"].values(), *read_data("duo-1.json")["diseases"].values()}
    assert named <= set(WORDS.purposes)
    assert not dpv["exact"].keys() & dpv["within"].keys()


# -- DUO ---------------------------------------------------------------------------------------------------


def test_permissions_and_modifiers_of_duo() -> None:
    """A permission is a purpose; modifiers take commercial use away, forbid, or add a condition."""
    (one,) = _duo("GRU").consents
    assert (one.purpose, one.commercial, one.recipient) == ("research", True, ANY)
    drafts = _duo("DUO:0000006", f"{DUO}0000046", "NPOA", "PUB")
    assert [(c.purpose, c.commercial) for c in drafts.consents] == [("medical-research", False)]
    assert [f.purpose for f in drafts.forbids] == ["ancestry-research"]
    assert len(drafts.conditions) == 1
    assert drafts.not_imported == ()


@pytest.mark.parametrize(
    ("code", "scope"),
    [
        ("NPU", {"recipient": "uni"}),
        ("GS", {"region": "eu"}),
        ("TS", {"until_us": 9}),
        ("RS", {}),
        ("GSO", {}),
    ],
)
def test_a_limit_that_cannot_be_said_withholds_the_permission(code: str, scope: dict[str, Any]) -> None:
    """Without what the limit needs nothing is permitted; with it, it bounds the draft."""
    drafts = _duo("GRU", code)
    assert drafts.consents == ()
    assert {one.what for one in drafts.not_imported} >= {code}
    if scope:
        (one,) = _duo("GRU", code, **scope).consents
        assert (one.recipient, one.region, one.valid_until_us) == (
            scope.get("recipient", ANY),
            scope.get("region", ANY),
            scope.get("until_us"),
        )


def test_diseases_without_a_word_are_listed() -> None:
    """Disease-specific research becomes the disease's purpose, or nothing."""
    assert [one.purpose for one in _duo("DS", diseases=("MONDO:0004992",)).consents] == ["cancer-research"]
    for scope in ({}, {"diseases": ("MONDO:0000001",)}):
        drafts = _duo("DS", **scope)
        assert drafts.consents == ()
        assert drafts.not_imported


def test_a_code_that_is_not_known_withholds_the_others() -> None:
    """It might narrow them."""
    drafts = _duo("GRU", "DUO:9999999")
    assert drafts.consents == ()
    assert "DUO:9999999" in {one.what for one in drafts.not_imported}


@given(st.lists(st.sampled_from(sorted(duo_terms())), max_size=5), st.sampled_from(sorted(duo_terms())))
def test_another_code_never_permits_more_of_what_stood_there(codes: list[str], modifier: str) -> None:
    """A modifier added to codes leaves no wider permit; order and repetition say nothing."""
    before, after = _duo(*codes), _duo(*codes, modifier)
    if duo_terms()[modifier].kind == "modifier":
        assert {c.purpose for c in after.consents} <= {c.purpose for c in before.consents}
        assert all(c.commercial <= any(b.commercial for b in before.consents) for c in after.consents)
        assert set(before.forbids) <= set(after.forbids)
    assert _duo(*reversed(codes), *codes) == before


# -- ODRL --------------------------------------------------------------------------------------------------


def test_bounds_of_a_permission_become_a_consents_fields() -> None:
    """Purpose, region, recipient, moments and commercial use; alternatives become drafts of their own."""
    policy = _policy(
        permission=_permit(
            _when(
                "odrl:purpose", "odrl:isAnyOf", [f"{DUO}0000042", {"@id": "https://w3id.org/dpv#Advertising"}]
            ),
            _when("spatial", "eq", "https://www.iso.org/iso-3166/DE"),
            _when("recipient", "eq", "urn:expert-marketplace:tenant:uni"),
            _when("dateTime", "lteq", {"@value": "2030-01-01T00:00:00Z", "@type": "xsd:dateTime"}),
            _when("dateTime", "gteq", "2026-01-01T00:00:00+01:00"),
            action="http://www.w3.org/ns/odrl/2/execute",
        )
    )
    drafts = drafts_of_policy(policy, SCOPE)
    assert drafts.not_imported == ()
    assert [one.purpose for one in drafts.consents] == ["research", "advertising"]
    one = drafts.consents[0]
    assert (one.action, one.region, one.recipient, one.commercial) == ("infer", "de", "uni", False)
    assert one.valid_until_us == (moment_us("2030-01-01T00:00:00Z") or 0) + 1
    assert one.valid_from_us == moment_us("2025-12-31T23:00:00Z")


@pytest.mark.parametrize("conflict", [None, "perm", "prohibit", "invalid"])
def test_prohibitions_win_whatever_the_policy_says_of_conflicts(conflict: str | None) -> None:
    """A forbid is drafted beside the permit, and a ban of commercial use takes it from every permit."""
    parts = {} if conflict is None else {"conflict": conflict}
    policy = _policy(
        permission=[_permit(action="use"), _permit(action="commercialize")],
        prohibition=[_permit(_when("purpose", "eq", "dpv:DirectMarketing")), {"action": "commercialize"}],
        **parts,
    )
    drafts = drafts_of_policy(policy, SCOPE)
    assert [one.purpose for one in drafts.forbids] == ["advertising"]
    assert drafts.consents
    assert not any(one.commercial for one in drafts.consents)


@pytest.mark.parametrize(
    "rule",
    [
        _permit(_when("purpose", "eq", "urn:x:anything")),
        _permit(_when("purpose", "neq", "research")),
        _permit(_when("purpose", "eq", "dpv:DirectMarketing")),
        _permit(_when("count", "lteq", 5)),
        _permit(_when("recipient", "eq", "did:example:123")),
        _permit(_when("spatial", "eq", "Atlantis")),
        _permit(_when("dateTime", "lt", "2030-01-01")),
        _permit(_when("purpose", "eq", "research"), _when("purpose", "eq", "education")),
        _permit({"and": [_when("purpose", "eq", "research")]}),
        _permit(action="ex:fold"),
        _permit(assignee="https://somebody.example"),
        _permit(unheard="of"),
        {"action": {"rdf:value": {"@id": "odrl:use"}, "refinement": []}},
        "urn:rule:elsewhere",
        _permit(duty={"action": "inform", "constraint": _when("dateTime", "lt", "2030-01-01T00:00:00Z")}),
    ],
)
def test_a_permission_with_a_part_that_has_no_word_is_left_out(rule: Any) -> None:
    """It is listed with the reason; the permission beside it is read all the same."""
    drafts = drafts_of_policy(_policy(permission=[rule, _permit(_when("purpose", "eq", "education"))]), SCOPE)
    assert [one.purpose for one in drafts.consents] == ["education"]
    assert drafts.not_imported


def test_a_prohibition_is_never_read_as_less() -> None:
    """A bound that has no word is dropped, which forbids more; an act that has none withholds permits."""
    wider = drafts_of_policy(_policy(prohibition=_permit(_when("count", "gt", 5))), SCOPE)
    assert [(one.action, one.purpose) for one in wider.forbids] == [(ANY, ANY)]
    assert wider.notes
    parties = ["urn:expert-marketplace:tenant:uni", "urn:expert-marketplace:tenant:lab"]
    both = drafts_of_policy(_policy(prohibition={"action": "use", "assignee": parties}), SCOPE)
    assert {one.recipient for one in both.forbids} == {"uni", "lab"}
    unread = drafts_of_policy(_policy(prohibition={"action": "ex:fold"}, permission=_permit()), SCOPE)
    assert unread.consents == ()
    assert len(unread.not_imported) == 2


@pytest.mark.parametrize(
    "part",
    [
        {"profile": "urn:other"},
        {"inheritFrom": "urn:q"},
        {"assignee": "urn:z"},
        {"target": {"@type": "AssetCollection", "refinement": []}},
        {"target": "urn:a", "prohibition": _permit(target="urn:b", action="distribute")},
    ],
)
def test_a_policy_that_says_more_than_is_read_permits_nothing(part: dict[str, Any]) -> None:
    """A profile, a parent or shared parts could narrow what stands there."""
    drafts = drafts_of_policy(_policy(permission=_permit(), **part), SCOPE)
    assert drafts.consents == ()
    assert drafts.not_imported


def test_duties_become_conditions() -> None:
    """What has to be done with a use is a condition for the license."""
    policy = _policy(permission=_permit(duty=[{"action": "attribute"}]), obligation={"action": "odrl:inform"})
    assert drafts_of_policy(policy, SCOPE).conditions == ("Duty: attribute.", "Duty: inform.")


moments = st.none() | st.integers(0, 2**50)
words: dict[str, Any] = {
    "expert_id": st.just("exp_1"),
    "action": st.sampled_from([*ACTIONS, ANY]),
    "region": st.sampled_from([*WORDS.regions, ANY]),
    "recipient": st.sampled_from(["uni", "north-lab", ANY]),
    "commercial": st.booleans(),
    "valid_from_us": moments,
    "valid_until_us": moments,
}
permits = st.builds(ConsentGive, purpose=st.sampled_from([*WORDS.purposes]), **words)
forbids = st.builds(ForbidUse, purpose=st.sampled_from([*WORDS.purposes, ANY]), **words)


@given(st.lists(permits | forbids, min_size=1, max_size=4, unique=True))
def test_consents_written_as_odrl_read_back_as_they_were(consents: list[ConsentGive | ForbidUse]) -> None:
    """The whole way there and back, over JSON, changes no field of any permit or forbid."""
    policy = json.loads(json.dumps(policy_of(consents, uid="urn:c", target="urn:t")))
    found = read_card(policy, SCOPE)
    assert found.kind == "odrl"
    assert set(found.drafts.consents) == {one for one in consents if isinstance(one, ConsentGive)}
    assert set(found.drafts.forbids) == {one for one in consents if isinstance(one, ForbidUse)}
    assert found.drafts.not_imported == ()


@given(st.integers(0, 2**53 - 2))
def test_moments_there_and_back(at_us: int) -> None:
    """Every microsecond that a fact can state and a calendar can name."""
    if at_us < 253_402_300_800_000_000:
        assert moment_us(text_of_moment(at_us)) == at_us


# -- Croissant ---------------------------------------------------------------------------------------------


def test_a_card_becomes_facts_license_and_drafts() -> None:
    """Name, languages, dates, license, words on responsible use, and terms of both kinds."""
    card = _croissant(
        description="Ward notes.",
        inLanguage=["en", "de"],
        license=["https://creativecommons.org/licenses/by/4.0/", "MIT OR Apache-2.0"],
        usageInfo=[
            {"@type": "DefinedTerm", "termCode": "DUO_0000042"},
            {"@type": "sc:DefinedTerm", "@id": f"{DUO}0000046"},
            {"@id": "#offer"},
        ],
        **{
            "@graph": [_policy(prohibition=_permit(_when("purpose", "eq", "weapons"))) | {"@id": "#offer"}],
            "rai:dataBiases": "City hospitals only.",
            "rai:dataCollectionTimeFrame": ["2020-03", "2021"],
            "distribution": [{"@type": "cr:FileObject"}],
            "ex:secretTerms": "call us",
        },
    )
    found = read_card(card, SCOPE)
    assert found.kind == "croissant"
    assert found.license == "(CC-BY-4.0) AND (MIT OR Apache-2.0)"
    assert (found.card.collected_from, found.card.collected_to) == ("2020-03-01", "2021-12-31")
    assert found.card.languages == ("en", "de")
    assert found.card.notes["dataBiases"] == "City hospitals only."
    assert [(one.purpose, one.commercial) for one in found.drafts.consents] == [("research", False)]
    assert [one.purpose for one in found.drafts.forbids] == ["weapons"]
    assert [one.what for one in found.drafts.not_imported] == ["ex:secretTerms"]


@pytest.mark.parametrize(
    ("frame", "days"),
    [
        ("2020-03-07/2021-02-03", ("2020-03-07", "2021-02-03")),
        (["2020-03", "2024-02"], ("2020-03-01", "2024-02-29")),
        ("2021", ("2021-01-01", "2021-12-31")),
        ("2021-13-40", ("2021-01-01", "2021-12-31")),
        ("2021-03-07T10:00:00+0100", ("2021-03-07", "2021-03-07")),
        ("long ago", (None, None)),
    ],
)
def test_collection_begins_with_a_first_day_and_ends_with_a_last(frame: Any, days: tuple[Any, Any]) -> None:
    """A month or a year stands for all its days; what is no date is passed over."""
    card = read_card(_croissant(dataCollectionTimeFrame=frame), SCOPE).card
    assert (card.collected_from, card.collected_to) == days


@pytest.mark.parametrize(
    "parts",
    [{"license": "https://example.org/terms"}, {"license": {"@type": "CreativeWork"}}, {"license": "MIT OR"}],
)
def test_a_license_that_is_not_known_is_none(parts: dict[str, Any]) -> None:
    """It is listed, never guessed, and nothing is permitted under it."""
    found = read_card(_croissant(usageInfo={"termCode": "GRU", "@id": f"{DUO}0000042"}, **parts), SCOPE)
    assert found.license is None
    assert found.drafts.consents == ()
    assert {one.where for one in found.drafts.not_imported} >= {"license"}


def test_terms_that_are_neither_codes_nor_policies_withhold_the_others() -> None:
    """What stands beside a text that is not read may be bounded by it."""
    found = read_card(_croissant(usageInfo=["DUO:0000042", "Ask the ethics board."]), SCOPE)
    assert found.drafts.consents == ()
    assert "Ask the ethics board." in {one.what for one in found.drafts.not_imported}


@pytest.mark.parametrize(
    ("terms", "permitted"),
    [
        ([_policy(permission=_permit())], 1),
        (["DUO:0000042", _policy(permission=_permit())], 0),
        (["DUO:0000046", _policy(permission=_permit())], 0),
        (["DUO:0000042", _policy(prohibition=_permit(_when("purpose", "eq", "weapons")))], 1),
        (["DUO:0000042", _policy(prohibition={"action": "unheardOf"})], 0),
        ([_policy(permission=_permit()), _policy(permission=_permit(_when("spatial", "eq", "de")))], 0),
    ],
)
def test_terms_that_hold_together_permit_no_more_than_each(terms: list[Any], permitted: int) -> None:
    """Where one of several terms may limit what another permits, the permit is listed and not drafted."""
    drafts = read_card(_croissant(usageInfo=terms), SCOPE).drafts
    assert len(drafts.consents) == permitted
    assert permitted or any(one.what.startswith("permit ") for one in drafts.not_imported)


_BOTH = _when("spatial", "isAnyOf", ["de", "fr"])


def _nested(depth: int) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ([], CardRefused),
        ({}, CardRefused),
        ({"@type": "Person"}, CardRefused),
        (_croissant(extra=_nested(MAX_DEPTH)), CardTooLarge),
        (_croissant(keywords=["k"] * 6000), CardTooLarge),
        (_croissant(description="d" * (MAX_TEXT + 1)), CardTooLarge),
        (_croissant(description="free\u202eterces"), CardRefused),
        (_croissant(description="a\u200bb"), CardRefused),
        (_croissant(description="a\x00b"), CardRefused),
        (_croissant(description="\ud800"), CardRefused),
        ({**_croissant(license="MIT"), "sc:license": "Apache-2.0"}, CardRefused),
        (
            _croissant(usageInfo={"@id": "a"}, **{"@graph": [{"@id": "a"}, {"@id": "b"}]}),
            CardRefused,
        ),
        (
            _policy(permission=_permit(_when("purpose", "isAnyOf", sorted(WORDS.purposes)), _BOTH)),
            CardTooLarge,
        ),
    ],
)
def test_hostile_cards_are_refused_with_a_sentence(document: Any, kind: type[CardError]) -> None:
    """Depth, size, hidden characters, contradictions and circles end in one family of errors."""
    with pytest.raises(kind) as refused:
        read_card(document, SCOPE)
    assert refused.value.sentence.endswith(".")


json_like = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=8)
    | st.sampled_from([f"{DUO}0000042", "GRU"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["@id", "permission", "prohibition", "duty", "action", "constraint", "usageInfo", "license"]
            )
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(json_like, st.sampled_from(["Set", "sc:Dataset"]))
def test_no_document_ends_otherwise_than_in_an_import_or_a_refusal(document: Any, kind: str) -> None:
    """Whatever JSON holds, there is no other error, and what is drafted uses words that exist."""
    whole = {"@type": kind, **document} if isinstance(document, dict) else document
    try:
        found = read_card(whole, SCOPE)
    except CardError:
        return
    for one in (*found.drafts.consents, *found.drafts.forbids):
        assert WORDS.unknown_word(one.action, one.purpose, one.region) is None
