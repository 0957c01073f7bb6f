# SPDX-License-Identifier: Apache-2.0
"""License expressions, the algebra of terms, and the shipped table."""

from __future__ import annotations

import oracle_spec as spec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import LICENSES, license_fact

from policy.deciding.license_expressions import parse
from policy.deciding.licenses import (
    NO_TERMS,
    Subject,
    Terms,
    Use,
    check_expression,
    evaluate,
    joined,
    shipped_licenses,
    terms_of,
)
from policy.errors import InvalidLicenseExpression
from policy.facts.vocabulary import vocabulary

TABLE = {fact.key.lower(): fact for fact in LICENSES}
KEYS = [fact.key for fact in LICENSES]
IT = Subject("exp_1", "it")


def use(action: str = "infer", purpose: str = "research", *, commercial: bool = False) -> Use:
    """A use."""
    return Use(action=action, purpose=purpose, commercial=commercial, vocabulary=vocabulary("1"))


facts = st.builds(
    license_fact,
    st.sampled_from(("A", "B", "C", "D")),
    use_commercial=st.booleans(),
    derivatives=st.booleans(),
    share_alike_group=st.sampled_from((None, "s", "t")),
    prohibited_purposes=st.sampled_from(((), ("weapons",), ("medical-advice", "weapons"))),
    user_cap=st.sampled_from((None, 5, 10)),
    royalty_ppm=st.sampled_from((0, 400_000, 700_000)),
    attribution=st.booleans(),
)
terms = st.builds(
    lambda fact, subject, commercial: terms_of(fact, subject, commercial=commercial),
    facts,
    st.sampled_from(("x", "y")),
    st.booleans(),
)


@given(terms, terms, terms)
def test_terms_join_as_a_semilattice(a: Terms, b: Terms, c: Terms) -> None:
    """Commutative, associative, idempotent, with neutral terms: order and repetition cannot matter."""
    assert a.join(b) == b.join(a)
    assert a.join(b).join(c) == a.join(b.join(c))
    assert a.join(a) == a
    assert a.join(NO_TERMS) == a
    assert joined([a, b, c, a, b]) == joined([c, b, a])


@given(terms, terms, st.sampled_from(("infer", "export_weights")), st.booleans())
def test_joining_never_settles_a_conflict(a: Terms, b: Terms, action: str, commercial: bool) -> None:
    """More terms only ask for more: what conflicts alone conflicts in company."""
    if a.conflict(action=action, commercial=commercial):
        assert a.join(b).conflict(action=action, commercial=commercial)
    assert a.join(b).royalty_ppm() >= a.royalty_ppm()
    assert not a.join(b).use_commercial or a.use_commercial


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "MIT OR",
        "OR",
        "AND MIT",
        "MIT/Apache",
        "MIT MIT",
        "(MIT",
        "MIT)",
        "MIT OR (CC0-1.0",
        "MIT WITH",
        "MIT WITH x WITH y",
        "MIT\x00",
        "M" * 3_000,
        "(" * 60 + "MIT" + ")" * 60 + " OR",
        " AND ".join(["MIT"] * 900),
    ],
)
def test_what_is_no_expression_is_refused_and_denies(text: str) -> None:
    """Whatever the parsing library raises, one typed error leaves, and a decision denies."""
    with pytest.raises(InvalidLicenseExpression):
        parse(text)
    assert [one.code for one in evaluate(TABLE, IT, text, use()).denials] == ["invalid_license"]


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.lists(st.sampled_from([*KEYS, "AND", "OR", "WITH", "(", ")"])).map(" ".join))
def test_no_text_breaks_the_reader(text: str) -> None:
    """Any text is either read or refused with the typed error."""
    answer = evaluate(TABLE, IT, text, use())
    assert answer.permits == bool(answer.chosen)


def _joined_by(word: str) -> st.SearchStrategy[str]:
    return st.lists(st.sampled_from(KEYS), min_size=2, max_size=3).map(f" {word} ".join)


