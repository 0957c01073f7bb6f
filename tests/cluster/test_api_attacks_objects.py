# SPDX-License-Identifier: Apache-2.0
"""Other tenants' objects by id, over every route: the same refusal as for an id that was never given out."""

from __future__ import annotations

from typing import Any

from cluster.operations.catalogue import OPERATIONS
from tests.cluster.attack_world import (
    CHAIN,
    COMMON,
    OWNED,
    found_victim,
    intruders,
    missing,
    owned_fields,
    send,
)

#: Names of deployments are the model names of one API: that one is taken is no secret.
NO_SECRET = {("deployments.put", "name")}


def _said(answer: Any, *ids: str) -> tuple[int, str]:
    """Status and text of an answer without what names the request, the moment or the id itself."""
    document = answer.json()
    for name in ("instance", "at_us", "input_digest", "output_digest"):
        document.pop(name, None)
    text = str(document)
    for one in ids:
        text = text.replace(one, "ID")
    return answer.status_code, text


def test_every_placeholder_is_somebodys_or_everybodys() -> None:
    """The walk below knows what each placeholder of the table holds, so that no route is left out."""
    placeholders = {name for row in OPERATIONS.values() for name in row.placeholders}
    assert placeholders <= OWNED.keys() | COMMON | CHAIN


def test_the_whole_chain_is_for_the_platform_alone(town: Any) -> None:
    """No tenant's auditor proves a row of another tenant, exports the chain or reads its records."""
    victim = found_victim(town)
    names = intruders(town)
    before = town.state()
    rows = {"records", "proof", "consistency", "checkpoint", "export"}
    for row in OPERATIONS.values():
        if row.noun != "audit" or row.name.partition(".")[2] not in rows:
            continue
        for who in names:
            for ids in ({"table": "consents", "key": victim["consent"]}, {"table": "audit", "key": "1"}):
                answer = send(town, who, row, ids)
                assert (answer.status_code, answer.json()["code"]) == (403, "role_required"), row.name
    assert town.state() == before


def test_foreign_objects_cannot_be_told_from_missing_ones(town: Any) -> None:
    """In every address and every field, another tenant's id is answered as one that does not exist."""
    victim = found_victim(town)
    names = intruders(town)
    before = town.state()
    wrong = []
    for row in OPERATIONS.values():
        for field, kind in owned_fields(row):
            theirs, nobodys = victim[kind], missing(kind, victim[kind])
            if (row.name, field) in NO_SECRET:
                continue
            for who in names:
                answers = []
                for one in (theirs, nobodys):
                    in_path = {field: one} if field in row.placeholders else {}
                    in_body = {} if in_path else {field: one}
                    if row.name == "changes.approve":
                        in_body |= {"digest": victim["digest"]}
                    answers.append(_said(send(town, who, row, in_path, **in_body), one))
                if answers[0] != answers[1]:
                    wrong.append((row.name, field, who, *answers))
                if field in row.placeholders and answers[0][0] not in {403, 404}:
                    wrong.append((row.name, field, who, answers[0]))
    assert not wrong, "\n".join(map(str, wrong))
    assert town.state() == before
