# SPDX-License-Identifier: Apache-2.0
"""Questions that nobody thought of, made of the description: no crash, and no answer it does not name."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.config import SchemathesisConfig
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from cluster.gateway.description import describe
from cluster.gateway.description_doors import OTHER_DOORS
from cluster.operations.catalogue import OPERATIONS
from tests.cluster.attack_world import OWNED, found_victim

#: Examples per operation and kind of data; ``make fuzz`` asks for more.
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "3"))
SEED = int(os.environ.get("FUZZ_SEED", "20260000"))
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
PEOPLE = ("operator", "carol", "ada", "dev", "aud")
#: Fields that name something, and what a town has to put there.
REAL = OWNED | {"base_digest": "base", "digest": "digest", "key_id": "key", "rule_id": "rule"}


@schemathesis.serializer("application/x-tar", "application/x-ndjson")
def _as_file(ctx: Any, value: Any) -> Any:
    """A file's body is bytes, whatever was drawn for it."""
    del ctx
    return getattr(value, "data", None) or str(value).encode("utf-8", "replace")


def _small_town(town: Any) -> dict[str, str]:
    """One of everything, and a key and a tenant that nobody misses."""
    ids = found_victim(town) | {"tenant": "spare"}
    town.post("operator", "/tenants", slug="spare", title="Spare")
    made = town.post("operator", "/keys", tenant="spare", principal="nobody", roles=["owner"])
    return ids | {"key": made["id"]}


def _schema() -> Any:
    config = SchemathesisConfig.from_dict({"generation": {"allow-x00": True}})
    return schemathesis.openapi.from_dict(describe(OPERATIONS), config=config)


def _operations() -> Iterator[Any]:
    """Everything described that comes to an end; what only reads comes first, so that it finds something."""
    endless = {door.path for door in OTHER_DOORS if door.streams}
    found = [one.ok() for one in _schema().get_all_operations() if one.ok().path not in endless]
    yield from sorted(found, key=lambda one: (one.method.upper() != "GET", one.label))


def _make_real(case: Any, ids: dict[str, str]) -> None:
    """Puts ids of the town where the case names something, so that more than the first look is exercised."""
    for place in (case.path_parameters, case.query, case.body):
        if isinstance(place, dict):
            for name in (place.keys() & REAL.keys()) - {"name"}:
                place[name] = ids[REAL[name]]
    if case.operation.path.startswith("/api/v1/deployments/{name}") and isinstance(
        case.path_parameters, dict
    ):
        case.path_parameters["name"] = ids["deployment"]


def _session() -> requests.Session:
    session = requests.Session()
    session.trust_env = False
    return session


def _fuzz(
    town: Any,
    operation: Any,
    mode: GenerationMode,
    ids: dict[str, str],
    session: requests.Session,
    asked: dict[int, int],
) -> None:
    """Asks one operation in every way that its description allows, or in none that it allows."""

    @seed(SEED)
    @settings(
        max_examples=EXAMPLES,
        database=None,
        derandomize=False,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=operation.as_strategy(generation_mode=mode),
        who=st.sampled_from(PEOPLE),
        real=st.booleans(),
    )
    def ask(case: Any, who: str, real: bool) -> None:
        if real and mode is GenerationMode.POSITIVE:
            _make_real(case, ids)
        headers = {"Authorization": f"Bearer {town.keys[who]}"}
        response = case.call(base_url=town.url, session=session, headers=headers)
        if "x-request-id" not in response.headers:
            assert response.status_code == 400  # no HTTP: refused by the server before there was a request
            return
        asked[response.status_code] = asked.get(response.status_code, 0) + 1
        case.validate_response(response, checks=CHECKS)

    ask()


def _sentence(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:1500]


def test_no_question_crashes_or_is_answered_otherwise_than_described(town: Any) -> None:
    """Good and bad questions of every operation, from every role: a described status, type and document."""
    ids = _small_town(town)
    wrong: dict[str, str] = {}
    asked: dict[int, int] = {}
    session = _session()
    for operation in _operations():
        for mode in GenerationMode:
            try:
                _fuzz(town, operation, mode, ids, session, asked)
            except Exception as error:
                wrong.setdefault(operation.label, _sentence(error))
    assert not wrong, "\n\n".join(f"{label}: {text}" for label, text in wrong.items())
    assert asked[200] > len(OPERATIONS)
    assert asked.keys() >= {200, 400, 403, 404, 409, 422}