expressions = st.recursive(
    st.sampled_from([*KEYS, "NOASSERTION", "mit", "LicenseRef-nobody"]),
    lambda inner: st.lists(inner, min_size=2, max_size=3).flatmap(
        lambda parts: st.sampled_from((" AND ", " OR ")).map(
            lambda word: word.join(f"({part})" for part in parts)
        )
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(expressions, st.sampled_from(("infer", "export_weights", "fine_tune", "view_card")), st.booleans())
def test_an_expression_permits_when_one_of_its_branches_does(
    text: str, action: str, commercial: bool
) -> None:
    """Against an independent reader that spreads an expression into all its branches."""
    world = {"licenses": [fact.model_dump(mode="json") for fact in LICENSES]}
    plain = {"action": action, "purpose": "research", "commercial": commercial}
    answer = evaluate(TABLE, IT, text, use(action, commercial=commercial))
    expected = spec.chosen_licenses(world, text, plain)
    assert answer.permits == (expected is not None), text
    if answer.permits:
        table = {fact["key"]: fact for fact in world["licenses"]}
        assert all(spec.license_permits(table[key], plain) for key in answer.chosen)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("CC-BY-4.0 OR MIT", ("MIT",)),  # fewest obligations
        ("CC-BY-SA-4.0 OR CC-BY-4.0", ("CC-BY-4.0",)),  # as many: the first by name
        ("MIT AND (CC0-1.0 OR CC-BY-4.0)", ("CC0-1.0", "MIT")),
        ("mit or noassertion", ("MIT",)),
        ("CC-BY-NC-4.0 OR (CC-BY-4.0 AND LicenseRef-rail)", ("CC-BY-4.0", "LicenseRef-rail")),
    ],
)
def test_or_takes_the_lightest_branch_then_the_first_by_name(text: str, chosen: tuple[str, ...]) -> None:
    """Whatever the order in which the branches are written."""
    assert evaluate(TABLE, IT, text, use(commercial=True)).chosen == chosen


def test_of_two_user_caps_the_smaller_counts() -> None:
    """No cap is no limit; with several the least number of users holds."""
    capped = [terms_of(license_fact("A", user_cap=cap), "x", commercial=False) for cap in (None, 10, 5)]
    assert joined(capped).user_cap == 5
    assert joined(capped[:2]).user_cap == 10
    assert joined(capped[:1]).user_cap is None


def test_with_is_a_license_of_its_own() -> None:
    """An exception is part of the key: the license without it does not stand in."""
    with_exception = license_fact("GPL-2.0-only WITH Classpath-exception-2.0")
    text = "gpl-2.0-only with classpath-exception-2.0"
    assert evaluate({with_exception.key.lower(): with_exception}, IT, text, use()).permits
    alone = license_fact("GPL-2.0-only")
    assert not evaluate({alone.key.lower(): alone}, IT, text, use()).permits


def test_doors_refuse_unknown_licenses_early() -> None:
    """The same words that a decision would deny, as an error that says whom to ask."""
    assert check_expression("MIT OR CC-BY-4.0", TABLE) == ("CC-BY-4.0", "MIT")
    for text in ("MIT OR", "NOASSERTION", "MIT AND Nobody-1.0", "LicenseRef-unread"):
        with pytest.raises(InvalidLicenseExpression):
            check_expression(text, TABLE)


def test_the_shipped_table_is_whole_and_readable() -> None:
    """Keys parse and are distinct, prohibited purposes are known, and the usual ones are there."""
    table = shipped_licenses()
    assert len({fact.key.lower() for fact in table}) == len(table)
    for fact in table:
        assert parse(fact.key).kind == "license"
        assert fact.reviewed_by
        assert all(term in vocabulary("1").purposes for term in fact.prohibited_purposes)
    by_key = {fact.key: fact for fact in table}
    assert {"MIT", "Apache-2.0", "PSF-2.0", "BSD-3-Clause", "CC0-1.0", "CC-BY-4.0"} <= set(by_key)
    for key, fact in by_key.items():
        if key.startswith("CC-BY"):
            assert fact.use_commercial is ("NC" not in key)
            assert fact.derivatives is ("ND" not in key)
            assert (fact.share_alike_group is not None) is ("SA" in key)
